import numpy as np
import pytest
import torch

from models.augment import Augmentation, Sampler, Tiles, fade_landslides, levelling_gains

STILL = Augmentation(
    zoom=(1.0, 1.0), levelling=(1.0, 1.0), brightness=0.0, chroma=0.0, gamma=0.0, saturation=0.0, haze=0.0,
    fading_share=0.0,
)  # fmt: skip


def _tiles(seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(20, 120, (6, 32, 32, 3)).astype(np.uint8)
    return Tiles(images, (images[..., 0] > 90).astype(np.uint8))


def _sampler(augmentation=STILL, seed=1, crop_px=32):
    return Sampler(_tiles(), augmentation, crop_px=crop_px, rng=np.random.default_rng(seed))


def test_levelling_brings_every_tile_to_the_reference_median():
    images = _tiles().images
    gains = levelling_gains(images, reference=(46.0, 51.0, 50.0))
    medians = np.median((images * gains[:, None, None, :]).reshape(6, -1, 3), axis=1)
    np.testing.assert_allclose(medians, np.tile([46, 51, 50], (6, 1)), rtol=0.02)


def test_levelling_does_not_blow_up_a_tile_of_shadow():
    black = np.ones((1, 8, 8, 3), np.uint8)
    assert levelling_gains(black, reference=(40.0, 40.0, 40.0)).max() == 5.0


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


def test_faded_landslides_keep_that_share_of_their_contrast():
    pixels = torch.full((3, 40, 40), 50.0)
    labels = torch.zeros(40, 40, dtype=torch.long)
    labels[10:30, 10:30] = 1
    pixels[:, labels == 1] = 150.0
    faded = fade_landslides(pixels, labels, keep=0.4)
    assert faded[0, 20, 20].item() == pytest.approx(50 + 0.4 * 100, abs=1e-3)
    assert faded[0, 2, 2].item() == pytest.approx(50.0, abs=1e-3)
