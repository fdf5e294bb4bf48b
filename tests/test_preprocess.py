from __future__ import annotations

import dataclasses
import json
import math
import re

import dask.array as da
import numpy as np
import pytest
import rasterio
import xarray as xr
from pyproj import Transformer

from catalog.config import data_dir
from catalog.schema import InputError, Quality
from tasks import preprocess as pp
from tasks import registration as reg

SHAPE = (61, 83)
CHUNKS = {"y": (17, 1, 30, 13), "x": (40, 43)}
RGB = ("red", "green", "blue")


def scene_of(*bands: np.ndarray, names: tuple[str, ...] = RGB, **others: np.ndarray) -> xr.Dataset:
    variables = dict(zip(names, (b.astype(np.float32) for b in bands), strict=True)) | others
    rows, columns = bands[0].shape
    return xr.Dataset(
        {name: (("y", "x"), values) for name, values in variables.items()},
        coords={"y": -np.arange(rows) * 3.0, "x": np.arange(columns) * 3.0},
    )


def random_scene(seed: int = 0, *, clouds: bool = True) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    bands = rng.uniform(0.02, 0.35, (3, *SHAPE))
    bands[:, rng.random(SHAPE) < 0.05] = np.nan
    if clouds:
        bands[:, 20:30, 30:60] = 0.8
    mask = (rng.random(SHAPE) < 0.02).astype(np.uint8)
    codes = rng.integers(0, 12, SHAPE).astype(np.uint8)
    bits = rng.integers(0, 256, SHAPE).astype(np.uint16)
    return scene_of(*bands, mask=mask, scl=codes, udm2=codes, qa_pixel=bits)


def texture(dy: float = 0.0, dx: float = 0.0, *, size: int = 256, seed: int = 1) -> np.ndarray:
    """A sum of waves, evaluated exactly at shifted coordinates: an answer that no resampling has touched."""
    rng = np.random.default_rng(seed)
    angle, phase = rng.uniform(0, 2 * np.pi, (2, 300))
    frequency = rng.uniform(0.01, 0.25, 300)
    amplitude = frequency**-0.7
    y, x = np.arange(size)[:, None] - dy, np.arange(size)[None, :] - dx
    waves = np.zeros((size, size))
    for a, p, f, m in zip(angle, phase, frequency, amplitude, strict=True):
        waves += m * np.cos(2 * np.pi * f * (np.sin(a) * y + np.cos(a) * x) + p)
    return (0.2 + 0.05 * waves / waves.std()).astype(np.float32)


def good(dy: float, dx: float) -> reg.Coregistration:
    return reg.Coregistration("measured", dy, dx, 0.1, 9, 9)


LINE = pp.Normalisation(RGB, (0.8, 1.1, 1.0), (0.01, -0.02, 0.0), 5000)
LAZY = {
    "quality-none": lambda s: pp.quality(s, qa="none").to_dataset(),
    "quality-scl": lambda s: pp.quality(s, qa="scl").to_dataset(),
    "quality-landsat": lambda s: pp.quality(s, qa="landsat_qa_pixel").to_dataset(),
    "quality-udm2": lambda s: pp.quality(s, qa="udm2").to_dataset(),
    "grow": lambda s: pp.grow_mask(pp.quality(s, qa="none")).to_dataset(),
    "grow-shadow": lambda s: pp.grow_mask(pp.quality(s, qa="scl"), px=2).to_dataset(),
    "composite": lambda s: pp.composite(
        [s, s.copy(data={n: v * 0 + 1 for n, v in s.data_vars.items()})],
        [pp.quality(s, qa="none"), pp.quality(s, qa="scl")],
    ),
    "align": lambda s: reg.align(s, good(1.37, -2.63)),
    "align-whole": lambda s: reg.align(s, good(-2.0, 0.0)),
    "align-far": lambda s: reg.align(s, good(20.5, 31.2)),
    "normalise": lambda s: pp.normalise(s, LINE),
}


@pytest.mark.parametrize("step", LAZY.values(), ids=LAZY)
def test_lazy_chunked_equals_unchunked(step):
    scene = random_scene()
    xr.testing.assert_identical(step(scene.chunk(CHUNKS)).compute(), step(scene))


@pytest.mark.parametrize("step", LAZY.values(), ids=LAZY)
def test_lazy_computes_nothing_until_asked(step):
    def fail(block: np.ndarray) -> np.ndarray:
        raise AssertionError("computed early")

    scene = random_scene().chunk(CHUNKS)
    armed = scene.copy(data={n: da.map_blocks(fail, v.data, dtype=v.dtype) for n, v in scene.data_vars.items()})
    result = step(armed)
    assert all(variable.chunks is not None for variable in result.data_vars.values())


@pytest.mark.parametrize("step", LAZY.values(), ids=LAZY)
def test_lazy_leaves_its_input_alone(step):
    scene = random_scene()
    before = scene.copy(deep=True)
    step(scene)
    xr.testing.assert_identical(scene, before)


@pytest.mark.parametrize("step", LAZY.values(), ids=LAZY)
def test_lazy_propagates_nodata(step):
    scene = random_scene().where(False)
    scene = scene.assign({n: xr.full_like(scene[n], 255, np.uint8) for n in ("mask", "scl", "udm2", "qa_pixel")})
    for name, values in step(scene).data_vars.items():
        assert (values.isnull() | (values == 255)).all(), name


@pytest.mark.parametrize("step", LAZY.values(), ids=LAZY)
def test_lazy_keeps_memory_dtypes(step):
    assert {v.dtype for v in step(random_scene().chunk(CHUNKS)).data_vars.values()} <= {
        np.dtype(d) for d in ("float32", "uint8", "uint16")
    }


# --- quality


def test_scl_quality_maps_every_class():
    got = pp.scl_quality(np.arange(13, dtype=np.uint8)[None])
    N, C, S, L, W, I = 255, 1, 2, 0, 4, 3  # noqa: E741
    assert got[0].tolist() == [N, N, L, S, L, L, W, L, C, C, C, I, N]


@pytest.mark.parametrize(
    ("bits", "label"),
    [
        ((), Quality.CLEAR),
        ((6,), Quality.CLEAR),
        ((1,), Quality.CLOUD),
        ((3, 4), Quality.CLOUD),
        ((4, 7), Quality.SHADOW),
        ((5, 7), Quality.SNOW),
        ((6, 7), Quality.WATER),
        ((2,), Quality.CLEAR),
        ((0, 3), Quality.NODATA),
    ],
)
def test_landsat_quality_reads_bits_in_order(bits, label):
    assert pp.landsat_quality(np.array([[sum(1 << b for b in bits)]], np.uint16)) == label


def test_landsat_quality_agrees_with_published_values():
    # USGS LSDS-1619, table 6-4: clear, water, dilated cloud over land, high-confidence cloud, shadow, fill.
    values = np.array([[21824, 21952, 21826, 22280, 23888, 1]], np.uint16)
    assert pp.landsat_quality(values)[0].tolist() == [0, 4, 1, 1, 2, 255]


def test_udm2_quality_maps_every_class():
    assert pp.udm2_quality(np.arange(9, dtype=np.uint8)[None])[0].tolist() == [255, 0, 3, 2, 0, 1, 1, 255, 255]


@pytest.mark.parametrize(
    ("rgb", "label"),
    [
        ((0.9, 0.9, 0.95), Quality.CLOUD),
        ((0.6, 0.45, 0.35), Quality.CLEAR),
        ((0.38, 0.36, 0.34), Quality.CLEAR),
        ((0.34, 0.36, 0.38), Quality.CLOUD),
        ((0.25, 0.25, 0.25), Quality.CLEAR),
        ((0.0, 0.0, 0.0), Quality.CLEAR),
        ((0.9, np.nan, 0.9), Quality.NODATA),
    ],
)
def test_bright_white_quality_knows_cloud_from_soil(rgb, label):
    assert pp.bright_white_quality(*np.array(rgb, np.float32)[:, None, None]) == label


def test_quality_hides_masked_pixels():
    scene = scene_of(*np.full((3, 1, 3), 0.1), mask=np.array([[0, 1, 255]], np.uint8))
    assert pp.quality(scene, qa="none").data[0].tolist() == [Quality.CLEAR, Quality.NODATA, Quality.NODATA]


@pytest.mark.parametrize(("band", "expected"), [(0, Quality.NODATA), (2, Quality.NODATA), (3, Quality.CLEAR)])
def test_quality_needs_every_visible_band(band, expected):
    bands = np.full((4, 1, 2), 0.1)
    bands[band, 0, 1] = np.nan
    scene = scene_of(*bands, names=(*RGB, "nir"))
    assert pp.quality(scene, qa="none").data[0].tolist() == [Quality.CLEAR, expected]


@pytest.mark.parametrize(("qa", "absent"), [("none", "blue"), ("scl", "scl"), ("udm2", "udm2")])
def test_quality_refuses_a_scene_without_what_it_reads(qa, absent):
    with pytest.raises(InputError, match=f"rule `{qa}` reads .*{absent}"):
        pp.quality(random_scene().drop_vars(absent), qa=qa)


def test_grow_mask_is_a_disc_over_ground_only():
    labels = np.zeros((7, 7), np.uint8)
    labels[3, 3], labels[3, 4], labels[2, 3] = Quality.CLOUD, Quality.SNOW, Quality.WATER
    grown = pp.grow_mask(xr.DataArray(labels, dims=("y", "x")), px=2).data
    y, x = np.ogrid[-3:4, -3:4]
    expected = (y * y + x * x <= 4).astype(np.uint8)
    expected[3, 4] = Quality.SNOW
    assert np.array_equal(grown, expected)


def test_grow_mask_lets_cloud_win_over_shadow():
    labels = xr.DataArray(np.array([[1, 0, 2]], np.uint8), dims=("y", "x"))
    assert pp.grow_mask(labels, px=1).data.tolist() == [[1, 1, 2]]


def test_grow_mask_refuses_a_negative_growth():
    with pytest.raises(InputError, match="got -1 px"):
        pp.grow_mask(xr.DataArray(np.zeros((2, 2), np.uint8), dims=("y", "x")), px=-1)


def read(path: str) -> np.ndarray:
    with rasterio.open(data_dir() / path) as source:
        return source.read()


def jure(epoch: str) -> xr.Dataset:
    return scene_of(*read(f"jure2014/{epoch}_rgb.tif") / 255)


PRE, POST = "pre_2013-09-15", "post_2014-09-18"


@pytest.mark.real
@pytest.mark.parametrize(("epoch", "least"), [(PRE, 0.04), (POST, 0.08)])
def test_bright_white_quality_catches_most_of_jures_clouds(epoch, least):
    scene = jure(epoch)
    cloud = pp.quality(scene, qa="none") == Quality.CLOUD
    core = scene.to_array().min("variable") > 0.35  # nothing but cloud is that bright there (by eye)
    assert float(cloud.where(core).mean()) > 0.95
    assert least < float(cloud.mean()) < 0.09


@pytest.mark.real
def test_bright_white_quality_leaves_jures_landslide():
    with rasterio.open(data_dir() / f"jure2014/{POST}_rgb.tif") as source:
        to_utm = Transformer.from_crs(4326, source.crs, always_xy=True)
        row, column = source.index(*to_utm.transform(85.87, 27.77))
    place = {"y": slice(row - 8, row + 24), "x": slice(column - 8, column + 24)}
    assert not (pp.quality(jure(POST), qa="none") == Quality.CLOUD).isel(place).any()


@pytest.mark.real
def test_bright_white_quality_leaves_hokkaidos_landslides():
    folder = "hokkaido2018/scene_west"
    labels = pp.quality(scene_of(*read(f"{folder}/post_rgb.tif") / 255), qa="none").data
    landslide = (read(f"{folder}/inventory_class.tif")[0] > 0) & (read(f"{folder}/valid.tif")[0] > 0)
    assert (labels[landslide] == Quality.CLOUD).mean() < 0.005


# --- composite


def stack() -> tuple[list[xr.Dataset], list[xr.DataArray]]:
    labels = np.array([[[0, 1, 1, 255, 255]], [[0, 4, 2, 3, 255]]], np.uint8)
    scenes = [scene_of(*np.full((3, 1, 5), value)) for value in (0.1, 0.2)]
    return scenes, [xr.DataArray(label, dims=("y", "x"), coords=scenes[0].coords) for label in labels]


def test_composite_takes_the_first_observed_scene():
    result = pp.composite(*stack())
    assert result["source"].data[0].tolist() == [0, 1, 255, 255, 255]
    np.testing.assert_array_equal(result["red"].data[0], np.float32([0.1, 0.2, np.nan, np.nan, np.nan]))


def test_composite_tells_why_a_pixel_was_not_observed():
    assert pp.composite(*stack())["quality"].data[0].tolist() == [0, 4, 1, 3, 255]


def test_composite_follows_the_order_given():
    scenes, labels = stack()
    assert pp.composite(scenes[::-1], labels[::-1])["source"].data[0].tolist() == [0, 0, 255, 255, 255]


@pytest.mark.parametrize("count", [0, 1])
def test_composite_refuses_unpaired_scenes(count):
    scenes, labels = stack()
    with pytest.raises(InputError, match=f"{2 * count} scenes and {count} qualities"):
        pp.composite(scenes[: 2 * count], labels[:count])


def test_composite_refuses_other_bands():
    scenes, labels = stack()
    with pytest.raises(InputError, match="scene 1 has the bands"):
        pp.composite([scenes[0], scenes[1].drop_vars("red")], labels)


def test_composite_refuses_another_grid():
    scenes, labels = stack()
    moved = scenes[1].assign_coords(x=scenes[1]["x"] + 1.5)
    with pytest.raises(InputError, match="scene 1 is not on scene 0's grid"):
        pp.composite([scenes[0], moved], labels)


# --- co-registration


@pytest.mark.parametrize("shape", [(256, 256), (650, 650), (300, 9000), (5000, 4000), (257, 511)])
def test_coregistration_windows_stay_inside_and_few(shape):
    windows = reg.coregistration_windows(shape)
    assert 0 < len(windows) <= 49
    assert len(set(windows)) == len(windows)
    assert all(0 <= y <= shape[0] - 256 and 0 <= x <= shape[1] - 256 for y, x in windows)


def test_coregistration_windows_are_none_in_a_small_image():
    assert reg.coregistration_windows((255, 900)) == []


SHIFTS = [(0.0, 0.0), (0.3, -0.4), (1.37, -2.63), (-7.82, 12.5)]


@pytest.mark.parametrize(("dy", "dx"), SHIFTS)
def test_window_shift_recovers_a_known_shift(dy, dx):
    got = reg.window_shift(texture(), texture(dy, dx), np.ones((256, 256), bool))
    assert math.hypot(got.dy_px - dy, got.dx_px - dx) < 0.05
    assert got.usable


@pytest.mark.parametrize(("dy", "dx"), SHIFTS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_window_shift_survives_change_noise_and_light(dy, dx, seed):
    rng = np.random.default_rng(seed)
    pre = texture(seed=seed + 10) + rng.normal(0, 0.005, (256, 256))
    post = texture(dy, dx, seed=seed + 10) * 0.6 + 0.15 + np.linspace(0, 0.1, 256) + rng.normal(0, 0.005, (256, 256))
    post[60:175, 60:175] = 0.6 + 0.3 * texture(seed=seed + 99)[:115, :115]  # 20 % of the window slid
    got = reg.window_shift(pre.astype(np.float32), post.astype(np.float32), np.ones((256, 256), bool))
    assert math.hypot(got.dy_px - dy, got.dx_px - dx) < 0.1


def test_window_shift_is_not_held_by_a_mask():
    observed = np.ones((256, 256), bool)
    observed[40:120, 90:200] = observed[170:230, 20:140] = False
    pre, post = texture(), texture(2.4, -1.3)
    pre[~observed], post[~observed] = 0.9, np.nan
    got = reg.window_shift(pre, post, observed)
    assert math.hypot(got.dy_px - 2.4, got.dx_px + 1.3) < 0.1


def test_window_shift_is_unusable_when_too_little_is_seen():
    observed = np.zeros((256, 256), bool)
    observed[:100] = True
    got = reg.window_shift(texture(), texture(), observed)
    assert math.isnan(got.dy_px)
    assert not got.usable


def test_window_shift_is_unusable_on_flat_ground():
    flat = np.full((256, 256), 0.2, np.float32)
    assert not reg.window_shift(flat, texture(), np.ones((256, 256), bool)).usable


@pytest.mark.parametrize("seed", range(6))
def test_window_shift_is_unusable_between_unrelated_textures(seed):
    got = reg.window_shift(texture(seed=seed), texture(seed=seed + 50), np.ones((256, 256), bool))
    assert got.peak < 0.05
    assert not got.usable


@pytest.mark.parametrize("seed", range(6))
def test_window_shift_of_a_small_window_tells_a_shift_from_chance(seed):
    seen = np.ones((128, 128), bool)
    pre, post = texture(size=128, seed=seed), texture(2.3, -4.6, size=128, seed=seed)
    got = reg.window_shift(pre, post, seen)
    assert got.usable
    assert math.hypot(got.dy_px - 2.3, got.dx_px + 4.6) < 0.15
    assert not reg.window_shift(pre, texture(size=128, seed=seed + 50), seen).usable


@pytest.mark.parametrize(("shape", "side"), [((512, 512), 256), ((384, 384), 128), ((256, 256), 128), ((60, 60), 128)])
def test_choose_window_px_takes_small_windows_where_large_ones_are_too_few(shape, side):
    assert reg.choose_window_px(shape) == side


def spread(dy: float, dx: float, sigma: float, n: int = 20) -> list[reg.WindowShift]:
    rng = np.random.default_rng(3)
    return [reg.WindowShift(dy + a, dx + b, 0.5) for a, b in rng.normal(0, sigma, (n, 2))]


UNSEEN = reg.WindowShift(math.nan, math.nan, 0.0)


def test_combine_shifts_rejects_outliers():
    outliers = [reg.WindowShift(20.0, -25.0, 0.5)] * 4 + [UNSEEN]
    got = reg.combine_shifts(spread(0.3, -0.2, 0.05) + outliers)
    assert got.dy_px == pytest.approx(0.3, abs=0.05)
    assert (got.n_windows, got.n_used, got.verdict()) == (25, 20, "good")


@pytest.mark.parametrize(
    ("windows", "verdict", "says"),
    [
        (spread(0.1, 0.1, 0.05), "good", "20 of 20 windows agree"),
        (spread(3.0, 4.0, 0.05), "warn", "lies 4.9. px .* check the positions"),
        (spread(0.0, 0.0, 2.0), "refuse", "more than 1 px, a distortion"),
        (spread(0.1, 0.1, 0.5), "warn", r"0\.[5-9]. px remain after correction; expect false change"),
        (spread(0.1, 0.1, 0.05, n=4) + [UNSEEN], "refuse", "could not be co-registered: 4 of 5 windows agree"),
        (spread(0.1, 0.1, 0.05, n=4), "refuse", "too small to co-register pre and post: 4 windows of 128 px"),
        ([], "refuse", "too small to co-register pre and post: 0 windows"),
        (spread(40.0, 0.0, 0.05), "refuse", "could not be co-registered: 0 of 20"),
    ],
)
def test_coregistration_judges(windows, verdict, says):
    got = reg.combine_shifts(windows)
    assert got.verdict() == verdict
    assert re.search(says, got.sentence())


def test_coregistration_survives_json():
    got = reg.combine_shifts(spread(0.1, 0.1, 0.05))
    assert reg.Coregistration(**json.loads(json.dumps(dataclasses.asdict(got)))) == got


@pytest.mark.parametrize(("dy", "dx"), SHIFTS)
def test_shift_image_matches_the_shifted_waves(dy, dx):
    smooth = {"seed": 4}
    got, expected = reg.shift_image(texture(**smooth), dy_px=dy, dx_px=dx), texture(dy, dx, **smooth)
    inner = np.s_[16:-16, 16:-16]
    assert np.sqrt(np.mean((got[inner] - expected[inner]) ** 2)) < 0.03 * expected.std()


def test_shift_image_by_whole_pixels_copies_them():
    image = texture(size=20)
    got = reg.shift_image(image, dy_px=3.0, dx_px=-2.0)
    np.testing.assert_array_equal(got[3:, :-2], image[:-3, 2:])
    assert np.isnan(got[:3]).all()
    assert np.isnan(got[:, -2:]).all()


def test_shift_image_keeps_a_constant_around_nodata():
    image = np.full((20, 20), 0.3, np.float32)
    image[8:12, 8:12] = np.nan
    got = reg.shift_image(image, dy_px=0.4, dx_px=-0.3)
    np.testing.assert_allclose(got[np.isfinite(got)], 0.3, rtol=1e-5)
    assert 9 <= np.isnan(got[4:16, 4:16]).sum() <= 25


@pytest.mark.parametrize("px", [31.9, -31.9, 32.0, -32.0])
def test_shift_image_sees_no_farther_than_its_halo(px):
    image = texture(size=128)
    far = image.copy()
    far[: 64 - reg.SHIFT_HALO_PX] = far[65 + reg.SHIFT_HALO_PX :] = np.nan
    args = {"dy_px": px, "dx_px": 0.0}
    np.testing.assert_array_equal(reg.shift_image(image, **args)[64], reg.shift_image(far, **args)[64])


def test_align_undoes_a_measured_shift():
    pre, post = texture(size=600), texture(-1.6, 2.3, size=600)
    windows = [
        reg.window_shift(pre[y : y + 256, x : x + 256], post[y : y + 256, x : x + 256], np.ones((256, 256), bool))
        for y, x in reg.coregistration_windows(pre.shape)
    ]
    aligned = reg.align(scene_of(pre, names=("red",)), reg.combine_shifts(windows))["red"].data
    inner = np.s_[16:-16, 16:-16]
    assert np.abs(aligned[inner] - post[inner]).mean() < 0.05 * np.abs(pre[inner] - post[inner]).mean()


def test_align_moves_classes_by_whole_pixels():
    scene = scene_of(np.zeros((3, 3)), names=("red",), quality=np.arange(9, dtype=np.uint8).reshape(3, 3))
    got = reg.align(scene, good(0.8, -0.9))["quality"].data
    assert got.tolist() == [[255, 255, 255], [1, 2, 255], [4, 5, 255]]


def test_align_refuses_an_unmeasured_pair():
    with pytest.raises(InputError, match="too small to co-register"):
        reg.align(random_scene(), reg.combine_shifts([]))


def jure_windows() -> list[reg.WindowShift]:
    pre, post = jure(PRE), jure(POST)
    seen = [pp.grow_mask(pp.quality(s, qa="none")).isin((0, 4)).data for s in (pre, post)]
    cuts = [np.s_[y : y + 256, x : x + 256] for y, x in reg.coregistration_windows((650, 650))]
    return [reg.window_shift(pre["red"].data[c], post["red"].data[c], (seen[0] & seen[1])[c]) for c in cuts]


@pytest.mark.real
def test_coregistration_measures_the_jure_pair():
    got = reg.combine_shifts(jure_windows())
    assert got.verdict() == "good"
    assert got.n_used >= 12
    assert got.shift_px < 0.1  # one Landsat path and row, one processing: they lie on each other


@pytest.mark.real
def test_coregistration_follows_a_moved_jure_pair():
    pre, post = jure(PRE), reg.align(jure(POST), good(2.7, -1.4))
    cuts = [np.s_[y : y + 256, x : x + 256] for y, x in reg.coregistration_windows((650, 650))]
    seen = np.isfinite(post["red"].data)
    got = reg.combine_shifts([reg.window_shift(pre["red"].data[c], post["red"].data[c], seen[c]) for c in cuts])
    assert math.hypot(got.dy_px - 2.7, got.dx_px + 1.4) < 0.1


# --- normalisation


def samples(changed: float = 0.0, n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(8)
    ground = rng.normal(0.2, 0.05, (3, n))
    post = np.array([0.8, 1.1, 1.0])[:, None] * ground + np.array([0.01, -0.02, 0.05])[:, None]
    pre, post = (values + rng.normal(0, 0.004, values.shape) for values in (ground, post))
    post[:, : int(changed * n)] = rng.normal(0.45, 0.05, (3, int(changed * n)))
    return pre.astype(np.float32), post.astype(np.float32)


@pytest.mark.parametrize("changed", [0.0, 0.05, 0.2])
def test_fit_normalisation_recovers_the_line_despite_change(changed):
    got = pp.fit_normalisation(*samples(changed), RGB)
    np.testing.assert_allclose(got.gain, (0.8, 1.1, 1.0), rtol=0.03)
    np.testing.assert_allclose(got.offset, (0.01, -0.02, 0.05), atol=0.005)


def test_fit_normalisation_ignores_nodata():
    pre, post = samples()
    holes = np.where(np.random.default_rng(1).random(pre.shape) < 0.2, np.nan, pre).astype(np.float32)
    got = pp.fit_normalisation(holes, post, RGB)
    np.testing.assert_allclose(got.gain, (0.8, 1.1, 1.0), rtol=0.03)
    assert got.n_stable <= np.isfinite(holes).all(axis=0).sum()


def test_fit_normalisation_of_nearly_identical_epochs_is_the_identity():
    pre, _ = samples()
    got = pp.fit_normalisation(pre, pre + np.float32(0.002), RGB)
    np.testing.assert_allclose(got.gain, 1.0, atol=1e-4)
    np.testing.assert_allclose(got.offset, 0.002, atol=1e-4)


@pytest.mark.parametrize("changed", [0.0, 0.05])
def test_fit_normalisation_refuses_a_pre_that_is_post(changed):
    pre, _ = samples()
    post = pre.copy()
    post[:, : int(changed * pre.shape[1])] += np.float32(0.1)
    with pytest.raises(InputError, match=r"(95|100)% of the pixels of pre are those of post"):
        pp.fit_normalisation(pre, post, RGB)


def test_fit_normalisation_refuses_few_common_pixels():
    pre, post = samples()
    pre[0, 999:] = np.nan
    with pytest.raises(InputError, match="got 999 pixels seen in both epochs; expected at least 1000"):
        pp.fit_normalisation(pre, post, RGB)


def test_fit_normalisation_refuses_a_flat_band():
    pre, post = samples()
    pre[1] = 0.1
    with pytest.raises(InputError, match="green has no contrast"):
        pp.fit_normalisation(pre, post, RGB)


def test_fit_normalisation_refuses_opposed_bands():
    pre, post = samples()
    with pytest.raises(InputError, match="blue of pre does not rise with post"):
        pp.fit_normalisation(pre, np.stack([post[0], post[1], 0.5 - post[2]]), RGB)


def test_normalise_applies_the_line():
    scene = scene_of(*np.full((3, 2, 2), 0.2), quality=np.zeros((2, 2), np.uint8))
    got = pp.normalise(scene, LINE)
    np.testing.assert_allclose([float(got[n][0, 0]) for n in RGB], (0.17, 0.2, 0.2), rtol=1e-6)
    assert got["quality"].identical(scene["quality"])


def test_normalise_refuses_a_missing_band():
    with pytest.raises(InputError, match="fitted on red"):
        pp.normalise(random_scene().drop_vars("red"), LINE)


@pytest.mark.real
def test_normalise_brings_jures_epochs_together():
    pre, post = jure(PRE), jure(POST)
    seen = pp.grow_mask(pp.quality(pre, qa="none")).isin((0, 4)) & pp.grow_mask(pp.quality(post, qa="none")).isin(
        (0, 4)
    )
    line = pp.fit_normalisation(*(np.stack([s[n].data[seen.data] for n in RGB]) for s in (pre, post)), RGB)
    toned = pp.normalise(pre, line)
    before, after = (np.median(np.abs((post[n] - s[n]).data[seen.data])) for n in ("blue",) for s in (pre, toned))
    assert after < before
