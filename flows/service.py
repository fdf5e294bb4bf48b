"""One machine's service: a Prefect server, the deployments and a worker, started together and stopped together."""

from __future__ import annotations

import ctypes
import fcntl
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, Final

import psutil
import yaml

from catalog.policy import load_policy
from catalog.schema import InputError
from flows.server import SWEEP_ASK_S, Server, ServiceError, crash_what_never_began
from flows.surroundings import check_home, direct

POOL: Final = "landslidenet"
DEPLOYMENTS: Final = Path(__file__).resolve().parents[1] / "prefect.yaml"
AUTOMATIONS: Final = Path(__file__).resolve().with_name("automations.yaml")
HEARTBEAT_S: Final = 30
"""How often a run gives a sign of life: the shortest that Prefect allows."""
SWEEP_S: Final = 60.0
PENDING_S: Final = 300.0
"""A run that a worker has not begun after so long never will be."""
READY_S: Final = 300.0
"""How long a busy machine may take until the server answers, or everything is deployed."""
STOP_S: Final = 4.0
"""What still runs so long after it was asked to end is asked with all it started, and killed a second later."""
KILL_S: Final = 1.0
POLL_S: Final = 0.2
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG: Final = 1
"""Of prctl(2): linux/prctl.h."""
TAIL_LINES: Final = 15
Say = Callable[[str], None]


@dataclass(frozen=True)
class Service:
    """Where the service lives and what it is told."""

    home: Path
    """Prefect's database, the logs, and the deployments as they were made."""
    host: str = "127.0.0.1"
    port: int = 4200
    policy: str | None = None

    @property
    def url(self) -> str:
        """Where the UI is, for a browser on this machine."""
        return f"http://{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{self.port}"

    def variables(self, known: Mapping[str, str]) -> dict[str, str]:
        """The environment of its processes. The password of basic auth is handed on here, and nowhere else."""
        secret = known.get("PREFECT_SERVER_API_AUTH_STRING")
        told = {
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
            "DO_NOT_TRACK": "1",
            "PYTHONUNBUFFERED": "1",
        }
        if secret:
            told["PREFECT_API_AUTH_STRING"] = secret
        if self.policy:
            told["LANDSLIDENET_POLICY"] = self.policy
        return {**known, **direct(known, self.host), **told}


def run_service(service: Service, *, say: Say, ready: Say) -> None:
    """Start server, work pool, deployments and worker; return once they were stopped by SIGINT or SIGTERM.

    `say` is told of every step, `ready` the UI's address when all of it runs. The same `home` keeps the history.

    Raises: InputError for a policy, a port or a host that cannot be used; ServiceError when a part does not start or
    ends by itself: the others are stopped, too.
    """
    load_policy(service.policy)
    _check_address(service.host, service.port, secret=bool(os.environ.get("PREFECT_SERVER_API_AUTH_STRING")))
    check_home(service.home / "logs", fix="pass another --home")
    with _alone(service.home), _stoppable() as stop:
        parts = Parts(service, service.variables(os.environ), stop)
        try:
            _start(parts, say=say)
            if not stop.is_set():
                say(f"logs: {service.home / 'logs'}; Ctrl-C stops everything")
                ready(service.url)
            while not stop.wait(POLL_S):
                parts.check()
                parts.crash_what_never_began(say)
        finally:
            say("stopping; the same command goes on where this was, finished blocks are kept")
            parts.end()


def _start(parts: Parts, *, say: Say) -> None:
    service, begun = parts.service, datetime.now(UTC)
    say("starting the Prefect server")
    parts.start("server", "server", "start", "--host", service.host, "--port", str(service.port))
    server = parts.server
    parts.wait("server", server.is_healthy)
    if parts.stop.is_set():
        return
    parts.crash_what_never_began(say, before=begun)
    say("deploying")
    if POOL not in server.names("work_pools"):  # one that an operator changed is left as it is
        parts.finish("pool", "work-pool", "create", POOL, "--type", "process")
    parts.finish("deploy", "deploy", "--all", "--prefect-file", str(write_deployments(service)))
    if not parts.stop.is_set() and (missing := _missing_automations(service, server)):
        parts.finish("automate", "automation", "create", "--from-file", str(missing))
    say("starting the worker")
    parts.start("worker", "worker", "start", "--pool", POOL, "--name", f"landslidenet {socket.gethostname()}")


def write_deployments(service: Service) -> Path:
    """`prefect.yaml` in the service's home, its deployments with the service's policy as their default."""
    told: dict[str, Any] = yaml.safe_load(DEPLOYMENTS.read_text(encoding="utf-8"))
    for deployment in told["deployments"]:
        if "policy" in (deployment.get("parameters") or {}):
            deployment["parameters"]["policy"] = service.policy
    path = service.home / "prefect.yaml"
    path.write_text(yaml.safe_dump(told, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


@dataclass
class Parts:
    """The processes of a service, and whether it was asked to stop."""

    service: Service
    variables: dict[str, str]
    stop: Event
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    swept: float = field(default_factory=time.monotonic)

    @property
    def server(self) -> Server:
        """The server that the parts are of."""
        return Server(self.service.url, self.variables.get("PREFECT_API_AUTH_STRING"))

    def crash_what_never_began(self, say: Say, *, before: datetime | None = None) -> None:
        """Free the places of runs whose worker died before it began them: of all before a time, else now and then.

        A server that is busy is asked again later.
        """
        if before is None and time.monotonic() - self.swept < SWEEP_S:
            return
        self.swept = time.monotonic()
        with suppress(ServiceError):
            since = before or datetime.now(UTC) - timedelta(seconds=PENDING_S)
            ask = partial(self.server.ask, timeout_s=SWEEP_ASK_S)
            for name in crash_what_never_began(ask, before=since):
                say(f"{name} was handed to a worker that is no more: crashed; run it again")

    def start(self, name: str, *arguments: str) -> None:
        """Start a `prefect` command that is to run on; nothing when the service was asked to stop."""
        if not self.stop.is_set():
            self.running[name] = self._open(name, arguments)

    def finish(self, name: str, *arguments: str) -> None:
        """Run a `prefect` command to its end. Raises: ServiceError when it fails, or another part ends meanwhile."""
        if self.stop.is_set():
            return
        process = self._open(name, arguments)
        try:
            self.wait(name, lambda: process.poll() is not None)
        finally:
            end_processes([process.pid])
            status = process.wait()
        if status and not self.stop.is_set():
            raise ServiceError(self._told(name, f"failed with status {status}"))

    def wait(self, name: str, answered: Callable[[], bool]) -> None:
        """Return when `answered`, or the service was asked to stop. Raises: ServiceError when time is up."""
        deadline = time.monotonic() + READY_S
        while not self.stop.is_set() and not answered():
            self.check()
            if time.monotonic() > deadline:
                raise ServiceError(self._told(name, f"was not ready after {READY_S:g} s"))
            self.stop.wait(POLL_S)

    def check(self) -> None:
        """Raises: ServiceError when a part ended by itself, with the end of its log."""
        for name, process in self.running.items():
            if (status := process.poll()) is not None:
                raise ServiceError(self._told(name, f"ended with status {status}"))

    def end(self) -> None:
        """End every part and all it started within ten seconds; the worker before the server that its runs tell."""
        for patience_s, process in zip((STOP_S, KILL_S), reversed(self.running.values()), strict=False):
            end_processes([process.pid], patience_s=patience_s)
            process.wait()

    def _open(self, name: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        """In a session of its own: a Ctrl-C in the terminal is ours to pass on, in order; a SIGKILL is not."""
        with self._log(name).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
                env=self.variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_ending_with(os.getpid()) if sys.platform == "linux" else None,
            )

    def _log(self, name: str) -> Path:
        return self.service.home / "logs" / f"{name}.log"

    def _told(self, name: str, what: str) -> str:
        lines = self._log(name).read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        return "\n  ".join([f"up: {name} {what}; the end of {self._log(name)}:", *lines])


def _ending_with(parent: int) -> Callable[[], None]:
    """What a child runs first: it gets a SIGTERM when the thread that starts it (here: the main one) is no more."""
    libc = ctypes.CDLL(None)

    def bind() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # killed before the child asked to hear of it
            os._exit(1)

    return bind


def end_processes(pids: Sequence[int], *, patience_s: float = STOP_S) -> None:
    """End processes and all that they started: asked first (SIGTERM), killed after a while. Gone ones are no matter."""
    tops = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    family: list[psutil.Process] = []
    for top in tops:
        try:
            family += [*top.children(recursive=True), top]
            top.terminate()
        except psutil.NoSuchProcess:
            continue
    _, left = psutil.wait_procs(tops, timeout=patience_s)
    family = list({*family, *(child for top in left for child in _children(top))})
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        for process in family:
            try:
                ask(process)
            except psutil.NoSuchProcess:
                continue
        _, family = psutil.wait_procs(family, timeout=KILL_S)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _missing_automations(service: Service, server: Server) -> Path | None:
    """A file of the automations that are no deployment's and are not there; None where all are."""
    known = server.names("automations")
    stated = yaml.safe_load(AUTOMATIONS.read_text(encoding="utf-8"))["automations"]
    missing = [automation for automation in stated if automation["name"] not in known]
    path = service.home / "automations.yaml"
    path.write_text(yaml.safe_dump({"automations": missing}, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path if missing else None


def _check_address(host: str, port: int, *, secret: bool) -> None:
    try:
        loopback = ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        raise InputError(f"up: host {host!r} is not an IPv4 address; expected e.g. 127.0.0.1") from None
    if not loopback and not secret:
        raise InputError(
            f"up: {host} opens the server to other machines; set PREFECT_SERVER_API_AUTH_STRING=USER:PASSWORD first, "
            "or stay on 127.0.0.1 (see docs/operations.md, Security)"
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"up: port {port} of {host} cannot be used ({error}); stop what uses it (another `landslidenet up`?) "
                "or pass --port"
            ) from None


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Hold the home. Raises: InputError when another service does."""
    with (home / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"up: another `landslidenet up` runs on {home}; stop it, or pass another --home") from None
        yield


@contextmanager
def _stoppable() -> Iterator[Event]:
    """An event that SIGINT, SIGTERM and SIGHUP set."""
    stop = Event()
    before = {name: signal.signal(name, lambda *_: stop.set()) for name in SIGNALS}
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
