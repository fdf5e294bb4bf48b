"""Imagery made comparable: what each pixel shows, the clearest pixel of several scenes, pre moved and toned to post.

Kernels take and return numpy; functions of a Dataset are lazy and give the same pixels in any chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from catalog.schema import BANDS, NOT_OBSERVED, OBSERVED_QUALITY, FloatArray, InputError, MaskArray, Quality

BoolArray = NDArray[np.bool_]
QaRule = Literal["none", "scl", "landsat_qa_pixel", "udm2"]

# --- quality ---------------------------------------------------------------------------------------------------------

QA_VARIABLES: Final[dict[QaRule, str]] = {"scl": "scl", "landsat_qa_pixel": "qa_pixel", "udm2": "udm2"}
"""The Dataset variable each rule reads, beside the bands."""

CLOUD_MIN_REFLECTANCE: Final = 0.40
"""A cloud's darkest visible band. Below lie dry soil and fresh landslides (Hokkaido 2018: 99.5 % under 0.5 in blue)."""

VISIBLE: Final = ("blue", "green", "red")

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
    """Quality of a scene (y, x) uint8, lazy: the QA rule's class, NODATA where not seen or `mask` is not zero.

    A pixel is seen where its visible bands are not NaN (all bands, of a scene that has none): over water near infrared
    and beyond may be corrected to less than nothing, which says nothing of what the network looks at.

    scene : bands of `BANDS` float32, NaN = nodata; the rule's variable (`QA_VARIABLES`); optionally `mask` uint8.

    Raises: InputError when the scene has no band, or lacks what the rule reads.
    """
    kernels = {"scl": scl_quality, "landsat_qa_pixel": landsat_quality, "udm2": udm2_quality}
    bands = bands_of(scene)
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
    decisive = [name for name in bands if name in VISIBLE] or bands
    seen = scene[decisive[0]].notnull()
    for name in decisive[1:]:
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
    return quality.copy(data=over_halo(_grow, quality, halo_px=px, px=px))


def _grow(quality: MaskArray, *, px: int) -> MaskArray:
    y, x = np.ogrid[-px : px + 1, -px : px + 1]
    disc = y * y + x * x <= px * px
    ground, grown = np.isin(quality, OBSERVED_QUALITY), quality.copy()
    for label in (Quality.SHADOW, Quality.CLOUD):
        grown[ground & binary_dilation(quality == label, disc)] = label
    return grown


def bands_of(scene: xr.Dataset) -> list[str]:
    """The canonical bands of a Dataset, in the order of the contract."""
    return [name for name in BANDS if name in scene]


def _as_quality(labels: xr.DataArray) -> xr.DataArray:
    return labels.astype(np.uint8).rename("quality").assign_attrs(long_name="quality class (see Quality)", units="1")


def over_halo(
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
    bands = bands_of(scenes[0])
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
        if bands_of(scene) != bands_of(first):
            raise InputError(
                f"composite: scene {index} has the bands {bands_of(scene)}, scene 0 has {bands_of(first)}; "
                "give files of one sensor"
            )
        same_grid = all(first[axis].equals(scene[axis]) and first[axis].equals(label[axis]) for axis in ("y", "x"))
        if not same_grid:
            raise InputError(f"composite: scene {index} is not on scene 0's grid; warp all onto the event's grid first")


# --- normalisation ---------------------------------------------------------------------------------------------------

MIN_COMMON_PX: Final = 1000
"""Pixels seen in both epochs below which no radiometry is fitted."""

SAME_REFLECTANCE: Final = 1e-3
SAME_SHARE: Final = 0.9
"""Share of pixels equal in all bands (to `SAME_REFLECTANCE`) from which pre is post: of real pairs next to none are."""

_MAD_TO_SIGMA = 1.4826  # of a normal distribution
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
    do not rise together, and on a pre that is post.

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
    same = float((np.abs(x - y) <= SAME_REFLECTANCE).all(axis=0).mean())
    if same >= SAME_SHARE:
        raise InputError(
            f"radiometric normalisation: {same:.0%} of the pixels of pre are those of post; expected a picture "
            "from before the event: nothing would count as changed; give it with --pre, or leave --pre out"
        )
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
