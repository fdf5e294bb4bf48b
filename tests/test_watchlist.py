from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest
import shapely

from catalog.areas import Area
from catalog.comcat import Quake
from catalog.config import Event
from catalog.policy import QuakePolicy, Region
from catalog.quake_rules import Sighting, advance, is_candidate, qualifies, wanted
from catalog.schema import StoreError
from catalog.watchlist import Watchlist, load_watchlist, save_watchlist

STRUCK = datetime(2020, 5, 1, tzinfo=UTC)
SOON = STRUCK + timedelta(hours=1)
POLICY = QuakePolicy()
EVENT = Event(id="us1", title="M 6.6", time_utc=STRUCK, longitude=141.9, latitude=42.7, depth_km=30, magnitude=6.6)
QUAKE = Quake(event=EVENT, ids=frozenset({"us1"}), updated_utc=STRUCK + timedelta(minutes=30), detailed=True)
AREA = Area(shapely.box(141, 42, 142, 43), "shakemap:1", "ShakeMap v1 PGA >= 0.1 g")


def _quake(minutes=30, ids=("us1",), **event):
    told = EVENT.model_copy(update={"id": ids[0], **event})
    return replace(QUAKE, event=told, ids=frozenset(ids), updated_utc=STRUCK + timedelta(minutes=minutes))


def _after(*polls, policy=POLICY):
    """The list and the last poll's decisions after polls of (now, sightings)."""
    watchlist, decisions = Watchlist(), ()
    for now, sightings in polls:
        watchlist, decisions = advance(watchlist, sightings, policy, now)
    return watchlist, decisions


def _active():
    return (SOON, [Sighting(QUAKE, AREA)])


def test_advance_announces_a_qualifying_earthquake_once():
    watchlist, decisions = _after(_active(), (SOON + timedelta(hours=1), [Sighting(QUAKE, AREA)]))
    assert [a.revision for a in watchlist.outbox] == [1]
    assert decisions == ()
    assert watchlist.events[0].reason.startswith("magnitude 6.6 is at least 6; its area is ShakeMap v1")


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({"magnitude": 5.9}, "magnitude 5.9 is under 6, and no alert"),
        ({"magnitude": None}, "no magnitude"),
        ({"depth_km": 580.0}, "depth 580 km is over 150 km"),
        ({"time_utc": SOON + timedelta(minutes=11)}, "lies in the future"),
        ({"time_utc": SOON - timedelta(days=31)}, "first seen 31 days later, over 30 days"),
    ],
)
def test_advance_declines_with_a_reason(event, reason):
    watchlist, (decision,) = _after((SOON, [Sighting(_quake(**event), AREA)]))
    assert decision.state == "declined"
    assert reason in decision.reason
    assert not watchlist.outbox


def test_advance_declines_what_has_no_ground_left():
    _, (decision,) = _after((SOON, [Sighting(QUAKE, replace(AREA, geometry=shapely.Polygon()))]))
    assert "no ground is left of ShakeMap" in decision.reason


def test_advance_takes_in_a_declined_earthquake_that_grew():
    watchlist, _ = _after((SOON, [Sighting(_quake(magnitude=5.8), AREA)]), (SOON, [Sighting(_quake(40), AREA)]))
    assert [a.revision for a in watchlist.outbox] == [1]


def test_advance_waits_for_a_shakemap_only_so_long():
    circle = replace(AREA, is_circle=True, key="circle:M6.6:1:1")
    watchlist, (decision,) = _after((SOON, [Sighting(QUAKE, circle)]))
    assert (decision.state, watchlist.outbox) == ("waiting", ())
    watchlist, (decision,) = advance(watchlist, [Sighting(QUAKE, circle)], POLICY, STRUCK + timedelta(hours=3))
    assert (decision.state, len(watchlist.outbox)) == ("active", 1)


@pytest.mark.parametrize(
    ("event", "area", "reason"),
    [
        ({"magnitude": 6.8}, None, "magnitude 6.6 became 6.8"),
        ({"latitude": 42.8}, None, "the epicentre moved 11 km"),
        ({}, shapely.box(141, 42, 142, 43.2), "20% of its area differs"),
    ],
)
def test_advance_announces_a_revision_that_matters_once(event, area, reason):
    revised = Sighting(_quake(60, **event), None if area is None else replace(AREA, geometry=area, key="shakemap:2"))
    watchlist, decisions = _after(_active(), (SOON, [revised]), (SOON, [revised]))
    assert [a.revision for a in watchlist.outbox] == [1, 2]
    assert reason in watchlist.outbox[1].reason
    assert decisions == ()


def test_advance_passes_over_a_revision_that_does_not_matter():
    smaller = replace(AREA, geometry=shapely.box(141, 42, 142, 42.95), key="shakemap:2")
    watchlist, decisions = _after(_active(), (SOON, [Sighting(_quake(60, magnitude=6.7), smaller)]))
    assert (len(watchlist.outbox), decisions) == (1, ())
    assert watchlist.events[0].area_key == "shakemap:2"  # it is not asked for again


def test_advance_passes_over_an_older_document():
    watchlist, decisions = _after(_active(), (SOON, [Sighting(_quake(20, magnitude=8.0), AREA)]))
    assert (len(watchlist.outbox), decisions) == (1, ())


def test_advance_keeps_a_shakemap_where_only_a_circle_came():
    circle = Area(shapely.box(100, 0, 101, 1), "circle:M6.6:1:1", "a circle", is_circle=True)
    watchlist, _ = _after(_active(), (SOON, [Sighting(_quake(60), circle)]))
    assert len(watchlist.outbox) == 1


def test_advance_deletes_and_restores():
    gone = Sighting(replace(_quake(60), deleted=True))
    watchlist, (decision,) = _after(_active(), (SOON, [gone]))
    assert (decision.state, watchlist.active()) == ("deleted", ())
    watchlist, (decision,) = advance(watchlist, [Sighting(_quake(90), None)], POLICY, SOON)
    assert (decision.state, [a.revision for a in watchlist.outbox]) == ("active", [1, 2])
    assert "ComCat has it again" in decision.reason


def test_advance_passes_over_a_deleted_earthquake_that_it_never_knew():
    assert _after((SOON, [Sighting(replace(QUAKE, deleted=True))]))[0] == Watchlist()


def test_advance_merges_two_that_turn_out_to_be_one():
    polls = [_active(), (SOON, [Sighting(_quake(ids=("at2",)), AREA)])]
    watchlist, decisions = _after(*polls, (SOON, [Sighting(_quake(60, ids=("us1", "at2")), AREA)]))
    assert [(k.id, k.state, k.merged_into) for k in watchlist.events] == [
        ("at2", "active", None), ("us1", "merged", "at2"),
    ]  # fmt: skip
    assert "the same earthquake as at2" in decisions[0].reason


def test_advance_keeps_the_id_that_was_announced():
    watchlist, _ = _after(_active(), (SOON, [Sighting(_quake(60, ids=("ci9", "us1"), magnitude=7.0), None)]))
    assert [(a.event_id, a.revision) for a in watchlist.outbox] == [("us1", 1), ("us1", 2)]
    assert (watchlist.events[0].id, watchlist.events[0].ids) == ("us1", ("ci9", "us1"))


def test_advance_takes_the_preferred_id_until_then():
    early = Sighting(_quake(5, ids=("pt1",)), replace(AREA, is_circle=True))
    watchlist, _ = _after((SOON, [early]), (SOON, [Sighting(_quake(ids=("us1", "pt1")), AREA)]))
    assert [a.event_id for a in watchlist.outbox] == ["us1"]
    assert [k.id for k in watchlist.events] == ["us1"]


def test_advance_sees_one_earthquake_in_two_documents():
    sightings = [Sighting(_quake(40, ids=("us1", "at2")), AREA), Sighting(_quake(ids=("at2",)), AREA)]
    for order in permutations(sightings):
        watchlist, _ = _after((SOON, list(order)))
        assert [a.event_id for a in watchlist.outbox] == ["us1"]


def test_advance_takes_a_deleted_twin_for_merged():
    twin = Sighting(replace(_quake(90, ids=("at2",)), deleted=True))
    watchlist, _ = _after(_active(), (SOON, [twin, Sighting(_quake(60, ids=("us1", "at2")), AREA)]))
    assert [k.state for k in watchlist.events] == ["active"]


def test_advance_closes_and_does_not_open_again():
    late = STRUCK + timedelta(days=91)
    watchlist, (decision,) = _after(_active(), (late, []))
    assert decision.state == "closed"
    watchlist, decisions = advance(watchlist, [Sighting(_quake(9999, magnitude=8.0), AREA)], POLICY, late)
    assert (len(watchlist.outbox), decisions) == (1, ())


def test_advance_opens_again_what_a_clock_ahead_closed():
    closed, _ = _after(_active(), (SOON + timedelta(days=400), []))
    assert [k.state for k in closed.events] == ["closed"]
    assert wanted(closed, [], POLICY, SOON) == ("us1",)
    watchlist, decisions = advance(closed, [Sighting(_quake(60, magnitude=7.0), AREA)], POLICY, SOON)
    assert [(k.state, k.announced.revision) for k in watchlist.events] == [("active", 2)]
    quiet, (decision,) = advance(closed, [], POLICY, SOON)
    assert (quiet.events[0].state, "the clock was ahead" in decision.reason) == ("active", True)


def test_advance_takes_no_time_after_now_for_true():
    ahead = SOON + timedelta(days=400)
    declined, (decision,) = _after((ahead, [Sighting(QUAKE, AREA)]))
    assert "first seen 400 days later" in decision.reason
    assert wanted(declined, [], POLICY, SOON) == ("us1",)
    watchlist, _ = advance(declined, [Sighting(QUAKE, AREA)], POLICY, SOON)
    assert [(k.state, k.first_seen_utc) for k in watchlist.events] == [("active", SOON)]
    asked, _ = advance(_after(_active())[0], [Sighting(QUAKE)], POLICY, SOON + timedelta(days=2))
    assert wanted(asked, [], POLICY, SOON) == ("us1",)


def test_advance_is_not_stopped_by_a_document_from_the_future():
    watchlist, _ = _after(_active(), (SOON, [Sighting(_quake(60 * 24 * 365 * 50))]))
    assert wanted(watchlist, [replace(_quake(60), detailed=False)], POLICY, SOON) == ("us1",)
    revised, _ = advance(watchlist, [Sighting(_quake(60, magnitude=7.0))], POLICY, SOON)
    assert [a.revision for a in revised.outbox] == [1, 2]


def test_advance_decides_on_the_others_where_one_cannot_be():
    flat = replace(AREA, geometry=None)  # whatever it is that goes wrong within
    failures = []
    watchlist, _ = advance(
        Watchlist(), [Sighting(QUAKE, flat), Sighting(_quake(ids=("us2",)), AREA)], POLICY, SOON, failures=failures
    )
    assert [k.id for k in watchlist.events] == ["us2"]
    assert "us1: unexpected AttributeError" in failures[0]
    with pytest.raises(StoreError, match="us1: unexpected"):
        advance(Watchlist(), [Sighting(QUAKE, flat)], POLICY, SOON)


def test_advance_forgets_what_it_declined_long_ago():
    watchlist, _ = _after((SOON, [Sighting(_quake(depth_km=500.0))]), (SOON + timedelta(days=31), []))
    assert watchlist.events == ()


def test_advance_does_not_depend_on_the_order():
    far = {"longitude": -70.0, "latitude": -20.0}
    sightings = [Sighting(_quake(ids=(i,), **far), AREA) for i in ("us3", "us2")] + [Sighting(QUAKE, AREA)]
    assert len({_after((SOON, list(order)))[0].model_dump_json() for order in permutations(sightings)}) == 1


def test_qualifies_by_region_alert_and_kind():
    quiet = Region(name="slab", bounds=(170, -30, -170, -10), min_magnitude=7.0)
    alps = Region(name="Alps", bounds=(5, 43, 17, 49), min_magnitude=4.5)
    policy = QuakePolicy(regions=(quiet, alps))
    assert not qualifies(_quake(longitude=-179.0, latitude=-20.0), policy)[0]
    assert qualifies(_quake(longitude=9.0, latitude=46.0, magnitude=4.6), policy) == (
        True, "magnitude 4.6 is at least 4.5 of region Alps",
    )  # fmt: skip
    assert qualifies(replace(_quake(magnitude=5.2), landslide="yellow"), policy)[0]
    assert qualifies(replace(_quake(magnitude=5.2), pager="red"), policy)[0]
    assert not qualifies(replace(_quake(magnitude=5.2), landslide="green", pager="yellow"), policy)[0]
    assert not qualifies(replace(QUAKE, kind="quarry blast"), policy)[0]
    nowhere = QuakePolicy(regions=(Region(name="sea", bounds=(-180, -90, 180, 90), ignore=True),))
    assert not qualifies(QUAKE, nowhere)[0]


def test_is_candidate_with_ground_failure_only_from_the_alerts_magnitude():
    assert is_candidate(replace(_quake(magnitude=5.0), has_ground_failure=True), POLICY)
    assert not is_candidate(replace(_quake(magnitude=4.9), has_ground_failure=True), POLICY)
    assert not is_candidate(_quake(magnitude=5.9), POLICY)


def test_wanted_is_what_is_new_updated_or_due():
    listed = replace(QUAKE, detailed=False)
    assert wanted(Watchlist(), [listed, _quake(ids=("us2",), magnitude=3.0)], POLICY, SOON) == ("us1",)
    watchlist, _ = _after(_active())
    assert wanted(watchlist, [listed], POLICY, SOON) == ()
    assert wanted(watchlist, [_quake(31)], POLICY, SOON) == ("us1",)
    assert wanted(watchlist, [], POLICY, SOON + timedelta(minutes=5)) == ()
    assert wanted(watchlist, [], POLICY, SOON + timedelta(minutes=10)) == ("us1",)


def test_wanted_asks_again_for_what_lay_in_the_future_once_its_time_has_come():
    early = STRUCK - timedelta(hours=5)  # the clock was wrong, or the catalogue
    watchlist, (decision,) = _after((early, [Sighting(QUAKE, AREA)]))
    assert decision.state == "declined"
    assert wanted(watchlist, [], POLICY, early + timedelta(hours=1)) == ()
    assert wanted(watchlist, [], POLICY, SOON) == ("us1",)
    assert [a.event_id for a in advance(watchlist, [Sighting(QUAKE, AREA)], POLICY, SOON)[0].outbox] == ["us1"]


def test_announcement_ids_are_of_the_revision():
    watchlist, _ = _after(_active(), (SOON, [Sighting(_quake(60, magnitude=7.0), None)]))
    first, second = watchlist.outbox
    assert first.uuid != second.uuid
    assert first.uuid == _after(_active())[0].outbox[0].uuid


def test_save_watchlist_is_read_back_the_same(tmp_path):
    watchlist, _ = _after(_active())
    save_watchlist(watchlist, tmp_path / "state")
    assert load_watchlist(tmp_path / "state") == watchlist
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["watchlist.json"]


@pytest.mark.parametrize(
    ("text", "match"),
    [("{", "does not fit"), ('{"format": 2}', "format 2; expected 1"), ('{"quakes": []}', "does not fit")],
)
def test_load_watchlist_refuses_a_damaged_one(tmp_path, text, match):
    (tmp_path / "watchlist.json").write_text(text)
    with pytest.raises(StoreError, match=match):
        load_watchlist(tmp_path)


def test_load_watchlist_refuses_an_id_that_is_a_path(tmp_path):
    watchlist, _ = _after(_active())
    text = watchlist.model_dump_json().replace('"id":"us1","ids"', '"id":"../us1","ids"')
    (tmp_path / "watchlist.json").write_text(text)
    with pytest.raises(StoreError, match="is no event id"):
        load_watchlist(tmp_path)
