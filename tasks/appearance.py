"""What a satellite sees of a simulated event: reflectance, sun, clouds, blur and noise, in strips of rows.

A strip's pixels do not depend on how the scene was cut into strips: noise is drawn a row at a time, textures are looked
up by absolute position, and everything that reaches sideways (blur, registration) is computed with a halo.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import shapely
from numpy.random import PCG64, Generator
from numpy.typing import NDArray
from rasterio.features import rasterize
from scipy import ndimage

from catalog.schema import FloatArray
from tasks.simulation import BAND_NAMES, QA_BANDS, Epoch, EpochState, Sensor, SimulatedEvent

IntArray = NDArray[np.int64]

_COLUMN: Final = {name: i for i, name in enumerate(("blue", "green", "red", "nir", "swir1", "swir2"))}
_SPECTRA: Final = MappingProxyType(
    {
        "forest": (0.022, 0.040, 0.024, 0.29, 0.13, 0.055),
        "shrub": (0.030, 0.056, 0.042, 0.27, 0.18, 0.090),
        "grass": (0.040, 0.076, 0.072, 0.27, 0.24, 0.140),
        "dry": (0.058, 0.088, 0.112, 0.23, 0.30, 0.210),
        "rock": (0.095, 0.115, 0.135, 0.18, 0.24, 0.220),
        "soil": (0.098, 0.138, 0.192, 0.26, 0.34, 0.300),
        "pale": (0.165, 0.210, 0.265, 0.32, 0.38, 0.340),
        "crop": (0.032, 0.072, 0.040, 0.40, 0.20, 0.090),
        "stubble": (0.080, 0.115, 0.150, 0.25, 0.34, 0.270),
        "gravel": (0.150, 0.180, 0.205, 0.24, 0.26, 0.240),
        "water": (0.036, 0.046, 0.032, 0.02, 0.01, 0.008),
        "road": (0.130, 0.142, 0.155, 0.19, 0.22, 0.200),
        "cloud": (0.620, 0.610, 0.610, 0.64, 0.45, 0.350),
    }
)
"""Surface reflectance of materials in blue, green, red, nir, swir1, swir2, of the order of the ECOSTRESS library's."""
_HAZE: Final = (0.014, 0.008, 0.005, 0.001, 0.0, 0.0)
"""Path radiance left after atmospheric correction, as reflectance."""
STRETCH_WHITE: Final = 0.38
STRETCH_GAMMA: Final = 0.62
"""8-bit images: DN = 255 (reflectance / white)^gamma, a usual quick-look stretch."""
PSF_SIGMA_PX: Final = 0.55
"""Point spread of a sensor with a modulation transfer of about 0.2 at Nyquist."""
NOISE: Final = 0.0022
"""Standard deviation of the sensor's noise, reflectance."""
DIFFUSE: Final = 0.24
"""Part of the light that comes from the sky."""
HALO_PX: Final = 4

_SCALES: Final[Mapping[Sensor, tuple[float, float]]] = MappingProxyType(
    {"sentinel2-l2a": (1e-4, 0.0), "planetscope-4b": (1e-4, 0.0), "landsat-c2-l2": (2.75e-5, -0.2)}
)
"""Reflectance = DN * scale + offset, as in the products' specifications (see `catalog.sensors`)."""

LARGEST_DN: Final[Mapping[Sensor, int]] = MappingProxyType(
    {"sentinel2-l2a": 20_000, "planetscope-4b": 20_000, "landsat-c2-l2": 65_454}
)

SHOWN: Final = ("land", "water", "shadow", "cloud")
QA_COVER: Final = 0.5
"""Part of a pixel from which it is classified as water or shadow."""
QA_OPACITY: Final = 0.15
"""Opacity from which a cloud is flagged: processors see thin cloud, and dilate."""

QA_CODES: Final[Mapping[Sensor, NDArray[np.uint16]]] = MappingProxyType(
    {
        "sentinel2-l2a": np.array([4, 6, 3, 9], np.uint16),  # vegetation (bare land too), water, shadow, cloud
        "landsat-c2-l2": np.array([1 << 6, 1 << 6 | 1 << 7, 1 << 4, 1 << 3], np.uint16),  # clear, water, shadow, cloud
    }
)
"""The code of each of `SHOWN`. Source: ESA (2021), Sen2Cor 2.10 classes; USGS LSDS-1619, table 6-3 (bits)."""


def render(event: SimulatedEvent, *, epoch: Epoch, rows: slice) -> NDArray[Any]:
    """A strip of imagery, (band, y, x): uint8 for the 8-bit sensors, uint16 for the others; nodata 0.

    Sentinel-2's digital numbers are reflectance x 10000, without the offset of its later baselines. Its scene
    classification, or Landsat's quality band, is the last band: cloud, shadow and water where they were painted.
    The bands are in the order of `event.band_names`; `rows` is a slice of the scene's rows with both ends given.
    """
    state = event.epochs[epoch]
    y = np.arange(rows.start - HALO_PX, rows.stop + HALO_PX)
    x = np.arange(-HALO_PX, event.size_px + HALO_PX)
    columns = [_COLUMN[name] for name in BAND_NAMES[event.sensor]]
    scene = _Strip(event, state, epoch, y, x, columns)
    reflectance = scene.reflectance()
    for band in reflectance:
        band[:] = ndimage.gaussian_filter(band, PSF_SIGMA_PX, truncate=4.0)
    reflectance = _shifted(reflectance, state.shift_px)[:, HALO_PX:-HALO_PX, HALO_PX:-HALO_PX]
    noise_key = (event.seed, int(epoch == "post"))
    for i, row in enumerate(range(rows.start, rows.stop)):
        rng = Generator(PCG64((*noise_key, row)))
        reflectance[:, i] += NOISE * rng.standard_normal((len(columns), event.size_px), dtype=np.float32)
    bands = _encoded(reflectance, event.sensor)
    if event.sensor not in QA_BANDS:
        return bands
    dy, dx = (HALO_PX + round(shift) for shift in state.shift_px)
    shown = scene.shown()[dy : dy + bands.shape[1], dx : dx + bands.shape[2]]
    return np.concatenate([bands, QA_CODES[event.sensor][shown][None]])


class _Strip:
    """The pixels of some rows, and the layers that are painted on them one over the other."""

    def __init__(
        self, event: SimulatedEvent, state: EpochState, epoch: Epoch, y: IntArray, x: IntArray, columns: list[int]
    ) -> None:
        self.event, self.state, self.epoch, self.y, self.x = event, state, epoch, y, x
        self.columns = columns
        self.canopy, self.ground, self.patches = (self._texture(t) for t in event.textures)

    def reflectance(self) -> FloatArray:
        """Reflectance at the sensor, (band, y, x) float32, before blur and noise."""
        land = self.event.landscape
        green = self.state.greenness
        image = np.empty((len(self.columns), len(self.y), len(self.x)), np.float32)
        image[:] = self._mixed("dry", "grass", green - 0.25)
        self._paint(image, self._colour("shrub"), _ramp(self._up(land.forest) + 0.8 + 0.5 * self.ground))
        wooded = _ramp(1.6 * (self._up(land.forest) - 0.4 + 0.75 * self.ground))
        self._paint(image, self._mixed("shrub", "forest", green), wooded)
        image *= 1 + (0.10 + 0.08 * wooded) * self.canopy + 0.05 * self.patches
        self._paint(image, self._colour("rock"), _ramp(self._up(land.alpine) + 1.2 * self.ground))
        self._fields(image)
        self._water_and_roads(image)
        self._scars(image)
        image *= self._sunlight()
        self._weather(image)
        return image

    def shown(self) -> IntArray:
        """What each pixel shows, (y, x): an index of `SHOWN`."""
        land = self.event.landscape
        wet = np.maximum(_ramp(40 * (self._up(land.river) + 0.04 * self.ground - 0.36)) * 0.9,
                         _ramp(30 * (self._up(land.lake) - 0.5)))  # fmt: skip
        shown = np.where(wet > QA_COVER, SHOWN.index("water"), SHOWN.index("land"))
        shown = np.where(self._up(self.state.shadow) > QA_COVER, SHOWN.index("shadow"), shown)
        return np.where(self._up(self.state.cloud) > QA_OPACITY, SHOWN.index("cloud"), shown)

    def _fields(self, image: FloatArray) -> None:
        """Parcels on flat land, each with one crop; some are ploughed or cut between the epochs."""
        angle = self.event.seed % 7 * 0.2 + 0.15
        u = (self.x[None] * np.cos(angle) + self.y[:, None] * np.sin(angle)) / 13 + 0.25 * self.patches
        v = (self.y[:, None] * np.cos(angle) - self.x[None] * np.sin(angle)) / 8 + 0.25 * self.patches
        parcel = np.floor(u).astype(np.int64) * 7919 + np.floor(v).astype(np.int64) * 104729
        draw, change = _hash01(parcel + self.event.seed), _hash01(parcel + self.event.seed + 1)
        if self.epoch == "post":
            draw = np.where(change < 0.12, _hash01(parcel + 2), draw)
        farmed = _ramp(3 * (self._up(self.event.landscape.farmland) - 0.2 + 0.3 * self.ground))
        hedge = np.minimum(np.mod(u, 1.0) * 13, np.mod(v, 1.0) * 8) < 1.0
        farmed = farmed * np.where(hedge, 0.35, 1.0)
        for crop, low, high in (
            ("crop", 0.0, 0.3),
            ("grass", 0.3, 0.62),
            ("stubble", 0.62, 0.85),
            ("soil", 0.85, 0.93),
        ):
            self._paint(image, self._colour(crop), farmed * ((draw >= low) & (draw < high)) * 0.9)

    def _water_and_roads(self, image: FloatArray) -> None:
        """Gravel bars, rivers, the lake and the roads."""
        land = self.event.landscape
        river = self._up(land.river) + 0.04 * self.ground
        self._paint(image, self._colour("gravel"), _ramp(40 * (river - 0.24)) * _ramp(2 * self.patches + self.ground))
        self._paint(image, self._colour("water"), _ramp(40 * (river - 0.36)) * 0.9)
        self._paint(image, self._colour("water"), _ramp(30 * (self._up(land.lake) - 0.5)))
        roads = self._burned(shapely.buffer(self.event.roads.geometry.to_numpy(), 0.75)) > 0
        self._paint(image, self._colour("road"), 0.6 * roads)

    def _scars(self, image: FloatArray) -> None:
        """Old, half overgrown scars in both epochs; fresh landslides after the event."""
        old = self._burned(self.event.old_scars.geometry.to_numpy())
        cover = (0.25 + 0.4 * _hash01(old + 17)) * (old > 0) * _ramp(1.5 * self.ground + 1.2)
        self._paint(image, self._colour("stubble"), cover)
        if self.epoch == "pre":
            return
        fresh = self._burned(self.event.landslides.geometry.to_numpy())
        slid = fresh > 0
        pale = np.clip(0.1 + 0.6 * _hash01(fresh) + 0.25 * self.ground + 0.12 * self.canopy, 0, 1)
        surface = self._mixed("soil", "pale", pale)
        surface *= 1 + 0.10 * self.canopy
        left_standing = _ramp(4 * (self.ground + 0.35 * self.canopy - 1.9))
        self._paint(image, surface, slid * (0.96 - 0.7 * left_standing))
        towards_sun = np.radians(self.state.sun.azimuth_deg)
        step = (-round(np.cos(towards_sun)), round(np.sin(towards_sun)))
        scarp = slid & ~np.roll(slid, (-step[0], -step[1]), axis=(0, 1))
        image *= 1 - 0.28 * scarp.astype(np.float32)

    def _sunlight(self) -> FloatArray:
        """Illumination relative to flat ground: direct light by the cosine law, and light from the sky."""
        gsd_m = self.event.gsd_m
        elevation = self._up(self.event.landscape.elevation_m) + gsd_m * (0.22 * self.ground + 0.04 * self.canopy)
        rise_y, rise_x = np.gradient(elevation, gsd_m)
        azimuth, height = np.radians((self.state.sun.azimuth_deg, self.state.sun.elevation_deg))
        facing = np.sin(height) + np.cos(height) * (-rise_x * np.sin(azimuth) + rise_y * np.cos(azimuth))
        direct = np.maximum(facing / np.sqrt(1 + rise_x**2 + rise_y**2), 0) / np.sin(height)
        lit = 1 - 0.85 * self._up(self.state.shadow)
        return np.asarray(DIFFUSE + (1 - DIFFUSE) * direct * lit, np.float32)

    def _weather(self, image: FloatArray) -> None:
        """Clouds over everything, and haze."""
        wisp = np.clip(self._up(self.state.cloud) * (1 + 0.12 * self.ground + 0.05 * self.canopy), 0, 1)
        cloud = self._colour("cloud") * (0.92 + 0.10 * self.patches)
        self._paint(image, cloud, wisp)
        image += np.array(_HAZE, np.float32)[self.columns][:, None, None]

    def _paint(self, image: FloatArray, colour: FloatArray, cover: NDArray[Any]) -> None:
        image += cover.astype(np.float32) * (colour - image)

    def _colour(self, material: str) -> FloatArray:
        return np.array(_SPECTRA[material], np.float32)[self.columns][:, None, None]

    def _mixed(self, first: str, second: str, share: float | FloatArray) -> FloatArray:
        return np.asarray(self._colour(first) + share * (self._colour(second) - self._colour(first)), np.float32)

    def _up(self, field: FloatArray) -> FloatArray:
        return upsampled(field, self.y, self.x, factor=self.event.dem_factor)

    def _texture(self, texture: FloatArray) -> FloatArray:
        side = texture.shape[0]
        return texture[np.ix_(self.y % side, self.x % side)]

    def _burned(self, polygons: NDArray[np.object_]) -> IntArray:
        """1 + index of the polygon that covers a pixel's centre, (y, x) int64; 0 outside."""
        top, left = int(self.y[0]), int(self.x[0])
        near = shapely.STRtree(polygons).query(shapely.box(left, top, left + len(self.x), top + len(self.y)))
        moved = shapely.transform(polygons[near], lambda xy: xy - (left, top))
        shape = (len(self.y), len(self.x))
        if not len(near):
            return np.zeros(shape, np.int64)
        order = np.argsort(near)
        pairs = [(moved[i], int(near[i]) + 1) for i in order]
        return np.asarray(rasterize(pairs, out_shape=shape, dtype="int32"), np.int64)


def upsampled(field: FloatArray, y: IntArray, x: IntArray, *, factor: int) -> FloatArray:
    """A coarse field at fine pixels, (len(y), len(x)) float32: a cubic B-spline through its cells, edges repeated.

    The spline approximates (it smooths a little) and so never rings.
    """
    rows = _spline(field, y, factor, axis=0)
    return _spline(rows, x, factor, axis=1)


def _spline(field: FloatArray, at: IntArray, factor: int, *, axis: int) -> FloatArray:
    place = (at + 0.5) / factor - 0.5
    base = np.floor(place).astype(np.int64)
    t = (place - base).astype(np.float32)
    weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    column = (-1, 1) if axis == 0 else (1, -1)
    total: FloatArray = np.zeros(1, np.float32)
    for k, weight in enumerate(weights):
        cells = np.clip(base + k - 1, 0, field.shape[axis] - 1)
        total = total + np.take(field, cells, axis=axis) * (weight / np.float32(6)).reshape(column)
    return total


def _shifted(image: FloatArray, shift_px: tuple[float, float]) -> FloatArray:
    """The image moved so that ground at pixel p shows at p - shift, 0 <= shift < 1 (linear)."""
    moved = image
    for axis, shift in ((1, shift_px[0]), (2, shift_px[1])):
        moved = moved + np.float32(shift) * (np.roll(moved, -1, axis=axis) - moved)
    return np.asarray(moved, np.float32)


def _ramp(logit: NDArray[Any]) -> FloatArray:
    """The logistic function, float32."""
    return np.asarray(1 / (1 + np.exp(-np.clip(logit, -30, 30))), np.float32)


def _hash01(key: IntArray) -> FloatArray:
    """A fixed number in 0..1 for each integer (splitmix64, Steele et al. 2014)."""
    z = key.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((z >> np.uint64(40)).astype(np.float32) / np.float32(2**24))


def _encoded(reflectance: FloatArray, sensor: Sensor) -> NDArray[Any]:
    """Digital numbers, at least 1: 0 is nodata."""
    if sensor in _SCALES:
        scale, offset = _SCALES[sensor]
        return np.clip(np.round((reflectance - offset) / scale), 1, LARGEST_DN[sensor]).astype(np.uint16)
    dn = 255 * (np.clip(reflectance, 0, STRETCH_WHITE) / STRETCH_WHITE) ** np.float32(STRETCH_GAMMA)
    return np.clip(np.round(dn), 1, 255).astype(np.uint8)
