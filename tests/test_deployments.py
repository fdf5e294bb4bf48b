"""`prefect.yaml` against real servers: it is accepted, events and failures start runs, basic auth keeps others out."""

import importlib
import json
import os
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import yaml
from prefect.utilities.callables import parameter_schema
from prefect_server import POSTGRES, ROOT, postgres, serving
from processes import wait_until

import flows.server
from tasks.review import simulate_event

pytestmark = pytest.mark.slow
SECRET = "duty:correct-horse-battery"
NAMES = {"watch-earthquakes", "watch-imagery", "respond", "detect", "train", "adapt", "housekeeping", "alert"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server with basic auth on which everything is deployed: on PostgreSQL, as operators run it; `up` has SQLite."""
    folder = tmp_path_factory.mktemp("guarded")
    here = POSTGRES or os.environ.get("CI")
    with postgres(folder) if here else nullcontext() as address, serving(folder, database=address, secret=SECRET) as on:
        on.deploy_all()
        yield on
        assert (folder / "prefect.db").exists() == (not here)


def test_prefect_accepts_the_deployments_and_a_worker_runs_one(guarded, tmp_path):
    guarded.run("deploy", "--all")  # again: nothing is there twice
    assert sorted(d["name"] for d in guarded.json("deployment", "ls")) == sorted(NAMES)
    named = [automation["name"] for automation in guarded.ask("automations/filter", {})]
    stated = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert sorted(named) == sorted(t["name"] for d in stated for t in d.get("triggers", ()))

    scene = simulate_event(tmp_path / "scene", size_px=192, gsd_m=10.0, seed=7, sensor="rgb8")
    config = {
        "event": str(scene["event"]), "post": str(scene["post"]), "block": 256, "workers": 1,
        "root": str(tmp_path / "store"), "out": str(tmp_path / "out"),
    }  # fmt: skip
    guarded.run("deployment", "run", "detect/detect", "--param", f"config={json.dumps(config)}")
    with guarded.worker():
        run = wait_until(lambda: _ended(guarded, "detect"), what="end of the detection")
    assert run["state_type"] == "COMPLETED", guarded.log("worker")[-3000:]
    assert (tmp_path / "out/sim000007/v1/inventory.gpkg").is_file()


def _ended(server, flow):
    """The first ended run of a flow."""
    told = {"flows": {"name": {"any_": [flow]}}}
    ends = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
    return next((run for run in server.runs(**told) if run["state_type"] in ends), None)


def test_wrong_parameters_are_left_to_the_flows(guarded):
    given = {"detect": {"config": {"post": 5}}, "respond": {"event_id": "../etc"}, "train": {"run": 5}}
    for name, wrong in given.items():
        (deployment,) = guarded.ask("deployments/filter", {"deployments": {"name": {"any_": [name]}}})
        told = {"parameters": wrong, "state": {"type": "SCHEDULED", "state_details": {"scheduled_time": "2100-01-01"}}}
        made = guarded.ask(f"deployments/{deployment['id']}/create_flow_run", told)
        assert made["parameters"] == {**deployment["parameters"], **wrong}
        assert deployment["parameter_openapi_schema"]["properties"]


def test_schedules_make_runs(guarded):
    def scheduled():
        told = {"deployments": {"name": {"any_": ["watch-earthquakes", "watch-imagery", "housekeeping"]}}}
        return len({run["deployment_id"] for run in guarded.runs(**told)}) == 3

    wait_until(scheduled, within_s=60, what="scheduled runs of the three scheduled deployments")


def test_a_run_that_no_worker_began_gives_its_place_back(guarded):
    (deployment,) = guarded.ask("deployments/filter", {"deployments": {"name": {"any_": ["housekeeping"]}}})
    begun = guarded.ask(f"deployments/{deployment['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}})
    pending = {"state": {"type": "PENDING", "name": "Pending"}}
    assert guarded.ask(f"flow_runs/{begun['id']}/set_state", pending)["status"] == "ACCEPT"
    ask = flows.server.Server(guarded.url, SECRET).ask
    assert flows.server.crash_what_never_began(ask, before=datetime.now(UTC) - timedelta(minutes=5)) == []
    assert flows.server.crash_what_never_began(ask, before=datetime.now(UTC)) == [begun["name"]]
    assert guarded.ask(f"flow_runs/{begun['id']}")["state_type"] == "CRASHED"
    after = guarded.ask(f"deployments/{deployment['id']}")
    assert after["global_concurrency_limit"]["active_slots"] == 0


@pytest.mark.parametrize("event", ["landslidenet.earthquake.active", "landslidenet.imagery.new"])
def test_an_event_starts_the_response_with_its_id(event, guarded):
    event_id = f"x{event.rsplit('.', 1)[1]}"
    guarded.emit(event_id, event)

    def response():
        runs = guarded.runs(deployments={"name": {"any_": ["respond"]}})
        return [run for run in runs if run["parameters"].get("event_id") == event_id]

    (run,) = wait_until(response, within_s=60, what="run of respond")
    assert run["parameters"]["policy"] is None
    guarded.ask(f"flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLED"}})  # no worker is to begin it


def test_an_unknown_event_fails_clearly_and_raises_an_alert(guarded):
    guarded.emit("xunknown", "landslidenet.earthquake.active")
    with guarded.worker():
        alerts = wait_until(
            lambda: [
                r for r in guarded.runs(flows={"name": {"any_": ["alert"]}}) if "xunknown" in r["name"]
                and r["state_type"] == "COMPLETED"
            ],
            within_s=120,
            what="alert",
        )  # fmt: skip
    assert alerts[0]["parameters"]["what"] == "run failed"
    assert "xunknown" in alerts[0]["parameters"]["told"]
    artifacts = guarded.ask("artifacts/filter", {"artifacts": {"key": {"any_": ["alert"]}}})
    assert any("xunknown" in artifact["data"] for artifact in artifacts)


def test_without_the_password_nothing_is_told(guarded):
    for auth in (None, ("duty", "wrong")):
        for path in ("flow_runs/filter", "deployments/filter", "block_documents/filter"):
            assert httpx.post(f"{guarded.url}/api/{path}", json={}, auth=auth).status_code == 401


def test_the_password_is_in_no_log(guarded):
    for path in guarded.folder.rglob("*.log"):
        assert SECRET.split(":")[1] not in path.read_text(errors="replace"), path


@pytest.mark.parametrize(
    "entrypoint", [d["entrypoint"] for d in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]]
)
def test_flows_explain_their_parameters_in_the_form(entrypoint):
    module, _, name = entrypoint.rpartition(".")
    flow = getattr(importlib.import_module(module), name)
    told = parameter_schema(flow.fn).model_dump()["properties"]
    assert not [parameter for parameter, value in told.items() if not value.get("description")]
