"""Imagery and elevation in: items and a DEM become lazy Datasets on the event's GeoBox.

Local files and STAC searches are the same kind of item here (`catalog.items`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import dask.array as da
import numpy as np
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from pystac.utils import str_to_datetime

from catalog.files import absolute
from catalog.grid import Bounds
from catalog.heights import MIDDLE_PX, check_heights, metres_of
from catalog.identity import content_digest, input_of, origin_digest
from catalog.items import BAND_INDEX, LOCAL, find_asset
from catalog.opening import PERSON, Opening, open_raster
from catalog.rasters import RasterInfo, describe_raster
from catalog.sampling import Decoding, Method, sample
from catalog.schema import BANDS, ELEVATION, FloatArray, InputError
from catalog.sensors import COLLAR, OFFSET_REASON, QaRule, Sensor, band_fields, reflectance_offset, sensor

LAZY_CHUNK_PX: Final = 2048
"""About the side of what is read at once: a default block with its halo is one piece, and each file is opened once."""
OVERVIEW_PX: Final = 2048
"""Longest side of the reduced DEM that the decision on its zeros is made on."""

COLLAR_PX: Final = 2
"""Cells around zero-filled ones that are dropped: DEMs resampled over the fill ramp from 0 to the ground there."""

MIN_ZERO_SHARE: Final = 0.01
MIN_GROUND_M: Final = 100.0
UDM2_CLASSES: Final = (1, 2, 3, 4, 5, 6)

Role = Literal["pre", "post"]


# --- epochs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Epoch:
    """The scenes of one side of the event, in order of preference: plain values, fit to send to a worker."""

    role: Role
    sensor: str
    items: tuple[dict[str, Any], ...] = field(repr=False)  # addresses may be signed
    masks: tuple[str, ...] = field(default=(), repr=False)
    hosts: tuple[str, ...] = ()
    """Hosts that items of others may lead to."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the scenes."""
        return tuple(str(item["id"]) for item in self.items)

    @property
    def times_utc(self) -> tuple[datetime | None, ...]:
        """When each scene was taken; None = not known."""
        stamps = (item["properties"].get("datetime") for item in self.items)
        return tuple(str_to_datetime(stamp) if stamp else None for stamp in stamps)

    @property
    def time_range_utc(self) -> tuple[datetime, datetime] | None:
        """First and last scene; None when a time is not known."""
        times = [time if time.tzinfo else time.replace(tzinfo=UTC) for time in self.times_utc if time]
        return (min(times), max(times)) if len(times) == len(self.items) else None

    @property
    def bands(self) -> tuple[str, ...]:
        """Canonical bands that every scene has."""
        sources = sensor(self.sensor).bands
        return tuple(b for b in BANDS if b in sources and all(find_asset(i, sources[b].assets) for i in self.items))

    @property
    def qa_rules(self) -> tuple[QaRule, ...]:
        """By scene: the sensor's QA rule, or `none` where it came without its quality band."""
        entry = sensor(self.sensor)
        source = entry.qa_source
        return tuple(entry.qa if source and find_asset(item, source.assets) else "none" for item in self.items)

    def inputs(self) -> list[dict[str, str | None]]:
        """What the pixels came from, for the record: name and digest of each file, id and state of each STAC item."""
        told: list[dict[str, str | None]] = []
        for item in self.items:
            hrefs = sorted({str(asset["href"]) for asset in item["assets"].values()})
            if item["properties"].get(LOCAL):
                told += [input_of(href, role=self.role) for href in hrefs]
            else:
                told.append({"role": self.role, "path": str(item["id"]), "sha256": None, "updated": _state(item)})
        return told + [input_of(path, role=f"{self.role} mask") for path in self.masks]

    @property
    def radiometry(self) -> tuple[str, ...]:
        """Which offset each scene's reflectance got and why, where that was to be decided."""
        told = ((item["id"], item["properties"].get(OFFSET_REASON)) for item in self.items)
        return tuple(f"{name}: {reason}" for name, reason in told if reason)

    def as_dict(self) -> dict[str, Any]:
        """JSON-sized values."""
        return asdict(self)

    def fingerprint(self) -> str:
        """Digest (sha256, hex) of all that decides the pixels: what is read, how it is decoded, sensor and masks.

        It does not depend on where the files lie.
        """
        parts = [self.role, _plain(sensor(self.sensor)), *self.origins(), self.mask_digests()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def origins(self) -> list[list[Any]]:
        """What decides the values of each scene, JSON-sized, as it was when it was first asked for.

        Of each band the content of its file (of a STAC item's its id, and what it and the server say of its state), its
        place on earth and its decoding.
        """
        return self._origins

    def mask_digests(self) -> list[str]:
        """Digest of each mask's content."""
        return [content_digest(path) for path in self.masks]

    def footprints(self, epsg: int) -> list[Bounds]:
        """Bounds of each scene's raster in a CRS, m; read from the header of its first required band."""
        keys = sensor(self.sensor).bands[sensor(self.sensor).required[0]].assets
        found = [find_asset(item, keys) for item in self.items]
        return [
            describe_raster(str(asset["href"]), opening=self.opening(item)).bounds_in(epsg)
            for item, asset in zip(self.items, found, strict=True)
            if asset is not None
        ]

    def opening(self, item: Mapping[str, Any]) -> Opening:
        """How an item's files are opened: a person's own, or what others named."""
        return PERSON if item["properties"].get(LOCAL) else Opening(self.hosts)

    @cached_property
    def _origins(self) -> list[list[Any]]:
        return [self._origin(item) for item in self.items]

    def _origin(self, item: Mapping[str, Any]) -> list[Any]:
        """What decides the values of a scene: the files' content, their place on earth, and how they are decoded."""
        entry, opening = sensor(self.sensor), self.opening(item)
        read = {source.variable: source.assets for source in (entry.qa_source,) if source}
        read |= {band: entry.bands[band].assets for band in self.bands}
        assets = {name: asset for name, keys in read.items() if (asset := find_asset(item, keys)) is not None}
        files = {
            href: [origin_digest(href, opening), _placed(describe_raster(href, allow_geographic=True, opening=opening))]
            for href in sorted({str(asset["href"]) for asset in assets.values()})
        }
        decoded = [
            [name, files[str(asset["href"])], asset.get(BAND_INDEX), _decoding_of(item, entry, name, asset)]
            for name, asset in assets.items()
        ]
        named = [] if opening == PERSON else [item["id"], _state(item)]
        return [named, decoded]


def _state(item: Mapping[str, Any]) -> str | None:
    """When a STAC item was last changed, as it says."""
    stated = item["properties"].get("updated") or item["properties"].get("created")
    return None if stated is None else str(stated)


def _placed(info: RasterInfo) -> list[Any]:
    """What of a raster's header decides where its pixels lie and which of them count."""
    return [info.epsg or info.crs_wkt, info.transform, info.shape, info.count, info.dtype, repr(info.nodata)]


def _decoding_of(item: Mapping[str, Any], entry: Sensor, name: str, asset: Mapping[str, Any]) -> dict[str, Any] | None:
    """How a band is decoded; None for a quality band, which is read as it is."""
    return asdict(_decoding(item, entry, [(name, asset)])) if name in entry.bands else None


def _plain(entry: Sensor) -> list[Any]:
    bands = [[band, asdict(source)] for band, source in entry.bands.items()]
    return [
        entry.name,
        entry.dtype,
        entry.nodata,
        entry.qa,
        bands,
        asdict(entry.qa_source) if entry.qa_source else None,
    ]


def read_epoch(epoch: Epoch, geobox: GeoBox) -> list[xr.Dataset]:
    """One lazy Dataset a scene: the epoch's bands, its quality band where there is one, and `mask`.

    bands : (y, x) float32 reflectance (DN / 255 for pictures), NaN = nodata, or outside what the product can hold
    (`valid_range` of the contract). Quality band (`scl`, `qa_pixel` or `udm2`) : (y, x), raw. mask : (y, x) uint8, 1 =
    a mask file says not observed. Any piece of the GeoBox gives the same pixels as the whole.
    """
    coords = {name: coord for name, coord in xr_coords(geobox).items() if name in ("y", "x")}
    mask = _masks(epoch.masks, geobox)
    scenes = []
    for item in epoch.items:
        layers = _bands(item, epoch, geobox) | _quality(item, epoch, geobox) | {"mask": mask}
        variables = {name: (("y", "x"), layer) for name, layer in layers.items()}
        attrs = {"id": item["id"], "datetime": item["properties"].get("datetime") or ""}
        scenes.append(xr.Dataset(variables, coords, attrs))
    return scenes


def _bands(item: Mapping[str, Any], epoch: Epoch, geobox: GeoBox) -> dict[str, Any]:
    entry = sensor(epoch.sensor)
    by_file: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for band in epoch.bands:
        asset = find_asset(item, entry.bands[band].assets)
        if asset is not None:
            by_file.setdefault(asset["href"], []).append((band, asset))
    layers: dict[str, Any] = {}
    for href, members in by_file.items():
        stack = _lazy(href, geobox, decoding=_decoding(item, entry, members), opening=epoch.opening(item))
        layers |= {band: stack[i] for i, (band, _) in enumerate(members)}
    return layers


def _decoding(item: Mapping[str, Any], entry: Sensor, members: Sequence[tuple[str, Mapping[str, Any]]]) -> Decoding:
    stated = {band_fields(asset).get("nodata") for _, asset in members} - {None}
    properties = item["properties"]
    return Decoding(
        indexes=tuple(asset.get(BAND_INDEX, 1) for _, asset in members),
        scales=tuple(entry.bands[band].scale for band, _ in members),
        offsets=tuple(reflectance_offset(entry, b, properties=properties, asset=a) for b, a in members),
        nodata=_numbers([*stated, entry.nodata]),
        valid_range=BANDS[members[0][0]].valid_range,
        picture=entry.is_8bit,
        near_black=properties.get(COLLAR, 0) if entry.is_8bit else 0,
    )


def _numbers(stated: Iterable[Any]) -> tuple[float, ...]:
    return tuple(sorted({float(number) for number in stated if number is not None and not math.isnan(float(number))}))


def _quality(item: Mapping[str, Any], epoch: Epoch, geobox: GeoBox) -> dict[str, Any]:
    source = sensor(epoch.sensor).qa_source
    asset = find_asset(item, source.assets) if source else None
    if source is None or asset is None:
        return {}
    index = asset.get(BAND_INDEX, 0 if source.variable == "udm2" else 1)
    decoding = Decoding(
        indexes=(index,) if index else UDM2_CLASSES,
        scales=(1.0,) if index else (1.0,) * len(UDM2_CLASSES),
        offsets=(0.0,) if index else (0.0,) * len(UDM2_CLASSES),
    )
    stack = _lazy(
        asset["href"], geobox, decoding=decoding, method="nearest", fill=source.fill if index else 0,
        opening=epoch.opening(item),
    )  # fmt: skip
    layer = stack[0] if index else da.map_blocks(_fold_classes, stack, drop_axis=0, dtype=np.float32)  # type: ignore[no-untyped-call]
    return {source.variable: layer.astype(source.dtype)}


def _fold_classes(stack: FloatArray) -> FloatArray:
    """The number of the band that is set (the last, when several are), 0 for none."""
    numbers = np.arange(1, len(stack) + 1, dtype=np.float32)[:, None, None]
    return np.asarray(np.where(stack == 1, numbers, 0).max(axis=0), dtype=np.float32)


def _masks(paths: Sequence[str], geobox: GeoBox) -> Any:  # noqa: ANN401 - dask is untyped
    mask = da.zeros(tuple(geobox.shape), dtype=np.uint8, chunks=tuple(map(_cut, geobox.shape)))
    for path in paths:
        drawn = _lazy(path, geobox, decoding=Decoding((1,)), method="nearest", fill=0)[0]
        mask = da.maximum(mask, (drawn != 0).astype(np.uint8))
    return mask


def _lazy(
    path: str,
    geobox: GeoBox,
    *,
    decoding: Decoding,
    method: Method = "bilinear",
    fill: float = math.nan,
    opening: Opening = PERSON,
) -> Any:  # noqa: ANN401 - dask is untyped
    """`sample` as a lazy (bands, y, x) float32 array; each chunk reads the pixels it needs."""
    return da.map_blocks(  # type: ignore[no-untyped-call]
        _sample_chunk,
        chunks=((len(decoding.indexes),), *(_cut(size) for size in geobox.shape)),
        dtype=np.float32,
        meta=np.empty((0, 0, 0), np.float32),
        path=path,
        geobox=geobox,
        decoding=decoding,
        method=method,
        fill=fill,
        opening=opening,
    )


def _cut(size: int) -> tuple[int, ...]:
    """Sides of even pieces, none longer than one and a half times `LAZY_CHUNK_PX`.

    >>> _cut(2054), _cut(4103)
    ((2054,), (2052, 2051))
    """
    pieces = max(1, round(size / LAZY_CHUNK_PX))
    return tuple(size // pieces + (piece < size % pieces) for piece in range(pieces))


def _sample_chunk(
    *,
    path: str,
    geobox: GeoBox,
    decoding: Decoding,
    method: Method,
    fill: float,
    opening: Opening,
    block_info: Mapping[Any, Any] | None = None,
) -> FloatArray:
    if block_info is None:
        raise InputError(f"{path}: asked for a chunk without its place; expected to run as a block of a Dask array")
    _, (y0, y1), (x0, x1) = block_info[None]["array-location"]
    a, _, left, _, e, top = geobox.transform[:6]
    part = GeoBox((y1 - y0, x1 - x0), Affine(a, 0, left + x0 * a, 0, e, top + y0 * e), geobox.crs)
    return sample(path, part, decoding=decoding, method=method, fill=fill, opening=opening)


# --- elevation -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DemSource:
    """A DEM file and what was decided about it, once."""

    path: str = field(repr=False)
    gsd_m: float
    nodata: float | None
    zero_is_nodata: bool
    """It holds 0 where it has no data; cells next to those and at its border are dropped too."""
    fingerprint: str
    """Of its content."""
    scale: float = 1.0
    offset_m: float = 0.0
    """Elevation in metres = stored * scale + offset."""

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides its elevations: content and decoding, wherever it lies."""
        return {name: value for name, value in asdict(self).items() if name != "path"}


def describe_dem(path: str | Path, *, allow_geographic: bool = False) -> DemSource:
    """The DEM, with what makes its numbers metres, and the decision whether its zeros are ground.

    They are not when 0 is not the declared nodata, zeros touch the border, are more than 1 % of the cells, and 99 % of
    the others are above 100 m (not all: DEMs resampled over the fill ramp down to it).

    Raises: InputError when the file cannot be used.
    """
    info = describe_raster(path, allow_geographic=True)
    if info.crs.geographic and not allow_geographic:
        raise InputError(
            f"{path}: the DEM's CRS {info.crs_name} is geographic; expected metres; reproject it to the event's UTM "
            "zone, or pass --dem-reproject"
        )
    if info.count != 1 or info.dtype == "uint8":
        raise InputError(
            f"{path}: got {info.count} band(s) of {info.dtype}, which looks like a picture; expected a DEM: one band "
            "of elevations in metres, int16 or float32; give the elevation model with --dem (gdal_translate -b or -ot "
            "makes one of it where it is one)"
        )
    scale = max(1.0, max(info.shape) / OVERVIEW_PX)
    shape = tuple(max(1, round(size / scale)) for size in info.shape)
    scale_m, offset_m = metres_of(info)
    with open_raster(str(path)) as dataset:
        cells = dataset.read(1, out_shape=shape)
        middle = dataset.read(1, window=_middle(info.shape))
    heights, near = (_heights(part, info.nodata, scale_m, offset_m) for part in (cells, middle))
    check_heights(heights, near, info)
    decided = info.nodata != 0 and _zeros_are_fill(cells == 0, heights)
    return DemSource(
        absolute(str(path)), info.gsd_m, info.nodata, decided, content_digest(str(path)), scale_m, offset_m
    )


def _middle(shape: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns in the middle of a raster, from and up to."""
    (top, left), (rows, cols) = ((max(0, (n - MIDDLE_PX) // 2) for n in shape), (min(n, MIDDLE_PX) for n in shape))
    return (top, top + rows), (left, left + cols)


def _heights(stored: NDArray[Any], nodata: float | None, scale: float, offset_m: float) -> NDArray[np.float64]:
    """Metres, NaN = nodata."""
    metres = stored.astype(np.float64) * scale + offset_m
    return np.where((stored == nodata) | ~np.isfinite(metres), np.nan, metres)


def _zeros_are_fill(zero: NDArray[np.bool_], heights: NDArray[np.float64]) -> bool:
    ground = heights[~zero & np.isfinite(heights)]
    at_border = zero[[0, -1]].any() or zero[:, [0, -1]].any()
    if not at_border or zero.mean() <= MIN_ZERO_SHARE or not ground.size:
        return False
    return bool(np.percentile(ground, 1) > MIN_GROUND_M)


def read_elevation(dem: DemSource, geobox: GeoBox) -> xr.DataArray:
    """Elevation (y, x) float32, m, lazy, NaN = nodata; what lies outside the contract's range is nodata as well."""
    decoding = Decoding(
        (1,),
        scales=(dem.scale,),
        offsets=(dem.offset_m,),
        nodata=_numbers([dem.nodata]),
        valid_range=ELEVATION.valid_range,
        collar_px=COLLAR_PX if dem.zero_is_nodata else 0,
    )
    coords = {name: coord for name, coord in xr_coords(geobox).items() if name in ("y", "x")}
    layer = _lazy(dem.path, geobox, decoding=decoding)[0]
    return xr.DataArray(layer, coords, ("y", "x"), name=ELEVATION.name, attrs=ELEVATION.attrs())
