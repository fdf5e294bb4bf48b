"""Training samples that differ as events do: pixel size, light, haze, sensor and season."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from models.clouds import under_cloud

MOSAIC_TILES = 4
REFERENCE_GSD_M = 10.0
"""The pixel size that `Augmentation.zoom` is told for; a tile without one has it."""
FILTER_BELOW = 0.75
"""Magnification under which bicubic interpolation, two pixels to each side, would skip pixels: a filter averages."""
UNLABELLED = 255
RGB = ("red", "green", "blue")


@dataclass(frozen=True)
class Tiles:
    """Labelled tiles of one size: what every data set becomes before a network is trained on it.

    `gsd_m` and `events` may be given as one value for all tiles.

    Raises: ValueError when shapes, dtypes or values do not fit.

    >>> tiles = Tiles(np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8), np.uint8), events=np.array(["a", "b"]))
    >>> len(tiles), tiles.gsd_m.tolist(), [len(part) for part in tiles.split_by_event(["b"])]
    (2, [10.0, 10.0], [1, 1])
    """

    images: NDArray[np.uint8]
    """(N, H, W, band) uint8."""
    masks: NDArray[np.uint8]
    """(N, H, W) uint8: 1 landslide, 0 not, 255 unlabelled or not observed."""
    gsd_m: NDArray[np.float64] = field(default_factory=lambda: np.array(REFERENCE_GSD_M))
    """(N,) float64: pixel size, metres."""
    events: NDArray[np.str_] = field(default_factory=lambda: np.array(""))
    """(N,) str: the event or region of each tile, by which honest splits go."""
    bands: tuple[str, ...] = RGB
    corners_m: NDArray[np.float64] = field(default_factory=lambda: np.array([np.nan, np.nan]))
    """(N, 2) float64: easting and northing of each tile's north-west corner, metres; NaN = not known."""

    def __post_init__(self) -> None:
        shape, count = self.images.shape, len(self.images)
        if self.images.dtype != np.uint8 or len(shape) != 4 or shape[-1] != len(self.bands):
            raise ValueError(
                f"tiles: got images {self.images.dtype} {shape}; expected uint8 (N, H, W, {len(self.bands)}), the last "
                f"axis {', '.join(self.bands)}"
            )
        if self.masks.dtype != np.uint8 or self.masks.shape != shape[:3]:
            raise ValueError(
                f"tiles: got masks {self.masks.dtype} {self.masks.shape}; expected uint8 {shape[:3]}, as the images"
            )
        if ((self.masks > 1) & self.valid).any():
            raise ValueError(
                f"tiles: got mask values {np.unique(self.masks).tolist()}; expected 1 landslide, 0 not, 255 unlabelled"
            )
        for name, each in (("gsd_m", ()), ("events", ()), ("corners_m", (2,))):
            object.__setattr__(self, name, _one_a_tile(name, getattr(self, name), (count, *each)))
        if not (self.gsd_m > 0).all():
            raise ValueError(f"tiles: got pixel sizes down to {self.gsd_m.min():g} m; expected all above 0")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(N, H, W) bool: where the mask says landslide or not."""
        return np.asarray(self.masks != UNLABELLED)

    def take(self, which: NDArray[np.integer[Any]] | NDArray[np.bool_]) -> Tiles:
        """The tiles of these indices, or where True, in that order."""
        return Tiles(
            self.images[which],
            self.masks[which],
            self.gsd_m[which],
            self.events[which],
            self.bands,
            self.corners_m[which],
        )

    @staticmethod
    def join(parts: Sequence[Tiles]) -> Tiles:
        """The tiles of all parts, one after the other.

        Raises: ValueError when there are none, or their sizes or bands differ.
        """
        kinds = sorted({(*part.images.shape[1:3], part.bands) for part in parts})
        if len(kinds) != 1:
            told = "; ".join(f"{height} x {width} px of {', '.join(bands)}" for height, width, bands in kinds)
            raise ValueError(f"tiles to join: got {told or 'none'}; expected one size and the same bands")
        images, masks, gsd_m, events, corners_m = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("images", "masks", "gsd_m", "events", "corners_m")
        )
        return Tiles(images, masks, gsd_m, events, kinds[0][2], corners_m)

    def split_by_event(self, held_out: Collection[str]) -> tuple[Tiles, Tiles]:
        """The tiles of the other events, and those of the events held out.

        Raises: ValueError when an event is not there, or nothing is left on either side.
        """
        known = sorted(set(self.events.tolist()))
        outside = np.isin(self.events, sorted(held_out))
        if set(held_out) - set(known) or outside.all() or not outside.any():
            raise ValueError(f"events to hold out: got {sorted(held_out)}; expected some, not all, of {known}")
        return self.take(~outside), self.take(outside)

    def median_rgb(self) -> tuple[float, float, float]:
        """Median red, green and blue of the valid pixels: the tone to which tiles and scenes are brought.

        Raises: ValueError when no pixel is valid.
        """
        valid = self.valid
        if not valid.any():
            raise ValueError("tiles: no pixel is labelled; expected masks with values 0 and 1")
        red, green, blue = (float(np.median(self.images[..., self.bands.index(band)][valid])) for band in RGB)
        return red, green, blue


def _one_a_tile(name: str, values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if values.shape not in (shape, shape[1:]):
        raise ValueError(f"tiles: got {name} of shape {values.shape}; expected {shape}, one a tile, or one for all")
    return np.broadcast_to(values, shape).copy()


@dataclass(frozen=True)
class Augmentation:
    """How much samples vary. Ranges are drawn evenly (`zoom` evenly in its logarithm), spreads from a normal law."""

    zoom: tuple[float, float] = (0.8, 3.4)
    """Magnification of a 10 m tile, which then stands for 12.5 m to 3 m imagery. Others are magnified so that the
    network sees the same pixel sizes: 3 m tiles 0.24 to 1.02 times."""
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
    season: float = 0.0
    """Spread of the logarithm of a gain on red that green has the inverse of: vegetation dries, or greens. 0 = off."""
    impulse: float = 0.0
    """Largest share of pixels made black or white (salt and pepper): a crop's is drawn evenly up to it. 0 = off."""
    cloud: float = 0.0
    """Share of crops that lie under broken cloud and its shadow; what it hides is no landslide. 0 = off."""


class Sampler:
    """Draws augmented samples of labelled tiles.

    landslide_share : probability that a crop is laid around a landslide pixel, which are few; 0 = wherever it falls.

    Raises: ValueError when there is no tile, or no landslide to lay crops around.
    """

    def __init__(
        self,
        tiles: Tiles,
        augmentation: Augmentation,
        *,
        crop_px: int,
        rng: np.random.Generator,
        landslide_share: float = 0.0,
    ) -> None:
        self.tiles, self.augmentation, self.crop_px, self.rng = tiles, augmentation, crop_px, rng
        self.landslide_share = landslide_share
        self.reference = tiles.median_rgb()
        self.with_landslide = np.flatnonzero((tiles.masks == 1).any(axis=(1, 2)))
        self.of_gsd = {gsd_m: np.flatnonzero(tiles.gsd_m == gsd_m) for gsd_m in np.unique(tiles.gsd_m).tolist()}
        if landslide_share and not self.with_landslide.size:
            raise ValueError(f"tiles: none of {len(tiles)} holds a landslide; expected some for {landslide_share=:g}")

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Images (B, 3, P, P) float32 in 0..255 and labels (B, P, P) int64."""
        images, labels = zip(*(self.sample() for _ in range(size)), strict=True)
        return torch.stack(images), torch.stack(labels)

    def sample(self) -> tuple[Tensor, Tensor]:
        """A crop of a mosaic of tiles of one pixel size: magnified, turned, in another light."""
        rng = self.rng
        focused = self.landslide_share > 0 and rng.random() < self.landslide_share
        group, picks = self._pick(focused=focused)
        zoom = float(np.exp(rng.uniform(*np.log(self.augmentation.zoom))))
        magnification = zoom * float(self.tiles.gsd_m[picks[0]]) / REFERENCE_GSD_M
        side = round(self.crop_px / magnification)
        across = max(2, math.ceil(side / min(self.tiles.masks.shape[1:])))
        picks = np.concatenate([picks, group[rng.integers(len(group), size=across**2 - MOSAIC_TILES)]])
        image, mask = (_mosaic(each[picks], across) for each in (self.tiles.images, self.tiles.masks))
        pixels, labels = self._crop(image.astype(np.float32), mask, side=side, focused=focused)
        seen = self._relight(pixels)
        if self.augmentation.cloud > 0 and rng.random() < self.augmentation.cloud:
            seen, hidden = under_cloud(seen, rng=rng)
            labels = labels.masked_fill(hidden & (labels == 1), 0)
        return seen, labels

    def _pick(self, *, focused: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tiles of one pixel size, and four drawn of them, the first with a landslide when focused."""
        rng = self.rng
        if focused:
            first = int(rng.choice(self.with_landslide))
        else:
            first = int(rng.integers(len(self.tiles))) if len(self.of_gsd) > 1 else 0
        group = self.of_gsd[float(self.tiles.gsd_m[first])]
        picks = group[rng.integers(len(group), size=MOSAIC_TILES)]
        if focused:
            picks[0] = first
        return group, picks

    def _crop(
        self, image: NDArray[np.float32], mask: NDArray[np.uint8], *, side: int, focused: bool
    ) -> tuple[Tensor, Tensor]:
        rng = self.rng
        y, x = _around_a_landslide(mask, side, rng=rng) if focused else _anywhere(mask, side, rng=rng)
        turns, flip = int(rng.integers(4)), -1 if rng.integers(2) else 1
        crop, label = (
            np.ascontiguousarray(np.rot90(a[y : y + side, x : x + side], turns)[:, ::flip]) for a in (image, mask)
        )
        size = (self.crop_px, self.crop_px)
        pixels = torch.from_numpy(crop).permute(2, 0, 1)[None]
        labels = torch.from_numpy(label)[None, None].float()
        finer = self.crop_px < FILTER_BELOW * side
        return (
            interpolate(pixels, size=size, mode="bicubic", align_corners=False, antialias=finer)[0].clamp(min=0),
            interpolate(labels, size=size, mode="nearest")[0, 0].long(),
        )

    def _relight(self, pixels: Tensor) -> Tensor:
        """The image (3, H, W) as another sensor, sun and season would show it, 0..255."""
        rng, vary = self.rng, self.augmentation
        reference = torch.tensor(self.reference).view(3, 1, 1)
        value = reference / 255 * (pixels / reference) ** _log_normal(rng, vary.gamma)
        gain = _log_normal(rng, vary.brightness) * np.exp(rng.normal(0, vary.chroma, size=(3, 1, 1)))
        offset = rng.normal(0, vary.haze) + rng.normal(0, vary.haze / 2, size=(3, 1, 1))
        if vary.season > 0:
            tint = _log_normal(rng, vary.season)
            gain = gain * np.array([tint, 1 / tint, 1.0]).reshape(3, 1, 1)
        value = value * torch.from_numpy(gain).float() + torch.from_numpy(offset).float()
        grey = value.mean(dim=0, keepdim=True)
        value = grey + (value - grey) * _log_normal(rng, vary.saturation)
        if rng.random() < 0.5:
            value = value * _shading(value.shape[-2:], rng=rng)
        if rng.random() < 0.5:
            value = _sharpen(value, amount=float(rng.uniform(-0.8, 1.5)))
        noise = rng.normal(0, rng.uniform(0, 0.03), size=tuple(value.shape))
        image = ((value + torch.from_numpy(noise).float()) * 255).clamp(0, 255).round()
        if vary.impulse > 0:
            image = _salt_and_pepper(image, share=float(rng.uniform(0, vary.impulse)), rng=rng)
        return image


def _log_normal(rng: np.random.Generator, spread: float) -> float:
    return float(np.exp(rng.normal(0, spread)))


def _mosaic(tiles: NDArray[np.uint8], across: int) -> NDArray[np.uint8]:
    """One picture of `across` x `across` tiles (K, H, W, ...), row by row."""
    rows = [np.concatenate(tiles[k : k + across], axis=1) for k in range(0, across**2, across)]
    return np.concatenate(rows, axis=0)


def _anywhere(mask: NDArray[np.uint8], side: int, *, rng: np.random.Generator) -> tuple[int, int]:
    """First row and column of a crop within the mosaic."""
    y, x = rng.integers(0, np.array(mask.shape) - side + 1)
    return int(y), int(x)


def _around_a_landslide(mask: NDArray[np.uint8], side: int, *, rng: np.random.Generator) -> tuple[int, int]:
    """First row and column of a crop within the mosaic that holds a landslide pixel drawn from all of them."""
    pixel = rng.choice(np.argwhere(mask == 1))
    y, x = rng.integers(np.maximum(pixel - side + 1, 0), np.minimum(pixel, np.array(mask.shape) - side) + 1)
    return int(y), int(x)


def _shading(size: torch.Size, *, rng: np.random.Generator) -> Tensor:
    """Smooth light and dark (1, H, W), as relief and thin cloud lay over a scene."""
    cells = int(rng.integers(3, 12))
    field = torch.from_numpy(rng.normal(0, rng.uniform(0.05, 0.3), size=(1, 1, cells, cells))).float()
    return interpolate(field, size=tuple(size), mode="bicubic", align_corners=False)[0].exp()


def _sharpen(value: Tensor, *, amount: float) -> Tensor:
    """Unsharp mask with a 3 x 3 mean; a negative amount blurs."""
    mean = nn.functional.avg_pool2d(value[None], 3, stride=1, padding=1, count_include_pad=False)[0]
    return value + amount * (value - mean)


def _salt_and_pepper(image: Tensor, *, share: float, rng: np.random.Generator) -> Tensor:
    """The image (3, H, W) with a share of its pixels black or white, half of them each."""
    draw = torch.from_numpy(rng.random(tuple(image.shape[-2:])))
    return image.masked_fill(draw < share / 2, 0.0).masked_fill((draw >= share / 2) & (draw < share), 255.0)
