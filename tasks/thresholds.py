"""From which probability on a pixel counts: between the model card's threshold and the valley of the scene's log odds.

On an event that a network has not seen it still ranks pixels well, but doubts: landslides of another colour or
freshness get probabilities of a few percent, and the valley of their histogram (Otsu) tells them from the ground. On
ground like the training tiles', where little slid, that valley lies in the ground and the card's threshold is right.
Nothing says without a label which of the two a scene is, so there is no switch: three signs are weighed, each grows
smoothly from nought to one, and the threshold moves as far as all of them say.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from catalog.schema import FloatArray
from tasks.ramps import smooth_step

LEAST_PROBABILITY: Final = 0.02
"""Below it a pixel is not called a landslide whatever the histogram says."""
RESOLUTION: Final = 1e-4
"""Probabilities are stored in steps of it: log odds are taken no further out."""
BINS: Final = np.linspace(logit(RESOLUTION), logit(1.0 - RESOLUTION), 257)
"""Edges of the histogram of log odds: fixed, since those of a sample would move with its extremes."""
SHARPNESS: Final = 100.0
"""Of the valley: cuts that come within 1 / `SHARPNESS` of Otsu's best have a say in where it lies, so that two
equally good ones do not take turns."""

MODES: Final = (2 / np.pi, 0.70)
"""Otsu's eta (between-class over total variance) from nought to one: a normal law cut at its mean has 2 / pi."""
AMOUNT: Final = (1.0, 2.5)
"""Odds of what the network is sure of, over the odds of a landslide in the tiles that it was calibrated on."""
SURE: Final = (0.125, 0.35)
"""Share of what lies above the valley that lies above the card's threshold too: a mode of landslides has a sure part,
fields and river beds that get a few percent have hardly any."""
TRAINING_PREVALENCE: Final = 0.035
"""Share of landslide in Landslide4Sense, rounded."""
LEAST_PREVALENCE: Final = 0.01


@dataclass(frozen=True)
class Threshold:
    """The landslide probability that counts, and where it comes from."""

    probability: float
    reason: str
    separability: float | None = None
    """Otsu's eta in 0..1: between-class over total variance of the log odds; None where it was not asked for."""
    weight: float | None = None
    """How far it lies from the card's threshold (0) to the valley (1), in log odds; None where it was not asked for."""


def scene_threshold(probability: FloatArray, *, card: float, prevalence: float = TRAINING_PREVALENCE) -> Threshold:
    """The threshold of a scene, from a sample of its probabilities (any shape, NaN = not observed).

    card : the model card's threshold, the highest that is used. prevalence : share of landslide in what the network
    was calibrated on. A smooth function of the sample's histogram: a little other ground moves it a little.

    Source: Otsu (1979), A threshold selection method from gray-level histograms, IEEE Trans. SMC 9, 62-66, for the
    valley; the weights are ours (docs/adr/0022).
    """
    log_odds = _log_odds(probability)
    if log_odds.size == 0 or log_odds.min() == log_odds.max():
        return Threshold(card, f"the model card's, {card:g}: the scene's probabilities are all the same")
    valley, eta = _valley(log_odds)
    highest = float(logit(card))
    sure, above = (float((log_odds >= cut).mean()) for cut in (highest, valley))
    signs = _signs(eta, sure=sure, above=above, prevalence=prevalence)
    weight = math.prod(signs.values())
    lowest = min(max(valley, float(logit(LEAST_PROBABILITY))), highest)
    value = round(float(expit(highest + weight * (lowest - highest))), 4)
    if value >= card:
        against = "; ".join(told for told, sign in signs.items() if sign < 0.5) or "their valley is no lower"
        return Threshold(card, f"the model card's, {card:g}: {against}", round(eta, 3), round(weight, 3))
    reason = (
        f"the scene's, {value:g}: {100 * weight:.0f} % of the way, in log odds, from the model card's, {card:g}, to "
        f"the valley of its probabilities at {expit(lowest):.2g} (Otsu's eta {eta:.2f}; {100 * above:.2g} % of the "
        f"scene lie above it, {100 * sure:.2g} % above the card's)"
    )
    return Threshold(value, reason, round(eta, 3), round(weight, 3))


def _signs(eta: float, *, sure: float, above: float, prevalence: float) -> dict[str, float]:
    """The three signs that the valley is the right threshold, 0 to 1, each by what is said of it where it is low.

    sure, above : shares of the scene above the card's threshold and above the valley.
    """
    usual = _odds(min(max(prevalence, LEAST_PREVALENCE), 0.5))
    one_mode = f"the scene's probabilities have one mode (Otsu's eta {eta:.2f})"
    little = f"the network is sure of no more landslide ({100 * sure:.2g} % of the scene) than its training tiles hold"
    unsure = (
        f"it is sure of little of what lies above the valley ({100 * sure:.2g} of {100 * above:.2g} % of the scene)"
    )
    return {
        one_mode: smooth_step(eta, MODES),
        little: smooth_step(math.log(_odds(sure) / usual), (math.log(AMOUNT[0]), math.log(AMOUNT[1]))),
        unsure: smooth_step(sure / max(above, RESOLUTION), SURE),
    }


def margin_threshold(
    *, scale: float, bias: float, card: float, prevalence: float = TRAINING_PREVALENCE
) -> Callable[[NDArray[np.float64]], float]:
    """`scene_threshold` for margins: margins of a sample of the scene -> the margin that counts.

    scale, bias : log odds = scale * margin + bias. card, prevalence : as there.
    """

    def cut(margin: NDArray[np.float64]) -> float:
        probability = expit(scale * margin + bias).astype(np.float32)
        chosen = scene_threshold(probability, card=card, prevalence=prevalence)
        return float((logit(chosen.probability) - bias) / scale)

    return cut


def valley_of(probability: FloatArray) -> float:
    """The probability at the valley of a sample's log odds (any shape, NaN = not observed), not bounded."""
    return float(expit(_valley(_log_odds(probability))[0]))


def _log_odds(probability: FloatArray) -> NDArray[np.float64]:
    seen = probability[np.isfinite(probability)].astype(np.float64)
    return np.asarray(logit(np.clip(seen, RESOLUTION, 1.0 - RESOLUTION)))


def _valley(log_odds: NDArray[np.float64]) -> tuple[float, float]:
    """The cut of the greatest variance between classes, and that variance over the whole (eta)."""
    share = np.histogram(log_odds, BINS)[0] / log_odds.size
    middle = (BINS[:-1] + BINS[1:]) / 2
    below, moment = np.cumsum(share)[:-1], np.cumsum(share * middle)
    mean = moment[-1]
    spread = below * (1.0 - below)
    between = np.divide((mean * below - moment[:-1]) ** 2, spread, out=np.zeros_like(below), where=spread > 1e-12)
    total = float((share * (middle - mean) ** 2).sum())
    if total == 0.0:
        return float(mean), 0.0
    say = np.exp(SHARPNESS * (between / between.max() - 1.0))
    return float((say * BINS[1:-1]).sum() / say.sum()), float(between.max() / total)


def _odds(share: float) -> float:
    return max(share, 1e-6) / (1.0 - min(share, 1.0 - 1e-6))
