"""One at a time: an event's response is held by the run that changes it, its products and stores by their maker.

The operating system keeps the lock and frees it when its holder ends, however that ends; docs/adr/0011 says why this is
not a concurrency limit of Prefect.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

from catalog.leftovers import cleared
from catalog.responses import folder_of
from catalog.schema import InputError, LandslideError

logger = logging.getLogger(__name__)

POLL_S: Final = 0.2
_HELD: Final[ContextVar[frozenset[Path]]] = ContextVar("held", default=frozenset())
"""Folders whose products or stores this run holds: a step of it holds them, too."""


class Busy(LandslideError):
    """An event that another run holds: it is free again when that run ends."""


@contextmanager
def hold_event(state: str, event_id: str, *, timeout_s: float = math.inf) -> Iterator[None]:
    """Hold an event's response; whoever else wants it waits.

    Raises: Busy when another run still holds it after `timeout_s`; InputError for an id that could lead elsewhere.
    """
    with _hold(folder_of(state, event_id) / ".lock", timeout_s=timeout_s):
        yield


@contextmanager
def hold_products(out: str, root: str, event_id: str, *, timeout_s: float = 0.0) -> Iterator[None]:
    """Hold an event's products and its stores, where these are on a disk; a run that holds them may do so again.

    Raises: Busy when another run still holds them after `timeout_s`; InputError when their folders cannot be written.
    """
    places = {(Path(place) / event_id).resolve() for place in (out, root) if "://" not in place}
    with ExitStack() as stack:
        for place in sorted(places - _HELD.get()):  # in one order, so that two runs never wait for one another
            stack.enter_context(_hold(place / ".run.lock", timeout_s=timeout_s))
        before = _HELD.set(_HELD.get() | places)
        try:
            yield
        finally:
            _HELD.reset(before)


@contextmanager
def _hold(path: Path, *, timeout_s: float) -> Iterator[None]:
    """Hold a lock file, which is gone afterwards, as are the folders that were made for it and stayed empty."""
    made = [folder for folder in path.parents if not folder.exists()]
    file = _take(path, timeout_s=timeout_s)
    try:
        with file, cleared(path):  # removed while it is held: nobody holds a file that is no longer there
            yield
    finally:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def _take(path: Path, *, timeout_s: float) -> IO[str]:
    """The open lock file, held and with the holder's name in it."""
    deadline, waiting = time.monotonic() + timeout_s, False
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path.parent}: cannot be written ({error}); expected a folder to hold a run's") from None
        if _taken(file.fileno()) and _is_there(path, file.fileno()):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename} since {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
            file.flush()
            return file
        file.seek(0)
        holder = file.read(200).strip() or "a process that has just begun"
        file.close()
        if time.monotonic() >= deadline:
            raise Busy(
                f"event {path.parent.name}: another run holds it ({holder}); wait until that run ends, or end it, then "
                "run this again"
            )
        if not waiting:
            logger.warning("event %s: waiting for the run that holds it (%s)", path.parent.name, holder)
        waiting = True
        time.sleep(POLL_S)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_there(path: Path, descriptor: int) -> bool:
    """Whether the file that was locked still has its name: its last holder removed it when it ended."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
