"""Flows as Prefect starts them: it keeps no secret of theirs, and hears our words of parameters that do not fit."""

import json
import shutil
import sqlite3
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from detection import RUNNING
from stac_server import files_of

from catalog import secrets
from catalog.items import LOCAL, local_item
from catalog.schema import InputError
from catalog.sensors import sensor
from tasks.review import simulate_event

PLANTED = "Pl4ntedS3cret"
NAME = "LANDSLIDENET_SECRET_IMAGERY"


@pytest.fixture(autouse=True)
def _nothing_is_known():
    yield
    secrets._known.clear()


class Refusing:
    """A cluster class that repeats what it is given."""

    def __init__(self, **options):
        raise TypeError(f"cannot log in with {options}")


def started(flow, **parameters):
    """The ended run of a flow that is started as a worker starts it: with the parameters that Prefect has stored."""
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow

    with get_client(sync_client=True) as client:
        told = {"flow_id": str(client.create_flow(flow)), "parameters": parameters, "state": {"type": "SCHEDULED"}}
        made = client.request("POST", "/flow_runs/", json=told)
        stored = client.read_flow_run(made.json()["id"])
        assert stored.parameters == parameters
        run_flow(flow, flow_run=stored, return_type="state")
        return client.read_flow_run(stored.id)


def said_by_prefect(folder):
    """Every row of the server's database, which is copied into a folder."""
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL

    APILogWorker.drain_all(timeout=60)
    place = Path("/" + urlsplit(PREFECT_SERVER_DATABASE_CONNECTION_URL.value()).path.lstrip("/"))
    (folder / "database").mkdir()
    for path in place.parent.glob(f"{place.name}*"):
        shutil.copy(path, folder / "database")
    with sqlite3.connect(folder / "database" / place.name) as database:
        return "\n".join(database.iterdump())


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return simulate_event(tmp_path_factory.mktemp("scene") / "s", size_px=192, gsd_m=10.0, seed=7, sensor="rgb8")


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_a_detection_leaves_no_secret_anywhere(scene, tmp_path, monkeypatch, caplog):
    from flows.detect import detect

    monkeypatch.setenv(NAME, f"{PLANTED}-of-the-environment")
    served = tmp_path / "www"
    (served / f"{PLANTED}-of-the-environment").mkdir(parents=True)
    shutil.copy(scene["post"], served / "post.tif")
    shutil.copy(scene["pre"], served / f"{PLANTED}-of-the-environment/pre.tif")
    with files_of(served) as host:
        item = local_item(scene["post"], sensor("rgb8")).to_dict(transform_hrefs=False)
        del item["properties"][LOCAL]
        for asset in item["assets"].values():
            asset["href"] = f"http://{host}/post.tif?X-Amz-Signature={PLANTED}&sig={PLANTED}"
        (tmp_path / "items.json").write_text(json.dumps(item))
        config = {
            "name": "e", "post": str(tmp_path / "items.json"),
            "pre": f"http://me:{PLANTED}@{host}/${{{NAME}}}/pre.tif",
            "root": str(tmp_path / "store"), "out": str(tmp_path / "out"), "block": 256,
            "cluster": {"address": RUNNING[0], "options": {"n": 2, "auth": PLANTED, "key": f"${{{NAME}}}"}},
        }  # fmt: skip
        run = started(detect, config=config)
    assert run.state.is_completed(), run.state.message
    assert run.parameters["config"]["pre"] == f"http://***@{host}/${{{NAME}}}/pre.tif"
    assert run.parameters["config"]["cluster"]["options"] == {"n": 2, "auth": "***", "key": f"${{{NAME}}}"}
    said = said_by_prefect(tmp_path)
    assert f"${{{NAME}}}/pre.tif" in said
    assert PLANTED not in said
    assert PLANTED not in caplog.text
    told = json.loads((tmp_path / "out/e/v1/run.json").read_text())
    assert told["config"]["pre"] == [f"http://***@{host}/${{{NAME}}}/pre.tif"]
    files = [path for path in Path(tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) > 8
    assert [path.name for path in files if PLANTED.encode() in path.read_bytes()] == []


@pytest.mark.usefixtures("prefect_api")
def test_a_failure_in_the_words_of_others_tells_no_secret(scene, tmp_path, caplog):
    from flows.detect import detect

    places = {"root": str(tmp_path / "store"), "out": str(tmp_path / "out"), "block": 256}
    cluster = {"address": "test_guarded.Refusing", "options": {"auth": PLANTED}}
    run = started(detect, config={"name": "e", "post": str(scene["post"]), "cluster": cluster, **places})
    assert run.state.is_failed()
    assert "cannot log in with {'auth': '***'}" in run.state.message
    assert PLANTED not in said_by_prefect(tmp_path)
    assert PLANTED not in caplog.text


@pytest.mark.usefixtures("prefect_api")
def test_a_flow_called_with_keys_and_values_stores_no_secret(tmp_path):
    from flows.detect import detect

    given = {"name": "e", "post": f"https://host.invalid/a.tif?sig={PLANTED}", "threshold": "high"}
    with pytest.raises(InputError, match="threshold"):
        detect(given)
    assert PLANTED not in said_by_prefect(tmp_path)


# --- parameters that do not fit --------------------------------------------------------------------------------------

CONFIG = {"name": "e", "post": "a.tif"}
WRONG = {
    "detect.detect": [
        ({"config": {**CONFIG, "threshold": "high"}}, "`threshold`: got 'high'; expected `scene`, `card` or a number"),
        ({"config": {**CONFIG, "block": "x"}}, "`block_px`: got 'x'; expected a whole number"),
        ({"config": "a.tif"}, "detect: `config`: got 'a.tif'; expected keys and values"),
    ],
    "respond.respond": [
        ({"event_id": "../etc"}, "respond: `event_id`: got '../etc'; expected 1 to 64 letters"),
        ({"policy": "p.yaml"}, "respond: `event_id`: got ''; expected 1 to 64 letters"),
        ({"event_id": "us1", "policy": 5}, "respond: `policy`: got 5; expected text"),
    ],
    "housekeeping.housekeeping": [
        ({"dry_run": "perhaps"}, "housekeeping: `dry_run`: got 'perhaps'; expected true or false"),
    ],
    "train.train": [({"run": {"tiles": "t", "out": "o", "steps": 0}}, "`steps`: got 0; expected a whole number")],
}
OTHERS_WORDS = ("pydantic", "validation error", "Input should", "literal[", "type=", "unexpected keyword", "signature")


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize(
    ("name", "parameters", "words"), [(name, *case) for name, cases in WRONG.items() for case in cases]
)
def test_wrong_parameters_are_refused_in_our_words(name, parameters, words):
    import importlib

    module, _, attribute = name.partition(".")
    run = started(getattr(importlib.import_module(f"flows.{module}"), attribute), **parameters)
    assert run.state.is_failed()
    assert words in run.state.message
    assert not [other for other in OTHERS_WORDS if other in run.state.message]
