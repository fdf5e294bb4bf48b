"""The watcher's flow against a real Prefect server: events arrive once, decisions are shown, failures are told."""

import json
import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import shapely
import yaml
from processes import free_port
from quake_history import collection, contour, serving

from catalog.config import Event
from catalog.quake_rules import Decision
from catalog.responses import save_event
from catalog.schema import LandslideError
from catalog.watching import Poll
from catalog.watchlist import Announcement, Watchlist, load_watchlist
from catalog.web import Unanswered
from flows.duty import watch
from flows.watch_earthquakes import ACTIVE, FeedSilent, announce, as_markdown, summary, watch_earthquakes


def test_as_markdown_leaves_a_title_no_meaning():
    decision = Decision("us1", "M 6.6 <img src=x> | [a](javascript:b) `c`", "active", "because | so")
    poll = Poll(Watchlist(), (decision,), (), (), is_good=True, silent=timedelta(0))
    row = as_markdown(poll).splitlines()[-1]
    assert row.count(" | ") == 3
    assert "<img" not in row
    assert "\\[a\\]\\(javascript" in row


def test_summary_says_that_nothing_is_lost():
    assert "nothing is lost" in summary(Poll(Watchlist(), (), (), ("away",), is_good=False, silent=timedelta(0)))


def _policy_without_feed(folder):
    path = folder / "policy.yaml"
    told = {"feed": f"http://127.0.0.1:{free_port()}/feed.geojson", "query": None}
    path.write_text(yaml.safe_dump({"state": str(folder), "hosts": ["127.0.0.1"], "earthquakes": told}))
    return path


def test_watch_says_at_once_that_the_feed_cannot_be_reached(tmp_path, capsys):
    began = time.monotonic()
    with pytest.raises(Unanswered, match=r"no answer in 1 tries, last: .*refused.*check the network, and `feed`"):
        watch(_policy_without_feed(tmp_path))
    assert time.monotonic() - began < 5  # no pauses, no server
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_watch_looks_for_imagery_although_the_feed_cannot_be_reached(tmp_path, capsys, prefect_api):
    event = Event(id="us1", time_utc=datetime(2020, 1, 1, tzinfo=UTC))
    save_event(str(tmp_path), event, shapely.box(141, 42, 141.1, 42.1))
    with pytest.raises(LandslideError, match="no answer in 1 tries.*watch-imagery: .*us1: imagery: got no STAC source"):
        watch(_policy_without_feed(tmp_path))
    assert "check the network" in capsys.readouterr().err.splitlines()[0]


def _asked(server, path, question):
    return httpx.post(f"{server}/{path}", json=question, timeout=30).raise_for_status().json()


def _events(server, event_id, expected):
    """What the watcher told of an earthquake, once it has arrived (the server writes in batches)."""
    found, of_it = [], {"event": {"name": [ACTIVE]}, "resource": {"id": [f"landslidenet.event.{event_id}"]}}
    for _ in range(60):
        found = _asked(server, "events/filter", {"filter": of_it})["events"]
        if len(found) >= expected:
            break
        time.sleep(0.5)
    return found


def _feed(mag, minutes=10):
    now = datetime.now(UTC).timestamp() * 1000
    struck, updated = round(now - 3_600_000), round(now - 60_000 * minutes)
    files = {"download/cont_pga.json": {"url": "https://earthquake.usgs.gov/map"}}
    product = {"code": "us1", "source": "us", "updateTime": updated, "properties": {"version": "1"}, "contents": files}
    properties = {"mag": mag, "title": f"M {mag} - there", "time": struck, "updated": updated, "ids": ",us1,"}
    return {
        "type": "Feature", "id": "us1", "geometry": {"type": "Point", "coordinates": [141.9, 42.7, 35.0]},
        "properties": {**properties, "products": {"shakemap": [product]}},
    }  # fmt: skip


@pytest.mark.slow
def test_watch_earthquakes_tells_prefect_once_of_each_revision(prefect_api, tmp_path):
    feed, policy = tmp_path / "feed.geojson", tmp_path / "policy.yaml"
    with serving(lambda _: contour(141.9, 42.7, 30)) as host:
        told = {"feed": str(feed), "query": None}
        policy.write_text(yaml.safe_dump({"state": str(tmp_path / "state"), "hosts": [host], "earthquakes": told}))
        feed.write_bytes(collection([_feed(6.6)], f"http://{host}"))
        polls = [watch_earthquakes(str(policy)) for _ in range(2)]
        assert polls == ["1 decisions, 1 announced; 1 active", "0 decisions, 0 announced; 1 active"]
        feed.write_bytes(collection([_feed(7.1, minutes=5)], f"http://{host}"))
        assert "1 decisions, 1 announced" in watch_earthquakes(str(policy))
    events = _events(prefect_api, "us1", expected=2)
    assert [event["payload"]["revision"] for event in reversed(events)] == [1, 2]
    assert {event["resource"]["prefect.resource.id"] for event in events} == {"landslidenet.event.us1"}
    assert events[0]["resource"]["prefect.resource.name"] == "M 7.1 - there"
    assert load_watchlist(tmp_path / "state").outbox == ()
    artifacts = _asked(prefect_api, "artifacts/filter", {})
    assert any("| us1 | M 6.6 - there | active |" in str(artifact["data"]) for artifact in artifacts)


@pytest.mark.slow
def test_watch_earthquakes_told_again_is_the_same_event(prefect_api):
    for _ in range(2):
        announce(Announcement(event_id="us5", title="M 6 - twice", revision=1, reason="so"))
    _events(prefect_api, "us5", expected=1)
    time.sleep(6)  # a second one would be here by now
    assert len(_events(prefect_api, "us5", expected=1)) == 1


@pytest.mark.slow
def test_watch_earthquakes_fails_only_after_a_long_silence(prefect_api, tmp_path):
    policy, state = tmp_path / "policy.yaml", tmp_path / "state"
    told = {"feed": str(tmp_path / "no.geojson"), "query": None, "silence_hours": 6}
    policy.write_text(yaml.safe_dump({"state": str(state), "earthquakes": told}))
    assert "nothing is lost, the next poll goes on" in watch_earthquakes(str(policy))
    kept = json.loads((state / "watchlist.json").read_text())
    kept["started_utc"] = (datetime.now(UTC) - timedelta(hours=7)).isoformat()
    (state / "watchlist.json").write_text(json.dumps(kept))
    with pytest.raises(FeedSilent, match=r"no good poll for 7\.0 h"):
        watch_earthquakes(str(policy))
