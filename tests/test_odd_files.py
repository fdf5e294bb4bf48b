"""Odd files of others: each is read, or refused with the fix before work, whatever the sensor is said to be."""

import warnings

import pytest

from catalog.checks import check_scene
from catalog.config import data_dir
from catalog.rasters import describe_raster
from catalog.scenes import describe_dem
from catalog.schema import InputError
from catalog.sensors import SENSORS

pytestmark = pytest.mark.real
FOLDER = data_dir() / "odd_files"
RASTERS = sorted(p for p in FOLDER.glob("*") if p.suffix.lower() in (".tif", ".nc", ".vrt")) if FOLDER.is_dir() else []


def refusal(read):
    """What a reading is refused with; empty where it is read. Anything but our own error ends the test."""
    try:
        read()
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("path", RASTERS, ids=lambda path: path.name)
def test_odd_file_is_read_or_refused_with_the_fix_before_work(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of GDAL's reading of headers
        told = [refusal(lambda name=name: check_scene(path, sensor_name=name, block_px=256)) for name in SENSORS]
        told.append(refusal(lambda: describe_dem(path, allow_geographic=True)))
    for text in filter(None, told):
        assert path.name in text
        assert ";" in text  # what, got, expected; fix


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("rt_cog_gcps.tif", "has ground control points and no CRS.*gdalwarp"),
        ("rx_cint16.tif", "has ground control points and no CRS.*gdalwarp"),
        ("rx_test_rpcs.tif", "is rotated, south-up or west-running.*gdalwarp"),
        ("rt_cog_hirise_mars.tif", "is not of the Earth"),
        ("rt_cog_nonearth.tif", "is not of the Earth"),
        ("rio_float_nan.tif", "has no CRS"),
        ("planet_difference_change.tif", "has no CRS"),
    ],
)
def test_odd_file_is_refused_for_what_is_odd(name, match):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match=match):
            describe_raster(FOLDER / name)
