"""Blocks that are taken over from an earlier store of the same step instead of being made again.

A ledger's entry says what its block was made of: what a new scene does not touch is not computed twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import posixpath
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from catalog.files import filesystem, names_in, put_whole
from catalog.grid import Block
from catalog.ledger import read_entry, write_entry
from catalog.refs import StoreRef, shard_of, shard_url

logger = logging.getLogger(__name__)


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


def earlier_keys(root: str, event_id: str, step: str) -> tuple[str, ...]:
    """Keys of the step's stores that have a ledger and a store, sorted: one listing, to be made once a stage."""
    names = set(names_in(posixpath.join(root, event_id)))
    keys = (name.removesuffix(".ledger") for name in sorted(names) if name.endswith(".ledger"))
    return tuple(key for key in keys if key.rpartition("-")[0] == step and f"{key}.zarr" in names)


def adopt_block(ref: StoreRef, block: Block, inputs: str) -> dict[str, Any] | None:
    """The ledger entry of a block that was taken over from another store of its event and step; None where none fits.

    What is not as its entry says is not taken over, with a warning.
    inputs : what the block would be made of, as `inputs_digest` says it.
    """
    keys = earlier_keys(ref.root, ref.event_id, ref.step) if ref.earlier is None else ref.earlier
    for key in keys:
        source = replace(ref, key=key)
        found = read_entry(source, block) if key != ref.key else None
        if found and found.get("inputs") == inputs and (entry := _take_over(ref, block, source, found)):
            return entry
    return None


def _take_over(ref: StoreRef, block: Block, source: StoreRef, found: Mapping[str, Any]) -> dict[str, Any] | None:
    """Copy the shards of a block, then write its entry; None where one is not what its entry says."""
    started = time.perf_counter()
    for variable in ref.variables:
        shard = posixpath.join(source.url, variable.name, "c", *map(str, found["shard"]))
        fs, path = filesystem(shard)
        try:
            content: bytes = fs.cat_file(path)
        except (FileNotFoundError, IsADirectoryError):
            content = b""
        if hashlib.sha256(content).hexdigest() != found["sha256"].get(variable.name):
            told = "%s, block %s: %s is missing or not what was written; the block is not taken over"
            logger.warning(told, source.key, block.id, shard)
            return None
        put_whole(shard_url(ref, variable, block), content)
    entry = {key: found[key] for key in ("block", "sha256", "bytes", "inputs")} | {
        "shard": shard_of(ref.grid, block),
        "taken_from": source.key,
        "write_s": round(time.perf_counter() - started, 3),
    }
    return write_entry(ref, block.id, entry)
