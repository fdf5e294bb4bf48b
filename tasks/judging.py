"""What labelled tiles say of a network: calibration, threshold, scores and reliability, from its margins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from models.augment import Tiles
from models.calibration import Calibration, calibration_error, fit_calibration, reliability
from models.losses import IGNORE
from models.numerics import Mode, best_mode
from models.training import predict_margins
from tasks.evaluation import PixelCounts, scores

THRESHOLDS: Final = tuple(round(0.02 * k, 2) for k in range(5, 40))
UNCALIBRATED: Final = Calibration(scale=1.0, bias=0.0, prevalence=0.0)
SCORES: Final = ("precision", "recall", "f1", "iou")


@dataclass(frozen=True)
class Judgement:
    """What labelled tiles that were not trained on say of a network."""

    calibration: Calibration
    """Fitted on every second tile."""
    threshold: float
    """Of the best F1 on all of them."""
    scores: dict[str, float]
    """Precision, recall, F1 and IoU at the threshold on all of them; ECE of those not calibrated on."""
    reliability: dict[str, list[dict[str, Any]]]
    """Bins of those not calibrated on, `before` and `after`."""


def judge(margin: NDArray[np.float64], masks: NDArray[np.uint8]) -> Judgement:
    """The judgement of margins (N, H, W) against masks (N, H, W; 255 = not known).

    Raises: ValueError when every second tile shows one class only.
    """
    calibration = fit_calibration(*_labelled(margin[::2], masks[::2]))
    probability = calibration.probability(margin)
    threshold, best = at_best_threshold(probability, masks)
    unseen = masks[1::2]
    tables = {
        "before": _bins(UNCALIBRATED.probability(margin[1::2]), unseen),
        "after": _bins(probability[1::2], unseen),
    }
    error = round(calibration_error(*_labelled(probability[1::2], unseen)), 4)
    return Judgement(calibration, threshold, best | {"ece": error}, tables)


def margins_of(
    network: torch.nn.Module, tiles: Tiles, *, lattice_gsd: Callable[[float], float], mode: Mode | None = None
) -> NDArray[np.float64]:
    """Margins (N, H, W) of tiles, each shown at the pixel size that a run would show it at.

    mode : number format; None = the fastest here.
    """
    margin = np.empty(tiles.masks.shape, np.float64)
    for gsd_m in np.unique(tiles.gsd_m).tolist():
        these = tiles.gsd_m == gsd_m
        images = tiles.images[these].astype(np.float32)
        margin[these] = predict_margins(network, images, magnify=gsd_m / lattice_gsd(gsd_m), mode=mode or best_mode())
    return margin


def _labelled(values: NDArray[np.float64], masks: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The values and classes (n,) of the pixels whose class is known."""
    known = masks != IGNORE
    return values[known], masks[known] == 1


def _bins(probability: NDArray[np.float64], masks: NDArray[np.uint8]) -> list[dict[str, Any]]:
    """The reliability table of a card."""
    return [
        {"probability": round(entry.probability, 5), "frequency": round(entry.frequency, 5), "pixels": entry.pixels}
        for entry in reliability(*_labelled(probability, masks))
    ]


def at_best_threshold(probability: NDArray[np.float64], masks: NDArray[np.uint8]) -> tuple[float, dict[str, float]]:
    """The threshold of the highest F1, and the scores there; 0 where one is undefined."""
    values, truth = _labelled(probability, masks)
    counts = {t: _counts(values >= t, truth) for t in THRESHOLDS}
    threshold = max(counts, key=lambda t: scores(counts[t])["f1"] or 0.0)
    best = scores(counts[threshold])
    return threshold, {key: round(float(best[key] or 0), 3) for key in SCORES}


def _counts(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> PixelCounts:
    tp = int((predicted & truth).sum())
    return PixelCounts(tp, int(predicted.sum()) - tp, int(truth.sum()) - tp, int((~predicted & ~truth).sum()))
