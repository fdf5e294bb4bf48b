"""The one grid of an event: a UTM GeoBox whose origin is a multiple of the block size, and its block arithmetic.

Blocks have absolute ids: the same ground is in the same block whenever and with whatever area an event is processed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj import Geod, Transformer
from pyproj.aoi import AreaOfInterest
from pyproj.database import query_utm_crs_info
from shapely.geometry import box

from catalog.schema import InputError

Bounds = tuple[float, float, float, float]
"""left, bottom, right, top."""

TRUE_SCALE: Final = 0.01
"""How far a projection's metres may be from the ground's and still be called its metres: UTM is within 0.1 %."""

UTM_REACH_DEG: Final = 9.0
"""Longitude from a UTM zone's central meridian to the far side of the next zone: beyond it the picture turns."""

EARTH_RADIUS_M: Final = (6_350_000.0, 6_400_000.0)
EDGE_POINTS: Final = 20
_WGS84: Final = Geod(ellps="WGS84")


@dataclass(frozen=True, order=True)
class Window:
    """A rectangle of pixels of a grid, half-open: rows `y0:y1`, columns `x0:x1`."""

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def slices(self) -> tuple[slice, slice]:
        """As a pair of slices, y first."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def expand(self, px: int) -> Window:
        """The window grown by `px` pixels on each side."""
        return Window(self.y0 - px, self.x0 - px, self.y1 + px, self.x1 + px)

    def intersect(self, other: Window) -> Window:
        """The common part; empty windows have a zero-length side."""
        y0, x0 = max(self.y0, other.y0), max(self.x0, other.x0)
        return Window(y0, x0, max(y0, min(self.y1, other.y1)), max(x0, min(self.x1, other.x1)))

    def shift(self, dy: int, dx: int) -> Window:
        """The window moved by whole pixels."""
        return Window(self.y0 + dy, self.x0 + dx, self.y1 + dy, self.x1 + dx)

    @property
    def empty(self) -> bool:
        """True when it holds no pixel."""
        return self.y1 <= self.y0 or self.x1 <= self.x0


@dataclass(frozen=True, order=True)
class Block:
    """One block: the unit of work, storage and resume; rows count down, columns east, from the CRS origin.

    >>> Block(-3, 7).id
    'r-3c7'
    """

    row: int
    col: int

    @property
    def id(self) -> str:
        """The absolute, readable name of the block."""
        return f"r{self.row}c{self.col}"


@dataclass(frozen=True)
class Grid:
    """A GeoBox cut into blocks. The box is padded to whole blocks; `scene` is the part that holds imagery.

    `row0`, `col0` are the absolute pixel coordinates of the box's top-left pixel: column x covers
    [x, x + 1) * gsd_m of easting, row y covers northings down from -y * gsd_m.
    """

    epsg: int
    gsd_m: float
    block_px: int
    row0: int
    col0: int
    shape: tuple[int, int]
    scene: Window
    """Window of this grid, relative to its top-left pixel, outside of which there is no imagery."""

    @property
    def geobox(self) -> GeoBox:
        """The whole grid as an odc-geo GeoBox."""
        return self.geobox_of(Window(0, 0, *self.shape))

    def geobox_of(self, window: Window) -> GeoBox:
        """The GeoBox of a window (relative pixels; it may reach outside the grid)."""
        x, y = (self.col0 + window.x0) * self.gsd_m, -(self.row0 + window.y0) * self.gsd_m
        return GeoBox(window.shape, Affine(self.gsd_m, 0, x, 0, -self.gsd_m, y), f"EPSG:{self.epsg}")

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Every block that holds a pixel of the scene, row by row."""
        rows, cols = (n // self.block_px for n in self.shape)
        first_row, first_col = self.row0 // self.block_px, self.col0 // self.block_px
        every = (Block(first_row + r, first_col + c) for r in range(rows) for c in range(cols))
        return tuple(b for b in every if not self.window(b).intersect(self.scene).empty)

    def window(self, block: Block) -> Window:
        """The pixels of a block, relative to the grid's top-left pixel."""
        y0, x0 = block.row * self.block_px - self.row0, block.col * self.block_px - self.col0
        return Window(y0, x0, y0 + self.block_px, x0 + self.block_px)

    @property
    def centre_lonlat(self) -> tuple[float, float]:
        """Longitude and latitude of the scene's centre."""
        box = self.geobox_of(self.scene).boundingbox
        return lonlat_of(CRS(self.epsg).to_wkt(), (box.left + box.right) / 2, (box.bottom + box.top) / 2)


def snap_grid(bounds: Bounds, *, epsg: int, gsd_m: float, block_px: int) -> Grid:
    """The grid whose scene covers `bounds` (metres, in the CRS), padded to whole blocks.

    Raises: InputError when the bounds are empty.

    >>> snap_grid((583212, 4733226, 587052, 4737066), epsg=32654, gsd_m=3.0, block_px=1024).scene
    Window(y0=1010, x0=868, y1=2290, x1=2148)
    """
    left, bottom, right, top = bounds
    if not (right > left and top > bottom):
        raise InputError(f"area to process: got the empty bounds {bounds}; expected right > left and top > bottom")
    edge = 1e-6  # px: a bound that is a pixel edge up to rounding stays that edge
    x0, x1 = math.floor(left / gsd_m + edge), math.ceil(right / gsd_m - edge)
    y0, y1 = math.floor(-top / gsd_m + edge), math.ceil(-bottom / gsd_m - edge)
    row0, col0 = y0 // block_px * block_px, x0 // block_px * block_px
    rows, cols = -(-(y1 - row0) // block_px) * block_px, -(-(x1 - col0) // block_px) * block_px
    scene = Window(y0 - row0, x0 - col0, y1 - row0, x1 - col0)
    return Grid(epsg, gsd_m, block_px, row0, col0, (rows, cols), scene)


def regrid(grid: Grid, *, gsd_m: float) -> Grid:
    """The same area on a grid of another pixel size, with blocks of the same number of pixels."""
    box = grid.geobox_of(grid.scene).boundingbox
    return snap_grid((box.left, box.bottom, box.right, box.top), epsg=grid.epsg, gsd_m=gsd_m, block_px=grid.block_px)


def utm_epsg(lon: float, lat: float) -> int:
    """EPSG code of the WGS 84 UTM zone of a place.

    >>> utm_epsg(141.9, 42.7), utm_epsg(180.2, -16.8)
    (32654, 32701)
    """
    lon = wrapped(lon)
    zones = query_utm_crs_info("WGS 84", AreaOfInterest(lon, lat, lon, lat))
    return int(zones[0].code)


def is_utm(epsg: int | None) -> bool:
    """True for the code of a WGS 84 UTM zone."""
    return epsg is not None and (32601 <= epsg <= 32660 or 32701 <= epsg <= 32760)


def is_near_zone(epsg: int, lon: float) -> bool:
    """True where a longitude lies in a UTM zone or the next one: farther off the zone's north is not north."""
    return abs(wrapped(lon - (epsg % 100 * 6 - 183))) <= UTM_REACH_DEG


def is_metric(crs: CRS) -> bool:
    """True for a projected CRS in metres."""
    return bool(crs.projected) and all(axis.unit_conversion_factor == 1 for axis in crs.proj.axis_info[:2])


def is_of_earth(crs: CRS) -> bool:
    """True for a CRS whose ellipsoid has the Earth's size."""
    ellipsoid = crs.proj.ellipsoid
    return ellipsoid is not None and bool(EARTH_RADIUS_M[0] <= ellipsoid.semi_major_metre <= EARTH_RADIUS_M[1])


# --- degrees ---------------------------------------------------------------------------------------------------------


def wrapped(lon: float) -> float:
    """The longitude from -180 up to 180.

    >>> wrapped(190.0), wrapped(180.0), wrapped(-180.0)
    (-170.0, 180.0, -180.0)
    """
    return lon if -180 <= lon <= 180 else (lon + 180) % 360 - 180


def lonlat_of(crs_wkt: str, x: float, y: float) -> tuple[float, float]:
    """Longitude and latitude of a place; infinite where the projection has none."""
    lon, lat = _to_degrees(crs_wkt).transform(x, y)
    return float(lon), float(lat)


@lru_cache(maxsize=64)
def _to_degrees(crs_wkt: str) -> Transformer:
    return Transformer.from_crs(crs_wkt, "EPSG:4326", always_xy=True)


@lru_cache(maxsize=1024)
def ground_px_m(crs_wkt: str, transform: tuple[float, ...], shape: tuple[int, int]) -> float:
    """The finer side of a raster's central pixel, m along the ellipsoid; infinite where it is not on the Earth.

    A projection's own metres are kept where they are the ground's to 1 %, as UTM's are.
    """
    place = Affine(*transform)
    row, col = shape[0] / 2, shape[1] / 2
    sides = ((col - 0.5, row, col + 0.5, row), (col, row - 0.5, col, row + 0.5))
    ends = [lonlat_of(crs_wkt, *(place * point)) for c0, r0, c1, r1 in sides for point in ((c0, r0), (c1, r1))]
    if not np.isfinite(ends).all():
        return math.inf
    metres = min(_WGS84.inv(*ends[0], *ends[1])[2], _WGS84.inv(*ends[2], *ends[3])[2])
    nominal = min(math.hypot(place.a, place.d), math.hypot(place.b, place.e))
    if not CRS(crs_wkt).geographic and abs(metres / nominal - 1) <= TRUE_SCALE:
        return round(nominal, 3)
    return float(round(metres, 2 - math.floor(math.log10(metres))))  # three digits: it is of one pixel among many


def degrees_of(crs_wkt: str, bounds: Bounds) -> Bounds:
    """West, south, east, north of bounds in a CRS; west is greater than east across the antimeridian."""
    edge = shapely.get_coordinates(
        shapely.segmentize(box(*bounds), max(np.ptp(bounds[::2]), np.ptp(bounds[1::2])) / 20)
    )
    return bbox_of(_to_degrees(crs_wkt).transform(*edge.T))


def bbox_of(lonlat: Sequence[NDArray[np.float64]] | NDArray[np.float64]) -> Bounds:
    """West, south, east, north of places that lie in one half of the Earth; west > east across the antimeridian.

    >>> bbox_of((np.array([179.5, -179.0]), np.array([-17.0, -16.0])))
    (179.5, -17.0, -179.0, -16.0)
    """
    lon, lat = (np.asarray(axis, np.float64) for axis in lonlat)
    lon = lon % 360 if np.ptp(lon) > 180 else lon
    return wrapped(float(lon.min())), float(lat.min()), wrapped(float(lon.max())), float(lat.max())
