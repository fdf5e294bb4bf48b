"""Training of a network on labelled RGB tiles: seeded, augmented for other pixel sizes and other radiometry."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from models.losses import boundary_aware_loss, soft_dice_loss

logger = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

FADE_SHARE = 0.6
"""Share of the crops whose landslides are faded."""
FADE_KEEP = (0.3, 0.9)


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained."""

    seed: int = 0
    steps: int = 1200
    batch: int = 16
    crop_px: int = 160
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    zoom: tuple[float, float] = (0.8, 3.4)
    """A tile is shown magnified by a factor in this range: a 10 m tile stands for 12.5 m to 3 m imagery."""
    ema_decay: float = 0.995


@dataclass(frozen=True)
class Tiles:
    """Labelled tiles: images (N, H, W, 3) uint8, masks (N, H, W) uint8: 1 landslide, 0 not, 255 unlabelled."""

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]


def normalise_images(images: Tensor) -> Tensor:
    """uint8-valued images (B, 3, H, W) as ImageNet-normalised float32."""
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1).to(images.device)
    std = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1).to(images.device)
    return (images.float() / 255 - mean) / std


def fit(
    network: nn.Module, tiles: Tiles, config: TrainConfig, *, on_step: Callable[[int, float], None] | None = None
) -> nn.Module:
    """The trained network (the exponential moving average of its weights), in eval mode.

    AdamW, one-cycle learning rate, boundary-aware loss + soft Dice. The last iteration is taken: no choice by score.
    """
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    network = network.to(memory_format=torch.channels_last).train()
    average = copy.deepcopy(network).eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=config.learning_rate, total_steps=config.steps, pct_start=0.15
    )
    for step, (images, labels) in enumerate(batches(tiles, config, rng=rng)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(normalise_images(images).contiguous(memory_format=torch.channels_last))
        loss = boundary_aware_loss(logits, labels) + soft_dice_loss(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        _follow(average, network, decay=min(config.ema_decay, (1 + step) / (10 + step)))
        if on_step is not None:
            on_step(step + 1, float(loss.detach()))
    return average


def _follow(average: nn.Module, network: nn.Module, *, decay: float) -> None:
    with torch.no_grad():
        for ours, theirs in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
            if ours.dtype.is_floating_point:
                ours.lerp_(theirs, 1 - decay)
            else:
                ours.copy_(theirs)


def batches(tiles: Tiles, config: TrainConfig, *, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """`config.steps` batches of images (B, 3, P, P) float32 in 0..255 and labels (B, P, P) int64."""
    for _ in range(config.steps):
        pairs = [_sample(tiles, config, rng=rng) for _ in range(config.batch)]
        images, labels = zip(*pairs, strict=True)
        yield torch.stack(images), torch.stack(labels)


def _sample(tiles: Tiles, config: TrainConfig, *, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A random crop of a 2 x 2 mosaic of tiles, magnified, turned and with another radiometry."""
    picks = rng.integers(len(tiles.images), size=4)
    image = _mosaic(tiles.images[picks]).astype(np.float32)
    mask = _mosaic(tiles.masks[picks])
    zoom = float(np.exp(rng.uniform(*np.log(config.zoom))))
    side = min(round(config.crop_px / zoom), image.shape[0])
    y, x = rng.integers(0, image.shape[0] - side + 1, size=2)
    turns, flip = int(rng.integers(4)), bool(rng.integers(2))
    crop, label = (np.rot90(a[y : y + side, x : x + side], turns) for a in (image, mask))
    if flip:
        crop, label = crop[:, ::-1], label[:, ::-1]
    pixels = torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1)[None]
    size = (config.crop_px, config.crop_px)
    pixels = interpolate(pixels, size=size, mode="bicubic", align_corners=False)[0]
    labels = torch.from_numpy(np.ascontiguousarray(label))[None, None].float()
    labels = interpolate(labels, size=size, mode="nearest")[0, 0].long()
    if rng.random() < FADE_SHARE:
        pixels = fade_landslides(pixels, labels, keep=float(rng.uniform(*FADE_KEEP)))
    return vary_radiometry(pixels, rng=rng), labels


def fade_landslides(pixels: Tensor, labels: Tensor, *, keep: float) -> Tensor:
    """The image (3, H, W) with its landslides mixed into the mean colour of the other ground.

    keep : share of the landslide's own colour, 0-1. Old, wet, shaded and half overgrown landslides stand out less than
    the fresh ones that were labelled at 10 m.
    """
    slide = (labels == 1)[None].float()
    other = (labels == 0)[None].float()
    if not slide.any() or not other.any():
        return pixels
    colour = (pixels * other).sum(dim=(1, 2), keepdim=True) / other.sum()
    soft = nn.functional.avg_pool2d(slide[None], 5, stride=1, padding=2)[0]
    return pixels - soft * (1 - keep) * (pixels - colour)


def _mosaic(tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.concatenate([np.concatenate(tiles[:2], axis=1), np.concatenate(tiles[2:], axis=1)], axis=0)


def vary_radiometry(pixels: Tensor, *, rng: np.random.Generator) -> Tensor:
    """The image (3, H, W) in 0..255 as another sensor, sun and stretch would show it.

    A tone curve (gamma, contrast, brightness), channel gains and offsets (haze is bluish), saturation, smooth relief
    shading, sharpness and noise.
    """
    value = (pixels / 255).clamp(0, 1) ** float(np.exp(rng.normal(0, 0.25)))
    gain = np.exp(rng.normal(0, 0.2)) * np.exp(rng.normal(0, 0.12, size=(3, 1, 1)))
    offset = rng.normal(0, 0.03) + rng.normal(0, 0.02, size=(3, 1, 1))
    value = value * torch.from_numpy(gain).float() + torch.from_numpy(offset).float()
    grey = value.mean(dim=0, keepdim=True)
    value = grey + (value - grey) * float(np.exp(rng.normal(0, 0.25)))
    if rng.random() < 0.5:
        value = value * _shading(value.shape[-2:], rng=rng)
    if rng.random() < 0.5:
        value = _sharpen(value, amount=float(rng.uniform(-0.8, 1.5)))
    noise = rng.normal(0, rng.uniform(0, 0.03), size=tuple(value.shape))
    return ((value + torch.from_numpy(noise).float()) * 255).clamp(0, 255).round()


def _shading(size: torch.Size, *, rng: np.random.Generator) -> Tensor:
    cells = int(rng.integers(3, 12))
    field = torch.from_numpy(rng.normal(0, rng.uniform(0.05, 0.3), size=(1, 1, cells, cells))).float()
    return interpolate(field, size=tuple(size), mode="bicubic", align_corners=False)[0].exp()


def _sharpen(value: Tensor, *, amount: float) -> Tensor:
    """Unsharp mask with a 3 x 3 mean; a negative amount blurs."""
    mean = nn.functional.avg_pool2d(value[None], 3, stride=1, padding=1, count_include_pad=False)[0]
    return value + amount * (value - mean)


@torch.inference_mode()
def predict_tiles(network: nn.Module, images: NDArray[np.uint8], *, magnify: int) -> NDArray[np.float32]:
    """Landslide probability (N, H, W) of tiles (N, H, W, 3) uint8, shown to the network magnified."""
    network = network.eval()
    results = []
    for image in images:
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        large = interpolate(pixels, scale_factor=float(magnify), mode="bicubic", align_corners=False).clamp(0, 255)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(normalise_images(large).contiguous(memory_format=torch.channels_last))
        probability = logits.float().softmax(dim=1)[:, -1:]
        results.append(nn.functional.avg_pool2d(probability, magnify)[0, 0].numpy())
    return np.stack(results)


def describe(config: TrainConfig) -> dict[str, Any]:
    """The configuration as JSON-sized values for the model card."""
    return asdict(config)
