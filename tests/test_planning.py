"""Which scenes, in which order, for which blocks: decisions on plain values."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import Polygon
from shapely.geometry import box

from tasks.planning import (
    Ground,
    choose_sensor,
    expected_share,
    imagery_digest,
    plan_post,
    plan_pre,
    response_key,
    unlikeness,
)

EVENT = datetime(2018, 9, 5, tzinfo=UTC)


@dataclass(frozen=True)
class Scene:
    id: str
    footprint: Polygon
    day: float = 1.0
    cloud_percent: float | None = 0.0
    gsd_m: float = 10.0
    state: str = "1"
    sensor: str = "s2"
    orbit: float | None = None
    sun_elevation_deg: float | None = None
    sun_azimuth_deg: float | None = None

    @property
    def time_utc(self):
        return EVENT + timedelta(days=self.day)


EVERYWHERE, WEST, EAST = box(0, 0, 4, 1), box(0, 0, 2, 1), box(2, 0, 4, 1)
BLOCKS = tuple(box(i, 0, i + 1, 1) for i in range(4))


def ground(*missing):
    """Four blocks from west to east; what of each is missing (share from the west side)."""
    missing = missing or (1.0,) * 4
    return tuple(
        Ground(f"b{i}", block, box(i, 0, i + share, 1) if share else Polygon())
        for i, (block, share) in enumerate(zip(BLOCKS, missing, strict=True))
    )


def ids(plan):
    return [scene.id for scene in plan.scenes]


def test_plan_post_first_takes_what_shows_something():
    scenes = [Scene("west", WEST), Scene("again", WEST, day=2), Scene("east", EAST, day=3)]
    plan = plan_post(ground(), used=[], found=scenes)
    assert ids(plan) == ["west", "east"]
    assert plan.reasons == {f"b{i}": ("newly observed",) for i in range(4)}
    assert plan.left_out == 1


def test_plan_post_prefers_finer_then_clearer_then_earlier():
    scenes = [
        Scene("late", EVERYWHERE, day=9, cloud_percent=45), Scene("early", EVERYWHERE, cloud_percent=50),
        Scene("clear", EVERYWHERE, day=5, cloud_percent=30),
        Scene("fine", EVERYWHERE, day=9, cloud_percent=60, gsd_m=3),
    ]  # fmt: skip
    assert ids(plan_post(ground(), used=[], found=scenes)) == ["fine", "clear", "early", "late"]


def test_plan_post_second_scene_names_only_the_blocks_it_touches():
    used = [Scene("west", WEST)]
    plan = plan_post(ground(0, 0, 1, 1), used=used, found=[*used, Scene("new", box(1.5, 0, 3, 1), day=2)])
    assert ids(plan) == ["west", "new"]
    assert plan.reasons == {"b2": ("newly observed",)}


def test_plan_post_names_a_block_that_gets_clearer():
    used = [Scene("a", EVERYWHERE)]
    plan = plan_post(ground(0, 0.4, 0, 0), used=used, found=[Scene("b", EVERYWHERE, day=2, cloud_percent=10)])
    assert plan.reasons == {"b1": ("clearer",)}


def test_plan_post_leaves_a_scene_that_is_too_cloudy_to_help():
    plan = plan_post(ground(0, 0.03, 0, 0), used=[], found=[Scene("b", EVERYWHERE, cloud_percent=75)])
    assert ids(plan) == []
    assert plan.left_out == 1


def test_plan_post_expects_half_of_a_scene_that_does_not_say_its_cloud():
    assert expected_share(ground(), [Scene("a", WEST, cloud_percent=None)]) == pytest.approx(0.25)


def test_plan_post_same_again_changes_nothing():
    scenes = [Scene("west", WEST), Scene("east", EAST, day=3)]
    plan = plan_post(ground(0, 0, 0.2, 0), used=scenes, found=scenes)
    assert ids(plan) == ["west", "east"]
    assert not plan.reasons


def test_plan_post_late_scene_goes_after_those_in_use():
    plan = plan_post(ground(0, 0, 1, 1), used=[Scene("used", WEST, day=9)], found=[Scene("late", EAST, day=1)])
    assert ids(plan) == ["used", "late"]


def test_plan_post_corrected_scene_keeps_its_place():
    used = [Scene("west", WEST), Scene("east", EAST)]
    corrected = replace(used[0], id="west2", state="2")
    plan = plan_post(ground(0, 0, 0, 0), used=used, found=[], corrections={"west": corrected})
    assert ids(plan) == ["west2", "east"]
    assert plan.reasons == {"b0": ("scene corrected",), "b1": ("scene corrected",)}


def test_plan_post_withdrawn_scene_leaves_and_another_fills():
    used = [Scene("west", WEST), Scene("east", EAST)]
    spare = Scene("spare", WEST, day=4)
    plan = plan_post(ground(0, 0, 0, 0), used=used, found=[*used, spare], withdrawn={"west"})
    assert ids(plan) == ["east", "spare"]
    assert plan.reasons["b0"] == ("scene withdrawn", "clearer")
    assert "b2" not in plan.reasons


def test_plan_post_all_withdrawn_leaves_no_scene():
    plan = plan_post(ground(0, 0, 0, 0), used=[Scene("a", EVERYWHERE)], found=[], withdrawn={"a"})
    assert ids(plan) == []
    assert set(plan.reasons) == {"b0", "b1", "b2", "b3"}


def test_plan_post_finer_scene_goes_before_the_coarser():
    used = [Scene("fine", WEST, gsd_m=3), Scene("coarse", EVERYWHERE)]
    plan = plan_post(ground(0, 0, 0, 0), used=used, found=[Scene("new", EAST, day=7, gsd_m=3)])
    assert ids(plan) == ["fine", "new", "coarse"]
    assert plan.reasons == {"b2": ("finer pixels",), "b3": ("finer pixels",)}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 3.5), st.floats(0.2, 4), st.floats(0, 90), st.sampled_from([3.0, 10.0])), max_size=6
    )
)
def test_plan_post_settles_once_its_scenes_are_used(drawn):
    scenes = [
        Scene(f"s{i}", box(west, 0, west + width, 1), cloud_percent=cloud, gsd_m=gsd, day=1 + i)
        for i, (west, width, cloud, gsd) in enumerate(drawn)
    ]
    missing = ground()
    used, rounds = (), 0
    while True:
        plan = plan_post(missing, used=used, found=scenes)
        kept = [scene for scene in plan.scenes if scene in used]
        assert kept == list(used), "scenes in use keep their order"
        if not plan.reasons:
            break
        assert len(plan.scenes) > len(used)
        used, rounds = plan.scenes, rounds + 1
        assert rounds <= len(scenes)


# --- sensors ---------------------------------------------------------------------------------------------------------


def test_choose_sensor_first_takes_what_shows_most_then_the_finer():
    coarse, fine = Scene("a", EVERYWHERE, sensor="s2"), Scene("b", EVERYWHERE, sensor="ps", gsd_m=3)
    order = ["s2", "ps"]
    assert choose_sensor(ground(), [coarse, fine], order=order) == "ps"
    assert choose_sensor(ground(), [coarse, replace(fine, footprint=WEST)], order=order) == "s2"
    assert choose_sensor(ground(), [], order=order) is None


def test_choose_sensor_stays_until_another_is_finer_and_shows_as_much():
    fine = Scene("b", EVERYWHERE, sensor="ps", gsd_m=3)
    found, order = [Scene("a", EVERYWHERE), fine], ["s2", "ps"]
    assert choose_sensor(ground(0, 0, 0, 0), found, order=order, used="s2") == "ps"
    cloudy = [found[0], replace(fine, cloud_percent=40)]
    assert choose_sensor(ground(0, 0, 0, 0), cloudy, order=order, used="s2") == "s2"
    coarser = [Scene("a", WEST, cloud_percent=90), Scene("c", EVERYWHERE, sensor="landsat", gsd_m=30)]
    assert choose_sensor(ground(0, 0, 1, 1), coarser, order=["s2", "landsat"], used="s2") == "landsat"


# --- before the event ------------------------------------------------------------------------------------------------


def test_plan_pre_prefers_the_same_season_to_the_nearest_in_time():
    reference = Scene("post", EVERYWHERE)
    spring, last_year = Scene("spring", EVERYWHERE, day=-120), Scene("last_year", EVERYWHERE, day=-364)
    assert ids(plan_pre(ground(), reference=reference, used=[], found=[spring, last_year])) == ["last_year"]


@pytest.mark.parametrize(
    "other",
    [{"orbit": 60}, {"sun_elevation_deg": 30}, {"sun_azimuth_deg": 190}, {"cloud_percent": 40}, {"day": -400}],
)
def test_unlikeness_counts_orbit_sun_cloud_and_age(other):
    reference = Scene("post", EVERYWHERE, orbit=88, sun_elevation_deg=50, sun_azimuth_deg=150)
    alike = Scene("pre", EVERYWHERE, day=-10, orbit=88, sun_elevation_deg=50, sun_azimuth_deg=150)
    assert unlikeness(replace(alike, **other), reference) > unlikeness(alike, reference)


def test_unlikeness_of_azimuths_goes_over_north():
    reference, near = Scene("post", EVERYWHERE, sun_azimuth_deg=359), Scene("pre", EVERYWHERE, sun_azimuth_deg=1)
    assert unlikeness(near, reference) == pytest.approx(0.1)


def test_plan_pre_keeps_those_in_use_and_fills_what_they_do_not_show():
    reference, used = Scene("post", EVERYWHERE), [Scene("west", WEST, day=-200)]
    found = [*used, Scene("all", EVERYWHERE, day=-5), Scene("more", EVERYWHERE, day=-6)]
    plan = plan_pre(ground(), reference=reference, used=used, found=found)
    assert ids(plan) == ["west", "all"]
    assert ids(plan_pre(ground(), reference=reference, used=plan.scenes, found=found)) == ["west", "all"]


# --- keys ------------------------------------------------------------------------------------------------------------


def test_imagery_digest_changes_with_scenes_states_and_order():
    a, b = Scene("a", WEST), Scene("b", EAST)
    digests = {
        imagery_digest([a, b], []), imagery_digest([b, a], []), imagery_digest([replace(a, state="2"), b], []),
        imagery_digest([a], [b]), imagery_digest([a], []),
    }  # fmt: skip
    assert len(digests) == 5
    assert imagery_digest([replace(a, cloud_percent=3)], []) == imagery_digest([a], [])


def test_response_key_is_of_event_area_imagery_and_model():
    told = {"event_id": "e", "area": "a", "imagery": "i", "model": "m"}
    keys = {response_key(**told), *(response_key(**{**told, name: "x"}) for name in told)}
    assert len(keys) == 5
