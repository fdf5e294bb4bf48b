"""When an earlier version's decisions stand, and when they are made anew."""

import numpy as np
import pytest

from tasks.change import ChangeScaling
from tasks.decisions import keep_threshold, keep_tone, same_light, same_scale, still_matches
from tasks.inference import Tone
from tasks.preprocess import Normalisation
from tasks.registration import Coregistration
from tasks.thresholds import Threshold

TONE = Tone((0.10, 0.12, 0.08), (50.0, 55.0, 48.0), 1.0)


@pytest.mark.parametrize(
    ("now", "kept", "reason"),
    [
        (Tone((0.105, 0.12, 0.08), TONE.reference, 1.05), True, "version 1's is kept"),
        (Tone((0.12, 0.12, 0.08), TONE.reference, 1.0), False, "medians moved by 20 %"),
        (Tone(TONE.median, TONE.reference, 0.8), False, "curve by 0.20"),
        (Tone(TONE.median, (60.0, 55.0, 48.0), 1.0), False, "trained on others"),
    ],
)
def test_tone_is_kept_while_it_stays_near(now, kept, reason):
    tone, told = keep_tone(TONE, now, version=1)
    assert tone == (TONE if kept else now)
    assert reason in told


def test_tone_of_a_first_version_is_its_own_and_needs_no_reason():
    assert keep_tone(None, TONE, version=0) == (TONE, "")


@pytest.mark.parametrize(
    ("before", "now", "kept"),
    [
        (0.30, 0.25, True),  # a fifth more
        (0.25, 0.30, True),
        (0.30, 0.20, False),  # half as much again
        (0.20, 0.30, False),
        (0.012, 0.010, True),
        (0.030, 0.010, False),  # 0.02 in probability, and three times the landslides
        (None, 0.30, False),
        (0.30, 0.30, False),
    ],
)
def test_threshold_is_kept_while_it_calls_about_as_much_landslide(before, now, kept):
    sample = np.append(1e-3 / np.linspace(1 / 300_000, 1.0, 300_000), np.nan)  # the share above p is 1 / 1000 p
    found = keep_threshold(before, Threshold(now, "the scene's", 0.8, 1.0), sample, version=3)
    assert found.probability == (before if kept else now)
    assert (found.separability, found.weight) == (0.8, 1.0)
    assert ("version 3's" in found.reason) == kept


def test_reason_of_a_kept_threshold_says_what_the_other_would_have_called():
    sample = 1e-3 / np.linspace(1 / 300_000, 1.0, 300_000)
    kept = keep_threshold(0.30, Threshold(0.25, ""), sample, version=1)
    assert kept.reason.endswith("the scene's own, 0.25, would call 1.20 times the area landslide")


def shift(dy, dx, *, residual=0.1):
    return Coregistration("measured", dy, dx, residual, 20, 18)


@pytest.mark.parametrize(
    ("now", "stands"), [(shift(0.3, 0.1), True), (shift(0.6, 0.1), False), (shift(0.3, 0.0, residual=0.8), False)]
)
def test_shift_stands_while_it_moves_little_and_the_verdict_is_the_same(now, stands):
    assert still_matches(shift(0.2, 0.1), now) == stands


@pytest.mark.parametrize(
    ("now", "stands"),
    [
        (Normalisation(("red", "green"), (1.05, 1.0), (0.0, 0.0), 900), True),
        (Normalisation(("red", "green"), (1.2, 1.0), (0.0, 0.0), 900), False),
        (Normalisation(("red",), (1.0,), (0.0,), 900), False),
    ],
)
def test_radiometry_stands_while_its_gains_do(now, stands):
    assert same_light(Normalisation(("red", "green"), (1.0, 1.0), (0.0, 0.0), 900), now) == stands


@pytest.mark.parametrize(
    ("now", "stands"),
    [
        (ChangeScaling({"dndvi": 0.011}, {"dndvi": 0.021}, 900), True),
        (ChangeScaling({"dndvi": 0.02}, {"dndvi": 0.02}, 900), False),
        (ChangeScaling({"dndvi": 0.01}, {"dndvi": 0.03}, 900), False),
        (ChangeScaling({"dndvi": 0.01, "cva_magnitude": 0.01}, {"dndvi": 0.02, "cva_magnitude": 0.02}, 900), False),
    ],
)
def test_scale_of_change_stands_while_it_stays_near(now, stands):
    assert same_scale(ChangeScaling({"dndvi": 0.01}, {"dndvi": 0.02}, 900), now) == stands
