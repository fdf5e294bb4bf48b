"""What changed between two epochs, pixel by pixel, and how unusual that is on ground that did not.

A feature is one decorated kernel over the bands of both epochs. It exists for a pair of scenes when both have its
bands, and for a pixel when both epochs show all of them. Pre must be aligned with post and have its radiometry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from catalog.schema import BANDS, FloatArray, InputError, Variable

Bands = Mapping[str, FloatArray]
"""Reflectance (y, x) float32, NaN = not observed, by band."""

Kernel = Callable[[Bands, Bands], FloatArray]
"""Bands of pre and post to a feature of the same shape, NaN where it is undefined."""

ALL_SHARED: Final = ()
"""Needs of a feature of the whole spectrum: every band that both epochs have, one at least."""

STABLE_ROUNDS: Final = 3
STABLE_SPREADS: Final = 3.0
"""A pixel further than this from the median of any score, in spreads, is no stable ground."""

MIN_STABLE_PX: Final = 100
"""Fewer pixels say nothing of the tail: a median of 100 is good to 0.13 spreads."""

MIN_SPREAD: Final = 1e-4
"""One step of stored reflectance: less than this is below what imagery can show, and identical images have none."""

MAD_TO_SIGMA: Final = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation (Rousseeuw and Croux 1993)."""


@dataclass(frozen=True)
class ChangeFeature:
    """A kernel, the variable it makes, the bands it takes and the name of its scaled version."""

    variable: Variable
    kernel: Kernel
    needs: tuple[str, ...]
    """Bands the kernel is given; `ALL_SHARED` = all that both epochs have."""
    score: Variable | None
    """Robust z-score on stable ground; None for angles, whose noise depends on the size of the change."""

    def bands(self, shared: Iterable[str]) -> tuple[str, ...] | None:
        """Bands it takes of those both epochs have, in the contract's order; None when one is missing."""
        present = set(shared)
        wanted = self.needs or tuple(name for name in BANDS if name in present)
        return wanted if wanted and present.issuperset(wanted) else None


CHANGE: Final[dict[str, ChangeFeature]] = {}
"""Every change feature by the name of its variable."""


def change_feature(
    variable: Variable, *, needs: tuple[str, ...], score: str | None = None
) -> Callable[[Kernel], Kernel]:
    """Enter a kernel in `CHANGE`; `score` names the z-score that comes with a measured scaling."""
    scaled = (
        None if score is None else _variable(score, "1", f"{variable.long_name}, robust z-score", (-1e7, 1e7), _HAMPEL)
    )

    def enter(kernel: Kernel) -> Kernel:
        CHANGE[variable.name] = ChangeFeature(variable, kernel, needs, scaled)
        return kernel

    return enter


def _variable(name: str, units: str, long_name: str, valid_range: tuple[float, float], source: str) -> Variable:
    return Variable(name, "float32", units, long_name, np.nan, valid_range, source=source)


_HAMPEL: Final = "Hampel (1974), J. Am. Stat. Assoc. 69, 383-393: (value - median) / (1.4826 MAD)"
_MALILA: Final = "Malila (1980), LARS Symposia 385"
_BOVOLO: Final = "Bovolo, Marchesi and Bruzzone (2012), IEEE TGRS 50(6), 2196-2212"
_TUCKER: Final = "Tucker (1979), Remote Sens. Environ. 8, 127-150"
_KRUSE: Final = "Kruse et al. (1993), Remote Sens. Environ. 44, 145-163"
_GILLESPIE: Final = "Gillespie, Kahle and Walker (1987), Remote Sens. Environ. 22, 343-365"


# --- kernels ---------------------------------------------------------------------------------------------------------


def _spectrum(bands: Bands) -> FloatArray:
    """Bands stacked (band, y, x)."""
    return np.stack(list(bands.values()))


def _norm(spectrum: FloatArray) -> FloatArray:
    length: FloatArray = np.sqrt((spectrum * spectrum).sum(axis=0))
    return length


def _unit(spectrum: FloatArray) -> FloatArray:
    """Spectra of length one; NaN for black."""
    length = _norm(spectrum)
    return np.divide(spectrum, length, out=np.full_like(spectrum, np.nan), where=length > 0)


def _ratio(part: FloatArray, whole: FloatArray, *, of: Bands) -> FloatArray:
    """`part / whole`, NaN where a band is negative or all are zero: normalised shadows have no colour."""
    defined = (whole > 0) & (_spectrum(of).min(axis=0) >= 0)
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=defined)


def _ndvi(bands: Bands) -> FloatArray:
    red, nir = bands["red"], bands["nir"]
    return _ratio(nir - red, nir + red, of=bands)


@change_feature(
    _variable("dndvi", "1", "change of NDVI, post less pre", (-2, 2), _TUCKER),
    needs=("red", "nir"),
    score="dndvi_score",
)
def dndvi(pre: Bands, post: Bands) -> FloatArray:
    """Change of the vegetation index, post less pre, -2 to 2: negative where vegetation was lost.

    Source: Tucker (1979), (nir - red) / (nir + red).
    """
    return _ndvi(post) - _ndvi(pre)


@change_feature(
    _variable("cva_magnitude", "1", "length of the spectral change vector", (0, 100), _MALILA),
    needs=ALL_SHARED,
    score="change_score",
)
def cva_magnitude(pre: Bands, post: Bands) -> FloatArray:
    """Euclidean length of the change of all shared bands, in reflectance: 0 where nothing changed.

    Source: Malila (1980), change vector analysis.
    """
    return _norm(_spectrum(post) - _spectrum(pre))


@change_feature(
    _variable("cva_direction_deg", "degree", "angle of the change vector from pure brightening", (0, 180), _BOVOLO),
    needs=ALL_SHARED,
)
def cva_direction_deg(pre: Bands, post: Bands) -> FloatArray:
    """Angle of the change vector in degrees: 0 all bands brightened alike, 90 colour only, 180 darkened alike.

    NaN where nothing changed. Means the same whatever the bands are.

    Source: Bovolo, Marchesi and Bruzzone (2012), compressed change vector analysis; by arctan2, exact near 0 and 180.
    """
    vector = _spectrum(post) - _spectrum(pre)
    mean = vector.mean(axis=0)
    angle = np.degrees(np.arctan2(_norm(vector - mean), mean * np.float32(np.sqrt(len(vector)))))
    return np.where(_norm(vector) > 0, angle, np.float32(np.nan))


@change_feature(
    _variable("spectral_angle_deg", "degree", "angle between the spectra", (0, 180), _KRUSE), needs=ALL_SHARED
)
def spectral_angle_deg(pre: Bands, post: Bands) -> FloatArray:
    """Angle between the spectra of pre and post in degrees: 0 where only the illumination changed; NaN for black.

    Source: Kruse et al. (1993), spectral angle; as 2 arctan2(|u - v|, |u + v|) of the unit spectra (Kahan 2006),
    since an arccos of float32 cannot tell angles below 0.03 degrees.
    """
    u, v = _unit(_spectrum(pre)), _unit(_spectrum(post))
    angle: FloatArray = np.degrees(2 * np.arctan2(_norm(u - v), _norm(u + v)))
    return angle


@change_feature(
    _variable("brightness_change", "1", "change of mean visible reflectance", (-100, 100), "mean of the visible"),
    needs=("red", "green", "blue"),
    score="brightness_score",
)
def brightness_change(pre: Bands, post: Bands) -> FloatArray:
    """Change of the mean of red, green and blue, post less pre: positive where soil or rock was bared."""
    mean: FloatArray = (_spectrum(post) - _spectrum(pre)).mean(axis=0)
    return mean


def _green_share(bands: Bands) -> FloatArray:
    return _ratio(bands["green"], _spectrum(bands).sum(axis=0), of=bands)


@change_feature(
    _variable("greenness_change", "1", "change of green / (red + green + blue), post less pre", (-1, 1), _GILLESPIE),
    needs=("red", "green", "blue"),
    score="greenness_score",
)
def greenness_change(pre: Bands, post: Bands) -> FloatArray:
    """Change of green's share of the visible, post less pre, -1 to 1: negative where vegetation was lost.

    Source: Gillespie, Kahle and Walker (1987), chromaticity coordinate.
    """
    return _green_share(post) - _green_share(pre)


# --- scaling ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChangeScaling:
    """Where each scored feature lies on stable ground, and how far it strays there by chance."""

    median: Mapping[str, float]
    spread: Mapping[str, float]
    """1.4826 times the median absolute deviation, at least `MIN_SPREAD`."""
    stable_px: int
    """Pixels of the sample that were taken as stable."""


def measure_scaling(sample: Mapping[str, FloatArray]) -> ChangeScaling:
    """Scaling of change features on stable ground, found in a sample of their values.

    sample : feature -> values of the same pixels, any shape, NaN = not observed; features without a score are ignored.
    Three rounds of medians and spreads drop the pixels beyond 3 spreads in any of them, so that landslides neither
    shift nor widen the scale, as long as stable ground is the majority.

    Raises: InputError when no feature has a score, or fewer than `MIN_STABLE_PX` pixels are observed or stable.
    """
    names = [name for name, feature in CHANGE.items() if feature.score is not None and name in sample]
    if not names:
        scored = ", ".join(name for name, feature in CHANGE.items() if feature.score is not None)
        raise InputError(f"change: got a sample of {sorted(sample)}; expected some of {scored}; give change features")
    values = np.stack([np.asarray(sample[name], dtype=np.float64).ravel() for name in names])
    values = values[:, np.isfinite(values).all(axis=0)]
    stable = values
    for _ in range(STABLE_ROUNDS):
        median, spread = _median_and_spread(stable)
        stable = values[:, (np.abs(values - median) <= STABLE_SPREADS * spread).all(axis=0)]
    median, spread = _median_and_spread(stable)
    return ChangeScaling(
        dict(zip(names, median.ravel().tolist(), strict=True)),
        dict(zip(names, spread.ravel().tolist(), strict=True)),
        stable.shape[1],
    )


def _median_and_spread(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Columns of medians and spreads of (feature, pixel) values."""
    if values.shape[1] < MIN_STABLE_PX:
        raise InputError(
            f"change: got {values.shape[1]} stable pixels seen in both epochs; expected {MIN_STABLE_PX} or more; "
            "give a pre-event scene that overlaps the post-event one with less cloud, or none"
        )
    median = np.median(values, axis=1, keepdims=True)
    deviation = np.median(np.abs(values - median), axis=1, keepdims=True)
    return median, np.maximum(MAD_TO_SIGMA * deviation, MIN_SPREAD)


def _score(values: FloatArray, *, median: float, spread: float) -> FloatArray:
    return (values - np.float32(median)) / np.float32(spread)


# --- lazy wrapper ----------------------------------------------------------------------------------------------------


def variables(shared: Iterable[str]) -> tuple[Variable, ...]:
    """Variables that `change` makes, with a scaling, of two epochs with these bands in common."""
    names = tuple(shared)
    features = [feature for feature in CHANGE.values() if feature.bands(names) is not None]
    scores = [feature.score for feature in features if feature.score is not None]
    return (*(feature.variable for feature in features), *scores)


def change(pre: xr.Dataset, post: xr.Dataset, *, scaling: ChangeScaling | None = None) -> xr.Dataset:
    """Change features (y, x) float32 of the bands both epochs have, lazy where they are; NaN where either is NaN.

    pre, post : bands (y, x) float32, reflectance, NaN = not observed, on one grid. With a scaling come the z-scores of
    the scored features as well: `change_score` (of `cva_magnitude`) and the signed `dndvi_score`, `brightness_score`
    and `greenness_score`, 0 on typical stable ground, 1 a spread away from it.

    Raises: InputError when the grids differ, no band is shared, or the scaling lacks a feature.
    """
    shared = [name for name in BANDS if name in pre.data_vars and name in post.data_vars]
    _check(pre, post, shared)
    made = {name: (feature, bands) for name, feature in CHANGE.items() if (bands := feature.bands(shared)) is not None}
    features = {name: _computed(feature, pre, post, bands) for name, (feature, bands) in made.items()}
    if scaling is not None:
        for name, (feature, _) in made.items():
            if feature.score is not None:
                features[feature.score.name] = _scored(features[name], name, feature.score, scaling)
    return xr.Dataset(features)


def _check(pre: xr.Dataset, post: xr.Dataset, shared: list[str]) -> None:
    if not shared:
        got = f"pre with {sorted(map(str, pre.data_vars))} and post with {sorted(map(str, post.data_vars))}"
        raise InputError(f"change: got {got}; expected a band in common; give scenes of sensors that share one")
    try:
        xr.align(pre[shared], post[shared], join="exact", copy=False)
    except ValueError as error:
        raise InputError(
            f"change: got pre {dict(pre.sizes)} and post {dict(post.sizes)} on different grids ({error}); "
            "expected the same pixels; align pre to post first"
        ) from error


def _computed(feature: ChangeFeature, pre: xr.Dataset, post: xr.Dataset, bands: tuple[str, ...]) -> xr.DataArray:
    both = [epoch[band] for epoch in (pre, post) for band in bands]
    kernel = partial(_on_bands, kernel=feature.kernel, bands=bands)
    return _named(xr.apply_ufunc(kernel, *both, dask="parallelized", output_dtypes=[np.float32]), feature.variable)


def _on_bands(*both: FloatArray, kernel: Kernel, bands: tuple[str, ...]) -> FloatArray:
    pre, post = both[: len(bands)], both[len(bands) :]
    return kernel(dict(zip(bands, pre, strict=True)), dict(zip(bands, post, strict=True)))


def _scored(values: xr.DataArray, name: str, score: Variable, scaling: ChangeScaling) -> xr.DataArray:
    if name not in scaling.median or name not in scaling.spread:
        measured = ", ".join(scaling.median)
        raise InputError(f"change: got a scaling of {measured}; expected {name} too; measure it on these two epochs")
    scale = partial(_score, median=scaling.median[name], spread=scaling.spread[name])
    return _named(xr.apply_ufunc(scale, values, dask="parallelized", output_dtypes=[np.float32]), score)


def _named(values: xr.DataArray, variable: Variable) -> xr.DataArray:
    return values.rename(variable.name).assign_attrs(variable.attrs())
