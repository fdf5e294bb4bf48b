"""Paths as people write them: `~` is their home; what a shell would have replaced and did not is refused."""

from __future__ import annotations

import os
import re
from typing import Annotated, Final

from pydantic import AfterValidator

from catalog.schema import InputError

VARIABLE: Final = re.compile(r"(^|/)\$\w+(/|$)|\$\{\w+\}")
"""A part of a path that is an environment variable: a name may hold a `$` elsewhere."""


def expand_home(path: str) -> str:
    """The path with `~` or `~NAME` at its start replaced by the home folder.

    Raises: InputError for a home that is not known, or an environment variable.

    >>> expand_home("s3://bucket/~kept"), expand_home("~kept.tif"), expand_home("~/x").startswith("~")
    ('s3://bucket/~kept', '~kept.tif', False)
    """
    if VARIABLE.search(path):
        raise InputError(
            f"path {path}: holds an environment variable, which is not replaced here: write the folder itself, or `~` "
            "for your home"
        )
    whole = os.path.expanduser(path) if path == "~" or re.match(r"~[^/]*/", path) else path
    if re.match(r"~[^/]*/", whole):
        raise InputError(
            f"path {path}: there is no such home folder; write the folder itself, or ./{path} if it is one"
        )
    return whole


def _checked(path: str) -> str:
    try:
        return expand_home(path)
    except InputError as error:
        raise ValueError(str(error)) from None


FilePath = Annotated[str, AfterValidator(_checked)]
"""A path or address in a configuration."""
