"""Which band of a raster file is which: by what the file says of them, never by position where it says otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from catalog.files import name_of
from catalog.rasters import RasterInfo
from catalog.schema import BANDS, InputError
from catalog.sensors import Numbering, Sensor

OTHER, NARROW = "other", "nir narrow"
"""A band that the pipeline has no use for; a near infrared that serves where there is no broad one."""

_WORDS: Final = MappingProxyType(
    {
        OTHER: (
            r"red ?edge|\bre ?\d\b|coastal|aerosol|yellow|\bgreen ?(?:i|1)\b|thermal|\btir|lwir|\bst b\d|cirrus|"
            r"\bpan\b|panchrom|vapou?r|\bnd[vwbsm]i\b|\bstd|stdev|variance|\bmask|\bnir ?09\b"
        ),
        "scl": r"\bscl\b|scene classification",
        "qa_pixel": r"\bqa ?pixel\b|\bpixel ?qa\b",
        "swir1": r"\bswir ?(?:1|16|1\.6)\b|\bshort ?wave ?infra ?red ?(?:1|16)\b",
        "swir2": r"\bswir ?(?:2|22|2\.2)\b|\bshort ?wave ?infra ?red ?(?:2|22)\b",
        NARROW: r"\bnir ?(?:narrow|2|n|08)\b|\bnarrow nir\b",
        "nir": r"\bnir ?1?\b|\bnear ?infra ?red\b|^n$",
        "blue": r"\bblue\b|^b$",
        "green": r"\bgreen(?: ?(?:ii|2))?\b|^g$",
        "red": r"\bred\b(?! edge)|^r$",
    }
)
"""Patterns of what a name says, in lower case with spaces between its words."""

_EXCLUSIVE: Final = (OTHER, "scl", "qa_pixel", "swir1", "swir2", NARROW, "nir")
_NUMBER: Final = re.compile(r"(?:^|\s)(?:sr ?)?b0*(\d{1,2}a?)(?=\s|$)")
_ORDINAL: Final = re.compile(r"^(?:band|layer|channel|ch)? ?0*(\d{1,2}a?)(?=\s|$)")
_LENGTH: Final = re.compile(r"(\d+(?:\.\d+)?)[\s_]*(nm|nanomet|um\b|µm|micromet)")

_CENTRES_NM: Final = MappingProxyType(
    {"blue": (490, 30), "green": (560, 20), "red": (660, 25), "nir": (850, 45), "swir1": (1610, 60),
     "swir2": (2200, 100)}
)  # fmt: skip
"""Centre and reach of each canonical band. Source: ESA (2021), USGS LSDS-1619 and Planet (2023), tables of bands."""

_COLOURS: Final = ("red", "green", "blue")
_PLAIN_COLOURS: Final = ("gray", "undefined", "red", "green", "blue", "alpha", "nir")
PLANET_8B: Final = "_8b"


@dataclass(frozen=True)
class _Said:
    """What a file says of one band."""

    index: int
    meaning: str = ""
    """Canonical name, a quality band's, `OTHER` or `NARROW`; empty where it says nothing of the kind."""
    number: str = ""
    """Number of the instrument's own list, e.g. 8a."""
    ordinal: bool = False
    """The number is only the band's place in a file, for all that is known."""
    off_nm: float = 0.0


def find_bands(info: RasterInfo, sensor: Sensor) -> dict[str, int]:
    """1-based band of each canonical band, and of the sensor's quality band by its variable's name, where there is one.

    What counts, in this order: names (colours, wavelengths, the instrument's numbers), colour interpretation, and for
    a file that says nothing the sensor's own order, if its count of bands fits.

    Raises: InputError, with what the file says, when a required band is missing or is there twice, when its names can
    be read in two ways, or when nothing says what its bands are.
    """
    if is_usable_data_mask(info):
        raise InputError(
            f"{info.path}: is a usable data mask (UDM2), bands {list(filter(None, info.band_names))}; expected "
            "imagery; give the image that it belongs to: the mask is read where it lies beside it"
        )
    said = [_said(info, index) for index in range(1, info.count + 1) if index != info.alpha_index]
    if _is_silent(said, sensor):
        return _by_place(info, sensor, [one.index for one in said])
    listed = sensor.numberings if any(one.number for one in said) else (Numbering("", {}),)
    readings = [found for numbering in listed if (found := _read(said, numbering, sensor))]
    unlike = [found for i, found in enumerate(readings) if found not in readings[:i]]
    if len(unlike) > 1:
        named = [_read(said, n, sensor) for n in listed if n.platform and re.search(n.platform, _platform(info), re.I)]
        unlike = [found for found in named if found]
    if len(unlike) != 1:
        raise InputError(_not_found(info, sensor, said, listed, ambiguous=len(readings) > 1))
    return unlike[0]


def is_usable_data_mask(info: RasterInfo) -> bool:
    """True for Planet's classes of what is clear and what is not, by the names of the file or its bands."""
    names = {name.lower() for name in info.band_names}
    return {"clear", "cloud"} <= names or any("udm" in name for name in (*names, name_of(info.path).lower()))


def band_of_name(name: str) -> str:
    """The canonical band that a name says; empty where it says none.

    >>> band_of_name("Green"), band_of_name("elevation")
    ('green', '')
    """
    meaning = _meaning(_words_of(name))
    return meaning if meaning in BANDS else ""


def _is_silent(said: list[_Said], sensor: Sensor) -> bool:
    """True where no name tells a band: there are none, or they only count (`Band 1`, and `b1` of no instrument)."""
    if any(one.meaning for one in said):
        return False
    counts = all(one.number == str(place) for place, one in enumerate(said, 1))
    return all(not one.number for one in said) or (
        counts and (all(one.ordinal for one in said) or sensor.numberings_are_places)
    )


def _said(info: RasterInfo, index: int) -> _Said:
    name = info.band_names[index - 1]
    words = _words_of(name)
    if meaning := _meaning(words):
        return _Said(index, meaning)
    length = info.wavelengths_nm[index - 1] or _length_nm(name.lower())
    if length is not None:
        band, off = min(((b, abs(length - centre)) for b, (centre, _) in _CENTRES_NM.items()), key=lambda pair: pair[1])
        return _Said(index, band if off <= _CENTRES_NM[band][1] else OTHER, off_nm=off)
    if numbers := _NUMBER.findall(words):
        return _Said(index, number=numbers[0]) if len(numbers) == 1 else _Said(index, OTHER)
    counted = _ORDINAL.match(words)
    return _Said(index, number=counted[1], ordinal=True) if counted else _Said(index)


def _words_of(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()).strip()


def _meaning(words: str) -> str:
    found = [meaning for meaning, pattern in _WORDS.items() if re.search(pattern, words)]
    first = next((meaning for meaning in found if meaning in _EXCLUSIVE), None)
    if first:
        return first
    return found[0] if len(found) == 1 else OTHER if found else ""


def _length_nm(name: str) -> float | None:
    found = _LENGTH.search(name)
    return float(found[1]) * (1 if found[2].startswith("n") else 1000) if found else None


def _read(said: list[_Said], numbering: Numbering, sensor: Sensor) -> dict[str, int]:
    """Bands by name under a numbering; empty where a required one is missing, or any is there twice."""
    if any(one.number and one.number not in numbering.bands for one in said):
        return {}
    found: dict[str, list[_Said]] = {}
    for one in said:
        found.setdefault(one.meaning or numbering.bands.get(one.number, ""), []).append(one)
    found.setdefault("nir", found.get(NARROW, []))
    quality = sensor.qa_source.variable if sensor.qa_source else ""
    chosen: dict[str, int] = {}
    for band in (*sensor.bands, quality):
        there = sorted(found.get(band, []), key=lambda one: one.off_nm)
        if len(there) > 1 and there[0].off_nm == there[1].off_nm:
            return {}
        if there:
            chosen[band] = there[0].index
    return chosen if set(sensor.required) <= set(chosen) else {}


def _platform(info: RasterInfo) -> str:
    """What file name and tags say of the instrument."""
    tags = (info.tags.get(key, "") for key in ("SPACECRAFT_ID", "SENSOR_ID", "SATELLITEID", "platform", "instrument"))
    return " ".join((name_of(info.path), *tags))


# --- files that say nothing ------------------------------------------------------------------------------------------


def _by_place(info: RasterInfo, sensor: Sensor, indexes: list[int]) -> dict[str, int]:
    """Bands of a file without names: by its colours, else in the sensor's order where the count fits."""
    colours = [info.colours[index - 1] for index in indexes]
    order = _order(info, sensor, len(indexes))
    coloured = all(colours.count(colour) == 1 for colour in _COLOURS)
    if sensor.is_8bit and coloured:
        found = {colour: indexes[colours.index(colour)] for colour in _COLOURS}
        rest = [index for index in indexes if index not in found.values()]
        if "nir" not in sensor.bands:
            return found
        if len(rest) == 1:
            return {**found, "nir": rest[0]}
        order = ()
    places = dict(zip(order, indexes, strict=False))
    against = coloured and any(info.colours[places[c] - 1] != c for c in _COLOURS if c in places)
    if not order or against or not set(colours) <= set(_PLAIN_COLOURS):
        raise InputError(_nothing_said(info, sensor, colours))
    quality = {sensor.qa_source.variable} if sensor.qa_source else set()
    return {band: index for band, index in places.items() if band in sensor.bands or band in quality}


def _order(info: RasterInfo, sensor: Sensor, count: int) -> tuple[str, ...]:
    """Names of an unnamed file's bands by its count of them; empty where no order is known for the count."""
    if sensor.unnamed_8b and count == len(sensor.unnamed_8b) and PLANET_8B in name_of(info.path).lower():
        return sensor.unnamed_8b
    whole = tuple(sorted(sensor.bands, key=lambda band: sensor.bands[band].index))
    quality = (sensor.qa_source.variable,) if sensor.qa_source and sensor.qa_source.index else ()
    orders = (whole[: len(sensor.required)], whole, whole + quality)
    return next((order for order in orders if len(order) == count), ())


# --- words -----------------------------------------------------------------------------------------------------------


def _nothing_said(info: RasterInfo, sensor: Sensor, colours: list[str]) -> str:
    if "palette" in colours:
        return (
            f"{info.path}: holds indices of a colour table; expected {', '.join(_own_order(sensor))}; expand it "
            "(gdal_translate -expand rgb)"
        )
    missing = [band for band, source in sensor.bands.items() if source.index > len(colours) and band in sensor.required]
    what = f"band(s) {', '.join(missing)} missing" if missing else "nothing says which band is which"
    return _refusal(info, sensor, f"{what}: got {info.count} band(s) without names, colours {', '.join(colours)}")


def _not_found(
    info: RasterInfo, sensor: Sensor, said: list[_Said], listed: tuple[Numbering, ...], *, ambiguous: bool
) -> str:
    names = list(filter(None, info.band_names)) or [f"{length:g} nm" for length in filter(None, info.wavelengths_nm)]
    if ambiguous:
        ways = " or ".join(numbering.name for numbering in listed)
        return _refusal(info, sensor, f"got the band names {names}, which may be those of {ways}")
    best = max((_known(said, numbering) for numbering in listed), key=len, default={})
    missing = [band for band in sensor.required if band not in best]
    twice = [band for band in best if len(best[band]) > 1]
    what = [f"band(s) {', '.join(missing)} missing"] if missing else []
    what += [f"band(s) {', '.join(twice)} several times"] if twice and not missing else []
    return _refusal(info, sensor, f"{' and '.join(what) or 'unknown bands'}: got {info.count} band(s) {names}")


def _known(said: list[_Said], numbering: Numbering) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for band, index in ((one.meaning or numbering.bands.get(one.number, ""), one.index) for one in said):
        found.setdefault(band, []).append(index)
    return {band: indexes for band, indexes in found.items() if band not in ("", OTHER, NARROW)}


def _refusal(info: RasterInfo, sensor: Sensor, what: str) -> str:
    alpha = f", of which band {info.alpha_index} is marked as transparency" if info.alpha_index else ""
    fix = "choose the right --sensor, or name the bands in the file's descriptions"
    if info.count == 1:
        fix = "put the bands of the scene into one file (gdalbuildvrt -separate)"
        fix += f", or give the folder that they came in ({sensor.folder.example})" if sensor.folder else ""
    return f"{info.path}: {what}{alpha}; sensor {sensor.name} expects {', '.join(_own_order(sensor))}; {fix}"


def _own_order(sensor: Sensor) -> Iterator[str]:
    yield from sorted(sensor.bands, key=lambda band: sensor.bands[band].index)
