"""What the scene's threshold gains and costs beside the model card's, the valley and fixed ones, and how it moves.

    python benchmarks/thresholds.py

Each id block of the Landslide4Sense tiles (10 m) is taken for one scene: levelled as a whole, with one threshold. A, C
and D are validation tiles of regions that were trained on; B is Hokkaido 2018 and was left out of training. The patches
and the scene are Hokkaido as well (3 m); the patches are those that do not overlap it, against both annotators.

`moves`: the place's blocks (tiles, patches, or squares of the scene) are drawn anew with replacement; landslide area of
the place at their thresholds, 95th percentile over 5th.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from ground import Probability, places
from numpy.typing import NDArray

from catalog.store import SAMPLE_PIXELS
from models.predictor import load_predictor
from tasks.thresholds import LEAST_PROBABILITY, scene_threshold, valley_of

FIXED: Final = (0.05, 0.1, 0.2)
SQUARE_PX: Final = 256
"""Side of the scene's blocks."""
DRAWS: Final = 200


def blocks_of(probability: Probability) -> Probability:
    """Blocks (N, H, W) of a place, thinned to about as many pixels as `detect` measures on."""
    if len(probability) == 1:
        rows, cols = (length // SQUARE_PX for length in probability.shape[1:])
        cut = probability[0, : rows * SQUARE_PX, : cols * SQUARE_PX]
        cut = cut.reshape(rows, SQUARE_PX, cols, SQUARE_PX).swapaxes(1, 2)
        probability = cut.reshape(-1, SQUARE_PX, SQUARE_PX)
    step = math.ceil(math.sqrt(probability.size / SAMPLE_PIXELS))
    return probability[:, ::step, ::step]


def moves(probability: Probability, *, card: float, prevalence: float) -> float:
    """How far the landslide area of a place moves as its blocks are drawn anew: 95th percentile over 5th."""
    blocks, rng = blocks_of(probability), np.random.default_rng(0)
    seen: NDArray[np.float32] = np.sort(blocks[np.isfinite(blocks)])
    drawn = (blocks[rng.integers(len(blocks), size=len(blocks))] for _ in range(DRAWS))
    cuts = [scene_threshold(each, card=card, prevalence=prevalence).probability for each in drawn]
    low, high = np.percentile(seen.size - np.searchsorted(seen, cuts), [5, 95])
    return float(high / low)


def main() -> None:
    """Print one row a place and map: how the threshold comes about, how it moves, and IoU at each threshold."""
    predictor = load_predictor()
    card, prevalence = predictor.card.threshold, predictor.card.calibration.prevalence
    titles = ("card", "scene", "valley", *(f"{t:g}" for t in FIXED))
    first = f"{'':<26}{'landslide':>10}{'eta':>6}{'weight':>8}{'threshold':>11}{'moves':>7}"
    print(first + "".join(f"{title:>8}" for title in titles))
    for ground, probability in places(predictor):
        chosen = scene_threshold(probability, card=card, prevalence=prevalence)
        valley = min(max(valley_of(probability), LEAST_PROBABILITY), card)
        moved = moves(probability, card=card, prevalence=prevalence)
        for who, truth in ground.maps.items():
            cuts = (card, chosen.probability, valley, *FIXED)
            iou = [ground.score(probability >= cut, who)["iou"] for cut in cuts]
            print(f"{ground.name + ' ' + who:<26}{truth[ground.seen].mean():>10.3f}{chosen.separability:>6.2f}"
                  f"{chosen.weight:>8.2f}{chosen.probability:>11.3f}{moved:>7.2f}"
                  + "".join(f"{value:>8.3f}" for value in iou), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
