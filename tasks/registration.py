"""Pre-event imagery laid onto the post-event one: the shift on which windows agree, and the image moved by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.registration import phase_cross_correlation

from catalog.schema import NOT_OBSERVED, FloatArray, InputError, MaskArray
from tasks.preprocess import BoolArray, over_halo

WINDOWS_PX: Final = (256, 128)
"""Sides of the windows that are compared: the first of which enough fit into the scene."""

WARN_PX: Final = 0.5
"""A shift above this was visible as false edges before it was corrected, a residual still is: worth a look."""

REFUSE_RESIDUAL_PX: Final = 1.0
"""A spread about the median above this is no shift but distortion: edges of everything would read as change."""

MIN_WINDOWS: Final = 5
"""Agreeing windows below which a shift is chance (and a MAD has no meaning)."""

MAX_SHIFT_PX: Final = 32.0
"""The largest shift believed of a window of 256 px: beyond an eighth of its side phase correlation is mostly chance."""

SHIFT_HALO_PX: Final = 34
"""How far pixels of other blocks can matter to `shift_image`: `MAX_SHIFT_PX` and two pixels of kernel."""

MIN_OBSERVED: Final = 0.5
"""Fraction of a window seen in both epochs below which it is not measured."""

MIN_PEAK: Final = 0.08
"""Correlation of the textures once aligned; unrelated textures of 256 x 256 px stay below 0.05 (tested).

Chance correlates the more the fewer pixels there are: a window of half the side needs twice as much."""

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
        """Whether features of both epochs may be used: what is left after the shift decides (docs/adr/0005)."""
        if self.status == "unmeasured" or self.residual_px > REFUSE_RESIDUAL_PX:
            return "refuse"
        return "warn" if max(self.shift_px, self.residual_px) > WARN_PX else "good"

    def sentence(self) -> str:
        """Verdict with its reason and what to do, for logs and the report."""
        windows = f"{self.n_used} of {self.n_windows} windows agree"
        if self.n_windows < MIN_WINDOWS:
            return (
                f"the scene is too small to co-register pre and post: {self.n_windows} windows of {WINDOWS_PX[-1]} px "
                f"fit into it, expected at least {MIN_WINDOWS}; give images of a larger area, or run without pre"
            )
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
        if self.residual_px > WARN_PX:
            return f"{measured}; expect false change along edges, or orthorectify both with one DEM"
        return f"{measured}; check the positions of the files" if self.shift_px > WARN_PX else measured


def choose_window_px(shape: tuple[int, int]) -> int:
    """Side of the windows to compare: the largest of which enough fit into the image, else the smallest.

    >>> choose_window_px((1280, 1280)), choose_window_px((300, 300))
    (256, 128)
    """
    fitting = (px for px in WINDOWS_PX if len(coregistration_windows(shape, window_px=px)) >= MIN_WINDOWS)
    return next(fitting, WINDOWS_PX[-1])


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
    the cloud masks first). Unmeasured where the shift is beyond an eighth of the side, or the textures do not
    correlate. Edges, each weighed against its surroundings, carry neither brightness nor its sign, and a
    new landslide weighs no more than what it replaced.

    Source: Guizar-Sicairos et al. (2008), upsampled phase correlation, as in scikit-image.
    """
    unmeasured = WindowShift(math.nan, math.nan, 0.0)
    scale = min(1.0, min(pre.shape) / WINDOWS_PX[0])
    pre, dy_px, dx_px, peak = np.where(observed, pre, np.float32(np.nan)), 0.0, 0.0, 0.0
    common = _Seen.where(observed & np.isfinite(pre) & np.isfinite(post))
    fixed = _edges(post, common)
    for _ in range(_PASSES):
        moved = shift_image(pre, dy_px=dy_px, dx_px=dx_px)
        seen = observed & np.isfinite(moved) & np.isfinite(post)
        if seen.mean() < MIN_OBSERVED:
            return unmeasured
        if not np.array_equal(seen, common.mask):
            common = _Seen.where(seen)
            fixed = _edges(post, common)
        moving = _edges(moved, common)
        if not (moving.any() and fixed.any()):
            return unmeasured
        rest, _, _ = phase_cross_correlation(  # type: ignore[no-untyped-call]
            fixed, moving, upsample_factor=_UPSAMPLE, normalization="phase"
        )
        dy_px, dx_px = dy_px + float(rest[0]), dx_px + float(rest[1])
        if math.hypot(dy_px, dx_px) > MAX_SHIFT_PX * scale:
            return unmeasured
        peak = float((moving * fixed).sum() / math.sqrt((moving**2).sum() * (fixed**2).sum()))
    return WindowShift(dy_px, dx_px, peak) if peak >= MIN_PEAK / scale else unmeasured


@dataclass(frozen=True)
class _Seen:
    """Where a window is seen in both epochs, and what follows from it for the edges of either."""

    mask: BoolArray
    share: NDArray[np.float64]
    """1 where it is seen, else 0."""
    around: NDArray[np.float64]
    """Share that is seen around a pixel, weighed as `high_pass` weighs."""
    taper: NDArray[np.float64]
    softened: NDArray[np.float64]

    @classmethod
    def where(cls, mask: BoolArray) -> _Seen:
        from scipy.signal.windows import tukey  # loads half of SciPy: half a second of each worker, which needs none

        share = mask.astype(np.float64)
        return cls(
            mask, share, np.maximum(gaussian_filter(share, _HIGH_PASS_PX), 1e-3),
            np.outer(*(tukey(length, _TAPERED) for length in mask.shape)), gaussian_filter(share, _MASK_EDGE_PX),
        )  # fmt: skip

    def high_pass(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values without the mean around them."""
        return np.asarray((values - gaussian_filter(values * self.share, _HIGH_PASS_PX) / self.around) * self.share)


def _edges(image: FloatArray, seen: _Seen) -> NDArray[np.float64]:
    """Edge strength in units of its local spread, zero mean, tapered to zero at the border and where unobserved."""
    flat = gaussian_filter(seen.high_pass(np.where(seen.mask, image, 0.0).astype(np.float64)), _SMOOTH_PX)
    edges = seen.high_pass(np.hypot(*np.gradient(flat)))
    spread = np.sqrt(gaussian_filter(edges**2, _HIGH_PASS_PX) / seen.around)
    floor = 1e-3 * spread.max()  # flat ground is not blown up to look like texture
    relative = np.divide(edges, spread + floor, out=np.zeros_like(edges), where=spread > 0)
    return np.asarray(relative * seen.taper * seen.softened * seen.share)


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


def shift_image(image: FloatArray, *, dy_px: float, dx_px: float, at: tuple[range, range] | None = None) -> FloatArray:
    """Image (y, x) float32 moved `dy_px` down and `dx_px` right by cubic convolution; NaN comes from outside.

    at : rows and columns of the result that are wanted, all unless told: these pixels are the same either way.

    A pixel whose kernel is partly nodata is made of the rest, and is NaN where less than half of the weight is left:
    nodata neither grows nor shrinks by more than a pixel. The kernel is 4 x 4 pixels: blocks with a halo of the shift
    and two pixels (`SHIFT_HALO_PX` at most) give the same pixels as the whole.

    Source: Keys (1981), IEEE ASSP 29, eq. 15 (a = -1/2).
    """
    seen = np.isfinite(image)
    values = np.where(seen, image, np.float32(0))
    weight = seen.astype(np.float32)
    for axis, shift_px in enumerate((dy_px, dx_px)):
        places = range(image.shape[axis]) if at is None else at[axis]
        values, weight = (_convolve_shift(part, shift_px, axis=axis, at=places) for part in (values, weight))
    moved = np.full(values.shape, np.nan, np.float32)
    return np.divide(values, weight, out=moved, where=weight >= 0.5)


def _convolve_shift(image: FloatArray, shift_px: float, *, axis: int, at: range) -> FloatArray:
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
    places = np.asarray(at) + before + whole - 1
    moved = np.zeros([len(at) if i == axis else n for i, n in enumerate(image.shape)], np.float32)
    for tap, weight in enumerate(weights):
        moved += np.float32(weight) * np.take(padded, places + tap, axis=axis)
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
            data=over_halo(
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
