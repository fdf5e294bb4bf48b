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

FloatArray = NDArray[np.float32]
MaskArray = NDArray[np.uint8]

NOT_OBSERVED: Final = 255
"""The value of a mask or class where no valid imagery was seen."""


class LandslideError(Exception):
    """Base of every error this package raises: the message says what, got, expected and fix."""


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
        """xarray/Zarr encoding of the variable: dtype, `_FillValue`, and scale and offset where they are."""
        encoding: dict[str, Any] = {"dtype": self.dtype}
        if self.is_mask:
            return encoding
        encoding["_FillValue"] = np.dtype(self.dtype).type(self.nodata)
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
    "range of the overlapping windows' landslide probabilities",
    nodata=255,
    valid_range=(0.0, 1.0),
    scale=0.005,
)
LANDSLIDE_CLASS: Final = Variable(
    "landslide_class", "uint8", "1", "1 landslide, 0 clear, 255 not observed", NOT_OBSERVED, (0, 255)
)
LANDSLIDE, CLEAR = 1, 0
