"""From a mask, block by block, to whole landslide objects with exact outlines and statistics.

Everything is an integer on the absolute pixel lattice of the CRS (row down, col east), so that merging is exact and
the result depends neither on the size of the blocks nor on their order. Objects are 4-connected: pixels that meet at a
corner only are two objects, also where blocks meet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize, shapes
from scipy import ndimage, sparse

from catalog.schema import FloatArray, InputError

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]
Geometries = NDArray[np.object_]

STEPS: Final[Mapping[str, float]] = MappingProxyType(
    {
        "slope_deg": 0.01,
        "elevation_m": 0.01,
        "flow_accumulation_m2": 1.0,
        "profile_curvature": 1e-6,
        "plan_curvature": 1e-6,
    }
)
"""Quantisation of a variable before it is summed, in its units: integers add up to the same sum in any order, as long
as the sum stays below 2**63 steps (an upslope area of 1e14 m2 in 90,000 pixels does)."""
DEFAULT_STEP: Final = 1e-4

HISTOGRAM_VARIABLE: Final = "slope_deg"
"""The variable whose percentiles are delivered: its histogram merges, a percentile does not."""
HISTOGRAM_BINS: Final = 180
HISTOGRAM_STEP: Final = 0.5
"""Degrees: a percentile is good to this."""

VERTICES_AT_ONCE: Final = 100_000
"""Ground with clouds has millions of vertices in a large scene, and `_corners_only` takes some 150 bytes for each."""

NO_OBJECT, UNSEEN = 0, -1
"""Codes of a border pixel without an object: observed ground, ground not observed. Objects count from 1."""

_HALF: Final = np.int64(1) << 31


@dataclass(frozen=True, eq=False)
class Tally:
    """Integer statistics of n objects that merge by adding, or by the smaller or larger one."""

    pixels: IntArray
    """(n,) number of pixels."""
    first: IntArray
    """(n,) lattice key of the first pixel in row-major order (see `first_pixels`)."""
    outline: IntArray
    """(n,) pixel sides on the outline, holes included."""
    unseen: IntArray
    """(n,) pixel sides of the outline beyond which the ground was not observed."""
    variables: Mapping[str, IntArray]
    """Name -> (n, 4): count, sum, min, max of the quantised values; nodata pixels do not count."""
    histogram: NDArray[np.int32]
    """(n, HISTOGRAM_BINS) pixels by slope; (n, 0) without slope. The largest part of a tally, hence of 32 bits."""

    def take(self, which: BoolArray | IntArray) -> Tally:
        """Some of the objects, by a mask or by row numbers."""
        return Tally(
            pixels=self.pixels[which],
            first=self.first[which],
            outline=self.outline[which],
            unseen=self.unseen[which],
            variables={name: column[which] for name, column in self.variables.items()},
            histogram=self.histogram[which],
        )


@dataclass(frozen=True, eq=False)
class BlockObjects:
    """The objects of one block, and the codes along its four sides by which neighbours are joined."""

    origin: tuple[int, int]
    shape: tuple[int, int]
    outlines: NDArray[np.object_]
    """(n,) polygons as WKB, which takes half the memory of shapely's; x = absolute col, y = absolute row."""
    tally: Tally
    sides: Mapping[str, NDArray[np.int32]]
    """`top`, `bottom`, `left`, `right` -> codes of the border pixels."""


@dataclass(frozen=True, eq=False)
class Objects:
    """Whole objects, in row-major order of their first pixels."""

    polygons: Geometries
    """(n,) canonical polygons, x = absolute col, y = absolute row."""
    tally: Tally

    def take(self, which: BoolArray | IntArray) -> Objects:
        """Some of the objects, by a mask or by row numbers."""
        return Objects(self.polygons[which], self.tally.take(which))

    def first_pixels(self) -> tuple[IntArray, IntArray]:
        """Absolute rows and cols, (n,) each, of the objects' first pixels in row-major order."""
        return (self.tally.first >> 32) - _HALF, (self.tally.first & 0xFFFFFFFF) - _HALF

    def statistic(self, name: str, kind: str) -> NDArray[np.float64]:
        """(n,) `mean`, `min` or `max` of a variable in its units; NaN where no pixel was valid or it was not given."""
        column = self.tally.variables.get(name)
        if column is None:
            return np.full(self.polygons.size, np.nan)
        count, total, low, high = (c.astype(np.float64) for c in column.T)
        value = {"mean": total / np.maximum(count, 1), "min": low, "max": high}[kind]
        return np.where(count > 0, value * STEPS.get(name, DEFAULT_STEP), np.nan)

    def slope_percentile(self, percent: float) -> NDArray[np.float64]:
        """(n,) percentile of the slope in degrees, linear within its half-degree bin; NaN where there is no slope."""
        pixels = self.tally.histogram
        if pixels.shape[1] == 0:
            return np.full(self.polygons.size, np.nan)
        cumulated = np.cumsum(pixels, axis=1, dtype=pixels.dtype)
        total = cumulated[:, -1]
        rank = total * (percent / 100.0)
        bin_ = np.argmax(cumulated >= np.maximum(rank, 1e-9)[:, None], axis=1)
        inside = np.take_along_axis(pixels, bin_[:, None], axis=1)[:, 0]
        below = np.take_along_axis(cumulated, bin_[:, None], axis=1)[:, 0] - inside
        value = (bin_ + (rank - below) / np.maximum(inside, 1)) * HISTOGRAM_STEP
        return np.where(total > 0, value, np.nan)


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
    first[label[::-1]] = _key(rows[::-1] + origin[0], cols[::-1] + origin[1])  # the last one written is the first pixel
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
    return _sides([(a.ravel(), b.ravel()) for a, b in pairs], n)


def _sides(pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]], n: int) -> tuple[IntArray, IntArray]:
    """Outline and unseen sides, (n,) each, among pairs of neighbouring codes."""
    outline, unseen = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    for a, b in (*pairs, *((b, a) for a, b in pairs)):
        edge = (a > 0) & (b <= 0)
        outline += np.bincount(a[edge] - 1, minlength=n)
        unseen += np.bincount(a[edge & (b == UNSEEN)] - 1, minlength=n)
    return outline, unseen


def join_objects(blocks: Sequence[BlockObjects]) -> Objects:
    """Whole objects from the blocks of an area (any order, any sizes, no overlap): the same whatever the blocks were.

    Ground outside of the blocks counts as not observed. Only labels that meet at a seam are dissolved.

    Raises: InputError when the blocks were extracted with different variables.
    """
    _check_alike(blocks)
    sizes = [block.outlines.size for block in blocks]
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    n = int(offsets[-1])
    if n == 0:
        return Objects(np.empty(0, dtype=object), _empty_tally())
    vertical = _seam(blocks, offsets, "bottom", "top")
    horizontal = _seam(blocks, offsets, "right", "left")
    a, b = (np.concatenate(codes) for codes in zip(vertical, horizontal, strict=True))
    outline, unseen = _sides([(a, b)], n)
    both = (a > 0) & (b > 0)
    links = sparse.coo_matrix((np.ones(both.sum(), dtype=np.int8), (a[both] - 1, b[both] - 1)), shape=(n, n))
    _, component = sparse.csgraph.connected_components(links, directed=False)
    order, starts = _in_reading_order(component, np.concatenate([block.tally.first for block in blocks]))
    tally = _merge([block.tally for block in blocks], outline, unseen, order, starts)
    pieces = np.concatenate([block.outlines for block in blocks])[order]
    return Objects(_dissolve(pieces, starts), tally)


def _in_reading_order(component: NDArray[np.int32], first: IntArray) -> tuple[IntArray, IntArray]:
    """The pieces' numbers, object after object in row-major order of first pixels, and where each object starts."""
    earliest = np.full(component.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(earliest, component, first)
    rank = np.argsort(np.argsort(earliest))[component]
    order = np.argsort(rank, kind="stable")
    return order, np.concatenate([[0], np.flatnonzero(np.diff(rank[order])) + 1])


def _check_alike(blocks: Sequence[BlockObjects]) -> None:
    names = {tuple(sorted(block.tally.variables)) for block in blocks}
    if len(names) > 1:
        raise InputError(f"blocks to join: got the variables {sorted(names)}; expected the same in each")


def _key(row: NDArray[Any], col: NDArray[Any]) -> IntArray:
    """Lattice position as one integer that sorts row by row."""
    keys: IntArray = ((row.astype(np.int64) + _HALF) << 32) | (col.astype(np.int64) + _HALF)
    return keys


def _seam(blocks: Sequence[BlockObjects], offsets: IntArray, near: str, far: str) -> tuple[IntArray, IntArray]:
    """Codes on the two banks of every seam of one direction; a bank without a neighbour faces unseen ground."""
    keys_a, codes_a = _bank(blocks, offsets, near)
    keys_b, codes_b = _bank(blocks, offsets, far)
    _, in_a, in_b = np.intersect1d(keys_a, keys_b, assume_unique=True, return_indices=True)
    lone_a, lone_b = np.delete(codes_a, in_a), np.delete(codes_b, in_b)
    a = np.concatenate([codes_a[in_a], lone_a, np.full(lone_b.size, UNSEEN)])
    b = np.concatenate([codes_b[in_b], np.full(lone_a.size, UNSEEN), lone_b])
    return a, b


def _bank(blocks: Sequence[BlockObjects], offsets: IntArray, side: str) -> tuple[IntArray, IntArray]:
    """Lattice keys and area-wide codes of one side of all blocks; `bottom`, `right` are keyed by the pixel beyond."""
    keys, codes = [], []
    for block, offset in zip(blocks, offsets[:-1], strict=True):
        (row, col), (height, width) = block.origin, block.shape
        code = block.sides[side].astype(np.int64)
        along = np.arange(code.size)
        if side in ("top", "bottom"):
            keys.append(_key(np.full(code.size, row + (height if side == "bottom" else 0)), col + along))
        else:
            keys.append(_key(row + along, np.full(code.size, col + (width if side == "right" else 0))))
        codes.append(np.where(code > 0, code + offset, code))
    return np.concatenate(keys), np.concatenate(codes)


def _merge(tallies: Sequence[Tally], outline: IntArray, unseen: IntArray, order: IntArray, starts: IntArray) -> Tally:
    """The tallies of the pieces summed by object; `outline` and `unseen` are the sides found at the seams."""

    def add(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        column = np.concatenate(parts)[order]
        return np.add.reduceat(column, starts, axis=0, dtype=column.dtype)

    def merge_variable(parts: Sequence[IntArray]) -> IntArray:
        column = np.concatenate(parts)[order]
        low, high = np.minimum.reduceat(column[:, 2], starts), np.maximum.reduceat(column[:, 3], starts)
        return np.column_stack([np.add.reduceat(column[:, :2], starts, axis=0), low, high])

    names = tallies[0].variables
    return Tally(
        pixels=add([t.pixels for t in tallies]),
        first=np.minimum.reduceat(np.concatenate([t.first for t in tallies])[order], starts),
        outline=add([np.concatenate([t.outline for t in tallies]) + outline]),
        unseen=add([np.concatenate([t.unseen for t in tallies]) + unseen]),
        variables={name: merge_variable([t.variables[name] for t in tallies]) for name in names},
        histogram=add([t.histogram for t in tallies]),
    )


def _empty_tally() -> Tally:
    none = np.zeros(0, dtype=np.int64)
    return Tally(none, none, none, none, {}, none.reshape(0, 0).astype(np.int32))


def _dissolve(pieces: NDArray[np.object_], starts: IntArray) -> Geometries:
    """One canonical polygon a group of pieces (WKB): two of the same set of pixels are equal, coordinate by coordinate.

    It has no vertex inside a straight side, and rings from a fixed start and in a fixed direction.

    >>> cut = shapely.to_wkb([shapely.Polygon([(1, 0), (2, 0), (2, 2), (0, 2), (0, 0)])])
    >>> _dissolve(cut, np.array([0]))[0].wkt
    'POLYGON ((0 0, 0 2, 2 2, 2 0, 0 0))'
    """
    rings, owner = _rings(pieces, starts)
    parts = np.cumsum(shapely.get_num_coordinates(rings)) // VERTICES_AT_ONCE
    for part in np.split(np.arange(rings.size), np.flatnonzero(np.diff(parts)) + 1):
        rings[part] = _corners_only(rings[part])
    polygons = shapely.polygons(rings, indices=owner)
    del rings  # as large as the polygons, of which `normalize` makes a copy
    normal: Geometries = shapely.normalize(polygons)
    return normal


def _rings(pieces: NDArray[np.object_], starts: IntArray) -> tuple[Geometries, IntArray]:
    """Rings of the polygon of each group of pieces, shell first, and the number of the group of each ring."""
    groups = np.split(pieces, starts[1:])
    rings = [_union(group) if group.size > 1 else shapely.get_rings(shapely.from_wkb(group)) for group in groups]
    return np.concatenate(rings), np.repeat(np.arange(starts.size), [part.size for part in rings])


def _union(pieces: NDArray[np.object_]) -> Geometries:
    """The rings, shell first, of the polygon that pieces of several blocks make.

    They are overlaid on the integer lattice: nothing is rounded elsewhere. A hole that stays clear of its piece's
    bounds lies inside one block, where no other piece reaches: it is kept as it is. The overlay takes some 500 bytes a
    vertex, and most vertices of observed ground are those of clouds.
    """
    clear, across = [], []
    for piece in pieces:
        polygon = shapely.from_wkb(piece)
        rings, (left, low, right, high) = shapely.get_rings(polygon), polygon.bounds
        x0, y0, x1, y1 = shapely.bounds(rings).T
        inside = (left < x0) & (low < y0) & (x1 < right) & (y1 < high)
        clear.append(rings[inside])
        shell, *holes = rings[~inside]
        across.append(shapely.Polygon(shell, holes))
    joined = shapely.union_all(across, grid_size=1.0)
    return np.concatenate([shapely.get_rings(joined), *clear])


def _corners_only(rings: Geometries) -> Geometries:
    """The rings without vertices inside a straight side."""
    points, ring = shapely.get_coordinates(rings, return_index=True)
    closing = np.append(ring[1:] != ring[:-1], True)
    points, ring = points[~closing], ring[~closing]
    start = np.flatnonzero(np.append(True, ring[1:] != ring[:-1]))
    end = np.append(start[1:], ring.size) - 1
    before, after = np.arange(ring.size) - 1, np.arange(ring.size) + 1
    before[start], after[end] = end, start
    incoming, outgoing = points - points[before], points[after] - points
    corner = incoming[:, 0] * outgoing[:, 1] != incoming[:, 1] * outgoing[:, 0]
    bare: Geometries = shapely.linearrings(points[corner], indices=ring[corner])
    return bare


def extract_area(observed: BoolArray, *, origin: tuple[int, int]) -> BlockObjects:
    """The observed ground of a block as pieces for `join_area`; `observed` : (y, x) bool."""
    return extract_objects(observed, origin=origin, values={}, observed=observed)


def join_area(blocks: Sequence[BlockObjects]) -> shapely.MultiPolygon:
    """The exact outline of all observed ground, canonical, x = absolute col, y = absolute row; empty where none was."""
    return shapely.MultiPolygon(list(join_objects(blocks).polygons))


def to_ground(geometries: Geometries, *, gsd_m: float) -> Geometries:
    """The geometries in metres of the CRS (x = easting, y = northing) from absolute pixel coordinates."""
    ground: Geometries = shapely.transform(geometries, lambda xy: xy * (gsd_m, -gsd_m))
    return ground


def to_pixels(geometries: Geometries, *, gsd_m: float) -> Geometries:
    """The geometries on the integer pixel lattice again: undoes `to_ground`."""
    pixels: Geometries = shapely.transform(geometries, lambda xy: np.rint(xy / (gsd_m, -gsd_m)))
    return pixels


def fingerprint(geometries: Sequence[Any] | Geometries) -> str:
    """Digest (sha256, hex) of every coordinate of the geometries, in their order."""
    digest = hashlib.sha256()
    for geometry in geometries:
        digest.update(shapely.to_wkb(geometry, byte_order=1))
    return digest.hexdigest()


def burn(geometries: Sequence[Any] | Geometries, *, origin: tuple[int, int], shape: tuple[int, int]) -> BoolArray:
    """(y, x) bool mask of the pixels whose centres are inside: for outlines of pixels exactly those pixels.

    `geometries` in absolute pixel coordinates; those outside of the window are left aside.
    """
    inked = np.zeros(shape, dtype=np.uint8)
    near = meeting(geometries, origin=origin, shape=shape)
    if near.size:
        rasterize(near, out=inked, transform=Affine.translation(origin[1], origin[0]), default_value=1)
    return inked.astype(bool)


def meeting(geometries: Sequence[Any] | Geometries, *, origin: tuple[int, int], shape: tuple[int, int]) -> Geometries:
    """Those of the geometries, in absolute pixel coordinates, that meet a window, or touch it."""
    (row, col), (height, width) = origin, shape
    given = np.asarray(geometries, dtype=object)
    near: Geometries = given[shapely.intersects(given, shapely.box(col, row, col + width, row + height))]
    return near
