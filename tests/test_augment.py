from dataclasses import replace

import numpy as np
import pytest
import torch

from models.augment import UNLABELLED, Augmentation, Sampler, Tiles

STILL = Augmentation(zoom=(1.0, 1.0), brightness=0.0, chroma=0.0, gamma=0.0, saturation=0.0, haze=0.0)


def _tiles(seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(20, 120, (6, 32, 32, 3)).astype(np.uint8)
    return Tiles(images, (images[..., 0] > 90).astype(np.uint8))


def _sampler(augmentation=STILL, seed=1, crop_px=32):
    return Sampler(_tiles(), augmentation, crop_px=crop_px, rng=np.random.default_rng(seed))


def test_batch_is_the_same_for_the_same_seed_and_another_for_another():
    first, again, other = (_sampler(Augmentation(), seed).batch(3) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("crop_px", [16, 32, 48])
def test_batch_has_images_in_0_255_and_labels(crop_px):
    images, labels = _sampler(Augmentation(), crop_px=crop_px).batch(2)
    assert images.shape == (2, 3, crop_px, crop_px)
    assert labels.shape == (2, crop_px, crop_px)
    assert images.min() >= 0
    assert images.max() <= 255
    assert set(labels.unique().tolist()) <= {0, 1, 255}


def test_sample_keeps_image_and_mask_together():
    tiles = _tiles()
    striped = Tiles(np.repeat(tiles.masks[..., None] * 100 + 40, 3, axis=-1).astype(np.uint8), tiles.masks)
    sampler = Sampler(striped, STILL, crop_px=32, rng=np.random.default_rng(3))
    images, labels = sampler.batch(4)
    slide, other = (images.mean(dim=1)[labels == k].mean().item() for k in (1, 0))
    assert slide - other > 60


def _plain(*, gsd_m=10.0, events="", count=4, side=32, value=50):
    images = np.full((count, side, side, 3), value, np.uint8)
    return Tiles(images, np.zeros((count, side, side), np.uint8), np.array(gsd_m), np.array(events))


IMAGES, MASKS = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((2, 8, 8, 3))}, "got images float64 .* expected uint8"),
        ({"images": np.zeros((2, 8, 8, 4), np.uint8)}, r"expected uint8 \(N, H, W, 3\)"),
        ({"masks": MASKS[:, :7]}, r"got masks uint8 \(2, 7, 8\)"),
        ({"masks": MASKS + 7}, r"mask values \[7\]"),
        ({"gsd_m": np.ones(3)}, r"gsd_m of shape \(3,\)"),
        ({"gsd_m": np.zeros(2)}, "expected all above 0"),
    ],
)
def test_tiles_refuse_what_does_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        Tiles(**{"images": IMAGES, "masks": MASKS} | change)


def test_tiles_take_keeps_what_belongs_together():
    tiles = _tiles()
    named = Tiles(tiles.images, tiles.masks, np.arange(1.0, 7), np.array(list("abcdef")))
    taken = named.take(np.array([4, 1]))
    assert taken.events.tolist() == ["e", "b"]
    assert taken.gsd_m.tolist() == [5, 2]
    assert np.array_equal(taken.images, tiles.images[[4, 1]])


def test_tiles_join_one_after_the_other():
    joined = Tiles.join([_plain(events="a", gsd_m=3.0), _plain(events="b", count=1)])
    assert joined.events.tolist() == ["a"] * 4 + ["b"]
    assert joined.gsd_m.tolist() == [3.0] * 4 + [10.0]


def test_tiles_join_refuses_two_sizes():
    with pytest.raises(ValueError, match="16 x 16 px of red, green, blue; 32 x 32 px"):
        Tiles.join([_plain(side=32), _plain(side=16)])


def test_tiles_join_refuses_nothing():
    with pytest.raises(ValueError, match="got none"):
        Tiles.join([])


def test_tiles_median_leaves_unobserved_pixels_out():
    tiles = _tiles()
    images, masks = tiles.images.copy(), tiles.masks.copy()
    images[:, :20], masks[:, :20] = 255, UNLABELLED
    assert Tiles(images, masks).median_rgb() == Tiles(images[:, 20:], masks[:, 20:]).median_rgb()


@pytest.mark.parametrize("held_out", [["b"], ["a", "c"]])
def test_split_by_event_never_has_an_event_on_both_sides(held_out):
    tiles = Tiles(*(getattr(_tiles(), name) for name in ("images", "masks")), events=np.array(list("abcabc")))
    train, validation = tiles.split_by_event(held_out)
    assert set(validation.events.tolist()) == set(held_out)
    assert not set(train.events.tolist()) & set(held_out)
    assert len(train) + len(validation) == len(tiles)


@pytest.mark.parametrize("held_out", [[], ["z"], ["a"]])
def test_split_by_event_that_leaves_a_side_empty_names_the_events(held_out):
    with pytest.raises(ValueError, match=r"expected some, not all, of \['a'\]"):
        _plain(events="a").split_by_event(held_out)


def test_batch_of_a_seed_stays_what_it_was():
    images, labels = _sampler(Augmentation()).batch(2)
    assert images.double().mean().item() == pytest.approx(77.0851, abs=1e-2)
    assert (labels == 1).sum().item() == 547


def test_sample_keeps_unlabelled_pixels_unlabelled():
    tiles = _tiles()
    masks = np.where(tiles.images[..., 1] > 80, UNLABELLED, 0).astype(np.uint8)
    _, labels = Sampler(Tiles(tiles.images, masks), Augmentation(), crop_px=48, rng=np.random.default_rng(0)).batch(8)
    assert set(labels.unique().tolist()) == {0, UNLABELLED}


@pytest.mark.parametrize("gsd_m", [3.0, 10.0, 30.0])
def test_sample_shows_every_pixel_size_at_the_same(gsd_m):
    """A bar 60 m wide is 60 m of network pixels wide, whatever the tile's own."""
    side = 64
    masks = np.zeros((1, side, side), np.uint8)
    masks[:, :, : round(60 / gsd_m)] = 1
    images = np.full((1, side, side, 3), 90, np.uint8)
    still = Augmentation(zoom=(2.0, 2.0), brightness=0, chroma=0, gamma=0, saturation=0, haze=0)
    sampler = Sampler(Tiles(images, masks, np.array(gsd_m)), still, crop_px=24, rng=np.random.default_rng(4))
    _, labels = sampler.batch(80)
    bars = {int(n) for label in labels for n in ((label == 1).sum(0).max(), (label == 1).sum(1).max()) if n < 24}
    assert max(bars) in (11, 12, 13)  # 60 m at 5 m


def test_sample_does_not_mix_pixel_sizes():
    mixed = Tiles.join([_plain(gsd_m=5.0, value=40), _plain(gsd_m=10.0, value=200)])
    sampler = Sampler(mixed, STILL, crop_px=32, rng=np.random.default_rng(0))
    sizes = [set(mixed.gsd_m[sampler._pick(focused=False)[1]].tolist()) for _ in range(20)]
    assert {5.0} in sizes
    assert {10.0} in sizes
    assert all(len(size) == 1 for size in sizes)


def test_sample_of_fine_tiles_averages_their_pixels():
    board = np.indices((64, 64)).sum(0) % 2 * 200
    images = np.repeat(board[None, ..., None], 3, axis=-1).astype(np.uint8)
    tiles = Tiles(images, np.zeros((1, 64, 64), np.uint8), np.array(2.5))
    pixels, _ = Sampler(tiles, STILL, crop_px=16, rng=np.random.default_rng(0))._crop(
        images[0].astype(np.float32), tiles.masks[0], side=64, focused=False
    )
    assert pixels[:, 2:-2, 2:-2].sub(100).abs().max() < 2


def _one_slide():
    images, masks = np.full((8, 32, 32, 3), 80, np.uint8), np.zeros((8, 32, 32), np.uint8)
    masks[3, 5, 7] = 1
    return Tiles(images, masks)


def test_landslide_share_of_one_lays_every_crop_around_a_landslide():
    sampler = Sampler(_one_slide(), STILL, crop_px=16, rng=np.random.default_rng(0), landslide_share=1.0)
    _, labels = sampler.batch(20)
    assert (labels == 1).any(dim=(1, 2)).all()


def test_landslide_share_is_a_probability():
    sampler = Sampler(_one_slide(), STILL, crop_px=4, rng=np.random.default_rng(0), landslide_share=0.5)
    _, labels = sampler.batch(200)
    assert (labels == 1).any(dim=(1, 2)).float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_landslide_share_of_tiles_without_landslide_says_so():
    with pytest.raises(ValueError, match="none of 4 holds a landslide"):
        Sampler(_plain(), STILL, crop_px=16, rng=np.random.default_rng(0), landslide_share=0.5)


def test_season_moves_green_against_red():
    seasons = replace(STILL, season=0.3)
    sampler = Sampler(_plain(value=100), seasons, crop_px=32, rng=np.random.default_rng(0))
    red, green, blue = (sampler.batch(40)[0].mean(dim=(2, 3)) / 100).unbind(1)
    shade = blue  # noise, shading and sharpening are common to the bands
    assert ((red / shade) * (green / shade)).log().abs().mean() < 0.03
    assert (red / green).log().std() > 0.3


def test_impulse_noise_makes_pixels_black_or_white_in_all_bands_and_leaves_the_others():
    plain, noisy = (
        Sampler(_plain(value=100), replace(STILL, impulse=share), crop_px=64, rng=np.random.default_rng(0))
        for share in (0.0, 0.4)
    )
    before, after = plain.sample()[0], noisy.sample()[0]
    black, white = ((after == value).all(dim=0) for value in (0, 255))
    assert black.float().mean().item() == pytest.approx(white.float().mean().item(), abs=0.03)
    assert 0.01 < (black | white).float().mean() < 0.42
    assert torch.equal(before[:, ~(black | white)], after[:, ~(black | white)])


def test_cloud_hides_landslides_and_leaves_what_lies_beside_it_and_its_shadow():
    slides = Tiles(np.full((4, 96, 96, 3), 60, np.uint8), np.ones((4, 96, 96), np.uint8))
    clear, cloudy = (
        Sampler(slides, replace(STILL, cloud=share), crop_px=96, rng=np.random.default_rng(2)) for share in (0.0, 1.0)
    )
    (before, landslide), (after, seen) = clear.sample(), cloudy.sample()
    hidden = seen == 0
    assert landslide.all()
    assert 0.01 < hidden.float().mean() < 0.6
    assert after[:, hidden].mean() > before[:, hidden].mean() + 50
    shade = (after - before).mean(dim=0)
    assert (shade < -10).any(), "a shadow"
    assert (shade.abs() <= 1).float().mean() > 0.1, "ground that is clear"


def test_cloud_lies_over_its_share_of_crops_and_keeps_unlabelled_ground():
    masks = np.full((4, 64, 64), UNLABELLED, np.uint8)
    masks[:, :32] = 0
    tiles = Tiles(np.full((4, 64, 64, 3), 60, np.uint8), masks)
    sampler = Sampler(tiles, replace(STILL, cloud=0.25), crop_px=64, rng=np.random.default_rng(0))
    images, labels = sampler.batch(60)
    assert 0.1 < (images.amax(dim=(1, 2, 3)) > 140).float().mean() < 0.4
    assert (labels == UNLABELLED).float().mean() == pytest.approx(0.5, abs=0.1)
