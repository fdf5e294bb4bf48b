"""What is said of inputs that look right by their content: an inverted mask, a wrong quality band, pre that is post."""

from __future__ import annotations

import os
import re
from typing import Final

import numpy as np

from catalog.bands import is_usable_data_mask
from catalog.files import place_of
from catalog.identity import content_digest
from catalog.items import LOCAL, band_files
from catalog.opening import open_raster
from catalog.rasters import RasterInfo
from catalog.scenes import Epoch
from catalog.schema import InputError
from catalog.sensors import Sensor, sensor

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


def check_not_same(pre: Epoch, post: Epoch) -> None:
    """Raise where a local picture is given for both epochs: nothing in it would count as changed.

    Told by the path, and for files of the same size by their content. Equal pixels in different files are found once
    both are read (`tasks.pairing`).

    Raises: InputError.
    """
    for path in _files_of(post):
        for other in _files_of(pre):
            if _is_same(path, other):
                copied = "" if path == other else f" (--pre {other} is a copy of it)"
                raise InputError(
                    f"--post {path}: is the pre-event imagery as well{copied}; expected a picture from before the "
                    "event: nothing would count as changed; give it with --pre, or leave --pre out"
                )


def _files_of(epoch: Epoch) -> list[str]:
    """The files of an epoch's local pictures."""
    entry = sensor(epoch.sensor)
    return [path for item in epoch.items if item["properties"].get(LOCAL) for path in band_files(item, entry)]


def _is_same(path: str, other: str) -> bool:
    if path == other:
        return True
    if place_of(path) != "local" or place_of(other) != "local":
        return False
    if os.path.getsize(path) != os.path.getsize(other):
        return False
    return content_digest(path) == content_digest(other)


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
