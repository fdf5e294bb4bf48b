"""The sensors the pipeline knows: where each band is, how its numbers become reflectance, what its quality band says.

A new sensor is one entry of `SENSORS`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

from catalog.schema import BANDS, InputError

QaRule = Literal["none", "scl", "landsat_qa_pixel", "udm2"]

S2_OFFSET: Final = -0.1
"""Reflectance. BOA_ADD_OFFSET of -1000 DN. Source: ESA (2021), Sentinel-2 products specification 14.9, section 3.1."""

S2_OFFSET_BASELINE: Final = (4, 0)
"""First processing baseline whose DN carry the offset (25 January 2022, and every reprocessing since)."""


OFFSET, OFFSET_REASON = "landslidenet:offset", "landslidenet:offset_reason"
"""Keys of items: the offset of reflectance that was decided against what the item says (null: as it says); why."""

COLLAR = "landslidenet:collar"
"""Key of items: the number up to which, in all bands, a pixel is of a collar and not observed."""


@dataclass(frozen=True)
class BandSource:
    """Where a band is, and reflectance = DN * scale + offset."""

    assets: tuple[str, ...]
    """Asset keys of STAC catalogues, the usual one first; also what a local file may call the band."""
    index: int
    """1-based band of a local file that does not name its bands."""
    scale: float
    offset: float = 0.0
    files: tuple[str, ...] = ()
    """Patterns of the band's own file in a scene delivered as a folder, the preferred one first."""


@dataclass(frozen=True)
class QaSource:
    """Where the quality band is."""

    variable: str
    """Its name in a scene's Dataset: the one `tasks.preprocess.quality` reads."""
    assets: tuple[str, ...]
    index: int
    """1-based band of a local file that holds it beside the bands."""
    dtype: Literal["uint8", "uint16"]
    fill: int
    """Its value for "no data": what pixels outside the file get."""
    sibling: tuple[tuple[str, str], ...] = ()
    """A local file's quality file: what to replace in its name, and by what; the first that fits the name."""
    files: tuple[str, ...] = ()
    """Patterns of its own file in a scene delivered as a folder."""


@dataclass(frozen=True)
class FolderSource:
    """How a scene comes as a folder with a file a band, as `BandSource.files` names them."""

    metadata: Literal["sentinel2", "landsat"]
    """Whose names and metadata: they say when the scene was taken (`catalog.deliveries`)."""
    example: str
    """A band's file, for messages."""


@dataclass(frozen=True)
class Numbering:
    """An instrument's own list of bands."""

    name: str
    bands: Mapping[str, str]
    """What each number (lower case: 4, 8a) is: a canonical band, or another."""
    platform: str = ""
    """Pattern of file names and tags of the instrument's scenes."""


@dataclass(frozen=True)
class Sensor:
    """One kind of imagery."""

    name: str
    long_name: str
    gsd_m: float | None
    """Nominal; None where every campaign has its own."""
    bands: Mapping[str, BandSource]
    """By canonical band, in the order of `catalog.schema.BANDS`."""
    required: tuple[str, ...]
    """Bands without which the imagery is refused."""
    dtype: Literal["uint8", "uint16"]
    nodata: int | None
    """DN of nodata in any band; None for 8-bit imagery, where a pixel all 0 or all 255 carries no information."""
    dn_range: tuple[int, int]
    """DN of a typical (median) pixel: the least over all bands together, the largest in any one band. What lies
    outside has another scale, or is another product."""
    licence: str
    qa: QaRule = "none"
    qa_source: QaSource | None = None
    folder: FolderSource | None = None
    """None where every scene is a raster file."""
    offset_baseline: tuple[int, int] | None = None
    """First processing baseline whose DN carry `S2_OFFSET`; None where the bands' own offset is constant."""
    numberings: tuple[Numbering, ...] = ()
    """Lists that numbers in a file's band names may be of."""
    numberings_are_places: bool = False
    """Bands called b1, b2 ... are in the file's order, not of the instrument's list."""
    unnamed_8b: tuple[str, ...] = ()
    """Order of the owner's 8-band files, which do not name their bands."""

    @property
    def is_8bit(self) -> bool:
        """True for pictures without radiometry."""
        return self.dtype == "uint8"


def sensor(name: str) -> Sensor:
    """The sensor of that name.

    Raises: InputError naming the known ones.
    """
    if name not in SENSORS:
        raise InputError(f"sensor: got `{name}`; expected one of {', '.join(SENSORS)}; pass --sensor with one of them")
    return SENSORS[name]


def reflectance_offset(sensor: Sensor, band: str, *, properties: Mapping[str, Any], asset: Mapping[str, Any]) -> float:
    """What to add to DN * scale, for this item's band.

    Sentinel-2: what was decided of the item (`catalog.offsets`), else what it states. Other sensors: the constant of
    the registry.
    """
    if sensor.offset_baseline is None:
        return sensor.bands[band].offset
    decided = properties.get(OFFSET)
    return float(decided) if decided is not None else stated_offset(properties, asset, sensor)[0]


def stated_offset(properties: Mapping[str, Any], asset: Mapping[str, Any], sensor: Sensor) -> tuple[float, str, bool]:
    """The offset of reflectance that a Sentinel-2 item states, how it does, and whether that is to be relied on.

    In this order: the catalogue already applied it (`earthsearch:boa_offset_applied`); the asset states one; the
    processing baseline has it.

    Source: see `S2_OFFSET`.
    """
    if properties.get("earthsearch:boa_offset_applied"):
        return 0.0, "earthsearch:boa_offset_applied says that it is taken away", False
    stated = float(band_fields(asset).get("offset") or 0.0)
    if stated:
        return stated, "stated by the item's assets", True
    baseline = _baseline(properties)
    if baseline is None or sensor.offset_baseline is None:
        return 0.0, "no processing baseline is known", False
    name = f"processing baseline {baseline[0]:02d}.{baseline[1]:02d}"
    return (S2_OFFSET, name, True) if baseline >= sensor.offset_baseline else (0.0, name, True)


def band_fields(asset: Mapping[str, Any]) -> dict[str, Any]:
    """`nodata`, `scale` and `offset` of an asset's band, wherever the raster extension's versions put them."""
    index = int(asset.get("landslidenet:band_index", 1) or 1)
    found: dict[str, Any] = {}
    for holder in (asset.get("raster:bands"), asset.get("bands"), [asset]):
        if not isinstance(holder, list) or not holder:
            continue
        fields = holder[min(index, len(holder)) - 1]
        for name in ("nodata", "scale", "offset") if isinstance(fields, Mapping) else ():
            keys = (f"raster:{name}", name) if name != "offset" or holder != [asset] else ("raster:offset",)
            value = next((fields[key] for key in keys if fields.get(key) is not None), None)
            if value is not None and (name == "nodata" or isinstance(value, int | float)) and not found.get(name):
                found[name] = value
    return found


def _baseline(properties: Mapping[str, Any]) -> tuple[int, int] | None:
    """Sentinel-2's processing baseline; None where none is said (`processing:version` may be of other software)."""
    text = str(properties.get("s2:processing_baseline", "")).lstrip("Nn")
    if not text:
        found = re.fullmatch(r"N?(\d\d)\.?(\d\d)", str(properties.get("processing:version", "")))
        return (int(found[1]), int(found[2])) if found else None
    major, _, minor = text.partition(".")
    if not (major.isdigit() and minor.isdigit()):
        raise InputError(f"s2:processing_baseline: got `{text}`; expected two numbers like 04.00; correct the item")
    return int(major), int(minor)


Sources = dict[str, tuple[int, tuple[str, ...]]]


def _bands(
    sources: Sources, *, scale: float, offset: float = 0.0, files: Mapping[str, tuple[str, ...]] = MappingProxyType({})
) -> Mapping[str, BandSource]:
    made = {
        name: BandSource(assets, index, scale, offset, files.get(name, ())) for name, (index, assets) in sources.items()
    }
    return MappingProxyType({name: made[name] for name in BANDS if name in made})


def _listed(names: str) -> Mapping[str, str]:
    """Numbers of a list that counts from 1; 8a follows by its own name."""
    return MappingProxyType({str(number): name for number, name in enumerate(names.split(), 1)})


_MSI: Final = Numbering(
    "Sentinel-2",
    {**_listed("coastal blue green red edge1 edge2 edge3 nir vapour cirrus swir1 swir2"), "8a": "nir narrow"},
    platform="s2[abc]|sentinel-?2",
)
_OLI: Final = Numbering(
    "Landsat 8-9",
    {**_listed("coastal blue green red nir swir1 swir2"), "9": "cirrus"},
    platform=r"\bL[CO]0?[89]|landsat[ _-]?[89]|\boli",
)
_TM: Final = Numbering(
    "Landsat 4-7",
    {**_listed("blue green red nir swir1"), "7": "swir2"},
    platform=r"\bL[TE]0?[457]|landsat[ _-]?[457]|\be?tm",
)
_PLANET_ORDER: Final = ("coastal", "blue", "green i", "green", "yellow", "red", "edge", "nir")
"""Source: Planet (2023), PlanetScope product specifications, 8-band surface reflectance."""

_DOVE: Final = Numbering("PlanetScope, four bands", _listed("blue green red nir"))
_SUPERDOVE: Final = Numbering(
    "PlanetScope, eight bands", {str(n): name for n, name in enumerate(_PLANET_ORDER, 1)}, platform="_8b"
)

_PICTURE: Final[Sources] = {
    "red": (1, ("red",)),
    "green": (2, ("green",)),
    "blue": (3, ("blue",)),
}
_S2_FILES: Final = MappingProxyType(
    {
        band: (rf"^(?!MSK_).*_{number}(?:_\d+m)?\.(?:jp2|tiff?)$",)
        for band, number in {
            "blue": "B02", "green": "B03", "red": "B04", "nir": "B08", "swir1": "B11", "swir2": "B12",
        }.items()
    }
)  # fmt: skip
"""Source: ESA (2021), Sentinel-2 products specification 14.9, section 4.9 (names of the image files)."""

_LANDSAT_FILES: Final = MappingProxyType(
    {
        band: (rf"^L[CO]0[89]_.*_SR_B{oli}\.tiff?$", rf"^L[TE]0[457]_.*_SR_B{tm}\.tiff?$")
        for band, (oli, tm) in {
            "blue": (2, 1), "green": (3, 2), "red": (4, 3), "nir": (5, 4), "swir1": (6, 5), "swir2": (7, 7),
        }.items()
    }
)  # fmt: skip
"""Landsat 8-9 and 4-7 number the same bands otherwise. Source: USGS LSDS-1619 and LSDS-1618, table of band files."""

_PLANET_UDM2: Final = (
    *((f"AnalyticMS_SR{kind}", "udm2") for kind in ("_8b_harmonized", "_8b", "_harmonized", "")),
    (".tif", "_udm2.tif"),
)
_OWN = "stated by whoever supplied the imagery"

SENSORS: Final[Mapping[str, Sensor]] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            Sensor(
                name="sentinel2-l2a",
                long_name="Sentinel-2 MSI, level 2A surface reflectance",
                gsd_m=10.0,
                bands=_bands(
                    {
                        "blue": (1, ("blue", "B02", "B02_10m")),
                        "green": (2, ("green", "B03", "B03_10m")),
                        "red": (3, ("red", "B04", "B04_10m")),
                        "nir": (4, ("nir", "B08", "B08_10m")),
                        "swir1": (5, ("swir16", "B11", "B11_20m", "swir1")),
                        "swir2": (6, ("swir22", "B12", "B12_20m", "swir2")),
                    },
                    scale=1e-4,
                    files=_S2_FILES,
                ),
                required=("blue", "green", "red", "nir"),
                dtype="uint16",
                nodata=0,
                dn_range=(1, 12_000),  # reflectance 1.1 with the offset of 1000
                licence="Copernicus Sentinel data, free and open (legal notice of the European Commission)",
                qa="scl",
                qa_source=QaSource(
                    "scl", ("scl", "SCL", "SCL_20m"), 7, "uint8", fill=0, files=(r"_SCL(?:_\d+m)?\.(?:jp2|tiff?)$",)
                ),
                folder=FolderSource("sentinel2", "..._B02_10m.jp2"),
                offset_baseline=S2_OFFSET_BASELINE,
                numberings=(_MSI,),
            ),
            Sensor(
                name="landsat-c2-l2",
                long_name="Landsat 4-9, Collection 2 level 2 surface reflectance",
                gsd_m=30.0,
                bands=_bands(
                    {
                        "blue": (1, ("blue",)),
                        "green": (2, ("green",)),
                        "red": (3, ("red",)),
                        "nir": (4, ("nir08", "nir")),
                        "swir1": (5, ("swir16", "swir1")),
                        "swir2": (6, ("swir22", "swir2")),
                    },
                    scale=2.75e-5,
                    offset=-0.2,
                    files=_LANDSAT_FILES,
                ),
                required=("blue", "green", "red", "nir"),
                dtype="uint16",
                nodata=0,
                dn_range=(7_273, 43_636),  # reflectance 0 to 1 (USGS LSDS-1619)
                licence="USGS, public domain",
                qa="landsat_qa_pixel",
                qa_source=QaSource(
                    "qa_pixel", ("qa_pixel", "QA_PIXEL"), 7, "uint16", fill=1, files=(r"_QA_PIXEL\.tiff?$",)
                ),
                folder=FolderSource("landsat", "LC08_..._SR_B4.TIF"),
                numberings=(_OLI, _TM),
            ),
            Sensor(
                name="planetscope-4b",
                long_name="PlanetScope, four-band surface reflectance",
                gsd_m=3.0,
                bands=_bands(
                    {
                        "blue": (1, ("blue",)),
                        "green": (2, ("green",)),
                        "red": (3, ("red",)),
                        "nir": (4, ("nir", "near_infrared")),
                    },
                    scale=1e-4,
                ),
                required=("blue", "green", "red", "nir"),
                dtype="uint16",
                nodata=0,
                dn_range=(1, 12_000),
                licence="Planet Labs, commercial: products may show what the contract allows",
                qa="udm2",
                qa_source=QaSource("udm2", ("udm2",), 0, "uint8", fill=0, sibling=_PLANET_UDM2),
                numberings=(_DOVE, _SUPERDOVE),
                numberings_are_places=True,
                unnamed_8b=_PLANET_ORDER,
            ),
            Sensor(
                name="rgb8",
                long_name="8-bit RGB picture or orthophoto (DN / 255, no radiometry)",
                gsd_m=None,
                bands=_bands(_PICTURE, scale=1 / 255),
                required=("blue", "green", "red"),
                dtype="uint8",
                nodata=None,
                dn_range=(1, 255),
                licence=_OWN,
                numberings=(_MSI, _OLI, _TM),
                numberings_are_places=True,
            ),
            Sensor(
                name="rgbnir8",
                long_name="8-bit RGB and near infrared orthophoto (DN / 255, no radiometry)",
                gsd_m=None,
                bands=_bands({**_PICTURE, "nir": (4, ("nir",))}, scale=1 / 255),
                required=("blue", "green", "red", "nir"),
                dtype="uint8",
                nodata=None,
                dn_range=(1, 255),
                licence=_OWN,
                numberings=(_MSI, _OLI, _TM),
                numberings_are_places=True,
            ),
        )
    }
)
"""Every sensor by name. The order of a local file that does not name its bands is that of `BandSource.index`."""
