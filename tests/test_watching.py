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
