"""Searching imagery: a real STAC API, APIs that fail, and items that are not to be trusted."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import rasterio
from affine import Affine
from shapely import union_all
from shapely.geometry import box, mapping
from stac_server import COLLECTION, StacApi, answering, cog_of, files_of, item_of, listing

from catalog.candidates import checked_scene, compare, without_duplicates
from catalog.imagery import is_withdrawn, search_imagery
from catalog.policy import ImageryPolicy, StacSource
from catalog.schema import InputError
from catalog.sensors import sensor
from catalog.web import Unanswered

DAY = datetime(2018, 9, 11, tzinfo=UTC)
AREA = box(142.01, 42.73, 142.03, 42.76)
NO_ITEMS = json.dumps({"type": "FeatureCollection", "features": [], "links": []}).encode()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr("catalog.web.PAUSE_S", 0.01)


@pytest.fixture(scope="module")
def cog(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cogs")
    where = Affine(10, 0, 583_200, 0, -10, 4_737_000)
    data = np.random.default_rng(0).integers(20, 200, (3, 256, 256)).astype(np.uint8)
    shape = {"driver": "GTiff", "count": 3, "height": 256, "width": 256}
    with rasterio.open(folder / "raw.tif", "w", **shape, dtype="uint8", transform=where, crs="EPSG:32654") as out:
        out.write(data)
    return cog_of(folder / "raw.tif", folder / "post.tif")


@pytest.fixture
def good(cog):
    return item_of(cog, "http://127.0.0.1:9", item_id="a", taken=DAY)


def policy(*hosts, **given):
    sources = tuple(StacSource(url=f"http://{host}", collection=COLLECTION, sensor="rgb8") for host in hosts)
    return ImageryPolicy(sources=sources, timeout_s=1.0, **given)


def searched(*hosts, allowed=("127.0.0.1:9",), area=AREA, **given):
    start, end = DAY - timedelta(days=5), DAY + timedelta(days=5)
    return search_imagery(policy(*hosts, **given), area=area, start=start, end=end, hosts=allowed)


@pytest.fixture
def api(tmp_path):
    server = StacApi(tmp_path / "api")
    yield server
    server.stop()


def test_search_imagery_of_a_real_api(api, cog):
    with files_of(cog.parent) as host:
        api.serve(
            item_of(cog, f"http://{host}", item_id="a", taken=DAY, **{"eo:cloud_cover": 20.0}),
            item_of(cog, f"http://{host}", item_id="early", taken=DAY - timedelta(days=40)),
        )
        found = searched(api.url.removeprefix("http://"), allowed=[host])
        (scene,) = found.scenes
        assert (scene.id, scene.cloud_percent, scene.gsd_m, scene.state) == ("a", 20.0, 10.0, "2024-01-10T00:00:00Z")
        assert scene.item["assets"]["red"]["href"] == f"http://{host}/post.tif"
        assert found.told == ()
        known = policy(api.url.removeprefix("http://"))
        assert not is_withdrawn(scene, known, hosts=[host])
        api.serve()
        assert is_withdrawn(scene, known, hosts=[host])
        api.stop()
        with pytest.raises(Unanswered):
            is_withdrawn(scene, known, hosts=[host])


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 500},
        {"delay_s": 1.5},
        {"body": NO_ITEMS, "promised": 4000},
        {"body": NO_ITEMS[: len(NO_ITEMS) // 2]},
        {"body": b"[]"},
        {"body": b"<html>busy</html>"},
        {"body": b'{"type": "Catalog", "id": "a", "stac_version": "1.0.0", "links": "none"}'},
        {"body": b"[" * 100_000},
    ],
    ids=["500", "silent", "cut-off", "half", "list", "html", "links", "deep"],
)
def test_search_imagery_passes_over_an_api_that_fails(good, answer):
    with answering(**answer) as broken, listing(good) as sound:
        found = searched(broken, sound)
        assert [scene.id for scene in found.scenes] == ["a"]
        assert found.told[0].startswith(f"http://{broken} is passed over: ")
        with pytest.raises(Unanswered, match="no STAC API answered"):
            searched(broken)


def test_search_imagery_passes_over_an_api_that_is_not_there(good):
    with listing(good) as sound:
        assert [scene.id for scene in searched("127.0.0.1:1", sound).scenes] == ["a"]


@pytest.mark.parametrize("href", ["file:///etc/passwd", "/etc/passwd", "http://169.254.169.254/latest"])
def test_search_imagery_follows_no_page_elsewhere(good, href):
    with listing(good, links=lambda _root: [{"rel": "next", "href": href}]) as host:
        with pytest.raises(Unanswered, match="no STAC API answered"):
            searched(host)


def test_search_imagery_posts_nothing(good):
    with listing(good, links=lambda root: [{"rel": "next", "href": root, "method": "POST"}]) as host:
        with pytest.raises(Unanswered, match="expected GET"):
            searched(host)


def test_search_imagery_ends_pages_that_do_not(good):
    many = [{**good, "id": f"a{i}"} for i in range(30)]
    with listing(*many, links=lambda root: [{"rel": "next", "href": f"{root}/search"}]) as host:
        found = searched(host, max_items=50)
    assert "lists more than 50 items" in found.told[0]


def test_search_imagery_leaves_out_cloudy_scenes(good):
    cloudy = {**good, "id": "b", "properties": {**good["properties"], "eo:cloud_cover": 90}}
    with listing(cloudy) as host:
        found = searched(host)
    assert not found.scenes
    assert "1 scenes have more than 80 % cloud" in found.told[0]


def without(good, *path):
    """The item without one of its parts."""
    if len(path) == 1:
        return {key: value for key, value in good.items() if key != path[0]}
    return {**good, path[0]: without(good[path[0]], *path[1:])}


def changed(good, value, *path):
    """The item with another part."""
    return {**good, path[0]: changed(good[path[0]], value, *path[1:]) if len(path) > 1 else value}


HREF = ("assets", "red", "href")
HOSTILE = [
    *((value, "id") for value in ("../../etc", "a/b", "", "-a", "a" * 200, 7, None)),
    *((value, "geometry") for value in (None, {}, {"type": "Point", "coordinates": [1, 2]}, {"type": "Polygon"})),
    (mapping(box(500, 42, 501, 43)), "geometry"),
    (mapping(box(10, 42, 11, 43)), "geometry"),
    ({"type": "Polygon", "coordinates": [[[142, 42], ["x", 42], [143, 43], [142, 42]]]}, "geometry"),
    *((value, "properties", "datetime") for value in (None, 5, "yesterday", "2031-01-01T00:00:00Z")),
    *((value, "properties", "eo:cloud_cover") for value in (-1, 101, "10", True, [])),
    *((value, "properties", "gsd") for value in (0, -10, 1e9, "10")),
    *((value, *HREF) for value in ("file:///etc/passwd.tif", "/etc/passwd.tif", "/vsicurl/http://a/x.tif", 5)),
    *((value, *HREF) for value in ("http://u:p@127.0.0.1:9/x.tif", "http://169.254.169.254/x.tif", "s3://a/x.tif")),
    ("http://127.0.0.1:9/x.vrt", *HREF),
    (0, "assets", "red", "landslidenet:band_index"),
    ([], "assets"),
    ({}, "assets"),
    ("no", "properties"),
]


@pytest.mark.parametrize(("value", "path"), [(value, path) for value, *path in HOSTILE], ids=str)
def test_search_imagery_refuses_a_hostile_item_alone(good, value, path):
    with listing(changed(good, value, *path), {**good, "id": "sound"}, "no item") as host:
        found = searched(host)
    assert [scene.id for scene in found.scenes] == ["sound"]
    assert len(found.told) == 2
    assert all("is refused" in sentence for sentence in found.told)


# --- one picture, several items --------------------------------------------------------------------------------------


def scene(good, *, source="http://a", **properties):
    item_id = properties.pop("id", "a")
    value = {**good, "id": item_id, "properties": {**good["properties"], **properties}}
    return checked_scene(
        value,
        source=StacSource(url=source, collection=COLLECTION, sensor="rgb8"),
        entry=sensor("rgb8"),
        hosts=["127.0.0.1:9"],
    )


def test_checked_scene_drops_what_it_does_not_know(good):
    made = scene(good, **{"landslidenet:local": True, "evil": "x"})
    assert not {"landslidenet:local", "evil"} & set(made.item["properties"])


SENTINEL = {
    "type": "Feature",
    "stac_version": "1.0.0",
    "id": "S2B_54TWN_20180911_0_L2A",
    "collection": "sentinel-2-l2a",
    "geometry": mapping(AREA),
    "bbox": list(AREA.bounds),
    "links": [],
    "properties": {
        "datetime": "2018-09-11T01:30:45.120000Z", "platform": "sentinel-2b", "grid:code": "MGRS-54TWN",
        "eo:cloud_cover": 12.5, "view:sun_elevation": 51.2, "view:sun_azimuth": 156, "sat:relative_orbit": 88,
        "s2:processing_baseline": "05.00", "earthsearch:boa_offset_applied": True, "updated": "2023-01-01T00:00:00Z",
        "proj:code": "EPSG:32654", "s2:nodata_pixel_percentage": 3.1,
    },
    "assets": {
        **{
            name: {
                "href": f"https://cogs.example.org/54/{name}.tif",
                "raster:bands": [{"nodata": 0, "data_type": "uint16", "scale": 0.0001, "offset": -0.1}],
            }
            for name in ("blue", "green", "red", "nir", "swir16", "swir22")
        },
        "scl": {"href": "https://cogs.example.org/54/SCL.tif"},
        "thumbnail": {"href": "http://elsewhere.example.org/preview.jpg"},
        "blue-jp2": {"href": "s3://elsewhere/B02.jp2"},
    },
}  # fmt: skip


def test_checked_scene_of_a_sentinel_item_keeps_what_decodes_it():
    source = StacSource(url="https://stac.example.org", collection="sentinel-2-l2a", sensor="sentinel2-l2a")
    made = checked_scene(SENTINEL, source=source, entry=sensor("sentinel2-l2a"), hosts=["cogs.example.org"])
    assert (made.tile, made.orbit, made.gsd_m, made.baseline) == ("54TWN", 88, 10, "005.000")
    assert (made.sun_elevation_deg, made.sun_azimuth_deg, made.cloud_percent) == (51.2, 156, 12.5)
    assert set(made.item["assets"]) == {"blue", "green", "red", "nir", "swir16", "swir22", "scl"}
    assert made.item["assets"]["blue"]["raster:bands"] == [{"nodata": 0.0, "offset": -0.1}]
    assert made.item["properties"]["earthsearch:boa_offset_applied"] is True


def test_checked_scene_over_the_antimeridian_covers_its_own_ground_only(good):
    corners = [[179.5, -18], [-179.6, -18], [-179.6, -17], [179.5, -17], [179.5, -18]]
    made = scene({**good, "geometry": {"type": "Polygon", "coordinates": [corners]}})
    assert made.footprint.equals(union_all([box(179.5, -18, 180, -17), box(-180, -18, -179.6, -17)]))
    assert made.item["bbox"] == pytest.approx([179.5, -18, -179.6, -17])


def test_without_duplicates_keeps_the_newest_processing(good):
    old = scene(good, id="old", **{"s2:processing_baseline": "02.06"})
    new = scene(good, id="new", **{"s2:processing_baseline": "05.00"})
    assert [s.id for s in without_duplicates([old, new])] == ["new"]
    assert [s.id for s in without_duplicates([new, old])] == ["new"]


def test_without_duplicates_of_two_apis_keeps_the_preferred(good):
    first, second = scene(good, id="x"), scene(good, id="y", source="http://b", updated="2030-01-01T00:00:00Z")
    assert [s.id for s in without_duplicates([first, second])] == ["x"]


def test_without_duplicates_keeps_other_tiles_and_other_times(good):
    scenes = [
        scene(good, id="x", **{"grid:code": "MGRS-54TWN"}),
        scene(good, id="y", **{"s2:mgrs_tile": "54TWM"}),
        scene(good, id="z", datetime="2018-09-12T00:00:00Z"),
    ]
    assert without_duplicates(scenes) == tuple(scenes)


def test_compare_tells_corrections_from_other_pictures(good):
    used = scene(good)
    corrected = scene(good, updated="2024-02-01T00:00:00Z")
    other = scene(good, id="b", datetime="2018-09-12T00:00:00Z")
    again = scene(good, id="c", source="http://b")
    assert compare([used], [corrected, other, again]) == ({"a": corrected}, (other,))


def test_checked_scene_needs_the_sensors_bands(good):
    with pytest.raises(InputError, match=r"band\(s\) red missing"):
        scene(without(good, "assets", "red"))
