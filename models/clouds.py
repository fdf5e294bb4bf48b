"""Cloud over training samples: the tiles are of clear days, the scenes of an event often are not."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

SIZES: Final = (((2, 6), 1.0), ((8, 20), 0.45), ((24, 48), 0.2))
"""Fewest and most lumps across a picture, and the weight of lumps of this size."""
COVER: Final = (0.02, 0.5)
"""Share of a picture that is at least thinly covered."""
EDGE: Final = (1.0, 5.0)
"""Rise of the opacity from an outline inwards: thin to thick."""
OPAQUE: Final = 0.6
"""Opacity from which nothing of the ground is to be seen."""
WHITE: Final = (150.0, 255.0)
SHADE: Final = (0.25, 0.6)
"""Light that is left in the shadow of thick cloud."""
SKYLIGHT: Final = (1.0, 1.15)
"""Gain on blue there."""


def under_cloud(image: Tensor, *, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """The image (3, H, W; 0..255) under broken cloud and its shadow, and where no ground is to be seen (H, W; bool).

    Cloud is white or a little blue; its shadow lies beside it, darker and bluer than the ground.
    """
    opacity = _opacity(image.shape[-2:], rng=rng)
    reach = image.shape[-1] // 3
    shadow = torch.roll(opacity, tuple(rng.integers(-reach, reach, size=2).tolist()), dims=(0, 1))
    light = 1 - shadow * (1 - float(rng.uniform(*SHADE)))
    skylight = _colour(1.0, 1.0, rng.uniform(*SKYLIGHT)) ** shadow
    cloud = float(rng.uniform(*WHITE)) * _colour(1.0, rng.uniform(1.0, 1.03), rng.uniform(1.0, 1.08))
    texture = 1 - 0.25 * (1 - opacity) * float(rng.random())
    seen = image * light * skylight * (1 - opacity) + cloud * texture * opacity
    return seen.clamp(0, 255).round(), opacity >= OPAQUE


def _opacity(size: torch.Size, *, rng: np.random.Generator) -> Tensor:
    """Broken cloud (H, W), 0..1, with outlines of several sizes."""
    field = torch.zeros(size)
    for lumps, weight in SIZES:
        cells = int(rng.integers(*lumps))
        noise = torch.from_numpy(rng.normal(size=(1, 1, cells, cells))).float()
        field += weight * interpolate(noise, size=tuple(size), mode="bicubic", align_corners=False)[0, 0]
    edge = torch.quantile(field.flatten(), 1 - float(rng.uniform(*COVER)))
    return ((field - edge) * float(rng.uniform(*EDGE)) + 0.3).clamp(0, 1)


def _colour(red: float, green: float, blue: float) -> Tensor:
    return torch.tensor([red, green, blue]).view(3, 1, 1)
