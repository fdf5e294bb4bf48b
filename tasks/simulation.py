"""A simulated earthquake with its landslides: sizes, places and shapes after the literature, byte for byte from a seed.

Geometries are in pixel coordinates of the imagery: x east, y down, the first pixel covers 0..1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Final, Literal

import geopandas as gpd
import numpy as np
import shapely
import shapely.affinity
from numpy.random import PCG64, Generator
from numpy.typing import NDArray
from rasterio.features import shapes
from shapely.geometry.base import BaseGeometry

from catalog.schema import FloatArray, InputError
from tasks.landscape import Landscape, find_roads, fractal, grow_clouds, grow_landscape
from tasks.slides import SMALLEST_PX, draw_areas, peak_acceleration, place_slides, susceptibility

Sensor = Literal["rgb8", "rgbnir8", "sentinel2-l2a", "landsat-c2-l2", "planetscope-4b"]
Epoch = Literal["pre", "post"]

BAND_NAMES: Final[Mapping[Sensor, tuple[str, ...]]] = MappingProxyType(
    {
        "rgb8": ("red", "green", "blue"),
        "rgbnir8": ("red", "green", "blue", "nir"),
        "sentinel2-l2a": ("blue", "green", "red", "nir", "swir1", "swir2"),
        "landsat-c2-l2": ("blue", "green", "red", "nir", "swir1", "swir2"),
        "planetscope-4b": ("blue", "green", "red", "nir"),
    }
)
QA_BANDS: Final[Mapping[Sensor, str]] = MappingProxyType({"sentinel2-l2a": "scl", "landsat-c2-l2": "qa_pixel"})
"""The quality band that follows the others. PlanetScope's is a file of its own, which is not simulated."""

LARGEST_FRACTION: Final = 0.012
"""Of the scene, for small scenes."""
LARGEST_M2: Final = 1.0e6
"""For large ones: few landslides of an earthquake of this size are larger."""
LANDSLIDE_FRACTION: Final = 0.03
"""Part of the scene that slides; Landslide4Sense tiles hold 4.4 %."""
MIN_SIZE_PX, MAX_SIZE_PX = 192, 16384
GSD_RANGE_M: Final = (1.0, 60.0)
DEM_FACTOR: Final = 3
EVENT_TIME: Final = datetime(2024, 1, 1, 7, 10, 9, tzinfo=UTC)


@dataclass(frozen=True)
class Sun:
    """Where the sun stands at an acquisition, degrees; azimuth clockwise from north."""

    azimuth_deg: float
    elevation_deg: float


@dataclass(frozen=True)
class EpochState:
    """What differs between the two images."""

    time_utc: datetime
    sun: Sun
    greenness: float
    """1 = full leaf, smaller = drier."""
    shift_px: tuple[float, float]
    """Misregistration (y, x): ground at pixel p is imaged at p - shift."""
    cloud: FloatArray
    shadow: FloatArray


@dataclass(frozen=True)
class Earthquake:
    """The main shock; `x_m`, `y_m` in the scene's CRS."""

    id: str
    title: str
    time_utc: datetime
    x_m: float
    y_m: float
    depth_km: float
    magnitude: float


@dataclass(frozen=True)
class SimulatedEvent:
    """Everything that happened, small enough to hold for any size: imagery is rendered from it in strips."""

    size_px: int
    gsd_m: float
    seed: int
    sensor: Sensor
    dem_factor: int
    epsg: int
    left_m: float
    top_m: float
    earthquake: Earthquake
    landscape: Landscape
    epochs: Mapping[Epoch, EpochState]
    landslides: gpd.GeoDataFrame
    """Columns id, area_m2, geometry (pixel coordinates); truth, clouded ones included."""
    old_scars: gpd.GeoDataFrame
    roads: gpd.GeoDataFrame
    clouds: gpd.GeoDataFrame
    """Columns epoch, geometry (pixel coordinates): clouds, without their shadows."""
    textures: tuple[FloatArray, FloatArray, FloatArray]
    """Periodic noise of incommensurate periods: canopy, ground, broad patches."""

    @property
    def dem_gsd_m(self) -> float:
        """Pixel size of the DEM, m."""
        return self.gsd_m * self.dem_factor

    @property
    def elevation_m(self) -> FloatArray:
        """The DEM, (y, x) float32, m; it may reach a cell past the imagery."""
        return self.landscape.elevation_m

    @property
    def acquired_utc(self) -> Mapping[str, datetime]:
        """Acquisition time by epoch."""
        return {epoch: state.time_utc for epoch, state in self.epochs.items()}

    @property
    def band_names(self) -> tuple[str, ...]:
        """Bands of the imagery, in order, the quality band last."""
        quality = (QA_BANDS[self.sensor],) if self.sensor in QA_BANDS else ()
        return BAND_NAMES[self.sensor] + quality


def simulate(*, size_px: int, gsd_m: float, seed: int, sensor: Sensor = "rgb8") -> SimulatedEvent:
    """A simulated earthquake and its landslides in a scene of `size_px` x `size_px` pixels; the same for the same seed.

    Raises: InputError when the size, the pixel size, the seed or the sensor cannot be simulated.
    """
    _check(size_px, gsd_m, seed, sensor)
    rng = Generator(PCG64(seed))
    factor = DEM_FACTOR if gsd_m <= 10 else 1
    landscape = grow_landscape(side_px=-(-size_px // factor), gsd_m=gsd_m * factor, rng=rng)
    left_m, top_m = (round(m / (gsd_m * factor)) * gsd_m * factor for m in (360_000.0, 3_120_000.0))
    earthquake = _earthquake(size_px * gsd_m, left_m, top_m, seed, rng)
    epochs = _epochs(size_px, factor, landscape, rng)
    roads = [shapely.LineString(line * factor) for line in find_roads(landscape, rng, count=5)]
    everything = _landslides(landscape, earthquake, (left_m, top_m), size_px, gsd_m, rng)
    is_old = rng.random(len(everything)) < 0.14
    return SimulatedEvent(
        size_px, float(gsd_m), seed, sensor, factor, 32645, left_m, top_m, earthquake, landscape, epochs,
        landslides=_numbered(everything[~is_old], gsd_m), old_scars=_numbered(everything[is_old], gsd_m),
        roads=gpd.GeoDataFrame(geometry=roads), clouds=_cloud_outlines(epochs, factor, size_px),
        textures=(
            fractal((761, 761), rng, exponent=1.0, corner_px=6.0),
            fractal((1021, 1021), rng, exponent=1.5, corner_px=40.0),
            fractal((1451, 1451), rng, exponent=1.8, corner_px=160.0),
        ),
    )  # fmt: skip


def _check(size_px: int, gsd_m: float, seed: int, sensor: str) -> None:
    if not MIN_SIZE_PX <= size_px <= MAX_SIZE_PX:
        raise InputError(f"simulated scene: got {size_px} px; expected {MIN_SIZE_PX} to {MAX_SIZE_PX} px a side")
    if not GSD_RANGE_M[0] <= gsd_m <= GSD_RANGE_M[1]:
        low, high = GSD_RANGE_M
        raise InputError(f"simulated scene: got a pixel size of {gsd_m} m; expected {low:g} to {high:g} m")
    if seed < 0:
        raise InputError(f"simulated scene: got seed {seed}; expected zero or a positive integer")
    if sensor not in BAND_NAMES:
        raise InputError(f"simulated scene: got sensor {sensor!r}; expected one of {', '.join(BAND_NAMES)}")


def _earthquake(side_m: float, left_m: float, top_m: float, seed: int, rng: Generator) -> Earthquake:
    """A shallow main shock below the middle half of the scene."""
    dx, dy = side_m * rng.uniform(0.25, 0.75, 2)
    magnitude = round(float(rng.uniform(6.4, 7.4)), 1)
    depth_km = round(float(rng.uniform(8, 16)), 1)
    title = f"M {magnitude} - simulated earthquake, seed {seed}"
    return Earthquake(f"sim{seed:06d}", title, EVENT_TIME, left_m + dx, top_m - dy, depth_km, magnitude)


def _epochs(size_px: int, factor: int, landscape: Landscape, rng: Generator) -> Mapping[Epoch, EpochState]:
    """The two acquisitions: 30 days before and 5 days after, under another sun, with clouds of their own."""
    angle, reach = rng.uniform(0, np.pi / 2), rng.uniform(0.3, 0.7)
    shift = (float(reach * np.sin(angle)), float(reach * np.cos(angle)))
    suns = {
        "pre": Sun(rng.uniform(140, 152), rng.uniform(44, 52)),
        "post": Sun(rng.uniform(156, 170), rng.uniform(34, 42)),
    }
    days, greenness = {"pre": -30, "post": 5}, {"pre": 1.0, "post": 0.86}
    cells = landscape.elevation_m.shape[0]
    states: dict[Epoch, EpochState] = {}
    for epoch in ("pre", "post"):
        sun = suns[epoch]
        reach_px = rng.uniform(18, 30) / np.tan(np.radians(sun.elevation_deg)) / factor
        away = np.radians(sun.azimuth_deg + 180)
        offset = (float(-np.cos(away) * reach_px), float(np.sin(away) * reach_px))
        cloud, shadow = grow_clouds(
            cells, rng, cover=float(rng.uniform(0.02, 0.045)), size_px=min(110, size_px / 4) / factor, shadow_px=offset
        )
        time = (EVENT_TIME + timedelta(days=days[epoch])).replace(hour=5, minute=2, second=31)
        moved = shift if epoch == "pre" else (0.0, 0.0)
        states[epoch] = EpochState(time, sun, greenness[epoch], moved, cloud, shadow)
    return MappingProxyType(states)


def _landslides(
    landscape: Landscape, quake: Earthquake, origin: tuple[float, float], size_px: int, gsd_m: float, rng: Generator
) -> NDArray[np.object_]:
    """Draw areas up to the part of the scene that slides, and place them where the shaking brings slopes down."""
    scene_m2 = (size_px * gsd_m) ** 2
    target_m2 = LANDSLIDE_FRACTION * scene_m2 * rng.uniform(1.15, 1.6)
    smallest_m2 = SMALLEST_PX * gsd_m**2
    largest_m2 = max(min(LARGEST_FRACTION * scene_m2, LARGEST_M2), 40 * smallest_m2)
    draws = draw_areas(rng, int(target_m2 / smallest_m2) + 1, smallest_m2=smallest_m2, largest_m2=largest_m2)
    areas_m2 = np.sort(draws[: np.searchsorted(np.cumsum(draws), target_m2) + 1])[::-1]
    cells = (np.arange(landscape.elevation_m.shape[0]) + 0.5) * landscape.gsd_m
    x_km, y_km = (origin[0] + cells - quake.x_m) / 1e3, (origin[1] - cells - quake.y_m) / 1e3
    distance_km = np.hypot(y_km[:, None], x_km[None]).astype(np.float32)
    pga_g = peak_acceleration(distance_km, magnitude=quake.magnitude, depth_km=quake.depth_km)
    chance = susceptibility(landscape, pga_g)
    return place_slides(landscape, chance, areas_m2 / gsd_m**2, size_px=size_px, gsd_m=gsd_m, rng=rng)


def _numbered(polygons: NDArray[np.object_], gsd_m: float) -> gpd.GeoDataFrame:
    """Give the polygons ids from 1, largest first."""
    ordered = polygons[np.argsort(-shapely.area(polygons), kind="stable")]
    return gpd.GeoDataFrame(
        {"id": np.arange(1, len(ordered) + 1), "area_m2": shapely.area(ordered) * gsd_m**2}, geometry=list(ordered)
    )


def _cloud_outlines(epochs: Mapping[Epoch, EpochState], factor: int, size_px: int) -> gpd.GeoDataFrame:
    """Outlines of what is at least 30 % opaque, one row a cloud."""
    rows = []
    for epoch, state in epochs.items():
        for geometry in _outlines(state.cloud > 0.3, factor):
            rows.append((epoch, geometry.intersection(shapely.box(0, 0, size_px, size_px))))
    return gpd.GeoDataFrame({"epoch": [e for e, _ in rows]}, geometry=[g for _, g in rows])


def _outlines(mask: NDArray[np.bool_], factor: int) -> list[BaseGeometry]:
    """Trace the connected parts of a coarse mask as polygons in pixels."""
    found = [shapely.geometry.shape(geometry) for geometry, _ in shapes(mask.astype(np.uint8), mask=mask)]
    return [shapely.affinity.scale(polygon, factor, factor, origin=(0, 0)) for polygon in found]
