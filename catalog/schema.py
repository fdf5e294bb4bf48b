"""THE CONTRACT: every variable that crosses a module, its units, its encoding on disk, and the errors users meet.

In memory scaled variables are float32 with NaN for nodata, and masks are uint8. On disk they are what `Variable` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from catalog.secrets import redact

FloatArray = NDArray[np.float32]
MaskArray = NDArray[np.uint8]

NOT_OBSERVED: Final = 255
"""The value of a mask or class where no valid imagery was seen."""


class LandslideError(Exception):
    """Base of every error this package raises: the message says what, got, expected and fix, and no secret."""

    def __init__(self, *told: object) -> None:
        super().__init__(*(redact(part) if isinstance(part, str) else part for part in told))


class InputError(LandslideError):
    """An input file, flag or configuration that cannot be worked with; found before any work starts."""


class StoreError(LandslideError):
    """A store that is damaged, incomplete or written against its contract."""


class ModelError(LandslideError):
    """A network, checkpoint or model card that does not fit."""


class Quality(IntEnum):
    """What a pixel of an epoch shows; `CLEAR` and `WATER` are observed ground, the others are not."""

    CLEAR = 0
    CLOUD = 1
    SHADOW = 2
    SNOW = 3
    WATER = 4
    NODATA = 255


OBSERVED_QUALITY: Final = (Quality.CLEAR, Quality.WATER)


@dataclass(frozen=True)
class Variable:
    """One variable of the contract: its meaning in memory and its encoding on disk.

    `stored = (value - offset) / scale`, rounded for integers; `nodata` is a stored value. `scale` 1 and an integer
    `dtype` mean the variable is not decoded to float (masks, classes).
    """

    name: str
    dtype: Literal["uint8", "uint16", "int16", "float32"]
    units: str
    long_name: str
    nodata: float
    """Stored value of nodata; NaN for float32."""
    valid_range: tuple[float, float]
    """In memory, in `units`. A check, never a clip."""
    scale: float = 1.0
    offset: float = 0.0
    source: str = ""
    """Author, year, equation."""
    dims: tuple[str, ...] = ("y", "x")

    @property
    def is_mask(self) -> bool:
        """True where memory holds the stored integers themselves."""
        return self.dtype != "float32" and self.scale == 1.0 and self.offset == 0.0

    @property
    def memory_dtype(self) -> np.dtype[Any]:
        """The dtype in memory: the stored one for masks, float32 otherwise."""
        return np.dtype(self.dtype if self.is_mask else "float32")

    def attrs(self) -> dict[str, Any]:
        """CF attributes of the variable."""
        attrs: dict[str, Any] = {"long_name": self.long_name, "units": self.units}
        if self.source:
            attrs["source"] = self.source
        return attrs

    def encoding(self) -> dict[str, Any]:
        """xarray/Zarr encoding of the variable: dtype, what is not there, and scale and offset where they are.

        Zarr's `fill_value` is nodata, so that what was never written reads as that, not as 0.
        """
        nodata = np.dtype(self.dtype).type(self.nodata)
        encoding: dict[str, Any] = {"dtype": self.dtype, "fill_value": nodata}
        if self.is_mask:
            return encoding
        encoding["_FillValue"] = nodata
        if self.scale != 1.0 or self.offset != 0.0:
            encoding |= {"scale_factor": self.scale, "add_offset": self.offset}
        return encoding


def _reflectance(name: str, long_name: str) -> Variable:
    return Variable(name, "uint16", "1", long_name, nodata=0, valid_range=(0.0, 2.0), scale=1e-4)


BANDS: Final[Mapping[str, Variable]] = MappingProxyType(
    {
        v.name: v
        for v in (
            _reflectance("blue", "surface reflectance, blue"),
            _reflectance("green", "surface reflectance, green"),
            _reflectance("red", "surface reflectance, red"),
            _reflectance("nir", "surface reflectance, near infrared"),
            _reflectance("swir1", "surface reflectance, short-wave infrared 1.6 um"),
            _reflectance("swir2", "surface reflectance, short-wave infrared 2.2 um"),
        )
    }
)
"""Canonical bands. 8-bit imagery is stored as DN / 255: a pseudo-reflectance, no radiometry is claimed for it."""

QUALITY: Final = Variable("quality", "uint8", "1", "quality class (see Quality)", NOT_OBSERVED, (0, 255))
ELEVATION: Final = Variable(
    "elevation_m", "float32", "m", "elevation above the vertical datum of the DEM", np.nan, (-500.0, 9000.0)
)
PROBABILITY: Final = Variable(
    "probability", "uint16", "1", "landslide probability", nodata=65535, valid_range=(0.0, 1.0), scale=1e-4
)
DISAGREEMENT: Final = Variable(
    "disagreement",
    "uint8",
    "1",
    "range of the overlapping windows' landslide probabilities; nodata where one window only saw the pixel",
    nodata=255,
    valid_range=(0.0, 1.0),
    scale=0.005,
)
LANDSLIDE_CLASS: Final = Variable(
    "landslide_class", "uint8", "1", "1 landslide, 0 clear, 255 not observed", NOT_OBSERVED, (0, 255)
)
LANDSLIDE, CLEAR = 1, 0


# --- the inventory ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """One attribute of a landslide as it is delivered."""

    name: str
    kind: Literal["text", "integer", "number", "flag"]
    units: str
    """Empty for text and flags."""
    meaning: str
    nullable: bool = False
    """It is null where an input was not given or not observed."""


def _mean(name: str, units: str, what: str) -> Column:
    return Column(f"{name}_mean", "number", units, f"mean over the landslide: {what}", nullable=True)


INVENTORY_COLUMNS: Final[Mapping[str, Column]] = MappingProxyType(
    {
        column.name: column
        for column in (
            Column("id", "text", "", "name of the landslide, kept over versions"),
            Column("event_id", "text", "", "event the inventory is of"),
            Column("version", "integer", "1", "version of the event's inventory"),
            Column("supersedes", "text", "", "earlier ids that it replaces, joined by ;"),
            Column("decision", "text", "", "accepted or vetoed"),
            Column("reasons", "text", "", "codes of the rules that rejected it, joined by ;"),
            Column("review_status", "text", "", "what a person said of it"),
            Column("reviewer", "text", "", "who said it"),
            Column("area_m2", "number", "m2", "geodesic area"),
            Column("perimeter_m", "number", "m", "length of the outline along the pixels' sides"),
            Column("length_m", "number", "m", "longer side of the smallest rectangle around it"),
            Column("width_m", "number", "m", "shorter side of the smallest rectangle around it"),
            Column("volume_m3", "number", "m3", "volume by the scaling law"),
            Column("volume_low_m3", "number", "m3", "volume with the law's parameters one standard error lower"),
            Column("volume_high_m3", "number", "m3", "volume with the law's parameters one standard error higher"),
            Column("volume_law", "text", "", "the scaling law"),
            Column("probability_mean", "number", "1", "mean landslide probability", nullable=True),
            Column("probability_max", "number", "1", "highest landslide probability", nullable=True),
            Column("confidence", "text", "", "high, medium or low, by the rule in the metadata"),
            Column("threshold", "number", "1", "landslide probability from which a pixel is a landslide"),
            Column("observed_fraction", "number", "1", "share of the outline that borders observed ground"),
            Column("touches_edge", "flag", "", "some of the outline borders ground that was not observed"),
            Column("slope_mean_deg", "number", "degree", "mean slope", nullable=True),
            Column("slope_p90_deg", "number", "degree", "slope that nine tenths of it stay below", nullable=True),
            Column("aspect_deg", "number", "degree", "circular mean aspect, clockwise from north", nullable=True),
            Column("elevation_min_m", "number", "m", "lowest elevation", nullable=True),
            Column("elevation_max_m", "number", "m", "highest elevation", nullable=True),
            Column("relief_m", "number", "m", "highest less lowest elevation of the landslide", nullable=True),
            Column("h_over_l", "number", "1", "relief over length", nullable=True),
            Column("channel_connected", "flag", "", "reaches a cell that drains more than 1 km2", nullable=True),
            Column("distance_to_epicentre_km", "number", "km", "of the centroid, along the ellipsoid", nullable=True),
            _mean("local_relief_m", "m", "range of elevation in 9 x 9 cells of the DEM"),
            _mean("profile_curvature", "m-1", "curvature down the slope, convex positive"),
            _mean("plan_curvature", "m-1", "curvature across the slope, convex positive"),
            _mean("tpi_m", "m", "topographic position, height above the neighbours' mean"),
            _mean("tri_m", "m", "terrain ruggedness index"),
            _mean("roughness_m", "m", "range of elevation in 3 x 3 cells of the DEM"),
            _mean("flow_accumulation_m2", "m2", "upslope area"),
            _mean("twi", "1", "topographic wetness index"),
            _mean("redness", "1", "(red - blue) / (red + blue) after the event"),
            _mean("relative_brightness", "1", "brightness over the median of the scene"),
            _mean("change_score", "1", "spectral change in robust standard deviations of stable ground"),
            _mean("cva_magnitude", "1", "length of the spectral change vector"),
            _mean("cva_direction_deg", "degree", "angle of the change vector from pure brightening"),
            _mean("spectral_angle_deg", "degree", "angle between the spectra before and after"),
            _mean("brightness_change", "1", "change of mean visible reflectance"),
            _mean("brightness_score", "1", "change of brightness in robust standard deviations of stable ground"),
            _mean("greenness_change", "1", "change of green / (red + green + blue)"),
            _mean("greenness_score", "1", "change of greenness in robust standard deviations of stable ground"),
            _mean("dndvi", "1", "change of NDVI"),
            _mean("dndvi_score", "1", "change of NDVI in robust standard deviations of stable ground"),
            Column("pre_scenes", "text", "", "pre-event scenes that were used", nullable=True),
            Column("pre_date", "text", "", "their first and last day (UTC)", nullable=True),
            Column("post_scenes", "text", "", "post-event scenes"),
            Column("post_date", "text", "", "their first and last day (UTC)"),
            Column("model", "text", "", "network"),
            Column("weights_sha256", "text", "", "digest of its weights"),
        )
    }
)
"""Every column an inventory may have; those that end in `_mean` are there when their input was."""

Change = Literal["new", "grown", "changed", "unchanged", "withdrawn"]
CHANGES: Final[Mapping[Change, str]] = MappingProxyType(
    {
        "new": "not in the version before",
        "grown": "its area is more than a tenth larger",
        "changed": "more than a tenth of its area is other ground, or it replaces several or a part of one",
        "unchanged": "the same landslide, within a tenth",
        "withdrawn": "no longer in the inventory",
    }
)
"""What can have become of a landslide from one version to the next."""
