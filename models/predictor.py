"""The predictor: a network loaded once a process, that turns 8-bit windows into landslide probabilities."""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from models.cards import ModelCard, find_weights, load_card, load_network
from models.engines import build_engine
from models.mffenet import STRIDE
from models.numerics import Numerics, best_mode, choose_device, choose_numerics
from models.training import batch_on, normalise_images

logger = logging.getLogger(__name__)

SMALLEST_PX: Final = 64

_CACHE: Final[dict[tuple[str, str, Numerics, int], Predictor]] = {}
"""By weights hash, device, numerics and threads."""
_LOCK: Final = threading.Lock()


class Predictor:
    """A network in eval mode with its card. Calls are serialised: torch uses the threads it was given.

    numerics : how it is computed; None = by torch, in the device's fastest mode.
    `network_s` counts the seconds spent inside the network.
    """

    def __init__(self, network: nn.Module, card: ModelCard, *, device: str, numerics: Numerics | None = None) -> None:
        self.card = card
        self.device = device
        self.numerics = numerics or Numerics(best_mode(device))
        self.network_s = 0.0
        self._logits = build_engine(network, self.numerics, device=device)
        self._lock = threading.Lock()

    def predict(self, images: NDArray[np.uint8], *, gsd_m: float) -> NDArray[np.float32]:
        """Landslide probability (B, H, W) in 0..1 of 8-bit RGB images (B, H, W, 3) with pixels of `gsd_m`, from 64 px.

        Images are resampled to the network's pixel size and the probability back.

        Raises: ValueError for another shape or dtype, no image, one below 64 px, or a pixel size that is none.
        """
        _check(images)
        if not 0 < gsd_m < math.inf:
            raise ValueError(f"images: got pixels of {gsd_m:g} m; expected a size above 0")
        size = images.shape[1:3]
        pixels = _to_pixels(images)
        factor = gsd_m / self.card.lattice_gsd(gsd_m)
        if factor != 1.0:
            fitted = [round(n * factor) for n in size]
            pixels = interpolate(pixels, size=fitted, mode="bicubic", antialias=True).clamp(0, 255)
        probability = self._probability(pixels)
        if factor != 1.0:
            probability = interpolate(probability, size=size, mode="bilinear", antialias=factor > 1)
        return np.asarray(probability[:, 0].numpy(), dtype=np.float32)

    def predict_windows(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """As `predict`, of images that are at the network's pixel size already.

        Raises: ValueError for another shape or dtype, no image, or one below 64 px.
        """
        _check(images)
        return np.asarray(self._probability(_to_pixels(images))[:, 0].numpy(), dtype=np.float32)

    def _probability(self, pixels: Tensor) -> Tensor:
        """A GPU's sums depend on the size of a batch: all have one, so that no image's depends on the others."""
        size = batch_on(torch.device(self.device))
        full = torch.cat([pixels, pixels[-1:].expand(-len(pixels) % size, -1, -1, -1)])
        return torch.cat([self._forward(batch) for batch in torch.split(full, size)])[: len(pixels)]

    def _forward(self, pixels: Tensor) -> Tensor:
        """Calibrated probability (B, 1, H, W) of images (B, 3, H, W) in 0..255."""
        height, width = pixels.shape[-2:]
        below, right = -height % STRIDE, -width % STRIDE
        mode = "reflect" if below < height and right < width else "replicate"
        padded = pad(pixels, (0, right, 0, below), mode=mode)
        with self._lock:
            started = time.perf_counter()
            logits = self._logits(normalise_images(padded))
            self.network_s += time.perf_counter() - started
        margin = logits[:, -1:] - logits[:, :1]
        return torch.sigmoid(self.card.calibration.log_odds(margin[..., :height, :width]))


def _check(images: NDArray[np.uint8]) -> None:
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not len(images):
        raise ValueError(f"images: got {images.dtype} {images.shape}; expected uint8 (B, H, W, 3), B from 1")
    if min(images.shape[1:3]) < SMALLEST_PX:
        raise ValueError(
            f"images: got {images.shape[1]} x {images.shape[2]} px; expected {SMALLEST_PX} px or more a side"
        )


def _to_pixels(images: NDArray[np.uint8]) -> Tensor:
    """(B, 3, H, W) float32, 0..255."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()


def load_predictor(
    source: str = "mffenet-lite0",
    *,
    device: str = "auto",
    threads: int | None = None,
    numerics: Numerics | None = None,
) -> Predictor:
    """The predictor of a registered name or a weights file, loaded once a process and kept while its card is the same.

    device : as torch names it, or `auto`: a CUDA device where there is one, else the CPU. numerics : how it is
        computed; None = as fast as the device can.

    Raises: ValueError when weights or card are missing or do not fit, or the device is none.
    """
    try:
        torch.device(device if device != "auto" else "cpu")
    except RuntimeError as error:
        raise ValueError(f"device: got {device!r}; expected auto, cpu, cuda or cuda:N") from error
    weights = find_weights(source)
    card = load_card(weights)
    with _LOCK:
        if threads is not None and threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        place = choose_device() if device == "auto" else device
        numerics = numerics or choose_numerics(device=place)
        key = (card.weights_sha256, place, numerics, torch.get_num_threads())
        if key not in _CACHE or _CACHE[key].card != card:
            _CACHE[key] = Predictor(load_network(weights, card), card, device=place, numerics=numerics)
            logger.info("network %s on %s in %s, %d threads", card.name, place, numerics, torch.get_num_threads())
        return _CACHE[key]
