"""Everything that can be known to be wrong with the inputs of a run, said before any work starts."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import numpy as np
import pystac
import shapely
from shapely.geometry import box
from shapely.geometry.base import BaseGeometry
from shapely.ops import unary_union

from catalog.collars import with_collars
from catalog.config import DEFAULT_BLOCK_PX, Event, RunConfig
from catalog.coverage import check_coverage
from catalog.files import own_hosts, probe_root
from catalog.grid import Bounds, Grid, bbox_of, is_near_zone, is_utm, snap_grid, utm_epsg
from catalog.items import (
    BAND_INDEX,
    BASELINE,
    ITEM_SUFFIXES,
    LOCAL,
    band_files,
    check_scales,
    find_asset,
    hosts_within,
    local_item,
    search_stac,
    stored_items,
)
from catalog.offsets import with_offsets
from catalog.opening import open_raster
from catalog.outlines import Outlines, read_outlines
from catalog.pixel_size import check_size, choose_gsd_m
from catalog.pixels import check_mask, check_not_same, check_quality_band
from catalog.rasters import RasterInfo, describe_raster
from catalog.scenes import DemSource, Epoch, Role, describe_dem
from catalog.schema import InputError
from catalog.sensors import Sensor, sensor
from catalog.web import ANY_PUBLIC

SAMPLE_PX: Final = 512
"""Longest side of the reduced picture whose values are looked at."""

S2_OFFSET_SINCE: Final = datetime(2022, 1, 25, tzinfo=UTC)


@dataclass(frozen=True)
class Inputs:
    """What a run works on, checked."""

    grid: Grid
    post: Epoch
    pre: Epoch | None
    dem: DemSource | None
    aoi: BaseGeometry | None
    """Area of interest in the grid's CRS."""
    event: Event | None
    read: tuple[str, ...] = field(default=())
    """What was read of vector files, a sentence each."""
    not_used: tuple[str, ...] = field(default=())
    """What the run goes without, and what that means."""
    warnings: tuple[str, ...] = field(default=())


def check_inputs(config: RunConfig) -> Inputs:
    """The inputs of a run: its grid, epochs, DEM, area and event, with what is not used and what to be wary of.

    Raises: InputError, saying what, got, expected and fix, for the first input that cannot be worked with.
    """
    entry = sensor(config.sensor)
    area = read_outlines(config.aoi, what="area of interest") if config.aoi else None
    post, pre = _epoch("post", config, entry, area), _epoch("pre", config, entry, area)
    if post is None:
        raise InputError("post-event imagery: got none; pass --post FILE, or a `stac` section in the configuration")
    post_files, pre_files = _describe(post, entry), _describe(pre, entry) if pre else []
    if pre:
        check_not_same(pre, post)
    epochs, doubts = with_offsets([post, *([pre] if pre else [])])
    (post, *others), collars = with_collars(epochs)
    pre = others[0] if others else None
    grid, aoi = _grid(config, post_files, area)
    footprint = _footprint(post_files, grid.epsg)
    dem = describe_dem(config.dem, allow_geographic=config.dem_reproject) if config.dem else None
    _check_overlaps(config, pre_files, grid=grid, footprint=footprint, seen=aoi or footprint)
    check_coverage(post, grid, footprint=footprint, aoi=aoi, area=config.aoi or "")
    warnings = [*_check_times(config, post, pre), *doubts, *collars]
    for epoch in filter(None, (post, pre)):
        warnings += [*_warn_offsets(epoch, entry), *_warn_quality(epoch, entry)]
    warnings += _warn_partial(config, pre_files, grid=grid)
    check_places(config)
    read = (area.sentence,) if area else ()
    return Inputs(grid, post, pre, dem, aoi, config.event, read, _not_used(config, pre), tuple(warnings))


def check_scene(path: Path, *, sensor_name: str, block_px: int = DEFAULT_BLOCK_PX) -> tuple[Epoch, Grid]:
    """A post-event file as an epoch, and the grid of its own pixel size over it.

    Raises: InputError when a run with this sensor could not work with the file.
    """
    entry = sensor(sensor_name)
    epoch = Epoch("post", entry.name, (local_item(path, entry).to_dict(transform_hrefs=False),))
    (info,) = _describe(epoch, entry)
    (epoch,), _ = with_collars(with_offsets([epoch])[0])
    epsg = _epsg(info)
    bounds = _footprint([info], epsg).bounds
    return epoch, snap_grid(bounds, epsg=epsg, gsd_m=info.gsd_m, block_px=block_px)


def check_places(config: RunConfig) -> None:
    """Raise when stores or products could not be written where they are to go. Nothing is left behind.

    Raises: InputError naming the flag.
    """
    if "://" in config.out:
        raise InputError(f"--out {config.out}: got an address; expected a folder: products are local files")
    for flag, place in (("--out", config.out), ("--root", config.root)):
        if "://" in place:
            probe_root(place)
            continue
        there = next(path for path in (Path(place).absolute(), *Path(place).absolute().parents) if path.exists())
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            raise InputError(
                f"{flag} {place}: cannot be written ({error.strerror}: {there}); expected a folder, or a place where "
                "one can be made"
            ) from None


# --- epochs ----------------------------------------------------------------------------------------------------------


def _epoch(role: Role, config: RunConfig, entry: Sensor, aoi: Outlines | None) -> Epoch | None:
    files, masks, time = (
        (config.post, config.mask, config.post_time_utc)
        if role == "post"
        else (config.pre, config.pre_mask, config.pre_time_utc)
    )
    if files:
        time = _aware(time) if time else None
        items: Sequence[pystac.Item] = [item for path in files for item in _items_of(path, entry, time)]
        named = hosts_within(items)  # by files that a person gave
    elif config.stac is not None:
        items = _search(role, config, entry, aoi)
        own = urlsplit(config.stac.url)
        beside = (host for host in hosts_within(items) if host.partition(":")[0] == own.hostname)
        named = (own_hosts(config.stac.url)[0], *beside)
    else:
        return None
    hosts = config.hosts or (*named, ANY_PUBLIC)
    return Epoch(role, entry.name, tuple(item.to_dict(transform_hrefs=False) for item in items), tuple(masks), hosts)


def _items_of(path: str, entry: Sensor, time_utc: datetime | None) -> tuple[pystac.Item, ...]:
    """One item of a raster or folder, or those that a JSON file holds."""
    if Path(path).suffix.lower() in ITEM_SUFFIXES:
        return stored_items(path, entry)
    return (local_item(path, entry, time_utc=time_utc),)


def _search(role: Role, config: RunConfig, entry: Sensor, aoi: Outlines | None) -> list[pystac.Item]:
    event, stac = config.event, config.stac
    if stac is None or event is None or event.time_utc is None:
        raise InputError("STAC search: got no event time; expected when to look; pass --event ID or an event file")
    if aoi is None:
        raise InputError("STAC search: got no area of interest; expected where to look; pass --aoi FILE")
    before, after = timedelta(days=stac.days_before), timedelta(days=stac.days_after)
    start, end = (
        (event.time_utc - before, event.time_utc) if role == "pre" else (event.time_utc, event.time_utc + after)
    )
    bbox = bbox_of(shapely.get_coordinates(aoi.in_crs(4326).geometry).T)
    own, public = own_hosts(stac.url)
    hosts = (own, *(config.hosts or (public,)))
    found = search_stac(stac, sensor=entry, bbox=bbox, start=start, end=end, hosts=hosts)
    if not found:
        raise InputError(
            f"STAC search for {role}-event imagery: nothing in {stac.collection} from {start:%Y-%m-%d} to "
            f"{end:%Y-%m-%d} under {stac.max_cloud_percent:g} % cloud; widen the days or the cloud limit"
        )
    return list(reversed(found)) if role == "pre" else list(found)  # the nearest to the event is preferred


def _describe(epoch: Epoch, entry: Sensor) -> list[RasterInfo]:
    """The raster of each scene's first required band, its values looked at."""
    infos = []
    for item in epoch.items:
        asset = next(item["assets"][key] for key in entry.bands[entry.required[0]].assets if key in item["assets"])
        infos.append(describe_raster(asset["href"], opening=epoch.opening(item)))
        check_scales(item, entry)
        if item["properties"].get(LOCAL):
            for path, indexes in band_files(item, entry).items():
                _check_values(describe_raster(path), entry, indexes=indexes)
            quality = find_asset(item, entry.qa_source.assets) if entry.qa_source else None
            if quality is not None:
                check_quality_band(describe_raster(quality["href"]), entry, quality[BAND_INDEX])
    return infos


def _check_values(info: RasterInfo, entry: Sensor, *, indexes: list[int]) -> None:
    if info.dtype != entry.dtype:
        raise InputError(
            f"{info.path}: got {info.dtype}; sensor {entry.name} expects {entry.dtype}; choose the right --sensor, or "
            "convert the file (gdal_translate)"
        )
    scale = max(1.0, max(info.shape) / SAMPLE_PX)
    shape = (len(indexes), *(max(1, round(size / scale)) for size in info.shape))
    with open_raster(info.path) as dataset:
        values = dataset.read(indexes, out_shape=shape)
    holds = (values != (entry.nodata or 0)) & (values != (0 if info.nodata is None else info.nodata))
    valid = values[holds]
    if not valid.size:
        raise InputError(f"{info.path}: holds no valid pixel; expected imagery; check the file")
    if entry.dtype == "uint16" and valid.max() <= 255:
        raise InputError(
            f"{info.path}: looks like 8-bit: its largest value is {valid.max()}; sensor {entry.name} expects surface "
            "reflectance; use the rgb8 or rgbnir8 sensor on a uint8 file, or the original product"
        )
    low, high = entry.dn_range
    typical = np.median(valid)
    brightest = max(np.median(band[seen]) for band, seen in zip(values, holds, strict=True) if seen.any())
    if typical < low or brightest > high:
        got = f"below {low} (median {typical:.0f})" if typical < low else f"above {high} (median {brightest:.0f})"
        raise InputError(
            f"{info.path}: half of its values are {got}; sensor {entry.name} expects DN with reflectance = DN * "
            f"{entry.bands['red'].scale:g} {entry.bands['red'].offset:+g}; choose the right --sensor, or the surface "
            "reflectance product"
        )


# --- place -----------------------------------------------------------------------------------------------------------


def _grid(config: RunConfig, files: Sequence[RasterInfo], area: Outlines | None) -> tuple[Grid, BaseGeometry | None]:
    """The grid over the union of the post footprints, cut by the area of interest, which is returned in its CRS."""
    epsg = _epsg(files[0])
    footprint = _footprint(files, epsg)
    bounds, aoi = footprint.bounds, None
    if area is not None:
        aoi = area.in_crs(epsg).geometry.union_all()
        common = aoi.intersection(footprint)
        if common.area == 0:
            raise InputError(
                f"{config.aoi}: the area of interest (bounds {_round(aoi.bounds)} in EPSG:{epsg}) does not overlap the "
                f"post-event imagery ({_round(footprint.bounds)}); give the area of this event"
            )
        bounds = common.bounds
    gsd_m = choose_gsd_m(files, stated=config.gsd_m)
    grid = snap_grid(bounds, epsg=epsg, gsd_m=gsd_m, block_px=config.block_px)
    return check_size(grid, stated=config.gsd_m), aoi


def _epsg(info: RasterInfo) -> int:
    """The imagery's own CRS when it is a WGS 84 UTM zone near it, else the zone of its centre."""
    lon, lat = info.centre_lonlat
    if info.epsg is not None and is_utm(info.epsg) and is_near_zone(info.epsg, lon):
        return info.epsg
    return utm_epsg(lon, lat)


def _footprint(files: Sequence[RasterInfo], epsg: int) -> BaseGeometry:
    return unary_union([box(*(info.bounds if info.epsg == epsg else info.bounds_in(epsg))) for info in files])


def _round(bounds: Bounds) -> tuple[int, ...]:
    return tuple(round(value) for value in bounds)


def _scene_box(grid: Grid) -> BaseGeometry:
    bounds = grid.geobox_of(grid.scene).boundingbox
    return box(bounds.left, bounds.bottom, bounds.right, bounds.top)


def _check_overlaps(
    config: RunConfig, pre: Sequence[RasterInfo], *, grid: Grid, footprint: BaseGeometry, seen: BaseGeometry
) -> None:
    """Raise where pre imagery, DEM or masks show other ground than the one to process."""
    area = footprint.intersection(seen)
    parts = [("pre-event imagery", pre)]
    parts += [("DEM", [describe_raster(config.dem, allow_geographic=True)])] if config.dem else []
    for flag, paths in (("--mask", config.mask), ("--pre-mask", config.pre_mask)):
        for path in paths:
            check_mask(mask := describe_raster(path, allow_geographic=True), flag)
            parts.append(("mask", [mask]))
    for what, infos in parts:
        if infos and _footprint(infos, grid.epsg).intersection(area).area == 0:
            raise InputError(
                f"{infos[0].path}: the {what} does not overlap the area to process: got bounds "
                f"{_round(_footprint(infos, grid.epsg).bounds)}; expected a part of {_round(area.bounds)} in "
                f"EPSG:{grid.epsg}; give the {what} of this place"
            )


def _warn_partial(config: RunConfig, pre: Sequence[RasterInfo], *, grid: Grid) -> list[str]:
    scene = _scene_box(grid)
    parts = [("pre-event imagery", pre)]
    parts += [("DEM", [describe_raster(config.dem, allow_geographic=True)])] if config.dem else []
    told = []
    for what, infos in parts:
        share = _footprint(infos, grid.epsg).intersection(scene).area / scene.area if infos else 1.0
        if share < 0.99:
            told.append(f"the {what} covers {share:.0%} of the area to process: the rest is mapped without it")
    return told


# --- time and words --------------------------------------------------------------------------------------------------


def _aware(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _check_times(config: RunConfig, post: Epoch, pre: Epoch | None) -> list[str]:
    """Warnings for times that are not known; raises where post is not after, or pre not before, the event."""
    event_time = config.event.time_utc if config.event else None
    told = []
    for epoch in filter(None, (post, pre)):
        if epoch.time_range_utc is None:
            told.append(
                f"the time of the {epoch.role}-event imagery is not known: its order was not checked; "
                f"pass --{epoch.role}-time"
            )
    after, before = post.time_range_utc, pre.time_range_utc if pre else None
    if event_time and after and after[0] <= event_time:
        raise InputError(_wrong_order("post", after[0], "after the event", event_time))
    if event_time and before and before[1] >= event_time:
        raise InputError(_wrong_order("pre", before[1], "before the event", event_time))
    if after and before and before[1] >= after[0]:
        raise InputError(_wrong_order("pre", before[1], "before the post-event imagery", after[0]))
    return told


def _wrong_order(role: Role, got: datetime, expected: str, limit: datetime) -> str:
    return (
        f"{role}-event imagery: got a scene of {got:%Y-%m-%d %H:%M} UTC; expected {expected} of {limit:%Y-%m-%d %H:%M} "
        f"UTC; swap the files, or correct the time with --{role}-time"
    )


def _warn_offsets(epoch: Epoch, entry: Sensor) -> list[str]:
    """Sentinel-2 files that do not say whether their DN carry the offset of baseline 04.00."""
    if entry.offset_baseline is None:
        return []
    major, minor = entry.offset_baseline
    return [
        f"{item['id']}: its processing baseline is not known: its DN are taken to be without the -1000 offset of "
        f"baseline {major:02d}.{minor:02d}; set the tag PROCESSING_BASELINE in the file if they carry it"
        for item, time in zip(epoch.items, epoch.times_utc, strict=True)
        if item["properties"].get(LOCAL) and BASELINE not in item["properties"]
        if time is None or _aware(time) >= S2_OFFSET_SINCE
    ]


def _warn_quality(epoch: Epoch, entry: Sensor) -> list[str]:
    """Scenes without the quality band that their sensor has: their clouds are looked for as in a plain picture."""
    source = entry.qa_source
    if source is None:
        return []
    where = f"a {source.sibling[0][1]} file beside it" if source.sibling else f"band {source.index}"
    return [
        f"{item['id']}: has no quality band ({source.assets[0]}): only bright white cloud is masked in it, and neither "
        f"shadow nor snow; give it ({where}, or a band of that name), or draw clouds and pass "
        f"--{'pre-mask' if epoch.role == 'pre' else 'mask'}"
        for item, rule in zip(epoch.items, epoch.qa_rules, strict=True)
        if rule == "none"
    ]


def _not_used(config: RunConfig, pre: Epoch | None) -> tuple[str, ...]:
    told = {
        "no pre-event imagery: change detection is not used; old bare ground can be mistaken for landslides": pre,
        "no DEM: slope and terrain are not used; flat ground is not ruled out": config.dem,
        "no area of interest: the whole post-event imagery is processed": config.aoi,
        "no event: times and distances to the epicentre are not used": config.event,
    }
    return tuple(sentence for sentence, given in told.items() if given is None)
