"""Files of others: what GDAL would follow is not followed, at every place where a file comes in."""

import ast
import json
import zipfile
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from stac_server import _Quiet, files_of, listing, served

from catalog.checks import check_inputs
from catalog.config import RunConfig
from catalog.items import LOCAL, local_item
from catalog.opening import Opening, open_raster
from catalog.scenes import describe_dem, read_epoch
from catalog.schema import InputError
from catalog.sensors import sensor

WHERE = Affine(10, 0, 583_200, 0, -10, 4_737_000)
SECRET = 77


def raster(path, data, driver="GTiff"):
    data = np.atleast_3d(data)
    profile = {"driver": driver, "count": len(data), "height": data.shape[1], "width": data.shape[2]}
    with rasterio.open(path, "w", **profile, dtype=data.dtype, transform=WHERE, crs="EPSG:32654") as out:
        out.write(data)
    return path


def picture(seed=0, bands=3):
    return np.random.default_rng(seed).integers(20, 200, (bands, 64, 64)).astype(np.uint8)


def vrt_of(source, bands=3, dtype="Byte"):
    parts = "".join(
        f'<VRTRasterBand dataType="{dtype}" band="{n}"><SimpleSource><SourceFilename relativeToVRT="0">{source}'
        f"</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        for n in range(1, bands + 1)
    )
    place = ", ".join(map(str, WHERE.to_gdal()))
    return (
        f'<VRTDataset rasterXSize="64" rasterYSize="64"><SRS>EPSG:32654</SRS><GeoTransform>{place}</GeoTransform>'
        f"{parts}</VRTDataset>"
    )


class Counting(BaseHTTPRequestHandler):
    """A server inside that nobody may reach."""

    hits: list

    def do_GET(self):
        self.hits.append(self.path)
        self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@contextmanager
def inside():
    """Address of a server that nobody may reach, and who did."""
    hits = []
    with served(type("Inside", (Counting,), {"hits": hits})) as host:
        yield host, hits


@pytest.fixture
def home(tmp_path):
    """A folder that is served, beside a secret that is not."""
    (tmp_path / "www").mkdir()
    raster(tmp_path / "secret.tif", np.full((3, 64, 64), SECRET, np.uint8))
    (tmp_path / "words.txt").write_text("root:x:0:0:" * 2000)
    return tmp_path


RAW = (
    '<VRTDataset rasterXSize="64" rasterYSize="64"><SRS>EPSG:32654</SRS><VRTRasterBand dataType="Byte" band="1" '
    'subClass="VRTRawRasterBand"><SourceFilename relativetoVRT="0">{words}</SourceFilename></VRTRasterBand>'
    "</VRTDataset>"
)
MRF = (
    "<MRF_META><CachedSource><Source>{secret}</Source></CachedSource><Raster><Size x='64' y='64' c='3'/>"
    "<PageSize x='64' y='64' c='3'/><DataFile>{new}</DataFile><IndexFile>{new}.idx</IndexFile></Raster></MRF_META>"
)
WMS = (
    '<GDAL_WMS><Service name="TMS"><ServerUrl>http://{inside}/${{z}}/${{x}}/${{y}}.png</ServerUrl></Service><DataWindow>'
    "<UpperLeftX>0</UpperLeftX><UpperLeftY>64</UpperLeftY><LowerRightX>64</LowerRightX><LowerRightY>0</LowerRightY>"
    "<TileLevel>0</TileLevel></DataWindow><BandsCount>3</BandsCount></GDAL_WMS>"
)
INDEX = "<GDALTileIndexDataset><IndexDataset>{secret}</IndexDataset></GDALTileIndexDataset>"


def _text(pattern):
    return lambda path, words: path.write_text(pattern.format(**words))


def _overviews(path, words, name):
    raster(path, picture())
    with rasterio.open(path, "r+") as out:
        out.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=words[name])


HOSTILE = {
    "vrt of a file": lambda path, words: path.write_text(vrt_of(words["secret"])),
    "vrt of a server": lambda path, words: path.write_text(vrt_of(f"/vsicurl/http://{words['inside']}/a.tif")),
    "vrt of text": _text(RAW),
    "mrf": _text(MRF),
    "wms": _text(WMS),
    "tile index": _text(INDEX),
    "tiff whose overviews are a file": lambda path, words: _overviews(path, words, "secret"),
    "tiff whose overviews are a server": lambda path, words: _overviews(path, words, "far"),
    "text": lambda path, words: path.write_text("root:x:0:0"),
}


def saved(home, href):
    """A file of one STAC item."""
    item = local_item(home / "sound.tif", sensor("rgb8")).to_dict(transform_hrefs=False)
    for asset in item["assets"].values():
        asset["href"] = href
    del item["properties"][LOCAL]
    (home / "www" / "items.json").write_text(json.dumps(item))
    return str(home / "www" / "items.json")


def config(home, **given):
    places = {"root": str(home / "store"), "out": str(home / "out"), "block_px": 256, "name": "e"}
    return RunConfig(**{"post": (str(home / "sound.tif"),), **places, **given})


def before(home):
    """Another sound picture of the same ground."""
    raster(home / "before.tif", picture() + 1)
    return str(home / "before.tif")


def searched(home, href, **given):
    """What a run finds whose STAC API lists an item that leads to an address."""
    item = json.loads((home / "www" / "items.json").read_text()) if saved(home, href) else {}
    item |= {"collection": "c", "properties": {**item["properties"], "datetime": "2018-09-11T00:00:00Z"}}
    (home / "aoi.geojson").write_text(json.dumps({"type": "Feature", "geometry": item["geometry"], "properties": {}}))
    event = {"id": "e", "time_utc": "2018-09-05T00:00:00Z"}
    with listing(item) as api:
        stac = {"url": f"http://{api}", "collection": "c"}
        files = {"pre": (str(home / "sound.tif"),), "pre_time_utc": "2018-09-01", "aoi": str(home / "aoi.geojson")}
        return check_inputs(config(home, post=(), stac=stac, event=event, **files, **given))


ENTRIES = {
    "post": lambda home, url: check_inputs(config(home, post=(url,))),
    "pre": lambda home, url: check_inputs(config(home, pre=(url,))),
    "mask": lambda home, url: check_inputs(config(home, mask=(url,))),
    "pre-mask": lambda home, url: check_inputs(config(home, pre=(before(home),), pre_mask=(url,))),
    "dem": lambda home, url: describe_dem(url),
    "saved item": lambda home, url: check_inputs(config(home, post=(saved(home, url),))),
    "stac": searched,
}


def refused_everywhere(home, url):
    before(home)
    there = sorted(path.name for path in home.rglob("*"))
    for entry in ENTRIES.values():
        with pytest.raises(InputError) as told:
            entry(home, url)
        assert "root:x" not in str(told.value)
    assert sorted({path.name for path in home.rglob("*")} - {"items.json", "aoi.geojson"}) == sorted(
        set(there) - {"items.json", "aoi.geojson"}
    )


@pytest.mark.parametrize("kind", HOSTILE)
def test_remote_raster_that_leads_elsewhere_is_refused_at_every_entry(home, kind):
    raster(home / "sound.tif", picture())
    with inside() as (host, hits), files_of(home / "www") as web:
        words = {"secret": str(home / "secret.tif"), "words": str(home / "words.txt"), "inside": host}
        words |= {"new": str(home / "new.dat"), "far": f"/vsicurl/http://{host}/a.tif"}
        HOSTILE[kind](home / "www" / "scene.tif", words)
        refused_everywhere(home, f"http://{web}/scene.tif")
        assert hits == []


@pytest.mark.parametrize("kind", HOSTILE)
def test_local_raster_that_an_item_names_may_lead_nowhere(home, kind):
    raster(home / "sound.tif", picture())
    with inside() as (host, hits):
        words = {"secret": str(home / "secret.tif"), "words": str(home / "words.txt"), "inside": host}
        words |= {"new": str(home / "new.dat"), "far": f"/vsicurl/http://{host}/a.tif"}
        HOSTILE[kind](home / "www" / "scene.tif", words)
        with pytest.raises(InputError):
            check_inputs(config(home, post=(saved(home, "scene.tif"),)))
        assert hits == []
    assert not (home / "new.dat").exists()


def test_remote_raster_is_read_at_every_entry(home):
    """The same addresses with what they say they are: a refusal of everything would be no guard."""
    raster(home / "sound.tif", picture())
    raster(home / "www" / "scene.tif", picture())
    raster(home / "www" / "scene.jp2", picture(), driver="JP2OpenJPEG")
    raster(home / "www" / "dem.tif", np.full((1, 64, 64), 300, np.int16))
    raster(home / "www" / "mask.tif", np.triu(picture()[:1]))
    named = {"dem": "dem.tif", "mask": "mask.tif", "pre-mask": "mask.tif"}
    with files_of(home / "www") as web:
        for name, entry in ENTRIES.items():
            assert entry(home, f"http://{web}/{named.get(name, 'scene.tif')}")
        assert ENTRIES["saved item"](home, f"http://{web}/scene.jp2").grid.gsd_m == 10


def redirecting(target):
    class Redirect(_Quiet):
        def do_GET(self):
            self.send_response(302)
            self.send_header("Location", target)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

    return served(partial(Redirect, directory="/nowhere"))


def test_redirect_to_a_host_inside_is_not_followed(home):
    raster(home / "sound.tif", picture())
    with inside() as (host, hits), redirecting(f"http://{host}/scene.tif") as web:
        refused_everywhere(home, f"http://{web}/scene.tif")
        assert hits == []


def test_redirect_to_an_allowed_host_is_followed(home):
    raster(home / "www" / "scene.tif", picture())
    with files_of(home / "www") as there, redirecting(f"http://{there}/scene.tif") as web:
        with open_raster(f"http://{web}/scene.tif", Opening((web, there))) as dataset:
            np.testing.assert_array_equal(dataset.read(), picture())


def test_item_leads_to_the_operators_hosts_only(home):
    raster(home / "sound.tif", picture())
    with inside() as (host, hits):
        href = saved(home, f"http://{host}/scene.tif")
        with pytest.raises(InputError, match="is not allowed"):
            check_inputs(config(home, post=(href,), hosts=("imagery.example.org",)))
        assert hits == []


@pytest.mark.parametrize("href", ["/etc/passwd", "../secret.tif", "file:///etc/passwd", "/vsizip/a.zip/b.tif"])
def test_item_leads_to_no_file_of_its_choice(home, href):
    raster(home / "sound.tif", picture())
    with pytest.raises(InputError, match="leads to"):
        check_inputs(config(home, post=(saved(home, href),)))


@pytest.mark.parametrize("href", ["scene.tif", "/etc/passwd", "file:///etc/passwd", "/vsicurl/http://a/b.tif"])
def test_item_of_an_api_leads_to_no_file(home, href):
    raster(home / "sound.tif", picture())
    with pytest.raises(InputError, match="leads to"):
        searched(home, href)


def test_nothing_beside_a_remote_raster_is_asked_for(home):
    raster(home / "www" / "scene.tif", picture())
    (home / "www" / "scene.tif.aux.xml").write_text("<PAMDataset><SRS>EPSG:32601</SRS></PAMDataset>")
    (home / "www" / "scene.tif.ovr").write_text(vrt_of(home / "secret.tif"))
    (home / "www" / "scene.tif.msk").write_text(vrt_of(home / "secret.tif"))
    asked = []

    class Noting(_Quiet):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        do_HEAD = do_GET

    with served(partial(Noting, directory=str(home / "www"))) as web:
        raster(home / "sound.tif", picture())
        inputs = check_inputs(config(home, post=(saved(home, f"http://{web}/scene.tif"),)))
        scene = read_epoch(inputs.post, inputs.grid.geobox_of(inputs.grid.scene))[0].compute()
    assert np.isfinite(scene["red"]).all()
    assert set(asked) == {"/scene.tif"}


# --- a person's own files --------------------------------------------------------------------------------------------


def test_own_vrt_is_read_and_may_lead_to_servers(home):
    raster(home / "www" / "scene.tif", picture())
    with files_of(home / "www") as web:
        (home / "own.vrt").write_text(vrt_of(f"/vsicurl/http://{web}/scene.tif"))
        with open_raster(str(home / "own.vrt")) as dataset:
            np.testing.assert_array_equal(dataset.read(1), picture()[0])


@pytest.mark.parametrize("kind", [kind for kind in HOSTILE if not kind.startswith("tiff")])
def test_own_file_is_what_its_name_says(home, kind):
    words = {"secret": str(home / "secret.tif"), "words": str(home / "words.txt"), "inside": "127.0.0.1:9"}
    HOSTILE[kind](home / "scene.tif", words | {"new": str(home / "new.dat")})
    with pytest.raises(InputError), open_raster(str(home / "scene.tif")):
        pass
    assert not (home / "new.dat").exists()


def test_own_archive_is_read(home):
    raster(home / "post.tif", picture())
    with zipfile.ZipFile(home / "scene.zip", "w") as archive:
        archive.write(home / "post.tif", "in/post.tif")
    inputs = check_inputs(config(home, post=(f"/vsizip/{home}/scene.zip/in/post.tif",)))
    scene = read_epoch(inputs.post, inputs.grid.geobox_of(inputs.grid.scene))[0].compute()
    np.testing.assert_array_equal(scene["red"], (picture()[0] / 255).astype(np.float32))
    assert inputs.post.ids == ("post",)


@pytest.mark.parametrize(
    "path",
    ["/vsizip/nowhere.zip/post.tif", "/vsicurl/http://127.0.0.1:9/a.tif", "/vsimem/a.tif", "/vsistdin/", "zip://a.zip!b.tif",
     "zip+https://host/a.zip!b.tif", "ftp://host/a.tif", "file:///etc/passwd"],
)  # fmt: skip
def test_other_addresses_are_refused_at_the_check(home, path):
    raster(home / "sound.tif", picture())
    for entry in ("post", "pre", "mask", "dem"):
        with pytest.raises(InputError, match="no such archive|no address that is read here"):
            ENTRIES[entry](home, path)


# --- in one place ----------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]
READERS = {
    "rasterio.open": {"catalog/opening.py"}, "rasterio.io.DatasetReader": set(), "WarpedVRT": {"catalog/opening.py"},
    # their content is looked at first (catalog.layers), or they are products of our own
    "pyogrio.raw.read": {"catalog/outlines.py"}, "pyogrio.list_layers": {"catalog/layers.py"},
    "pyogrio.read_info": {"catalog/layers.py"},
    "pyogrio.read_dataframe": {"catalog/vectors.py", "catalog/truth.py"},
    "geopandas.read_file": {"catalog/responses.py"}, "gpd.read_file": set(),
}  # fmt: skip
"""What lets GDAL open a file to read, and where that may stand."""


def opened_in(text):
    """Calls that let GDAL open a file to read; a raster that is written has its mode beside its name."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in READERS:
            written = (
                len(node.args) > 1 and isinstance(node.args[1], ast.Constant) and node.args[1].value in ("w", "r+")
            )
            if not (name == "rasterio.open" and written):
                yield name


def test_files_are_opened_in_one_place():
    strangers = [
        f"{path.relative_to(ROOT)}: {name}"
        for package in ("catalog", "models", "tasks", "flows")
        for path in sorted((ROOT / package).glob("*.py"))
        for name in opened_in(path.read_text())
        if str(path.relative_to(ROOT)) not in READERS[name]
    ]
    assert strangers == []


@pytest.mark.parametrize(
    ("text", "found"), [("rasterio.open(p)", 1), ('rasterio.open(p, "w", **k)', 0), ("open(p)", 0)]
)
def test_opening_is_recognised(text, found):
    assert len(list(opened_in(text))) == found
