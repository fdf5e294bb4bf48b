"""When the next imagery can be expected: from how often a constellation passes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final

from tasks.planning import Scene


@dataclass(frozen=True)
class Revisit:
    """How often a constellation passes."""

    days: float
    source: str


REVISITS: Final[Mapping[str, Revisit]] = MappingProxyType(
    {
        "sentinel2-l2a": Revisit(5, "two satellites at the equator; ESA, Sentinel-2 User Handbook (2015)"),
        "landsat-c2-l2": Revisit(8, "Landsat 8 and 9 together; USGS, Landsat 9 Data Users Handbook (2022)"),
        "planetscope-4b": Revisit(1, "nearly daily; Planet, Imagery Product Specifications (2022)"),
    }
)
"""By sensor; the others are flown when someone orders it."""


def expected_next(sensors: Mapping[str, str], seen: Sequence[Scene], *, now: datetime) -> tuple[str, ...]:
    """What imagery is expected next: by sensor (name: title), a sentence with the time and where the number is from.

    seen : scenes of the area, also those of before the event: the passes are counted on from each of them.
    """
    sentences = []
    for name, title in sensors.items():
        revisit = REVISITS.get(name)
        if revisit is None:
            sentences.append(f"{title}: not known, it is acquired on order")
            continue
        passes = [next_pass(scene.time_utc, revisit.days, now) for scene in seen if scene.sensor == name]
        day = min(passes, default=now + timedelta(days=revisit.days))
        stated = "" if passes else "by "
        sentences.append(f"{title}: {stated}{day:%Y-%m-%d %H:%M} UTC (every {revisit.days:g} days: {revisit.source})")
    return tuple(sentences)


def next_pass(taken: datetime, days: float, now: datetime) -> datetime:
    """The first pass after now, of those every so many days after a scene."""
    step = timedelta(days=days)
    return taken + step * (math.floor((now - taken) / step) + 1)
