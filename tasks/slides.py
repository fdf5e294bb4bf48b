"""Where an earthquake brings slopes down, and how large and of what shape the landslides are.

Polygons are in pixel coordinates of the imagery: x east, y down, the first pixel covers 0..1.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import shapely
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage, special

from catalog.schema import FloatArray
from tasks.landscape import Landscape

Float64Array = NDArray[np.float64]

MALAMUD_RHO: Final = 1.40
MALAMUD_A_M2: Final = 1.28e-3 * 1e6
MALAMUD_S_M2: Final = -1.32e-4 * 1e6
"""Three-parameter inverse gamma of landslide areas, in m2 (Malamud et al. 2004, eq. 3)."""
SMALLEST_PX: Final = 15
"""The smallest landslide that is drawn, px: what an analyst could still outline."""
LONGEST_M: Final = 2500.0
STATIONS: Final = 33
"""Points along the flow line of a landslide."""
_SUSCEPTIBILITY: Final = (-8.2, 0.19, 0.22, 1.6)
"""Logistic coefficients: intercept, slope (per degree), wetness index, ln(PGA / 0.3 g).

Chosen, not fitted: the form and the signs are those of Nowicki Jessee et al. 2018, the sizes make slopes of 25 to 40
degrees fail most. The intercept sets no count, as areas are drawn first."""


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

    Source: Campbell 1981, unconstrained: PGA = 0.0159 exp(0.868 M) (R + 0.0606 exp(0.700 M))^-1.09; the hypocentral
    distance stands in for the distance to the rupture.
    """
    hypocentral = np.hypot(distance_km, depth_km)
    near = 0.0606 * np.exp(0.700 * magnitude)
    return np.asarray(0.0159 * np.exp(0.868 * magnitude) * (hypocentral + near) ** -1.09, np.float32)


def place_slides(
    landscape: Landscape, chance: FloatArray, areas_px: Float64Array, *, size_px: int, gsd_m: float, rng: Generator
) -> NDArray[np.object_]:
    """Polygons of the given areas, in pixels, that do not overlap; `chance` is the susceptibility of each cell.

    Those that find no room after several tries are left out.
    """
    factor = round(landscape.gsd_m / gsd_m)
    heap = np.cumsum(chance, dtype=np.float64)
    placed: NDArray[np.object_] = np.empty(0, object)
    for _ in range(8):  # those that found no room try elsewhere
        sources = _sources(heap, chance.shape, len(areas_px), rng) * factor
        tried = _shapes(landscape, sources, areas_px, factor, rng)
        placed, fits = _without_overlap(placed, tried, size_px)
        areas_px = areas_px[~fits]
    return placed


def _sources(heap: Float64Array, shape: tuple[int, ...], count: int, rng: Generator) -> Float64Array:
    """Draw source points by susceptibility, (n, 2) x, y in cells."""
    flat = np.searchsorted(heap, rng.uniform(0, heap[-1], count), side="right")
    y, x = np.unravel_index(np.minimum(flat, heap.size - 1), shape)
    return np.stack((x, y), axis=1) + rng.random((count, 2))


def _shapes(
    landscape: Landscape, sources: Float64Array, areas_px: Float64Array, factor: int, rng: Generator
) -> NDArray[np.object_]:
    """Shape one polygon a source, of its area: a strip along the line of steepest descent; None where it cannot run.

    The strip is narrow at the crown, wide in the source, narrower on its track and wide again in the deposit; about
    three times as long as wide (Taylor et al. 2018).
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
        drawn = shapely.area(_strips(line, normal, half))
        half = half * (areas_px / np.maximum(drawn, 1e-9))[None, :, None]
    polygons = _strips(line, normal, half)
    polygons[~(runs & shapely.is_valid(polygons))] = None
    return polygons


def _strips(line: Float64Array, normal: Float64Array, half: Float64Array) -> NDArray[np.object_]:
    """Close the outlines that lie `half` a width to the left and to the right of each line."""
    left, right = line + normal * half[0][..., None], line - normal * half[1][..., None]
    return np.asarray(shapely.polygons(np.concatenate((left, right[:, ::-1]), axis=1)), dtype=object)


def _flow_lines(
    landscape: Landscape, sources: Float64Array, length_px: Float64Array, factor: int
) -> tuple[Float64Array, NDArray[np.bool_]]:
    """Trace steepest descent with some inertia: (n, stations, 2) x, y in pixels, and which lines stay on slopes."""
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
    """Join `placed` with those of `tried` that lie in the scene and touch none before; and say which those are."""
    everything = np.concatenate((placed, tried))
    keep = shapely.covered_by(everything, shapely.box(1, 1, size_px - 1, size_px - 1))
    pairs = shapely.STRtree(everything).query(everything, predicate="intersects")
    first, second = pairs[:, pairs[0] < pairs[1]]
    order = np.lexsort((first, second))
    for a, b in zip(first[order].tolist(), second[order].tolist(), strict=True):
        if keep[a]:
            keep[b] = False
    return everything[keep], keep[len(placed) :]
