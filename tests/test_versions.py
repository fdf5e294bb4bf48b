"""What a published version tells the next one."""

import geopandas as gpd
import numpy as np
import rasterio
import shapely
import xarray as xr
from affine import Affine

from catalog import store
from catalog.grid import snap_grid
from catalog.schema import LANDSLIDE_CLASS
from catalog.store import StoreRef
from catalog.versions import Version, latest_version, next_version, versions

LEFT, TOP, SIDE, GSD_M = 500_000.0, 4_003_000.0, 300, 10.0


def write_classes(folder, values, *, gsd_m=GSD_M):
    folder.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": 1, "height": SIDE, "width": SIDE, "dtype": "uint8", "nodata": 255}
    transform = Affine(gsd_m, 0, LEFT, 0, -gsd_m, TOP)
    with rasterio.open(folder / "class.tif", "w", **profile, crs="EPSG:32633", transform=transform) as out:
        out.write(values, 1)
    return Version(1, folder)


def test_next_version_starts_at_one(tmp_path):
    assert next_version(tmp_path, "nothing") == 1
    assert latest_version(tmp_path, "nothing") is None


def test_versions_are_counted_numerically_and_partial_ones_skipped(tmp_path):
    for name in ("v2", "v10", ".v11.partial", "vault"):
        (tmp_path / "e" / name).mkdir(parents=True)
    assert [version.number for version in versions(tmp_path, "e")] == [2, 10]
    assert next_version(tmp_path, "e") == 11


def test_latest_version_has_an_inventory(tmp_path):
    for name in ("v1", "v2", "v3"):
        (tmp_path / "e" / name).mkdir(parents=True)
    (tmp_path / "e/v1/inventory.gpkg").touch()
    (tmp_path / "e/v2/inventory.gpkg").touch()
    assert latest_version(tmp_path, "e").number == 2


def test_observed_at_is_false_on_unseen_ground_and_outside(tmp_path):
    values = np.zeros((SIDE, SIDE), np.uint8)
    values[:, :100] = 255
    version = write_classes(tmp_path, values)
    points = gpd.GeoSeries(shapely.points(LEFT + np.array([505.0, 1505.0, -50.0]), TOP - 505.0), crs="EPSG:32633")
    assert version.observed_at(points).tolist() == [False, True, False]
    assert version.observed_at(points.iloc[:0]).tolist() == []
    assert version.observed_at(points.to_crs(4326)).tolist() == [False, True, False]


def test_newly_observed_is_what_only_the_later_classes_see(tmp_path):
    before = np.zeros((SIDE, SIDE), np.uint8)
    before[:, :100] = 255
    version = write_classes(tmp_path, before)
    bounds = (LEFT, TOP - SIDE * GSD_M, LEFT + SIDE * GSD_M, TOP)
    grid = snap_grid(bounds, epsg=32633, gsd_m=GSD_M, block_px=256)
    ref = StoreRef(str(tmp_path / "store"), "e", "class-1", grid, (LANDSLIDE_CLASS,), 256)
    now = np.full(grid.shape, 255, np.uint8)
    rows, cols = grid.scene.slices
    now[rows, slice(cols.start + 50, cols.stop)] = 0
    store.create_store(ref)
    for block in grid.blocks:
        window = grid.window(block)
        store.write_block(ref, block, _dataset(now[window.slices]))
    store.mark_complete(ref)
    assert version.newly_observed_m2(ref) == 50 * SIDE * GSD_M**2
    assert write_classes(tmp_path / "coarse", before, gsd_m=20.0).newly_observed_m2(ref) is None
    points = gpd.GeoSeries(shapely.points(LEFT + np.array([105.0, 505.0, -9e5]), TOP - 5.0), crs="EPSG:32633")
    assert store.read_points(ref, points).tolist() == [255, 0, 255]


def _dataset(values):
    return xr.Dataset({"landslide_class": (("y", "x"), values)})
