"""The predictor: a network loaded once a process, that turns 8-bit windows into landslide probabilities."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from models.cards import ModelCard, find_weights, load_card, load_network
from models.mffenet import STRIDE
from models.training import normalise_images

logger = logging.getLogger(__name__)

_CACHE: Final[dict[str, Predictor]] = {}
_LOCK: Final = threading.Lock()


class Predictor:
    """A network in eval mode with its card. Calls are serialised: torch uses the threads it was given.

    `network_s` counts the seconds spent inside the network.
    """

    def __init__(self, network: nn.Module, card: ModelCard, *, device: str) -> None:
        self.card = card
        self.device = device
        self.network_s = 0.0
        self._network = network.to(device).to(memory_format=torch.channels_last)
        self._lock = threading.Lock()

    def predict(self, images: NDArray[np.uint8], *, gsd_m: float) -> NDArray[np.float32]:
        """Landslide probability (B, H, W) in 0..1 of 8-bit RGB images (B, H, W, 3) with pixels of `gsd_m`.

        Images outside the network's pixel sizes are resampled to it and the probability back.

        Raises: ValueError for another shape or dtype.
        """
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise ValueError(f"images: got {images.dtype} {images.shape}; expected uint8 (B, H, W, 3)")
        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
        factor = gsd_m / self.card.lattice_gsd(gsd_m)
        size = pixels.shape[-2:]
        if factor != 1.0:
            fitted = [max(STRIDE, round(n * factor)) for n in size]
            pixels = interpolate(pixels, size=fitted, mode="bicubic", antialias=True).clamp(0, 255)
        probability = torch.cat([self._forward(image[None]) for image in pixels])
        if factor != 1.0:
            probability = interpolate(probability, size=size, mode="bilinear", align_corners=False)
        return np.asarray(probability[:, 0].numpy(), dtype=np.float32)

    def _forward(self, pixels: Tensor) -> Tensor:
        """Calibrated probability (1, 1, H, W) of one image (1, 3, H, W) in 0..255: batch 1 was fastest on CPUs."""
        height, width = pixels.shape[-2:]
        below, right = -height % STRIDE, -width % STRIDE
        mode = "reflect" if below < height and right < width else "replicate"
        padded = pad(pixels, (0, right, 0, below), mode=mode).to(self.device)
        started = time.perf_counter()
        with self._lock, torch.inference_mode(), torch.autocast(self.device, dtype=torch.bfloat16):
            inputs = normalise_images(padded).contiguous(memory_format=torch.channels_last)
            logits = self._network(inputs)
            margin = (logits.float()[:, -1:] - logits.float()[:, :1]).cpu()
        self.network_s += time.perf_counter() - started
        return torch.sigmoid(self.card.calibration.log_odds(margin[..., :height, :width]))


def load_predictor(source: str = "mffenet-lite0", *, threads: int | None = None) -> Predictor:
    """The predictor of a registered name or a weights file, loaded once a process and kept by its weights hash.

    Raises: ValueError when weights or card are missing or do not fit.
    """
    weights = find_weights(source)
    card = load_card(weights)
    with _LOCK:
        if threads is not None and threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        if card.weights_sha256 not in _CACHE:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            _CACHE[card.weights_sha256] = Predictor(load_network(weights, card), card, device=device)
            logger.info("network %s on %s, %d threads", card.name, device, torch.get_num_threads())
        return _CACHE[card.weights_sha256]
