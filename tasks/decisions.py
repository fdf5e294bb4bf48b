"""Scene-wide decisions over versions: what a version decided is kept while the imagery that it rests on stays.

A new scene moves every measured figure a little. Measured anew each time, that little would change every pixel: all
blocks would be computed again and every landslide would move. So a decision stands until it has moved by more than its
tolerance; then it is made anew, and the reason says so.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from catalog.schema import FloatArray
from tasks.change import ChangeScaling
from tasks.inference import Tone
from tasks.preprocess import Normalisation
from tasks.registration import Coregistration
from tasks.thresholds import Threshold

TONE_TOLERANCE: Final = 0.1
"""Relative move of a band's median: half of what the networks' augmentation varies brightness by."""
GAMMA_TOLERANCE: Final = 0.1
AREA_TOLERANCE: Final = 1.3
"""Area that one threshold calls landslide over that of the other: as far as the area of a scene whose blocks are drawn
anew moves (95th over 5th percentile, docs/adr/0022)."""
SHIFT_TOLERANCE_PX: Final = 0.25
SCALE_TOLERANCE: Final = 0.2
"""Relative move of a spread on stable ground, and move of a median in spreads: the veto of what did not change is at
2 spreads."""


def keep_tone(before: Tone | None, now: Tone, *, version: int) -> tuple[Tone, str]:
    """The tone to use and why; the reason is empty where there is nothing to keep.

    >>> tone = Tone((0.1, 0.1, 0.1), (50.0, 50.0, 50.0), 1.0)
    >>> keep_tone(tone, Tone((0.102, 0.1, 0.1), (50.0, 50.0, 50.0), 1.0), version=1)[1]
    "tone: version 1's is kept, the scene's medians moved by 2 %"
    """
    if before is None:
        return now, ""
    moved = max(abs(new / old - 1.0) for old, new in zip(before.median, now.median, strict=True))
    bent = abs(before.gamma - now.gamma)
    if before.reference != now.reference:
        return now, f"tone: measured anew, the network of version {version} was trained on others"
    if moved > TONE_TOLERANCE or bent > GAMMA_TOLERANCE:
        return now, f"tone: measured anew, the scene's medians moved by {100 * moved:.0f} % and its curve by {bent:.2f}"
    return before, f"tone: version {version}'s is kept, the scene's medians moved by {100 * moved:.0f} %"


def keep_threshold(before: float | None, now: Threshold, sample: FloatArray, *, version: int) -> Threshold:
    """The threshold to use: the earlier one while it calls about as much of the scene landslide as the scene's own.

    sample : landslide probabilities of the scene as it is now, any shape, NaN = not observed.
    """
    if before is None or before == now.probability:
        return now
    then, calls = (max(int((sample >= cut).sum()), 1) for cut in (before, now.probability))
    if max(then, calls) > AREA_TOLERANCE * min(then, calls):
        return now
    reason = (
        f"version {version}'s, {before:g}, is kept: the scene's own, {now.probability:g}, would call "
        f"{calls / then:.2f} times the area landslide"
    )
    return replace(now, probability=before, reason=reason)


def still_matches(before: Coregistration, now: Coregistration) -> bool:
    """Whether the earlier measure of the shift stands beside the new one."""
    moved = math.hypot(before.dy_px - now.dy_px, before.dx_px - now.dx_px)
    return before.verdict() == now.verdict() and moved <= SHIFT_TOLERANCE_PX


def same_light(before: Normalisation, now: Normalisation) -> bool:
    """Whether the earlier radiometry of pre to post stands beside the new one."""
    if before.bands != now.bands:
        return False
    return all(abs(new / old - 1.0) <= TONE_TOLERANCE for old, new in zip(before.gain, now.gain, strict=True))


def same_scale(before: ChangeScaling, now: ChangeScaling) -> bool:
    """Whether the earlier scale of change stands beside the new one."""
    if before.median.keys() != now.median.keys():
        return False
    return all(
        abs(before.spread[name] / spread - 1.0) <= SCALE_TOLERANCE
        and abs(before.median[name] - now.median[name]) <= SCALE_TOLERANCE * spread
        for name, spread in now.spread.items()
    )
