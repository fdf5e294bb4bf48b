"""Decisions without a cliff: how far between two answers, where a measured figure says one or the other."""

from __future__ import annotations


def smooth_step(value: float, ramp: tuple[float, float]) -> float:
    """From 0 at the ramp's first value to 1 at its second, flat at both ends.

    >>> smooth_step(0.9, (1.0, 2.0)), smooth_step(1.5, (1.0, 2.0)), smooth_step(2.0, (1.0, 2.0))
    (0.0, 0.5, 1.0)
    """
    x = min(max((value - ramp[0]) / (ramp[1] - ramp[0]), 0.0), 1.0)
    return float(x * x * (3.0 - 2.0 * x))
