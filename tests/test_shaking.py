import json
import re

import numpy as np
import pytest
import rasterio
import shapely
from quake_history import contour
from rasterio.transform import from_origin

from catalog.areas import (
    Area,
    area_km2,
    changed_share,
    on_land_with_relief,
    split_at_antimeridian,
    utm_parts,
    write_event,
)  # fmt: skip
from catalog.comcat import Quake, ShakeMap
from catalog.config import Event, data_dir
from catalog.policy import QuakePolicy
from catalog.schema import InputError
from catalog.shaking import area_key, area_of, circle, inside_contour, inside_grid, is_circle, radius_km
from catalog.web import Unanswered

EVENT = Event(id="us1", longitude=141.9, latitude=42.7, magnitude=6.6)
POLICY = QuakePolicy()


def _rings(*rings, value=10.0):
    geometry = {"type": "MultiLineString", "coordinates": [list(ring) for ring in rings]}
    return [{"type": "Feature", "properties": {"value": value}, "geometry": geometry}]


def _square(west, south, side):
    return [(west, south), (west + side, south), (west + side, south + side), (west, south + side), (west, south)]


def _inside(features, level=10.0):
    data = json.dumps({"type": "FeatureCollection", "features": features}).encode()
    return inside_contour(data, level=level, lowest=level / 2, where="cont")


def _grid(values, west=141.0, north=43.0, step=0.1, east=None, units="%g", **spec):
    rows, columns = values.shape
    east = west + (columns - 1) * step if east is None else east
    told = {"nlon": columns, "nlat": rows, "lon_min": west, "lon_max": east, "lat_max": north,
            "lat_min": north - (rows - 1) * step, **spec}  # fmt: skip
    lines = [
        f"{(west + x * step + 180) % 360 - 180:.4f} {north - y * step:.4f} {values[y, x]}"
        for y in range(rows) for x in range(columns)
    ]  # fmt: skip
    fields = "".join(
        f'<grid_field index="{n + 1}" name="{name}" units="{unit}"/>'
        for n, (name, unit) in enumerate([("LON", "dd"), ("LAT", "dd"), ("PGA", units)])
    )
    stated = " ".join(f'{key}="{value}"' for key, value in told.items())
    text = "\n".join(lines)
    return (
        '<shakemap_grid xmlns="http://earthquake.usgs.gov/eqcenter/shakemap">'
        f"<grid_specification {stated}/>{fields}"
        f"<grid_data>\n{text}\n</grid_data></shakemap_grid>"
    ).encode()


def test_inside_contour_takes_a_ring_in_a_ring_for_a_hole():
    found = _inside(_rings(_square(141, 42, 1), _square(141.4, 42.4, 0.2)))
    assert found.equals(shapely.box(141, 42, 142, 43) - shapely.box(141.4, 42.4, 141.6, 42.6))


def test_inside_contour_reads_the_level_or_the_next_lower_one():
    features = _rings(_square(0, 0, 3), value=8.0) + _rings(_square(0, 0, 1), value=20.0)
    assert _inside(features).equals(shapely.box(0, 0, 3, 3))
    with pytest.raises(InputError, match=re.escape("no contour of 2 .. 4")):
        _inside(features, level=4.0)


@pytest.mark.parametrize("west", [179.5, -180.5])
def test_inside_contour_is_split_at_the_antimeridian(west):
    ring = [((x + 180) % 360 - 180, y) for x, y in _square(west, 0, 1)]
    for points in (ring, _square(west, 0, 1)):
        found = _inside(_rings(points))
        assert sorted(part.bounds for part in found.geoms) == [(-180, 0, -179.5, 1), (179.5, 0, 180, 1)]


def test_inside_contour_refuses_one_that_runs_off_the_map():
    with pytest.raises(InputError, match="runs off the map"):
        _inside(_rings(_square(0, 0, 1)[:-1]))


@pytest.mark.parametrize(
    "feature",
    [
        {}, [], None, {"properties": {"value": "x"}, "geometry": {}},
        {"properties": {"value": 10}, "geometry": {"type": "Point", "coordinates": [1, 2]}},
        {"properties": {"value": 10}, "geometry": {"type": "LineString", "coordinates": "abc"}},
        {"properties": {"value": 10}, "geometry": {"type": "LineString", "coordinates": [[1], [2]]}},
        {"properties": {"value": 10}, "geometry": {"type": "LineString", "coordinates": [[1, 2], ["a", 2]]}},
        {"properties": {"value": 10}, "geometry": {"type": "LineString", "coordinates": [[1, 200], [2, 2]]}},
        {"properties": {"value": 10}, "geometry": {"type": "LineString", "coordinates": []}},
        {"properties": {"value": 10}, "geometry": {"type": [], "coordinates": []}},
    ],
)  # fmt: skip
def test_inside_contour_refuses_what_are_no_lines(feature):
    with pytest.raises(InputError, match="cont: "):
        _inside([feature])


def test_inside_grid_is_the_cells_that_are_shaken_enough():
    values = np.zeros((5, 6))
    values[1:3, 2:4] = 10.0
    found = inside_grid(_grid(values), min_pga_g=0.1, where="grid")
    assert found.bounds == pytest.approx((141.15, 42.75, 141.35, 42.95))
    assert inside_grid(_grid(values), min_pga_g=0.11, where="grid").is_empty


def test_inside_grid_crosses_the_antimeridian():
    data = _grid(np.full((5, 11), 20.0), west=179.5, east=-179.5)
    assert [round(x, 2) for part in inside_grid(data, min_pga_g=0.1, where="grid").geoms for x in part.bounds[::2]] == [
        -180.0, -179.45, 179.45, 180.0,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"nlon": 7}, "rows of numbers; expected 35"),
        ({"nlon": 10**9}, "expected 2 .. 5000 a side"),
        ({"nlon": "x"}, "invalid literal"),
        ({"lat_max": "nan"}, "not on earth"),
        ({"lon_min": 1e9}, "not on earth"),
        ({"lon_min": 10.0, "lon_max": 11.0}, "north-west corner"),
        ({"units": "ms2"}, "PGA in 'ms2'; expected %g"),
    ],
)
def test_inside_grid_refuses_what_does_not_hold_what_it_says(change, match):
    with pytest.raises(InputError, match=f"grid: no ShakeMap grid .*{match}"):
        inside_grid(_grid(np.ones((5, 6)), **change), min_pga_g=0.1, where="grid")


@pytest.mark.parametrize("value", ["nan", "inf", "x", "1e999", "", "1 2"])
def test_inside_grid_refuses_numbers_that_are_none(value):
    data = _grid(np.ones((5, 6))).replace(b"42.9000 1.0", f"42.9000 {value}".encode(), 1)
    if value == "1 2":  # a column too many
        assert inside_grid(data, min_pga_g=0.1, where="grid").is_empty
        return
    with pytest.raises(InputError, match="grid: "):
        inside_grid(data, min_pga_g=0.1, where="grid")


@pytest.mark.parametrize("data", [b"<a/>", b"<!DOCTYPE a><a/>", b"PK\x03\x04", b""])
def test_inside_grid_refuses_what_is_no_grid(data):
    with pytest.raises(InputError, match="grid: "):
        inside_grid(data, min_pga_g=0.1, where="grid")


@pytest.mark.real
@pytest.mark.parametrize(("version", "km2"), [(3, 6992.5), (4, 7109.2)])
def test_inside_grid_reads_real_grids(version, km2):
    data = (data_dir() / f"usgs/shakemap_grid_us1000dyad_hawaii2018/shakemap{version}.xml").read_bytes()
    found = inside_grid(data, min_pga_g=0.1, where="grid")
    assert area_km2(found) == pytest.approx(km2, rel=1e-3)
    assert found.covers(shapely.Point(-155.0, 19.37))  # the epicentre


def test_circle_has_the_reach_of_its_magnitude():
    area = circle(EVENT)
    assert area.km2 == pytest.approx(np.pi * radius_km(6.6) ** 2, rel=0.01)
    assert is_circle(area.key)


def test_circle_at_the_antimeridian_and_at_a_pole():
    fiji = circle(EVENT.model_copy(update={"longitude": 179.5, "latitude": -17.0}))
    assert fiji.km2 == pytest.approx(np.pi * radius_km(6.6) ** 2, rel=0.01)
    assert len(fiji.geometry.geoms) == 2
    pole = circle(EVENT.model_copy(update={"latitude": -89.9}))
    assert pole.geometry.covers(shapely.Point(0, -90))
    assert pole.geometry.bounds[3] < -89


def test_circle_refuses_an_event_without_magnitude():
    with pytest.raises(InputError, match="without magnitude"):
        circle(EVENT.model_copy(update={"magnitude": None}))


def _area_of(files, policy=POLICY):
    """The area of an earthquake whose ShakeMap has these files; what is an error is raised when it is read."""
    shakemap = ShakeMap(key="us:us1:1", version="2", urls={f"download/{name}": name for name in files})
    quake = Quake(EVENT, frozenset({"us1"}), updated_utc=None, shakemap=shakemap)

    def read(url):
        if isinstance(files[url], Exception):
            raise files[url]
        return files[url]

    return area_of(quake, policy, read), area_key(quake, policy)


def test_area_of_takes_the_pga_contour_first():
    (area, passed), key = _area_of({"cont_pga.json": contour(141.9, 42.7, 20), "grid.xml": b""})
    assert (area.source, passed, area.key) == ("ShakeMap us v2 PGA >= 0.1 g", (), key)
    assert area.km2 == pytest.approx(np.pi * 20**2, rel=0.02)


def test_area_of_passes_on_to_what_can_be_read():
    files = {"cont_pga.json": b"{}", "grid.xml": Unanswered("cut off"), "cont_mmi.json": contour(141.9, 42.7, 20, 6.0)}
    (area, passed), _ = _area_of(files)
    assert area.source == "ShakeMap us v2 MMI >= 6"
    assert [reason[:9] for reason in passed] == ["ShakeMap ", "cut off"]


def test_area_of_is_a_circle_where_no_map_can_be_read():
    (area, passed), key = _area_of({"grid.xml": b"<!DOCTYPE a><a/>"})
    assert area.is_circle
    assert area.key != key  # so the map is asked for again
    assert "DTDForbidden" in passed[0]


def _dem(path, metres, west=141.0, north=43.0, step=0.01, nodata=-9999.0, crs="EPSG:4326"):
    profile = {"driver": "GTiff", "dtype": "float32", "count": 1, "crs": crs, "nodata": nodata}
    height, width = metres.shape
    transform = from_origin(west, north, step, step)
    with rasterio.open(path, "w", height=height, width=width, transform=transform, **profile) as target:
        target.write(metres.astype("float32"), 1)
    return str(path)


def test_on_land_with_relief_cuts_sea_and_plains_and_keeps_the_unknown(tmp_path):
    metres = np.full((100, 100), 10.0)
    metres[:, :25] = -50.0  # sea
    metres[:, 50:] = 200.0 + 400.0 * (np.arange(50) % 2)  # mountains
    dem = _dem(tmp_path / "dem.tif", metres)
    area = on_land_with_relief(Area(shapely.box(141.1, 42.2, 142.2, 42.8), "k", "a map"), dem, min_relief_m=50)
    assert not area.geometry.covers(shapely.Point(141.15, 42.5))
    assert not area.geometry.covers(shapely.Point(141.35, 42.5))
    assert area.geometry.covers(shapely.Point(141.75, 42.5))
    assert area.geometry.covers(shapely.Point(142.1, 42.5))  # beyond the DEM
    assert area.source == "a map, on land with relief"


def test_on_land_with_relief_takes_nodata_for_sea(tmp_path):
    dem = _dem(tmp_path / "dem.tif", np.full((100, 100), -9999.0))
    assert on_land_with_relief(
        Area(shapely.box(141.1, 42.2, 141.9, 42.8), "k", "a map"), dem, min_relief_m=0
    ).geometry.is_empty


def test_on_land_with_relief_says_when_the_dem_is_missing(tmp_path):
    with pytest.raises(InputError, match="correct `dem`"):
        on_land_with_relief(Area(shapely.box(0, 0, 1, 1), "k", "a map"), str(tmp_path / "no.tif"), min_relief_m=0)


def test_on_land_with_relief_refuses_a_dem_that_lies_nowhere(tmp_path):
    path = _dem(tmp_path / "dem.tif", np.ones((10, 10)), crs=None)
    with pytest.raises(InputError, match="correct `dem`"):
        on_land_with_relief(Area(shapely.box(141, 42.9, 141.1, 43), "k", "a map"), path, min_relief_m=0)


def test_on_land_with_relief_reads_both_sides_of_the_antimeridian_as_finely(tmp_path):
    metres = np.full((200, 36_000), -50.0)  # sea, but for two islands with mountains
    for columns in (slice(50, 60), slice(-60, -50)):
        metres[90:100, columns] = 100.0 + 400.0 * (np.arange(10) % 2)
    dem = _dem(tmp_path / "dem.tif", metres, west=-180.0, north=1.0)
    both = split_at_antimeridian(shapely.box(179, -1, 181, 1))
    area = on_land_with_relief(Area(both, "k", "a map"), dem, min_relief_m=50)
    one = shapely.box(179.4, 0, 179.5, 0.1)
    other = shapely.box(-179.5, 0, -179.4, 0.1)
    assert area.km2 == pytest.approx(area_km2(one) + area_km2(other), rel=0.2)


def test_utm_parts_splits_at_zone_borders():
    parts = utm_parts(shapely.box(140.0, 42, 147.0, 43))
    assert {epsg: part.bounds[::2] for epsg, part in parts.items()} == {32654: (140, 144), 32655: (144, 147)}
    assert list(utm_parts(shapely.box(140.0, -43, 141.0, 1))) == [32754]


def test_utm_parts_gives_a_sliver_to_its_neighbour():
    (only,) = utm_parts(shapely.box(140.0, 42, 144.1, 43)).items()
    assert (only[0], only[1].bounds) == (32654, (140, 42, 144.1, 43))


def test_utm_parts_does_not_join_over_the_antimeridian():
    split = split_at_antimeridian(shapely.box(177, -18, 180.05, -17))
    assert sorted(utm_parts(split)) == [32701, 32760]


def test_utm_parts_lose_no_ground():
    area = circle(EVENT.model_copy(update={"longitude": 144.05, "magnitude": 7.5})).geometry
    assert sum(area_km2(part) for part in utm_parts(area).values()) == pytest.approx(area_km2(area), rel=1e-6)


def test_changed_share_is_of_what_was_there():
    assert changed_share(shapely.box(0, 0, 1, 1), shapely.box(0, 0, 1.2, 1)) == pytest.approx(0.2, rel=1e-3)
    assert changed_share(shapely.Polygon(), shapely.box(0, 0, 1, 1)) == 1.0


def test_write_event_writes_a_file_a_zone_and_removes_the_others(tmp_path):
    files = write_event(tmp_path, EVENT, Area(shapely.box(143, 42, 145, 43), "k", "a map"))
    assert sorted(f.name for f in files) == ["area-32654.geojson", "area-32655.geojson", "event.json"]
    write_event(tmp_path, EVENT, Area(shapely.box(143, 42, 143.5, 43), "k", "a map"))
    assert sorted(f.name for f in (tmp_path / "us1").iterdir()) == ["area-32654.geojson", "event.json"]
    assert Event.model_validate_json((tmp_path / "us1/event.json").read_text()) == EVENT
    (feature,) = json.loads((tmp_path / "us1/area-32654.geojson").read_text())["features"]
    assert feature["properties"]["event_id"] == "us1"
    assert shapely.geometry.shape(feature["geometry"]).equals(shapely.box(143, 42, 143.5, 43))


@pytest.mark.parametrize("event_id", ["../x", "/etc/x", "a/b", "..", "", "a" * 65])
def test_write_event_refuses_an_id_that_is_a_path(tmp_path, event_id):
    area = Area(shapely.box(143, 42, 145, 43), "k", "a map")
    with pytest.raises(InputError, match="may not name a folder"):
        write_event(tmp_path, EVENT.model_copy(update={"id": event_id}), area)
    assert not list(tmp_path.iterdir())


def test_write_event_refuses_an_empty_area(tmp_path):
    with pytest.raises(InputError, match="its area is empty"):
        write_event(tmp_path, EVENT, Area(shapely.Polygon(), "k", "a map"))
