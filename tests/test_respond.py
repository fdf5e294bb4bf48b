"""A response from search to product: a real STAC API, COGs over HTTP, the real detection, a Prefect server."""

import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import geopandas as gpd
import pytest
import rasterio
import yaml
from prefect.testing.utilities import prefect_test_harness
from shapely.geometry import box
from stac_server import COLLECTION, StacApi, cog_of, files_of, item_of

from catalog.config import Event
from catalog.events import load_event
from catalog.responses import read_response, save_event
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


class Place:
    """An event of yesterday that is followed, its imagery as COGs on a server, and a STAC API that lists some of it."""

    def __init__(self, folder, scene, host):
        self.folder, self.host, self.api = folder, host, StacApi(folder / "api")
        simulated = load_event(str(scene["event"]))
        now = datetime.now(UTC).replace(microsecond=0)
        self.event = Event(**{**simulated.model_dump(), "time_utc": now - timedelta(days=3)})
        with rasterio.open(scene["post"]) as dataset:
            bounds, epsg = dataset.bounds, dataset.crs.to_epsg()
        area = gpd.GeoSeries([box(*bounds)], crs=epsg).to_crs(4326).iloc[0]
        self.state = str(folder / "state")
        save_event(self.state, self.event, area)
        source = {"url": self.api.url, "collection": COLLECTION, "sensor": "rgb8"}
        rules = {
            "root": str(folder / "store"), "out": str(folder / "out"), "state": self.state, "hosts": [host],
            "imagery": {"sources": [source], "timeout_s": 10},
            "detection": {"block": 256, "workers": 1, "gsd": 10.0},
        }  # fmt: skip
        self.policy = str(folder / "policy.yaml")
        Path(self.policy).write_text(yaml.safe_dump(rules))
        (folder / "files").mkdir()
        for name, source, columns in (
            ("pre", "pre", (0, 1)), ("west", "post", (0, 0.5)), ("east", "post", (0.5, 1)),
        ):  # fmt: skip
            cog_of(scene[source], folder / f"files/{name}.tif", columns=columns)

    def item(self, name, *, days, **properties):
        taken = self.event.time_utc + timedelta(days=days)
        return item_of(
            self.folder / f"files/{name}.tif", f"http://{self.host}", item_id=name, taken=taken, **properties
        )

    def respond(self):
        return respond(self.event.id, self.policy, return_state=True)

    def response(self):
        return read_response(self.state, self.event.id)

    def forget_the_pause(self):
        """The next search is due now."""
        path = Path(self.state) / self.event.id / "response.json"
        values = json.loads(path.read_text())
        path.write_text(json.dumps({**values, "next_search_utc": None}))


@pytest.fixture
def place(tmp_path, scene):
    with files_of(tmp_path / "files") as host:
        made = Place(tmp_path, scene, host)
        yield made
        made.api.stop()


def test_respond_waits_then_maps_then_maps_only_what_is_new(place):
    place.api.serve(place.item("pre", days=-20))
    state = place.respond()
    assert (state.name, state.is_completed()) == ("Waiting", True), state.message
    assert "waiting since" in state.message
    assert "expected next" in state.message
    assert place.response().next_search_utc > place.response().searched_utc

    place.api.serve(place.item("pre", days=-20), place.item("west", days=1))
    state = place.respond()
    assert state.is_completed(), state.message
    (first,) = place.response().versions
    assert (first.number, first.post, first.pre) == (1, ("west",), ("pre",))
    assert (Path(first.folder) / "inventory.gpkg").is_file()

    again = place.respond()
    assert again.is_completed()
    assert "nothing that is better than v1" in again.message
    assert len(place.response().versions) == 1

    place.forget_the_pause()
    place.api.serve(place.item("pre", days=-20), place.item("west", days=1), place.item("east", days=2))
    watched = watch_imagery(place.policy, return_state=True)
    assert watched.is_completed(), watched.message
    assert len(place.response().announced) == 1
    state = place.respond()
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
    state = place.respond()
    assert state.is_failed()
    assert "the detection did not succeed" in state.message
    assert not list((place.folder / "out").glob("*/v*"))
    assert place.response().versions == ()

    shutil.copy(place.folder / "whole.tif", cog)
    state = place.respond()
    assert state.is_completed(), state.message
    assert [version.number for version in place.response().versions] == [1]
