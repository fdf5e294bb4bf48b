"""A response from search to product: a real STAC API, COGs over HTTP, the real detection, a Prefect server."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from detection import RUNNING
from prefect.settings import PREFECT_API_URL

from flows.respond import respond
from flows.watch_imagery import watch_imagery

pytestmark = pytest.mark.slow

RUN = "import sys; from flows.respond import respond; respond(*sys.argv[1:])"


@pytest.fixture
def followed(followed, warm):
    """The event, mapped by the workers of all tests."""
    rules = yaml.safe_load(Path(followed.policy).read_text())
    rules["detection"] = {"block": 256, "gsd": 10.0, "cluster": RUNNING[0]}
    Path(followed.policy).write_text(yaml.safe_dump(rules))
    return followed


def environment():
    """Of a process that runs flows on the server of these tests."""
    root = Path(__file__).parents[1]
    return {**os.environ, "PYTHONPATH": str(root), "PREFECT_API_URL": str(PREFECT_API_URL.value())}


def test_respond_waits_then_maps_then_maps_only_what_is_new(followed):
    followed.api.serve(followed.item("pre", days=-20))
    state = respond(followed.event.id, followed.policy, return_state=True)
    assert (state.name, state.is_completed()) == ("Waiting", True), state.message
    assert "waiting since" in state.message
    assert "expected next" in state.message
    assert followed.response().next_search_utc > followed.response().searched_utc

    followed.api.serve(followed.item("pre", days=-20), followed.item("west", days=1))
    command = [sys.executable, "-c", RUN, followed.event.id, followed.policy]
    both = [subprocess.Popen(command, env=environment()) for _ in "ab"]
    assert [process.wait(timeout=500) for process in both] == [0, 0]
    (first,) = followed.response().versions
    assert (first.number, first.post, first.pre) == (1, ("west",), ("pre",))
    assert (Path(first.folder) / "inventory.gpkg").is_file()

    again = respond(followed.event.id, followed.policy, return_state=True)
    assert again.is_completed()
    assert "nothing that is better than v1" in again.message
    assert len(followed.response().versions) == 1

    followed.forget_the_last_version()
    found = respond(followed.event.id, followed.policy, return_state=True)
    assert found.is_completed(), found.message
    assert followed.response().versions[0].folder == first.folder

    followed.forget_the_pause()
    followed.api.serve(followed.item("pre", days=-20), followed.item("west", days=1), followed.item("east", days=2))
    watched = watch_imagery(followed.policy, return_state=True)
    assert watched.is_completed(), watched.message
    assert len(followed.response().announced) == 1
    state = respond(followed.event.id, followed.policy, return_state=True)
    assert state.is_completed(), state.message
    _, second = followed.response().versions
    assert (second.number, second.post) == (2, ("west", "east"))
    assert followed.response().announced == {}
    run = json.loads((Path(second.folder) / "run.json").read_text())
    assert [entry["path"] for entry in run["provenance"]["inputs"] if entry["role"] == "post"] == ["west", "east"]


def test_respond_with_a_scene_cut_off_publishes_nothing_and_heals(followed):
    cog = followed.folder / "files/west.tif"
    followed.api.serve(followed.item("west", days=1))
    shutil.copy(cog, followed.folder / "whole.tif")
    os.truncate(cog, cog.stat().st_size * 2 // 3)
    state = respond(followed.event.id, followed.policy, return_state=True)
    assert state.is_failed()
    assert "the detection did not succeed" in state.message
    assert "west.tif" in state.message
    assert not list((followed.folder / "out").glob("*/v*"))
    assert followed.response().versions == ()

    shutil.copy(followed.folder / "whole.tif", cog)
    state = respond(followed.event.id, followed.policy, return_state=True)
    assert state.is_completed(), state.message
    assert [version.number for version in followed.response().versions] == [1]
