"""Landslide probability from overlapping windows on a fixed lattice, independent of blocks and workers.

Windows are anchored to the absolute origin of the CRS at the network's own pixel size. A block predicts every window
that touches it, blends them with a Hann taper and brings the result to the imagery's pixels. Everything a pixel
receives depends on absolute positions only, so neighbouring blocks agree to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from catalog.schema import FloatArray, InputError
from tasks.ramps import smooth_step

RGB: Final = ("red", "green", "blue")
TAPER_FLOOR: Final = 1e-3
"""Added to the Hann taper, so that a pixel under the rim of a single window still has a weight."""
OVERLAP: Final = 0.25
"""Share of a window that the next one repeats."""
HALF_SEEN: Final = 0.5
MIN_TONE_PIXELS: Final = 500
CONTRAST_PERCENTILE: Final = 99.0
REFERENCE_CONTRAST: Final = 2.4
"""Luminance at the 99th percentile over the median, in the training tiles (115 / 48)."""
BEND: Final = (1.3, 1.5)
"""How many times the scene's contrast is away from the training tiles' where the tone curve begins to bend, and where
it is bent so far that both are the same."""
GAMMA_RANGE: Final = (0.4, 1.5)

Predict = Callable[[NDArray[np.uint8]], FloatArray]
"""Windows (B, H, W, 3) uint8 -> landslide probability (B, H, W) float32."""
WINDOWS_AT_ONCE: Final = 32
"""Windows of a block that are drawn before the network sees them: enough to fill a GPU, few enough to hold."""


@dataclass(frozen=True)
class Tone:
    """The curves `reference * (value / median) ** gamma`, one a band, that bring a scene to the training tiles.

    Each band's median becomes the training tiles': light, haze, sensor and stretch differ from scene to scene by a
    factor a band. What stands out from the median ground still does.
    """

    median: tuple[float, float, float]
    """Of the scene's red, green and blue, reflectance."""
    reference: tuple[float, float, float]
    """Of the training tiles' red, green and blue, 0..255."""
    gamma: float

    @property
    def scene_median(self) -> float:
        """Median brightness of the scene, reflectance."""
        return sum(self.median) / 3

    def apply(self, values: FloatArray) -> FloatArray:
        """Pseudo-reflectance (3, y, x) of red, green and blue -> 0..255 float32; NaN stays NaN."""
        median, reference = (np.asarray(v, np.float32).reshape(3, 1, 1) for v in (self.median, self.reference))
        toned = reference * (np.maximum(values, 0.0) / median) ** np.float32(self.gamma)
        return np.minimum(toned, 255.0).astype(np.float32)


def measure_tone(sample: Mapping[str, FloatArray], *, reference: tuple[float, float, float]) -> Tone:
    """The tone of a scene, from sampled pixels of its red, green and blue (NaN = nodata).

    reference : the training tiles' medians of red, green and blue, 0..255.

    Raises: InputError when fewer than 500 pixels are valid, or a band is black.
    """
    bands = np.stack([np.ravel(sample[band]) for band in RGB])
    bands = bands[:, np.isfinite(bands).all(axis=0)]
    if bands.shape[1] < MIN_TONE_PIXELS:
        raise InputError(
            f"post imagery: only {bands.shape[1]} of the sampled pixels are valid; expected {MIN_TONE_PIXELS}. "
            "Check the nodata value, the mask and the area of interest"
        )
    red, green, blue = (float(v) for v in np.median(bands, axis=1))
    if min(red, green, blue) <= 0:
        raise InputError(
            f"post imagery: the medians of red, green and blue are {red:g}, {green:g}, {blue:g}; expected all above 0. "
            "Check the bands and the scale of the sensor"
        )
    middle, bright = (float(v) for v in np.percentile(bands.mean(axis=0), [50.0, CONTRAST_PERCENTILE]))
    contrast = max(bright / middle, 1.01)
    gamma = float(np.clip(math.log(REFERENCE_CONTRAST) / math.log(contrast), *GAMMA_RANGE))
    gamma **= smooth_step(max(contrast / REFERENCE_CONTRAST, REFERENCE_CONTRAST / contrast), BEND)
    return Tone((round(red, 6), round(green, 6), round(blue, 6)), reference, round(gamma, 6))


@dataclass(frozen=True)
class Lattice:
    """Windows of `window_px` every `stride_px` network pixels; a network pixel is `scale` imagery pixels wide."""

    window_px: int
    scale: float

    @property
    def stride_px(self) -> int:
        """Network pixels between neighbouring windows."""
        return round(self.window_px * (1 - OVERLAP))

    def windows_touching(self, start: int, stop: int) -> range:
        """Indices along one axis of the windows that touch network pixels [start, stop)."""
        first = (start - self.window_px) // self.stride_px + 1
        return range(first, (stop - 1) // self.stride_px + 1)

    def taper(self) -> FloatArray:
        """(window, window) float32 weights: a Hann window in both directions plus a floor."""
        phase = (np.arange(self.window_px) + 0.5) / self.window_px
        hann = np.sin(np.pi * phase) ** 2
        return (np.outer(hann, hann) + TAPER_FLOOR).astype(np.float32)


def reflect(index: NDArray[np.int64], *, start: int, stop: int) -> NDArray[np.int64]:
    """Indices folded back into [start, stop) as a mirror at the edges would, however far outside they are.

    >>> reflect(np.array([-2, -1, 0, 4, 5, 6]), start=0, stop=5).tolist()
    [2, 1, 0, 4, 3, 2]
    """
    length = stop - start
    if length == 1:
        return np.full_like(index, start)
    period = 2 * (length - 1)
    folded = np.mod(index - start, period)
    mirrored: NDArray[np.int64] = start + np.minimum(folded, period - folded)
    return mirrored


def resampling_matrix(first: int, count: int, *, scale: float) -> tuple[int, FloatArray]:
    """Weights of imagery pixels for `count` network pixels from absolute index `first`.

    Returns the absolute imagery index of the first column and a (count, m) float32 matrix: area average where the
    network pixel is larger, linear interpolation where it is smaller. Depends on absolute positions only.
    """
    edges = (first + np.arange(count + 1)) * scale
    if scale >= 1:
        start, stop = math.floor(edges[0] + 1e-9), math.ceil(edges[-1] - 1e-9)
        pixels = np.arange(start, stop)
        low = np.maximum(edges[:-1, None], pixels[None, :])
        high = np.minimum(edges[1:, None], pixels[None, :] + 1)
        weights = np.clip(high - low, 0, None)
    else:
        centres = (edges[:-1] + edges[1:]) / 2 - 0.5
        start, stop = math.floor(centres[0]), math.floor(centres[-1]) + 2
        pixels = np.arange(start, stop)
        weights = np.clip(1 - np.abs(centres[:, None] - pixels[None, :]), 0, None)
    return start, (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class Blended:
    """A block's result at the imagery's pixels: float32, NaN where no window saw valid imagery."""

    probability: FloatArray
    disagreement: FloatArray
    """Range of the windows' probabilities; NaN also where one window only saw the pixel, which can tell nothing."""
    windows: int


@dataclass(frozen=True)
class Extent:
    """A rectangle of absolute imagery pixels, half-open."""

    y0: int
    x0: int
    y1: int
    x1: int


def imagery_needed(core: Extent, *, lattice: Lattice, scene: Extent) -> Extent:
    """The imagery that a block's windows look at, folded into the scene."""
    spans = []
    for low, high, first, last in ((core.y0, core.y1, scene.y0, scene.y1), (core.x0, core.x1, scene.x0, scene.x1)):
        net_low, net_high = _network_span(low, high, lattice)
        windows = lattice.windows_touching(net_low, net_high)
        begin = math.floor(windows[0] * lattice.stride_px * lattice.scale) - 2
        end = math.ceil((windows[-1] * lattice.stride_px + lattice.window_px) * lattice.scale) + 2
        folded = reflect(np.arange(begin, end), start=first, stop=last)
        spans.append((int(folded.min()), int(folded.max()) + 1))
    return Extent(spans[0][0], spans[1][0], spans[0][1], spans[1][1])


def window_extent(at: tuple[int, int], *, lattice: Lattice, scene: Extent) -> Extent:
    """The imagery that the window at a network pixel (row, column) is made of, folded into the scene."""
    spans = []
    for start, first, last in ((at[0], scene.y0, scene.y1), (at[1], scene.x0, scene.x1)):
        begin, weights = resampling_matrix(start, lattice.window_px, scale=lattice.scale)
        folded = reflect(np.arange(begin, begin + weights.shape[1]), start=first, stop=last)
        spans.append((int(folded.min()), int(folded.max()) + 1))
    return Extent(spans[0][0], spans[1][0], spans[0][1], spans[1][1])


def lattice_windows(scene: Extent, lattice: Lattice) -> list[tuple[int, int]]:
    """First network pixels (row, column) of the windows that lie side by side over the scene, in row-major order."""
    (y0, y1), (x0, x1) = _network_span(scene.y0, scene.y1, lattice), _network_span(scene.x0, scene.x1, lattice)
    side = lattice.window_px
    return [(y, x) for y in range(y0 - y0 % side, y1, side) for x in range(x0 - x0 % side, x1, side)]


def _network_span(start: int, stop: int, lattice: Lattice) -> tuple[int, int]:
    """Network pixels that imagery pixels [start, stop) are interpolated from."""
    return (
        math.floor((start + 0.5) / lattice.scale - 0.5),
        math.floor((stop - 0.5) / lattice.scale - 0.5) + 2,
    )


def predict_block(
    image: FloatArray, *, origin: tuple[int, int], core: Extent, scene: Extent, lattice: Lattice, predict: Predict
) -> Blended:
    """The blended landslide probability of the pixels of `core`.

    image : (3, y, x) float32, toned to 0..255, NaN = nodata; its first pixel is at absolute `origin` (row, column) and
        it covers `imagery_needed`. core, scene : absolute imagery pixels.
    """
    rows = _network_span(core.y0, core.y1, lattice)
    cols = _network_span(core.x0, core.x1, lattice)
    shape = (rows[1] - rows[0], cols[1] - cols[0])
    total, weight = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    highest, lowest = np.full(shape, -1, np.float32), np.full(shape, 2, np.float32)
    looks = np.zeros(shape, np.int32)
    taper, count = lattice.taper(), 0
    drawn = (
        ((y, x), window.pixels)
        for y, x in _window_origins(rows, cols, lattice)
        if (window := network_window(image, origin=origin, at=(y, x), scene=scene, lattice=lattice)) is not None
    )
    while batch := list(islice(drawn, WINDOWS_AT_ONCE)):
        count += len(batch)
        predicted = predict(np.stack([pixels for _, pixels in batch]))
        for ((y, x), _), probability in zip(batch, predicted, strict=True):
            inner, outer = _overlap(y - rows[0], x - cols[0], lattice.window_px, shape)
            total[outer] += probability[inner] * taper[inner]
            weight[outer] += taper[inner]
            highest[outer] = np.maximum(highest[outer], probability[inner])
            lowest[outer] = np.minimum(lowest[outer], probability[inner])
            looks[outer] += 1
    with np.errstate(invalid="ignore", divide="ignore"):
        blended = total / weight
    at = (rows[0], cols[0])
    return Blended(
        probability=_to_imagery(blended, at=at, core=core, lattice=lattice),
        disagreement=_known_to_imagery(highest - lowest, looks >= 2, at=at, core=core, lattice=lattice),
        windows=count,
    )


def _window_origins(rows: tuple[int, int], cols: tuple[int, int], lattice: Lattice) -> Iterator[tuple[int, int]]:
    for i in lattice.windows_touching(*rows):
        for j in lattice.windows_touching(*cols):
            yield i * lattice.stride_px, j * lattice.stride_px


def _overlap(y: int, x: int, side: int, shape: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    y0, x0, y1, x1 = max(y, 0), max(x, 0), min(y + side, shape[0]), min(x + side, shape[1])
    return (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x)), (slice(y0, y1), slice(x0, x1))


@dataclass(frozen=True, eq=False)
class NetworkWindow:
    """A window as the network sees it."""

    pixels: NDArray[np.uint8]
    """(window, window, 3)."""
    seen: NDArray[np.bool_]
    """(window, window): at least half of the network pixel is observed."""


def network_window(
    image: FloatArray, *, origin: tuple[int, int], at: tuple[int, int], scene: Extent, lattice: Lattice
) -> NetworkWindow | None:
    """The window whose first network pixel is `at` (row, column), or None where it holds no valid pixel.

    Nodata takes no part in an average; where there is nothing else the window holds its own mean colour, which to the
    network is a blank, not a ground. `image`, `origin` and `scene` as in `predict_block`.
    """
    start_y, weights_y = resampling_matrix(at[0], lattice.window_px, scale=lattice.scale)
    start_x, weights_x = resampling_matrix(at[1], lattice.window_px, scale=lattice.scale)
    if (
        start_y >= scene.y1
        or start_x >= scene.x1
        or start_y + weights_y.shape[1] <= scene.y0
        or start_x + weights_x.shape[1] <= scene.x0
    ):
        return None
    y = reflect(np.arange(start_y, start_y + weights_y.shape[1]), start=scene.y0, stop=scene.y1) - origin[0]
    x = reflect(np.arange(start_x, start_x + weights_x.shape[1]), start=scene.x0, stop=scene.x1) - origin[1]
    pixels = image[:, y[:, None], x[None, :]]
    valid = np.isfinite(pixels).all(axis=0)
    if not valid.any():
        return None
    mean = np.array([band[valid].mean() for band in pixels], dtype=np.float32)
    seen = weights_y @ valid.astype(np.float32) @ weights_x.T
    bands = [weights_y @ np.where(valid, band, 0).astype(np.float32) @ weights_x.T for band in pixels]
    with np.errstate(invalid="ignore", divide="ignore"):
        averaged = [np.where(seen > 1e-6, band / seen, colour) for band, colour in zip(bands, mean, strict=True)]
    drawn: NDArray[np.uint8] = np.rint(np.clip(np.stack(averaged, axis=-1), 0, 255)).astype(np.uint8)
    return NetworkWindow(drawn, seen >= HALF_SEEN)


def _known_to_imagery(
    field: FloatArray, known: NDArray[np.bool_], *, at: tuple[int, int], core: Extent, lattice: Lattice
) -> FloatArray:
    """As `_to_imagery` of what is known of a field; NaN where less than half of an imagery pixel is known."""
    values, weight = (
        _to_imagery(part.astype(np.float32), at=at, core=core, lattice=lattice)
        for part in (np.where(known, field, 0.0), known)
    )
    return np.divide(values, weight, out=np.full_like(values, np.nan), where=weight >= HALF_SEEN)


def _to_imagery(field: FloatArray, *, at: tuple[int, int], core: Extent, lattice: Lattice) -> FloatArray:
    """A field at network pixels (first at absolute `at`), linearly interpolated to the imagery pixels of `core`."""
    result = field
    for axis, (start, stop, first) in enumerate(((core.y0, core.y1, at[0]), (core.x0, core.x1, at[1]))):
        position = (np.arange(start, stop) + 0.5) / lattice.scale - 0.5
        low = np.floor(position).astype(np.int64)
        share = (position - low).astype(np.float32)
        share = share[:, None] if axis == 0 else share[None, :]
        before, after = result.take(low - first, axis=axis), result.take(low - first + 1, axis=axis)
        mixed = before * (1 - share) + after * share
        mixed = np.where(np.isnan(before), after, np.where(np.isnan(after), before, mixed))
        result = mixed.astype(np.float32)
    return result
