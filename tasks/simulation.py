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
from scipy import ndimage, special

from catalog.schema import FloatArray, InputError
from tasks.landscape import Landscape, find_roads, fractal, grow_clouds, grow_landscape

Sensor = Literal["rgb8", "rgbnir8", "sentinel2-l2a"]
Epoch = Literal["pre", "post"]
Float64Array = NDArray[np.float64]

MALAMUD_RHO: Final = 1.40
MALAMUD_A_M2: Final = 1.28e-3 * 1e6
MALAMUD_S_M2: Final = -1.32e-4 * 1e6
"""Three-parameter inverse gamma of landslide areas, in m2 (Malamud et al. 2004, eq. 3 and table 1)."""
SMALLEST_PX: Final = 15
"""The smallest landslide that is drawn, px: what an analyst could still outline."""
LARGEST_FRACTION: Final = 0.012
LANDSLIDE_FRACTION: Final = 0.03
"""Part of the scene that slides; Landslide4Sense tiles hold 4.4 %."""
LONGEST_M: Final = 2500.0
MIN_SIZE_PX, MAX_SIZE_PX = 192, 16384
GSD_RANGE_M: Final = (1.0, 60.0)
DEM_FACTOR: Final = 3
STATIONS: Final = 33
"""Points along the flow line of a landslide."""
EVENT_TIME: Final = datetime(2024, 1, 1, 7, 10, 9, tzinfo=UTC)
_SUSCEPTIBILITY: Final = (-8.2, 0.19, 0.22, 1.6)
"""Logistic coefficients: intercept, slope (per degree), wetness index, ln PGA in g.

Sign and rough size follow Nowicki Jessee et al. 2018, table 3; the intercept sets no count, as areas are drawn first."""


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
    if sensor not in ("rgb8", "rgbnir8", "sentinel2-l2a"):
        raise InputError(f"simulated scene: got sensor {sensor!r}; expected rgb8, rgbnir8 or sentinel2-l2a")


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
    suns = {"pre": Sun(rng.uniform(140, 152), rng.uniform(44, 52)), "post": Sun(rng.uniform(156, 170), rng.uniform(34, 42))}
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


def draw_areas(rng: Generator, count: int, *, smallest_m2: float, largest_m2: float) -> Float64Array:
    """`count` landslide areas, float64, m2, from the inverse gamma distribution cut to `smallest_m2`..`largest_m2`.

    Source: Malamud et al. 2004, eq. 3: (A - s) = a / G with G gamma distributed of shape rho.
    """
    high = special.gammainc(MALAMUD_RHO, MALAMUD_A_M2 / (smallest_m2 - MALAMUD_S_M2))
    low = special.gammainc(MALAMUD_RHO, MALAMUD_A_M2 / (largest_m2 - MALAMUD_S_M2))
    gamma = special.gammaincinv(MALAMUD_RHO, rng.uniform(low, high, count))
    return np.asarray(MALAMUD_S_M2 + MALAMUD_A_M2 / gamma)


def susceptibility(landscape: Landscape, pga_g: FloatArray) -> FloatArray:
    """Probability that a cell fails, (y, x) float32, from slope, wetness and shaking; 0 in water and on the plain."""
    intercept, by_slope, by_wetness, by_shaking = _SUSCEPTIBILITY
    logit = intercept + by_slope * landscape.slope_deg + by_wetness * np.minimum(landscape.wetness, 12)
    logit = logit + by_shaking * np.log(pga_g / 0.3)
    dry = (landscape.river < 0.15) & (landscape.lake < 0.3) & (landscape.slope_deg > 14)
    return np.asarray(special.expit(logit) * dry, np.float32)


def peak_acceleration(distance_km: FloatArray, *, magnitude: float, depth_km: float) -> FloatArray:
    """Median peak ground acceleration on rock, g, float32, at an epicentral distance.

    Source: Campbell 1981, eq. 12 (unconstrained): PGA = 0.0159 exp(0.868 M) (R + 0.0606 exp(0.700 M))^-1.09.
    """
    hypocentral = np.hypot(distance_km, depth_km)
    near = 0.0606 * np.exp(0.700 * magnitude)
    return np.asarray(0.0159 * np.exp(0.868 * magnitude) * (hypocentral + near) ** -1.09, np.float32)


def _landslides(
    landscape: Landscape, quake: Earthquake, origin: tuple[float, float], size_px: int, gsd_m: float, rng: Generator
) -> NDArray[np.object_]:
    """Landslides that do not overlap, largest first, as polygons in pixels."""
    scene_m2 = (size_px * gsd_m) ** 2
    largest_m2 = LARGEST_FRACTION * scene_m2
    target_m2 = LANDSLIDE_FRACTION * scene_m2 * rng.uniform(1.0, 1.35)
    draws = draw_areas(rng, int(target_m2 / (SMALLEST_PX * gsd_m**2)) + 1,
                       smallest_m2=SMALLEST_PX * gsd_m**2, largest_m2=largest_m2)  # fmt: skip
    areas = np.sort(draws[: np.searchsorted(np.cumsum(draws), target_m2) + 1])[::-1]
    factor = round(landscape.gsd_m / gsd_m)
    cells = (np.arange(landscape.elevation_m.shape[0]) + 0.5) * landscape.gsd_m
    x_km, y_km = (origin[0] + cells - quake.x_m) / 1e3, (origin[1] - cells - quake.y_m) / 1e3
    distance_km = np.hypot(y_km[:, None], x_km[None]).astype(np.float32)
    pga_g = peak_acceleration(distance_km, magnitude=quake.magnitude, depth_km=quake.depth_km)
    chance = np.cumsum(susceptibility(landscape, pga_g), dtype=np.float64)
    placed: NDArray[np.object_] = np.empty(0, object)
    for _ in range(6):  # those that found no room try elsewhere
        sources = _sources(chance, landscape.elevation_m.shape, len(areas), rng) * factor
        tried = _shapes(landscape, sources, areas / gsd_m**2, factor, rng)
        placed, fits = _without_overlap(placed, tried, size_px)
        areas = areas[~fits]
    return placed


def _sources(chance: Float64Array, shape: tuple[int, ...], count: int, rng: Generator) -> Float64Array:
    """Source points (n, 2) x, y in cells, drawn by susceptibility."""
    flat = np.searchsorted(chance, rng.uniform(0, chance[-1], count), side="right")
    y, x = np.unravel_index(np.minimum(flat, chance.size - 1), shape)
    return np.stack((x, y), axis=1) + rng.random((count, 2))


def _shapes(
    landscape: Landscape, sources: Float64Array, areas_px: Float64Array, factor: int, rng: Generator
) -> NDArray[np.object_]:
    """One polygon a source, of exactly its area: a strip along the line of steepest descent; None where it cannot run.

    The strip is narrow at the crown, wide in the source, narrower on its track and wide again in the deposit; length to
    width about 3 (Taylor et al. 2018: ellipses fitted to landslides, median 2 to 3).
    """
    count = len(areas_px)
    ratio = np.exp(rng.normal(np.log(3.4), 0.45, count)) * (areas_px / SMALLEST_PX) ** 0.08
    length = np.minimum(np.sqrt(areas_px * ratio), LONGEST_M * factor / landscape.gsd_m)
    line, runs = _flow_lines(landscape, sources, length, factor)
    along = np.linspace(0, 1, STATIONS)
    outline = (along**0.45) * (1 - along) ** 0.35 * (1 - 0.45 * np.exp(-(((along - 0.58) / 0.16) ** 2)))
    rough = ndimage.gaussian_filter1d(rng.standard_normal((2, count, STATIONS)), 2.4, axis=2, mode="nearest")
    half = outline * np.exp(0.6 * rough)
    tangent = np.gradient(line, axis=1)
    tangent /= np.maximum(np.hypot(tangent[..., :1], tangent[..., 1:]), 1e-9)
    normal = np.stack((-tangent[..., 1], tangent[..., 0]), axis=2)
    for _ in range(2):  # bends make area differ a little from length x width
        ring = np.concatenate((line + normal * half[0][..., None], (line - normal * half[1][..., None])[:, ::-1]), axis=1)
        polygons = shapely.polygons(ring)
        half = half * (areas_px / np.maximum(shapely.area(polygons), 1e-9))[None, :, None]
    ring = np.concatenate((line + normal * half[0][..., None], (line - normal * half[1][..., None])[:, ::-1]), axis=1)
    polygons = shapely.polygons(ring)
    return np.where(runs & shapely.is_valid(polygons), polygons, None)


def _flow_lines(
    landscape: Landscape, sources: Float64Array, length_px: Float64Array, factor: int
) -> tuple[Float64Array, NDArray[np.bool_]]:
    """Lines of steepest descent with some inertia, (n, stations, 2) x, y in pixels, and which of them stay on slopes."""
    smooth = ndimage.gaussian_filter(landscape.elevation_m, 1.0)
    fall_y, fall_x = (-g for g in np.gradient(smooth))
    top = np.array(smooth.shape[::-1]) - 1
    step = length_px[:, None] / (STATIONS - 1)
    place, heading = sources.copy(), np.zeros_like(sources)
    line, steep = [place.copy()], np.zeros(len(sources))
    for _ in range(STATIONS - 1):
        cell = np.clip((place / factor).astype(np.int64), 0, top)
        fall = np.stack((fall_x[cell[:, 1], cell[:, 0]], fall_y[cell[:, 1], cell[:, 0]]), axis=1)
        fall /= np.maximum(np.hypot(fall[:, :1], fall[:, 1:]), 1e-6)
        heading = 0.8 * heading + 0.45 * fall
        heading /= np.maximum(np.hypot(heading[:, :1], heading[:, 1:]), 1e-6)
        place = place + heading * step
        line.append(place.copy())
        wet = np.maximum(landscape.river, landscape.lake)[cell[:, 1], cell[:, 0]] > 0.3
        steep += (landscape.slope_deg[cell[:, 1], cell[:, 0]] > 12) & ~wet
    return np.stack(line, axis=1), steep >= 0.75 * (STATIONS - 1)


def _without_overlap(
    placed: NDArray[np.object_], tried: NDArray[np.object_], size_px: int
) -> tuple[NDArray[np.object_], NDArray[np.bool_]]:
    """The placed polygons and those of `tried` that lie in the scene and touch none before them; and which those are."""
    everything = np.concatenate((placed, tried))
    inside = shapely.covered_by(everything, shapely.box(1, 1, size_px - 1, size_px - 1))
    pairs = shapely.STRtree(everything).query(everything, predicate="intersects")
    first, second = pairs[:, pairs[0] < pairs[1]]
    order = np.lexsort((first, second))
    keep = inside.copy()
    for a, b in zip(first[order].tolist(), second[order].tolist(), strict=True):
        if keep[a]:
            keep[b] = False
    return everything[keep], keep[len(placed) :]


def _numbered(polygons: NDArray[np.object_], gsd_m: float) -> gpd.GeoDataFrame:
    """The polygons with ids from 1, largest first."""
    ordered = polygons[np.argsort(-shapely.area(polygons), kind="stable")]
    return gpd.GeoDataFrame({"id": np.arange(1, len(ordered) + 1), "area_m2": shapely.area(ordered) * gsd_m**2}, geometry=list(ordered))


def _cloud_outlines(epochs: Mapping[Epoch, EpochState], factor: int, size_px: int) -> gpd.GeoDataFrame:
    """Outlines of what is at least 30 % opaque, one row a cloud."""
    rows = []
    for epoch, state in epochs.items():
        for geometry in _outlines(state.cloud > 0.3, factor):
            rows.append((epoch, geometry.intersection(shapely.box(0, 0, size_px, size_px))))
    return gpd.GeoDataFrame({"epoch": [e for e, _ in rows]}, geometry=[g for _, g in rows])


def _outlines(mask: NDArray[np.bool_], factor: int) -> list[shapely.Polygon]:
    """Connected parts of a coarse mask as polygons in pixels."""
    found = [shapely.geometry.shape(geometry) for geometry, _ in shapes(mask.astype(np.uint8), mask=mask)]
    return [shapely.affinity.scale(polygon, factor, factor, origin=(0, 0)) for polygon in found]
