"""A failure that stops no other, and one that tells no secret."""

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

    One of two broad `except` of this house. Watchers and housekeeping follow many events for months, with data of
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


@contextmanager
def quiet() -> Iterator[None]:
    """What fails inside says no secret: an error of others whose words hold one is raised anew without it.

    Prefect stores the words of whatever ends a run or a step, and libraries put addresses and options into theirs. An
    OSError stays one: another try can get past it.

    Raises: what is raised inside, or in its place OSError or LandslideError.
    """
    try:
        yield
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        if (told := redact(said)) == said:
            raise
        logger.exception("an error whose words hold a secret")
        raise (OSError if isinstance(error, OSError) else LandslideError)(told) from None
