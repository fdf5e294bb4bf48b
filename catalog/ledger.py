"""Which blocks of a store are finished, and whether what lies there is what was written: entries and their checks.

An entry is written after its block, and holds the digest of each of the block's files; `complete` is written after the
last. An entry counts when it is whole, of this store and of its contract; a block counts when its files are what its
entry says.
"""

from __future__ import annotations

import hashlib
import json
import logging
import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from catalog.files import filesystem, names_in, put_whole
from catalog.grid import Block
from catalog.refs import StoreRef, shard_of, shard_url
from catalog.schema import StoreError

logger = logging.getLogger(__name__)

COMPLETE: Final = "complete"
SEAL: Final = "seal"
BLOCK: Final = re.compile(r"r-?\d+c-?\d+")
"""Names of blocks."""


def write_entry(ref: StoreRef, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Write an entry of the ledger, whole or not at all, and return it with its seal; once here, it is on the disk."""
    entry = {"key": ref.key, "contract": ref.contract, **values}
    entry[SEAL] = _seal(entry)
    put_whole(_entry_url(ref, name), json.dumps(entry, sort_keys=True).encode())
    return entry


def _entry_url(ref: StoreRef, name: str) -> str:
    return posixpath.join(ref.ledger_url, f"{name}.json")


def _seal(entry: Mapping[str, Any]) -> str:
    """Digest of an entry's other values: it shows an entry that was edited, or that lost a part."""
    rest = {name: value for name, value in entry.items() if name != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def parse_entry(payload: bytes, ref: StoreRef, name: str) -> tuple[dict[str, Any], str]:
    """An entry and why it does not count (empty where it does): `name` is that of its file, `ref` its own store."""
    try:
        entry = json.loads(payload)
    except ValueError:
        return {}, "is torn"
    if not isinstance(entry, dict) or entry.get(SEAL) != _seal(entry):
        return {}, "was edited, or is of an older release"
    if entry["key"] != ref.key or entry["contract"] != ref.contract:
        return {}, "is of another store or contract"
    if entry.get("block", COMPLETE) != name:
        return {}, f"is of {entry.get('block', COMPLETE)}"
    return entry, ""


def read_ledger(ref: StoreRef) -> dict[str, dict[str, Any]]:
    """The finished blocks, by id; an entry that does not count is warned of and left out."""
    entries, void = _survey(ref)
    for name, why in void.items():
        logger.warning("%s %s; its block counts as not made", _entry_url(ref, name), why)
    return entries


def read_entry(ref: StoreRef, block: Block) -> dict[str, Any] | None:
    """The entry of one block; None where there is none that counts."""
    entry, why = parse_entry(_contents(ref, [block.id])[block.id], ref, block.id)
    return None if why else entry


def _survey(ref: StoreRef) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The entries of blocks of the grid that count, by block, and why others do not, by name."""
    shards = {block.id: shard_of(ref.grid, block) for block in ref.grid.blocks}
    entries, void = {}, {}
    for name, payload in _contents(ref, [name for name in entries_of(ref) if BLOCK.fullmatch(name)]).items():
        entry, why = parse_entry(payload, ref, name)
        if not why and entry.get("shard") != shards.get(name):
            why = "names another shard than its block's"
        if why:
            void[name] = why
        else:
            entries[name] = entry
    return entries, void


def entries_of(ref: StoreRef) -> list[str]:
    """Names of the entries that are there."""
    return [name.removesuffix(".json") for name in names_in(ref.ledger_url) if name.endswith(".json")]


def _contents(ref: StoreRef, names: list[str]) -> dict[str, bytes]:
    """What is in the files of entries, all asked for at once; b"" where one is gone or is no file."""
    fs, folder = filesystem(ref.ledger_url)
    paths = {posixpath.join(folder, f"{name}.json"): name for name in names}
    if ref.remote:
        found = fs.cat(list(paths), on_error="return") if paths else {}
    else:
        found = {path: _content(path) for path in paths}
    for path, payload in found.items():
        if isinstance(payload, Exception) and not isinstance(payload, FileNotFoundError | IsADirectoryError):
            raise StoreError(f"{path}: cannot be read ({payload}); check its permissions and its disk") from payload
    return {paths[path]: payload if isinstance(payload, bytes) else b"" for path, payload in found.items()}


def _content(path: str) -> bytes | OSError:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        return error


def pending_blocks(ref: StoreRef) -> tuple[Block, ...]:
    """The blocks that have no ledger entry yet."""
    done = read_ledger(ref)
    return tuple(block for block in ref.grid.blocks if block.id not in done)


def mark_complete(ref: StoreRef) -> None:
    """Say that the store is done. Raises: StoreError when blocks are missing from the ledger."""
    if missing := pending_blocks(ref):
        raise StoreError(f"{ref.key}: {len(missing)} blocks are not in the ledger, first {missing[0].id}")
    write_entry(ref, COMPLETE, {"blocks": len(ref.grid.blocks)})


def is_complete(ref: StoreRef) -> bool:
    """True when the store said it is done, and each block has its entry."""
    return _says_complete(ref, entries_of(ref))


def _says_complete(ref: StoreRef, names: list[str]) -> bool:
    if not {*names} >= {COMPLETE, *(block.id for block in ref.grid.blocks)}:
        return False
    entry, why = parse_entry(_contents(ref, [COMPLETE])[COMPLETE], ref, COMPLETE)
    return not why and entry.get("blocks") == len(ref.grid.blocks)


def discard_void_entries(ref: StoreRef) -> dict[str, dict[str, Any]]:
    """Remove what does not count from the ledger, with a warning each; the entries that are left, by block.

    Where a block is without an entry `complete` goes as well: it is written anew after the last of them.
    """
    entries, void = _survey(ref)
    for name, why in void.items():
        logger.warning("%s %s; its block is made again", _entry_url(ref, name), why)
    names = entries_of(ref)
    unsaid = COMPLETE in names and not _says_complete(ref, names)
    if unsaid and not void:
        told = "%s does not hold for the %d of %d blocks that are there; the others are made, then it is written anew"
        logger.warning(told, _entry_url(ref, COMPLETE), len(entries), len(ref.grid.blocks))
    if void or unsaid:
        remove_entries(ref, [COMPLETE, *void])
    return entries


def discard_blocks(ref: StoreRef, damaged: Mapping[Block, str]) -> None:
    """Take blocks whose files are not as they were written out of the ledger, with a warning that says why for each."""
    for block, why in damaged.items():
        logger.warning("%s, block %s: %s; the block is made again", ref.key, block.id, why)
    if damaged:
        remove_entries(ref, [COMPLETE, *(block.id for block in damaged)])


def remove_entries(ref: StoreRef, names: Iterable[str]) -> None:
    """Remove entries of the ledger, in this order: `complete` goes first."""
    for name in names:
        fs, path = filesystem(_entry_url(ref, name))
        if fs.exists(path):
            fs.rm(path, recursive=fs.isdir(path))


def damage_of(ref: StoreRef, block: Block) -> str:
    """Which file of a finished block is not what its entry says, and how; empty when all are. Runs on a worker."""
    entry, why = parse_entry(_contents(ref, [block.id])[block.id], ref, block.id)
    if why:
        return f"{_entry_url(ref, block.id)} {why}"
    for variable in ref.variables:
        url = shard_url(ref, variable, block)
        try:
            found = digest_of(url)
        except (FileNotFoundError, IsADirectoryError):
            return f"{url} is missing"
        except OSError as error:
            if ref.remote:  # the network's fault, not the file's
                raise
            return f"{url} cannot be read ({error})"
        if found != entry["sha256"].get(variable.name):
            return f"{url} is not what was written"
    return ""


def digest_of(url: str) -> str:
    """Digest (sha256, hex) of a file or object as it is now."""
    fs, path = filesystem(url)
    return hashlib.sha256(fs.cat_file(path)).hexdigest()
