"""Scenes as their owners deliver them: a folder with a file a band, and metadata beside them.

Sentinel-2 (a .SAFE folder or the files of one) and Landsat Collection 2 say in file names which band a file holds.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from catalog.schema import InputError
from catalog.sensors import Sensor

S2_METADATA: Final = "MTD_MSIL2A.xml"
S2_LEVEL_1C: Final = "MTD_MSIL1C.xml"
S2_BAND_IDS: Final[Mapping[str, str]] = {
    "1": "blue",
    "2": "green",
    "3": "red",
    "7": "nir",
    "11": "swir1",
    "12": "swir2",
}
"""Band ids of the metadata's list of offsets. Source: ESA (2021), Sentinel-2 products specification 14.9, annex."""

LARGEST_METADATA: Final = 20_000_000
"""Bytes; a Sentinel-2 product's metadata has about 60 kB."""


@dataclass(frozen=True)
class Delivery:
    """What a folder holds of one scene."""

    files: Mapping[str, Path]
    """By the sensor's first asset key of each band, and of its quality band."""
    time_utc: datetime | None = None
    baseline: str | None = None
    """Sentinel-2's processing baseline, e.g. 05.09."""
    offsets: Mapping[str, float] = field(default_factory=dict)
    """Reflectance to add, by asset key, where the metadata states it."""


def find_delivery(folder: Path, sensor: Sensor) -> Delivery:
    """The scene in a folder or below it; of a band in several resolutions, the finest.

    Raises: InputError when the sensor does not come in folders, a required band is missing, or there are two scenes.
    """
    if sensor.folder is None:
        raise InputError(f"{folder}: is a folder; sensor {sensor.name} expects a raster file; give the file itself")
    names = sorted(path for path in folder.rglob("*") if path.is_file())
    wanted = {source.assets[0]: source.files for source in sensor.bands.values()}
    if sensor.qa_source:
        wanted[sensor.qa_source.assets[0]] = sensor.qa_source.files
    found = {key: _pick(names, patterns, folder=folder) for key, patterns in wanted.items()}
    files = {key: path for key, path in found.items() if path is not None}
    if missing := [band for band in sensor.required if sensor.bands[band].assets[0] not in files]:
        raise InputError(
            f"{folder}: band(s) {', '.join(missing)} missing among its {len(names)} files; sensor {sensor.name} "
            f"expects a file a band, e.g. {sensor.folder.example}; give the scene's folder, or choose the right "
            "--sensor"
        )
    if sensor.folder.metadata == "sentinel2":
        return _sentinel2(files, names, sensor)
    return Delivery(files, time_utc=_landsat_time(files, names))


def _pick(paths: Sequence[Path], patterns: Sequence[str], *, folder: Path) -> Path | None:
    """The file that fits the first pattern that any fits."""
    for pattern in patterns:
        fitting = [path for path in paths if re.search(pattern, path.name, re.IGNORECASE)]
        if not fitting:
            continue
        finest = min(_resolution_m(path) for path in fitting)
        best = [path for path in fitting if _resolution_m(path) == finest]
        if len(best) > 1:
            raise InputError(
                f"{folder}: holds several scenes: {best[0].name} and {best[1].name}; expected one; give each scene's "
                "own folder"
            )
        return best[0]
    return None


def _resolution_m(path: Path) -> int:
    """The resolution in a Sentinel-2 file's name, m; a file without one is preferred."""
    found = re.search(r"_(\d+)m\.", path.name)
    return int(found[1]) if found else 0


# --- Sentinel-2 ------------------------------------------------------------------------------------------------------


def _sentinel2(files: Mapping[str, Path], paths: Sequence[Path], sensor: Sensor) -> Delivery:
    """Time, baseline and offsets: of the metadata where it is there, else of the product's and the files' names."""
    red = files[sensor.bands["red"].assets[0]]
    sensed = re.search(r"_(\d{8}T\d{6})_", red.name)
    time = datetime.strptime(sensed[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC) if sensed else None
    within = reversed(red.resolve().parts)
    named = next((found for name in within if (found := re.search(r"_N(\d{2})(\d{2})_", name))), None)
    baseline = f"{named[1]}.{named[2]}" if named else None
    if level_1 := next((path for path in paths if path.name == S2_LEVEL_1C), None):
        raise InputError(f"{level_1.parent}: is a level 1C product; expected surface reflectance; give its level 2A")
    metadata = next((path for path in paths if path.name == S2_METADATA), None)
    if metadata is None:
        return Delivery(files, time, baseline)
    tree = _read_xml(metadata)
    stated = _text(tree, "PROCESSING_BASELINE") or baseline
    scale = float(_text(tree, "BOA_QUANTIFICATION_VALUE") or 10_000)
    offsets = {
        sensor.bands[S2_BAND_IDS[band_id]].assets[0]: float(element.text or 0) / scale
        for element in tree.iter()
        if _tag(element) == "BOA_ADD_OFFSET" and (band_id := element.get("band_id", "")) in S2_BAND_IDS
    }
    return Delivery(files, time, stated, {key: value for key, value in offsets.items() if key in files})


def _read_xml(path: Path) -> ET.Element:
    """An XML file's root. Document types are refused: they can name other files, or grow without bound."""
    try:
        if path.stat().st_size > LARGEST_METADATA:
            raise InputError(f"{path}: has more than {LARGEST_METADATA} bytes; expected a product's metadata")
        text = path.read_text(encoding="utf-8")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise InputError(f"{path}: declares a document type; expected a product's metadata, which has none")
        return ET.fromstring(text)
    except (OSError, UnicodeDecodeError, ET.ParseError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); expected a product's metadata; repair or remove it"
        ) from None


def _tag(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _text(tree: ET.Element, tag: str) -> str | None:
    return next((element.text.strip() for element in tree.iter() if _tag(element) == tag and element.text), None)


# --- Landsat ---------------------------------------------------------------------------------------------------------


def _landsat_time(files: Mapping[str, Path], paths: Sequence[Path]) -> datetime | None:
    """Date of the files' names, and the time of day of ..._MTL.txt where it is there (else the day's beginning)."""
    name = next(iter(files.values())).name
    day = re.match(r"L[COTE]0\d_\w{4}_\d{6}_(\d{4})(\d{2})(\d{2})_", name, re.IGNORECASE)
    if day is None:
        return None
    date = f"{day[1]}-{day[2]}-{day[3]}"
    metadata = next((path for path in paths if path.name.upper().endswith("_MTL.TXT")), None)
    text = metadata.read_text(encoding="utf-8", errors="replace") if metadata else ""
    clock = re.search(r'SCENE_CENTER_TIME\s*=\s*"?(\d{2}:\d{2}:\d{2})', text)
    return datetime.fromisoformat(f"{date}T{clock[1] if clock else '00:00:00'}+00:00")
