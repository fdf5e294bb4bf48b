"""Alerts on a real server: a watcher that is silent, and the notification block that an operator saved."""

import asyncio
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import psutil
import pytest
import yaml
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect_server import ROOT, serving
from processes import wait_until

from flows.alert import notify
from tasks.review import simulate_event

pytestmark = pytest.mark.slow


@pytest.fixture
def phone():
    """The address of a webhook, and what it was told."""
    told = []

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self):
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Webhook) as web:
        Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}/", told
        web.shutdown()


def test_a_silent_watcher_raises_an_alert_that_reaches_the_duty_phone(phone, migrated, tmp_path):
    address, told = phone
    stated = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    (alert,) = (deployment for deployment in stated["deployments"] if deployment["name"] == "alert")
    silent = next(trigger for trigger in alert["triggers"] if trigger["name"] == "alert of a silent earthquake watcher")
    assert silent["within"] >= 600  # seconds: several polls
    silent["within"] = 10
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump({**stated, "deployments": [alert]}))
    block = CustomWebhookNotificationBlock(
        name="duty phone", url=address, method="POST", json_data={"text": "{{subject}} | {{body}}"}
    )
    with serving(tmp_path, migrated=migrated) as server:
        server.run("work-pool", "create", "landslidenet", "--type", "process")
        with server.asked_here():
            block.save("landslidenet-alert")
        server.run("deploy", "--all", "--prefect-file", str(tmp_path / "prefect.yaml"))
        with server.worker():
            wait_until(lambda: told, what="message on the duty phone")
    assert told[0] == {
        "text": "landslidenet · watcher silent: watch-earthquakes | no poll was completed for 30 minutes"
    }


class Line(NotificationBlock):
    """A block that keeps what it is told, or is out of order."""

    heard: list[str] = []
    works: bool = True

    async def notify(self, body, subject=None):
        if not self.works:
            raise ConnectionError("the line is dead")
        self.heard.append(f"{subject} | {body}")


def test_notify_reaches_the_others_when_one_block_fails():
    dead, live = Line(works=False), Line()
    with pytest.raises(ConnectionError, match="the line is dead"):
        asyncio.run(notify([dead, live], body="so", subject="run failed"))
    assert live.heard == ["run failed | so"]


def test_a_run_whose_worker_was_killed_is_crashed_alerted_and_goes_on_when_run_again(migrated, tmp_path):
    (tmp_path / "automations.yaml").write_text(
        (ROOT / "flows/automations.yaml").read_text().replace("within: 300", "within: 40")
    )
    stated = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    wanted = [deployment for deployment in stated["deployments"] if deployment["name"] in ("alert", "detect")]
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump({**stated, "deployments": wanted}))
    scene = simulate_event(tmp_path / "scene", size_px=384, gsd_m=10.0, seed=7, sensor="rgb8")
    config = {
        "event": str(scene["event"]), "post": str(scene["post"]), "dem": str(scene["dem"]), "block": 256, "workers": 1,
        "root": str(tmp_path / "store"), "out": str(tmp_path / "out"),
    }  # fmt: skip
    run = ["deployment", "run", "detect/detect", "--param", f"config={json.dumps(config)}"]
    with serving(tmp_path, migrated=migrated) as server:
        server.run("work-pool", "create", "landslidenet", "--type", "process")
        server.run("deploy", "--all", "--prefect-file", str(tmp_path / "prefect.yaml"))
        server.run("automation", "create", "--from-file", str(tmp_path / "automations.yaml"))
        server.run(*run)
        with server.worker("first", PREFECT_FLOWS_HEARTBEAT_FREQUENCY="30") as worker:
            wait_until(lambda: list(tmp_path.glob("store/*/*.ledger/r*.json")), every_s=0.02, what="first block")
            for process in [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]:
                process.kill()
        assert not list(tmp_path.glob("out/*/v*"))
        with server.worker("second", PREFECT_FLOWS_HEARTBEAT_FREQUENCY="30"):
            (crashed,) = wait_until(lambda: _runs(server, "detect", "CRASHED"), what="crash of the silent run")
            assert "no sign of life" in crashed["state"]["message"]
            (alert,) = wait_until(lambda: _runs(server, "alert", "COMPLETED"), what="alert")
            assert "no sign of life" in alert["parameters"]["told"]
            server.run(*run)
            wait_until(lambda: _runs(server, "detect", "COMPLETED"), within_s=300, what="end of the second run")
    product = next(tmp_path.glob("out/*/v1"))
    stages = json.loads((product / "run.json").read_text())["provenance"]["stages"]
    assert sum(stage.get("blocks_done_before", 0) for stage in stages) >= 1


def _runs(server, flow, state):
    return [run for run in server.runs(flows={"name": {"any_": [flow]}}) if run["state_type"] == state]
