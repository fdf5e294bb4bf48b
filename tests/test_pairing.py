"""A pair's radiometry and scale of change, measured on pre-event imagery that lies as its blocks do."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from catalog import store
from catalog.grid import Window, snap_grid
from catalog.schema import BANDS, QUALITY, Quality
from catalog.store import StoreRef
from tasks import blocks, change, pairing, preprocess, registration
from tasks.story import Pairing

NAMES = ("blue", "green", "red", "nir")
SHAPE = (420, 530)
SLIDE = np.s_[200:232, 290:330]
COLLAR_PX = 12
SHIFTS = [(0.3, -0.45), (-1.3, 0.0), (0.0, 2.5), (5.0, 0.0), (-2.9, -4.1)]


def ground(band, *, dy=0.0, dx=0.0, shape=SHAPE):
    """Reflectance of ground whose texture is known at every place, so that a shift of it needs no resampling."""
    rng = np.random.default_rng([7, band])
    y, x = (np.arange(length) - moved for length, moved in zip(shape, (dy, dx), strict=True))
    waves = zip(rng.uniform(-0.9, 0.9, (40, 2)), rng.uniform(0, 2 * np.pi, 40), strict=True)
    texture = sum(np.outer(np.exp(1j * (y * fy + phase)), np.exp(1j * x * fx)).imag for (fy, fx), phase in waves)
    return 0.2 + 0.02 * band + 0.008 * texture


def pair_of(folder, *, dy, dx, block_px=256):
    """Stores of the two epochs: pre lies (dy, dx) px up and left of post, in other light, with a collar of nodata."""
    rng = np.random.default_rng(3)
    before = np.stack([0.8 * ground(k, dy=-dy, dx=-dx) + 0.02 for k in range(len(NAMES))])
    after = np.stack([ground(k) for k in range(len(NAMES))]) + rng.normal(0, 0.004, (len(NAMES), *SHAPE))
    after[:, *SLIDE] += 0.15
    before[:, :COLLAR_PX] = before[:, :, -COLLAR_PX:] = np.nan
    after[:, 100:140, 60:100] = np.nan
    return tuple(fill(folder, name, values, block_px) for name, values in (("pre", before), ("post", after)))


def fill(folder, name, bands, block_px):
    left, top = 500_013, 4_000_017
    bounds = (left, top - SHAPE[0] * 10, left + SHAPE[1] * 10, top)
    grid = snap_grid(tuple(round(v, -1) for v in bounds), epsg=32633, gsd_m=10.0, block_px=block_px)
    ref = StoreRef(str(folder), "event", f"{name}-1", grid, (*(BANDS[n] for n in NAMES), QUALITY), block_px)
    full = np.full((len(NAMES), *grid.shape), np.nan, np.float32)
    full[:, *grid.scene.slices] = bands
    quality = np.where(np.isfinite(full[0]), Quality.CLEAR, Quality.NODATA).astype(np.uint8)
    whole = xr.Dataset(
        {n: (("y", "x"), v) for n, v in zip(NAMES, full, strict=True)} | {"quality": (("y", "x"), quality)}
    )
    store.create_store(ref)
    for block in ref.grid.blocks:
        y, x = ref.grid.window(block).slices
        store.write_block(ref, block, whole.isel(y=y, x=x))
    store.mark_complete(ref)
    return ref


def slide_score(folder, found, pre, post):
    """Mean change score of the slide, from the blocks that a worker writes."""
    target = StoreRef(str(folder), "event", "change-1", post.grid, change.variables(NAMES), post.chunk_px)
    store.create_store(target)
    job = blocks.ChangeJob(target, pre, post, found.coregistration, found.normalisation, found.scaling)
    for block in target.grid.blocks:
        blocks.change_block(job, block)
    scores = store.read_window(target, target.grid.scene)["change_score"].values
    return float(np.nanmean(scores[SLIDE])), float(np.nanmedian(scores))


@pytest.fixture(scope="module")
def unmoved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unmoved")
    pre, post = pair_of(folder, dy=0.0, dx=0.0)
    found = pairing.pair_epochs(post.grid, pre, post)
    return found, slide_score(folder, found, pre, post)[0]


@pytest.mark.parametrize(("dy", "dx"), SHIFTS)
def test_change_scores_are_the_same_however_pre_lies(tmp_path, unmoved, dy, dx):
    pre, post = pair_of(tmp_path, dy=dy, dx=dx)
    found = pairing.pair_epochs(post.grid, pre, post)
    assert (found.coregistration.dy_px, found.coregistration.dx_px) == pytest.approx((dy, dx), abs=0.1)
    slide, stable = slide_score(tmp_path, found, pre, post)
    reference, expected = unmoved
    assert expected > 20
    assert slide == pytest.approx(expected, rel=0.05)
    assert abs(stable) < 0.2
    np.testing.assert_allclose(found.normalisation.gain, reference.normalisation.gain, rtol=0.02)


@pytest.mark.parametrize(("dy", "dx", "max_pixels"), [(0.0, 0.0, 30_000), (-1.3, 2.6, 10**9), (31.2, -9.0, 2_000)])
def test_moved_sample_is_what_blocks_compare(tmp_path, monkeypatch, dy, dx, max_pixels):
    pre, _ = pair_of(tmp_path / "256", dy=dy, dx=dx)
    other, _ = pair_of(tmp_path / "512", dy=dy, dx=dx, block_px=512)
    shift = registration.Coregistration("measured", dy, dx, 0.1, 9, 9)
    as_it_is = preprocess.Normalisation(NAMES, (1.0,) * 4, (0.0,) * 4, 1)
    halo = registration.SHIFT_HALO_PX
    around = store.read_window(pre, pre.grid.scene.expand(halo))
    whole = blocks.aligned_pre(around, coregistration=shift, normalisation=as_it_is)
    rows, columns = store.sample_places(pre.grid, max_pixels=max_pixels)
    every = {"y": slice(halo, -halo, rows.step), "x": slice(halo, -halo, columns.step)}
    expected = whole.isel(every).drop_vars(["y", "x"])
    assert np.isnan(expected["red"]).any()
    for ref in (pre, other):
        found = pairing.moved_sample(ref, shift, max_pixels=max_pixels)
        xr.testing.assert_equal(found[list(NAMES)], expected[list(NAMES)])
    monkeypatch.setattr(pairing, "PIECE_PX", 100)
    xr.testing.assert_equal(pairing.moved_sample(pre, shift, max_pixels=max_pixels)[list(NAMES)], expected[list(NAMES)])


def test_keep_pairing_does_not_keep_a_scale_that_was_measured_otherwise(unmoved):
    now, _ = unmoved
    wide = replace(now.scaling, spread={name: 10 * value for name, value in now.scaling.spread.items()})
    kept, reason = pairing.keep_pairing(replace(now, scaling=wide), now, version=3)
    assert kept == now
    assert "measured anew" in reason
    kept, reason = pairing.keep_pairing(now, now, version=3)
    assert kept == now
    assert "version 3's shift and radiometry are kept" in reason


def test_keep_pairing_of_an_earlier_refusal_is_the_new_one(unmoved):
    now, _ = unmoved
    assert pairing.keep_pairing(Pairing(now.coregistration, refused="cloud"), now, version=3) == (now, "")


@pytest.mark.parametrize("window_px", [256, 128])
def test_windows_that_cover_the_scene_are_read_with_it_and_the_same_as_alone(window_px, tmp_path, monkeypatch):
    """Four of 256 px that overlap have more pixels than the scene, four of 128 px have fewer."""
    pre, _ = pair_of(tmp_path, dy=1.3, dx=0.0)
    scene, read = pre.grid.scene, []
    corners = [(0, 0), (0, 128), (128, 0), (128, 128)]
    windows = [Window(y, x, y + window_px, x + window_px).shift(scene.y0, scene.x0) for y, x in corners]
    alone = [next(pairing._greys(pre, [window])) for window in windows]
    reading = store.read_window
    monkeypatch.setattr(store, "read_window", lambda ref, window: read.append(window) or reading(ref, window))
    together = list(pairing._greys(pre, windows))
    assert read == ([scene] if window_px == 256 else windows)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
