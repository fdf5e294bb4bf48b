"""Labelled tiles from disk: Landslide4Sense in both forms, pairs of GeoTIFFs, and how an image is cut."""

import logging
import shutil

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from catalog.checks import check_scene
from catalog.config import data_dir
from catalog.pairs import has_pairs, read_pairs
from catalog.scenes import read_epoch
from catalog.schema import InputError
from catalog.tiles import (
    LANDSLIDE4SENSE,
    LANDSLIDE4SENSE_H5,
    cut,
    read_landslide4sense,
    read_landslide4sense_h5,
)
from models.augment import Tiles

LEFT, TOP, GSD = 583_000.0, 4_737_000.0, 3.0


def write(path, data, *, left=LEFT, top=TOP, crs="EPSG:32654", **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.atleast_3d(data.T).T
    profile = {"driver": "GTiff", "count": len(data), "height": data.shape[1], "width": data.shape[2]}
    where = Affine(GSD, 0, left, 0, -GSD, top)
    with rasterio.open(path, "w", **profile, dtype=data.dtype, crs=crs, transform=where, **more) as out:
        out.write(data)


def picture(height=40, width=56, *, seed=0):
    return np.random.default_rng(seed).integers(1, 200, (3, height, width)).astype(np.uint8)


def marked(height=40, width=56):
    mask = np.zeros((height, width), np.uint8)
    mask[3:6, 3:6] = 1
    return mask


@pytest.fixture
def pairs(tmp_path):
    folder = tmp_path / "kaikoura"
    write(folder / "images" / "a.tif", picture())
    write(folder / "masks" / "a.tif", marked())
    return folder


# --- cutting ---------------------------------------------------------------------------------------------------------


def test_cut_puts_the_pixels_where_they_were():
    image = picture().astype(np.float32)
    tiles, _, first = cut(image, marked(), tile_px=16)
    for tile, (y, x) in zip(tiles, first, strict=True):
        there = np.moveaxis(image[:, y : y + 16, x : x + 16], 0, -1)
        assert np.array_equal(tile[: there.shape[0], : there.shape[1]], there)


def test_cut_leaves_tiles_without_a_labelled_pixel_out():
    mask = np.full((32, 32), 255, np.uint8)
    mask[20, 20] = 1
    _, masks, first = cut(np.ones((3, 32, 32), np.float32), mask, tile_px=16)
    assert first.tolist() == [[16, 16]]
    assert (masks == 1).sum() == 1


def test_cut_shows_unobserved_pixels_in_the_mean_colour_and_unlabelled():
    image = np.full((3, 16, 16), 40, np.float32)
    image[:, :, 8:] = 60
    image[1, :4] = np.nan
    tiles, masks, _ = cut(image, np.zeros((16, 16), np.uint8), tile_px=16)
    assert (masks[0, :4] == 255).all()
    assert (masks[0, 4:] == 0).all()
    assert (tiles[0, :4] == 50).all()


# --- Landslide4Sense -------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_landslide4sense_tiles_know_their_block():
    kept = Tiles(*read_landslide4sense(data_dir() / LANDSLIDE4SENSE, split="validation", without_blocks="B"))
    assert set(kept.events.tolist()) == {"A", "C", "D"}
    assert set(kept.gsd_m.tolist()) == {10.0}


@pytest.mark.real
def test_landslide4sense_h5_is_the_published_picture_to_the_bit():
    original = read_landslide4sense_h5(data_dir() / LANDSLIDE4SENSE_H5)
    pictures = read_landslide4sense(data_dir() / LANDSLIDE4SENSE, split="train")
    known = {image.tobytes(): (event, mask) for image, event, mask in
             zip(pictures.images, pictures.events, pictures.masks, strict=True)}  # fmt: skip
    same = [known.get(image.tobytes()) for image in original.images]
    assert (
        sum(found is not None for found in same) == 3
    )  # 42, 1002 and 3597; 168 is a validation tile, two were dropped
    for found, event, mask in zip(same, original.events, original.masks, strict=True):
        assert found is None or (found[0] == event and np.array_equal(found[1], mask))


@pytest.mark.real
def test_landslide4sense_h5_names_the_mask_without_image(caplog):
    with caplog.at_level(logging.WARNING):
        tiles = read_landslide4sense_h5(data_dir() / LANDSLIDE4SENSE_H5)
    assert len(tiles.images) == 6
    assert "mask_1006.h5" in caplog.text


@pytest.mark.real
def test_landslide4sense_h5_of_the_published_validation_set_has_no_blocks(tmp_path):
    folder = tmp_path / "ValidData"
    shutil.copytree(data_dir() / LANDSLIDE4SENSE_H5, folder)
    assert set(read_landslide4sense_h5(folder).events.tolist()) == {"ValidData"}


@pytest.mark.real
def test_landslide4sense_h5_that_is_no_hdf5_is_one_message(tmp_path):
    shutil.copytree(data_dir() / LANDSLIDE4SENSE_H5, tmp_path / "h5")
    (tmp_path / "h5" / "img" / "image_42.h5").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"image_42\.h5.* cannot be read"):
        read_landslide4sense_h5(tmp_path / "h5")


def test_landslide4sense_h5_without_pair_says_what_it_takes(tmp_path):
    with pytest.raises(InputError, match="got 0 images and 0 masks .* expected img/image_N.h5"):
        read_landslide4sense_h5(tmp_path)


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_pairs_are_cut_and_padded(pairs):
    tiles = Tiles(*read_pairs(pairs, tile_px=32))
    assert tiles.images.shape == (4, 32, 32, 3)
    assert np.array_equal(tiles.masks[0], marked()[:32, :32])
    assert (tiles.masks[3, 8:] == 255).all()
    assert (tiles.masks[3, :, 24:] == 255).all()


def test_pairs_know_event_pixel_size_and_place(pairs):
    tiles = read_pairs(pairs, tile_px=32)
    assert set(tiles.events.tolist()) == {"kaikoura"}
    assert set(tiles.gsd_m.tolist()) == {GSD}
    assert tiles.corners_m[3].tolist() == [LEFT + 32 * GSD, TOP - 32 * GSD]


def test_pairs_beside_each_other_are_found_by_their_endings(tmp_path):
    write(tmp_path / "a_image.tif", picture())
    write(tmp_path / "a_mask.tif", marked())
    assert has_pairs(tmp_path)
    assert len(read_pairs(tmp_path, tile_px=32).images) == 4


def test_pairs_take_their_events_from_the_table(pairs):
    for kind, data in (("images", picture(seed=1)), ("masks", marked())):
        write(pairs / kind / "b.tif", data, left=LEFT + 500)
    (pairs / "split.csv").write_text("name,event\nb,gorkha\na,iburi\n")
    assert read_pairs(pairs, tile_px=40).events.tolist() == ["iburi", "iburi", "gorkha", "gorkha"]


@pytest.mark.parametrize(
    ("table", "message"),
    [("name,event\nb,x\n", "no event for a"), ("tile,region\na,x\n", "expected name, event")],
)
def test_pairs_with_an_incomplete_table_say_so(pairs, table, message):
    (pairs / "split.csv").write_text(table)
    with pytest.raises(InputError, match=message):
        read_pairs(pairs, tile_px=32)


def test_pairs_do_not_label_transparent_pixels(pairs):
    alpha = np.full((1, 40, 56), 255, np.uint8)
    alpha[:, :, 30:] = 0
    write(pairs / "images" / "a.tif", np.concatenate([picture(), alpha]), photometric="RGB", alpha="YES")
    assert (read_pairs(pairs, tile_px=40).masks[:, :, 30:] == 255).all()


@pytest.mark.parametrize("shade", [0, 255, 7], ids=["black", "white", "nodata"])
def test_pairs_see_what_a_scene_of_the_same_file_sees(pairs, shade):
    image = picture().clip(8, 254)
    image[:, :, 30:] = shade
    image[0, 5] = shade  # in one band: seen
    write(pairs / "images" / "a.tif", image, nodata=7)
    epoch, _ = check_scene(pairs / "images" / "a.tif", sensor_name="rgb8")
    (scene,) = read_epoch(epoch, GeoBox((40, 40), Affine(GSD, 0, LEFT, 0, -GSD, TOP), "EPSG:32654"))
    labelled = read_pairs(pairs, tile_px=40).masks[0] != 255
    assert np.array_equal(labelled, np.isfinite(scene.red.to_numpy()))
    assert labelled[:, :30].all()
    assert not labelled[:, 30:].any()


@pytest.mark.parametrize(
    ("kind", "data", "more", "message"),
    [
        ("images", picture().astype(np.uint16), {}, "got 3 band.* of uint16; expected red, green and blue of uint8"),
        ("images", picture()[:1], {}, "got 1 band"),
        ("images", picture(40, 57), {}, r"got \(40, 56\) px; expected \(40, 57\)"),
        ("masks", marked().astype(np.float32), {}, "got 1 band.* of float32"),
        ("masks", marked() * 7, {}, r"got values \[7\]"),
        ("masks", marked() * 255, {}, r"no mask holds a 1, only \[0, 255\]"),
        ("masks", np.full_like(marked(), 255), {}, "no pixel that is labelled and seen"),
        ("masks", marked(), {"left": LEFT + 30}, "lies elsewhere"),
    ],
)
def test_pairs_that_do_not_fit_are_one_message(pairs, kind, data, more, message):
    write(pairs / kind / "a.tif", data, **more)
    with pytest.raises(InputError, match=message):
        read_pairs(pairs, tile_px=32)


def test_pairs_smaller_than_a_tile_are_refused(pairs):
    with pytest.raises(InputError, match=r"got \(40, 56\) px; expected at least one tile of 64 px"):
        read_pairs(pairs, tile_px=64)


def test_pairs_without_partner_are_named(pairs):
    write(pairs / "images" / "b.tif", picture())
    with pytest.raises(InputError, match="b has no mask"):
        read_pairs(pairs, tile_px=32)


def test_pairs_of_an_empty_folder_say_what_is_expected(tmp_path):
    assert not has_pairs(tmp_path)
    with pytest.raises(InputError, match="got no image; expected images/X.tif with masks/X.tif"):
        read_pairs(tmp_path, tile_px=32)


@pytest.mark.real
def test_pairs_of_the_hokkaido_patches_are_read_as_they_are(tmp_path):
    source = data_dir() / "hokkaido2018" / "patches"
    for name in ("370", "371"):
        shutil.copy(source / f"{name}_post_rgb.tif", tmp_path / f"{name}_image.tif")
        shutil.copy(source / f"{name}_mask_xiaoao.tif", tmp_path / f"{name}_mask.tif")
    tiles = read_pairs(tmp_path, tile_px=128)
    assert tiles.images.shape == (8, 128, 128, 3)
    assert set(tiles.gsd_m.tolist()) == {3.0}
    with rasterio.open(source / "370_post_rgb.tif") as patch:
        assert np.array_equal(tiles.images[0], np.moveaxis(patch.read(), 0, -1)[:128, :128])
