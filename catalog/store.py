"""Where the blocks live: one Zarr v3 store a step, shards = blocks, a ledger of finished blocks, completeness last.

A store's key is a hash of everything its content depends on, so a store is never stale: other inputs make another
store. The ledger entry of a block is written after the block; `complete` is written when the ledger is full. Nothing
else means done.

An entry also says what its block was made of. A later store of the same step takes a block that would be made of the
same over instead of making it again: what a new scene does not touch is not computed twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import posixpath
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final
from uuid import uuid4

import dask
import dask.array as da
import fsspec
import geopandas as gpd
import numpy as np
import rioxarray  # noqa: F401 - gives Datasets their `.rio`
import xarray as xr
import zarr
from botocore.exceptions import BotoCoreError

from catalog.config import environment
from catalog.grid import Block, Grid, Window
from catalog.schema import InputError, StoreError, Variable

logger = logging.getLogger(__name__)

COMPLETE: Final = "complete"
GRID_MAPPING: Final = "spatial_ref"
SAMPLE_PIXELS: Final = 400_000


@dataclass(frozen=True)
class StoreRef:
    """The address of one step's store and its contract; small, picklable: what tasks pass to each other."""

    root: str
    event_id: str
    key: str
    grid: Grid
    variables: tuple[Variable, ...]
    chunk_px: int
    version: int = 1
    """Of the algorithm that fills it."""

    @property
    def step(self) -> str:
        """The step that the store belongs to."""
        return self.key.rpartition("-")[0]

    @property
    def url(self) -> str:
        """Folder or object prefix of the Zarr store."""
        return posixpath.join(self.root, self.event_id, f"{self.key}.zarr")

    @property
    def ledger_url(self) -> str:
        """Folder or prefix of the ledger, beside the store: Zarr takes every file inside for its own."""
        return posixpath.join(self.root, self.event_id, f"{self.key}.ledger")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the variables."""
        return tuple(v.name for v in self.variables)


def store_key(step: str, *, version: int, depends_on: Mapping[str, Any]) -> str:
    """`<step>-<12 hex digits>`: the same for the same algorithm version and dependencies, else another.

    >>> store_key("slope", version=1, depends_on={"dem": "ab"})[:6]
    'slope-'
    """
    text = json.dumps({"step": step, "version": version, **depends_on}, sort_keys=True, default=str)
    return f"{step}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def storage_options(url: str) -> dict[str, Any]:
    """Fsspec options: an S3 endpoint other than AWS comes from LANDSLIDENET_S3_ENDPOINT."""
    endpoint = environment("LANDSLIDENET_S3_ENDPOINT")
    return {"client_kwargs": {"endpoint_url": endpoint}} if url.startswith("s3://") and endpoint else {}


def _filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    fs, path = fsspec.core.url_to_fs(url, **storage_options(url))
    return fs, path


def _zarr_store(url: str) -> Any:  # noqa: ANN401 - zarr.abc.store.Store
    if "://" not in url:
        return zarr.storage.LocalStore(url)
    return zarr.storage.FsspecStore.from_url(url, storage_options={"asynchronous": True, **storage_options(url)})


def probe_root(root: str) -> None:
    """Write a tiny object below an address where stores are to go, and delete it.

    Raises: InputError when that is refused.
    """
    try:
        fs, path = _filesystem(posixpath.join(root, f".probe-{uuid4().hex}"))
        fs.pipe_file(path, b"")
        fs.rm_file(path)
    except (OSError, BotoCoreError, ImportError, ValueError) as error:
        raise InputError(
            f"--root {root}: cannot be written ({error}); expected a place where objects can be written and deleted; "
            "check the address, the credentials (AWS_ACCESS_KEY_ID and others) and LANDSLIDENET_S3_ENDPOINT"
        ) from None


def create_store(ref: StoreRef) -> None:
    """Write the store's metadata (no data) unless it is there already; `spatial_ref` says where it lies (CF)."""
    fs, path = _filesystem(ref.url)
    if fs.exists(posixpath.join(path, "zarr.json")):
        return
    geobox = ref.grid.geobox
    y, x = (geobox.coordinates[name] for name in geobox.dimensions)
    block = ref.grid.block_px
    arrays = {
        v.name: xr.DataArray(
            da.full(  # type: ignore[no-untyped-call]
                ref.grid.shape, _empty(v), dtype=v.memory_dtype, chunks=block
            ),
            dims=v.dims,
            attrs=v.attrs(),
        )
        for v in ref.variables
    }
    template = xr.Dataset(
        arrays,
        coords={"y": ("y", y.values), "x": ("x", x.values)},
        attrs={"crs": f"EPSG:{ref.grid.epsg}", "gsd_m": ref.grid.gsd_m, "block_px": block, "key": ref.key},
    )
    template = template.rio.write_crs(ref.grid.epsg, grid_mapping_name=GRID_MAPPING)
    template = template.rio.write_transform(geobox.transform, grid_mapping_name=GRID_MAPPING)
    place = {"grid_mapping": GRID_MAPPING, "coordinates": GRID_MAPPING}  # CF; a coordinate for every reader
    for v in ref.variables:
        template[v.name].encoding = {
            **v.encoding(), **place, "chunks": (ref.chunk_px,) * 2, "shards": (block, block)
        }  # fmt: skip
    template.to_zarr(_zarr_store(ref.url), mode="w", compute=False, zarr_format=3, consolidated=False)


def _empty(variable: Variable) -> float:
    return variable.nodata if variable.is_mask else np.nan


def write_block(
    ref: StoreRef, block: Block, data: xr.Dataset, *, record: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Compute `data` (exactly the block's pixels), write it as whole shards, then its ledger entry, which is returned.

    Raises: StoreError when the data are not the block's pixels, lack a variable, or leave a variable's valid range.
    """
    started = time.perf_counter()
    window = ref.grid.window(block)
    sizes = (data.sizes["y"], data.sizes["x"])
    if sizes != window.shape or window.y0 % ref.grid.block_px or window.x0 % ref.grid.block_px:
        raise StoreError(
            f"{ref.key} block {block.id}: got {sizes} px at {window.y0, window.x0}; expected whole blocks of "
            f"{ref.grid.block_px} px on block edges (unaligned writes corrupt sharded arrays)"
        )
    if missing := set(ref.names) - set(map(str, data.data_vars)):
        raise StoreError(f"{ref.key} block {block.id}: variables {sorted(missing)} are missing from what was computed")
    with dask.config.set(scheduler="synchronous"):
        computed = data[list(ref.names)].reset_coords(drop=True).compute()
    digest = hashlib.sha256()
    group = zarr.open_group(_zarr_store(ref.url), mode="r+")
    written = 0
    for variable in ref.variables:
        stored = encode(variable, computed[variable.name].values, where=f"{ref.key} block {block.id}")
        array = group[variable.name]
        if not isinstance(array, zarr.Array):
            raise StoreError(f"{ref.key}: {variable.name} is no array; delete {ref.url}")
        array[window.slices] = stored
        digest.update(stored.tobytes())
        written += stored.nbytes
    entry = {
        "block": block.id,
        "key": ref.key,
        "sha256": digest.hexdigest(),
        "bytes": written,
        "shard": _shard(ref.grid, block),
        **(record or {}),
        "write_s": round(time.perf_counter() - started, 3),
    }
    _write_json(ref, block.id, entry)
    return entry


def encode(variable: Variable, values: np.ndarray[Any, Any], *, where: str) -> np.ndarray[Any, Any]:
    """The stored integers or floats of values in memory. Raises: StoreError outside the valid range: never a clip."""
    if variable.is_mask:
        return np.ascontiguousarray(values, dtype=variable.dtype)
    low, high = variable.valid_range
    finite = np.isfinite(values)
    if finite.any() and (
        np.min(values, where=finite, initial=np.inf) < low - 1e-6
        or np.max(values, where=finite, initial=-np.inf) > high + 1e-6
    ):
        got = float(values[finite].min()), float(values[finite].max())
        raise StoreError(f"{where}: {variable.name} is {got} {variable.units}; expected within {variable.valid_range}")
    if variable.dtype == "float32":
        return np.ascontiguousarray(values, dtype=np.float32)
    scaled = np.rint((values.astype(np.float64) - variable.offset) / variable.scale)
    if variable.nodata == 0:
        scaled = np.maximum(scaled, 1)  # 0 means nodata: the darkest valid value is one step
    return np.where(finite, scaled, variable.nodata).astype(variable.dtype)


def decode(variable: Variable, stored: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The values in memory of what `encode` stored; scaled variables are float32, NaN = nodata.

    Computed in float64 and rounded once, without a float64 copy: the dtype of the computation is not that of the array.
    """
    if variable.memory_dtype == stored.dtype:
        return stored
    values = np.empty(stored.shape, variable.memory_dtype)
    np.multiply(stored, variable.scale, out=values, dtype=np.float64, casting="same_kind")
    values += variable.offset
    values[stored == variable.nodata] = np.nan
    return values


def inputs_digest(ref: StoreRef, block: Block, parts: Iterable[Any]) -> str:
    """Digest (sha256, hex) of all that a block's content depends on: its place, the contract, and `parts` in order.

    parts : arrays by their bytes, everything else by its JSON or, where it has none, its text.
    """
    grid = ref.grid
    place = [ref.step, ref.version, grid.epsg, grid.gsd_m, grid.block_px, ref.chunk_px, block.id]
    digest = hashlib.sha256(json.dumps([*place, [repr(v) for v in ref.variables]]).encode())
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def adopt_block(ref: StoreRef, block: Block, inputs: str) -> dict[str, Any] | None:
    """The ledger entry of a block that was taken over from another store of its event and step; None where none fits.

    inputs : what the block would be made of, as `inputs_digest` says it.
    """
    fs, folder = _filesystem(posixpath.join(ref.root, ref.event_id))
    fs.invalidate_cache()
    for path in sorted(fs.glob(posixpath.join(folder, f"{ref.step}-*.ledger", f"{block.id}.json"))):
        found = json.loads(fs.cat_file(path))
        store = posixpath.join(folder, f"{found['key']}.zarr", "zarr.json")
        if found["key"] != ref.key and found.get("inputs") == inputs and fs.exists(store):
            return _take_over(ref, block, found)
    return None


def _take_over(ref: StoreRef, block: Block, found: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the shards of a block, then write its entry. A shard without a file holds nodata only."""
    started = time.perf_counter()
    fs, path = _filesystem(ref.url)
    _, source = _filesystem(replace(ref, key=str(found["key"])).url)
    for variable in ref.variables:
        shards = (
            posixpath.join(store, variable.name, "c", *map(str, place))
            for store, place in ((source, found["shard"]), (path, _shard(ref.grid, block)))
        )
        _copy_file(fs, *shards)
    entry = {key: found[key] for key in ("block", "sha256", "bytes", "inputs")} | {
        "key": ref.key,
        "shard": _shard(ref.grid, block),
        "taken_from": found["key"],
        "write_s": round(time.perf_counter() - started, 3),
    }
    _write_json(ref, block.id, entry)
    return entry


def _copy_file(fs: fsspec.AbstractFileSystem, source: str, target: str) -> None:
    if fs.exists(source):
        fs.makedirs(posixpath.dirname(target), exist_ok=True)
        fs.cp_file(source, target)
    elif fs.exists(target):
        fs.rm_file(target)


def _shard(grid: Grid, block: Block) -> list[int]:
    """Row and column of a block's shard in its store."""
    return [block.row - grid.row0 // grid.block_px, block.col - grid.col0 // grid.block_px]


def _write_json(ref: StoreRef, name: str, values: Mapping[str, Any]) -> None:
    fs, path = _filesystem(ref.ledger_url)
    target = posixpath.join(path, f"{name}.json")
    fs.makedirs(path, exist_ok=True)
    payload = json.dumps(values, sort_keys=True).encode()
    if "://" in ref.root:
        fs.pipe_file(target, payload)
    else:
        fs.pipe_file(f"{target}.tmp", payload)
        fs.mv(f"{target}.tmp", target)


def read_ledger(ref: StoreRef) -> dict[str, dict[str, Any]]:
    """The finished blocks, by id. Entries of another key are refused."""
    fs, path = _filesystem(ref.ledger_url)
    fs.invalidate_cache()
    files = sorted(fs.glob(posixpath.join(path, "r*c*.json")))
    entries = [json.loads(fs.cat_file(name)) for name in files]
    if foreign := [e["block"] for e in entries if e["key"] != ref.key]:
        raise StoreError(f"{ref.url}: ledger entries of another key for blocks {foreign[:5]}; delete the store")
    return {entry["block"]: entry for entry in entries}


def pending_blocks(ref: StoreRef) -> tuple[Block, ...]:
    """The blocks that have no ledger entry yet."""
    done = read_ledger(ref)
    return tuple(block for block in ref.grid.blocks if block.id not in done)


def mark_complete(ref: StoreRef) -> None:
    """Say that the store is done. Raises: StoreError when blocks are missing from the ledger."""
    if missing := pending_blocks(ref):
        raise StoreError(f"{ref.key}: {len(missing)} blocks are not in the ledger, first {missing[0].id}")
    _write_json(ref, COMPLETE, {"key": ref.key, "blocks": len(ref.grid.blocks)})


def is_complete(ref: StoreRef) -> bool:
    """True when the store said it is done."""
    fs, path = _filesystem(ref.ledger_url)
    fs.invalidate_cache()
    return bool(fs.exists(posixpath.join(path, f"{COMPLETE}.json")))


def open_store(ref: StoreRef) -> xr.Dataset:
    """The store as a lazy Dataset, one Dask chunk a block, floats decoded to float32 with NaN.

    Raises: StoreError when it is not complete.
    """
    if not is_complete(ref):
        raise StoreError(f"{ref.url} is not complete; re-run the step that writes it")
    dataset = _open(ref).chunk({"y": ref.grid.block_px, "x": ref.grid.block_px})
    for variable in ref.variables:
        stored = dataset[variable.name]
        values = stored.data.map_blocks(partial(decode, variable), dtype=variable.memory_dtype)
        dataset[variable.name] = xr.DataArray(values, dims=stored.dims, attrs=variable.attrs())
    return dataset


def _open(ref: StoreRef) -> xr.Dataset:
    """The store as it is on disk: not decoded."""
    dataset = xr.open_zarr(_zarr_store(ref.url), chunks=None, consolidated=False, mask_and_scale=False)
    picked: xr.Dataset = dataset[list(ref.names)]
    return picked


def read_window(ref: StoreRef, window: Window) -> xr.Dataset:
    """The pixels of a window in memory; outside the grid they are nodata."""
    inside = window.intersect(Window(0, 0, *ref.grid.shape))
    rows, cols = inside.slices
    part = _open(ref).isel(y=rows, x=cols).load()
    arrays: dict[str, Any] = {}
    for variable in ref.variables:
        full = np.full(window.shape, _empty(variable), dtype=variable.memory_dtype)
        if not inside.empty:
            full[inside.shift(-window.y0, -window.x0).slices] = decode(variable, part[variable.name].values)
        arrays[variable.name] = (("y", "x"), full)
    geobox = ref.grid.geobox_of(window)
    y, x = (geobox.coordinates[name].values for name in geobox.dimensions)
    return xr.Dataset(arrays, coords={"y": y, "x": x})


def read_block(ref: StoreRef, block: Block, *, halo_px: int = 0) -> xr.Dataset:
    """The pixels of a block and its halo in memory."""
    return read_window(ref, ref.grid.window(block).expand(halo_px))


def read_points(ref: StoreRef, points: gpd.GeoSeries) -> np.ndarray[Any, Any]:
    """Values (n,) of the store's first variable at points in its CRS, a block at a time; nodata outside the grid."""
    variable, grid = ref.variables[0], ref.grid
    values = np.full(len(points), _empty(variable), variable.memory_dtype)
    rows = np.floor(-points.y.to_numpy() / grid.gsd_m).astype(int) - grid.row0
    cols = np.floor(points.x.to_numpy() / grid.gsd_m).astype(int) - grid.col0
    for block in grid.blocks:
        window = grid.window(block)
        inside = (rows >= window.y0) & (rows < window.y1) & (cols >= window.x0) & (cols < window.x1)
        if inside.any():
            data = read_block(ref, block)[variable.name].values
            values[inside] = data[rows[inside] - window.y0, cols[inside] - window.x0]
    return values


def read_sample(ref: StoreRef, *, max_pixels: int = SAMPLE_PIXELS) -> xr.Dataset:
    """Every k-th row and column of the scene, in memory: the same pixels whatever the block size.

    Read a block at a time: one strided read of the whole scene would hold all of its shards at once.
    """
    scene = ref.grid.scene
    step = max(1, int(np.ceil(np.sqrt(scene.shape[0] * scene.shape[1] / max_pixels))))
    rows, cols = range(scene.y0, scene.y1, step), range(scene.x0, scene.x1, step)
    dataset = _open(ref)
    sampled = {v: np.empty((len(rows), len(cols)), v.memory_dtype) for v in ref.variables}
    for block in ref.grid.blocks:
        inside = ref.grid.window(block).intersect(scene)
        (y, to_y), (x, to_x) = (_picks(*axis) for axis in zip((rows, cols), inside.slices, strict=True))
        for variable, values in sampled.items():
            values[to_y, to_x] = decode(variable, dataset[variable.name].isel(y=y, x=x).values)
    places = {"y": dataset["y"].values[rows], "x": dataset["x"].values[cols]}
    return xr.Dataset({v.name: (("y", "x"), values) for v, values in sampled.items()}, coords=places)


def _picks(places: range, span: slice) -> tuple[slice, slice]:
    """Those of `places` that lie in `span`: where they are in the store, and where in the sample.

    >>> _picks(range(5, 40, 10), slice(10, 30))
    (slice(15, 30, 10), slice(1, 3, None))
    """
    first, last = (-(-(edge - places.start) // places.step) for edge in (span.start, span.stop))
    return slice(places.start + first * places.step, span.stop, places.step), slice(first, last)
