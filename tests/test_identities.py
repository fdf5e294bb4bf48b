"""Earthquakes keep their identity while ComCat joins, parts, renames and deletes what it lists."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest
import shapely

from catalog.areas import Area
from catalog.comcat import Quake
from catalog.config import Event
from catalog.identities import identify
from catalog.policy import QuakePolicy
from catalog.quake_rules import Sighting, advance, wanted
from catalog.watchlist import Watchlist

STRUCK = datetime(2023, 2, 6, 1, tzinfo=UTC)
SOON = STRUCK + timedelta(hours=2)
POLICY = QuakePolicy()
AREA = Area(shapely.box(37, 37, 38, 38), "shakemap:1", "ShakeMap v1 PGA >= 0.1 g")


def quake(*ids, minutes=30, magnitude=6.6, **more):
    event = Event(
        id=ids[0], title=f"M {magnitude}", time_utc=STRUCK, longitude=37.5, latitude=37.5, depth_km=10,
        magnitude=magnitude,
    )  # fmt: skip
    return Quake(event, frozenset(ids), STRUCK + timedelta(minutes=minutes), detailed=True, **more)


def gone(*ids, minutes=90):
    return Quake(Event(id=ids[0]), frozenset(ids), STRUCK + timedelta(minutes=minutes), deleted=True)


def polled(*polls, now=SOON):
    """The list after polls, each of its documents; all are looked at."""
    watchlist = Watchlist()
    for quakes in polls:
        watchlist, _ = advance(watchlist, [Sighting(q, None if q.deleted else AREA) for q in quakes], POLICY, now)
    return watchlist


def states(watchlist):
    return {known.id: (known.state, known.event.magnitude, known.ids) for known in watchlist.events}


JOINED = [quake("us1", "us2")]
SMALL, LARGE = quake("us1", minutes=60), quake("us2", minutes=60, magnitude=7.4)


@pytest.mark.parametrize(
    "then",
    [*([list(order)] for order in permutations([SMALL, LARGE])), [[SMALL], [LARGE]], [[SMALL], [SMALL, LARGE]]],
)
def test_advance_responds_to_what_was_joined_and_parted(then):
    watchlist = polled(JOINED, *then)
    assert states(watchlist) == {"us1": ("active", 6.6, ("us1",)), "us2": ("active", 7.4, ("us2",))}
    assert [(a.event_id, a.revision) for a in watchlist.outbox] == [("us1", 1), ("us2", 1)]


def test_advance_parts_by_a_listed_document_that_was_not_looked_at():
    watchlist, _ = advance(polled(JOINED), [Sighting(LARGE, AREA)], POLICY, SOON, listed=[quake("us1")])
    assert {known.id: known.event.magnitude for known in watchlist.events} == {"us1": 6.6, "us2": 7.4}


def test_advance_asks_for_an_id_that_an_earthquake_lost_until_it_is_told_of():
    watchlist = polled(JOINED, [SMALL])
    assert wanted(watchlist, [], POLICY, SOON) == ("us2",)
    assert wanted(watchlist, [replace(LARGE, detailed=False)], POLICY, SOON) == ("us2",)
    told, _ = advance(watchlist, [Sighting(LARGE, AREA)], POLICY, SOON)
    assert wanted(told, [], POLICY, SOON) == ()
    late, _ = advance(watchlist, [], POLICY, SOON + timedelta(hours=4))
    assert late.parted == {}


def test_wanted_asks_for_both_where_an_id_is_listed_without_the_events_own():
    watchlist = polled(JOINED)
    assert wanted(watchlist, [replace(LARGE, detailed=False)], POLICY, SOON) == ("us1", "us2")
    parted = [replace(q, detailed=False) for q in (quake("us1"), LARGE)]  # the smaller one's document is not newer
    assert wanted(watchlist, parted, POLICY, SOON) == ("us1", "us2")


def test_advance_goes_on_with_an_earthquake_that_lost_the_id_it_was_announced_by():
    watchlist = polled(JOINED, [quake("us2", minutes=60, magnitude=6.7)])
    assert states(watchlist) == {"us1": ("active", 6.7, ("us1", "us2"))}


def test_advance_parts_what_it_had_merged_and_each_keeps_its_response():
    apart = [quake("us1"), quake("at2")]
    merged = polled(apart, [quake("us1", "at2", minutes=40)])
    assert sorted(known.state for known in merged.events) == ["active", "merged"]
    watchlist = polled(apart, [quake("us1", "at2", minutes=40)], [quake("us1", minutes=60), quake("at2", minutes=60)])
    assert states(watchlist) == {"us1": ("active", 6.6, ("us1",)), "at2": ("active", 6.6, ("at2",))}
    (parted,) = watchlist.outbox[2:]
    assert (parted.revision, "is not" in parted.reason) == (2, True)


def test_advance_takes_the_deletion_of_a_merged_twin_for_nothing():
    watchlist = polled([quake("us1", "at2")], [gone("at2")])
    assert states(watchlist)["us1"][0] == "active"
    assert wanted(polled([quake("us1", "at2")]), [gone("at2")], POLICY, SOON) == ("us1",)


def test_advance_deletes_what_an_event_goes_by_now():
    renamed = polled([quake("us1")], [quake("ci9", "us1", minutes=60)])
    assert states(polled([quake("us1")], [quake("ci9", "us1", minutes=60)], [gone("us1")]))["us1"][0] == "active"
    after, _ = advance(renamed, [Sighting(gone("ci9"))], POLICY, SOON)
    assert states(after)["us1"][0] == "deleted"


def test_advance_goes_on_with_the_living_one_of_two_where_the_other_is_deleted():
    watchlist = polled(JOINED, [gone("us1"), LARGE])
    assert states(watchlist)["us1"][:2] == ("active", 7.4)
    assert [(a.event_id, a.revision) for a in watchlist.outbox] == [("us1", 1), ("us1", 2)]


def test_identify_gives_an_entry_to_one_earthquake_at_most():
    watchlist = polled([quake("us1", "a1", "b1")])
    told = identify(watchlist, [quake("a1", minutes=60), quake("b1", minutes=61)])
    assert sorted(len(one.known) for one in told) == [0, 1]


def test_identify_does_not_depend_on_the_order():
    documents = [quake("us1", "us2"), quake("us2", "at3", minutes=40), quake("at3", minutes=50), gone("nc4")]
    assert len({identify(Watchlist(), order) for order in permutations(documents)}) == 1
    assert [sorted(one.ids) for one in identify(Watchlist(), documents)] == [["at3"], ["us1"], ["us2"], ["nc4"]]


def test_advance_takes_no_magnitude_from_a_null():
    (known,) = polled([quake("us1")], [quake("us1", minutes=60, magnitude=None)]).events
    assert (known.state, known.announced.revision, known.event.magnitude) == ("active", 1, None)
    later = polled([quake("us1")], [quake("us1", minutes=60, magnitude=None)], [quake("us1", minutes=70)])
    assert later.events[0].announced.revision == 1
