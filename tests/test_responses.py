import json
from datetime import UTC, datetime, timedelta

import pytest
from shapely.geometry import box

from catalog.config import Event
from catalog.policy import ImageryPolicy
from catalog.responses import (
    Response,
    Version,
    after_search,
    after_version,
    close_or_open,
    folder_of,
    is_due,
    is_to_announce,
    known_events,
    observed_by,
    open_event,
    pause_after,
    published_from,
    read_area,
    read_items,
    read_response,
    save_event,
    write_inputs,
    write_response,
)
from catalog.schema import InputError, StoreError
from tasks.revisits import expected_next, next_pass

RULES = ImageryPolicy()
NOW = datetime(2018, 9, 10, tzinfo=UTC)
EVENT = Event(id="us2000h8ty", title="M 6.6 - Hokkaido", time_utc=datetime(2018, 9, 5, 18, tzinfo=UTC), magnitude=6.6)
AREA = box(142, 42.5, 142.2, 42.7)


def version(number=1, key="k1"):
    return Version(
        part="us2000h8ty", number=number, key=key, imagery="i", model="m", sensor="s", folder="f", items="g",
        post=("a",), published_utc=NOW,
    )  # fmt: skip


def test_read_response_gives_what_was_written(tmp_path):
    assert read_response(str(tmp_path), "e") is None
    response = Response(event_id="e", waiting_since=NOW, versions=(version(),))
    write_response(str(tmp_path), response)
    assert read_response(str(tmp_path), "e") == response
    assert [path.name for path in (tmp_path / "e").iterdir()] == ["response.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"event_id": "e", "format": 2}', '{"event_id": "e", "evil": 1}'])
def test_read_response_damaged(tmp_path, text):
    (tmp_path / "e").mkdir()
    (tmp_path / "e/response.json").write_text(text)
    with pytest.raises(StoreError, match="restore it"):
        read_response(str(tmp_path), "e")


@pytest.mark.parametrize("event_id", ["../e", "a/b", "", ".hidden", "-rf", "a" * 65, "a\n"])
def test_folder_of_refuses_ids_that_lead_elsewhere(event_id):
    with pytest.raises(InputError, match="event id"):
        folder_of("state", event_id)


def test_pause_after_grows_and_ends():
    pauses = [pause_after(n, RULES) for n in range(1, 2000)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (timedelta(hours=1), timedelta(hours=12))


def test_after_search_backs_off_until_something_improves():
    response = Response(event_id="e")
    for expected in (1, 2, 4):
        response = after_search(response, RULES, now=NOW, improves=False, expected=("x",), told=())
        assert response.next_search_utc == NOW + timedelta(hours=expected)
    response = after_search(response, RULES, now=NOW, improves=True, expected=(), told=("y",))
    assert (response.searches, response.next_search_utc, response.told) == (0, NOW + timedelta(hours=1), ("y",))


def test_is_due():
    response = Response(event_id="e", next_search_utc=NOW)
    assert is_due(None, NOW)
    assert is_due(response, NOW)
    assert not is_due(response, NOW - timedelta(seconds=1))
    assert not is_due(response.model_copy(update={"state": "closed"}), NOW)


def test_is_due_again_where_the_clock_was_ahead():
    ahead = NOW + timedelta(days=400)
    response = after_search(Response(event_id="e"), RULES, now=ahead, improves=False, expected=(), told=())
    assert is_due(response, NOW)
    assert is_due(response.model_copy(update={"state": "closed", "next_search_utc": None}), NOW)
    never = Response(event_id="e", next_search_utc=NOW + timedelta(hours=13))  # twelve are the longest pause
    assert is_due(never, NOW)
    assert not is_due(never, NOW, ImageryPolicy(longest_pause_minutes=800))


def test_close_or_open():
    last = NOW - timedelta(days=1)
    closed = close_or_open(Response(event_id="e"), last=last, now=NOW, why="so")
    assert (closed.state, closed.reason) == ("closed", "closed: so")
    assert close_or_open(closed, last=last, now=NOW, why="so").state == "closed"
    assert close_or_open(closed, last=NOW, now=NOW, why="so").state == "waiting"
    made = closed.model_copy(update={"versions": (version(),)})
    assert close_or_open(made, last=None, now=NOW, why="so").state == "active"


def test_is_to_announce_again_what_was_told_of_after_now():
    assert is_to_announce(Response(event_id="e", announced={"k1": NOW + timedelta(days=400)}), "k1", NOW)


def test_is_to_announce_once_and_again_when_nothing_came_of_it():
    response = Response(event_id="e", announced={"k1": NOW})
    assert is_to_announce(response, "k2", NOW)
    assert not is_to_announce(response, "k1", NOW + timedelta(hours=5))
    assert is_to_announce(response, "k1", NOW + timedelta(hours=6))
    assert not is_to_announce(after_version(response, version()), "k1", NOW + timedelta(days=1))


def test_after_version_is_active_and_stays_closed():
    response = after_version(Response(event_id="e", waiting_since=NOW, announced={"k1": NOW}), version())
    assert (response.state, response.waiting_since, response.announced) == ("active", None, {})
    assert response.made("k1") == response.latest("us2000h8ty")
    closed = Response(event_id="e", state="closed", reason="closed")
    assert after_version(closed, version()).state == "closed"


def test_open_event_of_one_area(tmp_path):
    save_event(str(tmp_path), EVENT, AREA)
    event, (part,) = open_event(str(tmp_path), EVENT.id)
    assert event == EVENT
    assert (part.name, part.epsg) == (EVENT.id, None)
    assert part.outline.equals(AREA)
    assert known_events(str(tmp_path)) == (EVENT.id,)


def test_open_event_of_an_area_in_two_zones(tmp_path):
    save_event(str(tmp_path), EVENT, AREA)
    folder = tmp_path / EVENT.id
    (folder / "area-32655.geojson").write_bytes((folder / "area.geojson").read_bytes())
    (folder / "area.geojson").rename(folder / "area-32654.geojson")
    (folder / "area.geojson").write_text("an area of before it was cut")
    (folder / "area-evil.geojson").write_text("{}")
    _, parts = open_event(str(tmp_path), EVENT.id)
    assert [(part.name, part.epsg) for part in parts] == [("us2000h8ty-32654", 32654), ("us2000h8ty-32655", 32655)]


def test_open_event_that_is_not_known_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="give `event` and `aoi`"):
        open_event(str(tmp_path), "us1")
    save_event(str(tmp_path), EVENT, AREA)
    (tmp_path / EVENT.id / "area.geojson").unlink()
    with pytest.raises(InputError, match="area"):
        open_event(str(tmp_path), EVENT.id)


@pytest.mark.parametrize("text", ["no json", '{"type": "FeatureCollection", "features": []}'])
def test_read_area_of_something_else(tmp_path, text):
    (tmp_path / "a.geojson").write_text(text)
    with pytest.raises(InputError, match="area of interest"):
        read_area(tmp_path / "a.geojson")


def test_write_inputs_are_read_again(tmp_path):
    items = {"type": "FeatureCollection", "features": [{"id": "a"}]}
    write_inputs(tmp_path / "x", post=items, pre={**items, "features": []}, area=AREA)
    assert read_items(str(tmp_path / "x"), "post") == ({"id": "a"},)
    assert read_items(str(tmp_path / "x"), "pre") == ()
    assert read_area(tmp_path / "x/area.geojson").equals(AREA)
    with pytest.raises(StoreError, match="restore it"):
        read_items(str(tmp_path / "y"), "post")


def test_published_from_finds_the_version_of_these_items(tmp_path):
    for number, post in ((1, ["a/post.json"]), (2, ["b/post.json"]), (3, [])):
        folder = tmp_path / f"e/v{number}"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"config": {"post": post}}))
    assert published_from(str(tmp_path), "e", "b") == (2, str(tmp_path / "e/v2"))
    assert published_from(str(tmp_path), "e", "c") is None


def test_published_from_says_which_product_is_damaged(tmp_path):
    (tmp_path / "e/v1").mkdir(parents=True)
    (tmp_path / "e/v1/run.json").write_text("{")
    with pytest.raises(StoreError, match=r"v1/run\.json: cannot be read"):
        published_from(str(tmp_path), "e", "b")


def test_observed_by_a_product_that_is_gone(tmp_path):
    with pytest.raises(StoreError, match=r"restore the product, or move the event's response\.json away"):
        observed_by(str(tmp_path))


def test_next_pass_counts_on_from_a_scene():
    taken = datetime(2018, 9, 1, 1, 30, tzinfo=UTC)
    assert next_pass(taken, 5, NOW) == datetime(2018, 9, 11, 1, 30, tzinfo=UTC)
    assert next_pass(taken, 5, taken) == taken + timedelta(days=5)


def test_expected_next_without_a_scene_and_without_a_revisit():
    first, second = expected_next({"sentinel2-l2a": "S2", "rgb8": "Photo"}, [], now=NOW)
    assert first.startswith("S2: by 2018-09-15 00:00 UTC (every 5 days: ")
    assert second == "Photo: not known, it is acquired on order"
