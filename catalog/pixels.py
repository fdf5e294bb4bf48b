"""What the pixels say of inputs that look right: an inverted mask, a wrong quality band."""

from __future__ import annotations

import re
from typing import Final

import numpy as np

from catalog.bands import is_usable_data_mask
from catalog.opening import open_raster
from catalog.rasters import RasterInfo
from catalog.schema import InputError
from catalog.sensors import Sensor

OVERVIEW_PX: Final = 512


def check_mask(info: RasterInfo, flag: str) -> None:
    """Raise for a mask that says what is clear instead of what is not observed.

    Raises: InputError.
    """
    clear = re.search(r"\bclear\b|\bvalid\b|\busable\b", info.band_names[0].lower())
    if info.count > 1 or is_usable_data_mask(info) or clear:
        raise InputError(
            f"{flag} {info.path}: looks like a usable data mask: got {info.count} band(s) "
            f"{list(filter(None, info.band_names))}; expected one band, not 0 = not observed; a Planet UDM2 "
            "is read where it lies beside its image (..._udm2.tif); make a mask of others (gdal_calc)"
        )


def check_quality_band(info: RasterInfo, entry: Sensor, index: int) -> None:
    """Raise where a scene's quality band holds numbers that its rule does not know.

    Raises: InputError.
    """
    scale = max(1.0, max(info.shape) / OVERVIEW_PX)
    with open_raster(info.path) as dataset:
        values = np.unique(dataset.read(index or 1, out_shape=tuple(max(1, round(n / scale)) for n in info.shape)))
    known = {"scl": values.max() <= 11, "landsat_qa_pixel": values.size <= 256, "udm2": values.max() <= 1}
    if not known.get(entry.qa, True):
        raise InputError(
            f"{info.path}: band {index or 1} is no quality band ({entry.qa}): it holds {values.size} numbers up to "
            f"{values.max()}; expected the classes of {entry.name}; name the bands in the file's descriptions"
        )
