"""Where the blocks live: one Zarr v3 store a step, shards = blocks, a ledger of finished blocks, completeness last.

A store's key is a hash of everything its content depends on, so a store is never stale: other inputs make another
store. The ledger entry of a block is written after the block; `complete` is written when the ledger is full. Nothing
else means done. What is read is what was written: a file that is missing or damaged is an error, never nodata.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import dask
import dask.array as da
import geopandas as gpd
import numpy as np
import xarray as xr
import zarr
from zarr.storage import WrapperStore

from catalog.creation import create_store
from catalog.encoding import decode, empty_value, encode
from catalog.files import storage_options, sync
from catalog.grid import Block, Grid, Window
from catalog.ledger import (
    damage_of,
    digest_of,
    discard_blocks,
    discard_void_entries,
    is_complete,
    mark_complete,
    pending_blocks,
    read_ledger,
    write_entry,
)
from catalog.refs import StoreRef, shard_of, shard_url, store_key
from catalog.schema import StoreError, Variable

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

__all__ = [
    "StoreRef", "create_store", "damage_of", "discard_blocks", "discard_void_entries", "is_complete", "mark_complete",
    "open_store", "pending_blocks", "picks", "read_block", "read_ledger", "read_points", "read_sample", "read_window",
    "sample_places", "shard_of", "store_key", "write_block", "write_entry",
]  # fmt: skip

logger = logging.getLogger(__name__)

SAMPLE_PIXELS: Final = 400_000


def _zarr_store(url: str) -> Any:  # noqa: ANN401 - zarr.abc.store.Store
    if "://" not in url:
        return zarr.storage.LocalStore(url)
    return zarr.storage.FsspecStore.from_url(url, storage_options={"asynchronous": True, **storage_options(url)})


class Whole(WrapperStore[Any]):
    """A Zarr store whose every shard is there: Zarr would take one that is missing, or empty, for nodata."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Bytes of a file. Raises: StoreError where a shard has none."""
        found: Buffer | None = await self._store.get(key, prototype, byte_range)
        if "/c/" in key and (found is None or not len(found)):
            raise StoreError(f"{key} is missing")
        return found


class Blank(WrapperStore[Any]):
    """A Zarr store that is written over: Zarr would first read the shard that lies there, and fail at a damaged one."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Bytes of a file that is no shard."""
        if "/c/" in key:
            return None
        found: Buffer | None = await self._store.get(key, prototype, byte_range)
        return found


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
    group = zarr.open_group(Blank(_zarr_store(ref.url)), mode="r+")
    written, digests = 0, {}
    for variable in ref.variables:
        stored = encode(variable, computed[variable.name].values, where=f"{ref.key} block {block.id}")
        array = group[variable.name]
        if not isinstance(array, zarr.Array):
            raise StoreError(f"{ref.key}: {variable.name} is no array; delete {ref.url}")
        array.with_config({"write_empty_chunks": True})[window.slices] = stored
        digests[variable.name] = _settle(ref, shard_url(ref, variable, block))
        written += stored.nbytes
    values = {
        "block": block.id,
        "sha256": digests,
        "bytes": written,
        "shard": shard_of(ref.grid, block),
        **(record or {}),
        "write_s": round(time.perf_counter() - started, 3),
    }
    return write_entry(ref, block.id, values)


def _settle(ref: StoreRef, url: str) -> str:
    """The digest of a shard that was just written, once the disk holds it and the names that lead to it."""
    if not ref.remote:
        path = Path(url)
        for place in (path, *path.parents[:3]):
            sync(place)
    return digest_of(url)


def open_store(ref: StoreRef) -> xr.Dataset:
    """The store as a lazy Dataset, one Dask chunk a block, floats decoded to float32 with NaN.

    Raises: StoreError when it is not complete.
    """
    if not is_complete(ref):
        raise StoreError(f"{ref.url} is not complete; re-run the step that writes it")
    dataset, block = _open(ref).chunk(), ref.grid.block_px
    chunks = tuple((block,) * (side // block) for side in ref.grid.shape)
    for variable in ref.variables:
        values = da.map_blocks(  # type: ignore[no-untyped-call]
            partial(_read_chunk, ref, variable), chunks=chunks, dtype=variable.memory_dtype,
            meta=np.empty((0, 0), variable.memory_dtype),
        )  # fmt: skip
        dataset[variable.name] = xr.DataArray(values, dims=variable.dims, attrs=variable.attrs())
    return dataset


def _read_chunk(ref: StoreRef, variable: Variable, *, block_info: Any) -> np.ndarray[Any, Any]:  # noqa: ANN401 - of Dask
    rows, cols = (slice(*span) for span in block_info[None]["array-location"])
    return decode(variable, _load(ref, _open(ref)[[variable.name]].isel(y=rows, x=cols))[variable.name].values)


def _open(ref: StoreRef) -> xr.Dataset:
    """The store as it is on disk: not decoded."""
    try:
        dataset = xr.open_zarr(Whole(_zarr_store(ref.url)), chunks=None, consolidated=False, mask_and_scale=False)
        picked: xr.Dataset = dataset[list(ref.names)]
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise _damaged(ref, error) from error
    return picked


def _load(ref: StoreRef, part: xr.Dataset) -> xr.Dataset:
    """A part of the store in memory. Raises: StoreError where a shard is missing or damaged."""
    try:
        return part.load()
    except (StoreError, ValueError) as error:
        raise _damaged(ref, error) from error


def _damaged(ref: StoreRef, error: Exception) -> StoreError:
    return StoreError(
        f"{ref.url}: was damaged while it was in use ({error}); run the same command again: what is damaged is found "
        "and made anew"
    )


def read_window(ref: StoreRef, window: Window) -> xr.Dataset:
    """The pixels of a window in memory; outside the grid they are nodata."""
    inside = window.intersect(Window(0, 0, *ref.grid.shape))
    rows, cols = inside.slices
    part = _load(ref, _open(ref).isel(y=rows, x=cols))
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
            part = _load(ref, dataset[[variable.name]].isel(y=y, x=x))
            values[to_y, to_x] = decode(variable, part[variable.name].values)
    geobox = ref.grid.geobox
    picked = zip(geobox.dimensions, (rows, cols), strict=True)
    places = {name: geobox.coordinates[name].values[at] for name, at in picked}
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
