"""Any labelled data set or scene as tiles, and splits that never show the same ground on both sides."""

import shutil

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import xarray as xr
from affine import Affine
from shapely.geometry import box

from catalog import store
from catalog.config import data_dir
from catalog.grid import snap_grid
from catalog.schema import BANDS, QUALITY, InputError, StoreError
from catalog.store import StoreRef
from catalog.tiles import LANDSLIDE4SENSE, LANDSLIDE4SENSE_H5
from models.augment import Tiles
from tasks import samples
from tasks.review import simulate_event
from tasks.samples import Cutting, Labels, open_samples, open_tiles, read_labelled_raster, read_labelled_store

EPSG, GSD, SIDE = 32654, 3.0, 200
LEFT, TOP = 583_200.0, 4_736_700.0
SMALL = Cutting(tile_px=32)
SLIDE = box(LEFT + 30, TOP - 90, LEFT + 60, TOP - 60)  # rows 20 to 29, columns 10 to 19


def picture(*, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.integers(30, 70, (3, SIDE, SIDE)) + np.array([10, 20, 0])[:, None, None]).astype(np.uint8)


def write_picture(path, data, **more):
    where = Affine(GSD, 0, LEFT, 0, -GSD, TOP)
    profile = {"driver": "GTiff", "count": len(data), "height": SIDE, "width": SIDE, "dtype": data.dtype}
    with rasterio.open(path, "w", **profile, crs=f"EPSG:{EPSG}", transform=where, **more) as out:
        out.write(data)
    return path


def write_layer(path, *shapes, name="landslides"):
    gpd.GeoDataFrame(geometry=list(shapes), crs=EPSG).to_file(path, layer=name)
    return str(path)


def keep(root, data, *, cloud=None, complete=True):
    """A store of an ingested composite."""
    grid = snap_grid((LEFT, TOP - SIDE * GSD, LEFT + SIDE * GSD, TOP), epsg=EPSG, gsd_m=GSD, block_px=256)
    ref = StoreRef(str(root), "iburi", "post", grid, (*(BANDS[b] for b in ("red", "green", "blue")), QUALITY), 64)
    bands = np.full((3, *grid.shape), np.nan, np.float32)
    bands[(slice(None), *grid.scene.slices)] = np.where(cloud, np.nan, data / 255) if cloud is not None else data / 255
    whole = xr.Dataset({name: (("y", "x"), v) for name, v in zip(("red", "green", "blue"), bands, strict=True)})
    whole["quality"] = (("y", "x"), np.where(np.isfinite(bands[0]), 0, 255).astype(np.uint8))
    store.create_store(ref)
    for block in grid.blocks:
        y, x = grid.window(block).slices
        store.write_block(ref, block, whole.isel(y=y, x=x))
    if complete:
        store.mark_complete(ref)
    return ref


@pytest.fixture
def truth(tmp_path):
    return Labels(write_layer(tmp_path / "truth.gpkg", SLIDE))


def at(tiles, x_m, y_m):
    """Value of the masks at a place; None where no tile lies."""
    for mask, (left, top) in zip(tiles.masks, tiles.corners_m, strict=True):
        row, col = int((top - y_m) // GSD), int((x_m - left) // GSD)
        if 0 <= row < mask.shape[0] and 0 <= col < mask.shape[1]:
            return int(mask[row, col])
    return None


# --- labelled scenes -------------------------------------------------------------------------------------------------


def test_labelled_store_has_its_landslides_where_they_were_mapped(tmp_path, truth):
    tiles = read_labelled_store(keep(tmp_path, picture()), truth, cutting=SMALL)
    assert (tiles.masks == 1).sum() == 100
    assert at(tiles, LEFT + 31, TOP - 61) == 1
    assert at(tiles, LEFT + 29, TOP - 61) == 0


def test_labelled_store_leaves_nothing_of_the_scene_out(tmp_path, truth):
    tiles = read_labelled_store(keep(tmp_path, picture()), truth, cutting=SMALL)
    assert tiles.valid.sum() == SIDE**2


def test_labelled_store_knows_event_pixel_size_and_place(tmp_path, truth):
    tiles = read_labelled_store(keep(tmp_path, picture()), truth, cutting=SMALL)
    assert set(tiles.events.tolist()) == {"iburi"}
    assert set(tiles.gsd_m.tolist()) == {GSD}
    assert not (tiles.corners_m % (32 * GSD)).any()
    assert len(np.unique(tiles.corners_m, axis=0)) == len(tiles)


def test_labelled_store_is_levelled_to_the_reference(tmp_path, truth):
    cutting = Cutting(tile_px=32, reference=(70.0, 60.0, 50.0))
    tiles = read_labelled_store(keep(tmp_path, picture()), truth, cutting=cutting)
    assert tiles.median_rgb() == pytest.approx((70, 60, 50), abs=1)


def test_labelled_store_does_not_label_what_was_not_observed(tmp_path, truth):
    cloud = np.zeros((SIDE, SIDE), bool)
    cloud[15:25] = True
    tiles = read_labelled_store(keep(tmp_path, picture(), cloud=cloud), truth, cutting=SMALL)
    assert at(tiles, LEFT + 31, TOP - 61) == 255
    assert (tiles.masks == 1).sum() == 50
    assert tiles.valid.sum() == SIDE * (SIDE - 10)


def test_labelled_store_does_not_label_what_was_not_looked_at(tmp_path, truth):
    aoi = write_layer(tmp_path / "aoi.gpkg", box(LEFT, TOP - 300, LEFT + 300, TOP), name="looked_at")
    tiles = read_labelled_store(keep(tmp_path, picture()), Labels(truth.landslides, aoi), cutting=SMALL)
    assert tiles.valid.sum() == 100 * 100
    assert tiles.valid.any(axis=(1, 2)).all()


def test_labelled_store_that_is_not_complete_is_refused(tmp_path, truth):
    with pytest.raises(StoreError, match="not complete"):
        read_labelled_store(keep(tmp_path, picture(), complete=False), truth, cutting=SMALL)


def test_labelled_store_without_landslide_in_it_says_so(tmp_path):
    far = write_layer(tmp_path / "far.gpkg", shapely.affinity.translate(SLIDE, 9000))
    with pytest.raises(InputError, match="no landslide lies on observed ground of iburi"):
        read_labelled_store(keep(tmp_path, picture()), Labels(far), cutting=SMALL)


@pytest.mark.parametrize("tile_px", [32, 48])
def test_labelled_raster_is_the_same_as_its_store(tmp_path, truth, tile_px):
    cutting = Cutting(tile_px=tile_px)
    stored = read_labelled_store(keep(tmp_path, picture()), truth, cutting=cutting)
    raster = read_labelled_raster(
        write_picture(tmp_path / "post.tif", picture()), truth, event="iburi", cutting=cutting
    )
    assert np.array_equal(raster.masks, stored.masks)
    assert np.array_equal(raster.corners_m, stored.corners_m)
    assert np.abs(raster.images.astype(int) - stored.images).max() <= 1  # the store rounds reflectance to 1e-4


def test_labelled_raster_does_not_depend_on_what_is_read_at_once(tmp_path, truth, monkeypatch):
    path = write_picture(tmp_path / "post.tif", picture())
    whole = read_labelled_raster(path, truth, event="a", cutting=SMALL)
    monkeypatch.setattr(samples, "READ_TILES", 3)
    parts = read_labelled_raster(path, truth, event="a", cutting=SMALL)
    order = [np.lexsort(tiles.corners_m.T) for tiles in (whole, parts)]
    assert np.array_equal(whole.images[order[0]], parts.images[order[1]])
    assert np.array_equal(whole.masks[order[0]], parts.masks[order[1]])


def test_labelled_raster_of_another_sensor_is_refused(tmp_path, truth):
    path = write_picture(tmp_path / "post.tif", picture().astype(np.uint16) * 20)
    with pytest.raises(InputError, match="got uint16; sensor rgb8 expects uint8"):
        read_labelled_raster(path, truth, event="a", cutting=SMALL)


@pytest.mark.parametrize("sensor", ["rgb8", "sentinel2-l2a"])
def test_simulated_event_is_a_labelled_scene(tmp_path, sensor):
    simulate_event(tmp_path / "quake", size_px=256, gsd_m=10.0, seed=5, sensor=sensor)
    tiles = open_tiles(tmp_path / "quake", cutting=Cutting(tile_px=64, sensor=sensor))
    assert set(tiles.events.tolist()) == {"quake"}
    assert set(tiles.gsd_m.tolist()) == {10.0}
    slide = tiles.images[tiles.masks == 1].astype(int)
    other = tiles.images[tiles.masks == 0].astype(int)
    assert (slide[:, 0] - slide[:, 1]).mean() > (other[:, 0] - other[:, 1]).mean() + 5  # slides are bare: redder
    assert 0.005 < (tiles.masks == 1).sum() / tiles.valid.sum() < 0.08


@pytest.mark.real
def test_hokkaido_scene_agrees_with_its_rasterised_inventory():
    folder = data_dir() / "hokkaido2018"
    labels = Labels(f"{folder / 'inventory_koukita.gpkg'}:scar,deposit")
    tiles = read_labelled_raster(folder / "scene_west" / "post_rgb.tif", labels, event="iburi", cutting=Cutting(256))
    with rasterio.open(folder / "scene_west" / "inventory_class.tif") as raster:
        drawn, where = raster.read(1) > 0, raster.transform
    left, top = where.c, where.f
    both = either = 0
    for mask, (x, y) in zip(tiles.masks, tiles.corners_m, strict=True):
        rows, cols = np.nonzero(mask != 255)
        there = drawn[rows + round((top - y) / 3), cols + round((x - left) / 3)]
        both += (there & (mask[rows, cols] == 1)).sum()
        either += (there | (mask[rows, cols] == 1)).sum()
    assert both / either > 0.97


# --- data sets -------------------------------------------------------------------------------------------------------


def test_open_tiles_of_an_unknown_folder_lists_the_kinds(tmp_path):
    with pytest.raises(InputError, match="got an unknown kind of folder; expected one of: ") as caught:
        open_tiles(tmp_path)
    assert all(name in str(caught.value) for name in samples.DATASETS)


def test_open_tiles_of_no_folder_says_so(tmp_path):
    with pytest.raises(InputError, match="got no folder"):
        open_tiles(tmp_path / "nothing")


def pair(folder, name, *, slides=((0, 0),)):
    mask = np.zeros((1, SIDE, SIDE), np.uint8)
    for y, x in slides:
        mask[:, y : y + 4, x : x + 4] = 1
    folder.mkdir(exist_ok=True)
    write_picture(folder / f"{name}_image.tif", picture())
    write_picture(folder / f"{name}_mask.tif", mask)


@pytest.fixture
def pairs(tmp_path):
    folder = tmp_path / "pairs"
    for name in "abc":
        pair(folder, name)
    (folder / "split.csv").write_text("name,event\na,gorkha\nb,iburi\nc,kodagu\n")
    return folder


def test_open_samples_never_has_an_event_on_both_sides(pairs):
    opened = open_samples(pairs, held_out=["iburi"], cutting=SMALL)
    assert set(opened.validation.events.tolist()) == {"iburi"}
    assert set(opened.train.events.tolist()) == {"gorkha", "kodagu"}
    assert "iburi" in opened.split


def test_open_samples_leaves_events_out_of_both_sides(pairs):
    opened = open_samples(pairs, left_out=["kodagu"], held_out=["iburi"], cutting=SMALL)
    assert set(opened.train.events.tolist()) == {"gorkha"}
    assert set(opened.validation.events.tolist()) == {"iburi"}


@pytest.mark.parametrize("more", [{"held_out": ["x"]}, {"left_out": ["gorkha", "iburi", "kodagu"]}])
def test_open_samples_names_the_events_it_has(pairs, more):
    with pytest.raises(InputError, match="expected some, not all, of gorkha, iburi, kodagu"):
        open_samples(pairs, cutting=SMALL, **more)


def test_open_samples_with_landslides_on_one_side_only_is_refused(tmp_path):
    pair(tmp_path / "one", "a")
    with pytest.raises(InputError, match="one side without a landslide"):
        open_samples(tmp_path / "one", cutting=SMALL)


@pytest.fixture(scope="module")
def landslide4sense():
    return open_samples(data_dir() / LANDSLIDE4SENSE, left_out="B")


@pytest.mark.real
def test_open_samples_of_landslide4sense_keeps_the_published_split(landslide4sense):
    assert (len(landslide4sense.train), len(landslide4sense.validation)) == (1309, 373)
    assert landslide4sense.split == "the published split, without the events B"


@pytest.mark.real
def test_reference_is_the_tone_of_landslide4sense(landslide4sense):
    assert landslide4sense.train.median_rgb() == Cutting().reference


@pytest.mark.real
def test_open_samples_of_tiles_without_place_asks_for_events():
    with pytest.raises(InputError, match="hold out events, of A, D"):
        open_samples(data_dir() / LANDSLIDE4SENSE_H5)


@pytest.mark.real
def test_open_samples_of_the_original_form_splits_by_block():
    opened = open_samples(data_dir() / LANDSLIDE4SENSE_H5, held_out="D")
    assert set(opened.train.events.tolist()) == {"A"}


# --- splits ----------------------------------------------------------------------------------------------------------


def placed(corners_m, *, side=32):
    count = len(corners_m)
    images, masks = np.zeros((count, side, side, 3), np.uint8), np.zeros((count, side, side), np.uint8)
    return Tiles(images, masks, np.array(10.0), corners_m=np.array(corners_m, float))


def lattice(rows, cols, *, step=320.0):
    return placed([(500_000 + x * step, 4_700_000 - y * step) for y in range(rows) for x in range(cols)])


def boxes(tiles):
    return shapely.unary_union([box(x, y - 320, x + 320, y) for x, y in tiles.corners_m])


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_split_in_space_takes_about_its_share_and_every_tile_once(share):
    tiles = lattice(40, 40)
    train, validation = samples.split_in_space(tiles, share=share)
    assert len(train) + len(validation) == len(tiles)
    assert len(validation) / len(tiles) == pytest.approx(share, abs=0.05)


def test_split_in_space_keeps_neighbours_together():
    _, validation = samples.split_in_space(lattice(40, 40), share=0.25)
    assert boxes(validation).length < 0.3 * 4 * 320 * len(validation)  # alone, each would have four sides


def test_split_in_space_is_the_same_in_any_order():
    tiles = lattice(20, 20)
    mixed = tiles.take(np.random.default_rng(0).permutation(len(tiles)))
    first, again = (samples.split_in_space(each, share=0.25)[1].corners_m.tolist() for each in (tiles, mixed))
    assert sorted(first) == sorted(again)


def test_split_in_space_never_shows_the_same_ground_on_both_sides():
    tiles = placed(np.random.default_rng(0).uniform(0, 20_000, (600, 2)))  # pairs that overlap one another
    train, validation = samples.split_in_space(tiles, share=0.25)
    assert boxes(train).intersection(boxes(validation)).area < 1e-3 * boxes(validation).area
    assert len(train) > 200


def test_split_in_space_of_too_little_ground_says_so():
    with pytest.raises(InputError, match="too few for a share of 0.1"):
        samples.split_in_space(lattice(4, 4), share=0.1)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_split_in_space_refuses_a_share_that_is_none(share):
    with pytest.raises(InputError, match="expected between 0 and 1"):
        samples.split_in_space(lattice(8, 8), share=share)


@pytest.mark.real
def test_split_in_space_of_the_hokkaido_scene_has_landslides_on_both_sides(tmp_path):
    source = data_dir() / "hokkaido2018"
    shutil.copy(source / "scene_west" / "post_rgb.tif", tmp_path / "post.tif")
    slides = gpd.read_file(source / "inventory_koukita.gpkg", layer="scar")
    slides.to_file(tmp_path / "truth.gpkg", layer="landslides")
    opened = open_samples(tmp_path, share=0.25)
    assert boxes_of(opened.train).intersection(boxes_of(opened.validation)).area == pytest.approx(0, abs=1)


def boxes_of(tiles):
    side = tiles.masks.shape[1] * tiles.gsd_m[0]
    return shapely.unary_union([box(x, y - side, x + side, y) for x, y in tiles.corners_m])
