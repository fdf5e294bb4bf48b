"""What this machine has around a command: proxies that are none of loopback's, and a home that Prefect can write to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from uuid import uuid4

from catalog.schema import InputError

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
NAMES: Final = ("no_proxy", "NO_PROXY")
"""Libraries differ in which of the two they read."""


def direct(known: Mapping[str, str], *hosts: str) -> dict[str, str]:
    """The variables by which what is on this machine, and these hosts, is reached without a proxy.

    >>> direct({"NO_PROXY": "example.org"})["no_proxy"]
    'example.org,127.0.0.1,localhost,::1'
    """
    stated = [host.strip() for name in NAMES for host in known.get(name, "").split(",")]
    listed = ",".join(dict.fromkeys(filter(None, (*stated, *LOOPBACK, *hosts))))
    return dict.fromkeys(NAMES, listed)


def reach_loopback_directly() -> None:
    """From here on this process, and what it starts, asks this machine without a proxy."""
    os.environ.update(direct(os.environ))


def check_home(home: Path, *, fix: str) -> None:
    """Nothing where a folder can be written to; it is made where it is missing.

    Raises: InputError: Prefect would wait for minutes for a database that cannot be there.
    """
    probe = home / f".probe-{uuid4().hex}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"{home}: cannot be written ({error.strerror or error}); Prefect keeps its database there; {fix}"
        ) from None


def check_prefect_home() -> None:
    """Nothing where Prefect's home can be written, asked before Prefect is imported. Raises: InputError."""
    fix = "set HOME or PREFECT_HOME to a folder that can"
    stated = os.environ.get("PREFECT_HOME") or "~/.prefect"
    try:
        home = Path(stated).expanduser()
    except RuntimeError as error:
        raise InputError(f"{stated}: {error}; Prefect keeps its database there; {fix}") from None
    check_home(home, fix=fix)
