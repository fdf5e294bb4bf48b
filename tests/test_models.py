import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models import MODELS, create_model, load_predictor, load_published_checkpoint
from models.adanet import SOURCE_LABELS, TARGET_LABELS, Discriminator, domain_labels
from models.augment import Augmentation, Tiles
from models.cards import find_weights, load_card, load_network
from models.losses import LOSSES, boundary_aware_loss, boundary_weight, combine_losses
from models.numerics import best_mode
from models.training import TrainConfig, Watcher, fit, identify, predict_margins


def _count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("entry", MODELS.values(), ids=lambda e: e.name)
def test_registered_model_has_its_stated_parameters_and_shape(entry):
    network = create_model(entry.name, classes=2).eval()
    assert _count(network) == entry.parameters
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 64, 96)).shape == (1, 2, 64, 96)


def test_model_has_as_many_outputs_as_classes():
    with torch.inference_mode():
        assert create_model("mffenet-lite0-w32", classes=3).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 64, 64)


def test_light_encoder_starts_from_imagenet_weights():
    pretrained, fresh = (create_model("mffenet-lite0", pretrained=p) for p in (True, False))
    assert pretrained.backbone.bn1.running_mean.abs().sum() > 0
    assert fresh.backbone.bn1.running_mean.abs().sum() == 0


def test_paper_variant_is_exact_part_by_part():
    network = create_model("mffenet-resnet101")
    assert [_count(m) for m in (network.backbone, network.aspp, network.decoder)] == [
        42_500_160,
        15_535_104,
        13_321_226,
    ]


def test_paper_variant_has_the_published_shapes_on_512_px():
    with torch.device("meta"):
        network, image = create_model("mffenet-resnet101").eval(), torch.zeros(1, 3, 512, 512)
    with torch.inference_mode():
        x1, x2, x3, x4 = network.scales(image)
        levels = network.decoder.fork(x1, x2, x3, x4)
    assert [tuple(x.shape[1:]) for x in (x4, x3, x2, x1)] == [
        (64, 256, 256), (256, 128, 128), (512, 64, 64), (256, 32, 32),
    ]  # fmt: skip
    assert [tuple(a.shape[1:]) for a in levels] == [(768, 64, 64), (384, 128, 128), (192, 256, 256)]


def test_paper_variant_takes_0_97_tflop_for_a_512_px_window():
    with torch.device("meta"):  # operations are counted, not done
        network, image = create_model("mffenet-resnet101").eval(), torch.zeros(1, 3, 512, 512)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(image)
    assert counter.get_total_flops() / 1e12 == pytest.approx(0.97, abs=0.005)


def test_adanet_gives_two_outputs_in_training_only():
    network, images = create_model("adanet-lite0"), torch.zeros(2, 3, 64, 64)
    aux, main = network.train()(images)
    assert aux.shape == main.shape == (2, 2, 64, 64)
    assert network.eval()(images).shape == (2, 2, 64, 64)


def test_discriminator_has_a_logit_for_each_32_px_cell():
    assert Discriminator()(torch.zeros(1, 2, 512, 512)).shape == (1, 1, 16, 16)


@pytest.mark.parametrize("bounds", [SOURCE_LABELS, TARGET_LABELS])
def test_domain_labels_lie_within_their_bounds(bounds):
    labels = domain_labels(torch.zeros(50, 50), bounds, generator=torch.Generator().manual_seed(0))
    assert bounds[0] <= labels.min() < labels.max() <= bounds[1]


def test_model_size_error_names_the_fitting_size():
    with pytest.raises(ValueError, match=r"pad to \(64, 112\)"):
        create_model("mffenet-lite0")(torch.zeros(1, 3, 60, 100))


def test_unknown_model_lists_the_known():
    with pytest.raises(ValueError, match="mffenet-lite0, mffenet-resnet50"):
        create_model("unet")


@pytest.fixture(scope="module")
def published():
    """A network as the authors' training code leaves it: random weights and batch statistics."""
    torch.manual_seed(1)
    network = create_model("adanet-resnet101").eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network


def _probability(network, images):
    with torch.inference_mode():
        return network(images).softmax(dim=1)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_checkpoint_gives_the_same_probabilities(tmp_path, published, prefix):
    torch.save({"state_dict": {prefix + k: v for k, v in published.state_dict().items()}}, tmp_path / "best.pth")
    loaded = load_published_checkpoint(tmp_path / "best.pth")
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    ours, theirs = _probability(loaded, images), _probability(published, images)
    assert torch.isfinite(ours).all()
    assert (ours - theirs).abs().max() <= 1e-5


def test_published_checkpoint_without_auxiliary_output_is_mffenet(tmp_path, published):
    state = {k: v for k, v in published.state_dict().items() if not k.startswith("decoder.domain_conv")}
    torch.save({"state_dict": state}, tmp_path / "best.pth")
    assert type(load_published_checkpoint(tmp_path / "best.pth")).__name__ == "MFFENet"


def test_published_checkpoint_that_does_not_fit_names_the_keys(tmp_path, published):
    state = published.state_dict()
    state["decoder.stranger"] = state.pop("aspp.conv1.weight")
    state["aspp.bn1.bias"] = torch.zeros(3)
    torch.save({"state_dict": state}, tmp_path / "best.pth")
    told = "1 missing: aspp.conv1.weight; 1 left over: decoder.stranger; 1 of another shape: aspp.bn1.bias"
    with pytest.raises(ValueError, match=told):
        load_published_checkpoint(tmp_path / "best.pth")


@pytest.mark.parametrize("key", ["aspp.bn1.bias", "decoder.last_conv.8.weight"])
def test_published_checkpoint_with_a_number_for_a_tensor_names_the_key(tmp_path, published, key):
    torch.save({"state_dict": published.state_dict() | {key: 3}}, tmp_path / "best.pth")
    with pytest.raises(ValueError, match=f"1 of another shape: {key}"):
        load_published_checkpoint(tmp_path / "best.pth")


def test_published_checkpoint_may_hold_the_best_score(tmp_path, published):
    told = {"epoch": 9, "best_pred": np.float64(0.8), "state_dict": published.state_dict()}
    torch.save(told, tmp_path / "best.pth")
    assert type(load_published_checkpoint(tmp_path / "best.pth")).__name__ == "ADANet"


def test_published_checkpoint_with_a_score_of_an_older_numpy_is_loaded(tmp_path, published):
    torch.save({"best_pred": np.float64(0.8), "state_dict": published.state_dict()}, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "best.pth", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert type(load_published_checkpoint(tmp_path / "best.pth")).__name__ == "ADANet"


@pytest.mark.parametrize("content", [b"", b"hello", b"<html>", b"PK\x03\x04 cut off"], ids=len)
def test_published_checkpoint_that_is_none_says_so(tmp_path, content):
    (tmp_path / "best.pth").write_bytes(content)
    with pytest.raises(ValueError, match="got no file of `torch.save`"):
        load_published_checkpoint(tmp_path / "best.pth")


class _Trap:
    def __reduce__(self):
        return print, ("code in a checkpoint ran",)


def test_published_checkpoint_with_code_in_it_is_not_loaded(tmp_path, capsys):
    torch.save({"state_dict": {}, "trap": _Trap()}, tmp_path / "best.pth")
    with pytest.raises(ValueError, match=r"holds more than weights \(.*print\)"):
        load_published_checkpoint(tmp_path / "best.pth")
    assert capsys.readouterr().out == ""


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


def test_losses_are_lower_for_the_truth_than_for_its_opposite():
    labels = torch.zeros(1, 40, 40, dtype=torch.long)
    labels[:, 10:30, 10:30] = 1
    right = torch.stack([1.0 - labels.float(), labels.float()], dim=1) * 6
    for loss in LOSSES.values():
        assert loss(right, labels) < loss(right.flip(1), labels)


def test_losses_combine_by_weight():
    logits, labels = torch.randn(1, 2, 40, 40), torch.ones(1, 40, 40, dtype=torch.long)
    both = combine_losses({"dice": 0.5, "focal": 2.0})(logits, labels)
    assert both == pytest.approx(0.5 * LOSSES["dice"](logits, labels) + 2 * LOSSES["focal"](logits, labels))


def test_losses_error_lists_the_known():
    with pytest.raises(ValueError, match=r"got \['hinge'\]; expected some of boundary, "):
        combine_losses({"hinge": 1.0})


def _red_slides_on_green():
    rng = np.random.default_rng(0)
    masks = (rng.random((8, 8, 8)) > 0.7).repeat(16, 1).repeat(16, 2).astype(np.uint8)
    images = np.where(masks[..., None] == 1, [170, 110, 80], [40, 70, 40]).astype(np.uint8)
    return Tiles(images, masks)


def _trained(config):
    torch.manual_seed(3)
    return fit(create_model("mffenet-lite0"), _red_slides_on_green(), config)


@pytest.mark.parametrize("magnify", [0.5, 2.0])
def test_margins_are_the_same_in_batches(magnify, monkeypatch):
    images = np.random.default_rng(0).uniform(0, 255, (3, 64, 96, 3)).astype(np.float32)
    network = load_network(find_weights("mffenet-lite0"), load_card(find_weights("mffenet-lite0")))
    alone = predict_margins(network, images, magnify=magnify, mode=best_mode())
    monkeypatch.setattr("models.training.batch_on", lambda _device: 2)
    assert np.allclose(predict_margins(network, images, magnify=magnify, mode=best_mode()), alone, atol=0.05)
    assert all(not np.allclose(alone[a], alone[b], atol=0.1) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_predictions_are_the_same_in_batches(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), dtype=np.uint8)
    images[1:] = 40, 60, 45
    images[1, 16:48, 20:70] = images[2, 30:60, 50:90] = 150, 110, 90
    predictor = load_predictor()
    alone = predictor.predict(images, gsd_m=5.0)
    monkeypatch.setattr("models.predictor.batch_on", lambda _device: 2)
    assert np.allclose(predictor.predict(images, gsd_m=5.0), alone, atol=0.02)
    assert all(not np.allclose(alone[a], alone[b], atol=0.1) for a, b in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.usefixtures("two_threads")
def test_fit_is_reproducible():
    first, second = (_trained(TrainConfig(steps=2, batch=2, crop_px=64)).state_dict() for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))


class _Killed(Exception):
    pass


def test_fit_that_was_killed_goes_on_to_the_same_weights(tmp_path):
    config = TrainConfig(steps=4, batch=2, crop_px=64, epoch_steps=2)
    whole = _trained(config).state_dict()

    def kill(step, _loss):
        if step == 3:
            raise _Killed

    torch.manual_seed(3)
    with pytest.raises(_Killed):
        fit(create_model("mffenet-lite0"), _red_slides_on_green(), config, watcher=Watcher(on_step=kill),
            checkpoint=tmp_path / "state.pt")  # fmt: skip
    steps = []
    resumed = fit(create_model("mffenet-lite0"), _red_slides_on_green(), config, checkpoint=tmp_path / "state.pt",
                  watcher=Watcher(on_step=lambda step, _loss: steps.append(step)))  # fmt: skip
    assert steps == [3, 4]
    assert all(torch.equal(a, b) for a, b in zip(whole.values(), resumed.state_dict().values(), strict=True))


def test_fit_refuses_the_checkpoint_of_another_training(tmp_path):
    config = TrainConfig(steps=1, batch=2, crop_px=64)
    fit(create_model("mffenet-lite0"), _red_slides_on_green(), config, checkpoint=tmp_path / "state.pt")
    other = replace(config, learning_rate=0.5)
    with pytest.raises(ValueError, match="another configuration or other tiles"):
        fit(create_model("mffenet-lite0"), _red_slides_on_green(), other, checkpoint=tmp_path / "state.pt")


def test_identity_of_a_training_tells_tiles_of_another_pixel_size():
    tiles = _red_slides_on_green()
    assert identify(tiles, TrainConfig()) == identify(replace(tiles), TrainConfig())
    assert identify(tiles, TrainConfig()) != identify(replace(tiles, gsd_m=np.array(3.0)), TrainConfig())


def test_fit_stops_early_and_takes_the_best_weights():
    scores, kept = iter([0.5, 0.4, 0.3, 0.9]), []

    def validate(network):
        kept.append(network.state_dict()["aspp.conv1.weight"].clone())
        return {"f1": next(scores)}

    config = TrainConfig(steps=4, batch=2, crop_px=64, epoch_steps=1, patience=2)
    torch.manual_seed(3)
    network = fit(create_model("mffenet-lite0"), _red_slides_on_green(), config, watcher=Watcher(validate=validate))
    assert len(kept) == 3
    assert torch.equal(network.state_dict()["aspp.conv1.weight"], kept[0])


def test_fit_learns_red_slides_on_green_ground():
    mild = Augmentation(zoom=(0.8, 1.2), brightness=0.1, chroma=0.05)
    config = TrainConfig(steps=40, batch=4, crop_px=64, learning_rate=4e-3, ema_decay=0.8, augmentation=mild)
    network = _trained(config)
    tiles = _red_slides_on_green()
    margin = predict_margins(network, tiles.images.astype(np.float32), magnify=1, mode=best_mode())
    assert margin[tiles.masks == 1].mean() > margin[tiles.masks == 0].mean() + 1


def test_light_networks_start_gently():
    torch.manual_seed(0)
    network = create_model("mffenet-lite0-w32").eval()
    images = torch.randn(1, 3, 64, 64)
    levels = network.decoder.fork(*network.scales(images))
    for before, after in zip(levels, network.decoder.refine(*levels), strict=True):
        assert torch.equal(before, after)
    assert network(images).softmax(dim=1)[:, 1].mean().item() == pytest.approx(0.03, abs=0.015)
    assert {m.p for m in network.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}


def test_published_variant_starts_as_published():
    network = create_model("mffenet-resnet101")
    assert [m.p for m in network.modules() if isinstance(m, torch.nn.Dropout)] == [0.5, 0.5, 0.1]
    assert all(branch[-1].weight.std() > 0.01 for branch in (network.decoder.conv_3, network.decoder.conv_1))
    assert network.decoder.last_conv[-1].bias.abs().max() == 0
