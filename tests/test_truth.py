"""What `evaluate` scores: a class raster, or an inventory that a reviewer may have changed."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pytest
import rasterio
from affine import Affine
from rasterio.features import rasterize
from shapely.geometry import box

from catalog.schema import InputError
from catalog.truth import GROUND_PX, open_mapped, valid_ground
from tasks.review import evaluate_product

EPSG, LEFT, TOP, GSD = 32654, 583_200.0, 4_737_000.0, 5.0


def at(x, y, width, height):
    """A rectangle, metres from the top left corner."""
    return box(LEFT + x, TOP - y - height, LEFT + x + width, TOP - y)


def layer(*shapes, crs=EPSG):
    return gpd.GeoDataFrame(geometry=list(shapes), crs=EPSG).to_crs(crs)


def write_inventory(path, *, landslides, observed, gsd_m=GSD, crs=EPSG):
    for name, frame in (("landslides", landslides), ("observed_area", observed)):
        pyogrio.write_dataframe(frame.to_crs(crs), path, layer=name, driver="GPKG", geometry_type="MultiPolygon",
                                promote_to_multi=True)  # fmt: skip
    if gsd_m is not None:
        table = pd.DataFrame([("gsd_m", f"{gsd_m:g}")], columns=["key", "value"])
        pyogrio.write_dataframe(table, path, layer="metadata", driver="GPKG")
    return path


def write_classes(path, classes):
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": 255, "crs": f"EPSG:{EPSG}"}
    height, width = classes.shape
    with rasterio.open(
        path, "w", **profile, height=height, width=width, transform=Affine(GSD, 0, LEFT, 0, -GSD, TOP)
    ) as out:
        out.write(classes.astype(np.uint8), 1)
    return path


@pytest.fixture
def truth(tmp_path):
    path = tmp_path / "truth.gpkg"
    layer(at(50, 50, 100, 100)).to_file(path, layer="scar", engine="pyogrio")
    return path


@pytest.fixture
def product(tmp_path):
    """A run that missed the landslide, and saw all but the last 100 m."""
    folder = tmp_path / "v1"
    folder.mkdir()
    classes = np.zeros((80, 80))
    classes[:, 60:] = 255
    write_classes(folder / "class.tif", classes)
    write_inventory(folder / "inventory.gpkg", landslides=layer(), observed=layer(at(0, 0, 300, 400)))
    return folder


def score(source, truth, **more):
    return evaluate_product(source, truth=str(truth), aoi=more.get("aoi"), valid=more.get("valid"))


def test_evaluate_of_an_inventory_scores_what_the_reviewer_drew(product, truth):
    reviewed = write_inventory(
        product / "inventory.gpkg", landslides=layer(at(50, 50, 100, 100)), observed=layer(at(0, 0, 300, 400))
    )
    assert score(product, truth)["pixels"]["recall"] == 0.0
    result = score(reviewed, truth)
    assert result["pixels"]["iou"] == 1.0
    assert result["pixels"]["tp"] == 20 * 20
    assert result["objects"]["found"] == 1
    assert result["area"]["predicted_m2"] == pytest.approx(100 * 100)


def test_evaluate_of_an_inventory_counts_observed_ground_only(product, truth):
    counts = score(product / "inventory.gpkg", truth)["pixels"]
    assert counts["tp"] + counts["fp"] + counts["fn"] + counts["tn"] == 60 * 80


@pytest.mark.parametrize(
    ("gsd_m", "crs"), [(GSD, EPSG), (None, EPSG), (GSD, 4326)], ids=["stated", "unknown", "degrees"]
)
def test_evaluate_of_a_lone_inventory(tmp_path, truth, gsd_m, crs):
    lone = write_inventory(
        tmp_path / "lone.gpkg", landslides=layer(at(50, 50, 100, 50)), observed=layer(at(0, 0, 300, 400)), gsd_m=gsd_m,
        crs=crs,
    )  # fmt: skip
    result = score(lone, truth)
    assert result["pixels"]["precision"] == pytest.approx(1.0, abs=0.01)
    assert result["pixels"]["recall"] == pytest.approx(0.5, abs=0.01)


def test_evaluate_of_an_inventory_lies_on_the_grid_of_its_raster(product):
    with open_mapped(product / "inventory.gpkg") as mapped, rasterio.open(mapped.classes) as burnt:
        assert (burnt.shape, burnt.transform.c, burnt.transform.f) == ((80, 80), LEFT, TOP)


def test_valid_ground_is_what_was_observed_in_small_pieces_that_do_not_overlap(tmp_path):
    classes = np.random.default_rng(3).choice([0, 1, 255], (300, 280), p=[0.5, 0.2, 0.3])
    path = write_classes(tmp_path / "class.tif", classes)
    ground = valid_ground(path, aoi=None, valid=None)
    with rasterio.open(path) as product:
        burnt = rasterize(ground.geometry, out_shape=classes.shape, transform=product.transform)
    np.testing.assert_array_equal(burnt == 1, classes != 255)
    assert ground.area.sum() == (classes != 255).sum() * GSD**2
    left, bottom, right, top = ground.bounds.to_numpy().T
    assert max((right - left).max(), (top - bottom).max()) == GROUND_PX * GSD


def test_evaluate_of_an_inventory_without_observed_area(tmp_path, truth):
    layer(at(0, 0, 9, 9)).to_file(tmp_path / "a.gpkg", layer="landslides", engine="pyogrio")
    with pytest.raises(InputError, match="no layer observed_area, got landslides"):
        score(tmp_path / "a.gpkg", truth)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"truth": "missing.tif"}, "^truth missing.tif: the file does not exist"),
        ({"truth": "missing.gpkg"}, "^truth missing.gpkg: no such file"),
        ({"valid": "missing.tif"}, "^valid missing.tif: the file does not exist"),
        ({"aoi": "missing.gpkg"}, "^aoi missing.gpkg: no such file"),
    ],
    ids=["truth-raster", "truth-polygons", "valid", "aoi"],
)
def test_evaluate_of_a_missing_file_names_its_part(product, truth, more, message):
    more = {key: value if key == "truth" else Path(value) for key, value in more.items()}
    with pytest.raises(InputError, match=message):
        score(product, more.pop("truth", truth), **more)


def test_evaluate_of_nothing_says_what_it_takes(tmp_path, truth):
    with pytest.raises(InputError, match=r"no class raster; expected a product folder"):
        score(tmp_path, truth)
