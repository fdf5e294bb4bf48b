"""A poll against a feed and a query service on loopback: details, outages, and what is asked for by whom."""

from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from quake_history import collection, contour, serving, utc

from catalog.policy import Policy, QuakePolicy
from catalog.watching import poll

STRUCK = 1_600_000_000_000
HOUR = 3_600_000


def quake(event_id="us1", mag=6.6, hours=0.5, mapped=True, **properties):
    contents = {"download/cont_pga.json": {"url": f"https://earthquake.usgs.gov/map/{event_id}"}}
    product = {"code": event_id, "source": "us", "updateTime": STRUCK, "properties": {"version": "1"}}
    return {
        "type": "Feature",
        "id": event_id,
        "geometry": {"type": "Point", "coordinates": [141.9, 42.7, 35.0]},
        "properties": {
            "mag": mag, "title": f"M {mag} - there", "time": STRUCK, "updated": STRUCK + round(hours * HOUR),
            "ids": f",{event_id},", "status": "reviewed", "types": ",origin,ground-failure,", "type": "earthquake",
            "products": {"shakemap": [{**product, "contents": contents}] if mapped else []}, **properties,
        },
    }  # fmt: skip


class Usgs:
    """A feed and a query service: lists `listed`, answers details from `known`, and fails while `down`."""

    def __init__(self):
        self.listed, self.known, self.down, self.asked, self.host = [], {}, set(), [], ""

    def __call__(self, path):
        parts = urlsplit(path)
        asked = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.asked.append(asked or parts.path)
        place = "detail" if "eventid" in asked else "query" if asked else parts.path.split("/")[1]
        if place in self.down:
            return None
        if place == "map":
            return contour(141.9, 42.7, 30)
        if place == "detail":
            found = self.known.get(asked["eventid"])
            return None if found is None else collection([found], self.host)
        features = self.listed if place == "feed" else list(self.known.values())
        return collection([_summary(feature) for feature in features], self.host)


def _summary(feature):
    return {**feature, "properties": {k: v for k, v in feature["properties"].items() if k != "products"}}


@pytest.fixture
def usgs():
    service = Usgs()
    with serving(service) as host:
        service.host = f"http://{host}"
        yield service


def _poll(usgs, folder, hours, **rules):
    told = []
    rules = QuakePolicy(**{"feed": f"{usgs.host}/feed", "query": f"{usgs.host}/query", **rules})
    host = usgs.host.removeprefix("http://")
    policy = Policy(state=str(folder), hosts=(host,), earthquakes=rules)
    return poll(policy, now=utc(STRUCK + hours * HOUR), emit=told.append), told


def _tell(usgs, *features):
    usgs.listed = list(features)
    usgs.known |= {feature["id"]: feature for feature in features}


def test_poll_asks_for_the_detail_of_candidates_only(usgs, tmp_path):
    _tell(usgs, quake("us1"), quake("us2", mag=4.6))
    _, told = _poll(usgs, tmp_path, 1)
    assert [a.event_id for a in told] == ["us1"]
    assert [a["eventid"] for a in usgs.asked if "eventid" in a] == ["us1"]


def test_poll_responds_to_a_smaller_one_with_a_landslide_alert(usgs, tmp_path):
    _tell(usgs, _alerted())
    _, told = _poll(usgs, tmp_path, 1)
    assert "orange landslide alert" in told[0].reason


def test_poll_after_an_outage_catches_up_from_the_last_good_poll(usgs, tmp_path):
    _tell(usgs, quake("us0", mag=4.6))
    _poll(usgs, tmp_path, -1)
    usgs.known["us1"] = quake("us1")  # struck and left the feed while nobody looked
    done, told = _poll(usgs, tmp_path, 40)
    assert [a.event_id for a in told] == ["us1"]
    assert done.is_good
    (asked,) = [a for a in usgs.asked if "updatedafter" in a]
    assert asked["updatedafter"] == f"{utc(STRUCK - HOUR) - timedelta(minutes=10):%Y-%m-%dT%H:%M:%S}"


def test_poll_is_not_good_until_it_has_caught_up(usgs, tmp_path):
    _tell(usgs, quake("us0", mag=4.6))
    _poll(usgs, tmp_path, -1)
    usgs.down = {"query"}
    assert not _poll(usgs, tmp_path, 40)[0].is_good
    usgs.known["us1"] = quake("us1")
    usgs.down = set()
    assert [a.event_id for a in _poll(usgs, tmp_path, 41)[1]] == ["us1"]


def test_poll_waits_for_a_detail_that_does_not_come_only_so_long(usgs, tmp_path):
    _tell(usgs, quake("us1"))
    usgs.down = {"detail"}
    assert _poll(usgs, tmp_path, 1)[1] == []
    _, told = _poll(usgs, tmp_path, 4)
    assert "a circle of 57 km" in told[0].reason


def _alerted(event_id="us1"):
    """One that only the landslide alert in its detail qualifies."""
    failure = {"code": event_id, "source": "us", "updateTime": STRUCK, "properties": {"landslide-alert": "orange"}}
    small = quake(event_id, mag=5.4)
    small["properties"]["products"]["ground-failure"] = [failure]
    return small


@pytest.mark.parametrize("found", [quake("us1"), _alerted()], ids=["large", "alerted"])
def test_poll_follows_what_an_outage_hid_although_its_detail_did_not_come(usgs, tmp_path, found):
    _tell(usgs, quake("us0", mag=4.6))
    _poll(usgs, tmp_path, -1)
    usgs.known["us1"] = found  # struck and left the feed while nobody looked
    usgs.down = {"detail"}
    _poll(usgs, tmp_path, 2)
    usgs.down = set()
    (told,) = _poll(usgs, tmp_path, 2.9)[1]
    assert "ShakeMap us v1" in told.reason


def test_poll_does_not_wait_for_an_alert_where_nobody_can_be_asked(usgs, tmp_path):
    _tell(usgs, _alerted())
    done, _ = _poll(usgs, tmp_path, 4, query=None)
    assert [d.state for d in done.decisions] == ["declined"]


def test_poll_takes_the_shakemap_that_came_late_as_a_revision(usgs, tmp_path):
    _tell(usgs, quake("us1", mapped=False))
    assert _poll(usgs, tmp_path, 1)[1] == []
    assert [a.revision for a in _poll(usgs, tmp_path, 4)[1]] == [1]
    _tell(usgs, quake("us1", hours=5))
    (revised,) = _poll(usgs, tmp_path, 6)[1]
    assert (revised.revision, "ShakeMap us v1" in revised.reason) == (2, True)


def test_poll_keeps_a_shakemap_that_cannot_be_read_for_the_next(usgs, tmp_path):
    _tell(usgs, quake("us1"))
    usgs.down = {"map"}
    done, told = _poll(usgs, tmp_path, 1)
    assert told == []
    assert any("answered 404" in warning for warning in done.warnings)
    usgs.down = set()
    assert [a.revision for a in _poll(usgs, tmp_path, 2)[1]] == [1]


def test_poll_follows_an_event_that_left_the_feed(usgs, tmp_path):
    _tell(usgs, quake("us1"))
    _poll(usgs, tmp_path, 1)
    _tell(usgs, quake("us9", mag=4.6))
    usgs.known["us1"] = quake("us1", mag=7.0, hours=30)
    (revised,) = _poll(usgs, tmp_path, 40)[1]
    assert "magnitude 6.6 became 7" in revised.reason


def test_poll_refuses_a_detail_of_another_earthquake(usgs, tmp_path):
    _tell(usgs, quake("us1"))
    usgs.known["us1"] = quake("us7")
    done, told = _poll(usgs, tmp_path, 1)
    assert told == []
    assert any("another earthquake, us7" in warning for warning in done.warnings)


def test_poll_of_a_deleted_event_ends_its_response(usgs, tmp_path):
    _tell(usgs, quake("us1"))
    _poll(usgs, tmp_path, 1)
    usgs.listed = [quake("us1", hours=2, status="deleted")]
    done, told = _poll(usgs, tmp_path, 3)
    assert [d.state for d in done.decisions] == ["deleted"]
    assert (told, done.watchlist.active()) == ([], ())


def _deletion(event_id="us1", hours=2):
    """As ComCat sends it."""
    told = quake(event_id, hours=hours, status="deleted", mag=None, time=None, title=None, types=None)
    del told["properties"]["products"]
    return {**told, "geometry": None}


def test_poll_of_a_deletion_without_place_and_time_ends_the_response(usgs, tmp_path):
    _tell(usgs, quake("us1"))
    _poll(usgs, tmp_path, 1)
    usgs.listed = [quake("us9", mag=4.6)]
    usgs.known["us1"] = _deletion()  # no feed lists it: the event is asked for in its turn
    done, told = _poll(usgs, tmp_path, 3)
    assert ([d.state for d in done.decisions], told, done.watchlist.active()) == (["deleted"], [], ())


def test_poll_responds_to_what_was_parted_although_no_feed_lists_it(usgs, tmp_path):
    _tell(usgs, quake("us1", ids=",us1,us2,"))
    _poll(usgs, tmp_path, 1)
    usgs.listed = [quake("us9", mag=4.6)]
    usgs.known |= {"us1": quake("us1", hours=1.5), "us2": quake("us2", mag=7.4, hours=1.5)}
    _poll(usgs, tmp_path, 2)
    (told,) = _poll(usgs, tmp_path, 2.1)[1]
    assert (told.event_id, told.revision) == ("us2", 1)


def test_poll_responds_to_what_was_parted_and_is_listed_with_old_times(usgs, tmp_path):
    _tell(usgs, quake("us1", ids=",us1,us2,"))
    _poll(usgs, tmp_path, 1)
    _tell(usgs, quake("us2", mag=7.4), quake("us1"))
    (told,) = _poll(usgs, tmp_path, 1.01)[1]
    assert (told.event_id, told.revision) == ("us2", 1)


def test_poll_makes_no_folder_of_an_id_that_is_a_file_of_ours(usgs, tmp_path):
    _tell(usgs, quake("watchlist.json"), quake("us1"))
    done, told = _poll(usgs, tmp_path, 1)
    assert [a.event_id for a in told] == ["us1"]
    assert "no name of our own" in done.warnings[0]


def test_poll_after_one_with_the_clock_ahead_catches_up_and_counts_silence(usgs, tmp_path):
    _tell(usgs, quake("us1"))
    _poll(usgs, tmp_path, 1)
    ahead, _ = _poll(usgs, tmp_path, 24 * 400)
    assert ahead.watchlist.active() == ()
    usgs.listed = [quake("us9", mag=4.6)]
    usgs.known["us2"] = quake("us2")  # left the feed while the clock was ahead
    usgs.down = {"feed", "query"}
    silent, _ = _poll(usgs, tmp_path, 2)
    assert (silent.is_good, silent.silent) == (False, timedelta(0))
    assert _poll(usgs, tmp_path, 10)[0].silent == timedelta(hours=8)
    usgs.down = set()
    done, told = _poll(usgs, tmp_path, 11)
    assert (done.is_good, [a.event_id for a in told]) == (True, ["us2"])
    assert sorted(k.id for k in done.watchlist.active()) == ["us1", "us2"]


def test_poll_tells_of_the_others_where_one_cannot_be_told(usgs, tmp_path):
    (tmp_path / "us1").write_text("in the way of the event's folder")
    _tell(usgs, quake("us1"), quake("us2"))
    done, told = _poll(usgs, tmp_path, 1)
    assert [a.event_id for a in told] == ["us2"]
    assert [a.event_id for a in done.announced] == ["us2"]
    assert "us1: unexpected" in done.failures[0]
    (tmp_path / "us1").unlink()
    assert [a.event_id for a in _poll(usgs, tmp_path, 1.1)[1]] == ["us1"]


def test_poll_responds_over_all_of_an_area_whose_elevation_cannot_be_read(usgs, tmp_path):
    _tell(usgs, quake("us1"))
    done, told = _poll(usgs, tmp_path, 1, dem=str(tmp_path / "gone.tif"))
    assert [a.event_id for a in told] == ["us1"]
    assert any("correct `dem`" in warning for warning in done.warnings)


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/x", "file:///etc/passwd", "http://127.0.0.1:1/", "x", "http://"]
)
def test_poll_does_not_read_a_map_from_elsewhere(usgs, tmp_path, url):
    hostile = quake("us1")
    hostile["properties"]["products"]["shakemap"][0]["contents"] = {"download/grid.xml": {"url": url}}
    _tell(usgs, hostile)
    done, told = _poll(usgs, tmp_path, 4)
    assert "a circle of 57 km" in told[0].reason
    assert any("not allowed" in warning or "expected http" in warning for warning in done.warnings)


def test_poll_makes_no_folder_of_an_id_that_is_a_path(usgs, tmp_path):
    _tell(usgs, quake("us1"), quake("../../us2"), quake("us3", ids=",us3,/etc,"))
    done, told = _poll(usgs, tmp_path / "state", 1)
    assert [a.event_id for a in told] == ["us1"]
    assert len(done.warnings) == 2
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_dir()) == ["state", "us1"]


def test_poll_asks_for_few_details_of_a_flood(usgs, tmp_path):
    usgs.listed = [quake(f"us{n}") for n in range(60)]
    done, told = _poll(usgs, tmp_path, 1)
    assert len([a for a in usgs.asked if "eventid" in a]) == 50
    assert done.warnings[0].startswith("60 earthquakes to ask for")
    assert told == []


def test_poll_is_not_good_until_a_flood_that_an_outage_hid_is_asked_for(usgs, tmp_path):
    _tell(usgs, quake("us0", mag=4.6))
    _poll(usgs, tmp_path, -1)
    usgs.known |= {f"us{n}": quake(f"us{n}") for n in range(1, 61)}
    done, first = _poll(usgs, tmp_path, 40)
    assert (done.is_good, len(first)) == (False, 50)
    done, second = _poll(usgs, tmp_path, 40.1)
    assert (done.is_good, len(second)) == (True, 10)


def test_poll_of_an_empty_feed_is_not_good_until_comcat_agrees(usgs, tmp_path):
    _tell(usgs, quake("us0", mag=4.6))
    _poll(usgs, tmp_path, -1)
    usgs.listed = []
    assert not _poll(usgs, tmp_path, -0.5)[0].is_good
    assert _poll(usgs, tmp_path, 1)[0].is_good


def test_poll_refuses_a_feed_file_that_is_too_large(tmp_path):
    with open(tmp_path / "feed.geojson", "wb") as stream:
        stream.truncate(33 * 1024**2)
    policy = Policy(state=str(tmp_path), earthquakes=QuakePolicy(feed=str(tmp_path / "feed.geojson"), query=None))
    assert "more than 33554432 bytes" in poll(policy, now=utc(STRUCK), emit=pytest.fail).warnings[0]
