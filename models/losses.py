"""The losses of segmentation, by name, and what combines them: a new one is one entry of `LOSSES`.

Source: Xu et al. (2022). The published weight is inverted (2.0 in interiors, less at outlines): see `docs/science.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final, Literal

import torch
from torch import Tensor
from torch.nn.functional import conv2d, cross_entropy, interpolate, pad

IGNORE: Final = 255
"""Label of pixels that take no part in the loss."""
FOCUS: Final = 2
BLUR_PX: Final = 35
BLUR_SCALE_PX2: Final = 51.0
STRAIGHT_EDGE_BLUR: Final = 0.079
"""The normalised blur's value on a straight edge (Xu et al.'s kernel): divides the blur, so that edges weigh 2.0."""


def _blur_kernel() -> Tensor:
    axis = torch.arange(BLUR_PX, dtype=torch.float32) - BLUR_PX // 2
    kernel = torch.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / BLUR_SCALE_PX2)
    return (kernel / kernel.sum())[None, None]


def boundary_weight(labels: Tensor, *, variant: Literal["intended", "published"] = "intended") -> Tensor:
    """Per-pixel weight (B, H, W) float32 of integer labels (B, H, W); `intended` runs from 0.5 far away to 2.0."""
    clean = torch.where(labels == IGNORE, 0, labels).to(torch.float32)[:, None]
    kernel = torch.tensor([[1.0, -0.5], [-0.5, 0.0]], device=labels.device)[None, None]
    blur = _blur_kernel().to(labels.device)
    margin = BLUR_PX // 2
    if variant == "published":
        edges = (conv2d(clean, kernel) >= 0).to(torch.float32)
        blurred = conv2d(edges, blur) if min(edges.shape[-2:]) >= BLUR_PX else edges
        spread = interpolate(blurred, size=labels.shape[-2:], mode="bilinear", align_corners=True)
    else:
        edges = (conv2d(pad(clean, (0, 1, 0, 1), mode="replicate"), kernel) != 0).to(torch.float32)
        spread = conv2d(edges, blur, padding=margin) / STRAIGHT_EDGE_BLUR
        spread = spread.clamp(max=1.0)
    return (1.5 * spread + 0.5).clamp(0.0, 4.0)[:, 0]


def boundary_aware_loss(
    logits: Tensor, labels: Tensor, *, variant: Literal["intended", "published"] = "intended"
) -> Tensor:
    """Mean of weight * cross-entropy: logits (B, C, H, W), labels (B, H, W) int64, 255 = left out."""
    losses = cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="none")
    labelled = (labels != IGNORE).sum().clamp(min=1)
    return (losses * boundary_weight(labels, variant=variant)).sum() / labelled


def soft_dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - Dice of the landslide class (the last) over a batch. Source: Milletari et al. (2016)."""
    labelled = labels != IGNORE
    truth = (labels == logits.shape[1] - 1) & labelled
    probability = logits.float().softmax(dim=1)[:, -1] * labelled
    overlap = (probability * truth).sum()
    return 1 - (2 * overlap + 1) / (probability.sum() + truth.sum() + 1)


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the labelled pixels."""
    total = cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


def focal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of (1 - p)^2 * cross-entropy, p the probability of the true class. Source: Lin et al. (2017), gamma 2."""
    losses = cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="none")
    hard = (1 - torch.exp(-losses)) ** FOCUS
    return (hard * losses).sum() / (labels != IGNORE).sum().clamp(min=1)


Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, C, H, W) and labels (B, H, W) int64 -> scalar."""

LOSSES: Final[Mapping[str, Loss]] = MappingProxyType(
    {
        "boundary": boundary_aware_loss,
        "boundary-published": partial(boundary_aware_loss, variant="published"),
        "cross-entropy": mean_cross_entropy,
        "dice": soft_dice_loss,
        "focal": focal_loss,
    }
)


def combine_losses(weights: Mapping[str, float]) -> Loss:
    """The weighted sum of losses by name.

    Raises: ValueError listing the names when one is not known, or when there is none.
    """
    unknown = sorted(set(weights) - set(LOSSES))
    if unknown or not weights:
        raise ValueError(f"losses: got {unknown or 'none'}; expected some of {', '.join(LOSSES)}")

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return torch.stack([weight * LOSSES[name](logits, labels) for name, weight in weights.items()]).sum()

    return loss
