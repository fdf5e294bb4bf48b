from dataclasses import replace

import numpy as np
import pytest
import torch

from models.adaptation import AdaptConfig, adapt
from models.augment import Augmentation, Tiles
from models.matching import match_tiles
from models.registry import create_model
from models.training import TrainConfig, fit, predict_margins

PLAIN = Augmentation(zoom=(0.9, 1.1), brightness=0.05, chroma=0.02, gamma=0.02, saturation=0.02, haze=0.0)
QUICK = AdaptConfig(steps=2, round_steps=1, batch=2, crop_px=32, augmentation=PLAIN)


def _event(slide, ground, *, seed, gsd_m=10.0):
    rng = np.random.default_rng(seed)
    masks = (rng.random((4, 4, 4)) > 0.8).repeat(16, 1).repeat(16, 2).astype(np.uint8)
    images = np.where(masks[..., None] == 1, slide, ground) + rng.normal(0, 6, (4, 64, 64, 3))
    return Tiles(images.clip(0, 255).astype(np.uint8), masks, gsd_m=np.array(gsd_m))


@pytest.fixture(scope="module")
def source():
    return _event([170, 110, 80], [40, 70, 40], seed=0)


@pytest.fixture(scope="module")
def target():
    """Paler slides on browner ground, of which nothing is said but where it was observed."""
    labelled = _event([120, 100, 85], [60, 66, 50], seed=1, gsd_m=5.0)
    return replace(labelled, masks=np.zeros_like(labelled.masks))


@pytest.fixture(scope="module")
def trained(source):
    torch.manual_seed(0)
    config = TrainConfig(steps=20, batch=4, crop_px=64, ema_decay=0.8, augmentation=PLAIN)
    return fit(create_model("mffenet-lite0-w32", pretrained=True), source, config).state_dict()


def _adanet(trained):
    torch.manual_seed(0)
    network = create_model("adanet-lite0-w32")
    missing = network.load_state_dict(trained, strict=False)
    assert missing.missing_keys == ["decoder.domain_conv.weight", "decoder.domain_conv.bias"]
    return network


def _adapted(trained, source, target, config, **told):
    return adapt(_adanet(trained), source, target, config, threshold=lambda _margin: 0.0, **told)


@pytest.mark.usefixtures("two_threads")
def test_adapt_is_reproducible_and_reads_no_label_of_the_target(trained, source, target):
    told, config = replace(target, masks=1 - target.masks), replace(QUICK, steps=1)
    first, second = (_adapted(trained, source, scene, config).state_dict() for scene in (target, told))
    assert all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))
    assert not torch.equal(first["aspp.conv1.weight"], trained["aspp.conv1.weight"])


@pytest.mark.parametrize(
    ("change", "terms"),
    [
        ({"self_training": 0.0}, {"adversarial, main", "adversarial, auxiliary", "discriminators"}),
        ({"adversarial": (0.0, 0.0)}, {"self-training"}),
        ({"adversarial": (0.0, 0.0), "self_training": 0.0, "entropy": 0.01}, {"entropy"}),
        ({"statistics": "per-domain", "match": "wallis", "adversarial": (0.01, 0.0), "self_training": 0.0},
         {"adversarial, main", "discriminators"}),
    ],
    ids=["published", "self-training", "entropy", "main level, statistics a domain"],
)  # fmt: skip
def test_adapt_switches_each_term(trained, source, target, change, terms):
    told = []
    _adapted(trained, source, target, replace(QUICK, **change), on_step=lambda _step, losses: told.append(losses))
    assert [set(losses) - {"segmentation"} for losses in told] == [terms] * 2
    assert all(np.isfinite(value) for losses in told for value in losses.values())


def test_adapt_with_frozen_statistics_keeps_those_of_the_source(trained, source, target):
    adapted = _adapted(trained, source, target, QUICK).state_dict()
    assert torch.equal(adapted["backbone.bn1.running_mean"], trained["backbone.bn1.running_mean"])


def test_adapt_with_statistics_a_domain_takes_the_targets(trained, source, target):
    adapted = _adapted(trained, source, target, replace(QUICK, statistics="per-domain")).state_dict()
    assert not torch.equal(adapted["backbone.bn1.running_mean"], trained["backbone.bn1.running_mean"])


def test_adapt_keeps_pseudo_labels_from_growing(trained, source, target):
    rounds = []
    shares = iter([0.2, 1.0, 1.0])  # from the second round on everything would be a landslide
    adapt(_adanet(trained), source, target, QUICK, threshold=lambda m: float(np.quantile(m, 1 - next(shares))),
          on_round=lambda told, _network: rounds.append(told.landslide_share))  # fmt: skip
    assert rounds == pytest.approx([0.2, 0.2 * QUICK.growth, 0.2 * QUICK.growth], abs=0.01)


def test_adapt_selects_the_round_of_least_entropy(trained, source, target):
    entropies, networks = [], []

    def hear(told, network):
        entropies.append(told.entropy)
        networks.append(network.state_dict()["aspp.conv1.weight"].clone())

    adapted = _adapted(trained, source, target, replace(QUICK, select="entropy"), on_round=hear)
    assert torch.equal(adapted.state_dict()["aspp.conv1.weight"], networks[int(np.argmin(entropies))])


def test_adapt_finds_paler_slides_that_the_source_doubts(trained, source, target):
    truth = _event([120, 100, 85], [60, 66, 50], seed=1).masks == 1
    config = AdaptConfig(steps=10, round_steps=5, batch=3, crop_px=64, augmentation=PLAIN, ema_decay=0.8)
    start = _adanet(trained).eval()
    margins = predict_margins(start, target.images.astype(np.float32), magnify=1, mode="fp32")
    adapted = adapt(_adanet(trained), source, target, config, threshold=lambda m: float(np.quantile(m, 0.8)))
    after = predict_margins(adapted, target.images.astype(np.float32), magnify=1, mode="fp32")
    gap = margins[truth].mean() - margins[~truth].mean()
    assert after[truth].mean() - after[~truth].mean() > gap


@pytest.mark.parametrize("how", ["histogram", "wallis"])
def test_matched_tiles_have_the_targets_colours(source, target, how):
    matched = match_tiles(source, target, how=how)
    for band in range(3):
        assert matched.images[..., band].mean() == pytest.approx(target.images[..., band].mean(), abs=3)
    assert np.array_equal(matched.masks, source.masks)


def test_matching_leaves_unobserved_pixels_of_the_target_aside(source, target):
    masks, images = target.masks.copy(), target.images.copy()
    masks[:, :32], images[:, :32] = 255, 255
    hidden = replace(target, masks=masks)
    blackened = replace(hidden, images=images)
    ours, theirs = (match_tiles(source, t, how="histogram").images for t in (blackened, hidden))
    assert np.array_equal(ours, theirs)
