"""Imagery made comparable: what each pixel shows, the clearest pixel of several scenes, pre moved and toned to post.

Kernels take and return numpy; functions of a Dataset are lazy and give the same pixels in any chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter
from scipy.signal.windows import tukey
from skimage.registration import phase_cross_correlation

from catalog.schema import BANDS, NOT_OBSERVED, OBSERVED_QUALITY, FloatArray, InputError, MaskArray, Quality

BoolArray = NDArray[np.bool_]
QaRule = Literal["none", "scl", "landsat_qa_pixel", "udm2"]

# --- quality ---------------------------------------------------------------------------------------------------------

QA_VARIABLES: Final[dict[QaRule, str]] = {"scl": "scl", "landsat_qa_pixel": "qa_pixel", "udm2": "udm2"}
"""The Dataset variable each rule reads, beside the bands."""

CLOUD_MIN_REFLECTANCE: Final = 0.40
"""A cloud's darkest visible band. Below lie dry soil and fresh landslides (Hokkaido 2018: 99.5 % under 0.5 in blue)."""

BLUISH_CLOUD_MIN_REFLECTANCE: Final = 0.30
"""The same where blue is not under red: thinner cloud is, soil hardly ever (0.2 % of Landslide4Sense's landslides)."""

CLOUD_MAX_SATURATION: Final = 0.20
"""A cloud's (max - min) / max of the visible bands: bare ground that bright is redder than that."""

GROW_HALO_PX: Final = 3
"""The growth of a cloud mask: how far pixels of other blocks can matter to `grow_mask` when called with it."""

_SCL_CLASSES: Final = {
    Quality.CLEAR: (2, 4, 5, 7),  # 2 is terrain in its own shade, not a cloud's
    Quality.SHADOW: (3,),
    Quality.WATER: (6,),
    Quality.CLOUD: (8, 9, 10),
    Quality.SNOW: (11,),
}
_UDM2_CLASSES: Final = {
    Quality.CLEAR: (1, 4),  # 4 is light haze: the ground shows through
    Quality.SNOW: (2,),
    Quality.SHADOW: (3,),
    Quality.CLOUD: (5, 6),
}


def _look_up(classes: NDArray[np.integer[Any]], table: dict[Quality, tuple[int, ...]]) -> MaskArray:
    quality = np.full(classes.shape, Quality.NODATA, np.uint8)
    for label, codes in table.items():
        quality[np.isin(classes, codes)] = label
    return quality


def scl_quality(scl: NDArray[np.integer[Any]]) -> MaskArray:
    """Quality (y, x) uint8 of a Sentinel-2 scene classification (y, x); classes 0, 1 and unknown ones are NODATA.

    Source: ESA (2021), Sen2Cor 2.10 scene classification, classes 0-11; thin cirrus (10) counts as cloud.
    """
    return _look_up(scl, _SCL_CLASSES)


def landsat_quality(qa_pixel: NDArray[np.integer[Any]]) -> MaskArray:
    """Quality (y, x) uint8 of Landsat Collection 2 QA_PIXEL (y, x); fill (bit 0) is NODATA.

    Fill wins over cloud and dilated cloud (bits 3, 1), these over shadow (4), snow (5), then water (7). Cirrus (bit 2)
    is not used: dry, high mountains set it under a clear sky.

    Source: USGS (2023), LSDS-1619, Landsat 8-9 Collection 2 Level 2 product guide, table 6-3.
    """
    bits = {Quality.WATER: 7, Quality.SNOW: 5, Quality.SHADOW: 4}
    quality = np.full(qa_pixel.shape, Quality.CLEAR, np.uint8)
    for label, bit in bits.items():
        quality[(qa_pixel >> bit) & 1 == 1] = label
    quality[qa_pixel & 0b1010 != 0] = Quality.CLOUD
    quality[qa_pixel & 1 == 1] = Quality.NODATA
    return quality


def udm2_quality(udm2: NDArray[np.integer[Any]]) -> MaskArray:
    """Quality (y, x) uint8 of Planet's usable data mask as one class band (y, x).

    The class is the number of the UDM2 band that is set: 1 clear, 2 snow, 3 shadow, 4 light haze, 5 heavy haze,
    6 cloud; 0 and all else NODATA. Light haze is CLEAR, heavy haze is CLOUD. UDM2 does not know water.

    Source: Planet (2023), Usable Data Masks (UDM2), bands 1-6.
    """
    return _look_up(udm2, _UDM2_CLASSES)


def bright_white_quality(red: FloatArray, green: FloatArray, blue: FloatArray) -> MaskArray:
    """Quality (y, x) uint8 of bare RGB (reflectance, or DN / 255): bright and white is CLOUD, NaN NODATA, else CLEAR.

    Made not to lose landslides: thin cloud, cloud edges and shadows stay CLEAR, water is not guessed, snow reads as
    cloud. It looks at one pixel at a time, so that blocks cannot change it.

    Source: the whiteness and brightness tests of Zhu and Woodcock (2012), Fmask, eq. 1-2, with max - min for the mean
    absolute deviation and stricter limits, because no thermal or cirrus band can confirm them.
    """
    darkest, brightest = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
    white = (brightest - darkest) < CLOUD_MAX_SATURATION * brightest
    least = np.where(blue >= red, np.float32(BLUISH_CLOUD_MIN_REFLECTANCE), np.float32(CLOUD_MIN_REFLECTANCE))
    quality = np.where(white & (darkest > least), Quality.CLOUD, Quality.CLEAR).astype(np.uint8)
    quality[np.isnan(darkest)] = Quality.NODATA
    return quality


def quality(scene: xr.Dataset, *, qa: QaRule) -> xr.DataArray:
    """Quality of a scene (y, x) uint8, lazy: the QA rule's class, NODATA where a band is NaN or `mask` is not zero.

    scene : bands of `BANDS` float32, NaN = nodata; the rule's variable (`QA_VARIABLES`); optionally `mask` uint8.

    Raises: InputError when the scene has no band, or lacks what the rule reads.
    """
    kernels = {"scl": scl_quality, "landsat_qa_pixel": landsat_quality, "udm2": udm2_quality}
    bands = _bands_of(scene)
    needed = ("red", "green", "blue") if qa == "none" else (QA_VARIABLES[qa],)
    missing = [name for name in needed if name not in scene]
    if missing or not bands:
        raise InputError(
            f"scene: the QA rule `{qa}` reads {', '.join(needed)} beside at least one band; got "
            f"{', '.join(map(str, scene.data_vars)) or 'nothing'}; choose the sensor that matches the files"
        )
    kernel = kernels.get(qa, bright_white_quality)
    labels: xr.DataArray = xr.apply_ufunc(
        kernel, *(scene[name] for name in needed), dask="parallelized", output_dtypes=[np.uint8]
    )
    seen = scene[bands[0]].notnull()
    for name in bands[1:]:
        seen = seen & scene[name].notnull()
    if "mask" in scene:
        seen = seen & (scene["mask"] == 0)
    return _as_quality(labels.where(seen, np.uint8(Quality.NODATA)))


def grow_mask(quality: xr.DataArray, *, px: int = GROW_HALO_PX) -> xr.DataArray:
    """Quality (y, x) uint8, lazy, with clouds and shadows grown by a disc of `px` pixels over ground and water.

    Cloud wins over shadow; SNOW and NODATA stay. The halo is `px`: no pixel farther away matters.

    Raises: InputError when `px` is negative.
    """
    if px < 0:
        raise InputError(f"growth of the cloud mask: got {px} px; expected 0 or more")
    return quality.copy(data=_over_halo(_grow, quality, halo_px=px, px=px))


def _grow(quality: MaskArray, *, px: int) -> MaskArray:
    y, x = np.ogrid[-px : px + 1, -px : px + 1]
    disc = y * y + x * x <= px * px
    ground, grown = np.isin(quality, OBSERVED_QUALITY), quality.copy()
    for label in (Quality.SHADOW, Quality.CLOUD):
        grown[ground & binary_dilation(quality == label, disc)] = label
    return grown


def _bands_of(scene: xr.Dataset) -> list[str]:
    return [name for name in BANDS if name in scene]


def _as_quality(labels: xr.DataArray) -> xr.DataArray:
    return labels.astype(np.uint8).rename("quality").assign_attrs(long_name="quality class (see Quality)", units="1")


def _over_halo(
    kernel: Callable[..., NDArray[Any]], image: xr.DataArray, *, halo_px: int, **options: float
) -> NDArray[Any] | da.Array:
    """`kernel(image)` on numpy, or block by block with a halo on Dask: the same pixels either way."""
    if image.chunks is None:
        return kernel(np.asarray(image.data), **options)
    depth = tuple(min(halo_px, length) for length in image.shape)
    blocks: da.Array = da.map_overlap(  # type: ignore[no-untyped-call]
        kernel, image.data, depth=depth, boundary="none", dtype=image.dtype, **options
    )
    return blocks


# --- composite -------------------------------------------------------------------------------------------------------


def composite(scenes: Sequence[xr.Dataset], qualities: Sequence[xr.DataArray]) -> xr.Dataset:
    """Best pixel of each place, lazy: bands, `quality` and `source` of the first scene that saw ground or water.

    scenes : in order of preference, on one grid, with the same bands. `source` (y, x) uint8 is the place of the scene
    in that order. Where none saw the ground: bands NaN, `source` 255, and the first quality that is not NODATA.

    Raises: InputError when scenes and qualities do not pair up, or differ in grid or bands.
    """
    _check_stack(scenes, qualities)
    bands = _bands_of(scenes[0])
    result = scenes[0][bands].where(False)
    label = xr.full_like(qualities[0], Quality.NODATA)
    source = xr.full_like(qualities[0], NOT_OBSERVED)
    for index in reversed(range(len(scenes))):  # the last written wins: the most preferred goes last
        clear = qualities[index].isin(OBSERVED_QUALITY)
        result = result.where(~clear, scenes[index][bands])
        blocked = (source == NOT_OBSERVED) & (qualities[index] != Quality.NODATA)
        label = label.where(~(clear | blocked), qualities[index])
        source = source.where(~clear, np.uint8(index))
    for name in bands:
        result[name] = result[name].astype(np.float32).assign_attrs(BANDS[name].attrs())
    source_attrs = {"long_name": "place of the scene used in the order of preference", "units": "1"}
    return result.assign(quality=_as_quality(label), source=source.astype(np.uint8).assign_attrs(source_attrs))


def _check_stack(scenes: Sequence[xr.Dataset], qualities: Sequence[xr.DataArray]) -> None:
    if not 0 < len(scenes) == len(qualities) < NOT_OBSERVED:
        raise InputError(
            f"composite: got {len(scenes)} scenes and {len(qualities)} qualities; expected as many of each, 1 to 254"
        )
    first = scenes[0]
    for index, (scene, label) in enumerate(zip(scenes, qualities, strict=True)):
        if _bands_of(scene) != _bands_of(first):
            raise InputError(
                f"composite: scene {index} has the bands {_bands_of(scene)}, scene 0 has {_bands_of(first)}; "
                "give files of one sensor"
            )
        same_grid = all(first[axis].equals(scene[axis]) and first[axis].equals(label[axis]) for axis in ("y", "x"))
        if not same_grid:
            raise InputError(f"composite: scene {index} is not on scene 0's grid; warp all onto the event's grid first")


# --- co-registration -------------------------------------------------------------------------------------------------

WARN_SHIFT_PX: Final = 0.5
"""A measured shift above this was visible as false edges before it was corrected: worth a look."""

REFUSE_RESIDUAL_PX: Final = 1.0
"""A spread about the median above this is no shift but distortion: edges of everything would read as change."""

MIN_WINDOWS: Final = 5
"""Agreeing windows below which a shift is chance (and a MAD has no meaning)."""

MAX_SHIFT_PX: Final = 32.0
"""The largest shift believed of a window; beyond it, phase correlation of an eighth of the window is mostly chance."""

SHIFT_HALO_PX: Final = 34
"""How far pixels of other blocks can matter to `shift_image`: `MAX_SHIFT_PX` and two pixels of kernel."""

MIN_OBSERVED: Final = 0.5
"""Fraction of a window seen in both epochs below which it is not measured."""

MIN_PEAK: Final = 0.08
"""Correlation of the textures once aligned; unrelated textures of 256 x 256 px stay below 0.05 (tested)."""

_UPSAMPLE: Final = 100  # phase correlation resolves 1 / 100 px
_PASSES = 3  # the taper and masks stay put and so pull towards zero: measure again what is left after moving pre
_SMOOTH_PX, _HIGH_PASS_PX = 0.7, 4.0  # gaussian sigmas: sensor noise below, illumination above
_TAPERED = 0.25  # of a side falls to zero at its ends; a Hann window would let a slide in the middle outweigh the rest
_MASK_EDGE_PX = 2.0  # softens the edge of clouds, which would correlate with itself at zero shift
_OUTLIER_MADS, _OUTLIER_FLOOR_PX = 3.0, 0.25  # the floor keeps a window from being an outlier among near-equal ones
_MAD_TO_SIGMA = 1.4826  # of a normal distribution


@dataclass(frozen=True)
class WindowShift:
    """What one window says: how far pre has to move to lie on post."""

    dy_px: float
    """Rows, positive down; NaN = not measured."""
    dx_px: float
    """Columns, positive right; NaN = not measured."""
    peak: float
    """Correlation (-1 to 1) of the two textures once aligned; 0 = not measured."""

    @property
    def usable(self) -> bool:
        """True where the shift was measured, is plausible and aligns the textures."""
        return math.hypot(self.dy_px, self.dx_px) <= MAX_SHIFT_PX and self.peak >= MIN_PEAK


@dataclass(frozen=True)
class Coregistration:
    """The shift of a pair of epochs and how far to trust it. JSON: `dataclasses.asdict`."""

    status: Literal["measured", "unmeasured"]
    dy_px: float
    """Rows that pre has to move down; 0 when unmeasured."""
    dx_px: float
    """Columns that pre has to move right; 0 when unmeasured."""
    residual_px: float
    """Root mean square distance of the agreeing windows from the median: what a shift cannot correct."""
    n_windows: int
    """Windows looked at."""
    n_used: int
    """Windows that agree."""

    @property
    def shift_px(self) -> float:
        """Length of the shift."""
        return math.hypot(self.dy_px, self.dx_px)

    def verdict(self) -> Literal["good", "warn", "refuse"]:
        """Whether features of both epochs may be used: the residual decides, a large (corrected) shift warns."""
        if self.status == "unmeasured" or self.residual_px > REFUSE_RESIDUAL_PX:
            return "refuse"
        return "warn" if self.shift_px > WARN_SHIFT_PX else "good"

    def sentence(self) -> str:
        """Verdict with its reason and what to do, for logs and the report."""
        windows = f"{self.n_used} of {self.n_windows} windows agree"
        if self.status == "unmeasured":
            return (
                f"pre and post could not be co-registered: {windows}, expected at least {MIN_WINDOWS}; give a "
                "pre-event image with less cloud and the same season, or run without one"
            )
        measured = (
            f"pre lies {self.shift_px:.2f} px from post (dy {self.dy_px:+.2f}, dx {self.dx_px:+.2f}; {windows}), "
            f"{self.residual_px:.2f} px remain after correction"
        )
        if self.verdict() == "refuse":
            return (
                f"{measured}: more than {REFUSE_RESIDUAL_PX:g} px, a distortion that no shift corrects; orthorectify "
                "both with one DEM, or run without the pre-event image"
            )
        return f"{measured}; check the positions of the files" if self.verdict() == "warn" else measured


def coregistration_windows(
    shape: tuple[int, int], *, window_px: int = 256, max_windows: int = 49
) -> list[tuple[int, int]]:
    """Top-left pixels (y0, x0) of at most `max_windows` square windows, spread evenly, at most half overlapping.

    Empty when the image is smaller than a window.

    >>> coregistration_windows((512, 256), window_px=256)
    [(0, 0), (128, 0), (256, 0)]
    """
    spans = [length - window_px for length in shape]
    if min(spans) < 0:
        return []
    counts = [1 + span // (window_px // 2) for span in spans]
    while counts[0] * counts[1] > max_windows:
        counts[counts[1] > counts[0]] -= 1
    rows, columns = (
        [round(span * i / (n - 1)) if n > 1 else span // 2 for i in range(n)]
        for span, n in zip(spans, counts, strict=True)
    )
    return [(y0, x0) for y0 in rows for x0 in columns]


def window_shift(pre: FloatArray, post: FloatArray, observed: BoolArray) -> WindowShift:
    """How far one band of pre has to move to lie on post, by phase correlation of their edges to 1/100 px.

    pre, post : (y, x) float32, NaN = nodata, one band of a window. observed : (y, x) bool, seen in both epochs (grow
    the cloud masks first). Edges, each weighed against its surroundings, carry neither brightness nor its sign, and a
    new landslide weighs no more than what it replaced.

    Source: Guizar-Sicairos et al. (2008), upsampled phase correlation, as in scikit-image.
    """
    unmeasured = WindowShift(math.nan, math.nan, 0.0)
    pre, dy_px, dx_px, peak = np.where(observed, pre, np.float32(np.nan)), 0.0, 0.0, 0.0
    for _ in range(_PASSES):
        moved = shift_image(pre, dy_px=dy_px, dx_px=dx_px)
        seen = observed & np.isfinite(moved) & np.isfinite(post)
        if seen.mean() < MIN_OBSERVED:
            return unmeasured
        moving, fixed = _edges(moved, seen), _edges(post, seen)
        if not (moving.any() and fixed.any()):
            return unmeasured
        rest, _, _ = phase_cross_correlation(  # type: ignore[no-untyped-call]
            fixed, moving, upsample_factor=_UPSAMPLE, normalization="phase"
        )
        dy_px, dx_px = dy_px + float(rest[0]), dx_px + float(rest[1])
        if math.hypot(dy_px, dx_px) > MAX_SHIFT_PX:
            return unmeasured
        peak = float((moving * fixed).sum() / math.sqrt((moving**2).sum() * (fixed**2).sum()))
    return WindowShift(dy_px, dx_px, peak)


def _edges(image: FloatArray, observed: BoolArray) -> NDArray[np.float64]:
    """Edge strength in units of its local spread, zero mean, tapered to zero at the border and where unobserved."""
    seen = observed.astype(np.float64)
    support = np.maximum(gaussian_filter(seen, _HIGH_PASS_PX), 1e-3)

    def high_pass(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((values - gaussian_filter(values * seen, _HIGH_PASS_PX) / support) * seen)

    flat = gaussian_filter(high_pass(np.where(observed, image, 0.0).astype(np.float64)), _SMOOTH_PX)
    edges = high_pass(np.hypot(*np.gradient(flat)))
    spread = np.sqrt(gaussian_filter(edges**2, _HIGH_PASS_PX) / support)
    floor = 1e-3 * spread.max()  # flat ground is not blown up to look like texture
    relative = np.divide(edges, spread + floor, out=np.zeros_like(edges), where=spread > 0)
    taper = np.outer(*(tukey(length, _TAPERED) for length in image.shape))
    return np.asarray(relative * taper * gaussian_filter(seen, _MASK_EDGE_PX) * seen)


def combine_shifts(windows: Sequence[WindowShift]) -> Coregistration:
    """Shift on which the windows agree: the median of those within 3 MAD of the median; else `unmeasured`."""
    shifts = np.array([(w.dy_px, w.dx_px) for w in windows if w.usable]).reshape(-1, 2)
    agreeing = shifts
    if len(shifts):
        distance = np.hypot(*(shifts - np.median(shifts, axis=0)).T)
        limit = max(_OUTLIER_MADS * _MAD_TO_SIGMA * float(np.median(distance)), _OUTLIER_FLOOR_PX)
        agreeing = shifts[distance <= limit]
    if len(agreeing) < MIN_WINDOWS:
        return Coregistration("unmeasured", 0.0, 0.0, 0.0, len(windows), len(agreeing))
    dy, dx = np.median(agreeing, axis=0)
    residual = math.sqrt(float(((agreeing - (dy, dx)) ** 2).sum(axis=1).mean()))
    return Coregistration("measured", float(dy), float(dx), residual, len(windows), len(agreeing))


def shift_image(image: FloatArray, *, dy_px: float, dx_px: float) -> FloatArray:
    """Image (y, x) float32 moved `dy_px` down and `dx_px` right by cubic convolution; NaN comes from outside.

    A pixel whose kernel is partly nodata is made of the rest, and is NaN where less than half of the weight is left:
    nodata neither grows nor shrinks by more than a pixel. The kernel is 4 x 4 pixels: blocks with a halo of the shift
    and two pixels (`SHIFT_HALO_PX` at most) give the same pixels as the whole.

    Source: Keys (1981), IEEE ASSP 29, eq. 15 (a = -1/2).
    """
    seen = np.isfinite(image)
    values = np.where(seen, image, np.float32(0))
    weight = seen.astype(np.float32)
    for axis, shift_px in enumerate((dy_px, dx_px)):
        values, weight = (_convolve_shift(part, shift_px, axis=axis) for part in (values, weight))
    moved = np.full(image.shape, np.nan, np.float32)
    return np.divide(values, weight, out=moved, where=weight >= 0.5)


def _convolve_shift(image: FloatArray, shift_px: float, *, axis: int) -> FloatArray:
    whole = math.floor(-shift_px)
    t = -shift_px - whole
    weights = (  # Keys' u(s) at s = t + 1, t, 1 - t, 2 - t
        (-t + 2 * t**2 - t**3) / 2,
        (2 - 5 * t**2 + 3 * t**3) / 2,
        (t + 4 * t**2 - 3 * t**3) / 2,
        (-(t**2) + t**3) / 2,
    )
    before, after = max(0, 1 - whole), max(0, whole + 2)
    padded = np.pad(image, [(before, after) if i == axis else (0, 0) for i in range(image.ndim)])
    length, moved = image.shape[axis], np.zeros_like(image)
    for tap, weight in enumerate(weights):
        start = before + whole - 1 + tap
        moved += np.float32(weight) * np.take(padded, range(start, start + length), axis=axis)
    return moved


def _shift_classes(classes: MaskArray, *, dy_px: float, dx_px: float) -> MaskArray:
    """Classes moved by the nearest whole pixel; 255 (not observed, or Landsat's fill bit) comes from outside."""
    moved = np.full_like(classes, NOT_OBSERVED)
    dy, dx = round(dy_px), round(dx_px)
    rows, columns = classes.shape
    moved[max(dy, 0) : rows + min(dy, 0), max(dx, 0) : columns + min(dx, 0)] = classes[
        max(-dy, 0) : rows + min(-dy, 0), max(-dx, 0) : columns + min(-dx, 0)
    ]
    return moved


def align(pre: xr.Dataset, coregistration: Coregistration) -> xr.Dataset:
    """Pre moved onto post, lazy: float variables by `shift_image`, classes and masks by the nearest whole pixel.

    pre : (y, x) variables, float32 with NaN or integers with 255 for nodata.

    Raises: InputError when the co-registration's verdict is to refuse, with its sentence.
    """
    if coregistration.verdict() == "refuse":
        raise InputError(coregistration.sentence())
    dy_px, dx_px = coregistration.dy_px, coregistration.dx_px
    halo_px = math.ceil(max(abs(dy_px), abs(dx_px))) + 2
    moved = {
        name: variable.copy(
            data=_over_halo(
                shift_image if variable.dtype.kind == "f" else _shift_classes,
                variable,
                halo_px=halo_px,
                dy_px=dy_px,
                dx_px=dx_px,
            )
        )
        for name, variable in pre.data_vars.items()
    }
    return pre.assign(moved)


# --- normalisation ---------------------------------------------------------------------------------------------------

MIN_COMMON_PX: Final = 1000
"""Pixels seen in both epochs below which no radiometry is fitted."""

_STABLE_SIGMA = 2.5  # residuals beyond this are change, not noise
_NOISE_FLOOR = 1e-6  # reflectance: noise-free pairs divide by it
_MAX_ITERATIONS = 20  # of trimming; it settles in about ten


@dataclass(frozen=True)
class Normalisation:
    """Pre's radiometry to post's, `post = gain * pre + offset` a band. JSON: `dataclasses.asdict`."""

    bands: tuple[str, ...]
    gain: tuple[float, ...]
    offset: tuple[float, ...]
    """In the bands' units (reflectance)."""
    n_stable: int
    """Pixels that were taken as unchanged."""


def fit_normalisation(pre: FloatArray, post: FloatArray, names: Sequence[str]) -> Normalisation:
    """Linear radiometry from pre to post, fitted on pixels that did not change.

    pre, post : (bands, n) float32, reflectance, NaN = not observed, the same pixels in both. Starts from medians and
    interquartile ranges, then fits an orthogonal line a band and drops what lies 2.5 robust sigma off in any band,
    until the kept pixels stay the same.

    Raises: InputError on fewer than `MIN_COMMON_PX` common pixels, on a band without contrast, or on bands that
    do not rise together.

    Source: Canty, Nielsen and Schmidt (2004), RSE 91, orthogonal regression on no-change pixels; the trimming replaces
    their MAD transform.
    """
    common = np.isfinite(pre).all(axis=0) & np.isfinite(post).all(axis=0)
    if common.sum() < MIN_COMMON_PX:
        raise InputError(
            f"radiometric normalisation: got {common.sum()} pixels seen in both epochs; expected at least "
            f"{MIN_COMMON_PX}; give a pre-event image that overlaps post and has less cloud"
        )
    x, y = pre[:, common].astype(np.float64), post[:, common].astype(np.float64)
    gain, offset = _quartile_lines(x, y, names)
    stable = np.zeros(x.shape[1], bool)
    for _ in range(_MAX_ITERATIONS):
        residual = (y - gain[:, None] * x - offset[:, None]) / np.hypot(1.0, gain)[:, None]
        residual = np.abs(residual - np.median(residual, axis=1, keepdims=True))
        sigma = _MAD_TO_SIGMA * np.median(residual, axis=1, keepdims=True)
        change = (residual / (sigma + _NOISE_FLOOR)).max(axis=0)
        kept = change <= max(_STABLE_SIGMA, float(np.median(change)))  # half of the pixels stay at the least
        if np.array_equal(kept, stable):
            break
        stable = kept
        gain, offset = _orthogonal_lines(x[:, stable], y[:, stable], names)
    return Normalisation(tuple(names), tuple(gain.tolist()), tuple(offset.tolist()), int(stable.sum()))


def _quartile_lines(
    x: NDArray[np.float64], y: NDArray[np.float64], names: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x_low, x_mid, x_high = np.percentile(x, (25, 50, 75), axis=1)
    y_low, y_mid, y_high = np.percentile(y, (25, 50, 75), axis=1)
    flat = [name for name, a, b in zip(names, x_high - x_low, y_high - y_low, strict=True) if min(a, b) <= 0]
    if flat:
        raise InputError(
            f"radiometric normalisation: {', '.join(flat)} has no contrast (equal quartiles) in pre or post; expected "
            "an image of ground; check the file and its nodata value"
        )
    gain = (y_high - y_low) / (x_high - x_low)
    return gain, y_mid - gain * x_mid


def _orthogonal_lines(
    x: NDArray[np.float64], y: NDArray[np.float64], names: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x_mean, y_mean = x.mean(axis=1), y.mean(axis=1)
    sxx, syy = x.var(axis=1), y.var(axis=1)
    sxy = ((x - x_mean[:, None]) * (y - y_mean[:, None])).mean(axis=1)
    unrelated = [name for name, covariance in zip(names, sxy, strict=True) if covariance <= 0]
    if unrelated:
        raise InputError(
            f"radiometric normalisation: {', '.join(unrelated)} of pre does not rise with post; expected two images of "
            "one place in one band order; check the files and their positions"
        )
    gain = (syy - sxx + np.hypot(syy - sxx, 2 * sxy)) / (2 * sxy)
    return gain, y_mean - gain * x_mean


def normalise(pre: xr.Dataset, normalisation: Normalisation) -> xr.Dataset:
    """Pre with post's radiometry, lazy: its bands float32, NaN = nodata; other variables as they are.

    Raises: InputError when a fitted band is not in `pre`.
    """
    missing = [name for name in normalisation.bands if name not in pre]
    if missing:
        raise InputError(f"radiometric normalisation: fitted on {', '.join(missing)}, which the pre-event image lacks")
    lines = zip(normalisation.bands, normalisation.gain, normalisation.offset, strict=True)
    toned = {
        name: (pre[name] * np.float32(gain) + np.float32(offset)).astype(np.float32).assign_attrs(pre[name].attrs)
        for name, gain, offset in lines
    }
    return pre.assign(toned)
