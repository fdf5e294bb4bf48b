"""One at a time: an event is held by the run that changes its response.

The operating system keeps the lock and frees it when its holder ends, however that ends; docs/adr/0011 says why this is
not a concurrency limit of Prefect.
"""

from __future__ import annotations

import fcntl
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from catalog.responses import folder_of
from catalog.schema import LandslideError

POLL_S: Final = 0.2


class Busy(LandslideError):
    """An event that another run holds: it is free again when that run ends."""


@contextmanager
def hold_event(state: str, event_id: str, *, timeout_s: float = math.inf) -> Iterator[None]:
    """Hold an event; whoever else wants it waits.

    Raises: Busy when another run still holds it after `timeout_s`; InputError for an id that could lead elsewhere.
    """
    folder = folder_of(state, event_id)
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout_s
    with (folder / ".lock").open("a+", encoding="utf-8") as file:
        while not _taken(file.fileno()):
            if time.monotonic() >= deadline:
                file.seek(0)
                holder = file.read(200).strip()
                raise Busy(f"event {event_id}: another run holds it ({holder}); it is free when that run ends")
            time.sleep(POLL_S)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
