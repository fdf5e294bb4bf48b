import copy
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quake_history import EVENTS, as_of, document, noise, update_times, utc

from catalog.comcat import MAX_FEATURES, MAX_TEXT, Feed, parse_detail, parse_feed
from catalog.config import is_event_id
from catalog.schema import InputError

FEATURE = {
    "type": "Feature",
    "id": "us1",
    "properties": {
        "mag": 6.6, "title": "M 6.6 - there", "time": 1536170879150, "updated": 1536170879999, "status": "reviewed",
        "ids": ",us1,at2,", "types": ",origin,shakemap,", "type": "earthquake", "alert": "orange",
    },
    "geometry": {"type": "Point", "coordinates": [141.9, 42.7, 35.0]},
}  # fmt: skip
SHAKEMAP = {
    "code": "us1", "source": "us", "updateTime": 1536170879999, "preferredWeight": 10, "status": "UPDATE",
    "properties": {"version": "3"}, "contents": {"download/grid.xml": {"url": "https://earthquake.usgs.gov/grid.xml"}},
}  # fmt: skip


def _feed(*features):
    return parse_feed(json.dumps({"type": "FeatureCollection", "features": features}).encode(), where="feed")


def _with(**properties):
    return {**FEATURE, "properties": {**FEATURE["properties"], **properties}}


def _detail(*shakemaps):
    return parse_detail(json.dumps(_with(products={"shakemap": shakemaps})).encode(), where="detail")


def test_parse_feed_reads_a_summary():
    (quake,) = _feed(FEATURE).quakes
    assert (quake.event.id, quake.event.magnitude, quake.event.depth_km) == ("us1", 6.6, 35.0)
    assert quake.event.time_utc == utc(1536170879150)
    assert (quake.ids, quake.pager, quake.detailed, quake.deleted) == ({"us1", "at2"}, "orange", False, False)


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (("id",), "../../etc/passwd", "`id`: expected 1 to 64 letters"),
        (("id",), "a" * 65, "`id`: expected 1 to 64 letters"),
        (("id",), ".hidden", "`id`: expected 1 to 64 letters"),
        (("id",), "us1\n", "`id`: expected 1 to 64 letters"),
        (("id",), 7, "`id`: expected 1 to 64 letters"),
        (("properties", "ids"), ",us1,..%2f..,", "ids.1`: expected 1 to 64 letters"),
        (("properties", "ids"), ",a" * 300, "ids`: expected a list of at most 200"),
        (("properties", "mag"), "6.6", "mag`: expected a number of -10 to 11"),
        (("properties", "mag"), 99, "mag`: expected a number of -10 to 11"),
        (("properties", "time"), 1e30, "time`: expected a whole number"),
        (("properties", "time"), 10**15, "time`: expected a whole number of -8520336000000 to 4102444800000"),
        (("properties", "updated"), None, "updated`: expected a whole number"),
        (("geometry", "coordinates"), [141.9, 95, 0], "expected \\[longitude, latitude"),
        (("geometry", "coordinates"), [None, 42, 0], "expected \\[longitude, latitude"),
        (("geometry", "coordinates"), [141.9, 42, 6371], "expected a depth"),
        (("geometry", "coordinates"), [0] * 100, "at most 3"),
        (("geometry",), None, "`geometry`: expected keys and values"),
        (("properties",), [], "`properties`: expected keys and values"),
    ],
)
def test_parse_feed_refuses_a_malformed_feature_and_keeps_the_others(place, value, reason):
    bad = copy.deepcopy(FEATURE)
    inner = bad
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    feed = _feed(FEATURE, bad, FEATURE)
    assert len(feed.quakes) == 2
    (told,) = feed.refused
    assert "feature 2: " in told
    assert re.search(reason, told), told


def test_parse_feed_refuses_a_number_beyond_floats():
    text = json.dumps({"type": "FeatureCollection", "features": [FEATURE]}).replace("35.0", "1e999")
    assert "finite" in parse_feed(text.encode(), where="feed").refused[0]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b"[" * 100_000, "not JSON|nested"),
        (b'{"a":' * 80 + b"1" + b"}" * 80, "nested deeper than 64"),
        (b"1" * 5000, "not JSON"),
        (b"[]", "no ComCat document"),
        (b'{"type": "FeatureCollection", "features": {}}', "no ComCat document"),
        (
            b'{"type":"FeatureCollection","features":[' + b"1," * MAX_FEATURES + b"1]}",
            "features; expected 20000 at most",
        ),
    ],
)
def test_parse_feed_refuses_what_is_no_feed(data, match):
    with pytest.raises(InputError, match=match):
        parse_feed(data, where="feed")


def test_parse_feed_cleans_titles():
    (quake,) = _feed(_with(title="M 6.6\x00\x1b[2J\ud800‮" + "x" * 1000)).quakes
    assert quake.event.title.startswith("M 6.6[2Jx")
    assert len(quake.event.title) <= MAX_TEXT
    quake.event.title.encode()


@pytest.mark.parametrize("alert", ["pending", "<script>", 7, [], None])
def test_parse_feed_takes_no_alert_from_what_is_no_colour(alert):
    (quake,) = _feed(_with(alert=alert)).quakes
    assert quake.pager is None


def test_parse_feed_wraps_longitudes():
    (quake,) = _feed({**FEATURE, "geometry": {"type": "Point", "coordinates": [181.5, 0, 10]}}).quakes
    assert quake.event.longitude == -178.5


def test_parse_feed_sees_a_deleted_event_without_magnitude():
    (quake,) = _feed(_with(status="deleted", mag=None)).quakes
    assert quake.deleted


@pytest.mark.parametrize("geometry", [None, {"type": "Point", "coordinates": [None, None, None]}, "absent"])
def test_parse_feed_reads_a_deletion_without_place_and_time(geometry):
    feature = {**_with(status="deleted", mag=None, time=None, type=None, title=None), "geometry": geometry}
    if geometry == "absent":
        del feature["geometry"], feature["properties"]["time"], feature["properties"]["mag"]
    (quake,) = _feed(feature).quakes
    assert (quake.event.id, quake.ids, quake.deleted, quake.event.time_utc) == ("us1", {"us1", "at2"}, True, None)
    assert parse_detail(json.dumps(feature).encode(), where="detail").deleted


def test_parse_feed_refuses_a_deletion_without_an_id():
    assert "`id`: " in _feed({**_with(status="deleted"), "id": "../x"}).refused[0]


@pytest.mark.parametrize(
    "event_id", ["watchlist.json", "Response.JSON", "us1.lock", "inference-0123.zarr", "us1-32654"]
)
def test_parse_feed_refuses_an_id_that_is_a_name_of_our_own(event_id):
    feed = _feed({**FEATURE, "id": event_id}, FEATURE)
    assert [quake.event.id for quake in feed.quakes] == ["us1"]
    assert "no name of our own" in feed.refused[0]


def test_parse_detail_prefers_the_weightiest_of_the_latest():
    later = {**SHAKEMAP, "updateTime": SHAKEMAP["updateTime"] + 1, "properties": {"version": "4"}}
    light = {**later, "code": "x", "preferredWeight": 1, "updateTime": later["updateTime"] + 1}
    assert _detail(SHAKEMAP, later, light).shakemap.version == "4"
    assert _detail(later, SHAKEMAP, light).shakemap.key == f"us:us1:{later['updateTime']}"


def test_parse_detail_passes_over_a_withdrawn_shakemap():
    withdrawn = {**SHAKEMAP, "status": "DELETE", "updateTime": SHAKEMAP["updateTime"] + 1}
    assert _detail(SHAKEMAP, withdrawn).shakemap is None


def test_parse_detail_refuses_a_malformed_product_and_keeps_the_others():
    quake = _detail({**SHAKEMAP, "updateTime": "soon"}, SHAKEMAP, {**SHAKEMAP, "code": "../x"})
    assert quake.shakemap.version == "3"
    assert [reason.split(":")[1] for reason in quake.refused] == [" `updateTime`", " `code`"]


@pytest.mark.parametrize("products", [[], {"shakemap": 3}, {"shakemap": [None]}, {"shakemap": [SHAKEMAP] * 2001}])
def test_parse_detail_without_usable_products_has_no_shakemap(products):
    assert parse_detail(json.dumps(_with(products=products)).encode(), where="detail").shakemap is None


def test_parse_detail_refuses_a_summary():
    with pytest.raises(InputError, match="no single event with products"):
        parse_detail(json.dumps(FEATURE).encode(), where="detail")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
PLACES = [
    ("id",), ("type",), ("geometry",), ("geometry", "coordinates"), ("properties",), ("properties", "products"),
    *(("properties", key) for key in FEATURE["properties"]),
]  # fmt: skip


@given(place=st.sampled_from(PLACES), value=JSON, bad_product=JSON)
def test_parse_feed_takes_anything_or_refuses_it(place, value, bad_product):
    feature = copy.deepcopy(_with(products={"shakemap": [bad_product, SHAKEMAP], "ground-failure": bad_product}))
    inner = feature
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    data = json.dumps({"type": "FeatureCollection", "features": [feature, FEATURE]}).encode()
    try:
        feed = parse_feed(data, where="feed")
    except InputError:
        assert b"NaN" in data or b"Infinity" in data
        return
    assert isinstance(feed, Feed)
    assert len(feed.quakes) + len(feed.refused) == 2
    for quake in feed.quakes:
        assert all(is_event_id(i) for i in quake.ids)
        assert quake.deleted or -180 <= quake.event.longitude <= 180
        quake.event.model_dump_json().encode()


@given(data=st.binary(max_size=200))
def test_parse_feed_refuses_bytes_that_are_no_document(data):
    with pytest.raises(InputError):
        parse_feed(data, where="feed")


@pytest.mark.real
@pytest.mark.parametrize("event_id", EVENTS)
def test_parse_detail_reads_real_earthquakes(event_id):
    quake = parse_detail(json.dumps(document(event_id)).encode(), where=event_id)
    assert (quake.event.id, quake.refused) == (event_id, ())
    assert quake.landslide in ("orange", "red")
    assert "download/cont_pga.json" in quake.shakemap.urls


@pytest.mark.real
def test_parse_detail_follows_the_landslide_alert_of_hokkaido():
    steps = [as_of("us2000h8ty", ms) for ms in update_times("us2000h8ty")[1:]]
    colours = [parse_detail(json.dumps(step).encode(), where="h").landslide for step in steps]
    changes = [colour for n, colour in enumerate(colours) if n == 0 or colour != colours[n - 1]]
    assert changes == [None, "green", "yellow", "orange"]


@pytest.mark.real
def test_parse_feed_reads_a_real_feed():
    feed = _feed(*noise())
    assert (len(feed.quakes), feed.refused) == (109, ())
