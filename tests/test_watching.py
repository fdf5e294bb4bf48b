"""Polls over real histories: each real earthquake is responded to once, whatever happens to the watcher."""

import json
import os
from datetime import timedelta

import pytest
from quake_history import EVENTS, as_of, collection, document, noise, real_map, serving, update_times, utc

from catalog.policy import Policy, QuakePolicy
from catalog.watching import poll
from catalog.watchlist import load_watchlist


@pytest.fixture
def maps():
    with serving(real_map) as host:
        yield host


def _policy(folder, maps, **rules):
    feed = folder / "feed.geojson"
    return Policy(
        state=str(folder / "state"), hosts=(maps,), earthquakes=QuakePolicy(feed=str(feed), query=None, **rules)
    )


def _write(policy, features, maps):
    with open(policy.earthquakes.feed, "wb") as stream:
        stream.write(collection(features, host=f"http://{maps}"))


def _history(*event_ids):
    """(time, features) of polls: at each product's update, with all noise; other events an hour after they struck."""
    steps = []
    for event_id in event_ids:
        if event_id == "us2000h8ty":
            steps += [(ms, [as_of(event_id, ms), *noise()]) for ms in update_times(event_id)[1:]]
        else:
            struck = document(event_id)["properties"]["time"]
            steps += [(struck + 3_600_000 * hours, [document(event_id), *noise()]) for hours in (1, 2, 30)]
    return sorted(steps, key=lambda step: step[0])


def _replay(policy, maps, steps):
    told, decisions = [], []
    for ms, features in steps:
        _write(policy, features, maps)
        done = poll(policy, now=utc(ms), emit=told.append)
        decisions += done.decisions
    return told, decisions


@pytest.mark.real
def test_poll_of_real_histories_responds_once_to_each_earthquake(tmp_path, maps):
    policy = _policy(tmp_path, maps, follow_days=1000)
    told, _ = _replay(policy, maps, _history(*EVENTS))
    assert sorted(a.event_id for a in told if a.revision == 1) == sorted(EVENTS)
    assert {a.event_id for a in told} == set(EVENTS)
    assert len({a.uuid for a in told}) == len(told)
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == sorted([*EVENTS, "watchlist.json"])


@pytest.mark.real
def test_poll_of_hokkaidos_history_applies_its_revisions(tmp_path, maps):
    policy = _policy(tmp_path, maps, follow_days=1000)
    told, decisions = _replay(policy, maps, _history("us2000h8ty"))
    assert [a.revision for a in told] == list(range(1, 8))
    assert [d.event_id for d in decisions][:3] == ["pt18248000", "at00pelgzo", "us2000h8ty"]  # not yet announced
    assert all("of its area differs" in a.reason for a in told[1:])
    area = json.loads((tmp_path / "state/us2000h8ty/area-32654.geojson").read_text())["features"][0]
    assert area["properties"]["source"] == "ShakeMap atlas v1 PGA >= 0.1 g"
    assert json.loads((tmp_path / "state/us2000h8ty/event.json").read_text())["magnitude"] == 6.6


@pytest.mark.real
def test_poll_closes_an_event_after_its_time(tmp_path, maps):
    policy = _policy(tmp_path, maps, follow_days=90)
    told, decisions = _replay(policy, maps, _history("us2000h8ty"))
    assert decisions[-1].state == "closed"
    assert [a.revision for a in told] == list(range(1, 7))


@pytest.mark.real
def test_poll_of_the_same_feed_again_changes_nothing(tmp_path, maps):
    policy = _policy(tmp_path, maps)
    steps = _history("us2000h8ty")[:20]
    _replay(policy, maps, steps)
    before = load_watchlist(tmp_path / "state")
    told, decisions = _replay(policy, maps, [(ms + 1000, features) for ms, features in steps[-1:]])
    after = load_watchlist(tmp_path / "state")
    assert (told, decisions) == ([], [])
    assert (after.events, after.outbox) == (before.events, before.outbox)


class Killed(BaseException):
    """The watcher's process ends here."""


def _deadly(monkeypatch, point):
    """`emit` and the list it tells to: the n-th moment just before or after something is written or told kills."""
    told, moments, replace = [], iter(range(1_000_000)), os.replace

    def moment():
        if next(moments) == point:
            raise Killed

    def replaced(*arguments):
        moment()
        replace(*arguments)
        moment()

    def emit(announcement):
        moment()
        told.append(announcement)
        moment()

    monkeypatch.setattr(os, "replace", replaced)
    return emit, told


def _killed_replay(policy, maps, steps, emit):
    deaths = 0
    for ms, features in steps:
        _write(policy, features, maps)
        for again in range(2):
            try:
                poll(policy, now=utc(ms) + timedelta(seconds=again), emit=emit)
                break
            except Killed:
                deaths += 1
    return deaths


def _outcome(told, kept):
    return {a.uuid for a in told}, [(k.id, k.state, k.reason, k.announced) for k in kept.events]


@pytest.mark.real
def test_poll_killed_at_any_point_and_started_again_announces_the_same(tmp_path, maps, monkeypatch):
    news = {p["updateTime"] for p in document("us2000h8ty")["properties"]["products"]["shakemap"]}
    firsts = [ms for ms in update_times("us2000h8ty")[1:] if ms in news or ms < min(news)][:9]
    steps = [(ms, [as_of("us2000h8ty", ms)]) for ms in firsts]
    reached, point, expected = True, 0, None
    while reached:
        folder = tmp_path / str(point)
        folder.mkdir()
        with monkeypatch.context() as patched:
            emit, told = _deadly(patched, point - 1)  # the first run is not killed
            deaths = _killed_replay(_policy(folder, maps), maps, steps, emit)
        kept = load_watchlist(folder / "state")
        if expected is None:
            expected = _outcome(told, kept)
            assert len(expected[0]) == len(told) == 3
        assert _outcome(told, kept) == expected, f"killed at moment {point - 1}"
        assert not kept.outbox
        reached, point = point == 0 or deaths == 1, point + 1
    assert point > 40


def test_poll_of_an_unanswered_feed_changes_nothing(tmp_path):
    policy = Policy(state=str(tmp_path), earthquakes=QuakePolicy(feed=str(tmp_path / "no.geojson"), query=None))
    done = poll(policy, now=utc(0), emit=pytest.fail)
    assert not done.is_good
    assert "cannot be read" in done.warnings[0]
    later = poll(policy, now=utc(7 * 3_600_000), emit=pytest.fail)
    assert later.silent == timedelta(hours=7)
    assert not later.watchlist.events


@pytest.mark.real
@pytest.mark.parametrize(
    "feed", [b"", b"<html>", b"[]", b'{"type": "FeatureCollection"}', b'{"type": "Feature"', b"\xff"]
)
def test_poll_of_a_malformed_feed_changes_nothing(tmp_path, maps, feed):
    policy = _policy(tmp_path, maps)
    _replay(policy, maps, _history("us2000h8ty")[:12])
    before = load_watchlist(tmp_path / "state")
    (tmp_path / "feed.geojson").write_bytes(feed)
    done = poll(policy, now=utc(1536190000000), emit=pytest.fail)
    assert (done.is_good, done.decisions) == (False, ())
    assert load_watchlist(tmp_path / "state") == before
