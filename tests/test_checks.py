import json
import shutil
import threading
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import geopandas
import numpy as np
import pystac
import pytest
import rasterio
from affine import Affine
from shapely.geometry import box, mapping
from stac_server import files_of

from catalog.checks import check_inputs
from catalog.config import Event, RunConfig
from catalog.scenes import read_epoch
from catalog.schema import InputError

LEFT, TOP = 583_200.0, 4_737_000.0
EVENT = Event(id="e", time_utc=datetime(2018, 9, 5, 18, tzinfo=UTC), longitude=142, latitude=42.7)
BEFORE, AFTER = datetime(2018, 8, 1, tzinfo=UTC), datetime(2018, 9, 11, tzinfo=UTC)


def write(path, data, *, gsd=10.0, left=LEFT, top=TOP, epsg=32654):
    profile = {"driver": "GTiff", "count": len(data), "height": data.shape[1], "width": data.shape[2]}
    transform = Affine(gsd, 0, left, 0, -gsd, top)
    with rasterio.open(path, "w", **profile, dtype=data.dtype, transform=transform, crs=f"EPSG:{epsg}") as out:
        out.write(data)
    return str(path)


def picture(*, bands=3, size=60, dtype=np.uint8, low=20, high=200, seed=0):
    return np.random.default_rng(seed).integers(low, high, (bands, size, size)).astype(dtype)


@pytest.fixture
def given(tmp_path):
    """Files that fit together."""
    area = geopandas.GeoDataFrame(geometry=[box(LEFT + 105, TOP - 395, LEFT + 395, TOP - 105)], crs=32654)
    area.to_crs(4326).to_file(tmp_path / "aoi.geojson", engine="pyogrio")
    return {
        "name": "e",
        "block_px": 256,
        "post": (write(tmp_path / "post.tif", picture()),),
        "pre": (write(tmp_path / "pre.tif", picture(seed=1)),),
        "dem": write(tmp_path / "dem.tif", np.full((1, 20, 20), 300, np.int16), gsd=30.0),
        "mask": (write(tmp_path / "mask.tif", np.zeros((1, 60, 60), np.uint8)),),
        "aoi": str(tmp_path / "aoi.geojson"),
        "event": EVENT,
        "post_time_utc": AFTER,
        "pre_time_utc": BEFORE,
    }


def checked(given, **changes):
    return check_inputs(RunConfig(**{**given, **changes}))


def refused(match, given, **changes):
    with pytest.raises(InputError, match=match):
        checked(given, **changes)


def test_check_inputs_of_files_that_fit(given):
    inputs = checked(given)
    assert (inputs.grid.epsg, inputs.grid.gsd_m) == (32654, 10.0)
    assert inputs.pre is not None
    assert inputs.dem is not None
    assert inputs.not_used == ()
    assert inputs.warnings == ()


def test_check_inputs_grid_is_cut_by_the_area(given):
    grid = checked(given).grid
    west, south, east, north = grid.geobox_of(grid.scene).boundingbox.bbox
    assert (west, east) == (LEFT + 100, LEFT + 400)
    assert (south, north) == (TOP - 400, TOP - 100)


def test_check_inputs_grid_covers_all_post_scenes(given, tmp_path):
    second = write(tmp_path / "second.tif", picture(), left=LEFT + 300)
    assert checked(given, post=(*given["post"], second), aoi=None).grid.scene.shape == (60, 90)


def test_check_inputs_says_what_is_not_used(given):
    told = checked(given, pre=(), dem=None, aoi=None, event=None).not_used
    assert [sentence.split(":")[0] for sentence in told] == [
        "no pre-event imagery",
        "no DEM",
        "no area of interest",
        "no event",
    ]


def test_check_inputs_warns_of_unknown_times(given):
    warnings = checked(given, post_time_utc=None).warnings
    assert any("time of the post-event imagery is not known" in told for told in warnings)


def test_check_inputs_warns_of_a_dem_that_covers_a_part(given, tmp_path):
    small = write(tmp_path / "small.tif", np.full((1, 10, 5), 300, np.int16), gsd=30.0)
    assert checked(given, dem=small, aoi=None).warnings == (
        "the DEM covers 12% of the area to process: the rest is mapped without it",
    )


def test_check_inputs_warns_of_a_sentinel_file_without_baseline(given, tmp_path):
    post = write(tmp_path / "s2.tif", picture(bands=6, dtype=np.uint16, low=300, high=4000))
    given = {**given, "sensor": "sentinel2-l2a", "post": (post,), "pre": ()}
    after = datetime(2024, 1, 2, tzinfo=UTC)
    assert any("processing baseline is not known" in told for told in checked(given, post_time_utc=after).warnings)


@pytest.mark.parametrize(
    ("name", "bands", "missing"),
    [("sentinel2-l2a", 6, "scl"), ("landsat-c2-l2", 6, "qa_pixel"), ("planetscope-4b", 4, "udm2")],
)
def test_check_inputs_warns_of_a_scene_without_its_quality_band(given, tmp_path, name, bands, missing):
    post = write(tmp_path / "p.tif", picture(bands=bands, dtype=np.uint16, low=8000, high=9000))
    clear = {"scl": [4], "qa_pixel": [21824], "udm2": []}[missing]
    quality = np.full((len(clear), 60, 60), clear or 0, np.uint16)
    whole = write(
        tmp_path / "w.tif", np.concatenate([picture(bands=bands, dtype=np.uint16, low=8000, high=9000), quality])
    )
    pre = write(tmp_path / "q.tif", picture(bands=bands, dtype=np.uint16, low=8000, high=9000, seed=1))
    told = checked({**given, "sensor": name}, post=(whole, post), pre=(pre,)).warnings
    named = [t.split(":")[0] for t in told if f"has no quality band ({missing})" in t]
    assert named == (["w", "p", "q"] if missing == "udm2" else ["p", "q"])
    assert any("pass --pre-mask" in t for t in told)


def test_check_inputs_unknown_sensor(given):
    refused("expected one of sentinel2-l2a", given, sensor="worldview")


def test_check_inputs_geographic_imagery(given, tmp_path):
    refused("is geographic", given, post=(write(tmp_path / "g.tif", picture(), epsg=4326, gsd=1e-4, left=142, top=42),))


def test_check_inputs_pre_elsewhere(given, tmp_path):
    pre = write(tmp_path / "far.tif", picture(), left=LEFT + 90_000)
    refused("the pre-event imagery does not overlap", given, pre=(pre,))


def test_check_inputs_dem_elsewhere(given, tmp_path):
    dem = write(tmp_path / "far.tif", np.full((1, 9, 9), 300, np.int16), left=LEFT + 90_000)
    refused("the DEM does not overlap", given, dem=dem)


def test_check_inputs_mask_elsewhere(given, tmp_path):
    mask = write(tmp_path / "far.tif", np.zeros((1, 9, 9), np.uint8), left=LEFT + 90_000)
    refused("the mask does not overlap", given, mask=(mask,))


def geographic_dem(tmp_path):
    return write(tmp_path / "g.tif", np.full((1, 90, 90), 300, np.int16), epsg=4326, gsd=3e-4, left=142.01, top=42.79)


def test_check_inputs_geographic_dem(given, tmp_path):
    refused("CRS EPSG:4326 is geographic; .* pass --dem-reproject", given, dem=geographic_dem(tmp_path))


def test_check_inputs_geographic_dem_when_allowed(given, tmp_path):
    assert checked(given, dem=geographic_dem(tmp_path), dem_reproject=True).dem.gsd_m == pytest.approx(24.55, abs=0.1)


@pytest.mark.parametrize("bands", [1, 3])
def test_check_inputs_picture_as_dem(given, tmp_path, bands):
    dem = write(tmp_path / "rgb.tif", picture(bands=bands))
    refused(rf"got {bands} band\(s\) of uint8, which looks like a picture; expected a DEM", given, dem=dem)


@pytest.mark.parametrize("key", ["out", "root"])
def test_check_inputs_place_that_cannot_be_written(given, tmp_path, key):
    (tmp_path / "file").write_text("")
    refused(f"--{key} {tmp_path}/file/x: cannot be written", given, **{key: f"{tmp_path}/file/x"})


def test_check_inputs_leaves_nothing_behind(given, tmp_path):
    checked(given, out=str(tmp_path / "new/out"), root=str(tmp_path / "new/store"))
    assert not (tmp_path / "new").exists()


def test_check_inputs_products_are_local(given):
    refused("expected a folder: products are local files", given, out="s3://bucket/out")


def test_check_inputs_wrong_dtype(given, tmp_path):
    refused("got uint16; sensor rgb8 expects uint8", given, post=(write(tmp_path / "a.tif", picture(dtype=np.uint16)),))


def test_check_inputs_8bit_values_in_a_reflectance_sensor(given, tmp_path):
    post = write(tmp_path / "a.tif", picture(bands=7, dtype=np.uint16))
    refused("looks like 8-bit", given, post=(post,), pre=(), sensor="sentinel2-l2a")


def band_stack(*medians):
    """Bands of uint16 around each number."""
    spread = np.random.default_rng(1).uniform(0.9, 1.1, (len(medians), 60, 60))
    return (spread * np.array(medians)[:, None, None]).astype(np.uint16)


SENTINEL2_DN = band_stack(400, 600, 500, 2800, 1700, 900)
LANDSAT_DN = band_stack(8700, 9800, 9500, 17_000, 14_000, 11_000)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("planetscope-4b", picture(bands=4, dtype=np.uint16, low=40_000, high=60_000), "above 12000"),
        ("sentinel2-l2a", LANDSAT_DN, "above 12000"),
        ("landsat-c2-l2", SENTINEL2_DN, "below 7273"),
        ("landsat-c2-l2", picture(bands=6, dtype=np.uint16, low=30_000, high=60_000), "above 43636"),
    ],
    ids=["large", "landsat-as-sentinel", "sentinel-as-landsat", "noise"],
)
def test_check_inputs_values_beyond_the_scale(given, tmp_path, name, data, message):
    post = write(tmp_path / "a.tif", data)
    refused(f"half of its values are {message}", given, post=(post,), pre=(), sensor=name)


@pytest.mark.parametrize(("name", "data"), [("sentinel2-l2a", SENTINEL2_DN), ("landsat-c2-l2", LANDSAT_DN)])
def test_check_inputs_values_of_the_scale(given, tmp_path, name, data):
    assert checked(given, post=(write(tmp_path / "a.tif", data),), pre=(), sensor=name).grid.gsd_m == 10.0


def test_check_inputs_imagery_without_a_valid_pixel(given, tmp_path):
    post = write(tmp_path / "a.tif", np.zeros((3, 60, 60), np.uint8))
    refused("holds no valid pixel", given, post=(post,))


def test_check_inputs_band_missing(given):
    refused(r"band\(s\) nir missing", given, sensor="rgbnir8")


def test_check_inputs_post_before_the_event(given):
    refused("post-event imagery: got a scene of 2018-08-01.*after the event", given, post_time_utc=BEFORE)


def test_check_inputs_pre_after_the_event(given):
    refused("pre-event imagery: got a scene of 2018-09-11.*before the event", given, pre_time_utc=AFTER)


def test_check_inputs_pre_not_before_post(given):
    refused("before the post-event imagery", given, pre_time_utc=AFTER, event=None)


def test_check_inputs_no_raster(given, tmp_path):
    (tmp_path / "a.tif").write_text("hello")
    refused("cannot be read as a raster", given, post=(str(tmp_path / "a.tif"),))


def test_check_inputs_area_elsewhere(given, tmp_path):
    geopandas.GeoDataFrame(geometry=[box(10, 50, 11, 51)], crs=4326).to_file(tmp_path / "far.gpkg", engine="pyogrio")
    refused("does not overlap the post-event imagery", given, aoi=str(tmp_path / "far.gpkg"))


def test_check_inputs_area_empty(given, tmp_path):
    (tmp_path / "none.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    refused("area of interest", given, aoi=str(tmp_path / "none.geojson"))


def test_check_inputs_area_unreadable(given, tmp_path):
    refused("area of interest .*no.gpkg: no such file", given, aoi=str(tmp_path / "no.gpkg"))


# --- STAC on loopback ------------------------------------------------------------------------------------------------


def item(path, *, at, cloud):
    area = box(142.01, 42.75, 142.03, 42.79)
    made = pystac.Item(f"s-{at:%Y%m%d}", mapping(area), list(area.bounds), at, {"eo:cloud_cover": cloud})
    for index, name in enumerate(("blue", "green", "red", "nir", "scl")):
        made.add_asset(name, pystac.Asset(path[index]))
    made.properties["s2:processing_baseline"] = "04.00"
    return made.to_dict()


class Api(BaseHTTPRequestHandler):
    def do_GET(self):
        if not self.path.startswith("/search"):
            return self._answer(self.server.root)
        (asked,) = parse_qs(urlsplit(self.path).query)["datetime"]
        start, end = asked.split("/")
        found = [i for i in self.server.items if start <= i["properties"]["datetime"] <= end]
        return self._answer({"type": "FeatureCollection", "features": found, "links": []})

    def _answer(self, values):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(values).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def api(tmp_path):
    data = picture(bands=4, dtype=np.uint16, low=1200, high=4000)
    paths = [write(tmp_path / f"b{index}.tif", data[index : index + 1]) for index in range(4)]
    paths.append(write(tmp_path / "scl.tif", np.full((1, 60, 60), 4, np.uint8)))
    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server, files_of(tmp_path) as host:
        paths = [f"http://{host}/{Path(path).name}" for path in paths]
        url = f"http://127.0.0.1:{server.server_port}"
        links = [{"rel": "self", "href": url}, {"rel": "root", "href": url}]
        links += [
            {"rel": "search", "href": f"{url}/search", "type": "application/geo+json", "method": m}
            for m in ("GET", "POST")
        ]
        server.root = {"type": "Catalog", "id": "c", "description": "d", "stac_version": "1.0.0", "links": links}
        server.root["conformsTo"] = [f"https://api.stacspec.org/v1.0.0/{part}" for part in ("core", "item-search")]
        server.items = [
            item(paths, at=datetime(2018, 8, 20, tzinfo=UTC), cloud=5),
            item(paths, at=datetime(2018, 8, 30, tzinfo=UTC), cloud=5),
            item(paths, at=datetime(2018, 9, 10, tzinfo=UTC), cloud=90),
            item(paths, at=datetime(2018, 9, 12, tzinfo=UTC), cloud=10),
        ]
        threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True).start()
        yield url, data, server.items
        server.shutdown()


@pytest.fixture
def searched(given, api):
    stac = {"url": api[0], "collection": "s2"}
    changes = {"post": (), "pre": (), "mask": (), "post_time_utc": None, "pre_time_utc": None}
    return {**given, **changes, "sensor": "sentinel2-l2a", "stac": stac}


def test_check_inputs_searches_stac_nearest_to_the_event_first(searched):
    inputs = checked(searched)
    assert inputs.post.ids == ("s-20180912",)
    assert inputs.pre.ids == ("s-20180830", "s-20180820")
    assert inputs.warnings == ()


def test_check_inputs_stac_scene_is_read_like_a_file(searched, api):
    inputs = checked(searched)
    scene = read_epoch(inputs.post, inputs.grid.geobox_of(inputs.grid.scene))[0].compute()
    expected = api[1][2, 10:40, 10:40] / 10_000 - 0.1
    np.testing.assert_allclose(scene["red"], expected, atol=1e-6)


def test_check_inputs_stac_item_without_cloud_cover_is_kept(searched, api):
    api[2][-1]["properties"]["eo:cloud_cover"] = None
    assert checked(searched).post.ids == ("s-20180912",)


def test_check_inputs_stac_without_event_time(searched):
    refused("got no event time", searched, event=None)


def test_check_inputs_stac_without_area(searched):
    refused("got no area of interest", searched, aoi=None)


def test_check_inputs_stac_finds_nothing(searched):
    stac = {**searched["stac"], "max_cloud_percent": 1}
    refused("nothing in s2 from 2018-09-05", searched, stac=stac)


def test_check_inputs_stac_item_without_a_band(searched, api):
    api[2][-1]["assets"].pop("nir")
    refused(r"STAC item s-20180912: band\(s\) nir missing: got assets", searched)


def test_check_inputs_stac_does_not_answer(searched):
    refused("no usable answer", searched, stac={"url": "http://127.0.0.1:9", "collection": "s2"})


def test_check_inputs_refuses_a_seventh_band_that_is_no_quality_band(given, tmp_path):
    post = write(tmp_path / "sr.tif", picture(bands=7, dtype=np.uint16, low=8000, high=11000))
    for name in ("sentinel2-l2a", "landsat-c2-l2"):
        refused("band 7 is no quality band", given, sensor=name, post=(post,), pre=())


def test_check_inputs_refuses_a_picture_of_too_few_pixels(given, tmp_path):
    post = write(tmp_path / "tiny.tif", picture(size=10))
    refused("got 100 pixels of 10 m; expected at least 500", given, post=(post,), pre=(), aoi=None, dem=None, mask=())


def area_of(path, *shapes):
    geopandas.GeoDataFrame(geometry=list(shapes), crs=32654).to_file(path, engine="pyogrio")
    return str(path)


def test_check_inputs_refuses_an_area_of_too_few_pixels(given, tmp_path):
    area = area_of(tmp_path / "small.gpkg", box(LEFT + 100, TOP - 300, LEFT + 300, TOP - 100))
    refused(r"small.gpkg: the area to process holds 400 pixels of 10 m; expected at least 500", given, aoi=area)


def test_check_inputs_refuses_an_area_whose_parts_the_sample_misses(given, tmp_path):
    post = write(tmp_path / "large.tif", picture(size=2000))
    parts = [box(LEFT + x, TOP - y - 400, LEFT + x + 400, TOP - y) for x, y in ((0, 0), (19_600, 19_600))]
    area = area_of(tmp_path / "apart.gpkg", *parts)
    refused("holds 200 pixels of 10 m .every 4th row", given, post=(post,), pre=(), dem=None, mask=(), aoi=area)


def test_check_inputs_refuses_imagery_of_too_few_observed_pixels(given, tmp_path):
    values = picture()
    values[:, :, 8:] = 0
    post = write(tmp_path / "empty.tif", values)
    refused("480 of the 3600 pixels to process hold values", given, post=(post,), pre=(), aoi=None, mask=())


def test_check_inputs_refuses_a_mask_of_all_pixels(given, tmp_path):
    mask = write(tmp_path / "all.tif", np.ones((1, 60, 60), np.uint8))
    refused("0 of the 3600 pixels to process .*are not masked", given, mask=(mask,), aoi=None)


@pytest.mark.parametrize("given_as", ["the file", "a link", "a copy"])
def test_check_inputs_refuses_pre_that_is_post(given, tmp_path, given_as):
    (post,) = given["post"]
    other = tmp_path / "before.tif"
    if given_as == "a link":
        other.symlink_to(post)
    else:
        shutil.copy(post, other)
    pre = post if given_as == "the file" else str(other)
    refused("is the pre-event imagery as well.*give it with --pre", given, pre=(given["pre"][0], pre))


def test_check_inputs_takes_a_pre_of_the_same_size_and_other_content(given, tmp_path):
    pre = write(tmp_path / "other.tif", picture(seed=2))
    assert Path(pre).stat().st_size == Path(given["post"][0]).stat().st_size
    assert checked(given, pre=(pre,)).pre is not None


@pytest.mark.parametrize(("name", "count"), [("composite_udm2.tif", 8), ("a.tif", 8), ("x_udm2_clear.tif", 1)])
def test_check_inputs_refuses_a_usable_data_mask_as_mask(given, tmp_path, name, count):
    usable = np.zeros((count, 60, 60), np.uint8)
    usable[0] = 1
    refused("--mask .* looks like a usable data mask", given, mask=(write(tmp_path / name, usable),))
