"""The watcher of imagery on a real STAC API and a Prefect server; no detection runs here."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from followed_event import Followed
from prefect.testing.utilities import prefect_test_harness
from stac_server import files_of

from catalog.locks import hold_event
from catalog.responses import save_event
from flows.respond import event_title, respond
from flows.watch_imagery import announcement_id, watch_imagery
from tasks.review import simulate_event

pytestmark = pytest.mark.slow
NOW = datetime(2024, 1, 10, tzinfo=UTC)


@pytest.fixture(scope="module", autouse=True)
def harness():
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return simulate_event(tmp_path_factory.mktemp("scene") / "s", size_px=192, gsd_m=10.0, seed=7, sensor="rgb8")


@pytest.fixture
def place(tmp_path, scene):
    with files_of(tmp_path / "files") as host:
        made = Followed(tmp_path, scene, host)
        yield made
        made.api.stop()


def watch(place):
    state = watch_imagery(place.policy, return_state=True)
    rows = {row["event"]: row["outcome"] for row in state.result()} if state.is_completed() else {}
    return state, rows.get(place.event.id, "")


def test_watch_imagery_backs_off_then_tells_once(place):
    place.api.serve()
    state, outcome = watch(place)
    assert state.is_completed(), state.message
    assert "no post-event imagery yet" in outcome
    first = place.response()
    assert (first.state, first.searches) == ("waiting", 1)
    assert watch(place)[1] == "not due"

    place.api.serve(place.item("west", days=1))
    place.forget_the_pause()
    assert "newly observed" in watch(place)[1]
    told = place.response().announced
    assert len(told) == 1
    place.forget_the_pause()
    watch(place)
    assert place.response().announced == told


def test_watch_imagery_leaves_an_event_that_a_response_holds(place):
    place.api.serve()
    with hold_event(place.state, place.event.id):
        state, outcome = watch(place)
    assert state.is_completed()
    assert outcome == "a response is running"


def test_watch_imagery_goes_on_after_an_event_that_fails(place):
    place.api.serve()
    broken = place.event.model_copy(update={"id": "broken"})
    save_event(place.state, broken, place.area)
    (Path(place.state) / "broken/response.json").write_text("{")
    state, _ = watch(place)
    assert state.is_failed()
    assert "1 of 2 events failed: broken: " in state.message
    assert place.response().searches == 1


def test_watch_imagery_of_apis_that_do_not_answer_fails_and_changes_nothing(place):
    state, _ = watch(place)
    assert state.is_failed()
    assert "no STAC API answered" in state.message
    assert place.response() is None


def test_watch_imagery_closes_an_event_whose_days_are_over(place):
    rules = yaml.safe_load(Path(place.policy).read_text())
    rules["imagery"]["days_after"] = 2
    Path(place.policy).write_text(yaml.safe_dump(rules))
    place.api.serve()
    watch(place)
    response = place.response()
    assert (response.state, response.next_search_utc) == ("closed", None)
    assert "2 days after the event" in response.reason
    assert watch(place)[1] == "not due"


def test_respond_to_an_event_that_is_not_known(place):
    state = respond("us1", place.policy, return_state=True)
    assert state.is_failed()
    assert "give `event` and `aoi`" in state.message
    assert not (Path(place.state) / "us1").exists()


def test_respond_to_an_event_that_a_person_names(place, tmp_path):
    place.api.serve()
    event = tmp_path / "mine.json"
    event.write_text(place.event.model_copy(update={"id": "mine"}).model_dump_json())
    area = Path(place.state) / place.event.id / "area.geojson"
    state = respond("mine", place.policy, event=str(event), aoi=str(area), return_state=True)
    assert state.name == "Waiting", state.message
    assert json.loads((Path(place.state) / "mine/event.json").read_text())["id"] == "mine"
    assert "expected both" in respond("mine", place.policy, event=str(event), return_state=True).message


def test_event_title_is_what_a_person_reads(place):
    event = place.event.model_copy(update={"id": "us2000h8ty", "magnitude": 6.6, "title": "M 6.6 - Hokkaido, Japan"})
    assert event_title(event) == "us2000h8ty M6.6 Hokkaido, Japan"


def test_announcement_id_is_that_of_the_imagery():
    assert announcement_id("e", ["b", "a"], {}) == announcement_id("e", ["a", "b"], {})
    others = {announcement_id(*told) for told in (("e", ["a"], {}), ("f", ["a"], {}), ("e", ["a"], {"a": NOW}))}
    assert len(others) == 3
