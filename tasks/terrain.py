"""Terrain features of a DEM: what the ground does around each pixel, and where its water goes.

A feature is one decorated kernel. Local features look `halo_px` pixels around them and are mapped over blocks; global
ones (`halo_px=None`) follow the water over the whole DEM. Pixels are square, row 0 is north.

RichDEM computes what it has. It is fed NaN as a nodata number, and its answer is kept only where the neighbourhood is
complete: on a border RichDEM puts the centre's elevation in place of the missing neighbour, which halves slopes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, Final, Literal, Protocol

import dask.array as da
import numpy as np
import richdem
import xarray as xr
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter

from catalog.schema import FloatArray, InputError, Variable
from tasks.coarsening import BlockMeans
from tasks.silence import silence

RELIEF_RADIUS_PX: Final = 4
"""Relief is the range of elevation in a square of 2 x 4 + 1 = 9 pixels a side."""

FLOW_MAX_CELLS: Final = 4_000_000
"""Drainage needs the whole DEM at once, in float64 and several copies: at this size it takes 4 s and 0.25 GB."""

MIN_GRADIENT: Final = 1e-3
"""m/m; a flat drains as this slope would, or its wetness index would be infinite."""

_NODATA: Final = -9999.0  # below every elevation of the contract


class Kernel(Protocol):
    """Elevation (y, x) float32, m, NaN = nodata, to a feature of the same shape, NaN where it is undefined."""

    def __call__(self, dem: FloatArray, *, gsd_m: float) -> FloatArray:
        """Compute the feature."""


@dataclass(frozen=True)
class TerrainFeature:
    """A kernel, the variable it makes and how far it looks."""

    variable: Variable
    kernel: Kernel
    halo_px: int | None
    """Neighbours needed on each side; None = the whole DEM."""


TERRAIN: Final[dict[str, TerrainFeature]] = {}
"""Every terrain feature by the name of its variable."""


def terrain_feature(variable: Variable, *, halo_px: int | None) -> Callable[[Kernel], Kernel]:
    """Enter a kernel in `TERRAIN`."""

    def enter(kernel: Kernel) -> Kernel:
        TERRAIN[variable.name] = TerrainFeature(variable, kernel, halo_px)
        return kernel

    return enter


def _variable(name: str, units: str, long_name: str, valid_range: tuple[float, float], source: str) -> Variable:
    return Variable(name, "float32", units, long_name, np.nan, valid_range, source=source)


# --- RichDEM ---------------------------------------------------------------------------------------------------------


def _as_richdem(dem: NDArray[Any], gsd_m: float) -> richdem.rdarray:
    filled = np.ascontiguousarray(np.where(np.isfinite(dem), dem, _NODATA))
    return richdem.rdarray(filled, no_data=_NODATA, geotransform=(0.0, gsd_m, 0.0, 0.0, 0.0, -gsd_m))


def _complete(dem: FloatArray, radius_px: int) -> NDArray[np.bool_]:
    """Mask of the pixels whose surrounding square has every elevation; the array's outside has none."""
    seen = np.isfinite(dem).astype(np.uint8)
    return np.asarray(minimum_filter(seen, size=2 * radius_px + 1, mode="constant", cval=0), dtype=np.bool_)


_Attribute = Literal["slope_degrees", "aspect", "profile_curvature", "planform_curvature"]


def _attribute(dem: FloatArray, name: _Attribute, *, gsd_m: float) -> FloatArray:
    """RichDEM's terrain attribute where its 3 x 3 neighbourhood is complete, NaN elsewhere."""
    with silence():
        values = np.asarray(richdem.TerrainAttribute(_as_richdem(dem, gsd_m), name))
    return np.where(_complete(dem, 1), values, np.float32(np.nan))


# --- local features --------------------------------------------------------------------------------------------------

_HORN: Final = "Horn (1981), Proc. IEEE 69(1), 14-47; RichDEM"
_ZEVENBERGEN: Final = "Zevenbergen and Thorne (1987), Earth Surf. Process. Landf. 12, 47-56; RichDEM"


@terrain_feature(_variable("slope_deg", "degree", "slope", (0, 90), _HORN), halo_px=1)
def slope_deg(dem: FloatArray, *, gsd_m: float) -> FloatArray:
    """Steepest slope in degrees: 0 flat, 90 vertical.

    Source: Horn (1981), third-order finite differences over 3 x 3 pixels.
    """
    return _attribute(dem, "slope_degrees", gsd_m=gsd_m)


@terrain_feature(_variable("aspect_deg", "degree", "aspect, clockwise from north", (0, 360), _HORN), halo_px=1)
def aspect_deg(dem: FloatArray, *, gsd_m: float) -> FloatArray:
    """Direction the slope faces, downhill, in degrees clockwise from north, in [0, 360); NaN on flats.

    Source: Horn (1981). RichDEM calls a flat 270; a flat faces nowhere.
    """
    aspect = _attribute(dem, "aspect", gsd_m=gsd_m)
    sloping = slope_deg(dem, gsd_m=gsd_m) > 0
    return np.where(sloping, np.mod(aspect, np.float32(360)), np.float32(np.nan))


@terrain_feature(
    _variable("profile_curvature", "m-1", "curvature down the slope, convex positive", (-1e3, 1e3), _ZEVENBERGEN),
    halo_px=1,
)
def profile_curvature(dem: FloatArray, *, gsd_m: float) -> FloatArray:
    """Curvature down the slope in 1/m: positive where the slope is convex (steepens downhill), 0 on flats.

    Source: Zevenbergen and Thorne (1987), with the sign of their PROFC, -2 (DG^2 + EH^2 + FGH) / (G^2 + H^2).
    RichDEM gives the opposite sign, in 1/100 m.
    """
    return np.float32(-0.01) * _attribute(dem, "profile_curvature", gsd_m=gsd_m)


@terrain_feature(
    _variable("plan_curvature", "m-1", "curvature across the slope, convex positive", (-1e3, 1e3), _ZEVENBERGEN),
    halo_px=1,
)
def plan_curvature(dem: FloatArray, *, gsd_m: float) -> FloatArray:
    """Curvature across the slope in 1/m: positive on noses (water diverges), negative in hollows, 0 on flats.

    Source: Zevenbergen and Thorne (1987), -2 (DH^2 + EG^2 - FGH) / (G^2 + H^2): the opposite of their PLANC, so that
    convex is positive in both curvatures. RichDEM has this sign, in 1/100 m.
    """
    return np.float32(0.01) * _attribute(dem, "planform_curvature", gsd_m=gsd_m)


def _rises(dem: FloatArray) -> Iterator[FloatArray]:
    """Elevation of each of the 8 neighbours above the pixel; NaN where either has none."""
    rows, cols = dem.shape
    padded = np.pad(dem, 1, constant_values=np.nan)
    for y, x in itertools.product(range(3), range(3)):
        if (y, x) != (1, 1):
            yield padded[y : y + rows, x : x + cols] - dem


def _sum(fields: Iterable[FloatArray]) -> FloatArray:
    """One field at a time: eight of a block would be held at once otherwise."""
    return reduce(np.add, fields)


_WEISS: Final = "Weiss (2001), ESRI User Conference, 3 x 3 pixels; as gdaldem TPI"


@terrain_feature(
    _variable("tpi_m", "m", "topographic position: height above the neighbours' mean", (-9500, 9500), _WEISS), halo_px=1
)
def tpi_m(dem: FloatArray, *, gsd_m: float) -> FloatArray:
    """Height above the mean of the 8 neighbours in metres: positive on ridges, negative in valleys.

    Source: Weiss (2001). The mean of differences, not the difference of means: float32 elevations lose no digits.
    """
    return -_sum(_rises(dem)) / np.float32(8)


_RILEY: Final = "Riley, DeGloria and Elliot (1999), Intermt. J. Sci. 5, 23-27; as gdaldem TRI -alg Riley"


@terrain_feature(_variable("tri_m", "m", "terrain ruggedness index", (0, 27000), _RILEY), halo_px=1)
def tri_m(dem: FloatArray, *, gsd_m: float) -> FloatArray:
    """Ruggedness in metres: root of the summed squared differences to the 8 neighbours.

    Source: Riley, DeGloria and Elliot (1999).
    """
    return np.sqrt(_sum(rise * rise for rise in _rises(dem)))


def _elevation_range(dem: FloatArray, radius_px: int) -> FloatArray:
    side, level = 2 * radius_px + 1, np.nan_to_num(dem, nan=0.0)
    span = maximum_filter(level, size=side) - minimum_filter(level, size=side)
    return np.where(_complete(dem, radius_px), span, np.float32(np.nan))


_WILSON: Final = "Wilson et al. (2007), Marine Geodesy 30, 3-35; as gdaldem roughness"


@terrain_feature(_variable("roughness_m", "m", "range of elevation in 3 x 3 pixels", (0, 9500), _WILSON), halo_px=1)
def roughness_m(dem: FloatArray, *, gsd_m: float) -> FloatArray:
    """Highest less lowest elevation of 3 x 3 pixels in metres.

    Source: Wilson et al. (2007).
    """
    return _elevation_range(dem, 1)


@terrain_feature(
    _variable("relief_m", "m", "range of elevation in 9 x 9 pixels", (0, 9500), "local relief, Smith (1935)"),
    halo_px=RELIEF_RADIUS_PX,
)
def relief_m(dem: FloatArray, *, gsd_m: float) -> FloatArray:
    """Highest less lowest elevation of 9 x 9 pixels in metres: the local relief.

    Source: Smith (1935), Geogr. Rev. 25(2), 272-284; a square of pixels here, so it grows with the GSD.
    """
    return _elevation_range(dem, RELIEF_RADIUS_PX)


# --- global features -------------------------------------------------------------------------------------------------

_TARBOTON: Final = "Tarboton (1997), Water Resour. Res. 33(2), 309-319, on filled depressions (Barnes 2014); RichDEM"
_BEVEN: Final = "Beven and Kirkby (1979), Hydrol. Sci. Bull. 24(1), 43-69, ln(a / tan b)"


@terrain_feature(_variable("flow_accumulation_m2", "m2", "upslope area", (0, 1e14), _TARBOTON), halo_px=None)
def flow_accumulation_m2(dem: FloatArray, *, gsd_m: float) -> FloatArray:
    """Upslope area of each cell in m2, its own included; NaN where there is no elevation.

    Water that enters from outside the DEM is not known, and no water crosses nodata: both make it a lower bound.

    Source: Tarboton (1997), D-infinity; depressions filled with a gradient by Barnes, Lehman and Mulla (2014),
    Comput. Geosci. 62, 117-127, in float64, where that gradient stays below any elevation step.
    """
    if not np.isfinite(dem).any():
        return np.full_like(dem, np.nan)
    with silence():
        filled = richdem.FillDepressions(_as_richdem(dem.astype(np.float64), gsd_m), epsilon=True)
        cells = np.asarray(richdem.FlowAccumulation(filled, method="Dinf"))
    return np.where(np.isfinite(dem), cells * gsd_m**2, np.nan).astype(np.float32)


@terrain_feature(_variable("twi", "1", "topographic wetness index", (-20, 60), _BEVEN), halo_px=None)
def twi(dem: FloatArray, *, gsd_m: float) -> FloatArray:
    """Topographic wetness index ln(a / tan b): high where much water comes and little leaves; NaN as `slope_deg`.

    a is upslope area in m2 for each metre of contour (the cell's width), b Horn's slope, at least `MIN_GRADIENT`.

    Source: Beven and Kirkby (1979).
    """
    return _wetness(flow_accumulation_m2(dem, gsd_m=gsd_m), dem, gsd_m=gsd_m)


def _wetness(upslope_m2: FloatArray, dem: FloatArray, *, gsd_m: float) -> FloatArray:
    gradient = np.maximum(np.tan(np.radians(slope_deg(dem, gsd_m=gsd_m))), np.float32(MIN_GRADIENT))
    return np.log(upslope_m2 / (np.float32(gsd_m) * gradient))


@dataclass(frozen=True)
class Hydrology:
    """Drainage of a whole DEM, on cells of `factor` x `factor` of its pixels from its top-left corner."""

    flow_accumulation_m2: FloatArray
    twi: FloatArray
    factor: int


def hydrology(dem: FloatArray, *, gsd_m: float, max_cells: int = FLOW_MAX_CELLS) -> Hydrology:
    """Upslope area and wetness of a whole DEM, coarsened by block means to at most `max_cells` cells.

    dem : (y, x) float32, m, NaN = nodata. The fields are (ceil(y / factor), ceil(x / factor)) float32; a cell has the
    mean elevation of those of its pixels that have one.

    Raises: InputError when the pixel size is not positive or the DEM has no pixel.
    """
    factor = flow_factor(dem.shape, gsd_m=gsd_m, max_cells=max_cells)
    return drainage(_block_mean(dem, factor), gsd_m=gsd_m, factor=factor)


def flow_factor(shape: tuple[int, ...], *, gsd_m: float, max_cells: int = FLOW_MAX_CELLS) -> int:
    """Pixels of a DEM along the side of a cell, so that there are at most `max_cells`.

    Raises: InputError when the pixel size is not positive or the DEM has no pixel.
    """
    _check(shape, gsd_m)
    return next(f for f in itertools.count(1) if -(-shape[0] // f) * -(-shape[1] // f) <= max_cells)


def drainage(coarse: FloatArray, *, gsd_m: float, factor: int) -> Hydrology:
    """Upslope area and wetness of cells that are means of `factor` x `factor` pixels of a DEM."""
    cell_m = gsd_m * factor
    upslope_m2 = flow_accumulation_m2(coarse, gsd_m=cell_m)
    return Hydrology(upslope_m2, _wetness(upslope_m2, coarse, gsd_m=cell_m), factor)


def _block_mean(dem: FloatArray, factor: int) -> FloatArray:
    """Means of the pixels with an elevation, a strip of cells at a time so that the DEM is never copied."""
    if factor == 1:
        return dem
    cells = BlockMeans((dem.shape[0], dem.shape[1]), factor=factor)
    for row in range(0, dem.shape[0], factor):
        cells.add(dem[row : row + factor], origin=(row, 0))
    return cells.means()


# --- lazy wrapper ----------------------------------------------------------------------------------------------------

MAX_HALO_PX: Final = max(feature.halo_px for feature in TERRAIN.values() if feature.halo_px is not None)
"""Pixels around a block that make every local feature of it complete."""


def terrain(elevation: xr.DataArray, *, gsd_m: float, names: Sequence[str] | None = None) -> xr.Dataset:
    """Local terrain features (y, x) float32 of an elevation, lazy where it is; NaN where a neighbourhood is incomplete.

    elevation : (y, x) float32, m, NaN = nodata; row 0 is north. `names` are the features wanted, None = all local ones.

    Raises: InputError for a name that is not a local feature, a pixel size that is not positive, or empty elevation.
    """
    local = {name: f.halo_px for name, f in TERRAIN.items() if f.halo_px is not None}
    wanted = tuple(local) if names is None else tuple(names)
    if unknown := [name for name in wanted if name not in local]:
        raise InputError(f"terrain: got the features {unknown}; expected some of {', '.join(local)}; correct the names")
    _check(elevation.shape, gsd_m)
    features = {}
    for name in wanted:
        kernel = partial(TERRAIN[name].kernel, gsd_m=gsd_m)
        features[name] = elevation.copy(data=_mapped(kernel, elevation.data, halo_px=local[name])).rename(name)
        features[name].attrs = TERRAIN[name].variable.attrs()
    return xr.Dataset(features)


def _check(shape: tuple[int, ...], gsd_m: float) -> None:
    if not gsd_m > 0:
        raise InputError(f"terrain: got a pixel size of {gsd_m} m; expected one above 0; give the DEM's GSD in metres")
    if len(shape) != 2 or 0 in shape:
        raise InputError(
            f"terrain: got elevation of shape {shape}; expected (y, x) with pixels; check the DEM's extent"
        )


def _mapped(kernel: Callable[[FloatArray], FloatArray], data: Any, *, halo_px: int) -> Any:  # noqa: ANN401 - numpy or dask
    """Kernel on an array, or on each chunk of a dask array with its halo."""
    data = data.astype(np.float32)
    if not isinstance(data, da.Array):
        return kernel(data)
    meta = np.empty((0, 0), dtype=np.float32)
    if min(data.shape) <= 2 * halo_px:  # no neighbourhood is complete, and dask refuses a halo wider than the array
        return data * np.float32(np.nan)
    overlap: Any = da.map_overlap  # untyped
    result = overlap(kernel, data, depth=halo_px, boundary=np.nan, dtype=np.float32, meta=meta)
    return result.rechunk(data.chunks)  # chunks thinner than the halo were merged on the way
