"""Paths as people write them: `~` is their home; what a shell would have replaced and did not is refused."""

from __future__ import annotations

import os
import re
from typing import Annotated, Final

from pydantic import AfterValidator

from catalog.schema import InputError

VARIABLE: Final = re.compile(r"(^|/)\$[A-Za-z_]\w*(/|$)|\$\{\w+\}")
"""A part of a path that is an environment variable: a name may hold a `$` elsewhere."""
HOME: Final = re.compile(r"~[^/]*/")


def expand_home(path: str) -> str:
    """The path with `~` or `~NAME` at its start replaced by the home folder.

    Raises: InputError for a home that is not known, or an environment variable.

    >>> expand_home("s3://bucket/~kept"), expand_home("~kept.tif"), expand_home("~/x").startswith("~")
    ('s3://bucket/~kept', '~kept.tif', False)
    """
    if VARIABLE.search(path):
        raise InputError(
            f"path {path}: holds an environment variable, which is not replaced here; write the folder itself, or `~` "
            "for your home; only ${LANDSLIDENET_SECRET_...} of a detection is"
        )
    whole = home_of(path)
    if HOME.match(whole):
        raise InputError(f"path {path}: there is no such home folder; write it out, or ./{path} for what is called so")
    return whole


def home_of(text: str) -> str:
    """The text with `~/` or `~NAME/` at its start replaced by that home folder, where there is one."""
    return os.path.expanduser(text) if text == "~" or HOME.match(text) else text


def _checked(path: str) -> str:
    try:
        return expand_home(path)
    except InputError as error:
        raise ValueError(str(error)) from None


FilePath = Annotated[str, AfterValidator(_checked)]
"""A path or address in a configuration."""
