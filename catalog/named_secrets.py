"""Secrets by their names: a configuration that others keep names a variable, and the process that works has its value.

`${LANDSLIDENET_SECRET_...}` may stand anywhere in the texts of a detection's configuration. No other variable may:
whoever may start a run would read the worker's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from catalog.schema import InputError
from catalog.secrets import HIDDEN, LEAST_CHARACTERS, REFERENCE, hidden, remember


def filled(value: Any, known: Mapping[str, str]) -> Any:  # noqa: ANN401 - any JSON value
    """The same value with the secrets that its texts name; where they would be said from now on their names stand.

    known : secrets by name, as in the environment.

    Raises: InputError for a name that is not known, or whose secret is too short to be hidden.
    """
    if isinstance(value, str):
        return REFERENCE.sub(lambda named: _secret(named, known), value)
    if isinstance(value, Mapping):
        return {key: filled(inner, known) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(filled(inner, known) for inner in value)
    return value


def _secret(named: re.Match[str], known: Mapping[str, str]) -> str:
    secret = known.get(named[1], "")
    if len(secret) < LEAST_CHARACTERS:
        raise InputError(
            f"configuration: {named[0]} has {len(secret)} characters in the environment of this process; expected at "
            f"least {LEAST_CHARACTERS}; set the variable where the run is at work (command line or Prefect worker)"
        )
    remember(secret, shown=named[0])
    return secret


def stored(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys and values of a configuration as others may keep them: secrets are hidden unless they are named.

    Any text of a cluster's options may be a secret.

    >>> stored({"post": "https://host/a.tif?sig=abc", "cluster": {"options": {"n": 2, "auth": "word"}}})
    {'post': 'https://host/a.tif?sig=***', 'cluster': {'options': {'n': 2, 'auth': '***'}}}
    """
    told: dict[str, Any] = hidden(values)
    cluster = told.get("cluster")
    if isinstance(cluster, Mapping) and "options" in cluster:
        told["cluster"] = {**cluster, "options": _options(cluster["options"])}
    return told


def _options(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, str):
        return value if REFERENCE.fullmatch(value) else HIDDEN
    if isinstance(value, Mapping):
        return {key: _options(inner) for key, inner in value.items()}
    return [_options(inner) for inner in value] if isinstance(value, list | tuple) else value


def check_whole(value: object, *, key: str = "") -> None:
    """Nothing for keys and values as they were given. Raises: InputError for what was hidden when it was stored."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            check_whole(inner, key=f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            check_whole(inner, key=key)
    elif isinstance(value, str) and HIDDEN in value:
        raise InputError(
            f"configuration: `{key}` is {value:.200}, of which a part was hidden when the run was stored; expected the "
            "whole; give it again, or name the secret, ${LANDSLIDENET_SECRET_...}, which can be kept"
        )
