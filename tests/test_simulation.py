import json
from functools import partial

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from odc.geo.geobox import GeoBox
from rasterio.features import rasterize

from catalog.config import Event
from catalog.items import local_item
from catalog.scenes import Epoch, read_epoch
from catalog.schema import InputError, Quality
from catalog.sensors import SENSORS
from catalog.simulated import write_simulated_event
from tasks.appearance import render, upsampled
from tasks.landscape import catchment_area, drained, fractal
from tasks.preprocess import quality
from tasks.simulation import QA_BANDS, simulate
from tasks.slides import MALAMUD_RHO, draw_areas, peak_acceleration


@pytest.fixture(scope="module")
def event():
    return simulate(size_px=512, gsd_m=10.0, seed=3)


@pytest.fixture(scope="module")
def images(event):
    return {epoch: render(event, epoch=epoch, rows=slice(0, 512)).astype(float) for epoch in ("pre", "post")}


def burned(event, frame, shape):
    if frame.empty:
        return np.zeros(shape, bool)
    return rasterize(frame.geometry, out_shape=shape).astype(bool)


def coarse_mask(event, mask):
    return upsampled(mask, np.arange(event.size_px), np.arange(event.size_px), factor=event.dem_factor)


def written(folder, *, seed=5, sensor="rgb8"):
    event = simulate(size_px=256, gsd_m=10.0, seed=seed, sensor=sensor)
    return write_simulated_event(event, folder, render=lambda epoch, rows: render(event, epoch=epoch, rows=rows))


def test_written_event_is_the_same_to_the_byte(tmp_path):
    first, second = written(tmp_path / "a"), written(tmp_path / "b")
    assert {role: path.read_bytes() for role, path in first.items()} == {
        role: path.read_bytes() for role, path in second.items()
    }


def test_simulation_writes_nothing_to_the_console(capfd):
    simulate(size_px=192, gsd_m=10.0, seed=1, sensor="rgb8")
    assert capfd.readouterr() == ("", "")


def test_another_seed_is_another_event():
    one, other = (simulate(size_px=256, gsd_m=10.0, seed=seed) for seed in (1, 2))
    assert not np.array_equal(one.elevation_m, other.elevation_m)
    assert not one.landslides.geometry.iloc[0].equals(other.landslides.geometry.iloc[0])


def test_render_does_not_depend_on_the_strips(event):
    whole = render(event, epoch="post", rows=slice(100, 180))
    parts = [render(event, epoch="post", rows=slice(a, b)) for a, b in ((100, 117), (117, 180))]
    np.testing.assert_array_equal(whole, np.concatenate(parts, axis=1))


def test_landslides_lie_within_the_scene(event):
    assert shapely.within(event.landslides.geometry, shapely.box(0, 0, 512, 512)).all()


def test_landslides_do_not_overlap(event):
    union = shapely.union_all(event.landslides.geometry)
    assert union.area == pytest.approx(event.landslides.area.sum(), rel=1e-6)


def test_landslides_cover_some_percent_of_the_scene(event):
    assert 0.015 < event.landslides.area.sum() / 512**2 < 0.05


def test_landslides_lie_on_slopes_steeper_than_average(event):
    slid = burned(event, event.landslides, (512, 512))
    slope = coarse_mask(event, event.landscape.slope_deg)
    assert slope[slid].mean() > slope.mean() + 4


def test_landslides_run_downhill(event):
    elevation = coarse_mask(event, event.elevation_m)
    rings = [np.array(polygon.exterior.coords)[:-1] for polygon in event.landslides.geometry]
    ends = [(ring[0], ring[len(ring) // 2]) for ring in rings]
    falls = [elevation[tuple(top[::-1].astype(int))] - elevation[tuple(toe[::-1].astype(int))] for top, toe in ends]
    assert np.mean(np.array(falls) > 0) > 0.95


def test_landslide_sizes_have_the_power_law_tail():
    areas = simulate(size_px=1536, gsd_m=10.0, seed=4).landslides.area_m2.to_numpy()
    tail = areas[areas > 2000]
    exponent = 1 + len(tail) / np.log(tail / 2000).sum()  # maximum likelihood, Clauset et al. 2009, eq. 3.1
    assert exponent == pytest.approx(MALAMUD_RHO + 1, abs=0.3)


def test_draw_areas_follows_the_published_distribution():
    areas = draw_areas(np.random.default_rng(0), 200_000, smallest_m2=1.0, largest_m2=1e9)
    density, edges = np.histogram(np.log10(areas), bins=60)
    mode_m2 = 10 ** edges[np.argmax(density / np.diff(10**edges))]
    assert mode_m2 == pytest.approx(400, rel=0.25)  # Malamud et al. 2004: most landslides are of about 400 m2


def test_images_change_on_landslides_more_than_elsewhere(event, images):
    clear = np.all([coarse_mask(event, s.cloud + s.shadow) < 0.05 for s in event.epochs.values()], axis=0)
    slid = burned(event, event.landslides, (512, 512))
    change = (images["post"] - images["pre"])[0]
    assert change[slid & clear].mean() > 5 * np.abs(change[~slid & clear]).mean()


def test_old_scars_are_in_both_epochs(event, images):
    old = burned(event, event.old_scars, (512, 512))
    rim = burned(event, gpd.GeoDataFrame(geometry=event.old_scars.buffer(4)), (512, 512)) & ~old
    for image in images.values():
        assert np.median(image[0][old]) > np.median(image[0][rim])


def test_pre_is_misregistered_by_the_stated_part_of_a_pixel(event):
    assert 0.3 <= np.hypot(*event.epochs["pre"].shift_px) <= 0.7
    assert event.epochs["post"].shift_px == (0.0, 0.0)


def test_clouds_are_in_both_epochs_and_where_the_image_is_bright(event, images):
    for epoch, image in images.items():
        cloud = burned(event, event.clouds[event.clouds.epoch == epoch], (512, 512))
        assert 0.005 < cloud.mean() < 0.15
        assert image[2][cloud].mean() > 2 * image[2][~cloud].mean()


def test_shadows_are_where_the_sun_casts_them(event, images):
    cloud = coarse_mask(event, event.epochs["post"].cloud)
    shadow = coarse_mask(event, event.epochs["post"].shadow)
    dark = (shadow > 0.7) & (cloud < 0.02)
    assert images["post"][1][dark].mean() < 0.85 * images["post"][1][(shadow < 0.02) & (cloud < 0.02)].mean()


@pytest.mark.parametrize(
    ("sensor", "bands", "dtype"),
    [
        ("rgbnir8", 4, "uint8"),
        ("sentinel2-l2a", 7, "uint16"),
        ("landsat-c2-l2", 7, "uint16"),
        ("planetscope-4b", 4, "uint16"),
    ],
)
def test_render_has_the_bands_of_the_sensor(sensor, bands, dtype):
    strip = render(simulate(size_px=256, gsd_m=10.0, seed=1, sensor=sensor), epoch="pre", rows=slice(0, 16))
    assert (strip.shape, strip.dtype.name, strip.min() > 0) == ((bands, 16, 256), dtype, True)


@pytest.mark.parametrize("sensor", SENSORS)
def test_simulated_scene_of_each_sensor_reads_through(tmp_path, sensor):
    """Every sensor of the registry can be simulated, and its file is read as what it shows."""
    paths = written(tmp_path, seed=3, sensor=sensor)
    item = local_item(paths["post"], SENSORS[sensor]).to_dict(transform_hrefs=False)
    epoch = Epoch("post", sensor, (item,))
    with rasterio.open(paths["post"]) as file:
        geobox = GeoBox(file.shape, file.transform, "EPSG:32645")
    scene = read_epoch(epoch, geobox)[0]
    assert epoch.bands == tuple(SENSORS[sensor].bands)
    source = SENSORS[sensor].qa_source
    has_quality = source is not None and source.variable in scene
    assert has_quality == (sensor in QA_BANDS)
    told = quality(scene, qa=SENSORS[sensor].qa if has_quality else "none").compute().data
    clear = told == Quality.CLEAR
    assert 0.7 < clear.mean() < 1
    if not SENSORS[sensor].is_8bit:
        assert 0.01 < np.median(scene["red"].compute().data[clear]) < 0.12  # vegetated hills
    if has_quality:
        event = simulate(size_px=256, gsd_m=10.0, seed=3, sensor=sensor)
        thick = coarse_mask(event, event.epochs["post"].cloud) > 0.3
        assert (told[thick] == Quality.CLOUD).all()
        assert {Quality.SHADOW, Quality.WATER} <= set(np.unique(told))


def test_written_images_carry_time_grid_and_truth(tmp_path):
    paths = written(tmp_path)
    with rasterio.open(paths["pre"]) as pre, rasterio.open(paths["dem"]) as dem:
        assert pre.tags()["TIFFTAG_DATETIME"] == "2023:12:02 05:02:31"
        assert (pre.crs.to_epsg(), pre.shape, pre.res) == (32645, (256, 256), (10.0, 10.0))
        assert pre.transform.c % 30 == pre.transform.f % 30 == 0
        assert (dem.res, dem.bounds.left, dem.bounds.top) == ((30.0, 30.0), pre.bounds.left, pre.bounds.top)
        truth = gpd.read_file(paths["truth"], layer="landslides")
        assert shapely.within(truth.geometry, shapely.box(*pre.bounds)).all()
    np.testing.assert_allclose(truth.area, truth.area_m2, rtol=1e-6)


def test_written_event_is_a_valid_event_inside_the_scene(tmp_path):
    event = Event.model_validate(json.loads(written(tmp_path)["event"].read_text()))
    assert event.id == "sim000005"
    assert 84 < event.longitude < 90
    assert 25 < event.latitude < 30


def test_written_event_reports_how_far_it_is(tmp_path):
    heard = []
    event = simulate(size_px=600, gsd_m=10.0, seed=5)
    write_simulated_event(
        event,
        tmp_path,
        render=lambda epoch, rows: render(event, epoch=epoch, rows=rows),
        report=lambda *h: heard.append(h),
    )
    assert heard == [(f"{epoch} image", rows, 600) for epoch in ("pre", "post") for rows in (512, 600)]


def test_write_refuses_to_overwrite(tmp_path):
    written(tmp_path)
    with pytest.raises(InputError, match="already holds pre.tif"):
        written(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size_px": 10}, "got 10 px"),
        ({"gsd_m": 0.0}, "pixel size of 0.0 m"),
        ({"seed": -1}, "got seed -1"),
        ({"sensor": "sar"}, "got sensor 'sar'"),
    ],
)
def test_simulate_refuses_what_it_cannot_make(values, message):
    with pytest.raises(InputError, match=message):
        partial(simulate, size_px=256, gsd_m=10.0, seed=0)(**values)


def test_peak_acceleration_falls_with_distance():
    near, far = peak_acceleration(np.array([0.0, 50.0], np.float32), magnitude=7.0, depth_km=10.0)
    assert 0.1 < near < 1.0
    assert far < near / 2


def test_fractal_has_unit_variance_and_the_asked_slope():
    noise = fractal((256, 256), np.random.default_rng(1), exponent=2.0, corner_px=1e4)
    power = np.abs(np.fft.rfft2(noise)) ** 2
    k = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None])
    used = (k > 0.03) & (k < 0.4)
    slope = np.polyfit(np.log(k[used]), np.log(power[used]), 1)[0]
    assert noise.std() == pytest.approx(1.0, rel=1e-3)
    assert slope == pytest.approx(-4.0, abs=0.15)


def test_catchment_grows_down_the_channel():
    channel = np.arange(6.0, 0.0, -1.0)[:, None] + 10 * np.abs(np.arange(-2.0, 3.0))
    down = catchment_area(drained(channel), 10.0)[1:, 2]
    assert (np.diff(down) > 0).all()
    assert down[-1] > 10 * 100


def test_upsampled_keeps_a_ramp():
    ramp = np.repeat(np.arange(20, dtype=np.float32)[None], 20, axis=0)
    fine = upsampled(ramp, np.arange(24, 36), np.arange(24, 36), factor=3)
    np.testing.assert_allclose(fine[0], (np.arange(24, 36) + 0.5) / 3 - 0.5, rtol=1e-5)
