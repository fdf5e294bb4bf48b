"""The watcher's flow against a real Prefect server: events arrive once, decisions are shown, failures are told."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

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
from catalog.watchlist import Watchlist, load_watchlist
from catalog.web import Unanswered
from flows.duty import watch
from flows.watch_earthquakes import ACTIVE, as_markdown, summary

ROOT = Path(__file__).parents[1]


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


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ, "PREFECT_HOME": str(home), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    log = (home / "server.log").open("w")
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    running = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    for _ in range(240):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert running.poll() is None, (home / "server.log").read_text()
        time.sleep(0.5)
    yield environment
    running.terminate()
    running.wait()
    log.close()


def _asked(server, path, question):
    request = urllib.request.Request(
        f"{server['PREFECT_API_URL']}/{path}", json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def _events(server, event_id, expected):
    """What the watcher told of an earthquake, once it has arrived (the server writes in batches)."""
    found, of_it = [], {"event": {"name": [ACTIVE]}, "resource": {"id": [f"landslidenet.event.{event_id}"]}}
    for _ in range(60):
        found = _asked(server, "events/filter", {"filter": of_it})["events"]
        if len(found) >= expected:
            break
        time.sleep(0.5)
    return found


def _watch(server, policy, times=1):
    """The flow in a process of its own, like a worker's."""
    again = f"for _ in range({times}): print(watch_earthquakes({str(policy)!r}))"
    code = f"from flows.watch_earthquakes import watch_earthquakes\n{again}"
    return subprocess.run([sys.executable, "-c", code], env=server, cwd=ROOT, capture_output=True, text=True)


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
def test_watch_earthquakes_tells_prefect_once_of_each_revision(server, tmp_path):
    feed, policy = tmp_path / "feed.geojson", tmp_path / "policy.yaml"
    with serving(lambda _: contour(141.9, 42.7, 30)) as host:
        told = {"feed": str(feed), "query": None}
        policy.write_text(yaml.safe_dump({"state": str(tmp_path / "state"), "hosts": [host], "earthquakes": told}))
        feed.write_bytes(collection([_feed(6.6)], f"http://{host}"))
        done = _watch(server, policy, times=2)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.splitlines() == ["1 decisions, 1 announced; 1 active", "0 decisions, 0 announced; 1 active"]
        feed.write_bytes(collection([_feed(7.1, minutes=5)], f"http://{host}"))
        assert "1 decisions, 1 announced" in _watch(server, policy).stdout
    events = _events(server, "us1", expected=2)
    assert [event["payload"]["revision"] for event in reversed(events)] == [1, 2]
    assert {event["resource"]["prefect.resource.id"] for event in events} == {"landslidenet.event.us1"}
    assert events[0]["resource"]["prefect.resource.name"] == "M 7.1 - there"
    assert load_watchlist(tmp_path / "state").outbox == ()
    artifacts = _asked(server, "artifacts/filter", {})
    assert any("| us1 | M 6.6 - there | active |" in artifact["data"] for artifact in artifacts)


@pytest.mark.slow
def test_watch_earthquakes_told_again_is_the_same_event(server, tmp_path):
    code = (
        "from catalog.watchlist import Announcement\nfrom flows.watch_earthquakes import announce\n"
        "for _ in range(2): announce(Announcement(event_id='us5', title='M 6 - twice', revision=1, reason='so'))"
    )
    subprocess.run([sys.executable, "-c", code], env=server, cwd=ROOT, check=True)
    _events(server, "us5", expected=1)
    time.sleep(6)  # a second one would be here by now
    assert len(_events(server, "us5", expected=1)) == 1


@pytest.mark.slow
def test_watch_earthquakes_fails_only_after_a_long_silence(server, tmp_path):
    policy, state = tmp_path / "policy.yaml", tmp_path / "state"
    told = {"feed": str(tmp_path / "no.geojson"), "query": None, "silence_hours": 6}
    policy.write_text(yaml.safe_dump({"state": str(state), "earthquakes": told}))
    done = _watch(server, policy)
    assert "nothing is lost, the next poll goes on" in done.stdout, done.stderr[-3000:]
    kept = json.loads((state / "watchlist.json").read_text())
    kept["started_utc"] = (datetime.now(UTC) - timedelta(hours=7)).isoformat()
    (state / "watchlist.json").write_text(json.dumps(kept))
    done = _watch(server, policy)
    assert done.returncode != 0
    assert "FeedSilent: no good poll for 7.0 h" in done.stderr
