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
        return _sigmoid(self.log_odds(margin))


def _sigmoid(log_odds: Values) -> Values:
    """Overflows nowhere, unlike 1 / (1 + exp(-x))."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * log_odds)))


def fit_calibration(margin: Values, landslide: NDArray[np.bool_]) -> Calibration:
    """Scale and bias of the highest likelihood for margins (n,) of pixels whose class is known.

    Newton's method from the prevalence alone; a step that would make the data less likely is halved.

    Raises: ValueError when only one class is there.

    Source: Lin, Lin and Weng (2007), A note on Platt's probabilistic outputs for support vector machines.
    """
    truth = landslide.astype(np.float64)
    prevalence = truth.mean()
    if truth.min() == truth.max():
        raise ValueError("calibration: got pixels of one class; expected landslides and other ground")
    design = np.stack([margin, np.ones_like(margin)])

    def unlikelihood(weights: Values) -> float:
        log_odds = weights @ design
        return float((np.logaddexp(0.0, log_odds) - truth * log_odds).sum())

    weights = np.array([0.0, np.log(prevalence / (1.0 - prevalence))])
    reached = unlikelihood(weights)
    for _ in range(NEWTON_STEPS):
        probability = _sigmoid(weights @ design)
        gradient = design @ (probability - truth)
        curvature = (design * (probability * (1.0 - probability))) @ design.T
        step = np.linalg.solve(curvature, gradient)
        while (now := unlikelihood(weights - step)) > reached and np.abs(step).max() >= NEWTON_TOLERANCE:
            step /= 2
        weights, reached = weights - step, now
        if np.abs(step).max() < NEWTON_TOLERANCE:
            break
    return Calibration(round(float(weights[0]), 5), round(float(weights[1]), 5), round(float(prevalence), 5))


@dataclass(frozen=True)
class Bin:
    """Pixels of about the same predicted probability."""

    probability: float
    """Mean predicted probability."""
    frequency: float
    """Share of them that are landslide."""
    pixels: int


def reliability(probability: Values, landslide: NDArray[np.bool_]) -> tuple[Bin, ...]:
    """What was predicted against what was found, for pixels (n,), in those of 15 even bins that hold any.

    >>> reliability(np.array([0.1, 0.9, 0.9]), np.array([False, True, False]))[1]
    Bin(probability=0.9, frequency=0.5, pixels=2)
    """
    bins = np.minimum((probability * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    pixels = np.bincount(bins, minlength=ECE_BINS)
    expected = np.bincount(bins, weights=probability, minlength=ECE_BINS)
    found = np.bincount(bins, weights=landslide.astype(np.float64), minlength=ECE_BINS)
    return tuple(Bin(float(e / n), float(f / n), int(n)) for e, f, n in zip(expected, found, pixels, strict=True) if n)


def calibration_error(probability: Values, landslide: NDArray[np.bool_]) -> float:
    """Expected calibration error (ECE): mean gap of probability and frequency over 15 bins, weighted by their pixels.

    Source: Naeini, Cooper and Hauskrecht (2015), Obtaining well calibrated probabilities using Bayesian binning.
    """
    gaps = [b.pixels * abs(b.probability - b.frequency) for b in reliability(probability, landslide)]
    return float(sum(gaps) / max(probability.size, 1))
