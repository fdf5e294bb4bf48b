"""Items: a local file or a STAC search becomes the same kind of record, whose assets say where each band is."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pystac
from shapely.geometry import box, mapping

from catalog.areas import split_at_antimeridian
from catalog.bands import find_bands
from catalog.config import StacConfig
from catalog.deliveries import find_delivery
from catalog.files import absolute, exists, is_url, name_of
from catalog.grid import Bounds
from catalog.ranges import without_login
from catalog.rasters import RasterInfo, date_text, describe_raster
from catalog.schema import InputError
from catalog.sensors import COLLAR, OFFSET, OFFSET_REASON, QaSource, Sensor, band_fields
from catalog.stac_api import NONSENSE, ask_api
from catalog.web import Unanswered

logger = logging.getLogger(__name__)

LOCAL, BAND_INDEX, BASELINE = "landslidenet:local", "landslidenet:band_index", "s2:processing_baseline"
"""Keys of items: made here from a file; 1-based band of an asset; Sentinel-2's processing baseline."""

OURS: Final = (LOCAL, OFFSET, OFFSET_REASON, COLLAR)
"""Keys that items of others may not carry."""

ANY_TIME: Final = ("1970-01-01T00:00:00Z", "2200-01-01T00:00:00Z")
"""STAC's way to say that an item's time is not known: a range that holds every scene."""

ITEM_SUFFIXES: Final = (".json", ".geojson")
"""Of files that hold STAC items: imagery by its description."""

READ_SCHEMES: Final = ("http", "https", "s3")
TIMEOUT_S: Final = 30.0
OFFSET_TOLERANCE: Final = 1e-3


def local_item(path: str | Path, sensor: Sensor, *, time_utc: datetime | None = None) -> pystac.Item:
    """The item of a local file, or of a folder with a file a band: one asset a band, with projection metadata.

    Bands of a file are found by their descriptions where it has them, by the sensor's order otherwise. `time_utc` wins
    over the file's tags; unknown, the item has no date. A tag PROCESSING_BASELINE decides Sentinel-2's offset. For
    folders see `catalog.deliveries`.

    Raises: InputError when the file or folder cannot be used, or a required band is missing.
    """
    if Path(path).is_dir():
        return _folder_item(Path(path), sensor, time_utc=time_utc)
    info = describe_raster(path)
    baseline = info.tags.get("PROCESSING_BASELINE")
    time = time_utc or _taken(info)
    return _item(Path(name_of(str(path))).stem, info, _places(info, sensor), time=time, baseline=baseline)


def _taken(info: RasterInfo) -> datetime | None:
    """When the file says it was taken."""
    text = date_text(info.tags)
    if text and info.time_utc is None:
        raise InputError(
            f"{info.path}: its date tag is `{text}`; expected 2018:09:11 01:23:45; correct or remove it, or pass "
            "--post-time or --pre-time"
        )
    return info.time_utc


def _folder_item(folder: Path, sensor: Sensor, *, time_utc: datetime | None) -> pystac.Item:
    """The item of a scene delivered as a folder with a file a band."""
    scene = find_delivery(folder, sensor)
    info = describe_raster(scene.files[sensor.bands[sensor.required[0]].assets[0]])
    places = {key: (str(path.resolve()), 1) for key, path in scene.files.items()}
    item = _item(folder.resolve().stem, info, places, time=time_utc or scene.time_utc, baseline=scene.baseline)
    for key, offset in scene.offsets.items():
        item.assets[key].extra_fields["raster:bands"][0]["offset"] = offset
    return item


def _item(
    name: str, info: RasterInfo, places: Mapping[str, tuple[str, int]], *, time: datetime | None, baseline: str | None
) -> pystac.Item:
    properties: dict[str, Any] = {LOCAL: True, "proj:wkt2": info.crs_wkt, "proj:shape": list(info.shape)}
    properties |= {"proj:transform": list(info.transform), "gsd": info.gsd_m}
    if baseline is not None:
        properties[BASELINE] = baseline
    if info.epsg:
        properties["proj:code"] = f"EPSG:{info.epsg}"
    bounds = west, south, east, north = info.lonlat_bounds
    outline = split_at_antimeridian(box(west, south, east if west <= east else east + 360, north))
    unknown = {} if time else {"start_datetime": ANY_TIME[0], "end_datetime": ANY_TIME[1]}
    item = pystac.Item(name, mapping(outline), list(bounds), time, {**properties, **unknown})
    for key, (href, index) in places.items():
        raster: dict[str, Any] = {"data_type": info.dtype} | ({} if info.nodata is None else {"nodata": info.nodata})
        if index and (info.scales[index - 1], info.offsets[index - 1]) != (1.0, 0.0):
            raster |= {"scale": info.scales[index - 1], "offset": info.offsets[index - 1]}
        item.add_asset(key, pystac.Asset(href, extra_fields={BAND_INDEX: index, "raster:bands": [raster]}))
    return item


def _places(info: RasterInfo, sensor: Sensor) -> dict[str, tuple[str, int]]:
    """By asset key: the file and the 1-based band (0 = a class folded from Planet's six UDM2 bands)."""
    href, found = absolute(info.path), find_bands(info, sensor)
    places = {source.assets[0]: (href, found[band]) for band, source in sensor.bands.items() if band in found}
    quality = sensor.qa_source
    if quality is None:
        return places
    if quality.variable in found:
        return places | {quality.assets[0]: (href, found[quality.variable])}
    beside = _sibling(href, quality)
    return places | ({quality.assets[0]: (beside, 0)} if beside else {})


def _sibling(path: str, quality: QaSource) -> str | None:
    """A file's quality file beside it, where there is one."""
    name = name_of(path)
    folder, _, query = path.rpartition(name)
    beside = (folder + name.replace(old, new) + query for old, new in quality.sibling if old in name)
    return next((other for other in beside if exists(other)), None)


def stored_items(path: str | Path, sensor: Sensor) -> tuple[pystac.Item, ...]:
    """Items of a file that holds a STAC Item or ItemCollection; their order is that of preference.

    An asset's href may be relative to the file, and lead to what lies beside it or below.

    Raises: InputError when the file is no such thing, or an item lacks a band or leads elsewhere than to files,
    http(s):// and s3://.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        listed = values["features"] if values.get("type") == "FeatureCollection" else [values]
        items = tuple(pystac.Item.from_dict(value) for value in listed)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pystac.STACError, pystac.STACTypeError) as error:
        raise InputError(
            f"{path}: cannot be read as STAC items ({type(error).__name__}: {error}); expected a STAC Item or "
            "ItemCollection"
        ) from None
    if not items:
        raise InputError(f"{path}: got an ItemCollection without items; expected at least one scene")
    for item in items:
        check_bands(item.id, list(item.assets), sensor, fix="choose the sensor that fits these items")
        for key in OURS:
            item.properties.pop(key, None)
        for asset in item.assets.values():
            asset.href = _placed(asset.href, Path(path), item_id=item.id)
    return items


def _placed(href: str, holder: Path, *, item_id: str) -> str:
    """Where an asset is, of an item that a file holds: an address, or a file in the holder's folder or below it."""
    if not is_url(href):
        folder = holder.resolve().parent
        place = (folder / href).resolve()
        if not place.is_relative_to(folder):
            raise InputError(
                f"{holder}: item {item_id} leads to {href!r:.200}; expected files beside it or below: others may not "
                "choose among all files; put it above its files, or give the files themselves"
            )
        return str(place)
    _check_address(href, item_id=item_id, holder=str(holder))
    return href


def _check_address(href: str, *, item_id: str, holder: str) -> None:
    parts = urlsplit(href)
    if parts.scheme not in READ_SCHEMES or "@" in parts.netloc:
        raise InputError(
            f"{holder}: item {item_id} leads to {href!r:.200}; expected a file, http(s):// or s3://, without a password"
        )


def hosts_within(items: Iterable[pystac.Item]) -> tuple[str, ...]:
    """The hosts that the items lead to, each once."""
    hrefs = (asset.href for item in items for asset in item.assets.values() if is_url(asset.href))
    return tuple(sorted({urlsplit(href).netloc for href in hrefs if urlsplit(href).scheme in READ_SCHEMES[:2]}))


def check_bands(item_id: str, assets: Sequence[str], sensor: Sensor, *, fix: str) -> None:
    """Raise when an item's assets (keys) lack a required band of the sensor.

    Raises: InputError naming the bands.
    """
    missing = [band for band in sensor.required if not set(sensor.bands[band].assets) & set(assets)]
    if missing:
        raise InputError(
            f"STAC item {item_id}: band(s) {', '.join(missing)} missing: got assets {', '.join(assets)}; "
            f"expected those of {sensor.name}; {fix}"
        )


def check_scales(item: Mapping[str, Any], sensor: Sensor) -> None:
    """Raise when an item (as a dictionary) states other numbers for its reflectance than the sensor's.

    Raises: InputError naming the asset.
    """
    if sensor.is_8bit:
        return
    for band, source in sensor.bands.items():
        said = band_fields(find_asset(item, source.assets) or {})
        scale, offset = float(said.get("scale") or source.scale), float(said.get("offset") or source.offset)
        fixed = sensor.offset_baseline is None
        other = fixed and abs(offset - source.offset) > OFFSET_TOLERANCE
        if other or not math.isclose(scale, source.scale, rel_tol=0.01):
            raise InputError(
                f"{item['id']}: {band} states reflectance = DN * {scale:g} {offset:+g}; sensor {sensor.name} expects "
                f"DN * {source.scale:g} {source.offset:+g}; choose the right --sensor, or convert the file"
            )


def search_stac(
    stac: StacConfig, *, sensor: Sensor, bbox: Bounds, start: datetime, end: datetime, hosts: Sequence[str]
) -> tuple[pystac.Item, ...]:
    """Items of a STAC API in the box (degrees) and time, with the sensor's required bands, in order of time.

    Items whose `eo:cloud_cover` is above the configured limit are left out; one that does not say it is kept. Only
    `hosts` are asked, also where an answer leads on.

    Raises: InputError when the API does not answer, has too many items or sends the question to another host, or an
    item lacks a band or leads elsewhere than to http(s):// and s3://.
    """
    url, login = without_login(stac.url)
    asked: dict[str, Any] = {"collection": stac.collection, "bbox": bbox, "datetime": [start, end]}
    try:
        listed, more = ask_api(url, hosts=hosts, timeout_s=TIMEOUT_S, login=login, **asked)
        found = [pystac.Item.from_dict(value) for value in listed]
    except (Unanswered, *NONSENSE) as error:
        raise InputError(f"STAC {stac.url}: no usable answer ({error}); check the address and the collection") from None
    if more:
        raise InputError(
            f"STAC {stac.url}: lists more than {len(found)} items; expected fewer; narrow the days or the "
            "area of interest"
        )
    clear = [item for item in found if (item.properties.get("eo:cloud_cover") or 0) <= stac.max_cloud_percent]
    for item in clear:
        check_bands(item.id, list(item.assets), sensor, fix=f"choose the sensor that fits collection {stac.collection}")
        for key in OURS:
            item.properties.pop(key, None)
        for asset in item.assets.values():
            _check_address(asset.href, item_id=item.id, holder=f"STAC {stac.url}")
    logger.info("STAC %s: %d items found, %d clear enough", stac.collection, len(found), len(clear))
    return tuple(sorted(clear, key=lambda item: item.datetime or start))


def band_files(item: Mapping[str, Any], sensor: Sensor) -> dict[str, list[int]]:
    """Each file that holds bands of a local item (as a dictionary), and which."""
    keys = {source.assets[0] for source in sensor.bands.values()}
    files: dict[str, list[int]] = {}
    for key, asset in item["assets"].items():
        if key in keys:
            files.setdefault(asset["href"], []).append(asset[BAND_INDEX])
    return files


def find_asset(item: Mapping[str, Any], keys: Sequence[str]) -> Mapping[str, Any] | None:
    """The first asset that is there, of an item as a dictionary; None when there is none."""
    return next((item["assets"][key] for key in keys if key in item["assets"]), None)
