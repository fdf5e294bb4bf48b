"""A real Prefect server for tests: on loopback, on SQLite or PostgreSQL, with workers as processes of their own."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import chdir, contextmanager, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import httpx
import psutil
from filelock import FileLock
from processes import free_port, wait_until

ROOT = Path(__file__).parents[1]
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def end(process, *, how=signal.SIGTERM):
    """End a process and all that it started."""
    with suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(how)
        for one in psutil.wait_procs(family, timeout=15)[1]:
            one.kill()
    process.wait()


def ask(url, body=None, *, auth=None):
    """The answer of a server's API, as JSON: POST with a body, else GET; again where SQLite was busy, as clients do."""
    for pause_s in (0.5, 1, 2, 4, 0):
        told = {"auth": auth, "timeout": 30}
        got = httpx.get(url, **told) if body is None else httpx.post(url, json=body, **told)
        if got.status_code != 503:
            break
        time.sleep(pause_s)
    assert got.status_code < 400, got.text
    return got.json() if got.content else None


def quiet_policy(folder):
    """A policy file in a folder: an empty feed, no imagery, and nothing asked of the net."""
    feed, path = folder / "feed.geojson", folder / "policy.yaml"
    feed.write_text(json.dumps({"type": "FeatureCollection", "metadata": {"count": 0}, "features": []}))
    places = {name: str(folder / name) for name in ("root", "out", "state")}
    path.write_text(json.dumps({**places, "earthquakes": {"feed": str(feed), "query": None}}))
    return path


def migrated_database(folder):
    """The path of an SQLite database of Prefect's server in a folder, made once: most of a server's first start."""
    path = Path(folder) / "migrated.db"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            made = path.with_suffix(".partial")
            told = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{made}"}
            command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
            subprocess.run(command, env={**os.environ, **told}, check=True, capture_output=True)
            made.rename(path)
    return path


class Server:
    """A running server: its environment for clients, its log, and its `prefect` command.

    migrated : a database file (`migrated_database`) that an SQLite server starts with a copy of.
    """

    def __init__(self, folder, *, port=None, database=None, migrated=None, secret=None):
        self.folder, self.port = Path(folder), port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.secret = secret
        self.process = None
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
            "PREFECT_HOME": str(self.folder),
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            "PYTHONPATH": str(ROOT),
            "LANDSLIDENET_POLICY": str(quiet_policy(self.folder)),
            "DO_NOT_TRACK": "1",
        }
        self.environment |= {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database} if database else {}
        self.environment |= (
            {"PREFECT_SERVER_API_AUTH_STRING": secret, "PREFECT_API_AUTH_STRING": secret} if secret else {}
        )

        if migrated:
            shutil.copy(migrated, self.folder / "prefect.db")

    def start(self):
        log = (self.folder / "server.log").open("ab")
        command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(self.port)]
        self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
        log.close()
        wait_until(self._healthy, what="health of the server")
        return self

    def _healthy(self):
        assert self.process.poll() is None, self.log("server")
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/api/health", timeout=5).status_code == 200
        return False

    def stop(self):
        end(self.process)

    def log(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")

    @contextmanager
    def asked_here(self):
        """This process is a client of the server meanwhile."""
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

        with temporary_settings({PREFECT_API_URL: f"{self.url}/api", PREFECT_API_AUTH_STRING: self.secret}):
            yield

    def run(self, *arguments):
        """What a `prefect` command prints: in this process, as one of its own needs 2 to 7 CPU-seconds more."""
        from prefect.cli import app

        said, status, before = StringIO(), 0, sys.argv
        sys.argv = ["prefect", "--no-prompt", *map(str, arguments)]
        with self.asked_here(), chdir(ROOT), redirect_stdout(said), warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # connections that its process would have taken with it
            try:
                app()
            except SystemExit as ended:
                status = ended.code
            finally:
                sys.argv = before
                gc.collect()
        assert not status, said.getvalue()[-4000:]
        return said.getvalue()

    def json(self, *arguments):
        return json.loads(self.run(*arguments, "--output", "json"))

    def ask(self, path, body=None):
        """The answer of the API, as JSON: POST with a body, else GET."""
        return ask(f"{self.url}/api/{path}", body, auth=tuple(self.secret.split(":", 1)) if self.secret else None)

    def runs(self, **filters):
        return self.ask("flow_runs/filter", filters)

    def emit(self, event_id, event):
        """An event as the watchers emit it."""
        told = {
            "occurred": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "event": event,
            "resource": {"prefect.resource.id": f"landslidenet.event.{event_id}", "prefect.resource.name": event_id},
            "payload": {"event_id": event_id, "title": event_id, "revision": 1},
            "id": str(uuid4()),
        }
        self.ask("events", [told])

    @contextmanager
    def worker(self, name="worker", **variables):
        """A worker of the pool, ended with all its runs."""
        with (self.folder / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "landslidenet", "--name", name]
            environment = {**self.environment, **variables}
            process = subprocess.Popen(
                command, env=environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )
        try:
            yield process
        finally:
            end(process)

    def deploy_all(self):
        self.run("work-pool", "create", "landslidenet", "--type", "process")
        self.run("deploy", "--all")


@contextmanager
def serving(folder, **told):
    """A started server, stopped at the end."""
    server = Server(folder, **told)
    try:
        yield server.start()
    finally:
        server.stop()


@contextmanager
def postgres(folder):
    """The asyncpg address of a PostgreSQL cluster of its own, on a port of loopback; stopped at the end."""
    binaries, port = POSTGRES[-1], free_port()
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}  # it refuses root
    reach = ["-h", "127.0.0.1", "-p", str(port)]
    with TemporaryDirectory(prefix="postgres-") as data, (Path(folder) / "postgres.log").open("wb") as log:
        if user:
            shutil.chown(data, "postgres", "postgres")
        init = [str(binaries / "initdb"), "-D", data, "-U", "prefect", "--auth=trust", "--encoding=UTF8", "--no-sync"]
        subprocess.run(init, check=True, capture_output=True, cwd="/", **user)
        command = [str(binaries / "postgres"), "-D", data, *reach, "-k", data, "-c", "fsync=off"]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **user)
        try:
            ready = [str(binaries / "pg_isready"), *reach, "-q"]
            wait_until(lambda: subprocess.run(ready, check=False).returncode == 0, within_s=60, what="PostgreSQL")
            create = [str(binaries / "createdb"), *reach, "-U", "prefect", "prefect"]
            subprocess.run(create, check=True, capture_output=True)
            yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/prefect"
        finally:
            process.terminate()
            process.wait(timeout=60)
