"""Places of deployments that no run will give back, freed by the watchers where no `landslidenet up` does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from prefect import get_run_logger
from prefect.client.orchestration import get_client

from catalog.apart import kept_apart
from flows.server import crash_what_never_began

PENDING: Final = timedelta(minutes=30)
"""Longer than a container may take to be pulled: a run that has not begun after so long never will."""


def free_places() -> None:
    """Crash what was handed to a worker long ago and never began; a server that fails in this is asked again later."""
    log, failures = get_run_logger(), list[str]()
    with kept_apart("runs that never began", failures), get_client(sync_client=True) as client:

        def ask(path: str, question: object) -> Any:  # noqa: ANN401 - any JSON value
            return client.request("POST", f"/{path}", json=question).json()  # type: ignore[arg-type]

        for name in crash_what_never_began(ask, before=datetime.now(UTC) - PENDING):
            log.warning("%s was handed to a worker that is no more: crashed; run it again", name)
    for failure in failures:
        log.warning("%s", failure)
