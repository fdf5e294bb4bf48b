"""The objects of a block, from a mask: outlines, statistics, and the border codes by which they are joined."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import shapes
from scipy import ndimage

from catalog.schema import FloatArray, InputError
from tasks.objects import (
    DEFAULT_STEP,
    HISTOGRAM_BINS,
    HISTOGRAM_STEP,
    HISTOGRAM_VARIABLE,
    NO_OBJECT,
    STEPS,
    UNSEEN,
    BlockObjects,
    Tally,
    count_sides,
    lattice_key,
)
from tasks.polygons import BoolArray, Geometries, IntArray


def extract_objects(
    landslide: BoolArray, *, origin: tuple[int, int], values: Mapping[str, FloatArray], observed: BoolArray
) -> BlockObjects:
    """The 4-connected objects of a block with outlines, statistics and border codes; small, and can be pickled.

    landslide, observed : (y, x) bool; values : name -> (y, x) float32, NaN = nodata; `origin` : absolute (row, col) of
    the top-left pixel. `aspect_deg` is tallied as `aspect_sin` and `aspect_cos`; `slope_deg` gets a histogram too.

    Raises: InputError when shapes differ, or when a slope is outside 0-90 degrees.
    """
    for name, array in {"observed": observed, **values}.items():
        if array.shape != landslide.shape:
            raise InputError(
                f"{name}: got shape {array.shape}; expected the mask's {landslide.shape}; align them first"
            )
    labels, n = ndimage.label(landslide, output=np.int32)
    codes = np.where((labels == NO_OBJECT) & ~observed, np.int32(UNSEEN), labels)
    return BlockObjects(
        origin=origin,
        shape=(landslide.shape[0], landslide.shape[1]),
        outlines=shapely.to_wkb(_outlines(labels, n, origin)),
        tally=_tally(codes, n, origin, values),
        sides={"top": codes[0], "bottom": codes[-1], "left": codes[:, 0].copy(), "right": codes[:, -1].copy()},
    )


def extract_area(observed: BoolArray, *, origin: tuple[int, int]) -> BlockObjects:
    """The observed ground of a block as pieces for `join_area`; `observed` : (y, x) bool."""
    return extract_objects(observed, origin=origin, values={}, observed=observed)


def _outlines(labels: NDArray[np.int32], n: int, origin: tuple[int, int]) -> Geometries:
    """One valid polygon a label, (n,)."""
    polygons = np.full(n, None, dtype=object)
    here = Affine.translation(origin[1], origin[0])
    for geometry, label in shapes(labels, mask=labels > 0, connectivity=4, transform=here):
        shell, *holes = geometry["coordinates"]
        polygons[int(label) - 1] = shapely.Polygon(shell, holes)
    # A ring that meets itself at a pixel corner is a shell with a hole touching it: the same set, but valid.
    bad = ~shapely.is_valid(polygons)
    polygons[bad] = shapely.make_valid(polygons[bad], method="structure", keep_collapsed=False)
    return polygons


def _tally(codes: NDArray[np.int32], n: int, origin: tuple[int, int], values: Mapping[str, FloatArray]) -> Tally:
    rows, cols = np.nonzero(codes > 0)
    label = codes[rows, cols] - 1
    first = np.zeros(n, dtype=np.int64)
    backwards = lattice_key(rows[::-1] + origin[0], cols[::-1] + origin[1])
    first[label[::-1]] = backwards  # the last one written is the first pixel
    outline, unseen = _sides_inside(codes, n)
    picked = _components({name: array[rows, cols].astype(np.float64) for name, array in values.items()})
    slope = picked.get(HISTOGRAM_VARIABLE)
    return Tally(
        pixels=np.bincount(label, minlength=n),
        first=first,
        outline=outline,
        unseen=unseen,
        variables={name: _quantised(name, value, label, n) for name, value in picked.items()},
        histogram=np.zeros((n, 0), dtype=np.int32) if slope is None else _histogram(slope, label, n),
    )


def _components(values: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """The values with an angle replaced by its sine and cosine: those can be averaged."""
    aspect = values.pop("aspect_deg", None)
    if aspect is None:
        return values
    return values | {"aspect_sin": np.sin(np.radians(aspect)), "aspect_cos": np.cos(np.radians(aspect))}


def _quantised(name: str, value: NDArray[np.float64], label: NDArray[np.int32], n: int) -> IntArray:
    """(n, 4): count, sum, min, max of one variable as integers of its step."""
    valid = np.isfinite(value)
    label, steps = label[valid], np.rint(value[valid] / STEPS.get(name, DEFAULT_STEP))
    low, high = np.full(n, np.iinfo(np.int64).max), np.full(n, np.iinfo(np.int64).min)
    whole = steps.astype(np.int64)
    np.minimum.at(low, label, whole)
    np.maximum.at(high, label, whole)
    total = np.zeros(n, dtype=np.int64)
    np.add.at(total, label, whole)  # bincount would add in float64, exact below 2**53 only
    return np.stack([np.bincount(label, minlength=n), total, low, high], axis=1)


def _histogram(slope: NDArray[np.float64], label: NDArray[np.int32], n: int) -> NDArray[np.int32]:
    valid = np.isfinite(slope)
    label, slope = label[valid], slope[valid]
    if slope.size and not (0.0 <= slope.min() and slope.max() <= 90.0):
        raise InputError(
            f"slope_deg: got {slope.min():g} to {slope.max():g}; expected 0 to 90 degrees; check its units"
        )
    bins = np.minimum((slope / HISTOGRAM_STEP).astype(np.int64), HISTOGRAM_BINS - 1)
    counts = np.bincount(label * HISTOGRAM_BINS + bins, minlength=n * HISTOGRAM_BINS)
    return counts.reshape(n, HISTOGRAM_BINS).astype(np.int32)


def _sides_inside(codes: NDArray[np.int32], n: int) -> tuple[IntArray, IntArray]:
    """Outline and unseen sides of each object inside this block; those along the block's border wait for the join."""
    pairs = ((codes[:-1], codes[1:]), (codes[:, :-1], codes[:, 1:]))
    return count_sides([(a.ravel(), b.ravel()) for a, b in pairs], n)
