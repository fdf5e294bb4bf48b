"""A store's metadata: what every file of it must hold, put there whole, and put right where it was damaged.

They are decided by the store's reference alone, so what is there is compared with what must be, byte for byte; the
pixels stay, and are checked block by block against the ledger.
"""

from __future__ import annotations

import logging
import os
import posixpath
import shutil
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import dask.array as da
import rioxarray  # noqa: F401 - gives Datasets their `.rio`
import xarray as xr
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec

from catalog.encoding import empty_value
from catalog.files import filesystem, put_whole, sync
from catalog.ledger import entries_of, remove_entries
from catalog.refs import StoreRef

logger = logging.getLogger(__name__)

GRID_MAPPING: Final = "spatial_ref"
ROOT: Final = "zarr.json"
CODECS: Final = {"serializer": BytesCodec(endian="little"), "compressors": (ZstdCodec(level=0), Crc32cCodec())}
"""Each chunk carries its checksum: one that was damaged is not read."""


def create_store(ref: StoreRef) -> None:
    """Have the store's metadata where they belong; no data. Of several creators one wins, and all use its store.

    What differs from the contract is written anew, with a warning; a ledger without its store is cleared.
    """
    named = entries_of(ref)  # before the store is looked for: entries come after it
    fs, path = filesystem(ref.url)
    fs.invalidate_cache()
    wanted = metadata_of(ref)
    if fs.exists(path):
        _put_right(ref, wanted)
        return
    if named:
        logger.warning("%s is missing, though its ledger names %d blocks; they are made again", ref.url, len(named))
        remove_entries(ref, named)
    if ref.remote:
        _put(ref.url, wanted)
    else:
        _create_beside(Path(ref.url), wanted)


def metadata_of(ref: StoreRef) -> dict[str, bytes]:
    """Content of each file of the store's metadata and coordinates, by path; `spatial_ref` says where it lies (CF)."""
    geobox, block = ref.grid.geobox, ref.grid.block_px
    (y, *_), (x, *_) = (geobox.coordinates[name] for name in geobox.dimensions)
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
        coords={"y": ("y", y), "x": ("x", x)},
        attrs={"crs": f"EPSG:{ref.grid.epsg}", "gsd_m": ref.grid.gsd_m, "block_px": block, "key": ref.key},
    )
    template = template.rio.write_crs(ref.grid.epsg, grid_mapping_name=GRID_MAPPING)
    template = template.rio.write_transform(geobox.transform, grid_mapping_name=GRID_MAPPING)
    place = {"grid_mapping": GRID_MAPPING, "coordinates": GRID_MAPPING}  # CF; a coordinate for every reader
    for v in ref.variables:
        template[v.name].encoding = {
            **v.encoding(), **place, **CODECS, "chunks": (ref.chunk_px,) * 2, "shards": (block, block)
        }  # fmt: skip
    files: dict[str, Any] = {}
    template.to_zarr(zarr.storage.MemoryStore(files), mode="w", compute=False, zarr_format=3, consolidated=False)
    return {name: content.to_bytes() for name, content in files.items()}


def _create_beside(final: Path, wanted: dict[str, bytes]) -> None:
    """Write a store under another name, then rename it: that fails where another was first, whose store stays."""
    beside = final.with_name(f".{final.name}.{uuid4().hex}.part")
    try:
        _put(str(beside), wanted)
        try:
            os.rename(beside, final)
        except OSError:
            if not (final / ROOT).is_file():
                raise
        sync(final.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _put(url: str, files: dict[str, bytes]) -> None:
    """Write files, the root's metadata last: without them there is no store."""
    for name in sorted(files, key=lambda name: name == ROOT):
        put_whole(posixpath.join(url, name), files[name])


def _put_right(ref: StoreRef, wanted: dict[str, bytes]) -> None:
    """Write the files of a store that are missing, or hold something else, anew."""
    wrong = {name: content for name, content in wanted.items() if _held(posixpath.join(ref.url, name)) != content}
    for name in wrong:
        told = "%s is missing, damaged, or of another release; it is written anew"
        logger.warning(told, posixpath.join(ref.url, name))
    _put(ref.url, wrong)


def _held(url: str) -> bytes | None:
    fs, path = filesystem(url)
    try:
        content: bytes = fs.cat_file(path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    return content
