from hypothesis import given
from hypothesis import strategies as st

from catalog.grid import Grid, Window, regrid, snap_grid

sizes = st.sampled_from([256, 512, 2048])
metres = st.floats(-1e6, 1e6).map(lambda v: round(v, 1))


@given(metres, metres, st.floats(10, 30_000), st.floats(10, 30_000), sizes, st.sampled_from([3.0, 10.0, 30.0]))
def test_snap_grid_covers_the_bounds_in_whole_blocks(left, bottom, width, height, block_px, gsd_m):
    grid = snap_grid((left, bottom, left + width, bottom + height), epsg=32633, gsd_m=gsd_m, block_px=block_px)
    box = grid.geobox_of(grid.scene).boundingbox
    assert box.left <= left + gsd_m * 1e-5
    assert box.right >= left + width - gsd_m * 1e-5
    assert grid.row0 % block_px == grid.col0 % block_px == 0
    assert all(n % block_px == 0 for n in grid.shape)


@given(metres, metres, sizes)
def test_grid_blocks_tile_the_scene_once(left, bottom, block_px):
    grid = snap_grid((left, bottom, left + 9000, bottom + 7000), epsg=32633, gsd_m=10.0, block_px=block_px)
    parts = [grid.window(b).intersect(grid.scene) for b in grid.blocks]
    assert sum(p.shape[0] * p.shape[1] for p in parts) == grid.scene.shape[0] * grid.scene.shape[1]


def test_grid_block_ids_do_not_depend_on_the_area():
    small = snap_grid((500_000, 0, 510_000, 9_000), epsg=32633, gsd_m=10.0, block_px=512)
    large = snap_grid((470_000, -20_000, 530_000, 30_000), epsg=32633, gsd_m=10.0, block_px=512)

    def where(grid: Grid) -> dict:
        return {b.id: grid.geobox_of(grid.window(b)).boundingbox for b in grid.blocks}

    assert where(small).items() <= where(large).items()


def test_regrid_keeps_the_area():
    grid = snap_grid((500_000, 0, 510_000, 9_000), epsg=32633, gsd_m=10.0, block_px=512)
    coarse = regrid(grid, gsd_m=30.0)
    assert coarse.geobox_of(coarse.scene).boundingbox.left <= 500_000
    assert coarse.scene.shape == (300, 334)


def test_window_intersection_of_strangers_is_empty():
    assert Window(0, 0, 5, 5).intersect(Window(7, 7, 9, 9)).empty
