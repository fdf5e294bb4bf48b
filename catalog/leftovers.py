"""What a run would leave behind if it were ended now: folders and files that are to go with it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_PENDING: Final[dict[Path, None]] = {}
"""In the order in which they came."""


@contextmanager
def cleared(path: Path) -> Iterator[Path]:
    """Remove a file or folder at the end of the block, and when the process is ended in it by a signal."""
    _PENDING[path] = None
    try:
        yield path
    finally:
        _remove(path)
        _PENDING.pop(path, None)


def clear_leftovers() -> None:
    """Remove what is to go now, the latest first; for a process that is about to end."""
    for path in reversed(tuple(_PENDING)):
        _remove(path)


def _remove(path: Path) -> None:
    """A folder is renamed first: what still works in it can neither fill it up nor publish what is left of it."""
    with suppress(OSError):
        if path.is_dir():
            gone = path.with_suffix(".deleted")
            shutil.rmtree(gone, ignore_errors=True)
            shutil.rmtree(path.rename(gone), ignore_errors=True)
        else:
            path.unlink()
