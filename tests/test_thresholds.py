import numpy as np
import pytest

from tasks.thresholds import LEAST_PROBABILITY, scene_threshold


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
    probability, _ = _scene(share=0.3, low=-9.0, high=-5.0)
    assert scene_threshold(probability, card=0.5).probability == LEAST_PROBABILITY


@pytest.mark.parametrize("probability", [np.full(9, np.nan, np.float32), np.full(9, 0.3, np.float32)])
def test_scene_threshold_without_a_spread_is_the_card_s(probability):
    assert scene_threshold(probability, card=0.4).probability == 0.4


def test_scene_threshold_ignores_what_was_not_observed():
    probability, _ = _scene(share=0.2)
    with_gap = np.concatenate([probability, np.full(10_000, np.nan, np.float32)])
    assert scene_threshold(with_gap, card=0.5) == scene_threshold(probability, card=0.5)
