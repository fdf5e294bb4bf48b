"""Collars of pictures that are nearly, and not quite, black: found once, before work, and then read as not observed.

Lossy compression leaves values of 1 to 3 of a black collar, which would count as seen ground without landslides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from scipy.ndimage import binary_dilation, label

from catalog.items import LOCAL, band_files
from catalog.opening import open_raster
from catalog.rasters import masked_out
from catalog.scenes import Epoch
from catalog.sensors import COLLAR, sensor

NEAR_BLACK: Final = 3
"""DN that lossy compression leaves of a black collar."""
DIM: Final = 16
"""DN up to which ground is so dark that what is `NEAR_BLACK` may be ground as well."""
COLLAR_SHARE: Final = 0.005
DOUBT_SHARE: Final = 0.1
FRINGE_PX: Final = 8
"""Side of a JPEG block: as far from a collar its compression makes ground dim."""
OVERVIEW_PX: Final = 512
LARGEST_PX: Final = 4 * OVERVIEW_PX
"""Longest side of an overview that is fetched for it."""


@dataclass(frozen=True)
class Collar:
    """What a picture has at its border."""

    share: float
    """Of the picture: nearly black, and connected to its border by such pixels."""
    is_sure: bool
    """Ground is nowhere as dark."""


def find_collar(path: str, indexes: Sequence[int]) -> Collar | None:
    """The nearly black collar of an 8-bit picture, looked for in a reduced one; None where it has none.

    It has one where at least 0.5 % of its pixels are 1 to 3 in the brightest band and connected to the border by
    pixels up to 3. Those that are 0 in all bands, or masked, are nodata already and only connect. The collar is sure
    where there is a gap between it and the ground: pixels up to 16 elsewhere, farther from it than compression reaches,
    are fewer than a tenth of it. Where there are more (shadow, dark water) the border may show ground as well.
    """
    with open_raster(path) as dataset:
        scale = max(1.0, max(dataset.shape) / OVERVIEW_PX)
        shape = tuple(max(1, round(size / scale)) for size in dataset.shape)
        brightest = dataset.read(list(indexes), out_shape=(len(indexes), *shape)).max(axis=0)
        unseen = masked_out(dataset, out_shape=shape) | (brightest == 0)
    parts, _ = label(unseen | (brightest <= NEAR_BLACK))
    border = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    whole = np.isin(parts, border[border > 0])
    collar = whole & ~unseen
    if collar.mean() < COLLAR_SHARE:
        return None
    near = binary_dilation(whole, iterations=math.ceil(FRINGE_PX / scale) + 1)
    dim = (brightest <= DIM) & ~unseen & ~near
    return Collar(float(collar.mean()), bool(dim.sum() < DOUBT_SHARE * collar.sum()))


def with_collars(epochs: Sequence[Epoch]) -> tuple[list[Epoch], list[str]]:
    """Epochs whose pictures say up to which number their pixels are a collar, and what is to be wary of.

    Where the collar is sure, all pixels as dark in every band are read as those of 0 are: as not observed. A picture of
    a STAC item is looked at where its overviews are small: elsewhere all of it would have to be fetched.

    Raises: InputError when a picture's pixels cannot be read.
    """
    told: list[str] = []
    return [replace(epoch, items=tuple(_decided(item, epoch, told) for item in epoch.items)) for epoch in epochs], told


def _decided(item: dict[str, Any], epoch: Epoch, told: list[str]) -> dict[str, Any]:
    entry = sensor(epoch.sensor)
    if not entry.is_8bit:
        return item
    is_local = bool(item["properties"].get(LOCAL))
    files = {path: at for path, at in band_files(item, entry).items() if is_local or _is_soon_read(path)}
    found = {path: find_collar(path, indexes) for path, indexes in files.items()}
    told += [_sentence(path, collar) for path, collar in found.items() if collar]
    sure = any(collar.is_sure for collar in found.values() if collar)
    return {**item, "properties": {**item["properties"], COLLAR: NEAR_BLACK}} if sure else item


def _is_soon_read(path: str) -> bool:
    with open_raster(path) as dataset:
        return bool(max(dataset.shape) / max(dataset.overviews(1), default=1) <= LARGEST_PX)


def _sentence(path: str, collar: Collar) -> str:
    what = f"{path}: {collar.share:.0%} of it looks like a collar of values up to {NEAR_BLACK} at its border"
    if collar.is_sure:
        return f"{what}: pixels as dark are taken as not observed; if they are ground, brighten the picture"
    return (
        f"{what}, but ground in it is as dark: it counts as seen ground without landslides; make the collar 0 "
        "(nearblack -near 3), or draw it into --mask"
    )
