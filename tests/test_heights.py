import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from catalog.scenes import describe_dem, read_elevation
from catalog.schema import InputError

WHERE = Affine(3, 0, 583_200, 0, -3, 4_737_000)
GROUND = (200 + 0.6 * np.arange(64)[None, :] + np.zeros((64, 1))).astype(np.float32)
"""Metres: a plane that rises 0.6 m in 3 m."""


def write(path, cells, *, unit="", scale=1.0, offset=0.0, crs="EPSG:32654", nodata=None, where=WHERE):
    profile = {"count": 1, "height": cells.shape[0], "width": cells.shape[1], "dtype": cells.dtype, "nodata": nodata}
    with rasterio.open(path, "w", driver="GTiff", **profile, transform=where, crs=crs) as out:
        out.write(cells[None])
        out.units, out.scales, out.offsets = (unit,), (scale,), (offset,)
    return path


def read(path):
    return read_elevation(describe_dem(path), GeoBox((64, 64), WHERE, "EPSG:32654")).compute().data


@pytest.mark.parametrize(
    ("unit", "metres"),
    [
        ("", 1.0), ("m", 1.0), ("metre", 1.0), ("Meters", 1.0), ("meters above mean sea level", 1.0),
        ("US survey foot", 1200 / 3937), ("us_survey_feet", 1200 / 3937), ("foot_us", 1200 / 3937),
        ("us-ft", 1200 / 3937), ("ft_us", 1200 / 3937), ("ftUS", 1200 / 3937),
        ("ft", 0.3048), ("Feet", 0.3048), ("foot", 0.3048), ("international foot", 0.3048),
        ("cm", 0.01), ("centimeters", 0.01), ("decimetre", 0.1), ("dm", 0.1), ("mm", 0.001), ("km", 1000.0),
    ],
)  # fmt: skip
def test_read_elevation_is_metres_whatever_the_unit(tmp_path, unit, metres):
    got = read(write(tmp_path / "dem.tif", (GROUND / metres).astype(np.float32), unit=unit))
    np.testing.assert_allclose(got, GROUND, rtol=1e-5)


@pytest.mark.parametrize(("scale", "offset"), [(0.1, 0.0), (0.01, 100.0), (0.5, -1000.0)])
def test_read_elevation_follows_scale_and_offset(tmp_path, scale, offset):
    stored = np.rint((GROUND - offset) / scale).astype(np.int32)
    stored[3, 3] = -9999
    got = read(write(tmp_path / "dem.tif", stored, scale=scale, offset=offset, nodata=-9999))
    assert np.isnan(got[3, 3])
    np.testing.assert_allclose(np.delete(got, 3, axis=0), np.delete(GROUND, 3, axis=0), atol=0.51 * scale)


def test_read_elevation_scale_and_unit_together(tmp_path):
    stored = np.rint(GROUND / 0.3048 * 10).astype(np.int32)
    np.testing.assert_allclose(read(write(tmp_path / "dem.tif", stored, scale=0.1, unit="ft")), GROUND, atol=0.02)


@pytest.mark.parametrize(("vertical", "metres"), [(5703, 1.0), (6360, 1200 / 3937), (8228, 0.3048)])
def test_read_elevation_follows_the_unit_of_the_vertical_crs(tmp_path, vertical, metres):
    cells = (GROUND / metres).astype(np.float32)
    path = write(tmp_path / "dem.tif", cells, crs=rasterio.CRS.from_user_input(f"EPSG:32654+{vertical}"))
    np.testing.assert_allclose(read(path), GROUND, rtol=1e-5)


def test_describe_dem_refuses_two_units_that_differ(tmp_path):
    path = write(tmp_path / "dem.tif", GROUND, unit="m", crs=rasterio.CRS.from_user_input("EPSG:32654+6360"))
    with pytest.raises(InputError, match="different units .*survey foot"):
        describe_dem(path)


@pytest.mark.parametrize("unit", ["fathom", "degrees", "K", "smoots"])
def test_describe_dem_refuses_a_unit_it_does_not_know(tmp_path, unit):
    with pytest.raises(InputError, match=f"have the unit `{unit}`"):
        describe_dem(write(tmp_path / "dem.tif", GROUND, unit=unit))


@pytest.mark.parametrize(("cells", "match"), [(GROUND * 100, "from 20000 to 23780 m"), (GROUND * 20, "steeper than 7")])
def test_describe_dem_refuses_numbers_that_are_no_heights(tmp_path, cells, match):
    with pytest.raises(InputError, match=f"{match}.*unit or scale"):
        describe_dem(write(tmp_path / "dem.tif", cells))


def test_describe_dem_takes_fill_that_nobody_declared(tmp_path):
    cells = GROUND.copy()
    cells[:20, :20], cells[60:, 60:] = -32768, 3.4e38
    assert np.isnan(read(write(tmp_path / "dem.tif", cells))).sum() == 400 + 16


def test_describe_dem_identity_follows_what_its_numbers_mean(tmp_path):
    path = write(tmp_path / "dem.tif", GROUND)
    before = describe_dem(path).identity
    with rasterio.open(path, "r+") as file:
        file.units = ("ft",)
    after = describe_dem(path).identity
    assert {**before, "fingerprint": ""} != {**after, "fingerprint": ""}
