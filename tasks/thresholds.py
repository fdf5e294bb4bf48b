"""From which probability on a pixel counts: the scene's own threshold, since a new event shifts the network's scale.

On an event that a network has not seen it still ranks pixels well, but doubts: landslides of another colour or
freshness get probabilities of a few percent. Their histogram shows two modes all the same, and Otsu's criterion finds
the valley between them without a label. Where there is no valley the model card's threshold stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from skimage.filters import threshold_otsu

from catalog.schema import FloatArray

LEAST_SEPARABILITY: Final = 0.70
"""Otsu's eta: a normal law cut at its mean has 0.64 (2 / pi), an even one 0.75; ground with landslides came to 0.66 to
0.76 with the shipped network (`benchmarks/thresholds.py`)."""
LEAST_PROBABILITY: Final = 0.02
"""Below it a pixel is not called a landslide whatever the histogram says."""
RESOLUTION: Final = 1e-4
"""Probabilities are stored in steps of it: log odds are taken no further out."""


@dataclass(frozen=True)
class Threshold:
    """The landslide probability that counts, and where it comes from."""

    probability: float
    reason: str
    separability: float | None = None
    """Otsu's eta in 0..1: between-class over total variance of the log odds; None where it was not asked for."""


def scene_threshold(probability: FloatArray, *, card: float) -> Threshold:
    """Otsu's threshold on the log odds of a sample of the scene (any shape, NaN = not observed).

    card : the model card's threshold. It is the highest that is used, and used where the scene has no two modes.

    Source: Otsu (1979), A threshold selection method from gray-level histograms, IEEE Trans. SMC 9, 62-66.
    """
    seen = probability[np.isfinite(probability)].astype(np.float64)
    log_odds = logit(np.clip(seen, RESOLUTION, 1.0 - RESOLUTION))
    if seen.size == 0 or log_odds.min() == log_odds.max():
        return Threshold(card, f"the model card's, {card:g}: the scene's probabilities are all the same")
    cut = float(threshold_otsu(log_odds))  # type: ignore[no-untyped-call]
    eta = round(_separability(log_odds, cut), 3)
    if eta < LEAST_SEPARABILITY:
        reason = (
            f"the model card's, {card:g}: the scene's probabilities have one mode (Otsu's eta {eta:.2f}, two modes "
            f"from {LEAST_SEPARABILITY:g})"
        )
        return Threshold(card, reason, eta)
    value = round(min(max(float(expit(cut)), LEAST_PROBABILITY), card), 4)
    reason = f"the scene's, {value:g}: Otsu's threshold on the log odds (eta {eta:.2f}); the model card's is {card:g}"
    return Threshold(value, reason, eta)


def margin_threshold(*, scale: float, bias: float, card: float) -> Callable[[NDArray[np.float64]], float]:
    """`scene_threshold` for margins: margins of a sample of the scene -> the margin that counts.

    scale, bias : log odds = scale * margin + bias. card : the model card's threshold, a probability.
    """

    def cut(margin: NDArray[np.float64]) -> float:
        probability = expit(scale * margin + bias).astype(np.float32)
        return float((logit(scene_threshold(probability, card=card).probability) - bias) / scale)

    return cut


def _separability(values: NDArray[np.float64], cut: float) -> float:
    above = values > cut
    share = float(above.mean())
    if share in (0.0, 1.0):
        return 0.0
    between = share * (1.0 - share) * (values[above].mean() - values[~above].mean()) ** 2
    return float(between / values.var())
