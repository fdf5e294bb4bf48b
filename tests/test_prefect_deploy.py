"""`prefect.yaml` against a real local server: the deployment is accepted."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


def test_prefect_accepts_the_deployments(server):
    _prefect(server, "work-pool", "create", "landslidenet", "--type", "process")
    _prefect(server, "deploy", "--all")
    deployments = json.loads(_prefect(server, "deployment", "ls", "--output", "json"))
    assert "detect" in {d["name"] for d in deployments}
