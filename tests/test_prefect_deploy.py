"""`prefect.yaml` against a real local server: the deployment is accepted, and a worker runs it when it is triggered."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.review import simulate_event

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "ERROR",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    log = (tmp_path / "server.log").open("w")
    running = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    for _ in range(240):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert running.poll() is None, (tmp_path / "server.log").read_text()
        time.sleep(0.5)
    yield environment
    running.terminate()
    running.wait()
    log.close()


def _prefect(environment, *arguments):
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_prefect_accepts_the_deployments_and_a_worker_runs_one(server, tmp_path):
    _prefect(server, "work-pool", "create", "landslidenet", "--type", "process")
    _prefect(server, "deploy", "--all")
    deployments = json.loads(_prefect(server, "deployment", "ls", "--output", "json"))
    assert "detect" in {d["name"] for d in deployments}

    scene = simulate_event(tmp_path / "scene", size_px=192, gsd_m=10.0, seed=7, sensor="rgb8")
    config = {
        "event": str(scene["event"]), "post": str(scene["post"]), "block": 256, "workers": 1,
        "root": str(tmp_path / "store"), "out": str(tmp_path / "out"),
    }  # fmt: skip
    _prefect(server, "deployment", "run", "detect/detect", "--param", f"config={json.dumps(config)}")
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "landslidenet", "--run-once"]
    environment = {**server, "PYTHONPATH": str(ROOT)}
    log = tmp_path / "worker.log"
    with log.open("w") as stream:
        subprocess.run(worker, env=environment, cwd=ROOT, stdout=stream, stderr=stream, timeout=600, check=True)
    (run,) = json.loads(_prefect(server, "flow-run", "ls", "--output", "json"))
    assert run["state_type"] == "COMPLETED", log.read_text()[-3000:]
    assert (tmp_path / "out/sim000007/v1/inventory.gpkg").is_file()
