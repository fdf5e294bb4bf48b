from __future__ import annotations

import json
import re
import shutil
import sqlite3
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pyogrio
import pystac
import pytest
import rasterio
import shapely
import xarray as xr
from PIL import Image
from rasterio.features import shapes
from scipy.ndimage import gaussian_filter
from shapely.geometry import shape

from catalog.cartography import draw_map
from catalog.config import Event
from catalog.export import WRITERS, read_preview
from catalog.grid import Window, snap_grid
from catalog.product import Product
from catalog.publication import publish
from catalog.schema import InputError, StoreError
from catalog.stac import MLM_SCHEMA, build_item
from catalog.vectors import LAYERS, qgis_style
from catalog.versions import next_version
from models.cards import find_weights, load_card

EPSG, GSD_M, BLOCK_PX = 32654, 3.0, 256
EVENT = Event(
    id="us2000h8ty",
    title="Hokkaido Eastern Iburi",
    time_utc=datetime(2018, 9, 5, 18, 7, 59, tzinfo=UTC),
    longitude=141.93,
    latitude=42.69,
    depth_km=35.0,
    magnitude=6.6,
)


def polygonise(mask, grid, window):
    transform = grid.geobox_of(window).transform
    found = [shape(s) for s, v in shapes(mask.astype(np.uint8), mask=mask, transform=transform) if v]
    return gpd.GeoDataFrame(geometry=gpd.GeoSeries(found, crs=grid.epsg))


def lay_out(grid, values, fill):
    """The values on the whole grid, as a Dask array with a chunk a block."""
    full = np.full(grid.shape, fill, values.dtype)
    full[grid.scene.slices] = values
    return xr.DataArray(da.from_array(full, chunks=BLOCK_PX), dims=("y", "x"))


def describe(landslides):
    probability = np.linspace(0.95, 0.5, len(landslides))
    return landslides.assign(
        id=[f"ls-{i:04d}" for i in range(len(landslides))],
        area_m2=landslides.area,
        probability_mean=probability,
        confidence=np.where(probability > 0.8, "high", np.where(probability > 0.65, "medium", "low")),
        reasons=[["bright", "steep"]] * len(landslides),
        slope_mean_deg=17.5,
    )


@pytest.fixture(scope="module")
def product():
    return make_product()


@pytest.fixture(scope="module")
def strip(product):
    return strip_of(product)


def make_product(*, epsg=EPSG, left=583212.0, top=4737066.0):
    """Random blobs on 500 x 700 px with an unseen corner, over 3 x 4 ragged blocks."""
    rng = np.random.default_rng(7)
    grid = snap_grid((left, top - 1500, left + 2100, top), epsg=epsg, gsd_m=GSD_M, block_px=BLOCK_PX)
    ground = gaussian_filter(rng.normal(size=(500, 700)), 9).astype(np.float32)
    probability = (1 / (1 + np.exp(-90 * (ground - 0.035)))).astype(np.float32)
    seen = np.ones((500, 700), bool)
    seen[:120, 500:] = False
    probability[~seen] = np.nan
    slides = (probability > 0.5) & seen
    landslide_class = np.where(seen, slides, 255).astype(np.uint8)
    bands = {}
    for name, tone in {"red": 0.12, "green": 0.18, "blue": 0.09}.items():
        band = tone + 0.3 * np.nan_to_num(probability) + rng.normal(0, 0.01, seen.shape)
        bands[name] = lay_out(grid, np.where(seen, band, np.nan).astype(np.float32), np.nan)
    return Product(
        event=EVENT,
        event_id=EVENT.id,
        version=1,
        config={"name": EVENT.id, "threshold": 0.5, "post_time_utc": "2018-09-11T01:20:00Z"},
        grid=grid,
        window=Window(grid.scene.y0 + 3, grid.scene.x0 + 5, grid.scene.y1, grid.scene.x1),
        landslides=describe(polygonise(slides, grid, grid.scene)),
        vetoed=polygonise(slides & (ground > 0.08), grid, grid.scene).assign(reasons="river; flat"),
        observed_area=polygonise(seen, grid, grid.scene).assign(kind="observed"),
        probability=lay_out(grid, probability, np.nan),
        landslide_class=lay_out(grid, landslide_class, np.uint8(255)),
        disagreement=lay_out(grid, (probability * 0.1).astype(np.float32), np.nan),
        post=xr.Dataset(bands),
        pre=xr.Dataset({name: band * 0.8 for name, band in bands.items()}),
        used=["post-event image of 11 September 2018, 3 m"],
        not_used=["no elevation model was given: slopes and vetoes by slope are missing"],
        warnings=["no pre-event image: old landslides may be included"],
        model_card=asdict(load_card(find_weights("mffenet-lite0"))),
        provenance={
            "hashes": {"weights": "ab12"},
            "stages": [{"stage": "inference", "wall_s": 12.5, "cpu_s": 24.0, "blocks": 12, "blocks_done_before": 0,
                        "blocks_taken_over": 0,
                        "bytes_written": 123456, "peak_rss_mib": 812.0, "network_s": 11.0}],
        },
    )  # fmt: skip


def strip_of(product):
    """The product in a window of 100 x 200 px, which is drawn and published in a quarter of the time."""
    y0, x0 = product.grid.scene.y0 + 100, product.grid.scene.x0 + 400
    return replace(product, window=Window(y0, x0, y0 + 100, x0 + 200))


@pytest.fixture(scope="module")
def published(product, tmp_path_factory):
    """The product's first version, to read."""
    return publish(product, tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def second(product, published, tmp_path_factory):
    """Its second version beside a copy of the first, to read."""
    out = tmp_path_factory.mktemp("second")
    shutil.copytree(published.parent, out / EVENT.id)
    return publish(replace(product, version=2), out)


def test_publish_writes_every_file(published):
    assert {p.name for p in published.iterdir()} == {*WRITERS, "class.tif.aux.xml", "run.json"}


class _Page(HTMLParser):
    """Elements that are open: a page that is whole closes them all."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input", "col"})

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID and tag not in SVG_LEAVES:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag


SVG_LEAVES = frozenset({"path", "circle", "rect", "line", "use", "image", "polyline", "polygon", "stop", "ellipse"})


def _read_tif(path):
    with rasterio.open(path) as tif:
        return tif.read(1)


def _read_png(path):
    with Image.open(path) as picture:
        picture.load()
        return picture.size


def _read_html(path):
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.open == []
    return path


OUTSIDE_READERS = {
    "inventory.gpkg": lambda path: pyogrio.read_dataframe(path, layer="landslides"),
    "inventory.parquet": pq.read_table,
    "probability.tif": _read_tif,
    "class.tif": _read_tif,
    "disagreement.tif": _read_tif,
    "map.png": _read_png,
    "report.html": _read_html,
    "item.json": pystac.Item.from_file,
}


@pytest.mark.parametrize("name", WRITERS)
def test_writer_writes_its_file_which_others_can_read(product, tmp_path, name):
    path = WRITERS[name](replace(product, preview=read_preview(product)), tmp_path)
    assert path == tmp_path / name
    assert OUTSIDE_READERS[name](path) is not None


def test_publish_leaves_no_partial_folder(published):
    assert {p.name for p in published.parent.iterdir()} == {"v1", "collection.json"}


def test_publish_refuses_to_overwrite_a_version(product, published):
    before = {path.name: path.stat().st_mtime_ns for path in published.iterdir()}
    with pytest.raises(StoreError, match="publish as version 2"):
        publish(product, published.parent.parent)
    assert {path.name: path.stat().st_mtime_ns for path in published.iterdir()} == before


def test_publish_starts_over_from_a_partial_folder(strip, tmp_path):
    leftover = tmp_path / EVENT.id / ".v1.partial" / "old.tif"
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    assert not (publish(strip, tmp_path) / "old.tif").exists()


def test_publish_refuses_a_layer_in_another_crs(product, tmp_path):
    elsewhere = replace(product, landslides=product.landslides.to_crs(4326))
    with pytest.raises(InputError, match="landslides is in EPSG:4326; expected EPSG:32654"):
        publish(elsewhere, tmp_path)


def test_publish_refuses_a_missing_column(product, tmp_path):
    with pytest.raises(InputError, match="missing confidence"):
        publish(replace(product, landslides=product.landslides.drop(columns="confidence")), tmp_path)


def test_publish_leaves_no_version_when_a_range_is_broken(product, tmp_path):
    with pytest.raises(StoreError, match="probability: got"):
        publish(replace(product, probability=product.probability * 3), tmp_path)
    assert next_version(tmp_path, EVENT.id) == 1


@pytest.mark.parametrize("name", ["class.tif", "probability.tif", "disagreement.tif"])
def test_raster_is_byte_identical_in_the_next_version(published, second, name):
    assert (second / name).read_bytes() == (published / name).read_bytes()


@pytest.mark.parametrize("name", ["class.tif", "probability.tif", "disagreement.tif"])
def test_raster_is_cloud_optimised_and_cropped(product, published, name):
    with rasterio.open(published / name) as tif:
        assert tif.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert tif.shape == product.window.shape
        assert tif.transform == product.grid.geobox_of(product.window).transform


def test_class_holds_the_classes_of_the_contract(product, published):
    with rasterio.open(published / "class.tif") as tif:
        np.testing.assert_array_equal(tif.read(1), product.landslide_class.to_numpy()[product.window.slices])
        assert tif.nodata == 255
        assert tif.colormap(1)[1] == (255, 61, 154, 255)


def test_probability_reads_back_within_half_a_step(product, published):
    with rasterio.open(published / "probability.tif") as tif:
        read = tif.read(1, masked=True).astype(float) * tif.scales[0] + tif.offsets[0]
    expected = product.probability.to_numpy()[product.window.slices]
    np.testing.assert_allclose(read.filled(np.nan), expected, atol=0.51e-4)


def test_geopackage_has_the_layers_in_the_crs_of_the_grid(product, published):
    for name in LAYERS:
        layer = pyogrio.read_dataframe(published / "inventory.gpkg", layer=name)
        assert layer.crs.to_epsg() == EPSG
        assert len(layer) == len(getattr(product, name))


def test_geopackage_metadata_is_a_table_without_geometry(published):
    table = pyogrio.read_dataframe(published / "inventory.gpkg", layer="metadata")
    assert "geometry" not in table
    assert dict(zip(table.key, table.value, strict=True))["version"] == "1"


def test_geopackage_styles_every_layer_by_default(published):
    with closing(sqlite3.connect(published / "inventory.gpkg")) as db:
        styles = dict(db.execute("SELECT f_table_name, styleQML FROM layer_styles WHERE useAsDefault = 1"))
    assert set(styles) == set(LAYERS)
    assert 'attr="confidence"' in styles["landslides"]


@pytest.mark.parametrize("layer", LAYERS)
def test_qgis_style_is_well_formed(layer):
    from xml.etree import ElementTree

    root = ElementTree.fromstring(qgis_style(layer))
    symbols = {s.get("name") for s in root.iter("symbol")}
    assert {c.get("symbol") for c in root.iter("category")} <= symbols
    assert symbols


def test_geoparquet_is_version_1_1_with_a_covering(product, published):
    geo = json.loads(pq.read_schema(published / "inventory.parquet").metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["columns"]["geometry"]["encoding"] == "WKB"
    assert "bbox" in geo["columns"]["geometry"]["covering"]
    assert len(gpd.read_parquet(published / "inventory.parquet")) == len(product.landslides)


def test_report_asks_the_net_for_nothing(published):
    page = (published / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)
    assert not re.findall(r"@import|url\(\s*[\"']?http|fetch\(|XMLHttpRequest", page)


def test_report_says_what_was_not_used(product, published):
    assert product.not_used[0] in (published / "report.html").read_text()


def test_report_escapes_what_it_is_given(strip, tmp_path):
    page = publish(replace(strip, warnings=["<script>alert(1)</script>"]), tmp_path) / "report.html"
    assert "<script>alert" not in page.read_text()


def test_item_reads_back_with_relative_assets_that_exist(published):
    item = pystac.Item.from_file(str(published / "item.json"))
    assert item.properties["proj:code"] == f"EPSG:{EPSG}"
    assert item.properties["mlm:name"] == "mffenet-lite0"
    assert item.properties["mlm:total_parameters"] == 4_395_256
    assert MLM_SCHEMA in item.stac_extensions
    for asset in item.assets.values():
        assert asset.href.startswith("./")
        assert (published / asset.href).exists()


def test_item_keeps_the_rules_of_the_mlm_extension(published):
    """Of its JSON schema, which needs the net: one asset is the model, the bands it takes are described."""
    item = json.loads((published / "item.json").read_text())
    (network,) = (asset for asset in item["assets"].values() if "mlm:model" in asset["roles"])
    card = json.loads((published / network["href"]).read_text())["model"]
    assert card["mlm"]["mlm:name"] == item["properties"]["mlm:name"]
    assert card["weights_sha256"]
    assert tuple(int(part) for part in item["stac_version"].split(".")) >= (1, 1, 0)  # core bands are of 1.1
    described = [band["name"] for band in item["properties"]["bands"]]
    assert [given["bands"] for given in item["properties"]["mlm:input"]] == [described]


def test_item_claims_no_network_without_its_fields(product):
    item = build_item(replace(product, model_card={}))
    assert MLM_SCHEMA not in item.stac_extensions
    assert not [key for key in item.properties if key.startswith("mlm:") or key == "bands"]
    assert "network" not in item.assets


def test_item_and_collection_satisfy_the_core_stac_schemas(published):
    item = json.loads((published / "item.json").read_text())
    pystac.Item.from_dict(item | {"stac_extensions": []}).validate()  # the core's schemas come with pystac
    pystac.Collection.from_file(str(published.parent / "collection.json")).validate()


@pytest.mark.parametrize(
    ("times", "event", "when", "source"),
    [
        ((datetime(2018, 9, 11, tzinfo=UTC), datetime(2018, 9, 13, tzinfo=UTC)), EVENT, "2018-09-11", "post_scenes"),
        (None, EVENT, "2018-09-05", "event"),
        (None, None, f"{datetime.now(UTC):%Y-%m}", "published"),
    ],
)
def test_item_is_of_the_time_of_the_scenes(strip, tmp_path, times, event, when, source):
    folder = publish(replace(strip, post_time_utc=times, event=event), tmp_path)
    properties = json.loads((folder / "item.json").read_text())["properties"]
    assert properties["datetime"].startswith(when)
    assert properties["landslidenet:datetime_source"] == source
    assert ("end_datetime" in properties) == (times is not None)


def test_geopackage_keeps_flags_and_their_nulls(strip, tmp_path):
    flags = pd.array([True, False, None] * len(strip.landslides), dtype="boolean")[: len(strip.landslides)]
    folder = publish(replace(strip, landslides=strip.landslides.assign(channel_connected=flags)), tmp_path)
    for layer in (pyogrio.read_dataframe(folder / "inventory.gpkg", layer="landslides"),
                  gpd.read_parquet(folder / "inventory.parquet")):  # fmt: skip
        assert layer["channel_connected"].isna().tolist() == flags.isna().tolist()
        assert layer["channel_connected"].dropna().astype(bool).tolist() == [bool(f) for f in flags if f is not pd.NA]
    assert "Reaches a channel" in (folder / "report.html").read_text()


def test_geopackage_metadata_explains_the_columns(published):
    table = pyogrio.read_dataframe(published / "inventory.gpkg", layer="metadata").set_index("key")["value"]
    assert "area_m2: geodesic area [m2]" in table["columns"]


def test_collection_links_every_version(second):
    collection = pystac.Collection.from_file(str(second.parent / "collection.json"))
    assert [item.id for item in collection.get_items()] == [f"{EVENT.id}-v1", f"{EVENT.id}-v2"]


def test_run_json_hashes_every_other_file(published):
    run = json.loads((published / "run.json").read_text())
    assert set(run["files"]) == {p.name for p in published.iterdir()} - {"run.json"}
    assert list(run) == sorted(run)


def test_run_json_holds_what_is_known_last(strip, tmp_path):
    run = json.loads((publish(strip, tmp_path, closing=lambda: {"finished_utc": "now"}) / "run.json").read_text())
    assert run["provenance"]["finished_utc"] == "now"
    assert run["provenance"]["hashes"] == {"weights": "ab12"}


def test_run_json_names_the_software(published):
    software = json.loads((published / "run.json").read_text())["software"]
    assert {"landslidenet", "prefect", "richdem2", "timm", "odc-geo"} <= {
        n for n, version in software.items() if version
    }


def test_preview_averages_and_keeps_the_unseen(product):
    preview = read_preview(product, max_px=175)
    values = product.probability.to_numpy()[product.window.slices][:496, :692].reshape(124, 4, 173, 4)
    whole = np.isfinite(values).all((1, 3))
    np.testing.assert_allclose(preview.probability[:124, :173][whole], values.mean((1, 3))[whole], rtol=1e-5)
    assert np.isnan(preview.probability[10, 160])
    assert preview.factor == 4


def test_publish_works_without_landslides(strip, tmp_path):
    empty = replace(strip, landslides=strip.landslides.iloc[:0], vetoed=strip.vetoed.iloc[:0], pre=None)
    folder = publish(empty, tmp_path)
    assert "No landslide was detected" in (folder / "report.html").read_text()
    assert len(pyogrio.read_dataframe(folder / "inventory.gpkg", layer="landslides")) == 0


def test_item_geometry_is_the_footprint_without_the_clouds(product):
    whole = product.observed_area.geometry.iloc[0]
    cloud = whole.centroid.buffer(300)
    holed = replace(product, observed_area=product.observed_area.set_geometry([whole.difference(cloud)], crs=EPSG))
    geometry = gpd.GeoSeries([shape(build_item(holed).geometry)], crs=4326).to_crs(EPSG).iloc[0]
    assert not shapely.get_num_interior_rings(shapely.get_parts(geometry)).any()
    assert geometry.symmetric_difference(whole).area < 0.02 * whole.area
    assert shapely.hausdorff_distance(geometry.boundary, whole.boundary) <= 4 * product.grid.gsd_m + 1


def test_headline_takes_holes_out_of_the_observed_area(product):
    whole = product.observed_area.geometry.iloc[0]
    hole = whole.centroid.buffer(100, cap_style="square")
    holed = replace(product, observed_area=product.observed_area.set_geometry([whole.difference(hole)], crs=EPSG))
    lost = product.headline.observed_m2 - holed.headline.observed_m2
    assert lost == pytest.approx(200 * 200, rel=2e-3)


def test_publish_works_without_an_event(strip, tmp_path):
    assert publish(replace(strip, event=None, provenance={}, model_card={}), tmp_path).is_dir()


@pytest.mark.parametrize("size", [(40, 700), (500, 30)])
def test_map_is_drawn_for_any_aspect(product, tmp_path: Path, size):
    y0, x0 = product.grid.scene.y0 + 130, product.grid.scene.x0
    narrow = replace(product, window=Window(y0, x0, min(y0 + size[0], product.grid.scene.y1), x0 + size[1]))
    assert draw_map(narrow, read_preview(narrow), tmp_path / "map.png").stat().st_size > 10_000
