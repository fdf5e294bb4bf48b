"""No grid is made that nobody asked for: scenes that differ much, and very large areas, need a stated pixel size."""

import numpy as np
import pytest
import rasterio
from affine import Affine

from catalog.checks import check_inputs
from catalog.config import RunConfig
from catalog.grid import snap_grid
from catalog.pixel_size import MOST_PIXELS, check_size
from catalog.schema import InputError

LEFT, TOP = 583_200.0, 4_737_000.0


def scene(path, gsd_m, *, size=64):
    data = np.random.default_rng(0).integers(20, 200, (3, size, size)).astype(np.uint8)
    profile = {"driver": "GTiff", "count": 3, "height": size, "width": size, "dtype": "uint8", "crs": "EPSG:32654"}
    with rasterio.open(path, "w", **profile, transform=Affine(gsd_m, 0, LEFT, 0, -gsd_m, TOP)) as out:
        out.write(data)
    return str(path)


def grid_of(tmp_path, *posts, **given):
    places = {"root": str(tmp_path / "s"), "out": str(tmp_path / "o"), "block_px": 256, "name": "e"}
    return check_inputs(RunConfig(post=posts, **places, **given)).grid


def test_one_fine_scene_beside_coarse_ones_is_asked_about(tmp_path):
    posts = [scene(tmp_path / "a.tif", 10.0), scene(tmp_path / "fine.tif", 0.01)]
    with pytest.raises(InputError, match=r"0\.01 m \(fine\.tif\) and of 10 m \(a\.tif\); .*--gsd"):
        grid_of(tmp_path, *posts)
    assert grid_of(tmp_path, *posts, gsd_m=10.0).gsd_m == 10


def test_scenes_of_about_one_size_need_no_word(tmp_path):
    posts = [scene(tmp_path / "a.tif", 10.0), scene(tmp_path / "b.tif", 4.0)]
    assert grid_of(tmp_path, *posts).gsd_m == 4


def test_very_large_grid_needs_a_stated_pixel_size():
    def grid(gsd_m, side_m):
        return snap_grid((LEFT, TOP - side_m, LEFT + side_m, TOP), epsg=32654, gsd_m=gsd_m, block_px=2048)

    side_px = int(MOST_PIXELS**0.5)
    with pytest.raises(InputError, match=r"pixels of 0\.01 m; expected .* at most .*--gsd .* --aoi"):
        check_size(grid(0.01, 5140.48), stated=None)
    assert check_size(grid(0.01, 5140.48), stated=0.01)
    assert check_size(grid(10, side_px * 10 - 10), stated=None)
