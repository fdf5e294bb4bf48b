"""Calibrated probabilities: from the network's margin to the chance of a landslide, fitted on validation tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Values = NDArray[np.float64]
Margin = TypeVar("Margin", Values, Tensor)

NEWTON_STEPS: Final = 50
NEWTON_TOLERANCE: Final = 1e-9
ECE_BINS: Final = 15


@dataclass(frozen=True)
class Calibration:
    """Platt scaling of the margin, logit(landslide) - logit(other), and the ground it was fitted on.

    Source: Platt (1999), Probabilistic outputs for support vector machines.
    """

    scale: float
    bias: float
    prevalence: float
    """Share of landslide pixels in the validation tiles: what the probabilities take for granted."""

    def log_odds(self, margin: Margin) -> Margin:
        """Log odds of a landslide for margins of any shape."""
        return self.scale * margin + self.bias

    def probability(self, margin: Values) -> Values:
        """Landslide probability of margins of any shape.

        >>> Calibration(scale=1.0, bias=0.0, prevalence=0.05).probability(np.array([0.0])).tolist()
        [0.5]
        """
        return np.asarray(1.0 / (1.0 + np.exp(-self.log_odds(margin))))


def fit_calibration(margin: Values, landslide: NDArray[np.bool_]) -> Calibration:
    """Scale and bias of the highest likelihood for margins (n,) of pixels whose class is known, by Newton's method.

    Raises: ValueError when only one class is there.
    """
    truth = landslide.astype(np.float64)
    if truth.min() == truth.max():
        raise ValueError("calibration: got pixels of one class; expected landslides and other ground")
    design = np.stack([margin, np.ones_like(margin)])
    weights = np.array([1.0, 0.0])
    for _ in range(NEWTON_STEPS):
        probability = 1.0 / (1.0 + np.exp(-weights @ design))
        gradient = design @ (probability - truth)
        curvature = (design * (probability * (1.0 - probability))) @ design.T
        step = np.linalg.solve(curvature, gradient)
        weights = weights - step
        if np.abs(step).max() < NEWTON_TOLERANCE:
            break
    return Calibration(round(float(weights[0]), 5), round(float(weights[1]), 5), round(float(truth.mean()), 5))


def calibration_error(probability: Values, landslide: NDArray[np.bool_]) -> float:
    """Expected calibration error (ECE): mean gap of probability and frequency over 15 bins, weighted by their pixels.

    Source: Naeini, Cooper and Hauskrecht (2015), Obtaining well calibrated probabilities using Bayesian binning.
    """
    bins = np.minimum((probability * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    pixels = np.bincount(bins, minlength=ECE_BINS)
    expected = np.bincount(bins, weights=probability, minlength=ECE_BINS)
    found = np.bincount(bins, weights=landslide.astype(np.float64), minlength=ECE_BINS)
    return float(np.abs(expected - found).sum() / max(pixels.sum(), 1))
