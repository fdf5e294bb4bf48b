"""One thing's failure that stops no other."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from catalog.schema import LandslideError
from catalog.secrets import redact

TOLD_CHARACTERS: Final = 2000
"""Of a failure: what strangers sent may be in it."""

logger = logging.getLogger(__name__)


@contextmanager
def kept_apart(what: str, failures: list[str]) -> Iterator[None]:
    """Keep what fails inside from the others of a loop: it is added to `failures`, which the loop's owner raises.

    The one broad `except` of this house. Watchers and housekeeping follow many events for months, with data of
    strangers and through libraries that raise what they like: a fault in one event, ours included, must not leave the
    others without a response. It hides nothing: the log has the traceback, and the run ends as failed.
    """
    try:
        yield
    except LandslideError as error:
        failures.append(f"{what}: {error!s:.{TOLD_CHARACTERS}}")
    except Exception as error:
        logger.exception("%s failed unexpectedly", what)
        told = f"unexpected {type(error).__name__}: {redact(str(error)):.{TOLD_CHARACTERS}}"
        failures.append(f"{what}: {told}; the log says where; please report it")
