"""Pixels in: the values of a raster file on any GeoBox, the same whichever piece of it is asked for.

GDAL's warper approximates coordinates and chooses its kernel window by window, so that two halves differ from the whole
by a little. Here each pixel is computed from its own coordinate alone: digests of blocks can be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.errors import RasterioError
from rasterio.windows import Window as RioWindow

from catalog.opening import PERSON, Opening, open_raster
from catalog.rasters import RasterInfo, gsd_of, masked_out
from catalog.schema import FloatArray, InputError

STEPS_PER_PX: Final = 1024
"""Source coordinates are rounded to this fraction of a pixel: the rounding of a block's origin changes nothing."""

MAX_SUBSAMPLES: Final = 16
"""Samples along one side of a target pixel, when it is larger than the source's."""

Method = Literal["bilinear", "nearest"]
Index = NDArray[np.float64]


@dataclass(frozen=True)
class Decoding:
    """How the stored numbers of a raster's bands become values."""

    indexes: tuple[int, ...]
    """1-based bands to read."""
    scales: tuple[float, ...] = (1.0,)
    offsets: tuple[float, ...] = (0.0,)
    nodata: tuple[float, ...] = ()
    """Numbers that are nodata, in each band by itself."""
    valid_range: tuple[float, float] = (-math.inf, math.inf)
    """Values outside are what the instrument or its correction could not measure: nodata."""
    picture: bool = False
    """8-bit imagery: a pixel of a black collar in all bands, or 255 in the first three (a white one), is nodata."""
    near_black: int = 0
    """Of a picture: the number up to which a pixel is of a black collar."""
    collar_px: int = 0
    """Where above 0: cells of 0, and those so near to one or to the border, are nodata (a DEM that fills with 0)."""


def picture_decoding(info: RasterInfo, indexes: Sequence[int]) -> Decoding:
    """How a labelled picture's bands are read: their own numbers, and nodata by the rule of 8-bit imagery."""
    stated = () if info.nodata is None or math.isnan(info.nodata) else (info.nodata,)
    return Decoding(tuple(indexes), nodata=stated, picture=True)


def read_whole(path: str, *, decoding: Decoding, opening: Opening = PERSON) -> FloatArray:
    """Values (bands, y, x) float32 of a raster on its own pixels, NaN = nodata, as `sample` reads them.

    Raises: InputError when the file cannot be read.
    """
    with open_raster(path, opening) as dataset:
        return _read_checked(dataset, RioWindow(0, 0, dataset.width, dataset.height), decoding, path)


def sample(
    path: str,
    geobox: GeoBox,
    *,
    decoding: Decoding,
    method: Method = "bilinear",
    fill: float = math.nan,
    opening: Opening = PERSON,
) -> FloatArray:
    """Values (bands, y, x) float32 of a raster on a GeoBox; `fill` (NaN) where there are none.

    `bilinear` weighs the valid neighbours and needs half of the weight to be valid; where the grids are aligned it is
    the identity. A target pixel larger than the source's is the mean over a lattice of samples. `nearest` picks one.

    Raises: InputError when the file cannot be read.
    """
    with open_raster(path, opening) as dataset:
        subsamples = 1 if method == "nearest" else _subsamples(dataset, geobox)
        count = len(decoding.indexes)
        total, valid = (np.zeros((count, *geobox.shape), np.float32) for _ in range(2))
        places = [(k + 0.5) / subsamples - 0.5 for k in range(subsamples)]
        rows_cols = [_source_index(dataset, geobox, dy=dy, dx=dx) for dy in places for dx in places]
        window = _window(dataset, rows_cols)
        if window is None:
            return np.full((count, *geobox.shape), fill, np.float32)
        values = _read_checked(dataset, window, decoding, path)
    for rows, cols in rows_cols:
        one = _interpolate(values, rows - window.row_off, cols - window.col_off, method=method)
        seen = ~np.isnan(one)
        total += np.where(seen, one, 0)
        valid += seen
    enough = valid * 2 >= len(rows_cols)
    return np.where(enough, total / np.maximum(valid, 1), np.float32(fill)).astype(np.float32)


def _subsamples(dataset: Any, geobox: GeoBox) -> int:  # noqa: ANN401 - rasterio
    ratio = abs(geobox.resolution.x) / gsd_of(dataset)
    return min(max(1, math.ceil(ratio - 0.5)), MAX_SUBSAMPLES)


def _source_index(dataset: Any, geobox: GeoBox, *, dy: float, dx: float) -> tuple[Index, Index]:  # noqa: ANN401
    """Fractional rows and columns of the source (0 = centre of its first pixel), broadcastable to the GeoBox."""
    a, _, left, _, e, top = geobox.transform[:6]
    x = (left + (np.arange(geobox.shape[1]) + 0.5 + dx) * a)[None, :]
    y = (top + (np.arange(geobox.shape[0]) + 0.5 + dy) * e)[:, None]
    source_crs = CRS(dataset.crs.to_wkt())
    if geobox.crs is not None and geobox.crs != source_crs:
        to_source = Transformer.from_crs(geobox.crs.proj, source_crs.proj, always_xy=True)
        xx, yy = np.broadcast_arrays(x, y)
        x, y = to_source.transform(xx, yy)
    t: Affine = dataset.transform
    rows, cols = (y - t.f) / t.e - 0.5, (x - t.c) / t.a - 0.5
    return _quantise(rows), _quantise(cols)


def _quantise(index: Index) -> Index:
    far = np.nan_to_num(index, nan=-1e9, posinf=1e9, neginf=-1e9)  # outside the projection: outside the file
    return np.asarray(np.round(far * STEPS_PER_PX) / STEPS_PER_PX)


def _window(dataset: Any, rows_cols: Sequence[tuple[Index, Index]]) -> RioWindow | None:  # noqa: ANN401 - rasterio
    """The source pixels that matter, with a pixel to spare; None when there are none."""
    spans = []
    for axis, size in enumerate(dataset.shape):
        low = min(float(index[axis].min()) for index in rows_cols)
        high = max(float(index[axis].max()) for index in rows_cols)
        spans.append((max(0, math.floor(low) - 1), min(size, math.floor(high) + 3)))
    (top, bottom), (left, right) = spans
    if top >= bottom or left >= right:
        return None
    return RioWindow(left, top, right - left, bottom - top)


def _read_checked(dataset: Any, window: RioWindow, decoding: Decoding, path: str) -> FloatArray:  # noqa: ANN401
    try:
        return _read(dataset, window, decoding)
    except RasterioError as error:
        raise InputError(
            f"{path}: its pixels cannot be read ({error}); the file may be damaged, or its server gone"
        ) from None


def _read(dataset: Any, window: RioWindow, decoding: Decoding) -> FloatArray:  # noqa: ANN401 - rasterio
    """Decoded pixels of a window (bands, y, x), NaN = nodata; each pixel the same whatever the window."""
    pad = decoding.collar_px
    top, left = max(0, window.row_off - pad), max(0, window.col_off - pad)
    bottom = min(dataset.height, window.row_off + window.height + pad)
    right = min(dataset.width, window.col_off + window.width + pad)
    grown = RioWindow(left, top, right - left, bottom - top)
    stored = dataset.read(list(decoding.indexes), window=grown)
    bad = _nodata(stored, decoding)
    if decoding.collar_px:
        bad |= _at_edge(grown, dataset.shape, decoding.collar_px)
    bad |= masked_out(dataset, window=grown)
    shape = (-1, 1, 1)
    scales, offsets = (np.reshape(np.asarray(v, np.float64), shape) for v in (decoding.scales, decoding.offsets))
    values = stored * scales + offsets
    low, high = decoding.valid_range
    with np.errstate(invalid="ignore"):
        bad |= (values < low) | (values > high)
    decoded = np.where(bad, np.nan, values).astype(np.float32)
    y0, x0 = window.row_off - top, window.col_off - left
    return decoded[:, y0 : y0 + window.height, x0 : x0 + window.width]


def _nodata(stored: NDArray[Any], decoding: Decoding) -> NDArray[np.bool_]:
    bad = np.zeros(stored.shape, bool)
    for number in decoding.nodata:
        equal = stored == number
        bad |= equal.all(axis=0) if decoding.picture else equal
    if decoding.picture:
        bad |= (stored <= decoding.near_black).all(axis=0) | (stored[:3] == 255).all(axis=0)
    if decoding.collar_px:
        bad |= _near(stored[0] == 0, decoding.collar_px)
    return bad


def _at_edge(window: RioWindow, shape: tuple[int, int], px: int) -> NDArray[np.bool_]:
    """Pixels of a window within `px` of the raster's border: fill went on outside of it, and so did the ramp."""
    rows, cols = (np.arange(n) + o for n, o in ((window.height, window.row_off), (window.width, window.col_off)))
    at_row, at_col = ((i < px) | (i >= size - px) for i, size in zip((rows, cols), shape, strict=True))
    return np.asarray(at_row[:, None] | at_col[None, :])


def _near(cells: NDArray[np.bool_], px: int) -> NDArray[np.bool_]:
    """Cells, and those within a square of `px` around one."""
    padded, size = np.pad(cells, px), 2 * px + 1
    return np.asarray(np.lib.stride_tricks.sliding_window_view(padded, (size, size)).any(axis=(2, 3)))


def _interpolate(values: FloatArray, rows: Index, cols: Index, *, method: Method) -> FloatArray:
    """Values (bands, y, x) at fractional rows and columns; NaN outside."""
    padded = np.pad(values, ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    limits = np.asarray(values.shape[1:]) + 1
    if method == "nearest":
        picked = [
            np.clip(np.floor(i + 0.5).astype(np.int64) + 1, 0, n) for i, n in zip((rows, cols), limits, strict=True)
        ]
        return np.asarray(padded[:, picked[0], picked[1]])
    r0, c0 = np.floor(rows), np.floor(cols)
    fr, fc = (rows - r0).astype(np.float32), (cols - c0).astype(np.float32)
    shape = (len(values), *np.broadcast_shapes(rows.shape, cols.shape))
    total, weight = (np.zeros(shape, np.float32) for _ in range(2))
    for dr, wr in ((0, 1 - fr), (1, fr)):
        for dc, wc in ((0, 1 - fc), (1, fc)):
            share = wr * wc
            if not share.any():
                continue  # aligned grids need one neighbour of four
            r = np.clip(r0.astype(np.int64) + dr + 1, 0, limits[0])
            c = np.clip(c0.astype(np.int64) + dc + 1, 0, limits[1])
            neighbour = padded[:, r, c]
            seen = ~np.isnan(neighbour)
            total += np.where(seen, neighbour, 0) * share
            weight += seen * share
    return np.asarray(np.where(weight >= 0.5, total / np.where(weight > 0, weight, 1), np.nan), dtype=np.float32)
