import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import norm

from tasks.thresholds import LEAST_PROBABILITY, margin_threshold, scene_threshold


def _sigmoid(margin):
    return (1 / (1 + np.exp(-margin))).astype(np.float32)


def _scene(*, share, low=-5.0, high=-0.5, seed=0):
    rng = np.random.default_rng(seed)
    slide = rng.random(50_000) < share
    return _sigmoid(np.where(slide, rng.normal(high, 1.0, slide.size), rng.normal(low, 0.6, slide.size))), slide


def test_scene_threshold_lies_between_the_two_modes():
    probability, slide = _scene(share=0.2)
    chosen = scene_threshold(probability, card=0.5)
    assert 0.02 < chosen.probability < 0.2
    found = probability >= chosen.probability
    assert (found & slide).sum() / (found | slide).sum() > 0.9
    assert "the scene's" in chosen.reason


def test_scene_threshold_of_one_mode_is_the_card_s():
    probability, _ = _scene(share=0.0)
    chosen = scene_threshold(probability, card=0.5)
    assert chosen.probability == 0.5
    assert "one mode" in chosen.reason


def test_scene_threshold_never_exceeds_the_card_s():
    probability, _ = _scene(share=0.3, low=-1.0, high=6.0)
    assert scene_threshold(probability, card=0.5).probability == 0.5


def test_scene_threshold_has_a_floor():
    probability, _ = _scene(share=0.3, low=-9.0, high=-2.0)  # half of the landslides are sure by this card
    assert scene_threshold(probability, card=0.1).probability == LEAST_PROBABILITY


@pytest.mark.parametrize("probability", [np.full(9, np.nan, np.float32), np.full(9, 0.3, np.float32)])
def test_scene_threshold_without_a_spread_is_the_card_s(probability):
    assert scene_threshold(probability, card=0.4).probability == 0.4


def test_scene_threshold_ignores_what_was_not_observed():
    probability, _ = _scene(share=0.2)
    with_gap = np.concatenate([probability, np.full(10_000, np.nan, np.float32)])
    assert scene_threshold(with_gap, card=0.5) == scene_threshold(probability, card=0.5)


# --- no cliffs


def _mixture(share, *, gap, high=-0.7, size=40_000):
    """Two normal laws of log odds, `gap` apart, at even quantiles: no chance is in it. `share` is landslide."""
    slid = round(share * size)
    quantiles = [(np.arange(n) + 0.5) / n for n in (size - slid, slid)]
    laws = zip(quantiles, (high - gap, high), (1.0, 1.2), strict=True)
    return expit(np.concatenate([norm.ppf(q, mean, spread) for q, mean, spread in laws])).astype(np.float32)


def _area(probability, threshold):
    return float((probability >= threshold).mean())


def test_scene_threshold_moves_smoothly_as_the_valley_deepens():
    scenes = [_mixture(0.22, gap=gap) for gap in np.arange(1.6, 8.0, 0.02)]
    found = [scene_threshold(scene, card=0.38) for scene in scenes]
    eta = np.array([each.separability for each in found])
    assert eta.min() < 0.64
    assert eta.max() > 0.9
    assert np.abs(np.diff(logit([each.probability for each in found]))).max() < 0.1
    areas = np.array([_area(scene, each.probability) for scene, each in zip(scenes, found, strict=True)])
    assert np.abs(np.diff(np.log(areas))).max() < 0.05
    across = areas[(eta > 0.69) & (eta < 0.71)]
    assert across.max() / across.min() < 1.1


def test_scene_threshold_moves_smoothly_and_down_as_more_slides():
    shares = np.arange(0.0, 0.40, 0.002)
    scenes = [_mixture(share, gap=5.3) for share in shares]
    cuts = np.array([scene_threshold(scene, card=0.38).probability for scene in scenes])
    assert cuts[0] == 0.38
    assert cuts[-1] < 0.05
    assert (np.diff(cuts) < 1e-3).all()
    assert np.abs(np.diff(logit(cuts))).max() < 0.15
    areas = np.array([_area(scene, cut) for scene, cut in zip(scenes, cuts, strict=True)])
    assert (np.diff(areas) >= -1e-4).all()


@pytest.mark.parametrize(("gap", "share"), [(3.4, 0.22), (3.5, 0.3), (4.2, 0.09), (6.0, 0.3), (5.0, 0.04)])
def test_scene_threshold_of_other_blocks_of_the_scene_gives_much_the_same_area(gap, share):
    rng = np.random.default_rng(5)
    local = rng.beta(3, 3 / share - 3, 64)  # some blocks slid more than others
    blocks = np.stack([expit(np.where(rng.random(900) < s, rng.normal(-0.7, 1.2, 900), rng.normal(-0.7 - gap, 1, 900)))
                       for s in local]).astype(np.float32)  # fmt: skip
    drawn = [blocks[rng.integers(64, size=64)] for _ in range(200)]
    areas = [_area(blocks, scene_threshold(each, card=0.38).probability) for each in drawn]
    low, high = np.percentile(areas, [5, 95])
    assert high / low < 1.5


def test_scene_threshold_does_not_depend_on_how_the_scene_is_cut():
    probability, _ = _scene(share=0.12, high=-0.7)
    other = np.random.default_rng(1).permutation(probability).reshape(50, 10, 100)
    assert scene_threshold(other, card=0.38) == scene_threshold(probability, card=0.38)


def test_scene_threshold_asks_for_more_where_the_network_was_calibrated_on_more():
    probability = _mixture(0.2, gap=5.3)
    cuts = [scene_threshold(probability, card=0.38, prevalence=p).probability for p in (0.0, 0.02, 0.05, 0.2)]
    assert cuts == sorted(cuts)
    assert cuts[-1] == 0.38


def test_margin_threshold_is_the_scene_s_in_margins():
    probability = _mixture(0.12, gap=5.3)
    cut = margin_threshold(scale=1.5, bias=-0.4, card=0.38)((logit(probability.astype(np.float64)) + 0.4) / 1.5)
    assert expit(1.5 * cut - 0.4) == pytest.approx(scene_threshold(probability, card=0.38).probability, abs=1e-3)
