"""Whole landslide objects with exact outlines and statistics, joined from the objects of blocks.

Everything is an integer on the absolute pixel lattice of the CRS (row down, col east), so that merging is exact and
the result depends neither on the size of the blocks nor on their order. Objects are 4-connected: pixels that meet at a
corner only are two objects, also where blocks meet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import sparse

from catalog.schema import InputError
from tasks.polygons import BoolArray, Geometries, IntArray, dissolve

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


def count_sides(pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]], n: int) -> tuple[IntArray, IntArray]:
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
    outline, unseen = count_sides([(a, b)], n)
    both = (a > 0) & (b > 0)
    links = sparse.coo_matrix((np.ones(both.sum(), dtype=np.int8), (a[both] - 1, b[both] - 1)), shape=(n, n))
    _, component = sparse.csgraph.connected_components(links, directed=False)
    order, starts = _in_reading_order(component, np.concatenate([block.tally.first for block in blocks]))
    tally = _merge([block.tally for block in blocks], outline, unseen, order, starts)
    pieces = np.concatenate([block.outlines for block in blocks])[order]
    return Objects(dissolve(pieces, starts), tally)


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


def lattice_key(row: NDArray[Any], col: NDArray[Any]) -> IntArray:
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
            keys.append(lattice_key(np.full(code.size, row + (height if side == "bottom" else 0)), col + along))
        else:
            keys.append(lattice_key(row + along, np.full(code.size, col + (width if side == "right" else 0))))
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


def join_area(blocks: Sequence[BlockObjects]) -> shapely.MultiPolygon:
    """The exact outline of all observed ground, canonical, x = absolute col, y = absolute row; empty where none was."""
    return shapely.MultiPolygon(list(join_objects(blocks).polygons))
