"""A DEM for drainage: cells are means of pixels, and it is read once, a block at a time."""

import tracemalloc

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from catalog import store
from catalog.grid import snap_grid
from catalog.schema import ELEVATION
from catalog.store import StoreRef
from tasks.blocks import coarse_elevation
from tasks.coarsening import BlockMeans


@given(
    shape=st.tuples(st.integers(1, 23), st.integers(1, 23)),
    factor=st.integers(1, 9),
    cuts=st.lists(st.integers(1, 22), max_size=4),
    seed=st.integers(0, 9),
)
def test_block_means_of_pieces_are_those_of_the_whole(shape, factor, cuts, seed):
    dem = np.random.default_rng(seed).normal(500, 90, shape).astype(np.float32)
    dem[np.random.default_rng(seed + 1).random(shape) < 0.4] = np.nan
    cells = BlockMeans(shape, factor=factor)
    rows, cols = (sorted({0, side, *(cut for cut in cuts if cut < side)}) for side in shape)
    for y0, y1 in zip(rows, rows[1:], strict=False):
        for x0, x1 in zip(cols, cols[1:], strict=False):
            cells.add(dem[y0:y1, x0:x1], origin=(y0, x0))
    expected = np.full([-(-side // factor) for side in shape], np.nan)
    for y, x in np.ndindex(*expected.shape):
        there = dem[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
        if np.isfinite(there).any():
            expected[y, x] = np.nanmean(there.astype(np.float64))
    np.testing.assert_allclose(cells.means(), expected, rtol=1e-6)


@pytest.fixture
def elevation(tmp_path):
    """A DEM in sixteen blocks that the scene does not fill."""
    grid = snap_grid((500_000, 4_000_000, 506_000, 4_005_500), epsg=32633, gsd_m=3.0, block_px=512)
    ref = StoreRef(str(tmp_path), "event", "elevation", grid, (ELEVATION,), 512)
    store.create_store(ref)
    for block in grid.blocks:
        place = grid.geobox_of(grid.window(block))
        y, x = np.meshgrid(*(place.coordinates[name].values for name in place.dimensions), indexing="ij")
        hills = (300 + 80 * np.sin(x / 900) * np.cos(y / 700) + x / 100 - 5000).astype(np.float32)
        hills[::7, ::5] = np.nan
        store.write_block(ref, block, xr.Dataset({"elevation_m": (("y", "x"), hills)}))
    store.mark_complete(ref)
    return ref


def test_coarse_elevation_is_that_of_the_whole_without_holding_it(elevation):
    scene = elevation.grid.scene
    tracemalloc.start()
    coarse = coarse_elevation(elevation, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    dem = store.read_window(elevation, scene)["elevation_m"].values
    assert peak < dem.nbytes
    padded = np.pad(dem, [(0, -side % 3) for side in dem.shape], constant_values=np.nan)
    cells = padded.reshape(padded.shape[0] // 3, 3, padded.shape[1] // 3, 3).astype(np.float64)
    np.testing.assert_allclose(coarse, np.nanmean(cells, axis=(1, 3)), rtol=1e-7)
