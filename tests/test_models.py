import numpy as np
import pytest
import torch

from models import MODELS, create_model, load_published_checkpoint
from models.losses import boundary_aware_loss, boundary_weight
from models.mffenet import mffenet_resnet101
from models.training import Tiles, TrainConfig, fit


def _count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("entry", MODELS.values(), ids=lambda e: e.name)
def test_registered_model_has_its_stated_parameters_and_shape(entry):
    network = create_model(entry.name).eval()
    assert _count(network) == entry.parameters
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 64, 96)).shape == (1, 2, 64, 96)


def test_paper_variant_is_exact_part_by_part():
    network = mffenet_resnet101()
    assert [_count(m) for m in (network.backbone, network.aspp, network.decoder)] == [
        42_500_160,
        15_535_104,
        13_321_226,
    ]


def test_model_size_error_names_the_fitting_size():
    with pytest.raises(ValueError, match=r"pad to \(64, 112\)"):
        create_model("mffenet-lite0")(torch.zeros(1, 3, 60, 100))


def test_unknown_model_lists_the_known():
    with pytest.raises(ValueError, match="mffenet-lite0, mffenet-resnet101"):
        create_model("unet")


def test_published_checkpoint_loads_with_prefix_and_auxiliary_output(tmp_path):
    source = create_model("mffenet-lite0")
    state = {f"module.{k}": v for k, v in source.state_dict().items()}
    state["module.decoder.domain_conv.weight"] = torch.zeros(2, 64, 1, 1)
    torch.save({"state_dict": state}, tmp_path / "best.pth")
    loaded = load_published_checkpoint(create_model("mffenet-lite0"), tmp_path / "best.pth")
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


def test_published_checkpoint_that_does_not_fit_names_the_keys(tmp_path):
    state = create_model("mffenet-lite0").state_dict()
    state["decoder.stranger"] = state.pop("aspp.conv1.weight")
    torch.save({"state_dict": state}, tmp_path / "best.pth")
    with pytest.raises(ValueError, match=r"1 missing: aspp.conv1.weight; 1 left over: decoder.stranger"):
        load_published_checkpoint(create_model("mffenet-lite0"), tmp_path / "best.pth")


def test_published_boundary_weight_is_two_in_an_interior():
    labels = torch.zeros(1, 128, 128, dtype=torch.long)
    assert boundary_weight(labels, variant="published")[0, 64, 64].item() == pytest.approx(2.0, abs=1e-5)


def test_intended_boundary_weight_is_two_on_an_edge_and_half_far_away():
    labels = torch.zeros(1, 128, 128, dtype=torch.long)
    labels[:, :, 64:] = 1
    weight = boundary_weight(labels)
    assert weight[0, 64, 64].item() == pytest.approx(2.0, abs=0.05)
    assert weight[0, 64, 5].item() == pytest.approx(0.5, abs=1e-4)


def test_boundary_aware_loss_ignores_unlabelled_pixels():
    logits = torch.randn(1, 2, 40, 40, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(1, 40, 40, dtype=torch.long)
    labels[:, :20] = 255
    changed = logits.clone()
    changed[:, :, :20] += 7
    assert boundary_aware_loss(logits, labels) == boundary_aware_loss(changed, labels)


def test_fit_is_reproducible_and_learns_red_from_green():
    rng = np.random.default_rng(0)
    masks = (rng.random((8, 8, 8)) > 0.7).repeat(16, 1).repeat(16, 2).astype(np.uint8)
    images = np.where(masks[..., None] == 1, [170, 110, 80], [40, 70, 40]).astype(np.uint8)
    config = TrainConfig(steps=24, batch=2, crop_px=64)

    def train():
        torch.manual_seed(3)
        losses = []
        network = fit(
            create_model("mffenet-lite0"), Tiles(images, masks), config, on_step=lambda step, loss: losses.append(loss)
        )
        return network.state_dict(), losses

    (first, losses), (second, _) = train(), train()
    assert all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))
    assert np.mean(losses[-6:]) < 0.7 * np.mean(losses[:6])
