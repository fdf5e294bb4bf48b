"""A response from search to product: a real STAC API, COGs over HTTP, the real detection, a Prefect server."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from followed_event import Followed
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness
from stac_server import files_of

from flows.respond import respond
from flows.watch_imagery import watch_imagery
from tasks.review import simulate_event

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def harness():
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return simulate_event(tmp_path_factory.mktemp("scene") / "s", size_px=320, gsd_m=10.0, seed=7, sensor="rgb8")


@pytest.fixture
def place(tmp_path, scene):
    with files_of(tmp_path / "files") as host:
        made = Followed(tmp_path, scene, host)
        yield made
        made.api.stop()


RUN = "import sys; from flows.respond import respond; respond(*sys.argv[1:])"


def environment():
    """Of a process that runs flows on the server of these tests."""
    root = Path(__file__).parents[1]
    return {**os.environ, "PYTHONPATH": str(root), "PREFECT_API_URL": str(PREFECT_API_URL.value())}


def test_respond_waits_then_maps_then_maps_only_what_is_new(place):
    place.api.serve(place.item("pre", days=-20))
    state = respond(place.event.id, place.policy, return_state=True)
    assert (state.name, state.is_completed()) == ("Waiting", True), state.message
    assert "waiting since" in state.message
    assert "expected next" in state.message
    assert place.response().next_search_utc > place.response().searched_utc

    place.api.serve(place.item("pre", days=-20), place.item("west", days=1))
    both = [
        subprocess.Popen([sys.executable, "-c", RUN, place.event.id, place.policy], env=environment()) for _ in "ab"
    ]
    assert [process.wait(timeout=500) for process in both] == [0, 0]
    (first,) = place.response().versions
    assert (first.number, first.post, first.pre) == (1, ("west",), ("pre",))
    assert (Path(first.folder) / "inventory.gpkg").is_file()

    again = respond(place.event.id, place.policy, return_state=True)
    assert again.is_completed()
    assert "nothing that is better than v1" in again.message
    assert len(place.response().versions) == 1

    place.forget_the_last_version()
    found = respond(place.event.id, place.policy, return_state=True)
    assert found.is_completed(), found.message
    assert place.response().versions[0].folder == first.folder

    place.forget_the_pause()
    place.api.serve(place.item("pre", days=-20), place.item("west", days=1), place.item("east", days=2))
    watched = watch_imagery(place.policy, return_state=True)
    assert watched.is_completed(), watched.message
    assert len(place.response().announced) == 1
    state = respond(place.event.id, place.policy, return_state=True)
    assert state.is_completed(), state.message
    _, second = place.response().versions
    assert (second.number, second.post) == (2, ("west", "east"))
    assert place.response().announced == {}
    run = json.loads((Path(second.folder) / "run.json").read_text())
    assert [entry["path"] for entry in run["provenance"]["inputs"] if entry["role"] == "post"] == ["west", "east"]


def test_respond_with_a_scene_cut_off_publishes_nothing_and_heals(place):
    cog = place.folder / "files/west.tif"
    place.api.serve(place.item("west", days=1))
    shutil.copy(cog, place.folder / "whole.tif")
    os.truncate(cog, cog.stat().st_size * 2 // 3)
    state = respond(place.event.id, place.policy, return_state=True)
    assert state.is_failed()
    assert "the detection did not succeed" in state.message
    assert not list((place.folder / "out").glob("*/v*"))
    assert place.response().versions == ()

    shutil.copy(place.folder / "whole.tif", cog)
    state = respond(place.event.id, place.policy, return_state=True)
    assert state.is_completed(), state.message
    assert [version.number for version in place.response().versions] == [1]
