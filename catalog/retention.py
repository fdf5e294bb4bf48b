"""What is kept of an event, and for how long: a plan that says why, and the deletion of what it names.

Stores can be made again and products do not depend on them; of the versions, the first and the latest always stay.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

from botocore.exceptions import BotoCoreError

from catalog.apart import kept_apart
from catalog.config import is_name
from catalog.files import filesystem, write_whole
from catalog.folders import VERSION
from catalog.policy import RetentionPolicy
from catalog.schema import StoreError
from catalog.stac import refresh_collection

BUSY: Final = timedelta(hours=6)
"""An event that was written to within this time is being worked on: nothing of it is touched."""
STORE: Final = re.compile(r"\.?([a-z0-9_]+(?:-[a-z0-9_]+)*-[0-9a-f]{12})\.(zarr|ledger)(?:\.[0-9a-f]{32}\.part)?")
"""Of a store, and of one whose making was cut off."""
UNFINISHED: Final = re.compile(r"\.v([1-9][0-9]*)\.(partial|deleted)")
LAST_RUN: Final = "housekeeping.json"
"""In the state folder: when housekeeping ran last."""
LONGEST_GAP: Final = timedelta(days=3)
"""From one housekeeping to the next; after a longer one the clock may have leapt."""
Kind = Literal["store", "version", "unfinished"]


@dataclass(frozen=True)
class Held:
    """Something that is kept of an event."""

    kind: Kind
    event_id: str
    places: tuple[str, ...]
    """Folders or prefixes, in the order in which they are deleted: a store's ledger goes before its blocks."""
    size_bytes: int
    changed: datetime
    """When it was last written to."""
    number: int = 0
    """Of a version."""


@dataclass(frozen=True)
class Removal:
    """Something to be deleted, and why."""

    held: Held
    why: str


def doubted_clock(state: str, now: datetime) -> str:
    """Why nothing is to be deleted by this clock, which is written down; empty where it goes on from the last time.

    Deleting cannot be taken back, and a clock that is ahead makes everything look old. A leap is believed when the next
    housekeeping finds the clock going on from it.
    """
    path = Path(state) / LAST_RUN
    try:
        last = datetime.fromisoformat(json.loads(path.read_text("utf-8"))["run_utc"])
        leaps = not timedelta(0) <= now - last <= LONGEST_GAP
    except FileNotFoundError:
        leaps, last = False, now
    except (OSError, ValueError, KeyError, TypeError):
        leaps, last = True, now
    write_whole(path, json.dumps({"run_utc": now.isoformat()}) + "\n")
    return f"kept: the clock leapt since the last housekeeping ({last:%Y-%m-%d}); deleted by the next" if leaps else ""


def plan_retention(held: Iterable[Held], policy: RetentionPolicy, *, now: datetime) -> tuple[Removal, ...]:
    """What the policy no longer keeps, event by event; pure.

    Stores go once nothing of their event was written for `store_days`; versions beyond the first and the latest
    `versions`; folders of a publication that was cut off. Nothing of an event goes that was written to within `BUSY`.
    """
    events: dict[str, list[Held]] = {}
    for item in held:
        events.setdefault(item.event_id, []).append(item)
    removals: list[Removal] = []
    for items in (events[name] for name in sorted(events)):
        idle = now - max(item.changed for item in items)
        if idle >= BUSY:
            removals += _of_event(items, policy, idle=idle)
    return tuple(removals)


def _of_event(items: list[Held], policy: RetentionPolicy, *, idle: timedelta) -> Iterator[Removal]:
    stores = sorted((item for item in items if item.kind == "store"), key=lambda item: item.places)
    if idle >= timedelta(days=policy.store_days):
        yield from (Removal(i, f"event idle for {idle.days} days, stores are kept {policy.store_days}") for i in stores)
    versions = sorted((item for item in items if item.kind == "version"), key=lambda item: item.number)
    for item in versions[1 : -policy.versions]:
        yield Removal(item, f"{len(versions)} versions, the first and the latest {policy.versions} are kept")
    yield from (Removal(item, "publication was cut off") for item in items if item.kind == "unfinished")


def read_held(root: str, out: str, failures: list[str] | None = None) -> tuple[Held, ...]:
    """The stores below `root` (a folder or s3://) and the versions below the folder `out`; links are passed over.

    An event that cannot be listed in whole is added to `failures` and left out: how long it has been idle is not known.

    Raises: StoreError when something cannot be listed and there are no `failures` to add it to.
    """
    held: dict[str, list[Held]] = {}
    unlisted: set[str] = set()
    failed: list[str] = []
    places: list[tuple[str, str, Callable[[str, str], Iterator[Held]]]] = []
    with kept_apart(f"housekeeping: {root} or {out} cannot be listed; check `root` and `out`", failed):
        stores = [(event_id, folder, _stores) for event_id, folder in _events(root)]
        places = [*stores, *((event_id, folder, _products) for event_id, folder in _events(out))]
    for event_id, folder, read in places:
        before = len(failed)
        with kept_apart(f"housekeeping: {folder} cannot be listed", failed):
            held.setdefault(event_id, []).extend(read(event_id, folder))
        if len(failed) > before:
            unlisted.add(event_id)
    if failures is not None:
        failures += failed
    elif failed:
        raise StoreError("; ".join(failed))
    return tuple(item for event_id, items in held.items() if event_id not in unlisted for item in items)


def remove(removal: Removal, *, root: str, out: str) -> bool:
    """Delete it; False, and nothing is touched, when it was written to since the plan was made.

    A version first leaves the event's `collection.json`, and is renamed, so that it is there in whole or not at all.

    Raises: StoreError when it lies outside `root` and `out`, or cannot be deleted.
    """
    held = removal.held
    for place in held.places:
        _check_inside(place, root if held.kind == "store" else out, held.event_id)
    try:
        if _held(held.kind, held.event_id, held.places, number=held.number) != held:
            return False
        for place in held.places:
            _delete(place, version=held.kind == "version")
    except (OSError, BotoCoreError) as error:
        raise StoreError(f"housekeeping: {held.places[0]} cannot be deleted ({error}); check its permissions") from None
    return True


def _delete(place: str, *, version: bool) -> None:
    if "://" in place:
        fs, path = filesystem(place)
        fs.rm(path, recursive=True)
        return
    folder = Path(place)
    if version:  # the collection first: stopped in between it then links nothing that is gone
        _unlist(folder)
        folder = folder.rename(folder.with_name(f".{folder.name}.deleted"))
    shutil.rmtree(folder)


def _unlist(version: Path) -> None:
    """Write the event's `collection.json` anew without a version. Raises: StoreError when it is damaged."""
    path = version.parent / "collection.json"
    if not path.is_file():
        return
    try:
        told: dict[str, Any] = json.loads(path.read_text("utf-8"))
        name, title = told["id"], told.get("title") or told["id"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path}: is damaged ({error}); delete it, the next version writes it anew") from None
    refresh_collection(version.parent, event_id=name, title=title, without=version.name)


def _check_inside(place: str, base: str, event_id: str) -> None:
    """Raises: StoreError unless `place` is an entry of the event's folder below `base`, and no link."""
    folder = posixpath.join(base.rstrip("/") if "://" in base else str(Path(base).resolve()), event_id)
    link = "://" not in place and (Path(place).is_symlink() or Path(folder).is_symlink())
    name = posixpath.basename(place)
    known = any(pattern.fullmatch(name) for pattern in (STORE, VERSION, UNFINISHED))
    if posixpath.dirname(place) != folder or link or not known or not is_name(event_id):
        raise StoreError(f"housekeeping: {place} is not of event {event_id} below {base}; nothing is deleted there")


def _files(place: str) -> Iterator[tuple[int, datetime]]:
    """Size in bytes and time of change of every file of a folder or prefix; links are no files.

    What is gone by the time that it is looked at is passed over: others write below the same `root`.
    """
    if "://" in place:
        fs, path = filesystem(place)
        fs.invalidate_cache()
        yield from ((int(info["size"]), _utc(info["LastModified"])) for info in fs.find(path, detail=True).values())
        return
    for folder, _, names in os.walk(place):
        for name in names:
            try:
                told = os.lstat(os.path.join(folder, name))
            except FileNotFoundError:
                continue
            yield told.st_size, datetime.fromtimestamp(told.st_mtime, UTC)


def _utc(when: datetime) -> datetime:
    return when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)


def _held(kind: Kind, event_id: str, places: tuple[str, ...], *, number: int = 0) -> Held | None:
    """What lies there now; None for nothing."""
    files = [file for place in places for file in _files(place)]
    if not files:
        return None
    return Held(kind, event_id, places, sum(size for size, _ in files), max(when for _, when in files), number)


def _stores(event_id: str, folder: str) -> Iterator[Held]:
    keys: dict[str, list[str]] = {}
    for name in _entries(folder):
        if match := STORE.fullmatch(name):
            keys.setdefault(match[1], []).append(name)
    for names in keys.values():
        places = tuple(posixpath.join(folder, name) for name in sorted(names))  # .ledger before .zarr
        if found := _held("store", event_id, places):
            yield found


def _products(event_id: str, folder: str) -> Iterator[Held]:
    for name in _entries(folder):
        kind: Kind = "version" if VERSION.fullmatch(name) else "unfinished"
        if match := VERSION.fullmatch(name) or UNFINISHED.fullmatch(name):
            if found := _held(kind, event_id, (posixpath.join(folder, name),), number=int(match[1])):
                yield found


def _events(base: str) -> Iterator[tuple[str, str]]:
    place = base.rstrip("/") if "://" in base else str(Path(base).resolve())
    yield from ((name, posixpath.join(place, name)) for name in _entries(place) if is_name(name))


def _entries(place: str) -> list[str]:
    """Names of the folders in a folder, or below a prefix; links are passed over, and what is not there is empty."""
    if "://" not in place:
        if not os.path.isdir(place):
            return []
        with os.scandir(place) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    fs, path = filesystem(place)
    fs.invalidate_cache()
    try:
        found = fs.ls(path, detail=True)
    except FileNotFoundError:
        return []
    return sorted(posixpath.basename(info["name"].rstrip("/")) for info in found if info["type"] == "directory")
