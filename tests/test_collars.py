"""A collar that is nearly black is not observed, ground as dark is; whichever piece is read says the same."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy.ndimage import gaussian_filter

from catalog.checks import check_inputs, check_scene
from catalog.collars import with_collars
from catalog.config import RunConfig
from catalog.items import LOCAL, local_item
from catalog.scenes import Epoch, read_epoch
from catalog.sensors import COLLAR, sensor

SIDE, WIDTH = 400, 150
PLACE = Affine(3, 0, 583_200, 0, -3, 4_737_000)
BOX = GeoBox((SIDE, SIDE), PLACE, "EPSG:32654")


def write(path, values, **more):
    profile = {"driver": "GTiff", "count": len(values), "height": SIDE, "width": SIDE, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, crs="EPSG:32654", transform=PLACE, **more) as out:
        out.write(values)
    return str(path)


def ground():
    rough = gaussian_filter(np.random.default_rng(0).normal(size=(3, SIDE, SIDE)), (0, 2, 2))
    return (90 + 300 * rough).clip(30, 220).astype(np.uint8)


def collared(*, collar=True, shade=False):
    """Ground; left of it 150 columns of 0 to 3; or shade in it, whose numbers go down to as much."""
    values = ground()
    noise = np.random.default_rng(2).integers(0, 4, (3, SIDE, SIDE)).astype(np.uint8)
    noise[0] = 1
    if collar:
        values[:, :, :WIDTH] = noise[:, :, :WIDTH]
    if shade:
        values[:, 100:300, 250:350] = noise[:, 100:300, 250:350] * 4
    return values


def checked(path, **more):
    inputs = check_inputs(RunConfig(name="e", post=(path,), **more))
    return inputs, [told for told in inputs.warnings if "looks like a collar" in told]


def seen_of(epoch, geobox=BOX):
    return np.isfinite(read_epoch(epoch, geobox)[0].red.to_numpy())


def test_collar_that_is_nearly_black_is_not_observed(tmp_path):
    inputs, (told,) = checked(write(tmp_path / "p.tif", collared()))
    assert "38% of it" in told
    assert "not observed" in told
    assert not seen_of(inputs.post)[:, :WIDTH].any()
    assert seen_of(inputs.post)[:, WIDTH:].all()


def test_border_that_is_bright_in_the_near_infrared_is_no_collar(tmp_path):
    values = np.concatenate([collared(), np.full((1, SIDE, SIDE), 90, np.uint8)])
    inputs, told = checked(write(tmp_path / "p.tif", values, photometric="rgb"), sensor="rgbnir8")
    assert not told
    assert seen_of(inputs.post).all()


@pytest.mark.parametrize("collar", [True, False], ids=["collar", "none"])
def test_collar_beside_ground_as_dark_is_only_told_of(tmp_path, collar):
    inputs, told = checked(write(tmp_path / "p.tif", collared(collar=collar, shade=True)))
    assert [("ground in it is as dark" in text) for text in told] == [True] * collar
    dark = collared(collar=collar, shade=True).max(axis=0) == 0
    assert (seen_of(inputs.post) == ~dark).all()


def test_collar_of_jpeg_compression_is_not_observed(tmp_path):
    values = ground()
    y, x = np.mgrid[:SIDE, :SIDE]
    outside = x + y // 4 < WIDTH
    values[:, outside] = 0
    path = write(tmp_path / "p.tif", values, compress="jpeg", jpeg_quality=75, photometric="ycbcr", tiled=True)
    with rasterio.open(path) as dataset:
        stored = dataset.read().max(axis=0)
    inputs, told = checked(path)
    assert len(told) == 1
    assert ((stored > 0) & (stored <= 3) & outside).mean() > 0.005
    assert (seen_of(inputs.post) == (stored > 3)).all()


def test_collar_is_the_same_in_any_piece_and_of_any_block_size(tmp_path):
    path = write(tmp_path / "p.tif", collared())
    inputs, _ = checked(path, block_px=256)
    assert inputs.post.fingerprint() == checked(path, block_px=1024)[0].post.fingerprint()
    whole = seen_of(inputs.post)
    inside = GeoBox((50, 50), PLACE * Affine.translation(100, 100), "EPSG:32654")  # nothing of the picture's border
    assert (seen_of(inputs.post, inside) == whole[100:150, 100:150]).all()


def test_collar_belongs_to_the_identity_of_what_is_read(tmp_path):
    path = write(tmp_path / "p.tif", collared())
    epoch = checked(path)[0].post
    (item,) = epoch.items
    undecided = {key: value for key, value in item["properties"].items() if key != "landslidenet:collar"}
    other = type(epoch)(epoch.role, epoch.sensor, ({**item, "properties": undecided},))
    assert other.fingerprint() != epoch.fingerprint()


def test_collar_of_a_scene_that_is_checked_alone(tmp_path):
    epoch, _ = check_scene(write(tmp_path / "p.tif", collared()), sensor_name="rgb8")
    assert not seen_of(epoch)[:, :WIDTH].any()


@pytest.mark.parametrize("overviews", [True, False], ids=["overviews", "none"])
def test_collar_of_a_searched_picture_is_found_where_that_reads_little(tmp_path, overviews):
    """A tenfold larger picture, whose item names its file: only a reduced one is worth fetching."""
    path = tmp_path / "p.tif"
    large = collared().repeat(10, axis=1).repeat(10, axis=2)
    profile = {"driver": "GTiff", "count": 3, "height": 10 * SIDE, "width": 10 * SIDE, "dtype": "uint8", "tiled": True}
    with rasterio.open(path, "w", **profile, crs="EPSG:32654", transform=PLACE * Affine.scale(0.1)) as out:
        out.write(large)
        if overviews:
            out.build_overviews([2, 4, 8])
    item = local_item(path, sensor("rgb8")).to_dict(transform_hrefs=False)
    del item["properties"][LOCAL]
    (epoch,), told = with_collars([Epoch("post", "rgb8", (item,))])
    assert len(told) == overviews
    assert epoch.items[0]["properties"].get(COLLAR) == (3 if overviews else None)
