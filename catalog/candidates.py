"""Scenes that may be used: each made anew of what is checked of a STAC item; the rest of the item is dropped."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
import shapely
from pystac.utils import str_to_datetime
from shapely.geometry import mapping, shape
from shapely.geometry.base import BaseGeometry

from catalog.areas import split_at_antimeridian
from catalog.grid import bbox_of
from catalog.items import BAND_INDEX, BASELINE, check_bands
from catalog.pixel_size import MOST_RATIO
from catalog.policy import StacSource
from catalog.schema import InputError
from catalog.sensors import Sensor, band_fields, sensor
from catalog.web import check_url

SOURCE: Final = "landslidenet:source"
"""Key of a saved item: the STAC API that listed it."""

ITEM_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
MAX_VERTICES: Final = 10_000

SAME_PASS: Final = timedelta(seconds=60)
SAME_FOOTPRINT: Final = 0.9
"""Of two scenes taken at once, without the names of their tiles: intersection over union from which they are one."""

IMAGE_SUFFIXES: Final = (".tif", ".tiff", ".jp2")
"""Pixels themselves: a VRT, which leads on to other files, is none of them."""

KEPT_NUMBERS: Final = ("eo:cloud_cover", "gsd", "sat:relative_orbit", "view:sun_elevation", "view:sun_azimuth")
KEPT_TEXTS: Final = (
    "datetime",
    "updated",
    "created",
    "platform",
    BASELINE,
    "processing:version",
    "grid:code",
    "s2:mgrs_tile",
)
KEPT_FLAGS: Final = ("earthsearch:boa_offset_applied",)


@dataclass(frozen=True)
class Scene:
    """One scene that may be used: checked, plain values."""

    id: str
    source: str
    """Address of the API that listed it."""
    sensor: str
    time_utc: datetime
    footprint: BaseGeometry
    """Longitude and latitude, degrees."""
    cloud_percent: float | None
    """0-100; None = not said."""
    gsd_m: float
    state: str
    """`updated` of the item: it changes when the scene is corrected."""
    baseline: str
    """Processing baseline, padded so that a later one is greater; empty = not said."""
    tile: str
    orbit: float | None
    sun_elevation_deg: float | None
    sun_azimuth_deg: float | None
    item: Mapping[str, Any]
    """The STAC item as a detection reads it."""

    def same_view(self, other: Scene) -> bool:
        """True when the two are one picture, listed or processed twice."""
        if self.sensor != other.sensor or abs(self.time_utc - other.time_utc) > SAME_PASS:
            return False
        if self.tile and other.tile:
            return self.tile == other.tile
        union = self.footprint.union(other.footprint).area
        return bool(self.footprint.intersection(other.footprint).area >= SAME_FOOTPRINT * union)


def without_duplicates(scenes: Iterable[Scene]) -> tuple[Scene, ...]:
    """Each picture once: of those listed or processed several times the newest processing; on a tie the first."""
    once: list[Scene] = []
    for scene in scenes:
        place = next((i for i, other in enumerate(once) if scene.same_view(other)), None)
        if place is None:
            once.append(scene)
        elif is_newer(scene, once[place]):
            once[place] = scene
    return tuple(once)


def is_newer(scene: Scene, other: Scene) -> bool:
    """True when a scene is a later processing of the same picture.

    The processing baseline decides; where both have the same, `updated`, but only of one and the same API: two APIs
    list the same pixels at different times.
    """
    if scene.baseline != other.baseline and scene.baseline and other.baseline:
        return scene.baseline > other.baseline
    return scene.source == other.source and scene.state > other.state


def compare(used: Sequence[Scene], found: Sequence[Scene]) -> tuple[dict[str, Scene], tuple[Scene, ...]]:
    """Corrections by id of the used scene that each replaces, and the found scenes that show another picture."""
    corrections: dict[str, Scene] = {}
    others: list[Scene] = []
    for scene in found:
        known = next((other for other in used if scene.same_view(other)), None)
        if known is None:
            others.append(scene)
        elif is_newer(scene, known) and (known.id not in corrections or is_newer(scene, corrections[known.id])):
            corrections[known.id] = scene
    return corrections, tuple(others)


def with_own(url: str, hosts: Sequence[str]) -> tuple[str, ...]:
    """The hosts, and that of an API which the operator named."""
    return (*hosts, urlsplit(url).netloc)


def checked_scene(value: object, *, source: StacSource, entry: Sensor, hosts: Sequence[str]) -> Scene:
    """The scene of a STAC item as an API, or a file of this package, has it.

    Raises: InputError for what is missing, no number, out of range, or leads where it must not.
    """
    if not isinstance(value, dict) or not isinstance(value.get("properties"), dict):
        raise InputError("STAC item: got no object with properties; expected an Item")
    item_id = value.get("id")
    if not isinstance(item_id, str) or not ITEM_ID.fullmatch(item_id):
        raise InputError(f"STAC item: got the id {item_id!r:.80}; expected letters, digits, . _ -")
    stated = value["properties"]
    properties: dict[str, Any] = {key: _number(stated, key, item_id) for key in KEPT_NUMBERS}
    properties |= {key: stated[key][:80] for key in KEPT_TEXTS if isinstance(stated.get(key), str)}
    properties |= {key: True for key in KEPT_FLAGS if stated.get(key) is True}
    properties = {key: told for key, told in properties.items() if told is not None}
    taken = _time(stated.get("datetime"), item_id)
    cloud, gsd_m = properties.get("eo:cloud_cover"), properties.get("gsd") or entry.gsd_m
    if cloud is not None and not 0 <= cloud <= 100:
        raise InputError(f"STAC item {item_id}: got eo:cloud_cover {cloud:g}; expected 0 to 100")
    if gsd_m is None or not 0.01 <= gsd_m <= 1000:
        raise InputError(f"STAC item {item_id}: got gsd {gsd_m}; expected 0.01 to 1000 m")
    if entry.gsd_m is not None and not entry.gsd_m / MOST_RATIO <= gsd_m <= entry.gsd_m * MOST_RATIO:
        raise InputError(f"STAC item {item_id}: got gsd {gsd_m:g} m; expected about {entry.gsd_m:g} m of {entry.name}")
    footprint = _footprint(value.get("geometry"), item_id)
    item = {
        "type": "Feature", "stac_version": "1.0.0", "stac_extensions": [], "id": item_id, "links": [],
        "collection": source.collection, "geometry": mapping(footprint),
        "bbox": list(bbox_of(shapely.get_coordinates(footprint).T)),
        "properties": {**properties, "datetime": taken.isoformat(), SOURCE: source.url},
        "assets": _assets(value.get("assets"), entry, item_id=item_id, hosts=hosts),
    }  # fmt: skip
    state = properties.get("updated") or properties.get("created") or ""
    return Scene(
        item_id, source.url, entry.name, taken, footprint, cloud, gsd_m, state,
        baseline=_baseline(properties),
        tile=_tile(properties),
        orbit=properties.get("sat:relative_orbit"),
        sun_elevation_deg=properties.get("view:sun_elevation"),
        sun_azimuth_deg=properties.get("view:sun_azimuth"),
        item=item,
    )  # fmt: skip


def _number(properties: Mapping[str, Any], key: str, item_id: str) -> float | None:
    value = properties.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"STAC item {item_id}: got {key} {value!r:.40}; expected a number")
    return float(value)


def _time(value: object, item_id: str) -> datetime:
    try:
        if not isinstance(value, str):
            raise ValueError("not a text")
        taken = str_to_datetime(value)
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"STAC item {item_id}: got the datetime {value!r:.60} ({error}); expected when it was taken"
        ) from None
    return taken.astimezone(UTC) if taken.tzinfo else taken.replace(tzinfo=UTC)


def _footprint(value: object, item_id: str) -> BaseGeometry:
    try:
        if not isinstance(value, dict) or value.get("type") not in ("Polygon", "MultiPolygon"):
            raise ValueError("expected a Polygon or MultiPolygon")
        geometry = shapely.force_2d(shape(value))
        corners = shapely.get_coordinates(geometry)
        if not 4 <= len(corners) <= MAX_VERTICES or geometry.is_empty:
            raise ValueError(f"got {len(corners)} corners")
        west, south, east, north = geometry.bounds
        if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
            raise ValueError(f"got the bounds {geometry.bounds}")
        made: BaseGeometry = shapely.make_valid(_split(geometry))
    except (ValueError, TypeError, AttributeError, IndexError, KeyError, shapely.errors.ShapelyError) as error:
        raise InputError(f"STAC item {item_id}: geometry is not usable: {error!s:.120}") from None
    return made


def _split(geometry: BaseGeometry) -> BaseGeometry:
    """The geometry cut at the antimeridian where a polygon runs over it, which then seems to go around the earth."""
    parts = shapely.get_parts(geometry)
    widths = [part.bounds[2] - part.bounds[0] for part in parts]
    if max(widths) <= 180:
        return geometry
    eastward = [
        shapely.transform(part, lambda xy: np.column_stack([xy[:, 0] % 360, xy[:, 1]])) if width > 180 else part
        for part, width in zip(parts, widths, strict=True)
    ]
    split: BaseGeometry = split_at_antimeridian(shapely.union_all(shapely.make_valid(eastward)))
    return split


def _assets(value: object, entry: Sensor, *, item_id: str, hosts: Sequence[str]) -> dict[str, Any]:
    """The assets that the sensor reads, each with its address and the numbers that decode it."""
    if not isinstance(value, dict):
        raise InputError(f"STAC item {item_id}: got no assets; expected those of {entry.name}")
    check_bands(item_id, [str(key)[:40] for key in value][:40], entry, fix="choose the sensor that fits the collection")
    read = [key for source in entry.bands.values() for key in source.assets]
    read += entry.qa_source.assets if entry.qa_source else ()
    assets = {}
    for key in (key for key in read if key in value):
        asset = value[key]
        if not isinstance(asset, dict) or not isinstance(asset.get("href"), str):
            raise InputError(f"STAC item {item_id}: asset {key} has no address")
        if not check_url(asset["href"], hosts=hosts).path.lower().endswith(IMAGE_SUFFIXES):
            raise InputError(
                f"STAC item {item_id}: asset {key} is no {', '.join(IMAGE_SUFFIXES)}: {asset['href']:.200}"
            )
        assets[key] = {"href": asset["href"], **_decoding(asset, key, item_id)}
    return assets


def _decoding(asset: Mapping[str, Any], key: str, item_id: str) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    index = asset.get(BAND_INDEX)
    if index is not None:
        if isinstance(index, bool) or not isinstance(index, int) or not 1 <= index <= 64:
            raise InputError(f"STAC item {item_id}: asset {key}: got band {index!r:.40}; expected 1 to 64")
        kept[BAND_INDEX] = index
    said = band_fields({**asset, BAND_INDEX: kept.get(BAND_INDEX, 1)})
    numbers = {name: value for name in ("nodata", "offset") if not isinstance(value := said.get(name), str)}
    stated = {name: number for name in numbers if (number := _number(numbers, name, item_id)) is not None}
    if stated:
        kept["raster:bands"] = [stated]
    return kept


def _baseline(properties: Mapping[str, Any]) -> str:
    major, _, minor = str(properties.get(BASELINE, "")).lstrip("Nn").partition(".")
    return f"{int(major):03d}.{int(minor):03d}" if major.isdecimal() and minor.isdecimal() else ""


def _tile(properties: Mapping[str, Any]) -> str:
    """The name of the tile, in one form: 54TWN."""
    return str(properties.get("grid:code") or properties.get("s2:mgrs_tile") or "").removeprefix("MGRS-")


def from_saved(value: Mapping[str, Any], *, sensor_name: str) -> Scene:
    """The scene of an item that this package saved; whether its addresses may be read now is another question.

    Raises: InputError as `checked_scene` does.
    """
    url = str(value["properties"].get(SOURCE, ""))
    source = StacSource(url=url, collection=str(value.get("collection", "")), sensor=sensor_name)
    own = {urlsplit(asset["href"]).netloc for asset in value["assets"].values()}
    return checked_scene(value, source=source, entry=sensor(sensor_name), hosts=tuple(own))


def check_addresses(scene: Scene, *, hosts: Sequence[str]) -> None:
    """Raise when a scene leads where it must not. Raises: InputError; Unanswered when that cannot be found out."""
    for asset in scene.item["assets"].values():
        check_url(asset["href"], hosts=hosts)


def listed_again(scene: Scene, found: Iterable[Scene]) -> Scene | None:
    """The same scene as a search has just listed it, before all by the same API; None where it did not.

    Its addresses are the ones to read: signed ones expire, and files move.
    """
    same = [other for other in found if other.id == scene.id and other.same_view(scene)]
    return next((other for other in same if other.source == scene.source), next(iter(same), None))


def as_collection(scenes: Sequence[Scene]) -> dict[str, Any]:
    """An ItemCollection of scenes, in their order: what a detection takes as imagery."""
    return {"type": "FeatureCollection", "features": [dict(scene.item) for scene in scenes]}
