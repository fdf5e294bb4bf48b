"""Sentinel-2's offset of reflectance: what an item says of it, held against its darkest pixels.

Since processing baseline 04.00 the numbers are 1000 higher. Catalogues took that away from some scenes, say of others
that they did, and say of some nothing (Element 84's earth-search, issues 66 and 71): the pixels are asked as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from catalog.items import BAND_INDEX, LOCAL, find_asset
from catalog.opening import open_raster
from catalog.scenes import Epoch
from catalog.sensors import OFFSET, OFFSET_REASON, S2_OFFSET, Sensor, reflectance_offset, sensor, stated_offset

SAMPLE_PX: Final = 512
"""Longest side of the reduced picture whose dark pixels are looked at."""

MIN_SAMPLE_PX: Final = 500
DARK_PERCENT: Final = 0.5
VISIBLE: Final = ("blue", "green", "red")

BELOW_ZERO: Final = -0.02
"""Reflectance below which half a percent of a scene cannot be: over water and shade corrections miss by less."""

DARK_WITH_OFFSET: Final = (0.1, 0.15)
"""Reflectance of the darkest pixels, in each visible band, if the offset was not taken away: shade and forest have
0.00-0.05. Bare ground without shade has as much in blue, but more in red."""

SAME_GROUND: Final = 0.07
"""Two dates whose darkest pixels differ by more in each visible band, in one direction, differ by an offset."""


@dataclass(frozen=True)
class _Dark:
    """The darkest pixels of a scene as stored, reflectance without any offset, by visible band."""

    floors: Mapping[str, float]

    def refutes(self, offset: float) -> bool:
        """True where that offset would make too many pixels negative in two bands."""
        return sum(floor + offset < BELOW_ZERO for floor in self.floors.values()) >= 2

    @property
    def looks_offset(self) -> bool:
        """True where all visible bands are as dark as shade that still carries the offset."""
        low, high = DARK_WITH_OFFSET
        return len(self.floors) == len(VISIBLE) and all(low <= floor <= high for floor in self.floors.values())


def with_offsets(epochs: Sequence[Epoch]) -> tuple[list[Epoch], list[str]]:
    """Epochs whose items say which offset their reflectance gets and why, and what is to be wary of.

    Those of sensors without such offsets stay as they are. A scene's statement holds unless its pixels refute it: an
    offset that makes half a percent of them negative is none, and where it is said to be taken away (or nothing is
    said) and the darkest pixels still carry it, it is applied.

    Raises: InputError when a scene's pixels cannot be read.
    """
    warnings: list[str] = []
    chosen: list[Epoch] = []
    named: list[tuple[str, dict[str, float]]] = []
    for epoch in epochs:
        if sensor(epoch.sensor).offset_baseline is None:
            chosen.append(epoch)
            continue
        items = []
        for item in epoch.items:
            dark = _dark(item, epoch)
            made, told = _chosen(item, sensor(epoch.sensor), dark)
            items.append(made)
            warnings += told
            floors = {band: floor + _applied(made, band, epoch) for band, floor in dark.floors.items()}
            named.append((str(item["id"]), floors))
        chosen.append(replace(epoch, items=tuple(items)))
    return chosen, warnings + _against_each_other(named)


def _chosen(item: Mapping[str, Any], entry: Sensor, dark: _Dark) -> tuple[dict[str, Any], list[str]]:
    """The item with its offset and the reason, and a warning where its pixels say otherwise than it does."""
    asset = find_asset(item, entry.bands["red"].assets) or {}
    stated, reason, firm = stated_offset(item["properties"], asset, entry)
    offset, warning = None, []
    if stated and dark.refutes(stated):
        offset, reason = 0.0, f"{reason}, but its dark pixels do not carry it ({_percent(dark)})"
    elif not stated and dark.looks_offset and not firm:
        offset, reason = S2_OFFSET, f"{reason}, but its dark pixels carry the offset ({_percent(dark)})"
    elif not stated and dark.looks_offset:
        warning = [f"{item['id']}: its dark pixels look as if they carried the offset ({_percent(dark)}): {reason}"]
    if offset is not None:
        fix = "set the tag PROCESSING_BASELINE" if item["properties"].get(LOCAL) else "leave the scene out"
        warning = [f"{item['id']}: reflectance offset {offset:+g}: {reason}; if that is wrong, {fix}"]
    told = {OFFSET_REASON: f"offset {stated if offset is None else offset:+g}: {reason}"}
    return {**item, "properties": {**item["properties"], OFFSET: offset, **told}}, warning


def _dark(item: Mapping[str, Any], epoch: Epoch) -> _Dark:
    entry, floors = sensor(epoch.sensor), {}
    for band in VISIBLE:
        asset = find_asset(item, entry.bands[band].assets)
        if asset is None:
            continue
        with open_raster(str(asset["href"]), epoch.opening(item)) as dataset:
            scale = max(1.0, max(dataset.shape) / SAMPLE_PX)
            shape = tuple(max(1, round(size / scale)) for size in dataset.shape)
            stored = dataset.read(asset.get(BAND_INDEX, 1), out_shape=shape)
            seen = stored[
                (stored != (entry.nodata or 0)) & (stored != (0 if dataset.nodata is None else dataset.nodata))
            ]
        if seen.size >= MIN_SAMPLE_PX:
            floors[band] = float(np.percentile(seen, DARK_PERCENT)) * entry.bands[band].scale
    return _Dark(floors)


def _applied(item: Mapping[str, Any], band: str, epoch: Epoch) -> float:
    entry = sensor(epoch.sensor)
    asset = find_asset(item, entry.bands[band].assets) or {}
    return reflectance_offset(entry, band, properties=item["properties"], asset=asset)


def _against_each_other(named: Sequence[tuple[str, dict[str, float]]]) -> list[str]:
    """A warning where two scenes differ as an offset makes them differ."""
    told = []
    for i, (name, dark) in enumerate(named):
        for other, brighter in named[i + 1 :]:
            gaps = [brighter[band] - dark[band] for band in VISIBLE if band in dark and band in brighter]
            if len(gaps) == len(VISIBLE) and (min(gaps) > SAME_GROUND or max(gaps) < -SAME_GROUND):
                told.append(
                    f"the darkest pixels of {name} and {other} differ by {abs(gaps[-1]):.2f} of reflectance in all "
                    "visible bands: the offset of one may be wrong, or one is hazy; compare them, or leave one out"
                )
    return told


def _percent(dark: _Dark) -> str:
    return ", ".join(f"{band} {floor:.3f}" for band, floor in dark.floors.items()) + " without it"
