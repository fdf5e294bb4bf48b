import json
import pickle
from datetime import UTC, datetime

import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from shapely.geometry import shape

from catalog.config import DEFAULT_BLOCK_PX, data_dir
from catalog.items import local_item
from catalog.rasters import describe_raster
from catalog.scenes import Epoch, describe_dem, read_elevation, read_epoch
from catalog.schema import InputError, Quality
from catalog.sensors import SENSORS, sensor
from tasks.preprocess import GROW_HALO_PX, quality

LEFT, TOP = 583_200.0, 4_737_000.0


def write(path, data, *, gsd=10.0, left=LEFT, top=TOP, epsg=32654, nodata=None, names=(), tags=None, transform=None):
    data = np.atleast_3d(data) if data.ndim == 3 else data[None]
    profile = {"driver": "GTiff", "count": len(data), "height": data.shape[1], "width": data.shape[2]}
    profile |= {"dtype": data.dtype, "nodata": nodata, "transform": transform or Affine(gsd, 0, left, 0, -gsd, top)}
    with rasterio.open(path, "w", **profile, crs=f"EPSG:{epsg}" if epsg else None) as out:
        out.write(data)
        out.update_tags(**(tags or {}))
        for index, name in enumerate(names, 1):
            out.set_band_description(index, name)
    return str(path)


def picture(*shape, seed=0):
    return np.random.default_rng(seed).integers(20, 200, (3, *shape), dtype=np.uint8)


def epoch_of(*paths, name="rgb8", masks=(), role="post"):
    items = tuple(local_item(path, sensor(name)).to_dict(transform_hrefs=False) for path in paths)
    return Epoch(role, name, items, tuple(masks))


def box(rows, cols, *, gsd=10.0, left=LEFT, top=TOP, epsg=32654):
    return GeoBox((rows, cols), Affine(gsd, 0, left, 0, -gsd, top), f"EPSG:{epsg}")


def cut(geobox, rows, cols=slice(None)):
    (y0, y1, _), (x0, x1, _) = (part.indices(size) for part, size in zip((rows, cols), geobox.shape, strict=True))
    step, left, top = geobox.resolution.x, geobox.transform.c, geobox.transform.f
    return GeoBox((y1 - y0, x1 - x0), Affine(step, 0, left + x0 * step, 0, -step, top - y0 * step), geobox.crs)


def test_read_epoch_is_the_identity_on_an_aligned_grid(tmp_path):
    data = picture(30, 40)
    scene = read_epoch(epoch_of(write(tmp_path / "a.tif", data)), box(30, 40))[0].compute()
    np.testing.assert_array_equal(scene["red"], (data[0] / 255).astype(np.float32))


def test_read_epoch_is_lazy(tmp_path):
    path = write(tmp_path / "a.tif", picture(30, 40))
    epoch = epoch_of(path)
    scene = read_epoch(epoch, box(30, 40))[0]
    (tmp_path / "a.tif").unlink()
    with pytest.raises(InputError, match="does not exist"):
        scene["red"].compute()


@pytest.mark.parametrize(
    "geobox",
    [
        box(24, 30),
        box(24, 30, left=LEFT + 3.7, top=TOP + 41.3),
        box(61, 83, gsd=3.3),
        box(9, 12, gsd=31.7),
        box(40, 40, gsd=11.3, epsg=32653, left=1074158.0, top=4760456.0),
    ],
    ids=["aligned", "shifted", "finer", "coarser", "reprojected"],
)
def test_read_epoch_in_halves_equals_the_whole(tmp_path, geobox):
    epoch = epoch_of(write(tmp_path / "a.tif", picture(40, 50)))
    whole = read_epoch(epoch, geobox)[0].compute()
    assert np.isfinite(whole["red"]).any()
    row, col = geobox.shape[0] // 3, geobox.shape[1] // 2
    for rows in (slice(0, row), slice(row, None)):
        for cols in (slice(0, col), slice(col, None)):
            part = read_epoch(epoch, cut(geobox, rows, cols))[0].compute()
            for band in epoch.bands:
                np.testing.assert_array_equal(part[band], whole[band][rows, cols])


@pytest.mark.parametrize(("block_px", "pieces"), [(512, 1), (DEFAULT_BLOCK_PX, 1), (4096, 4)])
def test_read_epoch_of_a_block_with_its_halo_opens_each_file_once_a_piece(tmp_path, block_px, pieces):
    side = block_px + 2 * GROW_HALO_PX
    mask = write(tmp_path / "m.tif", np.zeros((1, 30, 40), np.uint8))
    epoch = epoch_of(write(tmp_path / "a.tif", picture(30, 40)), masks=(mask,))
    for layer in read_epoch(epoch, box(side, side))[0].data_vars.values():
        assert layer.data.npartitions == pieces


def test_read_epoch_bilinear_reproduces_a_plane(tmp_path):
    y, x = np.mgrid[0:30, 0:30]
    plane = np.broadcast_to((40 + 2 * x + 3 * y).astype(np.uint8), (3, 30, 30))
    scene = read_epoch(epoch_of(write(tmp_path / "a.tif", plane)), box(20, 20, left=LEFT + 12.5, top=TOP - 10))[0]
    expected = (40 + 2 * (x[:20, :20] + 1.25) + 3 * (y[:20, :20] + 1)) / 255
    np.testing.assert_allclose(scene["red"].compute(), expected, rtol=1e-6)


def test_read_epoch_coarser_is_the_mean(tmp_path):
    data = picture(40, 40)
    scene = read_epoch(epoch_of(write(tmp_path / "a.tif", data)), box(10, 10, gsd=40.0))[0]
    expected = data[0].reshape(10, 4, 10, 4).mean(axis=(1, 3)) / 255
    np.testing.assert_allclose(scene["red"].compute(), expected, rtol=1e-5)


def test_read_epoch_outside_the_footprint_is_nodata(tmp_path):
    scene = read_epoch(epoch_of(write(tmp_path / "a.tif", picture(10, 10))), box(14, 12, top=TOP + 20))[0].compute()
    seen = np.isfinite(scene["blue"])
    assert seen[2:12, :10].all()
    assert seen.sum() == 100


@pytest.mark.parametrize("value", [0, 255])
def test_read_epoch_picture_all_black_or_white_is_nodata(tmp_path, value):
    data = picture(10, 10)
    data[:, 2, 3], data[0, 5, 5] = value, value
    scene = read_epoch(epoch_of(write(tmp_path / "a.tif", data)), box(10, 10))[0].compute()
    assert np.isnan(scene["red"][2, 3])
    assert np.isfinite(scene["red"]).sum() == 99


def test_read_epoch_alpha_zero_is_nodata(tmp_path):
    data = np.concatenate([picture(10, 10), np.full((1, 10, 10), 255, np.uint8)])
    data[3, 4, 4] = 0
    with rasterio.open(write(tmp_path / "a.tif", data), "r+") as file:
        file.colorinterp = [rasterio.enums.ColorInterp[c] for c in ("red", "green", "blue", "alpha")]
    scene = read_epoch(epoch_of(tmp_path / "a.tif"), box(10, 10))[0].compute()
    assert np.argwhere(np.isnan(scene["red"].data)).tolist() == [[4, 4]]


def test_read_epoch_fourth_band_that_names_itself_is_no_alpha(tmp_path):
    data = np.concatenate([picture(10, 10), np.full((1, 10, 10), 80, np.uint8)])
    data[3, 4, 4] = 0  # water: black in the near infrared
    path = write(tmp_path / "a.tif", data, names=("red", "green", "blue", "nir"))
    with rasterio.open(path) as file:
        assert file.colorinterp[3] == rasterio.enums.ColorInterp.alpha
    scene = read_epoch(epoch_of(path, name="rgbnir8"), box(10, 10))[0].compute()
    assert float(scene["nir"][4, 4]) == 0.0
    assert np.isfinite(scene["red"]).all()


def test_local_item_unnamed_fourth_band_is_said_to_be_transparency(tmp_path):
    data = np.concatenate([picture(10, 10), picture(10, 10)[:1]])
    with pytest.raises(InputError, match="band 4 is marked as transparency; .* name the bands"):
        local_item(write(tmp_path / "a.tif", data), sensor("rgbnir8"))


def test_read_epoch_mask_files_are_united(tmp_path):
    drawn = np.zeros((2, 10, 10), np.uint8)
    drawn[0, 1, 1], drawn[1, 8, 8] = 1, 7
    masks = [write(tmp_path / f"m{i}.tif", mask, nodata=0) for i, mask in enumerate(drawn)]
    scene = read_epoch(epoch_of(write(tmp_path / "a.tif", picture(10, 10)), masks=masks), box(12, 12))[0].compute()
    assert scene["mask"].dtype == np.uint8
    assert np.argwhere(scene["mask"].data).tolist() == [[1, 1], [8, 8]]


@pytest.mark.parametrize("entry", SENSORS.values(), ids=SENSORS)
def test_read_epoch_of_each_sensor_is_reflectance(tmp_path, entry):
    """Every sensor of the registry: a file made by its scale and offset reads back as what it was made of."""
    bands = sorted(entry.bands, key=lambda band: entry.bands[band].index)
    wanted = {band: np.linspace(0.02, 0.25, 100).reshape(10, 10) + 0.01 * i for i, band in enumerate(bands)}
    dn = [(wanted[band] - entry.bands[band].offset) / entry.bands[band].scale for band in bands]
    data = np.round(dn).astype(entry.dtype)
    if entry.qa_source and entry.qa_source.index:
        clear = {"scl": 4, "qa_pixel": 1 << 6}[entry.qa_source.variable]
        data = np.concatenate([data, np.full((1, 10, 10), clear, entry.dtype)])
    names = bands if entry.name == "rgbnir8" else ()  # an unnamed fourth 8-bit band is transparency to GDAL
    epoch = epoch_of(write(tmp_path / "a.tif", data, names=names), name=entry.name)
    scene = read_epoch(epoch, box(10, 10))[0].compute()
    assert epoch.bands == tuple(entry.bands)
    for band in bands:
        np.testing.assert_allclose(scene[band], wanted[band], atol=0.51 * entry.bands[band].scale)
    rule = entry.qa if entry.qa_source and entry.qa_source.variable in scene else "none"
    assert (quality(scene, qa=rule).data == Quality.CLEAR).all()


def sentinel(path, *, count=7, tags=None):
    data = np.random.default_rng(1).integers(1200, 4000, (count, 10, 10)).astype(np.uint16)
    data[6:] = 4
    return write(path, data, tags=tags), data


def test_read_epoch_sentinel_offset_of_the_baseline_tag(tmp_path):
    path, data = sentinel(tmp_path / "a.tif", tags={"PROCESSING_BASELINE": "04.00"})
    scene = read_epoch(epoch_of(path, name="sentinel2-l2a"), box(10, 10))[0].compute()
    np.testing.assert_allclose(scene["swir2"], data[5] / 10_000 - 0.1, atol=1e-6)


def test_read_epoch_quality_band_keeps_its_classes(tmp_path):
    path, _ = sentinel(tmp_path / "a.tif")
    scene = read_epoch(epoch_of(path, name="sentinel2-l2a"), box(11, 10))[0].compute()
    assert scene["scl"].dtype == np.uint8
    assert (scene["scl"][:10] == 4).all()
    assert (scene["scl"][10] == 0).all()


def test_read_epoch_below_zero_reflectance_is_nodata(tmp_path):
    path, data = sentinel(tmp_path / "a.tif", tags={"PROCESSING_BASELINE": "04.00"})
    data[3, 2, 2] = 900
    write(path, data, tags={"PROCESSING_BASELINE": "04.00"})
    scene = read_epoch(epoch_of(path, name="sentinel2-l2a"), box(10, 10))[0].compute()
    assert np.isnan(scene["nir"][2, 2])


def test_read_epoch_finds_bands_by_name(tmp_path):
    data = np.stack([np.full((5, 5), value, np.uint16) for value in (4000, 3000, 2000, 1000)])
    path = write(tmp_path / "a.tif", data, names=("B08", "B04", "B03", "B02"))
    epoch = epoch_of(path, name="sentinel2-l2a")
    scene = read_epoch(epoch, box(5, 5))[0].compute()
    assert epoch.bands == ("blue", "green", "red", "nir")
    assert epoch.qa_rules == ("none",)
    assert [round(float(scene[band][0, 0]), 4) for band in epoch.bands] == [0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize("ending", ["", "_harmonized", "_clip", "_harmonized_clip"])
def test_read_epoch_planet_classes_are_folded_from_the_file_beside(tmp_path, ending):
    bands = np.full((4, 5, 5), 1500, np.uint16)
    usable = np.zeros((8, 5, 5), np.uint8)
    usable[0], usable[0, 1, 1], usable[5, 1, 1] = 1, 0, 1
    path = write(tmp_path / f"s_3B_AnalyticMS_SR{ending}.tif", bands)
    write(tmp_path / f"s_3B_udm2{ending.removeprefix('_harmonized')}.tif", usable)
    epoch = epoch_of(path, name="planetscope-4b")
    scene = read_epoch(epoch, box(6, 5))[0].compute()
    assert epoch.qa_rules == ("udm2",)
    assert scene["udm2"][:, 1].data.tolist() == [1, 6, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("image", "usable"),
    [
        ("s_3B_AnalyticMS_SR_8b_clip.tif", "s_3B_udm2_clip.tif"),
        ("s_3B_AnalyticMS_SR_8b_harmonized_clip.tif", "s_3B_udm2_clip.tif"),
        ("composite.tif", "composite_udm2.tif"),
    ],
)
def test_local_item_finds_the_usable_data_mask_beside_it(tmp_path, image, usable):
    path = write(tmp_path / image, np.full((8 if "8b" in image else 4, 5, 5), 1500, np.uint16))
    write(tmp_path / usable, np.ones((8, 5, 5), np.uint8))
    assert local_item(path, sensor("planetscope-4b")).assets["udm2"].href.endswith(usable)


def test_epoch_quality_is_decided_by_scene(tmp_path):
    (with_band, _), (without, _) = (sentinel(tmp_path / f"{n}.tif", count=n) for n in (7, 6))
    epoch = epoch_of(with_band, without, name="sentinel2-l2a")
    assert epoch.qa_rules == ("scl", "none")
    scenes = read_epoch(epoch, box(10, 10))
    assert ["scl" in scene for scene in scenes] == [True, False]


def test_local_item_missing_band(tmp_path):
    with pytest.raises(InputError, match=r"band\(s\) nir missing: got 3 band"):
        local_item(write(tmp_path / "a.tif", picture(5, 5)), sensor("rgbnir8"))


def test_local_item_time_of_the_tag(tmp_path):
    path = write(tmp_path / "a.tif", picture(5, 5), tags={"TIFFTAG_DATETIME": "2018:09:11 01:23:45"})
    assert local_item(path, sensor("rgb8")).datetime == datetime(2018, 9, 11, 1, 23, 45, tzinfo=UTC)


def test_epoch_survives_pickle_and_json(tmp_path):
    epoch = epoch_of(write(tmp_path / "a.tif", picture(5, 5)))
    assert pickle.loads(pickle.dumps(epoch)) == epoch
    assert json.loads(json.dumps(epoch.as_dict()))["role"] == "post"


def test_epoch_fingerprint_does_not_depend_on_the_place(tmp_path):
    (tmp_path / "b").mkdir()
    first, second = (write(tmp_path / name, picture(5, 5)) for name in ("a.tif", "b/c.tif"))
    assert epoch_of(first).fingerprint() == epoch_of(second).fingerprint()


def test_epoch_fingerprint_follows_the_pixels(tmp_path):
    first, second = (write(tmp_path / f"{seed}.tif", picture(5, 5, seed=seed)) for seed in (1, 2))
    assert epoch_of(first).fingerprint() != epoch_of(second).fingerprint()


def test_epoch_fingerprint_of_stac_follows_updated():
    made = [Epoch("post", "rgb8", ({"id": "a", "properties": {"updated": u}, "assets": {}},)) for u in ("1", "2")]
    assert made[0].fingerprint() != made[1].fingerprint()


def test_describe_raster_missing_file(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        describe_raster(tmp_path / "no.tif")


def test_describe_raster_no_raster(tmp_path):
    (tmp_path / "a.tif").write_text("hello")
    with pytest.raises(InputError, match="cannot be read as a raster"):
        describe_raster(tmp_path / "a.tif")


def test_describe_raster_no_crs(tmp_path):
    with pytest.raises(InputError, match="has no CRS"):
        describe_raster(write(tmp_path / "a.tif", picture(5, 5), epsg=None))


def test_describe_raster_geographic(tmp_path):
    with pytest.raises(InputError, match="EPSG:4326 is geographic"):
        describe_raster(write(tmp_path / "a.tif", picture(5, 5), epsg=4326, gsd=1e-4, left=141.0, top=42.0))


def test_describe_raster_rotated(tmp_path):
    turned = Affine(10, 1, LEFT, 1, -10, TOP)
    with pytest.raises(InputError, match="is rotated"):
        describe_raster(write(tmp_path / "a.tif", picture(5, 5), transform=turned))


def test_local_item_date_tag_that_cannot_be_read(tmp_path):
    path = write(tmp_path / "a.tif", picture(5, 5), tags={"TIFFTAG_DATETIME": "soon"})
    with pytest.raises(InputError, match="date tag is `soon`"):
        local_item(path, sensor("rgb8"))
    told = datetime(2018, 9, 11, tzinfo=UTC)
    assert local_item(path, sensor("rgb8"), time_utc=told).datetime == told


def test_local_item_date_of_a_program_is_not_when_it_was_taken(tmp_path):
    tags = {"TIFFTAG_DATETIME": "2021:02:03 10:00:00", "TIFFTAG_SOFTWARE": "Adobe Photoshop 22.1 (Windows)"}
    path = write(tmp_path / "a.tif", picture(5, 5), tags=tags)
    assert local_item(path, sensor("rgb8")).datetime is None


@pytest.mark.parametrize(("a", "e"), [(-10, -10), (10, 10), (-10, 10)], ids=["west", "south-up", "both"])
def test_describe_raster_that_runs_otherwise(tmp_path, a, e):
    with pytest.raises(InputError, match="west-running; .* run gdalwarp"):
        describe_raster(write(tmp_path / "a.tif", picture(5, 5), transform=Affine(a, 0, LEFT, 0, e, TOP)))


def test_describe_raster_of_a_file_with_several_inside_names_them(tmp_path):
    layers = xr.Dataset({name: (("y", "x"), np.ones((4, 4), np.float32)) for name in ("red", "green")})
    layers.to_netcdf(tmp_path / "a.nc")
    with pytest.raises(InputError, match=r"holds .*a.nc.*:red.*gdal_translate"):
        describe_raster(tmp_path / "a.nc")


def test_describe_raster_of_another_world(tmp_path):
    moon = "+proj=eqc +R=1737400 +units=m +no_defs"
    with rasterio.open(write(tmp_path / "a.tif", picture(5, 5)), "r+") as file:
        file.crs = rasterio.CRS.from_proj4(moon)
    with pytest.raises(InputError, match="is not of the Earth"):
        describe_raster(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("crs", "x", "y", "step", "ground"),
    [
        ("EPSG:3857", 1_113_194.9, 8_741_545.0, 6.287, 3.0),
        ("EPSG:3857", 15_000_000.0, 0.0, 10.0, 10.0),
        ("EPSG:3031", 0.0, 4_500_000.0, 10.0, 9.08),
        ("EPSG:32654", LEFT, TOP, 10.0, 10.0),
        ("EPSG:32654", 166_000.0, 1000.0, 10.0, 10.0),
        ("EPSG:4326", 142.0, 60.0, 1e-4, 5.58),
    ],
    ids=["mercator-61n", "mercator-equator", "polar-50s", "utm", "utm-edge", "degrees"],
)
def test_describe_raster_pixel_is_measured_on_the_ground(tmp_path, crs, x, y, step, ground):
    path = write(tmp_path / "a.tif", picture(6, 6), epsg=None, transform=Affine(step, 0, x, 0, -step, y))
    with rasterio.open(path, "r+") as file:
        file.crs = rasterio.CRS.from_string(crs)
    assert describe_raster(path, allow_geographic=True).gsd_m == pytest.approx(ground, rel=2e-3)


def test_local_item_across_the_antimeridian_covers_its_own_ground(tmp_path):
    x, y = Transformer.from_crs(4326, 3460, always_xy=True).transform(180.0, -16.85)
    item = local_item(write(tmp_path / "a.tif", picture(60, 60), epsg=3460, left=x - 300, top=y + 300), sensor("rgb8"))
    west, _, east, _ = item.bbox
    assert 179.99 < west < 180
    assert -180 < east < -179.99
    assert shape(item.geometry).area < 1e-4


def ground(*shape):
    return np.full(shape, 1500, np.int16) + np.arange(shape[1], dtype=np.int16)


def test_read_elevation_drops_zero_fill_and_its_ramp(tmp_path):
    dem = ground(40, 40)
    dem[:10], dem[10] = 0, 700
    source = describe_dem(write(tmp_path / "dem.tif", dem, nodata=-9999))
    elevation = read_elevation(source, box(40, 40)).compute()
    assert source.zero_is_nodata
    kept = (slice(12, 38), slice(2, 38))  # two cells off the fill, and off the file's border
    np.testing.assert_array_equal(elevation[kept], dem[kept])
    assert np.isfinite(elevation).sum() == 26 * 36


def test_describe_dem_keeps_a_coast_at_zero(tmp_path):
    dem = np.tile(np.repeat(np.arange(20, dtype=np.int16) * 10, 2), (40, 1))
    assert not describe_dem(write(tmp_path / "dem.tif", dem)).zero_is_nodata


def test_read_elevation_in_halves_equals_the_whole(tmp_path):
    dem = ground(40, 40) + np.random.default_rng(0).integers(0, 300, (40, 40)).astype(np.int16)
    dem[:10], dem[20:24, 20:24] = 0, -9999
    source, geobox = describe_dem(write(tmp_path / "dem.tif", dem, nodata=-9999)), box(60, 60, gsd=7.1)
    whole = read_elevation(source, geobox).compute()
    halves = [read_elevation(source, cut(geobox, rows)).compute() for rows in (slice(0, 23), slice(23, None))]
    np.testing.assert_array_equal(np.concatenate(halves), whole)


def test_read_elevation_reprojects_a_geographic_dem(tmp_path):
    path = write(tmp_path / "dem.tif", ground(60, 60), epsg=4326, gsd=3e-4, left=142.01, top=42.79)
    elevation = read_elevation(describe_dem(path, allow_geographic=True), box(30, 30)).compute()
    assert np.isfinite(elevation).all()


def test_describe_dem_geographic(tmp_path):
    path = write(tmp_path / "dem.tif", ground(10, 10), epsg=4326, gsd=3e-4, left=142.01, top=42.79)
    with pytest.raises(InputError, match="pass --dem-reproject"):
        describe_dem(path)


@pytest.mark.real
def test_read_epoch_collar_of_the_hokkaido_scene():
    folder = data_dir() / "hokkaido2018/scene_west"
    geobox = GeoBox((1280, 1280), Affine(3, 0, 583_212, 0, -3, 4_737_066), "EPSG:32654")
    scene = read_epoch(epoch_of(folder / "post_rgb.tif"), geobox)[0].compute()
    with rasterio.open(folder / "valid.tif") as file:
        valid = file.read(1) != 0
    differs = np.isfinite(scene["red"].data) != valid
    assert not np.isfinite(scene["red"].data)[~valid].any()
    assert differs.sum() <= 4  # four black pixels


@pytest.mark.real
def test_read_elevation_of_jiuzhaigou_has_no_fill():
    path = data_dir() / "jiuzhaigou2017/DEM_030.tif"
    source, info = describe_dem(path), describe_raster(path)
    geobox = GeoBox(info.shape, Affine(*info.transform), info.crs)
    elevation = read_elevation(source, geobox).compute()
    assert source.zero_is_nodata
    assert 0.63 < np.isfinite(elevation).mean() < 0.67
    assert elevation.min() > 1400
