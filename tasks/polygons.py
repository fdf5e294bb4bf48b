"""Polygons whose corners are those of pixels: made whole from pieces, burnt, digested, moved between pixels and ground.

In pixels x is the absolute column and y the absolute row of the CRS's lattice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]
Geometries = NDArray[np.object_]

VERTICES_AT_ONCE: Final = 100_000
"""Ground with clouds has millions of vertices in a large scene, and `_corners_only` takes some 150 bytes for each."""


def dissolve(pieces: NDArray[np.object_], starts: IntArray) -> Geometries:
    """One canonical polygon a group of pieces (WKB): two of the same set of pixels are equal, coordinate by coordinate.

    It has no vertex inside a straight side, and rings from a fixed start and in a fixed direction.

    >>> cut = shapely.to_wkb([shapely.Polygon([(1, 0), (2, 0), (2, 2), (0, 2), (0, 0)])])
    >>> dissolve(cut, np.array([0]))[0].wkt
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
