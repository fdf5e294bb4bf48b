"""Elevation in metres: what the numbers of a DEM mean, and whether they can be heights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from catalog.bands import band_of_name
from catalog.rasters import RasterInfo
from catalog.schema import ELEVATION, InputError

US_SURVEY_FOOT_M: Final = 1200 / 3937
"""Source: NIST (2019), Special Publication 811, appendix B.6."""

_FACTORS: Final = MappingProxyType(
    {
        r"m|met(?:re|er)s?\b.*|m (?:a ?s ?l|above\b.*)|masl": 1.0,
        r"(?:us|u s)? ?(?:survey|us) ?(?:foot|feet|ft)|(?:us|u s) ?(?:foot|feet|ft)|(?:foot|feet|ft) ?(?:us|us survey)":
            US_SURVEY_FOOT_M,
        r"(?:international |int )?(?:foot|feet|ft)(?: int(?:ernational)?| intl)?": 0.3048,
        r"dm|decimet(?:re|er)s?": 0.1,
        r"cm|centimet(?:re|er)s?": 0.01,
        r"mm|millimet(?:re|er)s?": 0.001,
        r"km|kilomet(?:re|er)s?": 1000.0,
    }
)  # fmt: skip
"""Metres of a unit, by the pattern of its name in lower case."""

FILL_VALUES: Final = 16
"""Distinct numbers outside the range of heights that may still be fill that nobody declared."""

STEEPEST_DEG: Final = 75.0
"""Median slope, degrees, above which a DEM's numbers are no metres: the steepest mountains stay below 50."""

_FIX: Final = "state its unit or scale (gdal_translate -a_scale 0.01 for centimetres), or give the right file"
MIDDLE_PX: Final = 256
MEAN_PX: Final = 4


def metres_of(info: RasterInfo) -> tuple[float, float]:
    """Scale and offset that make the DEM's stored numbers metres: its own, and its unit's.

    The unit is the band's; where it says none, that of the vertical axis of its CRS; else metres.

    Raises: InputError on a unit that is not known, on two that differ, on depths, and on a band of imagery.
    """
    if band := band_of_name(info.band_names[0]):
        raise InputError(
            f"{info.path}: its band is called `{info.band_names[0]}`, which looks like imagery ({band}); expected "
            "elevations; give the elevation model with --dem, or correct the name"
        )
    of_band = {info.units[0]: _factor(info.units[0], info.path)} if info.units[0] else {}
    of_axis = dict(_vertical(info))
    if len({round(factor, 9) for factor in (*of_band.values(), *of_axis.values())}) > 1:
        told = " and ".join((*of_band, *of_axis))
        raise InputError(
            f"{info.path}: band and vertical CRS have different units ({told}); expected one; correct one of them "
            "(gdal_translate -a_srs, or the band's unit)"
        )
    factor = next(iter((*of_band.values(), *of_axis.values())), 1.0)
    return info.scales[0] * factor, info.offsets[0] * factor


def _factor(unit: str, path: str) -> float:
    words = re.sub(r"[^a-z]+", " ", unit.lower()).strip()
    found = next((factor for pattern, factor in _FACTORS.items() if re.fullmatch(pattern, words)), None)
    if found is None:
        raise InputError(
            f"{path}: its elevations have the unit `{unit}`; expected metres, feet or parts of metres; convert "
            "them to metres (gdal_calc), or correct the unit"
        )
    return found


def _vertical(info: RasterInfo) -> Iterator[tuple[str, float]]:
    """Name and metres of the unit of the CRS's vertical axis, where it has one."""
    whole = info.crs.proj
    for crs in whole.sub_crs_list or [whole]:
        axes = crs.axis_info if crs.is_vertical else crs.axis_info[2:]
        for axis in axes:
            if axis.direction.lower() == "down":
                raise InputError(
                    f"{info.path}: its CRS counts depths downwards; expected elevations; change their sign"
                )
            yield axis.unit_name, axis.unit_conversion_factor


def check_heights(cells: NDArray[Any], middle: NDArray[Any], info: RasterInfo) -> None:
    """Raise where the numbers cannot be heights: cells of an overview, and of a window of whole resolution, m.

    cells, middle : (y, x) float, m, NaN = nodata.

    Raises: InputError.
    """
    low, high = ELEVATION.valid_range
    far = np.unique(cells[(cells < low) | (cells > high)])
    if far.size > FILL_VALUES:
        raise InputError(
            f"{info.path}: has elevations from {np.nanmin(cells):.0f} to {np.nanmax(cells):.0f} m; expected {low:.0f} "
            f"to {high:.0f}; {_FIX}"
        )
    typical = _typical_slope_deg(np.where((middle < low) | (middle > high), np.nan, middle), info.gsd_m)
    if typical > STEEPEST_DEG:
        raise InputError(
            f"{info.path}: half of its middle is steeper than {typical:.0f} degrees; expected elevations in "
            f"metres; {_FIX}"
        )


def _typical_slope_deg(metres: NDArray[np.float64], gsd_m: float) -> float:
    """Median slope of means over some cells, which noise and trees do not make; 0 where there are too few."""
    rows, cols = (n // MEAN_PX * MEAN_PX for n in metres.shape)
    cut = metres[:rows, :cols].reshape(rows // MEAN_PX, MEAN_PX, cols // MEAN_PX, MEAN_PX).mean(axis=(1, 3))
    if min(cut.shape) < 2:
        return 0.0
    rise = np.hypot(np.diff(cut, axis=0)[:, :-1], np.diff(cut, axis=1)[:-1])
    slopes = np.degrees(np.arctan(rise[np.isfinite(rise)] / (MEAN_PX * gsd_m)))
    return float(np.median(slopes)) if slopes.size else 0.0
