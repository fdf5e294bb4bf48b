"""Polygons as people have them, wherever they come in: area of interest, reference map, response, labels."""

import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from shapely.geometry import GeometryCollection, LineString, MultiPolygon, Point, Polygon, box, mapping

from catalog.checks import check_inputs
from catalog.config import RunConfig
from catalog.grid import snap_grid
from catalog.outlines import read_outlines
from catalog.responses import read_area
from catalog.schema import InputError
from tasks.review import evaluate_product
from tasks.scenario import check_sources

EPSG, LEFT, TOP, SIDE_M = 32654, 583_200.0, 4_737_000.0, 600.0
AS_AOI, AS_TRUTH, AS_AREA = "aoi", "truth", "response"


def at(x, y, width, height):
    """A rectangle, metres from the top left corner of the picture."""
    return box(LEFT + x, TOP - y - height, LEFT + x + width, TOP - y)


ONE, TWO = at(0, 0, 200, 600), at(400, 0, 200, 600)
HECTARES = 12, 24
"""Of one, and of both together."""


def layer(*shapes, crs=EPSG, **columns):
    return gpd.GeoDataFrame(columns, geometry=list(shapes), crs=EPSG).to_crs(crs)


def write(path, values):
    profile = {"driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2]}
    place = {"transform": Affine(10, 0, LEFT, 0, -10, TOP), "crs": f"EPSG:{EPSG}"}
    with rasterio.open(path, "w", **profile, **place, dtype="uint8", nodata=255 if len(values) == 1 else None) as out:
        out.write(values)
    return str(path)


@pytest.fixture
def hectares(tmp_path):
    """The ground that a file's polygons have, by the role that they are read for."""
    picture = np.random.default_rng(0).integers(20, 200, (3, 60, 60)).astype(np.uint8)
    post = write(tmp_path / "post.tif", picture)
    write(tmp_path / "class.tif", np.zeros((1, 60, 60), np.uint8))

    def measure(source, role):
        if role == AS_AOI:
            area_m2 = check_inputs(RunConfig(name="e", post=(post,), aoi=str(source), block_px=256)).aoi.area
        elif role == AS_TRUTH:
            area_m2 = evaluate_product(tmp_path / "class.tif", truth=str(source), aoi=None, valid=None)["area"][
                "truth_m2"
            ]
        else:
            area_m2 = gpd.GeoSeries([read_area(source)], crs=4326).to_crs(EPSG).area.sum()
        return round(area_m2 / 1e4, 1)

    return measure


ROLES = pytest.mark.parametrize("role", [AS_AOI, AS_TRUTH, AS_AREA])


# --- layers ----------------------------------------------------------------------------------------------------------


@ROLES
def test_layers_several_with_polygons_are_asked_for(tmp_path, hectares, role):
    path = tmp_path / "project.gpkg"
    layer(ONE).to_file(path, layer="helipads")
    layer(TWO).to_file(path, layer="area of interest", mode="a")
    with pytest.raises(InputError, match=r"helipads \(1\), area of interest \(1\).*project.gpkg:helipads,area of"):
        hectares(path, role)
    assert hectares(f"{path}:area of interest", role) == HECTARES[0]
    assert hectares(f"{path}:helipads,area of interest", role) == HECTARES[1]


KML = """<?xml version="1.0"?><kml xmlns="http://www.opengis.net/kml/2.2"><Document>{}</Document></kml>"""
FOLDER = "<Folder><name>{}</name><Placemark>{}</Placemark></Folder>"


def in_kml(shape):
    (lonlat,) = gpd.GeoSeries([shape], crs=EPSG).to_crs(4326)
    ring = " ".join(f"{x},{y},0" for x, y in lonlat.exterior.coords)
    boundary = f"<outerBoundaryIs><LinearRing><coordinates>{ring}</coordinates></LinearRing></outerBoundaryIs>"
    return f"<Polygon>{boundary}</Polygon>"


@ROLES
def test_layers_of_a_kml_are_its_folders(tmp_path, hectares, role):
    path = tmp_path / "map.kml"
    pin = "<Point><coordinates>142,42.7,0</coordinates></Point>"
    path.write_text(KML.format(FOLDER.format("pins", pin) + FOLDER.format("scars, north", in_kml(ONE))))
    assert hectares(path, role) == HECTARES[0]
    path.write_text(KML.format(FOLDER.format("a", in_kml(ONE)) + FOLDER.format("scars, north", in_kml(TWO))))
    with pytest.raises(InputError, match="got 2 layers with polygons"):
        hectares(path, role)
    assert hectares(f"{path}:scars, north,a", role) == HECTARES[1]


@ROLES
def test_layers_that_are_tables_or_hold_no_polygon_are_passed_by(tmp_path, hectares, role):
    path = tmp_path / "styled.gpkg"
    pyogrio.write_dataframe(pd.DataFrame({"style": ["red"]}), path, layer="layer_styles", driver="GPKG")
    layer(Point(LEFT, TOP)).to_file(path, layer="photos", mode="a")
    layer().to_file(path, layer="drafts", mode="a", geometry_type="Polygon")
    layer(ONE).to_file(path, layer="scar", mode="a")
    assert hectares(path, role) == HECTARES[0]
    with pytest.raises(InputError, match="layer_styles is a table without geometry"):
        hectares(f"{path}:layer_styles", role)
    with pytest.raises(InputError, match="no layer scars; expected of "):
        hectares(f"{path}:scars", role)


@ROLES
def test_layers_none_with_polygons(tmp_path, hectares, role):
    path = tmp_path / "points.gpkg"
    layer(Point(LEFT, TOP)).to_file(path, layer="photos")
    pyogrio.write_dataframe(pd.DataFrame({"style": ["red"]}), path, layer="t", driver="GPKG", append=True)
    with pytest.raises(InputError, match=r"no layer holds polygons, got photos \(Point\), t \(a table\)"):
        hectares(path, role)


@ROLES
@pytest.mark.parametrize("name", ["2018-09-06T03:08.gpkg", "C:/map.gpkg", "a:b/c:d.gpkg"])
def test_layers_of_a_path_with_colons(tmp_path, hectares, role, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    layer(ONE).to_file(path, layer="scar:2018")
    layer(TWO).to_file(path, layer="deposit", mode="a")
    assert hectares(f"{path}:scar:2018", role) == HECTARES[0]
    assert hectares(f"{path}:deposit,scar:2018", role) == HECTARES[1]


# --- geometry --------------------------------------------------------------------------------------------------------

LINE, DOT = LineString([(LEFT, TOP), (LEFT + 9, TOP)]), Point(LEFT, TOP)
BOW_TIE = Polygon([(LEFT, TOP), (LEFT + 600, TOP - 400), (LEFT + 600, TOP), (LEFT, TOP - 400)])
SHAPES = {
    "collection": [ONE, GeometryCollection([TWO, LINE])],
    "collections in collections": [GeometryCollection([DOT, GeometryCollection([ONE, MultiPolygon([TWO])])])],
    "other kinds beside": [ONE, LINE, DOT, TWO, Polygon(), None],
    "three dimensions": [shapely.force_3d(ONE, 300.0), shapely.force_3d(TWO, 300.0)],
    "crosses itself": [BOW_TIE, at(0, 400, 600, 200)],
}


@ROLES
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=list(SHAPES))
def test_geometry_every_part_with_area_counts(tmp_path, hectares, role, shapes):
    layer(*shapes).to_file(tmp_path / "a.gpkg")
    assert hectares(tmp_path / "a.gpkg", role) == HECTARES[1]


def test_geometry_left_out_is_counted_and_said(tmp_path):
    layer(ONE, GeometryCollection([TWO, LINE]), DOT, DOT, None).to_file(tmp_path / "a.gpkg", layer="scar")
    told = read_outlines(str(tmp_path / "a.gpkg"), what="truth").sentence
    assert told == "truth: a.gpkg, layer scar, 2 polygons; left out: 1 LineString, 2 Point, 1 without geometry"


@ROLES
@pytest.mark.parametrize(
    "wkt",
    ["TIN(((0 0,1 0,1 1,0 0)))", "GEOMETRYCOLLECTION(CURVEPOLYGON(CIRCULARSTRING(0 0,4 0,4 4,0 4,0 0)))",
     "POLYGON((0 0,nan 0,1 1,0 0))"],
    ids=["tin", "curved in a collection", "not a number"],
)  # fmt: skip
def test_geometry_with_area_that_is_not_understood(tmp_path, hectares, role, wkt):
    (tmp_path / "a.csv").write_text(f'WKT,id\n"{wkt}",1\n"{layer(ONE, crs=4326).geometry[0].wkt}",2\n')
    with pytest.raises(InputError, match="1 of 2 features have a surface that is not understood.*ogr2ogr -nlt"):
        hectares(tmp_path / "a.csv", role)


def test_geometry_curved_and_measured_is_read(tmp_path, recwarn):
    circle = "CURVEPOLYGON(CIRCULARSTRING(0 0,4 0,4 4,0 4,0 0))"
    (tmp_path / "a.csv").write_text(f'WKT,id\n"{circle}",1\n"POLYGON ZM((9 0 1 2,10 0 1 2,10 1 1 2,9 0 1 2))",2\n')
    (tmp_path / "a.vrt").write_text(
        f'<OGRVRTDataSource><OGRVRTLayer name="a"><SrcDataSource>{tmp_path}/a.csv</SrcDataSource>'
        f"<LayerSRS>EPSG:{EPSG}</LayerSRS></OGRVRTLayer></OGRVRTDataSource>"
    )
    found = read_outlines(str(tmp_path / "a.vrt"), what="aoi")
    assert found.in_crs(EPSG).area.tolist() == pytest.approx([8 * np.pi, 0.5], rel=0.01)
    assert not found.frame.has_z.any()
    assert not recwarn.list


# --- text and CRS ----------------------------------------------------------------------------------------------------


@ROLES
@pytest.mark.parametrize("declared", ["UTF-8", "no such encoding", None])
def test_text_in_any_encoding_does_not_matter(tmp_path, hectares, role, declared):
    layer(ONE, 名称=["土砂崩れ"]).to_file(tmp_path / "a.shp", encoding="CP932")
    (tmp_path / "a.cpg").unlink()
    if declared:
        (tmp_path / "a.cpg").write_text(declared)
    assert hectares(tmp_path / "a.shp", role) == HECTARES[0]


def geojson(path, *shapes, **more):
    features = [{"type": "Feature", "properties": {}, "geometry": mapping(shape)} for shape in shapes]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features, **more}))
    return path


@ROLES
@pytest.mark.parametrize("swapped", [False, True], ids=["metres", "latitude first"])
def test_crs_that_the_coordinates_contradict(tmp_path, hectares, role, swapped):
    (lonlat,) = layer(ONE, crs=4326).geometry
    shape = shapely.transform(lonlat, lambda xy: xy[:, ::-1]) if swapped else ONE
    with pytest.raises(InputError, match="expected longitudes and latitudes.*ogr2ogr -a_srs"):
        hectares(geojson(tmp_path / "a.geojson", shape), role)


@ROLES
def test_crs_that_a_geojson_names_counts(tmp_path, hectares, role):
    crs = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{EPSG}"}}
    assert hectares(geojson(tmp_path / "a.geojson", ONE, crs=crs), role) == HECTARES[0]


@ROLES
@pytest.mark.parametrize("name", ["a.gpkg", "a.shp"])
@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_crs_that_is_missing(tmp_path, hectares, role, name):
    gpd.GeoDataFrame(geometry=[ONE]).to_file(tmp_path / name)
    with pytest.raises(InputError, match="has no CRS; assign one"):
        hectares(tmp_path / name, role)


@ROLES
def test_crs_that_is_nowhere_on_earth(tmp_path, hectares, role):
    local = 'LOCAL_CS["site grid",UNIT["metre",1]]'
    gpd.GeoDataFrame(geometry=[ONE], crs=local).to_file(tmp_path / "a.gpkg")
    with pytest.raises(InputError, match="nowhere on earth"):
        hectares(tmp_path / "a.gpkg", role)


def test_crs_of_another_zone_bends_long_sides(tmp_path):
    geojson(tmp_path / "wide.geojson", box(140, 42, 143, 44))
    (outline,) = read_outlines(str(tmp_path / "wide.geojson"), what="aoi").in_crs(EPSG).geometry
    middle = gpd.GeoSeries([Point(141.5, 42)], crs=4326).to_crs(EPSG)[0]
    assert outline.exterior.distance(middle) < 1.0


@pytest.mark.parametrize("shape", [box(-180, -90, 180, 90), box(-20, -80, 175, 85)], ids=["the world", "half of it"])
def test_crs_of_ground_far_beyond_the_zone(tmp_path, hectares, shape):
    assert hectares(geojson(tmp_path / "a.geojson", shape), AS_AOI) > 36


FIJI = {
    "leaps": box(-179.99, -17.01, 179.99, -17),
    "past 180": box(179.99, -17.01, 180.01, -17),
    "cut": MultiPolygon([box(179.99, -17.01, 180, -17), box(-180, -17.01, -179.99, -17)]),
}


@pytest.mark.parametrize("shape", FIJI.values(), ids=list(FIJI))
def test_crs_across_the_antimeridian(tmp_path, shape):
    path = geojson(tmp_path / "a.geojson", shape)
    placed = read_outlines(str(path), what="aoi").in_crs(32760)
    left, _, right, _ = placed.total_bounds
    assert right - left == pytest.approx(2130, rel=0.01)
    outline = read_area(path)
    assert outline.bounds[::2] == (-180, 180)
    assert gpd.GeoSeries([outline], crs=4326).to_crs(32760).area[0] == pytest.approx(placed.union_all().area, rel=1e-3)


# --- the same place --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["truth", "aoi"])
def test_evaluate_of_polygons_elsewhere(tmp_path, hectares, role):
    layer(ONE).to_file(tmp_path / "here.gpkg")
    layer(at(700, 0, 50, 50), at(0, 700, 50, 50)).to_file(tmp_path / "there.gpkg")  # their bounds overlap
    sources = {"truth": tmp_path / "here.gpkg", "aoi": None} | {role: tmp_path / "there.gpkg"}
    with pytest.raises(InputError, match=f"^{role} .*there.gpkg: lies outside of the product"):
        evaluate_product(tmp_path / "class.tif", truth=str(sources["truth"]), aoi=sources["aoi"], valid=None)


@pytest.mark.parametrize("key", ["labels", "labelled_area"])
def test_check_sources_of_labels_elsewhere(tmp_path, key):
    grid = snap_grid((LEFT, TOP - SIDE_M, LEFT + SIDE_M, TOP), epsg=EPSG, gsd_m=10.0, block_px=256)
    layer(ONE).to_file(tmp_path / "here.gpkg", layer="scar")
    layer(at(700, 0, 50, 50)).to_file(tmp_path / "there.gpkg")
    given = {"labels": str(tmp_path / "here.gpkg")}
    read = check_sources(RunConfig(name="e", post=("a.tif",), **given), grid=grid)
    assert read == ("labels: here.gpkg, layer scar, 1 polygon",)
    with pytest.raises(InputError, match="lies on observed ground of e .*of one place"):
        check_sources(RunConfig(name="e", post=("a.tif",), **given | {key: str(tmp_path / "there.gpkg")}), grid=grid)


def test_digest_is_of_the_polygons_read(tmp_path):
    layer(ONE, TWO, name=["a", "b"]).to_file(tmp_path / "a.shp")
    before = read_outlines(str(tmp_path / "a.shp"), what="labels").digest
    layer(ONE, TWO, name=["c", "d"]).to_file(tmp_path / "b.shp")
    assert read_outlines(str(tmp_path / "b.shp"), what="labels").digest == before
    (tmp_path / "a.prj").write_text(pyproj.CRS.from_epsg(32653).to_wkt("WKT1_ESRI"))
    assert read_outlines(str(tmp_path / "a.shp"), what="labels").digest != before


@ROLES
@pytest.mark.parametrize("form", ["zip", "folder", "gdb", "kmz"])
def test_layers_of_files_that_hold_files(tmp_path, hectares, role, form):
    folder = tmp_path / "map.gdb" if form == "gdb" else tmp_path / "map"
    if form == "gdb":
        pyogrio.write_dataframe(layer(ONE), folder, layer="scar", driver="OpenFileGDB", geometry_type="MultiPolygon",
                                promote_to_multi=True)  # fmt: skip
    elif form == "kmz":
        folder.mkdir()
        (folder / "doc.kml").write_text(KML.format(FOLDER.format("scar", in_kml(ONE))))
    else:
        folder.mkdir()
        layer(ONE).to_file(folder / "scar.shp")
    if form in ("zip", "kmz"):
        packed = shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
        folder = Path(packed).rename(tmp_path / f"map.{form}")
    assert hectares(folder, role) == HECTARES[0]
    assert hectares(f"{folder}:scar", role) == HECTARES[0]


@ROLES
def test_layers_of_a_gml_leave_nothing_beside_it(tmp_path, hectares, role):
    folder = tmp_path / "given"
    folder.mkdir()
    layer(ONE).to_file(folder / "scar.gml", driver="GML")
    (folder / "scar.xsd").unlink()  # what it says of the fields would be written down as scar.gfs
    assert hectares(folder / "scar.gml", role) == HECTARES[0]
    assert [path.name for path in folder.iterdir()] == ["scar.gml"]


# --- at an address ---------------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path):
    """The address of a folder on a loopback server, and the folder."""
    folder = tmp_path / "www"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()


@ROLES
def test_address_of_a_geojson_is_read(hectares, served, role):
    address, folder = served
    geojson(folder / "aoi.geojson", layer(ONE, crs=4326).geometry[0])
    assert hectares(f"{address}/aoi.geojson?token=secret", role) == HECTARES[0]
    told = read_outlines(f"{address}/aoi.geojson?token=secret", what="aoi").sentence
    assert told == "aoi: aoi.geojson, layer aoi, 1 polygon"


@ROLES
@pytest.mark.parametrize("form", ["leads to a file", "pipeline", "GeoPackage", "missing"])
def test_address_of_anything_else_is_refused(tmp_path, hectares, served, role, form):
    address, folder = served
    secret = tmp_path / "secret.gpkg"
    layer(ONE).to_file(secret, layer="a")
    if form == "leads to a file":
        (folder / "a.geojson").write_text(
            f'<OGRVRTDataSource><OGRVRTLayer name="a"><SrcDataSource>{secret}</SrcDataSource></OGRVRTLayer>'
            "</OGRVRTDataSource>"
        )
    elif form == "pipeline":
        (folder / "a.geojson").write_text(
            json.dumps({"type": "gdal_streamed_alg", "command_line": f"gdal vector pipeline read {secret}"})
        )
    elif form == "GeoPackage":
        shutil.copy(secret, folder / "a.geojson")
    with pytest.raises(InputError, match="cannot be read from there .*expected a GeoJSON"):
        hectares(f"{address}/a.geojson", role)
