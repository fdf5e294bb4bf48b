"""What the service asks its Prefect server, which is on this machine: never through a proxy."""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from catalog.schema import LandslideError

ASK_S: Final = 30.0
BUSY: Final = 503
"""Status by which a Prefect server says that its database was locked."""
BUSY_S: Final = 0.5
SWEEP_ASK_S: Final = 3.0
"""No longer: whoever sweeps may be asked to stop meanwhile."""
MAX_RUNS: Final = 200
FLOWS: Final = (
    "watch-earthquakes", "watch-imagery", "respond", "detect", "train", "adapt", "housekeeping", "alert",
)  # fmt: skip
"""Those of `prefect.yaml`."""
Ask = Callable[[str, object], Any]
NEVER_BEGAN: Final = "the worker that was to begin it is no more; run it again"


class ServiceError(LandslideError):
    """A part of the service did not start, or ended by itself."""


@dataclass(frozen=True)
class Server:
    """A server's address, and its password (USER:PASSWORD) where it has one."""

    url: str
    secret: str | None = None

    def is_healthy(self) -> bool:
        """Whether it answers."""
        try:
            with _direct().open(f"{self.url}/api/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def ask(self, path: str, question: object = None, *, timeout_s: float = ASK_S) -> Any:  # noqa: ANN401 - any JSON value
        """What it answers. Raises: ServiceError when it does not."""
        data = json.dumps(question or {}).encode()
        request = urllib.request.Request(f"{self.url}/api/{path}", data=data, method="POST")
        request.add_header("Content-Type", "application/json")
        if self.secret:
            request.add_header("Authorization", f"Basic {base64.b64encode(self.secret.encode()).decode()}")
        try:
            return _answer(request, timeout_s=timeout_s)
        except (OSError, ValueError) as error:
            raise ServiceError(f"up: the server did not answer when asked for {path} ({error})") from None

    def names(self, kind: str) -> set[str]:
        """Names of what there is of a kind: `work_pools`, `automations`."""
        return {str(known["name"]) for known in self.ask(f"{kind}/filter")}


def crash_what_never_began(ask: Ask, *, before: datetime) -> list[str]:
    """Names of runs of our deployments that were handed to a worker before a time, never began, and are now crashed.

    ask : the answer of a Prefect server to a path and a question.

    A run that is pending holds a place of its deployment; the worker that died with it does not give it back.
    """
    question = {
        "flow_runs": {"state": {"type": {"any_": ["PENDING"]}}, "deployment_id": {"is_null_": False}},
        "flows": {"name": {"any_": list(FLOWS)}},
        "limit": MAX_RUNS,
    }
    stale = [run for run in ask("flow_runs/filter", question) if _since(run) < before]
    for run in stale:
        state = {"type": "CRASHED", "name": "Crashed", "message": NEVER_BEGAN}
        ask(f"flow_runs/{run['id']}/set_state", {"state": state})
    return [str(run["name"]) for run in stale]


def _since(run: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(run["state"]["timestamp"])


def _answer(request: urllib.request.Request, *, timeout_s: float) -> Any:  # noqa: ANN401 - any JSON value
    """What is answered; asked again, as Prefect's own clients do, where SQLite was busy with another's writing."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            with _direct().open(request, timeout=timeout_s) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != BUSY or time.monotonic() + BUSY_S > until:
                raise
        time.sleep(BUSY_S)


def _direct() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))
