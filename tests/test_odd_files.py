"""Odd files of others: each is read as it truly is, or refused for what is odd with the fix, before work."""

import shutil
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from catalog.checks import check_inputs
from catalog.config import RunConfig, data_dir
from catalog.items import BAND_INDEX
from catalog.outlines import read_outlines
from catalog.pixels import check_mask
from catalog.rasters import describe_raster
from catalog.scenes import describe_dem, read_elevation, read_epoch
from catalog.schema import InputError

pytestmark = pytest.mark.real
FOLDER = data_dir() / "odd_files"
FILES = sorted(path.name for path in FOLDER.glob("*") if path.name != "README.md") if FOLDER.is_dir() else []

RGB, RGBN = {"red": 1, "green": 2, "blue": 3}, {"red": 1, "green": 2, "blue": 3, "nir": 4}


@dataclass(frozen=True)
class Imagery:
    """How imagery is read: grid, 1-based bands, and its pixels on its own grid."""

    epsg: int
    gsd_m: float
    bands: dict[str, int]
    seen: int
    dn: tuple[int, int]
    """Least and largest of the observed pixels."""


@dataclass(frozen=True)
class Heights:
    """How a DEM is read: pixel on the ground, cells that hold something, and their range."""

    gsd_m: float
    seen: int
    metres: tuple[float, float]


@dataclass(frozen=True)
class Ground:
    """How an area of interest is read."""

    km2: float


MISSING = "band\\(s\\) {} missing: got {} band\\(s\\) .*gdalbuildvrt -separate"
INSIDE = "holds netcdf:.*:{}.*; expected a raster with bands.*gdal_translate with one of these names"
DESCRIBES = "cannot be read as a raster.*describe imagery and holds none; give the raster itself"
BY_POINTS = "has ground control points and no {}.*gdalwarp -t_srs"
BY_MODEL = r"has a sensor model \(RPC\) and no {}.*gdalwarp -rpc -t_srs"
NO_CRS = "has no CRS;.*gdal_edit -a_srs"
ELSEWHERE = "is not of the Earth.*gdal_edit -a_srs"
UDM2 = "is a usable data mask \\(UDM2\\), bands \\['clear', 'snow'.*; expected imagery; give the image"

TABLE = [
    # imagery
    ("gw_rgbn_20160101.tif", "rgbnir8", Imagery(32618, 5.0, RGBN, 207_544, (0, 255))),
    ("gw_rgbn_20160401.tif", "rgbnir8", Imagery(32618, 5.0, RGBN, 207_544, (0, 255))),
    ("gw_rgbn_20160401.tif", "rgb8", Imagery(32618, 5.0, RGB, 207_544, (23, 255))),
    ("rio_RGB.byte.tif", "rgb8", Imagery(32618, 300.038, RGB, 368_275, (0, 255))),
    ("rio_alpha.tif", "rgb8", Imagery(32760, 3.08, RGB, 23_188, (5, 255))),
    ("rt_cog_rgb_mask.tif", "rgb8", Imagery(32613, 0.15, RGB, 86_117, (1, 254))),
    ("rt_cog_rgba.tif", "rgb8", Imagery(32613, 0.15, RGB, 78_812, (0, 254))),
    ("rio_all-nodata.tif", "planetscope-4b", "holds no valid pixel; expected imagery"),
    ("rt_cog_cmap.tif", "rgb8", "indices of a colour table.*gdal_translate -expand rgb"),
    ("planet_20151119_025740_0c74_3B_udm2_clip.tif", "rgb8", UDM2),
    ("planet_20151119_025740_0c74_3B_udm2_clip.tif", "planetscope-4b", UDM2),
    # one band of several
    ("gw_LC08_L1TP_224077_20200518_20200518_01_RT_B2_60m.TIF", "landsat-c2-l2", MISSING.format("green, red, nir", 1)),
    ("gw_LE07_L2SP_225078_20110306_02_T1_B1.tif", "landsat-c2-l2", MISSING.format("green, red, nir", 1)),
    ("gw_LE07_L2SP_225078_20110306_02_T1_SZA.tif", "landsat-c2-l2", MISSING.format("green, red, nir", 1)),
    ("rt_cog_tags.tif", "landsat-c2-l2", r"missing: got 1 band\(s\) \['Green'\].*gdalbuildvrt -separate"),
    ("rt_cog_scale.tif", "sentinel2-l2a", r"band\(s\) red, nir missing: got 2 band\(s\)"),
    ("rt_scene_band1.tif", "sentinel2-l2a", MISSING.format("green, red, nir", 1) + ".*or give the folder"),
    ("rt_scene_band2.tif", "sentinel2-l2a", MISSING.format("green, red, nir", 1) + ".*or give the folder"),
    ("rt_nocog.tif", "rgb8", MISSING.format("blue, green", 1)),
    ("rx_MODIS_ARRAY.nc", "landsat-c2-l2", MISSING.format("green, red, nir", 1)),
    # several rasters inside
    ("gw_L3B_S2B_00390821JXN0L2A_20210319_20220730_C01.nc", "sentinel2-l2a", INSIDE.format("swir2")),
    ("openeo_openEO.nc", "sentinel2-l2a", INSIDE.format("B04")),
    ("rx_PLANET_SCOPE_3D.nc", "planetscope-4b", INSIDE.format("green")),
    ("rx_test_find_crs.nc", "planetscope-4b", INSIDE.format("green")),
    ("rx_veris.nc", "dem", INSIDE.format("Slope")),
    # nowhere, or not placed by rows and columns
    ("rt_cog_gcps.tif", "rgb8", BY_POINTS.format("CRS")),
    ("rx_cint16.tif", "rgb8", BY_POINTS.format("CRS")),
    ("rio_RGB.byte.gcp.vrt", "rgb8", BY_POINTS.format("geotransform")),
    ("rio_RGB.byte.rpc.vrt", "rgb8", BY_MODEL.format("CRS")),
    ("rx_test_rpcs.tif", "planetscope-4b", BY_MODEL.format("geotransform")),
    ("rx_test_rpcs_ext_file.tif", "planetscope-4b", BY_MODEL.format("CRS")),
    ("rx_unicode.nc", "dem", "has no geotransform;.*gdal_edit -a_ullr"),
    ("rio_float_nan.tif", "dem", NO_CRS),
    ("rt_dataset_2d.nc", "dem", NO_CRS),
    ("planet_difference_change.tif", "mask", NO_CRS),
    ("rt_cog_hirise_mars.tif", "rgb8", ELSEWHERE),
    ("rt_cog_nonearth.tif", "rgb8", ELSEWHERE),
    ("rx_nonstandard_dim.nc", "planetscope-4b", "EPSG:4326 is geographic; expected metres; reproject"),
    # elevation
    ("rt_cog_int16.tif", "dem", Heights(100.011, 3_674_467, (69, 201))),
    ("rio_float_raster_with_nodata.tif", "dem", Heights(494.0, 98, (0, 0.25))),
    ("rio_test_esri_wkt.tif", "dem", Heights(10.0, 4, (1, 4))),
    ("rx_MODIS_ARRAY.nc", "dem", Heights(231.656, 39_988, (79, 1695))),
    ("gw_LE07_L2SP_225078_20110306_02_T1_B1.tif", "dem", Heights(110.0, 14_898, (27.3, 852.3))),
    ("rx_small_dem_3m_merged.tif", "dem", "elevations from 29332 to 31000 m.*gdal_translate -a_scale 0.01"),
    ("rx_nonstandard_dim.nc", "dem", "unit `kelvin`; expected metres"),
    ("rt_cog_tags.tif", "dem", r"called `Green`, which looks like imagery \(green\); expected elevations"),
    ("gw_rgbn_20160101.tif", "dem", r"got 4 band\(s\) of uint8, which looks like a picture; expected a DEM"),
    ("rio_N10W110.hgt.zip", "dem", "a tile of SRTM is known by its name; call it as it came"),
    # masks
    ("planet_20151119_025740_0c74_3B_udm2_clip.tif", "mask", "looks like a usable data mask: got 8 band"),
    # what comes with imagery
    ("gw_LC08_L2SP_224078_20200127_02_T1_LC08_L2SP_224078_20200127_20200823_02_T1_MTL.txt", "landsat-c2-l2", DESCRIBES),
    ("gw_LE07_L2SP_225078_20110306_02_T1_B1.tif.aux.xml", "landsat-c2-l2", DESCRIBES),
    ("planet_20151119_025740_0c74_3B_AnalyticMS_metadata_clip.xml", "planetscope-4b", DESCRIBES),
    ("planet_20151119_025740_0c74_3B_AnalyticMS_metadata_clip.xml", "aoi", "no layer holds polygons, got Polygon"),
    ("planet_train_scene_cropped_metadata.xml", "planetscope-4b", DESCRIBES),
    ("rx_test_rpcs_ext_file.rpb", "planetscope-4b", DESCRIBES),
    ("planet_20151119_025740_0c74_metadata.json", "planetscope-4b", "cannot be read as STAC items.*; expected a STAC"),
    ("planet_20151119_025740_0c74_metadata.json", "mask", DESCRIBES),
    ("planet_20151119_025740_0c74_metadata.json", "aoi", Ground(124.5)),
]


def own_geobox(path):
    info = describe_raster(path, allow_geographic=True)
    return GeoBox(info.shape, Affine(*info.transform), info.crs_wkt)


def imagery_of(path, sensor_name):
    inputs = check_inputs(RunConfig(name="odd", post=(str(path),), sensor=sensor_name))
    (scene,) = read_epoch(inputs.post, own_geobox(path))
    values = np.stack([scene[band] for band in inputs.post.bands]) * 255
    (item,) = inputs.post.items
    return Imagery(
        epsg=inputs.grid.epsg,
        gsd_m=inputs.grid.gsd_m,
        bands={band: item["assets"][band][BAND_INDEX] for band in inputs.post.bands},
        seen=int(np.isfinite(values).all(axis=0).sum()),
        dn=(round(float(np.nanmin(values))), round(float(np.nanmax(values)))),
    )


def heights_of(path):
    dem = describe_dem(path, allow_geographic=True)
    metres = read_elevation(dem, own_geobox(path)).to_numpy()
    limits = (round(float(limit(metres)), 2) for limit in (np.nanmin, np.nanmax))
    return Heights(dem.gsd_m, int(np.isfinite(metres).sum()), tuple(limits))


def read_as(role, path):
    """What a file is read as in a role; for a mask nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of GDAL's reading of headers
        if role == "dem":
            return heights_of(path)
        if role == "mask":
            return check_mask(describe_raster(path, allow_geographic=True), "--mask")
        if role == "aoi":
            frame = read_outlines(str(path), what="area of interest").in_crs(32646)
            return Ground(round(float(frame.area.sum()) / 1e6, 1))
        return imagery_of(path, role)


def refusal_of(role, path):
    """What a file is refused with; empty where it is read. Anything but our own error ends the test."""
    try:
        read_as(role, path)
    except InputError as error:
        return str(error)
    return ""


def test_table_names_every_odd_file():
    assert sorted({name for name, _, _ in TABLE}) == FILES


@pytest.mark.parametrize(("name", "role", "expected"), TABLE, ids=lambda value: value if type(value) is str else "")
def test_odd_file_is_read_as_it_is_or_refused_for_what_is_odd(tmp_path, name, role, expected):
    path = FOLDER / name
    if role == "aoi":
        path = shutil.copy(path, tmp_path / name)
    if not isinstance(expected, str):
        assert read_as(role, path) == expected
        return
    with pytest.raises(InputError, match=expected) as refusal:
        read_as(role, path)
    assert name in str(refusal.value)


@pytest.mark.parametrize("name", FILES)
def test_odd_file_is_read_or_refused_with_the_fix_in_every_role(tmp_path, name):
    path = shutil.copy(FOLDER / name, tmp_path / name)
    for text in filter(None, (refusal_of(role, path) for role in ("rgb8", "planetscope-4b", "dem", "mask", "aoi"))):
        assert name in text
        assert ";" in text  # what, got, expected; fix
    assert [found.name for found in tmp_path.iterdir()] == [name]  # nothing is left beside it


# --- the fixes that the messages name -------------------------------------------------------------------------------


def test_odd_tile_of_srtm_is_read_under_its_own_name(tmp_path):
    tile = shutil.copy(FOLDER / "rio_N10W110.hgt.zip", tmp_path / "N10W110.hgt.zip")
    assert read_as("dem", tile) == Heights(91.2, 1201**2, (0, 9))


def test_odd_dem_in_centimetres_is_read_with_its_scale(tmp_path):
    dem = shutil.copy(FOLDER / "rx_small_dem_3m_merged.tif", tmp_path / "dem.tif")
    with rasterio.open(dem, "r+") as dataset:
        dataset.scales = (0.01,)
    assert read_as("dem", dem) == Heights(3.0, 88_511, (293.32, 310.0))


def test_odd_usable_data_mask_is_read_beside_its_image(tmp_path):
    usable = FOLDER / "planet_20151119_025740_0c74_3B_udm2_clip.tif"
    shutil.copy(usable, tmp_path / usable.name)
    with rasterio.open(usable) as dataset:
        profile = dataset.profile | {"count": 4, "dtype": "uint16", "nodata": 0, "photometric": "minisblack"}
    image = tmp_path / usable.name.replace("udm2", "AnalyticMS_SR")
    with rasterio.open(image, "w", **profile) as out:
        out.write(np.full((4, *out.shape), 3000, np.uint16))
    inputs = check_inputs(RunConfig(name="odd", post=(str(image),), sensor="planetscope-4b"))
    (scene,) = read_epoch(inputs.post, own_geobox(image))
    classes, counts = np.unique(scene.udm2, return_counts=True)
    assert dict(zip(classes.tolist(), counts.tolist(), strict=True)) == {0: 37_381, 1: 2_084_145, 4: 11_930}
