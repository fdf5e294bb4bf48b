import numpy as np
import pytest
import torch

from models.augment import Augmentation, Sampler, Tiles

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
