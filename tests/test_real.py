"""The main job on real events: Hokkaido 2018 (3 m, RGB) and the Jure landslide of 2014 (Landsat, before and after)."""

import json

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from detection import landslidenet
from rasterio.windows import Window
from shapely.geometry import Point

from catalog.config import data_dir
from catalog.export import WRITERS
from tasks.preprocess import bright_white_quality
from tasks.review import evaluate_product

pytestmark = [pytest.mark.real, pytest.mark.slow]
JURE_LON_LAT = (85.87, 27.77)


def detect(home, *arguments):
    return landslidenet("detect", *arguments, "--root", home / "store", "--out", home / "out").last_line


@pytest.fixture(scope="module")
def hokkaido(tmp_path_factory, warm):
    """The quarter of the scene in its north-west, and its product."""
    home = tmp_path_factory.mktemp("hokkaido")
    with rasterio.open(data_dir() / "hokkaido2018/scene_west/post_rgb.tif") as scene:
        window = Window(0, 0, 640, 640)
        profile = {**scene.profile, "width": 640, "height": 640, "transform": scene.window_transform(window)}
        with rasterio.open(home / "post.tif", "w", **profile) as part:
            part.write(scene.read(window=window))
    return detect(home, "--post", home / "post.tif", "--sensor", "rgb8", "--name", "hokkaido-west", "--block", 1024)


def test_hokkaido_product_is_complete(hokkaido):
    assert {*WRITERS, "run.json"} <= {path.name for path in hokkaido.iterdir()}
    assert len(gpd.read_file(hokkaido / "inventory.gpkg", layer="landslides")) > 10
    assert any("no DEM" in told for told in json.loads((hokkaido / "run.json").read_text())["not_used"])


def test_hokkaido_product_is_scored_against_the_inventory(hokkaido):
    truth = f"{data_dir() / 'hokkaido2018/inventory_koukita.gpkg'}:scar,deposit"
    result = evaluate_product(hokkaido, truth=truth, aoi=None, valid=data_dir() / "hokkaido2018/scene_west/valid.tif")
    assert result["pixels"]["precision"] > 0.6
    assert result["pixels"]["recall"] > 0.15
    assert result["objects"]["found"] > 10


@pytest.fixture(scope="module")
def jure(tmp_path_factory, warm):
    folder = data_dir() / "jure2014"
    pre, post = (next(folder.glob(f"*{epoch}*.tif")) for epoch in ("pre", "post"))
    home = tmp_path_factory.mktemp("jure")
    return detect(home, "--pre", pre, "--post", post, "--sensor", "rgb8", "--name", "jure"), pre, post


def test_jure_landslide_is_in_the_inventory(jure):
    landslides = gpd.read_file(jure[0] / "inventory.gpkg", layer="landslides")
    (place,) = gpd.GeoSeries([Point(JURE_LON_LAT)], crs=4326).to_crs(landslides.crs)
    assert landslides.distance(place).min() < 500


def test_jure_inventory_holds_no_cloud(jure):
    folder, *images = jure
    centroids = gpd.read_file(folder / "inventory.gpkg", layer="landslides").geometry.representative_point()
    for path in images:
        with rasterio.open(path) as image:
            cloud = bright_white_quality(*(image.read() / 255).astype(np.float32)) == 1
            rows, cols = rasterio.transform.rowcol(image.transform, centroids.x, centroids.y)
        assert not cloud[rows, cols].any()


def test_jure_product_says_that_no_dem_was_used(jure):
    told = json.loads((jure[0] / "run.json").read_text())["not_used"]
    assert "no DEM: slope and terrain are not used; flat ground is not ruled out" in told
    assert "no DEM" in (jure[0] / "report.html").read_text()
