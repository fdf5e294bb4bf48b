"""The watcher of imagery on a real STAC API and a Prefect server; no detection runs here."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from catalog.events import event_title
from catalog.locks import hold_event
from catalog.policy import load_policy
from catalog.responses import save_event
from flows.respond import respond
from flows.watch_imagery import _watch, announcement_id, watch_imagery

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]
NOW = datetime(2024, 1, 10, tzinfo=UTC)


def watch(followed):
    state = watch_imagery(followed.policy, return_state=True)
    rows = {row["event"]: row["outcome"] for row in state.result()} if state.is_completed() else {}
    return state, rows.get(followed.event.id, "")


def test_watch_imagery_backs_off_then_tells_once(followed):
    followed.api.serve()
    state, outcome = watch(followed)
    assert state.is_completed(), state.message
    assert "no post-event imagery yet" in outcome
    first = followed.response()
    assert (first.state, first.searches) == ("waiting", 1)
    assert watch(followed)[1] == "not due"

    followed.api.serve(followed.item("west", days=1))
    followed.forget_the_pause()
    assert "newly observed" in watch(followed)[1]
    told = followed.response().announced
    assert len(told) == 1
    followed.forget_the_pause()
    watch(followed)
    assert followed.response().announced == told


def test_watch_imagery_leaves_an_event_that_a_response_holds(followed):
    followed.api.serve()
    with hold_event(followed.state, followed.event.id):
        state, outcome = watch(followed)
    assert state.is_completed()
    assert outcome == "a response is running"


def test_watch_imagery_goes_on_after_an_event_that_fails(followed):
    followed.api.serve()
    broken = followed.event.model_copy(update={"id": "broken"})
    save_event(followed.state, broken, followed.area)
    (Path(followed.state) / "broken/response.json").write_text("{")
    state, _ = watch(followed)
    assert state.is_failed()
    assert "1 of 2 events failed: broken: " in state.message
    assert followed.response().searches == 1


def test_watch_imagery_goes_on_after_an_event_that_fails_unexpectedly(followed):
    followed.api.serve()
    odd = followed.event.model_copy(update={"id": "a-odd", "time_utc": datetime(9999, 12, 31, tzinfo=UTC)})
    save_event(followed.state, odd, followed.area)  # no calendar goes on from there
    state, _ = watch(followed)
    assert state.is_failed()
    assert "1 of 2 events failed: a-odd: unexpected OverflowError" in state.message
    assert followed.response().searches == 1


def test_watch_imagery_goes_on_without_a_watch_list_that_is_damaged(followed):
    followed.api.serve()
    (Path(followed.state) / "watchlist.json").write_text("{")
    state, _ = watch(followed)
    assert "earthquakes: watch list" in state.message
    assert followed.response().searches == 1


def test_watch_imagery_opens_again_what_a_clock_ahead_closed(followed):
    followed.api.serve()
    rules = load_policy(followed.policy)
    _watch(rules, followed.event.id, now=datetime.now(UTC) + timedelta(days=400), failures=[])
    assert followed.response().state == "closed"
    watch(followed)
    assert (followed.response().state, followed.response().searches) == ("waiting", 2)


def test_watch_imagery_of_apis_that_do_not_answer_fails_and_changes_nothing(followed):
    state, _ = watch(followed)
    assert state.is_failed()
    assert "no STAC API answered" in state.message
    assert followed.response() is None


def test_watch_imagery_closes_an_event_whose_days_are_over(followed):
    rules = yaml.safe_load(Path(followed.policy).read_text())
    rules["imagery"]["days_after"] = 2
    Path(followed.policy).write_text(yaml.safe_dump(rules))
    followed.api.serve()
    watch(followed)
    response = followed.response()
    assert (response.state, response.next_search_utc) == ("closed", None)
    assert "2 days after the event" in response.reason
    assert watch(followed)[1] == "not due"


def test_respond_to_an_event_that_is_not_known(followed):
    state = respond("us1", followed.policy, return_state=True)
    assert state.is_failed()
    assert "give `event` and `aoi`" in state.message
    assert not (Path(followed.state) / "us1").exists()


def test_respond_to_an_event_that_a_person_names(followed, tmp_path):
    followed.api.serve()
    event = tmp_path / "mine.json"
    event.write_text(followed.event.model_copy(update={"id": "mine"}).model_dump_json())
    area = Path(followed.state) / followed.event.id / "area.geojson"
    state = respond("mine", followed.policy, event=str(event), aoi=str(area), return_state=True)
    assert state.name == "Waiting", state.message
    assert json.loads((Path(followed.state) / "mine/event.json").read_text())["id"] == "mine"
    assert "expected both" in respond("mine", followed.policy, event=str(event), return_state=True).message


def test_event_title_is_what_a_person_reads(followed):
    event = followed.event.model_copy(update={"id": "us2000h8ty", "magnitude": 6.6, "title": "M 6.6 - Hokkaido, Japan"})
    assert event_title(event) == "us2000h8ty M6.6 Hokkaido, Japan"


def test_announcement_id_is_that_of_the_imagery():
    assert announcement_id("e", ["b", "a"], {}) == announcement_id("e", ["a", "b"], {})
    others = {announcement_id(*told) for told in (("e", ["a"], {}), ("f", ["a"], {}), ("e", ["a"], {"a": NOW}))}
    assert len(others) == 3


@pytest.mark.parametrize("flow", [respond, watch_imagery], ids=lambda flow: flow.name)
def test_flows_say_what_each_parameter_is(flow):
    told = flow.parameters.model_dump()["properties"]
    assert all(parameter.get("description") for parameter in told.values()), told
