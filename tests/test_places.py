"""Runs that no worker began, on a Prefect server without `landslidenet up`."""

from datetime import timedelta
from uuid import uuid4

import pytest
import yaml
from prefect_server import ROOT, ask, quiet_policy

from flows import server
from flows.housekeeping import housekeeping
from flows.watch_earthquakes import watch_earthquakes
from flows.watch_imagery import watch_imagery

WATCHERS = [housekeeping, watch_earthquakes, watch_imagery]


def handed_over(api, flow):
    """Deployment and run of a flow that was handed to a worker, and holds the only place."""
    made = ask(f"{api}/flows/", {"name": flow})["id"]
    told = {"name": str(uuid4()), "flow_id": made, "concurrency_limit": 1}
    deployment = ask(f"{api}/deployments/", told)["id"]
    run = ask(f"{api}/deployments/{deployment}/create_flow_run", {})["id"]
    answer = ask(f"{api}/flow_runs/{run}/set_state", {"state": {"type": "PENDING", "name": "Pending"}})
    assert answer["status"] == "ACCEPT", answer
    return deployment, run


def places_held(api, deployment):
    return ask(f"{api}/deployments/{deployment}")["global_concurrency_limit"]["active_slots"]


@pytest.mark.slow
@pytest.mark.parametrize("watcher", WATCHERS, ids=lambda flow: flow.name)
def test_a_watcher_frees_the_places_of_runs_that_never_began(prefect_api, watcher, tmp_path, monkeypatch):
    policy = str(quiet_policy(tmp_path))
    (ours, run), (theirs, _) = (handed_over(prefect_api, flow) for flow in ("respond", "of somebody else"))
    watcher(policy=policy)
    assert [places_held(prefect_api, deployment) for deployment in (ours, theirs)] == [1, 1]
    monkeypatch.setattr("flows.places.PENDING", timedelta(0))
    watcher(policy=policy)
    assert [places_held(prefect_api, deployment) for deployment in (ours, theirs)] == [0, 1]
    assert ask(f"{prefect_api}/flow_runs/{run}")["state_type"] == "CRASHED"


@pytest.mark.slow
def test_a_watcher_goes_on_where_the_server_does_not_answer_in_this(prefect_api, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("busy")

    monkeypatch.setattr("flows.places.crash_what_never_began", fail)
    assert housekeeping(policy=str(quiet_policy(tmp_path))) == 0


def test_the_flows_that_are_looked_after_are_those_that_are_deployed():
    stated = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert sorted(server.FLOWS) == sorted(deployment["name"] for deployment in stated)
