"""`landslidenet up`: everything starts with it and ends with it; what cannot start says why."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import httpx
import psutil
import pytest
import yaml
from prefect.events.schemas.automations import AutomationCore
from prefect_server import ROOT, ask, quiet_policy
from processes import free_port, wait_until
from stac_server import Answers, answering, served

from catalog.config import parse_config
from catalog.policy import Policy
from catalog.schema import InputError
from catalog.sensors import SENSORS
from flows import duty
from flows.analyst import run_detect
from flows.respond import WAITING
from flows.server import Server
from flows.service import (
    Parts,
    Service,
    ServiceError,
    _missing_automations,
    end_processes,
    run_service,
    write_deployments,
)
from flows.terminal import flow_run

SECRET = "duty:correct-horse-battery"


def _up(folder, port, *, home="home", **variables):
    command = [sys.executable, "-c", "from flows.cli import main; main()", "up", "--port", str(port)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    with (folder / "out.log").open("ab") as out, (folder / "err.log").open("ab") as err:
        return subprocess.Popen(
            [*command, "--home", str(folder / home), "--policy", str(folder / "policy.yaml")],
            env={**kept, "PYTHONPATH": str(ROOT), **variables}, cwd=folder, stdout=out, stderr=err,
            start_new_session=True,
        )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    quiet_policy(tmp_path)
    return tmp_path


def _ready(folder, process, url, *, times=1):
    def told():
        assert process.poll() is None, (folder / "err.log").read_text()
        return (folder / "out.log").read_text().split().count(url) == times

    wait_until(told, within_s=300, what="address of the UI")


def _family(process):
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.slow
def test_up_starts_everything_and_a_signal_ends_all_of_it(folder):
    port = free_port()
    url, api = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}/api"
    auth = tuple(SECRET.split(":"))
    nowhere = f"http://127.0.0.1:{free_port()}"
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"), nowhere)
    process = _up(folder, port, PREFECT_SERVER_API_AUTH_STRING=SECRET, **proxies)
    _ready(folder, process, url)
    assert "<title>" in httpx.get(url, follow_redirects=True).text
    assert httpx.post(f"{api}/deployments/filter", json={}).status_code == 401
    deployments = ask(f"{api}/deployments/filter", {}, auth=auth)
    policies = {d["parameters"]["policy"] for d in deployments if "policy" in d["parameters"]}
    assert policies == {str(folder / "policy.yaml")}

    housekeeping = next(d for d in deployments if d["name"] == "housekeeping")
    started = ask(f"{api}/deployments/{housekeeping['id']}/create_flow_run", {}, auth=auth)

    def done():
        run = ask(f"{api}/flow_runs/{started['id']}", auth=auth)
        assert run["state_type"] not in ("FAILED", "CRASHED"), run["state"]["message"]
        return run["state_type"] == "COMPLETED"

    wait_until(done, within_s=120, what="run of housekeeping by the worker")
    family = _family(process)
    os.killpg(process.pid, signal.SIGTERM)  # as systemd, `timeout` and a terminal do
    assert process.wait(timeout=10) == 0
    assert not [one for one in family if one.is_running()]
    told = (folder / "err.log").read_text().partition("logs: ")[2].splitlines()[1:]
    assert told == ["stopping; the same command goes on where this was, finished blocks are kept"]
    for log in [*(folder / "home/logs").glob("*.log"), folder / "out.log", folder / "err.log"]:
        assert SECRET.split(":")[1] not in log.read_text(errors="replace"), log


@pytest.mark.slow
def test_up_again_keeps_the_history_and_ends_with_the_first_of_its_parts(folder, migrated):
    (folder / "home").mkdir()
    shutil.copy(migrated, folder / "home/prefect.db")
    port = free_port()
    api, counts = f"http://127.0.0.1:{port}/api", []

    def look(times):
        _ready(folder, process, f"http://127.0.0.1:{port}", times=times)
        ids = {d["name"]: d["id"] for d in ask(f"{api}/deployments/filter", {})}
        automations = ask(f"{api}/automations/filter", {})
        counts.append((ids, sorted(a["name"] for a in automations)))

    process = _up(folder, port)
    look(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=90) == 0

    process = _up(folder, port)
    look(2)
    assert counts[0] == counts[1]
    assert len(counts[0][0]) == 8
    assert "a run without a sign of life is crashed" in counts[0][1]

    family = _family(process)
    worker = next(one for one in family if "worker" in one.cmdline())
    worker.kill()
    assert process.wait(timeout=90) == 1
    told = (folder / "err.log").read_text()
    assert re.search(r"failed: up: worker ended with status -9; the end of .*worker\.log", told)
    assert not [one for one in family if one.is_running()]


PART = """
import os, sys
from pathlib import Path
from threading import Event
from flows.respond import WAITING
from flows.service import Parts, Service
home, sys.executable = Path(sys.argv[1]), sys.argv[2]
parts = Parts(Service(home), dict(os.environ), Event())
parts.start("part")
print(parts.running["part"].pid, flush=True)
parts.wait("part", lambda: False)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's end")
def test_a_part_ends_with_an_up_that_is_killed(tmp_path):
    (tmp_path / "logs").mkdir()
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 100\n")
    sleeper.chmod(0o755)
    command = [sys.executable, "-c", PART, str(tmp_path), str(sleeper)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        part = psutil.Process(int(process.stdout.readline()))
        process.kill()
    wait_until(lambda: not part.is_running() or part.status() == psutil.STATUS_ZOMBIE, within_s=10, what="end")


def test_up_refuses_a_port_that_is_taken(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        service = Service(tmp_path, port=taken.getsockname()[1])
        with pytest.raises(InputError, match=r"cannot be used .*--port"):
            run_service(service, say=print, ready=print)


@pytest.mark.parametrize(
    ("host", "told"), [("0.0.0.0", "PREFECT_SERVER_API_AUTH_STRING"), ("nowhere", "not an IPv4 address")]
)
def test_up_refuses_a_host(host, told, tmp_path, monkeypatch):
    monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING", raising=False)
    with pytest.raises(InputError, match=told):
        run_service(Service(tmp_path, host=host, port=free_port()), say=print, ready=print)


def test_up_refuses_a_bad_policy_before_anything_starts(tmp_path):
    (tmp_path / "policy.yaml").write_text("retentoin: {}\n")
    with pytest.raises(InputError, match="retentoin"):
        run_service(Service(tmp_path / "home", policy=str(tmp_path / "policy.yaml")), say=print, ready=print)
    assert not (tmp_path / "home").exists()


def test_service_hands_the_password_on_by_environment(tmp_path):
    told = Service(tmp_path, policy="/p.yaml").variables({"PREFECT_SERVER_API_AUTH_STRING": SECRET, "PATH": "/bin"})
    assert told["PREFECT_API_AUTH_STRING"] == SECRET
    assert told["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    assert told["LANDSLIDENET_POLICY"] == "/p.yaml"
    assert told["PATH"] == "/bin"


def test_service_asks_its_own_server_without_a_proxy(tmp_path, monkeypatch):
    told = Service(tmp_path, host="10.0.0.7").variables({"NO_PROXY": "example.org", "PATH": "/bin"})
    assert told["no_proxy"] == told["NO_PROXY"] == "example.org,127.0.0.1,localhost,::1,10.0.0.7"
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with answering(body=b"[]") as host:
        server = Server(f"http://{host}")
        assert server.is_healthy()
    assert not server.is_healthy()


@pytest.mark.parametrize("home", ["/dev/null/home", "file"])
def test_up_says_at_once_that_its_home_cannot_be_written(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("no folder")
    with pytest.raises(InputError, match="cannot be written .*pass another --home"):
        run_service(Service(Path(home), port=free_port()), say=print, ready=print)


def test_commands_say_at_once_that_prefects_home_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.delenv("PREFECT_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    quiet_policy(tmp_path)
    for command in (
        lambda: duty.watch(tmp_path / "policy.yaml"),
        lambda: duty.respond("us1", tmp_path / "policy.yaml"),
        lambda: run_detect({"name": "e", "post": "post.tif"}),
        lambda: flow_run().__enter__(),
    ):
        with pytest.raises(InputError, match=r"file/\.prefect: cannot be written \(Not a directory\).*PREFECT_HOME"):
            command()


def test_service_asks_again_where_its_server_was_busy():
    codes = [503, 503, 200]

    class Busy(Answers):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.status = codes.pop(0)
            self.do_GET()

    with served(Busy) as host:
        assert Server(f"http://{host}").ask("work_pools/filter") == {}
        assert codes == []
        codes += [503] * 3
        with pytest.raises(ServiceError, match="did not answer when asked for work_pools/filter .*503"):
            Server(f"http://{host}").ask("work_pools/filter", timeout_s=0.9)
        assert codes == [503]
        codes[:] = [500, 200]
        with pytest.raises(ServiceError, match="500"):
            Server(f"http://{host}").ask("work_pools/filter")


def test_automations_that_are_there_are_not_made_twice(tmp_path):
    stated = yaml.safe_load((ROOT / "flows/automations.yaml").read_text())["automations"]
    known = []

    class Automations(Answers):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.body = json.dumps(known).encode()
            self.do_GET()

    with served(Automations) as host:
        server = Server(f"http://{host}")
        missing = _missing_automations(Service(tmp_path), server)
        assert yaml.safe_load(missing.read_text())["automations"] == stated
        known += [{"name": automation["name"]} for automation in stated]
        assert _missing_automations(Service(tmp_path), server) is None


def test_deployments_of_a_service_have_its_policy_as_default(tmp_path):
    written = yaml.safe_load(write_deployments(Service(tmp_path, policy="/p.yaml")).read_text())
    given = {
        d["name"]: d["parameters"]["policy"] for d in written["deployments"] if "policy" in d.get("parameters", {})
    }
    assert given == dict.fromkeys(("watch-earthquakes", "watch-imagery", "respond", "housekeeping"), "/p.yaml")


def test_a_command_that_fails_is_told_with_the_end_of_its_log(tmp_path):
    (tmp_path / "logs").mkdir()
    parts = Parts(Service(tmp_path), dict(os.environ), Event())
    with pytest.raises(ServiceError, match=r"up: pool failed with status .*pool\.log(.|\n)*nonsense"):
        parts.finish("pool", "nonsense")


def test_end_processes_ends_children_that_do_not_listen():
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {deaf!r}]); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"deaf\n"
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
        start = time.monotonic()
        end_processes([process.pid])
        assert not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        assert time.monotonic() - start < 30


def _examples(language="yaml"):
    """The examples of the runbook, by their first line."""
    text = (ROOT / "docs/operations.md").read_text()
    found = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return {example.splitlines()[0]: example for example in found}


def test_the_policy_of_the_runbook_is_one():
    (example,) = (text for first, text in _examples().items() if first.startswith("root: /data"))
    policy = Policy.model_validate(yaml.safe_load(example))
    assert parse_config({"name": "e", "post": "a.tif", **policy.detection}).block_px == 1024
    assert policy.imagery.sources[0].sensor in SENSORS


def test_the_automations_are_such(tmp_path):
    (example,) = (text for first, text in _examples().items() if first.startswith("# prefect automation create"))
    stated = [yaml.safe_load(example.replace("BLOCK_ID", "0198d0c2-0000-7000-8000-000000000000"))]
    stated += yaml.safe_load((ROOT / "flows/automations.yaml").read_text())["automations"]
    for automation in stated:
        assert AutomationCore.model_validate(automation).trigger.expect


def test_no_end_of_a_run_is_taken_for_silence():
    (silent,) = yaml.safe_load((ROOT / "flows/automations.yaml").read_text())["automations"]
    ends = {"Completed", WAITING, "Failed", "Cancelled", "Crashed"}
    assert {f"prefect.flow-run.{end}" for end in ends} <= set(silent["trigger"]["expect"])


def test_every_deployment_is_explained_by_the_runbook():
    text = (ROOT / "docs/operations.md").read_text()
    stated = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert not [deployment["name"] for deployment in stated if f"`{deployment['name']}`" not in text]
