"""Training samples that differ as events do: pixel size, light, haze, sensor and season."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

MOSAIC_TILES = 4

Pixels = TypeVar("Pixels", np.float32, np.uint8)


@dataclass(frozen=True)
class Tiles:
    """Labelled tiles: images (N, H, W, 3) uint8, masks (N, H, W) uint8: 1 landslide, 0 not, 255 unlabelled."""

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]

    def median_rgb(self) -> tuple[float, float, float]:
        """Median red, green and blue of all tiles: the tone to which tiles and scenes are brought."""
        red, green, blue = (float(np.median(self.images[..., band])) for band in range(3))
        return red, green, blue


@dataclass(frozen=True)
class Augmentation:
    """How much samples vary. Ranges are drawn evenly (`zoom` evenly in its logarithm), spreads from a normal law."""

    zoom: tuple[float, float] = (0.8, 3.4)
    """Magnification of a tile: a 10 m tile stands for 12.5 m to 3 m imagery."""
    brightness: float = 0.4
    """Spread of the logarithm of a gain for all bands."""
    chroma: float = 0.12
    """Spread of the logarithm of a gain a band."""
    gamma: float = 0.25
    """Spread of the logarithm of the exponent about the median."""
    saturation: float = 0.25
    """Spread of the logarithm of the distance from grey."""
    haze: float = 0.03
    """Spread of an offset, of 255."""


class Sampler:
    """Draws augmented samples of labelled tiles."""

    def __init__(self, tiles: Tiles, augmentation: Augmentation, *, crop_px: int, rng: np.random.Generator) -> None:
        self.tiles, self.augmentation, self.crop_px, self.rng = tiles, augmentation, crop_px, rng
        self.reference = tiles.median_rgb()

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Images (B, 3, P, P) float32 in 0..255 and labels (B, P, P) int64."""
        images, labels = zip(*(self.sample() for _ in range(size)), strict=True)
        return torch.stack(images), torch.stack(labels)

    def sample(self) -> tuple[Tensor, Tensor]:
        """A crop of a 2 x 2 mosaic of tiles: magnified, turned, in another light."""
        picks = self.rng.integers(len(self.tiles.images), size=MOSAIC_TILES)
        image = _two_by_two(self.tiles.images[picks].astype(np.float32))
        pixels, labels = self._crop(image, _two_by_two(self.tiles.masks[picks]))
        return self._relight(pixels), labels

    def _crop(self, image: NDArray[np.float32], mask: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        rng = self.rng
        zoom = float(np.exp(rng.uniform(*np.log(self.augmentation.zoom))))
        side = min(round(self.crop_px / zoom), image.shape[0])
        y, x = rng.integers(0, image.shape[0] - side + 1, size=2)
        turns, flip = int(rng.integers(4)), -1 if rng.integers(2) else 1
        crop, label = (
            np.ascontiguousarray(np.rot90(a[y : y + side, x : x + side], turns)[:, ::flip]) for a in (image, mask)
        )
        size = (self.crop_px, self.crop_px)
        pixels = torch.from_numpy(crop).permute(2, 0, 1)[None]
        labels = torch.from_numpy(label)[None, None].float()
        return (
            interpolate(pixels, size=size, mode="bicubic", align_corners=False)[0].clamp(min=0),
            interpolate(labels, size=size, mode="nearest")[0, 0].long(),
        )

    def _relight(self, pixels: Tensor) -> Tensor:
        """The image (3, H, W) as another sensor, sun and season would show it, 0..255."""
        rng, vary = self.rng, self.augmentation
        reference = torch.tensor(self.reference).view(3, 1, 1)
        value = reference / 255 * (pixels / reference) ** _log_normal(rng, vary.gamma)
        gain = _log_normal(rng, vary.brightness) * np.exp(rng.normal(0, vary.chroma, size=(3, 1, 1)))
        offset = rng.normal(0, vary.haze) + rng.normal(0, vary.haze / 2, size=(3, 1, 1))
        value = value * torch.from_numpy(gain).float() + torch.from_numpy(offset).float()
        grey = value.mean(dim=0, keepdim=True)
        value = grey + (value - grey) * _log_normal(rng, vary.saturation)
        if rng.random() < 0.5:
            value = value * _shading(value.shape[-2:], rng=rng)
        if rng.random() < 0.5:
            value = _sharpen(value, amount=float(rng.uniform(-0.8, 1.5)))
        noise = rng.normal(0, rng.uniform(0, 0.03), size=tuple(value.shape))
        return ((value + torch.from_numpy(noise).float()) * 255).clamp(0, 255).round()


def _log_normal(rng: np.random.Generator, spread: float) -> float:
    return float(np.exp(rng.normal(0, spread)))


def _two_by_two(tiles: NDArray[Pixels]) -> NDArray[Pixels]:
    return np.concatenate([np.concatenate(tiles[:2], axis=1), np.concatenate(tiles[2:], axis=1)], axis=0)


def _shading(size: torch.Size, *, rng: np.random.Generator) -> Tensor:
    """Smooth light and dark (1, H, W), as relief and thin cloud lay over a scene."""
    cells = int(rng.integers(3, 12))
    field = torch.from_numpy(rng.normal(0, rng.uniform(0.05, 0.3), size=(1, 1, cells, cells))).float()
    return interpolate(field, size=tuple(size), mode="bicubic", align_corners=False)[0].exp()


def _sharpen(value: Tensor, *, amount: float) -> Tensor:
    """Unsharp mask with a 3 x 3 mean; a negative amount blurs."""
    mean = nn.functional.avg_pool2d(value[None], 3, stride=1, padding=1, count_include_pad=False)[0]
    return value + amount * (value - mean)
