"""Blocks that are taken over from an earlier store of the same step instead of being made again.

A ledger's entry says what its block was made of: what a new scene does not touch is not computed twice.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import fsspec
import numpy as np

from catalog.files import filesystem
from catalog.grid import Block
from catalog.store import StoreRef, shard_of, write_entry


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
    fs, folder = filesystem(posixpath.join(ref.root, ref.event_id))
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
    fs, path = filesystem(ref.url)
    _, source = filesystem(replace(ref, key=str(found["key"])).url)
    for variable in ref.variables:
        shards = (
            posixpath.join(store, variable.name, "c", *map(str, place))
            for store, place in ((source, found["shard"]), (path, shard_of(ref.grid, block)))
        )
        _copy_file(fs, *shards)
    entry = {key: found[key] for key in ("block", "sha256", "bytes", "inputs")} | {
        "key": ref.key,
        "shard": shard_of(ref.grid, block),
        "taken_from": found["key"],
        "write_s": round(time.perf_counter() - started, 3),
    }
    write_entry(ref, block.id, entry)
    return entry


def _copy_file(fs: fsspec.AbstractFileSystem, source: str, target: str) -> None:
    if fs.exists(source):
        fs.makedirs(posixpath.dirname(target), exist_ok=True)
        fs.cp_file(source, target)
    elif fs.exists(target):
        fs.rm_file(target)
