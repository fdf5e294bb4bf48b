"""Ground at the edges of maps: at the antimeridian, and in a UTM zone far from its own."""

import json
from dataclasses import replace

import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import Transformer
from shapely.geometry import box, shape
from test_export import make_product

from catalog.checks import check_inputs, check_scene
from catalog.config import RunConfig
from catalog.grid import degrees_of, lonlat_of
from catalog.scenes import read_epoch
from catalog.stac import build_item, refresh_collection, write_item

SIDE = 60
FIJI_LAT = -16.85


def picture_at(path, epsg, lon, lat):
    """A picture of 600 m around a place; red grows to the east of its projection, green to the south."""
    x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, lat)
    values = np.full((3, SIDE, SIDE), 90, np.uint8)
    values[0], values[1] = (20 + 3 * axis for axis in np.mgrid[:SIDE, :SIDE][::-1])
    profile = {"driver": "GTiff", "count": 3, "height": SIDE, "width": SIDE, "dtype": "uint8", "photometric": "rgb"}
    place = Affine(10, 0, x - 5 * SIDE, 0, -10, y + 5 * SIDE)
    with rasterio.open(path, "w", **profile, crs=f"EPSG:{epsg}", transform=place) as out:
        out.write(values)
    return path


def slopes_of(epoch, grid):
    """Red to the east and green to the south, DN a pixel of the grid, and red to the south, which is none."""
    scene = read_epoch(epoch, grid.geobox_of(grid.scene))[0]
    red, green = (scene[band].to_numpy() * 255 for band in ("red", "green"))
    return tuple(float(np.nanmedian(np.diff(values, axis=axis))) for values, axis in ((red, 1), (green, 0), (red, 0)))


@pytest.mark.parametrize(
    ("lon", "epsg"), [(179.99, 32760), (-179.99, 32701), (179.9, 32760)], ids=["west-side", "east-side", "west"]
)
def test_imagery_of_fiji_lies_in_its_utm_zone_and_is_not_turned(tmp_path, lon, epsg):
    """EPSG:3460 runs on over the antimeridian: the mean of longitudes at its two sides is half around the earth."""
    path = picture_at(tmp_path / "fiji.tif", 3460, lon, FIJI_LAT)
    epoch, grid = check_scene(path, sensor_name="rgb8")
    assert grid.epsg == epsg
    east, south, across = slopes_of(epoch, grid)
    assert (east, south) == pytest.approx((3, 3), abs=0.2)
    assert abs(across) < 0.2


def test_imagery_over_the_antimeridian_is_wholly_on_its_grid(tmp_path):
    epoch, grid = check_scene(picture_at(tmp_path / "fiji.tif", 3460, 180.0, FIJI_LAT), sensor_name="rgb8")
    assert grid.epsg in (32701, 32760)
    assert max(grid.scene.shape) < SIDE + 10
    seen = np.isfinite(read_epoch(epoch, grid.geobox_of(grid.scene))[0].red.to_numpy()).sum()
    assert seen == pytest.approx(SIDE**2, rel=0.03)
    assert slopes_of(epoch, grid)[:2] == pytest.approx((3, 3), abs=0.2)


@pytest.mark.parametrize(
    ("epsg", "lon", "on"),
    [
        (32654, 141.9, 32654),
        (32654, 146.0, 32654),
        (32654, 175.0, 32660),
        (32760, 170.0, 32760),
        (32760, 166.0, 32758),
        (32701, 179.0, 32701),
    ],
    ids=["own", "next", "far", "next-south", "far-south", "over-the-antimeridian"],
)
def test_imagery_in_a_utm_zone_far_from_its_own_goes_to_its_own(tmp_path, epsg, lon, on):
    lat = 42.7 if epsg < 32700 else -39.5
    epoch, grid = check_scene(picture_at(tmp_path / "far.tif", epsg, lon, lat), sensor_name="rgb8")
    assert grid.epsg == on
    centre = lonlat_of(f"EPSG:{on}", *np.mean(np.reshape(grid.geobox_of(grid.scene).boundingbox.bbox, (2, 2)), axis=0))
    assert centre == pytest.approx((lon, lat), abs=2e-3)
    assert np.isfinite(read_epoch(epoch, grid.geobox_of(grid.scene))[0].red.to_numpy()).any()


def test_area_over_the_antimeridian_meets_imagery_of_fiji(tmp_path):
    path = picture_at(tmp_path / "fiji.tif", 3460, 180.0, FIJI_LAT)
    parts = [
        box(179.998, FIJI_LAT - 0.002, 180, FIJI_LAT + 0.002),
        box(-180, FIJI_LAT - 0.002, -179.998, FIJI_LAT + 0.002),
    ]
    features = [{"type": "Feature", "properties": {}, "geometry": part.__geo_interface__} for part in parts]
    (tmp_path / "aoi.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    inputs = check_inputs(RunConfig(name="fiji", post=(str(path),), aoi=str(tmp_path / "aoi.geojson")))
    height, width = inputs.grid.scene.shape
    assert (height, width) == pytest.approx((44, 43), abs=3)  # 0.004 degrees


# --- the product -----------------------------------------------------------------------------------------------------


def product_at(epsg, lon, lat):
    """A product of 2.1 by 1.5 km around a place."""
    x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, lat)
    return make_product(epsg=epsg, left=round(x / 3 - 350) * 3.0, top=round(y / 3 + 250) * 3.0)


@pytest.mark.parametrize("epsg", [32760, 32701])
def test_item_over_the_antimeridian_bounds_its_own_ground_only(epsg):
    item = build_item(product_at(epsg, 180.0, FIJI_LAT))
    west, south, east, north = item.bbox
    assert 179.98 < west < 180
    assert -180 < east < -179.98  # west of the antimeridian first, as RFC 7946 (5.2) has it
    assert (south, north) == pytest.approx((FIJI_LAT, FIJI_LAT), abs=0.01)
    outline = shape(item.geometry)
    assert sorted(part.bounds[0] > 0 for part in outline.geoms) == [False, True]  # cut, as RFC 7946 (3.1.9) has it
    assert outline.area < 1e-3
    assert outline.is_valid


def test_collection_over_the_antimeridian_bounds_its_versions_only(tmp_path):
    for version, lon in ((1, 179.9), (2, 180.0)):
        folder = tmp_path / f"v{version}"
        folder.mkdir()
        write_item(replace(product_at(32760, lon, FIJI_LAT), version=version), folder)
    both, first = (
        json.loads(refresh_collection(tmp_path, event_id="fiji", title="Fiji", without=name).read_text())
        for name in ("", "v2")
    )
    ((west, _, east, _),) = both["extent"]["spatial"]["bbox"]
    assert 179.88 < west < 179.9
    assert -180 < east < -179.98
    ((west, _, east, _),) = first["extent"]["spatial"]["bbox"]
    assert 179.88 < west < east < 180


def test_observed_area_and_scene_over_the_antimeridian_are_as_large_as_elsewhere():
    there, here = product_at(32760, 180.0, FIJI_LAT).headline, product_at(32760, 177.0, FIJI_LAT).headline
    assert there.scene_m2 == pytest.approx(here.scene_m2, rel=5e-3)
    assert there.observed_m2 == pytest.approx(here.observed_m2, rel=5e-3)


def test_degrees_of_bounds_over_the_antimeridian_do_not_span_the_globe():
    x, y = Transformer.from_crs(4326, 32701, always_xy=True).transform(180.0, FIJI_LAT)
    west, _, east, _ = degrees_of("EPSG:32701", (x - 500, y - 500, x + 500, y + 500))
    assert (west, east) == pytest.approx((179.995, -179.995), abs=1e-3)
