"""Where the blocks live: one Zarr v3 store a step, shards = blocks, a ledger of finished blocks, completeness last.

A store's key is a hash of everything its content depends on, so a store is never stale: other inputs make another
store. The ledger entry of a block is written after the block; `complete` is written when the ledger is full. Nothing
else means done.
"""

from __future__ import annotations

import hashlib
import json
import logging
import posixpath
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import dask
import dask.array as da
import geopandas as gpd
import numpy as np
import rioxarray  # noqa: F401 - gives Datasets their `.rio`
import xarray as xr
import zarr

from catalog.encoding import decode, empty_value, encode
from catalog.files import filesystem, storage_options
from catalog.grid import Block, Grid, Window
from catalog.schema import StoreError, Variable

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


def _zarr_store(url: str) -> Any:  # noqa: ANN401 - zarr.abc.store.Store
    if "://" not in url:
        return zarr.storage.LocalStore(url)
    return zarr.storage.FsspecStore.from_url(url, storage_options={"asynchronous": True, **storage_options(url)})


def create_store(ref: StoreRef) -> None:
    """Write the store's metadata (no data) unless it is there already; `spatial_ref` says where it lies (CF)."""
    fs, path = filesystem(ref.url)
    if fs.exists(posixpath.join(path, "zarr.json")):
        return
    geobox = ref.grid.geobox
    y, x = (geobox.coordinates[name] for name in geobox.dimensions)
    block = ref.grid.block_px
    arrays = {
        v.name: xr.DataArray(
            da.full(  # type: ignore[no-untyped-call]
                ref.grid.shape, empty_value(v), dtype=v.memory_dtype, chunks=block
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
        "shard": shard_of(ref.grid, block),
        **(record or {}),
        "write_s": round(time.perf_counter() - started, 3),
    }
    write_entry(ref, block.id, entry)
    return entry


def shard_of(grid: Grid, block: Block) -> list[int]:
    """Row and column of a block's shard in its store."""
    return [block.row - grid.row0 // grid.block_px, block.col - grid.col0 // grid.block_px]


def write_entry(ref: StoreRef, name: str, values: Mapping[str, Any]) -> None:
    """Write an entry of the ledger, whole or not at all."""
    fs, path = filesystem(ref.ledger_url)
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
    fs, path = filesystem(ref.ledger_url)
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
    write_entry(ref, COMPLETE, {"key": ref.key, "blocks": len(ref.grid.blocks)})


def is_complete(ref: StoreRef) -> bool:
    """True when the store said it is done."""
    fs, path = filesystem(ref.ledger_url)
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
        full = np.full(window.shape, empty_value(variable), dtype=variable.memory_dtype)
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
    values = np.full(len(points), empty_value(variable), variable.memory_dtype)
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
    rows, cols = sample_places(ref.grid, max_pixels=max_pixels)
    dataset = _open(ref)
    sampled = {v: np.empty((len(rows), len(cols)), v.memory_dtype) for v in ref.variables}
    for block in ref.grid.blocks:
        inside = ref.grid.window(block).intersect(ref.grid.scene)
        (y, to_y), (x, to_x) = (picks(*axis) for axis in zip((rows, cols), inside.slices, strict=True))
        for variable, values in sampled.items():
            values[to_y, to_x] = decode(variable, dataset[variable.name].isel(y=y, x=x).values)
    places = {"y": dataset["y"].values[rows], "x": dataset["x"].values[cols]}
    return xr.Dataset({v.name: (("y", "x"), values) for v, values in sampled.items()}, coords=places)


def sample_places(grid: Grid, *, max_pixels: int = SAMPLE_PIXELS) -> tuple[range, range]:
    """Rows and columns of a grid, relative to its top-left pixel, that `read_sample` takes."""
    scene = grid.scene
    step = max(1, int(np.ceil(np.sqrt(scene.shape[0] * scene.shape[1] / max_pixels))))
    return range(scene.y0, scene.y1, step), range(scene.x0, scene.x1, step)


def picks(places: range, span: slice) -> tuple[slice, slice]:
    """Those of `places` that lie in `span`: where they are in the store, and where in the sample.

    >>> picks(range(5, 40, 10), slice(10, 30))
    (slice(15, 30, 10), slice(1, 3, None))
    """
    first, last = (-(-(edge - places.start) // places.step) for edge in (span.start, span.stop))
    return slice(places.start + first * places.step, span.stop, places.step), slice(first, last)
