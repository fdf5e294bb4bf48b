"""A fractal mountain landscape with carved valleys, drainage, cover and clouds: the ground of the simulated event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import richdem
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import fft, ndimage
from skimage.graph import route_through_array

from catalog.schema import FloatArray
from tasks.silence import silence

Float64Array = NDArray[np.float64]

HURST: Final = 0.85
"""Roughness of the initial relief (Turcotte 1997, ch. 7: natural topography has 0.5 < H < 0.9)."""
CORNER_M: Final = 3200.0
"""Longest wavelength with its full share of relief, m: the spacing of main ridges."""
AREA_EXPONENT: Final = 0.45
"""m of the stream-power law E = K A^m S, n = 1 (Whipple and Tucker 1999, eq. 1; concavity 0.45)."""
MEAN_SLOPE: Final = 0.42
"""Mean gradient of the finished relief, m/m: 23 degrees, that of young mountains at 30 m."""
COARSEST_PX: Final = 48
"""Erosion starts on a grid of at least so many cells a side."""
_NEIGHBOURS: Final = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))


@dataclass(frozen=True)
class Landscape:
    """The ground on the DEM's grid; every array is (y, x) float32, a cell is `gsd_m` wide."""

    gsd_m: float
    elevation_m: FloatArray
    slope_deg: FloatArray
    catchment_m2: FloatArray
    wetness: FloatArray
    """Topographic wetness index ln(a / tan slope) (Beven and Kirkby 1979)."""
    river: FloatArray
    """0 to 1; above about 0.35 water, between 0.15 and 0.35 a gravel bar."""
    lake: FloatArray
    forest: FloatArray
    """Logit of tree cover."""
    alpine: FloatArray
    """Logit of bare rock and scree above the tree line."""
    farmland: FloatArray
    """Logit of cultivation."""


def fractal(shape: tuple[int, int], rng: Generator, *, exponent: float, corner_px: float) -> FloatArray:
    """Gaussian noise, (y, x) float32, mean 0 and standard deviation 1, of spectrum (k^2 + k0^2)^(-exponent / 2).

    It is periodic in both axes. Source: Turcotte 1997, section 7.6, spectral synthesis; k0 = 1 / `corner_px`.
    """
    spectrum = fft.rfft2(rng.standard_normal(shape, dtype=np.float32), workers=1)
    ky = fft.fftfreq(shape[0]).astype(np.float32)[:, None]
    kx = fft.rfftfreq(shape[1]).astype(np.float32)[None]
    spectrum *= (ky**2 + kx**2 + np.float32(corner_px**-2)) ** np.float32(-exponent / 2)
    spectrum[0, 0] = 0
    noise = fft.irfft2(spectrum, s=shape, workers=1)
    return np.asarray(noise / noise.std(dtype=np.float64), dtype=np.float32)


def aperiodic(side_px: int, rng: Generator, *, exponent: float, corner_px: float, margin_px: int = 0) -> FloatArray:
    """`fractal` noise of `side_px` + 2 `margin_px` a side, cut from a larger field: opposite edges do not match."""
    side = side_px + 2 * margin_px
    full = int(fft.next_fast_len(side + max(8, side // 5), real=True))
    return fractal((full, full), rng, exponent=exponent, corner_px=corner_px)[:side, :side]


def grow_landscape(*, side_px: int, gsd_m: float, rng: Generator) -> Landscape:
    """A landscape of `side_px` x `side_px` cells: relief, drainage, water and what grows where."""
    elevation = _eroded_relief(side_px, gsd_m, rng)
    filled = drained(elevation)
    catchment = catchment_area(filled, gsd_m)
    gradient = np.hypot(*np.gradient(elevation, gsd_m))
    slope_deg = np.degrees(np.arctan(gradient))
    wetness = np.log(catchment / gsd_m / np.maximum(gradient, 0.01))
    lake = _lake(filled, catchment)
    river = _rivers(catchment, gsd_m)
    patches = aperiodic(side_px, rng, exponent=1.6, corner_px=max(12.0, 1500 / gsd_m))
    height = _relative(elevation)
    forest = 1.6 + 1.3 * patches + (slope_deg - 18) / 12 - 7 * np.maximum(height - 0.78, 0) / 0.2
    alpine = (height - 0.93 + 0.06 * patches) / 0.035 + (slope_deg - 32) / 9
    flat = ndimage.gaussian_filter(slope_deg, 1.5)
    farmland = (9 - flat) / 2 + 0.8 * patches - 8 * np.maximum(height - 0.5, 0) - 6 * lake
    fields = (elevation, slope_deg, catchment, wetness, river, lake, forest, alpine, farmland)
    return Landscape(gsd_m, *(np.asarray(field, np.float32) for field in fields))


def drained(elevation: Float64Array) -> Float64Array:
    """The surface with every pit filled to a slight gradient, (y, x) float64, m.

    Source: Barnes, Lehman and Mulla 2014, priority-flood + epsilon, as RichDEM implements it.
    """
    with silence():
        return np.asarray(richdem.FillDepressions(_rdarray(elevation), epsilon=True, in_place=False), np.float64)


def _rdarray(surface: Float64Array) -> richdem.rdarray:
    """The surface as RichDEM takes it, with the unit cells that it would otherwise warn about."""
    raster = richdem.rdarray(np.ascontiguousarray(surface, np.float64), no_data=-9999.0)
    raster.geotransform = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
    return raster


def catchment_area(filled: Float64Array, gsd_m: float) -> Float64Array:
    """Upslope area of each cell, (y, x) float64, m2 (D8; O'Callaghan and Mark 1984)."""
    with silence():
        return np.asarray(richdem.FlowAccumulation(_rdarray(filled), method="D8"), np.float64) * gsd_m**2


def _eroded_relief(side_px: int, gsd_m: float, rng: Generator) -> Float64Array:
    """Fractal relief with a plain in it, cut by streams from coarse to fine: large valleys first, then gullies."""
    corner_px = min(CORNER_M / gsd_m, side_px / 1.3)
    relief = aperiodic(side_px, rng, exponent=HURST + 1.1, corner_px=corner_px).astype(np.float64)
    rugged = aperiodic(side_px, rng, exponent=3.0, corner_px=2.0 * corner_px)
    relief = (relief + 1.2 * rugged) * (0.25 + 0.75 / (1 + np.exp(-2.0 * rugged - 1.5)))
    relief *= MEAN_SLOPE / np.hypot(*np.gradient(relief, gsd_m)).mean()
    strides = [stride for stride in (8, 4, 2, 1) if stride == 1 or side_px // stride >= COARSEST_PX]
    for stride, rounds in zip(strides, (60, 40, 20, 6)[-len(strides) :], strict=True):
        coarse = relief[::stride, ::stride]
        cut = coarse - _incise(coarse, gsd_m * stride, rounds)
        rise = ndimage.zoom(cut, np.array(relief.shape) / cut.shape, order=1, grid_mode=True, mode="nearest")
        relief = relief - (ndimage.gaussian_filter(rise, stride / 2) if stride > 1 else rise)
    relief = ndimage.gaussian_filter(relief, 0.45)
    relief *= MEAN_SLOPE / np.hypot(*np.gradient(relief, gsd_m)).mean()
    return np.asarray(relief - relief.min() + 350.0)


def _incise(elevation: Float64Array, gsd_m: float, rounds: int) -> Float64Array:
    """The surface after `rounds` of stream-power incision and hillslope creep, (y, x) float64, m.

    A cell never cuts below its receiver, which keeps the explicit scheme stable at any step.
    """
    surface = elevation
    for _ in range(rounds):
        surface = drained(surface)
        catchment = catchment_area(surface, gsd_m)
        drop = _steepest_drop(surface)
        power = 0.045 * (catchment / gsd_m**2) ** AREA_EXPONENT
        surface = surface - drop * np.minimum(power, 0.7)
        surface = surface + 0.08 * ndimage.laplace(surface, mode="nearest")
    return np.asarray(surface)


def _steepest_drop(surface: Float64Array) -> Float64Array:
    """Fall to the steepest of the eight neighbours, m; 0 where none is lower."""
    padded = np.pad(surface, 1, mode="edge")
    rows, cols = surface.shape
    drop = np.zeros_like(surface)
    for dy, dx in _NEIGHBOURS:
        neighbour = padded[1 + dy : 1 + dy + rows, 1 + dx : 1 + dx + cols]
        np.maximum(drop, (surface - neighbour) / np.hypot(dy, dx), out=drop)
    return drop


def _relative(elevation: Float64Array) -> Float64Array:
    """Height between the 1st and 99th percentile of the scene, as a fraction."""
    low, high = np.percentile(elevation, (1, 99))
    return np.asarray((elevation - low) / (high - low))


def _rivers(catchment: Float64Array, gsd_m: float) -> FloatArray:
    """Channels wide enough to be seen, widening with the root of their catchment (Leopold and Maddock 1953)."""
    width_px = 0.006 * np.sqrt(catchment) / gsd_m
    visible = catchment > np.maximum(2.5e6, 2500 * gsd_m**2)
    river = np.zeros(catchment.shape, np.float32)
    for radius in (0, 1, 2, 3):
        wide = visible & (width_px >= radius)
        river = np.maximum(river, ndimage.grey_dilation(wide.astype(np.float32), 2 * radius + 1))
    return np.asarray(ndimage.gaussian_filter(river, 0.5), np.float32)


def _lake(filled: Float64Array, catchment: Float64Array) -> FloatArray:
    """The valley flooded above a dam on the largest interior stream, as deep as keeps it below 1.5 % of the scene."""
    side = filled.shape[0]
    inner = slice(side // 6, side - side // 6)
    interior = np.zeros_like(catchment)
    interior[inner, inner] = catchment[inner, inner]
    dam = np.unravel_index(np.argmax(interior), interior.shape)
    lake = np.zeros(filled.shape, bool)
    for depth_m in (1, 2, 3, 4, 6, 9, 13, 19, 28, 40, 60):
        flooded = (filled >= filled[dam]) & (filled < filled[dam] + depth_m)
        labels, _ = ndimage.label(flooded)
        basin = labels == labels[dam]
        if basin.mean() > 0.015:
            break
        lake = basin
    return np.asarray(ndimage.gaussian_filter(lake.astype(np.float32), 0.6))


def find_roads(landscape: Landscape, rng: Generator, *, count: int) -> list[FloatArray]:
    """Least-cost lines between flat places, each (n, 2) float32 of x, y in cells: steep ground and water cost more."""
    stride = max(1, landscape.slope_deg.shape[0] // 384)
    slope = landscape.slope_deg[::stride, ::stride]
    water = np.maximum(landscape.river, landscape.lake)[::stride, ::stride]
    cost = 1 + (slope / 6.0) ** 2 + 40 * water
    flat = np.argwhere(cost <= np.quantile(cost, 0.15))
    roads = []
    for _ in range(count):
        ends = flat[rng.integers(len(flat), size=2)]
        cells, _ = route_through_array(cost, ends[0], ends[1], geometric=True)  # type: ignore[no-untyped-call]
        line = ndimage.gaussian_filter1d(np.array(cells, np.float64) * stride, 1.5, axis=0, mode="nearest")
        if len(line) > 8:
            roads.append(line[:, ::-1].astype(np.float32) + 0.5)
    return roads


def grow_clouds(
    side_px: int, rng: Generator, *, cover: float, size_px: float, shadow_px: tuple[float, float]
) -> tuple[FloatArray, FloatArray]:
    """Opacity of clouds and depth of their shadows, both (y, x) float32 in 0..1; `shadow_px` is the offset (y, x)."""
    margin = min(side_px, int(np.ceil(max(map(abs, shadow_px)))) + 1)
    noise = aperiodic(side_px, rng, exponent=2.1, corner_px=size_px, margin_px=margin)
    inner = slice(margin, margin + side_px)
    base = np.quantile(noise[inner, inner], 1 - cover)
    opacity = np.clip((noise - base) / 0.7 + 0.3, 0, 1).astype(np.float32)
    dy, dx = (int(np.clip(round(offset), -margin, margin)) for offset in shadow_px)
    cast = opacity[margin - dy : margin - dy + side_px, margin - dx : margin - dx + side_px]
    return opacity[inner, inner].copy(), np.asarray(ndimage.gaussian_filter(cast, 0.7), np.float32)
