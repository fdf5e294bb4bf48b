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
from rasterio.shutil import copy
from rasterio.vrt import WarpedVRT
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


# --- rasters to compare with -----------------------------------------------------------------------------------------


@pytest.fixture
def mapped(tmp_path):
    """A product of 80 x 80 px with landslides on either side, and the classes that it holds."""
    classes = np.zeros((80, 80), np.uint8)
    classes[10:20, 10:20] = classes[10:30, 50:60] = 1
    classes[:, 76:] = 255
    return write_classes(tmp_path / "class.tif", classes), classes


def write_reference(path, values, *, rows=0, cols=0, mask=None, **more):
    """A raster whose top left pixel lies on a pixel of the product's grid."""
    values = np.atleast_3d(values).transpose(2, 0, 1) if values.ndim == 2 else values
    profile = {"driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2]}
    place = {"crs": f"EPSG:{EPSG}", "transform": Affine(GSD, 0, LEFT + cols * GSD, 0, -GSD, TOP - rows * GSD)}
    with rasterio.open(path, "w", **profile, **place, **{"dtype": values.dtype.name, **more}) as out:
        out.write(values)
        if mask is not None:
            out.write_mask(mask)
    return path


def half_known(path, classes, form):
    """The product's own classes, the west half of which is said to be unknown in some form; band 1 has 1 there."""
    known = np.zeros(classes.shape, bool)
    known[:, 40:] = classes[:, 40:] != 255
    if form == "not a number":
        return write_reference(path, np.where(known, classes, np.nan).astype(np.float32))
    if form == "mask":
        return write_reference(path, np.where(known, classes, 1).astype(np.uint8), mask=known)
    if form == "transparency":
        bands = np.stack([np.where(known, classes, 1), np.where(known, 255, 0)]).astype(np.uint8)
        return write_reference(path, bands, alpha="non-premultiplied", photometric="minisblack")
    if form == "outside":
        return write_reference(path, classes[:, 40:76], cols=40)
    nodata = float(form)
    return write_reference(path, np.where(known, classes, nodata).astype(np.int16), nodata=nodata)


FORMS = ["255", "-9999", "7", "not a number", "mask", "transparency", "outside"]


@pytest.mark.parametrize("form", FORMS)
def test_evaluate_leaves_out_what_a_truth_raster_does_not_know(mapped, tmp_path, form):
    path, classes = mapped
    counts = score(path, half_known(tmp_path / "truth.tif", classes, form))["pixels"]
    assert (counts["tp"], counts["fp"], counts["fn"], counts["tn"]) == (200, 0, 0, 36 * 80 - 200)


@pytest.mark.parametrize("form", FORMS)
def test_evaluate_leaves_out_what_a_valid_raster_does_not_know(mapped, tmp_path, form):
    path, classes = mapped
    truth = write_reference(tmp_path / "truth.tif", (classes == 1).astype(np.uint8))
    valid = half_known(tmp_path / "valid.tif", np.where(classes == 255, classes, 1).astype(np.uint8), form)
    counts = score(path, truth, valid=valid)["pixels"]
    assert (counts["tp"], counts["tn"]) == (200, 36 * 80 - 200)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (255, np.uint8, "got the value 255; expected 0 and 1 .*a_nodata 255"),
        (-9999, np.int16, "got the value -9999"),
        (0.5, np.float32, "got the value 0.5"),
    ],
)
def test_evaluate_of_a_truth_raster_with_a_value_that_may_mean_anything(mapped, tmp_path, value, dtype, message):
    path, classes = mapped
    values = np.where(classes == 255, 0, classes).astype(dtype)
    values[:, :5] = value
    with pytest.raises(InputError, match=f"^truth .*truth.tif: {message}"):
        score(path, write_reference(tmp_path / "truth.tif", values))


def test_evaluate_of_a_truth_raster_of_several_classes_says_what_counts(mapped, tmp_path):
    path, classes = mapped
    values = np.where(classes == 255, 0, classes * 2).astype(np.uint8)
    values[10:20, 10:20] = 1
    result = score(path, write_reference(tmp_path / "truth.tif", values))
    assert result["pixels"]["iou"] == 1.0
    assert "landslide where it is 1, 2" in result["read"][0]


def test_evaluate_of_a_truth_raster_whose_zeros_are_nodata(mapped, tmp_path):
    path, classes = mapped
    values = (classes == 1).astype(np.uint8)
    with pytest.raises(InputError, match="holds no 0 that counts.*unsetnodata"):
        score(path, write_reference(tmp_path / "truth.tif", values, nodata=0))


def test_evaluate_of_a_truth_raster_with_several_bands(mapped, tmp_path):
    path, classes = mapped
    with pytest.raises(InputError, match="got 3 bands; expected one"):
        score(path, write_reference(tmp_path / "truth.tif", np.zeros((3, 80, 80), np.uint8)))


@pytest.mark.parametrize(("yes", "nodata"), [(1, 0), (255, None), (1, None)], ids=["zero is nodata", "mask", "plain"])
def test_evaluate_of_a_valid_raster_as_masks_are_written(mapped, tmp_path, yes, nodata):
    path, classes = mapped
    truth = write_reference(tmp_path / "truth.tif", (classes == 1).astype(np.uint8))
    values = np.zeros((80, 80), np.uint8)
    values[:, 40:] = yes
    counts = score(path, truth, valid=write_reference(tmp_path / "valid.tif", values, nodata=nodata))["pixels"]
    assert (counts["tp"], counts["tn"]) == (200, 36 * 80 - 200)


@pytest.mark.parametrize("role", ["truth", "valid"])
def test_evaluate_of_a_raster_elsewhere(mapped, tmp_path, role):
    path, classes = mapped
    here = write_reference(tmp_path / "here.tif", (classes == 1).astype(np.uint8))
    there = write_reference(tmp_path / "there.tif", (classes == 1).astype(np.uint8), rows=100)
    with pytest.raises(InputError, match=f"^{role} .*there.tif: lies outside of the product"):
        score(path, **{"truth": here, "valid": None} | {role: there})


def test_evaluate_of_a_truth_raster_in_another_crs_is_warped(mapped, tmp_path):
    path, classes = mapped
    write_reference(tmp_path / "here.tif", np.where(classes == 255, 0, classes).astype(np.uint8))
    with rasterio.open(tmp_path / "here.tif") as here, WarpedVRT(here, crs="EPSG:32653", nodata=255) as warped:
        copy(warped, tmp_path / "truth.tif", driver="GTiff")
    assert score(path, tmp_path / "truth.tif")["pixels"]["iou"] > 0.85


@pytest.mark.parametrize(("name", "driver"), [("truth.img", "HFA"), ("truth.vrt", "VRT"), ("truth", "GTiff")])
def test_evaluate_knows_a_raster_by_what_it_holds(mapped, tmp_path, name, driver):
    path, classes = mapped
    source = write_reference(tmp_path / "source.tif", np.where(classes == 255, 0, classes).astype(np.uint8))
    copy(source, tmp_path / name, driver=driver)
    assert score(path, tmp_path / name)["pixels"]["iou"] == 1.0


def test_evaluate_knows_polygons_that_a_vrt_leads_to(mapped, tmp_path, truth):
    (tmp_path / "truth.vrt").write_text(
        f'<OGRVRTDataSource><OGRVRTLayer name="scar"><SrcDataSource>{truth}</SrcDataSource></OGRVRTLayer>'
        "</OGRVRTDataSource>"
    )
    assert score(mapped[0], f"{tmp_path}/truth.vrt:scar")["objects"]["truth"] == 1
