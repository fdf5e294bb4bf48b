"""A real Prefect server for tests: on loopback, on SQLite or PostgreSQL, with workers as processes of their own."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import httpx
import psutil
from processes import free_port, wait_until

ROOT = Path(__file__).parents[1]
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def end(process):
    """End a process and all that it started."""
    with suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.terminate()
        for one in psutil.wait_procs(family, timeout=15)[1]:
            one.kill()
    process.wait()


def quiet_policy(folder):
    """A policy file in a folder: an empty feed, no imagery, and nothing asked of the net."""
    feed, path = folder / "feed.geojson", folder / "policy.yaml"
    feed.write_text(json.dumps({"type": "FeatureCollection", "metadata": {"count": 0}, "features": []}))
    places = {name: str(folder / name) for name in ("root", "out", "state")}
    path.write_text(json.dumps({**places, "earthquakes": {"feed": str(feed), "query": None}}))
    return path


class Server:
    """A running server: its environment for clients, its log, and its `prefect` command."""

    def __init__(self, folder, *, port=None, database=None, secret=None):
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

    def run(self, *arguments, cwd=ROOT, check=True):
        """A `prefect` command's result."""
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        done = subprocess.run(command, env=self.environment, cwd=cwd, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done

    def json(self, *arguments):
        return json.loads(self.run(*arguments, "--output", "json").stdout)

    def ask(self, path, body=None):
        """The answer of the API, as JSON: POST with a body, else GET."""
        auth = tuple(self.secret.split(":", 1)) if self.secret else None
        url = f"{self.url}/api/{path}"
        got = (
            httpx.get(url, auth=auth, timeout=30) if body is None else httpx.post(url, json=body, auth=auth, timeout=30)
        )
        assert got.status_code < 400, got.text
        return got.json() if got.content else None

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
