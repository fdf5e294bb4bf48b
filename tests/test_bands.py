import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp

from catalog.bands import find_bands
from catalog.rasters import describe_raster
from catalog.schema import InputError
from catalog.sensors import sensor

RGBN = {"red": 1, "green": 2, "blue": 3, "nir": 4}


def write(path, count, *, names=(), dtype="uint16", colours=(), band_tags=(), tags=None, **profile):
    where = Affine(10, 0, 583_200, 0, -10, 4_737_000)
    profile = {"photometric": "MINISBLACK", **profile} if colours else profile
    profile |= {"count": count, "height": 4, "width": 4, "dtype": dtype, "transform": where, "crs": "EPSG:32654"}
    with rasterio.open(path, "w", driver="GTiff", **profile) as out:
        out.write(np.ones((count, 4, 4), dtype))
        for index, name in enumerate(names, 1):
            out.set_band_description(index, name)
        for index, told in enumerate(band_tags, 1):
            out.update_tags(index, **told)
        if colours:
            out.colorinterp = [ColorInterp[name] for name in colours]
        out.update_tags(**(tags or {}))
    return path


def bands_of(path, sensor_name):
    return find_bands(describe_raster(path), sensor(sensor_name))


def found(tmp_path, names, sensor_name, *, file="a.tif", count=0, **options):
    return bands_of(write(tmp_path / file, count or len(names), names=names, **options), sensor_name)


@pytest.mark.parametrize(
    "names",
    [
        ("B4", "B3", "B2", "B8"),
        ("B04", "B03", "B02", "B08"),
        ("b04_10m", "b03_10m", "b02_10m", "b08_10m"),
        ("0_B4", "0_B3", "0_B2", "0_B8"),
        ("B4_median", "B3_median", "B2_median", "B8_median"),
        ("Band 4", "Band 3", "Band 2", "Band 8"),
        ("Red", "GREEN", "blue", "NIR"),
        ("Band 4 - Red", "Band 3 - Green", "Band 2 - Blue", "Band 8 - Near infrared"),
        ("SurfaceReflectanceRed", "SurfaceReflectanceGreen", "SurfaceReflectanceBlue", "SurfaceReflectanceNIR"),
        ("665 nm", "560 nm", "490 nm", "842 nm"),
        ("0.665 um", "0.56 um", "0.49 um", "0.842 um"),
        ("B4", "B3", "B2", "B8A"),
        ("r", "g", "b", "n"),
    ],
)
def test_find_bands_of_sentinel_by_name(tmp_path, names):
    assert found(tmp_path, names, "sentinel2-l2a") == RGBN


def test_find_bands_by_wavelength_tags(tmp_path):
    told = [{"wavelength": f"{nm}", "wavelength_units": "Nanometers"} for nm in (664.6, 559.8, 492.4, 832.8)]
    assert found(tmp_path, (), "sentinel2-l2a", count=4, band_tags=told) == RGBN


def test_find_bands_of_all_of_sentinel_takes_the_broad_near_infrared(tmp_path):
    names = [f"B{n}" for n in ("1", "2", "3", "4", "5", "6", "7", "8", "8A", "9", "11", "12")] + ["SCL"]
    assert found(tmp_path, names, "sentinel2-l2a") == {
        "blue": 2, "green": 3, "red": 4, "nir": 8, "swir1": 11, "swir2": 12, "scl": 13,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("names", "file", "tags", "expected"),
    [
        ([f"SR_B{n}" for n in range(1, 8)], "a.tif", {},
         {"blue": 2, "green": 3, "red": 4, "nir": 5, "swir1": 6, "swir2": 7}),
        (["SR_B4", "SR_B3", "SR_B2", "SR_B5"], "a.tif", {}, RGBN),
        (["SR_B1", "SR_B2", "SR_B3", "SR_B4", "QA_PIXEL"], "a.tif", {},
         {"blue": 1, "green": 2, "red": 3, "nir": 4, "qa_pixel": 5}),
        (["SR_B1", "SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B7"], "LT05_L2SP_107030.tif", {},
         {"blue": 1, "green": 2, "red": 3, "nir": 4, "swir1": 5, "swir2": 6}),
        (["SR_B1", "SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B7"], "a.tif", {"SPACECRAFT_ID": "LANDSAT_8"},
         {"blue": 2, "green": 3, "red": 4, "nir": 5, "swir2": 6}),
        (["red", "green", "blue", "nir08", "qa_pixel"], "a.tif", {}, {**RGBN, "qa_pixel": 5}),
    ],
    ids=["oli-all", "oli-four", "tm-four", "tm-by-file", "oli-by-tag", "words"],
)  # fmt: skip
def test_find_bands_of_landsat_by_the_instruments_numbers(tmp_path, names, file, tags, expected):
    assert found(tmp_path, names, "landsat-c2-l2", file=file, tags=tags) == expected


def test_find_bands_of_landsat_that_may_be_of_two_instruments(tmp_path):
    with pytest.raises(InputError, match="which may be those of Landsat 8-9 or Landsat 4-7"):
        found(tmp_path, ["SR_B1", "SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B7"], "landsat-c2-l2")


PLANET_8 = {"blue": 2, "green": 4, "red": 6, "nir": 8}


@pytest.mark.parametrize(
    "names",
    [
        ("coastal_blue", "blue", "green_i", "green", "yellow", "red", "rededge", "nir"),
        ("Coastal Blue", "Blue", "Green I", "Green II", "Yellow", "Red", "Red Edge", "NIR"),
        ("CoastalBlue", "Blue", "GreenI", "Green", "Yellow", "Red", "RedEdge", "NIR"),
        (),
    ],
)
def test_find_bands_of_eight_band_planet(tmp_path, names):
    file = "20180911_012200_1033_3B_AnalyticMS_SR_8b_clip.tif"
    assert found(tmp_path, names, "planetscope-4b", file=file, count=8) == PLANET_8


@pytest.mark.parametrize(
    ("count", "sensor_name"),
    [
        (8, "planetscope-4b"), (5, "planetscope-4b"), (12, "sentinel2-l2a"), (13, "sentinel2-l2a"),
        (5, "sentinel2-l2a"), (8, "landsat-c2-l2"),
    ],
)  # fmt: skip
def test_find_bands_of_an_unnamed_file_whose_count_does_not_fit(tmp_path, count, sensor_name):
    with pytest.raises(InputError, match=rf"got {count} band\(s\) without names.*name the bands"):
        found(tmp_path, (), sensor_name, count=count)


@pytest.mark.parametrize(
    ("names", "sensor_name", "match"),
    [
        (("B1", "B2", "B3", "B4"), "sentinel2-l2a", "nir missing"),
        (("red", "green", "blue", "ndvi"), "sentinel2-l2a", r"band\(s\) nir missing"),
        (("pre_red", "pre_green", "pre_blue", "pre_nir", "post_red", "post_green", "post_blue", "post_nir"),
         "sentinel2-l2a", "several times"),
        (("red_edge", "green", "blue", "nir"), "planetscope-4b", r"band\(s\) red missing"),
        (("coastal", "green", "red", "nir"), "planetscope-4b", r"band\(s\) blue missing"),
    ],
)  # fmt: skip
def test_find_bands_refuses_names_that_do_not_fit(tmp_path, names, sensor_name, match):
    with pytest.raises(InputError, match=match):
        found(tmp_path, names, sensor_name)


@pytest.mark.parametrize("names", [("Band 1", "Band 2", "Band 3", "Band 4"), ("1", "2", "3", "4"), ()])
@pytest.mark.parametrize("sensor_name", ["sentinel2-l2a", "planetscope-4b"])
def test_find_bands_that_are_only_counted_are_in_the_sensors_order(tmp_path, names, sensor_name):
    assert found(tmp_path, names, sensor_name, count=4) == {"blue": 1, "green": 2, "red": 3, "nir": 4}


@pytest.mark.parametrize(
    ("colours", "expected"),
    [
        (("blue", "green", "red"), {"blue": 1, "green": 2, "red": 3}),
        (("green", "red", "blue"), {"green": 1, "red": 2, "blue": 3}),
        (("gray", "undefined", "undefined"), {"red": 1, "green": 2, "blue": 3}),
        (("blue", "green", "red", "alpha"), {"blue": 1, "green": 2, "red": 3}),
        (("undefined", "blue", "green", "red"), {"blue": 2, "green": 3, "red": 4}),
    ],
)
def test_find_bands_of_a_picture_by_its_colours(tmp_path, colours, expected):
    assert found(tmp_path, (), "rgb8", count=len(colours), dtype="uint8", colours=colours) == expected


def test_find_bands_of_a_picture_names_win_over_colours(tmp_path):
    assert found(tmp_path, ("B2", "B3", "B4"), "rgb8", dtype="uint8", photometric="RGB") == {
        "blue": 1, "green": 2, "red": 3,
    }  # fmt: skip


def test_find_bands_of_a_picture_with_a_fourth_band(tmp_path):
    colours = ("blue", "green", "red", "undefined")
    assert found(tmp_path, (), "rgbnir8", count=4, dtype="uint8", colours=colours) == {
        "blue": 1, "green": 2, "red": 3, "nir": 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("colours", "match"),
    [
        (("palette",), "colour table.*-expand rgb"),
        (("gray",), r"band\(s\) blue, green missing"),
        (("gray", "alpha"), r"band\(s\) .*blue.* missing"),
        (("gray", "undefined", "undefined", "undefined"), "nothing says which band is which"),
        (("hue", "saturation", "lightness"), "nothing says which band is which"),
        (("cyan", "magenta", "yellow"), "nothing says which band is which"),
    ],
)
def test_find_bands_of_a_picture_without_its_colours(tmp_path, colours, match):
    with pytest.raises(InputError, match=match):
        found(tmp_path, (), "rgb8", count=len(colours), dtype="uint8", colours=colours)


def test_find_bands_of_reflectance_refuses_colours_against_its_order(tmp_path):
    with pytest.raises(InputError, match="nothing says which band is which"):
        found(tmp_path, (), "sentinel2-l2a", count=4, colours=("red", "green", "blue", "undefined"))
