"""Labelled tiles of other events in the colours of an unlabelled scene."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.augment import Tiles

Matching = Literal["none", "histogram", "wallis"]
LEVELS = 256


def match_tiles(source: Tiles, target: Tiles, *, how: Matching) -> Tiles:
    """The source's tiles, matched to the observed pixels of the target's band by band.

    `histogram` : all source pixels together take the target's distribution. `wallis` : each tile takes the target's
    mean and standard deviation. Source: Wallis (1976), An approach to the space variant restoration of images.
    """
    if how == "none":
        return source
    seen = target.images[target.valid].astype(np.float32)
    bands = [
        _match_histogram(source.images[..., i], seen[:, i])
        if how == "histogram"
        else _match_moments(source.images[..., i], seen[:, i])
        for i in range(seen.shape[1])
    ]
    return replace(source, images=np.stack(bands, axis=-1))


def _match_histogram(band: NDArray[np.uint8], seen: NDArray[np.float32]) -> NDArray[np.uint8]:
    """One level -> level table for the whole band: equal shares of pixels lie below."""
    counts = np.bincount(band.ravel(), minlength=LEVELS)
    below = (np.cumsum(counts) - counts / 2) / counts.sum()
    table: NDArray[np.uint8] = np.rint(np.quantile(seen, below)).astype(np.uint8)
    return table[band]


def _match_moments(band: NDArray[np.uint8], seen: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Each tile's mean and spread become those of the seen pixels."""
    values = band.astype(np.float32)
    mean, spread = values.mean(axis=(1, 2), keepdims=True), values.std(axis=(1, 2), keepdims=True)
    matched = (values - mean) / np.maximum(spread, 1.0) * seen.std() + seen.mean()
    return np.asarray(np.rint(matched.clip(0, LEVELS - 1)), dtype=np.uint8)
