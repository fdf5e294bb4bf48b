"""An event's folder of products: which of what lies in it is a version, and what a version says of itself.

People copy, rename and move what is there: `v1.bak`, `v2 copy`, `v01` or a file `v3` is no version.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from catalog.schema import StoreError

VERSION: Final = re.compile(r"v([1-9][0-9]*)")
RUN: Final = "run.json"
DIGEST: Final = "digest"
"""Key of `run.json`: of all the rest of it."""


def version_number(name: str) -> int | None:
    """The number of a version's folder by its name; None for what is called otherwise.

    >>> [version_number(name) for name in ("v1", "v12", "v1.bak", "v01", "v2 copy", ".v3.partial", "vault")]
    [1, 12, None, None, None, None, None]
    """
    found = VERSION.fullmatch(name)
    return int(found[1]) if found else None


def version_folders(event_dir: Path) -> tuple[tuple[int, Path], ...]:
    """Number and folder of every version, the oldest first."""
    named = ((version_number(path.name), path) for path in event_dir.glob("v*") if path.is_dir())
    return tuple(sorted((number, path) for number, path in named if number))


def free_number(event_dir: Path) -> int:
    """The number after the highest that anything is called by, a file or a broken link included; 1 without any."""
    return 1 + max((version_number(path.name) or 0 for path in event_dir.glob("v*")), default=0)


def number_of(folder: str | Path) -> int:
    """The number of a version by its folder. Raises: StoreError for another folder."""
    if number := version_number(Path(folder).name):
        return number
    raise StoreError(f"{folder}: got a folder that is no version's; expected one called v1, v2 ...")


def way_out(folder: Path) -> str:
    """What a person can do about a version that is damaged."""
    return (
        f"restore it from a backup, or move the folder away (mv {folder} {folder}.damaged): the next version then "
        "goes on from the one before"
    )


def read_run(folder: Path) -> dict[str, Any]:
    """`run.json` of a version.

    Raises: StoreError when it cannot be read, or is not as it was written.
    """
    path = folder / RUN
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        stated, config = told.get(DIGEST), told["config"]
        whole = isinstance(config, dict) and stated in (None, digest_of(told))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path}: cannot be read ({error!r:.200}); {way_out(folder)}") from None
    if not whole:
        raise StoreError(f"{path}: is not as it was published: it was edited or damaged; {way_out(folder)}")
    return told


def digest_of(told: Mapping[str, Any]) -> str:
    """Digest (sha256, hex) of what `run.json` holds but the digest itself; how it is laid out does not matter."""
    rest = {key: value for key, value in told.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
