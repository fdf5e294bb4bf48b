"""What the scene's threshold gains and costs beside the model card's and fixed ones, on ground of several places.

    python benchmarks/thresholds.py

Each id block of the Landslide4Sense tiles (10 m) is taken for one scene: levelled as a whole, with one threshold. A, C
and D are validation tiles of regions that were trained on; B is Hokkaido 2018 and was left out of training. The patches
and the scene are Hokkaido as well (3 m); the patches are those that do not overlap it, against both annotators.
"""

from __future__ import annotations

from typing import Final

from ground import places

from models.predictor import load_predictor
from tasks.thresholds import scene_threshold

FIXED: Final = (0.05, 0.1, 0.2)


def main() -> None:
    """Print one row a place and map: IoU at each threshold."""
    predictor = load_predictor()
    card = predictor.card
    titles = ("card", "scene", *(f"{t:g}" for t in FIXED))
    print(f"{'':<26}{'landslide':>10}{'eta':>6}{'threshold':>11}" + "".join(f"{title:>8}" for title in titles))
    for ground, probability in places(predictor):
        chosen = scene_threshold(probability, card=card.threshold)
        for who, truth in ground.maps.items():
            cuts = (card.threshold, chosen.probability, *FIXED)
            iou = [ground.score(probability >= cut, who)["iou"] for cut in cuts]
            print(f"{ground.name + ' ' + who:<26}{truth[ground.seen].mean():>10.3f}{chosen.separability:>6.2f}"
                  f"{chosen.probability:>11.3f}" + "".join(f"{value:>8.3f}" for value in iou))  # fmt: skip


if __name__ == "__main__":
    main()
