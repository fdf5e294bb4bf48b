"""Rasters to compare a product with: what was mapped, or where was looked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from odc.geo.geobox import GeoBox
from rasterio.windows import Window as RioWindow

from catalog.files import name_of
from catalog.opening import open_raster
from catalog.rasters import RasterInfo, describe_raster
from catalog.sampling import Decoding, sample
from catalog.schema import NOT_OBSERVED, FloatArray, InputError

STRIP_ROWS: Final = 1024
MOST_SHOWN: Final = 6


@dataclass(frozen=True)
class Reference:
    """A raster of what was mapped (above 0 = landslide), or of where was looked (above 0 = there)."""

    info: RasterInfo
    what: str
    numbers: tuple[int, ...]
    """That it holds, without nodata."""

    def read(self, place: GeoBox) -> FloatArray:
        """Its values (y, x) on a GeoBox, nearest pixel; NaN where it says nothing: nodata, a mask, or outside."""
        decoding = Decoding((1,), nodata=() if self.info.nodata is None else (self.info.nodata,))
        values: FloatArray = sample(self.info.path, place, decoding=decoding, method="nearest")[0]
        return values

    @property
    def sentence(self) -> str:
        """What was read."""
        above = ", ".join(f"{value}" for value in [v for v in self.numbers if v > 0][:MOST_SHOWN])
        many = ", ..." if len(self.numbers) > MOST_SHOWN + 1 else ""
        means = "landslide" if self.what == "truth" else "counted"
        return (
            f"{self.what}: {name_of(self.info.path)}, {means} where it is {above or 'above 0 (nowhere)'}{many}; its "
            "nodata and what lies outside of it are left out"
        )


def read_reference(path: str, *, what: str) -> Reference:
    """A raster to compare with, its values looked at: whole numbers, 0 and above.

    Raises: InputError, naming `what`, when it cannot be read and placed, or when it is not plain what its values mean.
    """
    try:
        info = describe_raster(path, allow_geographic=True)
        values = _distinct(info)
    except InputError as error:
        raise InputError(f"{what} {error}") from error
    if (bands := info.count - (info.alpha_index is not None)) != 1:
        raise InputError(
            f"{what} {path}: got {bands} bands; expected one of 0 and 1; write it with gdal_translate -b 1"
        )
    unclear = _unclear(values, what=what)
    if unclear is not None:
        raise InputError(
            f"{what} {path}: got the value {unclear:g}; expected 0 and 1 (or whole numbers above), and nodata where "
            f"nothing is known; if it is nodata say so (gdal_edit.py -a_nodata {unclear:g}), else write 1 for it, e.g. "
            "with gdal_calc.py"
        )
    if what == "truth" and 0 not in values:
        raise InputError(
            f"{what} {path}: holds no 0 that counts, so nothing says where no landslide is (nodata is {info.nodata}); "
            "expected 0 there; if 0 is set as nodata take that away: gdal_edit.py -unsetnodata"
        )
    return Reference(info, what, tuple(int(value) for value in sorted(values)))


def _distinct(info: RasterInfo) -> set[float]:
    """The values of a raster that are neither nodata nor masked."""
    found: set[float] = set()
    with open_raster(info.path) as dataset:
        for window in strips(dataset):
            strip = dataset.read(1, window=window, masked=True).compressed()
            found |= set(np.unique(strip[~np.isnan(strip)]).tolist())
    return found


def _unclear(values: set[float], *, what: str) -> float | None:
    """A value that could mean anything; None without one. 255 is nodata to some, and yes to others."""
    strange = next((value for value in sorted(values) if value < 0 or value != int(value)), None)
    if strange is not None or NOT_OBSERVED not in values:
        return strange
    counts_up = NOT_OBSERVED - 1 in values  # numbers of landslides
    mask = what != "truth" and values <= {0, NOT_OBSERVED}
    return None if counts_up or mask else NOT_OBSERVED


def strips(raster: Any) -> Iterator[RioWindow]:  # noqa: ANN401 - rasterio
    """Windows of whole rows that cover a raster, so that little of it is held at once."""
    for row in range(0, raster.height, STRIP_ROWS):
        yield RioWindow(0, row, raster.width, min(STRIP_ROWS, raster.height - row))
