"""What a store is: its address, its key, and the contract that whatever lies there must have been written by."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from catalog.grid import Block, Grid
from catalog.schema import Variable

LAYOUT: Final = 2
"""How blocks become bytes: codecs, fill values, entries. Another number makes other keys, and takes nothing over."""


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
    earlier: tuple[str, ...] | None = field(default=None, compare=False)
    """Keys of the step's other stores, whose blocks may be taken over; None = not looked for yet."""

    @property
    def step(self) -> str:
        """The step that the store belongs to."""
        return self.key.rpartition("-")[0]

    @property
    def folder(self) -> str:
        """Folder or prefix of all stores of the event."""
        return posixpath.join(self.root, self.event_id)

    @property
    def url(self) -> str:
        """Folder or object prefix of the Zarr store."""
        return posixpath.join(self.folder, f"{self.key}.zarr")

    @property
    def ledger_url(self) -> str:
        """Folder or prefix of the ledger, beside the store: Zarr takes every file inside for its own."""
        return posixpath.join(self.folder, f"{self.key}.ledger")

    @property
    def remote(self) -> bool:
        """True for object storage, where an object is written whole or not at all, and nothing can be renamed."""
        return "://" in self.root

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the variables."""
        return tuple(v.name for v in self.variables)

    @property
    def contract(self) -> str:
        """Digest (hex) of all that decides how a block becomes bytes, wherever it lies: an entry without it is void."""
        grid = self.grid
        told = [LAYOUT, self.step, self.version, grid.epsg, grid.gsd_m, grid.block_px, self.chunk_px]
        return hashlib.sha256(json.dumps([*told, [repr(v) for v in self.variables]]).encode()).hexdigest()


def store_key(step: str, *, version: int, depends_on: Mapping[str, Any]) -> str:
    """`<step>-<12 hex digits>`: the same for the same algorithm version, layout and dependencies, else another.

    >>> store_key("slope", version=1, depends_on={"dem": "ab"})[:6]
    'slope-'
    """
    text = json.dumps({"step": step, "version": version, "layout": LAYOUT, **depends_on}, sort_keys=True, default=str)
    return f"{step}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def shard_of(grid: Grid, block: Block) -> list[int]:
    """Row and column of a block's shard in its store."""
    return [block.row - grid.row0 // grid.block_px, block.col - grid.col0 // grid.block_px]


def shard_url(ref: StoreRef, variable: Variable, block: Block) -> str:
    """File or object of a variable's pixels in a block."""
    return posixpath.join(ref.url, variable.name, "c", *map(str, shard_of(ref.grid, block)))
