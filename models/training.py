"""Training of a network on labelled RGB tiles: seeded and repeatable."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from models.augment import Augmentation, Sampler, Tiles
from models.losses import boundary_aware_loss, soft_dice_loss

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LARGEST_GRADIENT = 5.0


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained."""

    seed: int = 0
    steps: int = 900
    batch: int = 16
    crop_px: int = 192
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    ema_decay: float = 0.995
    augmentation: Augmentation = Augmentation()


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
    sampler = Sampler(tiles, config.augmentation, crop_px=config.crop_px, rng=np.random.default_rng(config.seed))
    network = network.to(memory_format=torch.channels_last).train()
    average = copy.deepcopy(network).eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=config.learning_rate, total_steps=config.steps, pct_start=0.15
    )
    for step in range(config.steps):
        images, labels = sampler.batch(config.batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(normalise_images(images).contiguous(memory_format=torch.channels_last))
        loss = boundary_aware_loss(logits, labels) + soft_dice_loss(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
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


@torch.inference_mode()
def predict_margins(network: nn.Module, images: NDArray[np.float32], *, magnify: int) -> NDArray[np.float32]:
    """Margin logit(landslide) - logit(other), (N, H, W), of images (N, H, W, 3) in 0..255, shown magnified."""
    network = network.eval()
    results = []
    for image in images:
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        large = interpolate(pixels, scale_factor=float(magnify), mode="bicubic", align_corners=False).clamp(0, 255)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(normalise_images(large).contiguous(memory_format=torch.channels_last))
        margin = logits.float()[:, -1:] - logits.float()[:, :1]
        results.append(avg_pool2d(margin, magnify)[0, 0].numpy())
    return np.stack(results)
