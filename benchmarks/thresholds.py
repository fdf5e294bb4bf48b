"""What the scene's threshold gains and costs beside the model card's, on labelled ground of other places and sensors.

    python benchmarks/thresholds.py

Each id block of the Landslide4Sense tiles (10 m) is taken for one scene: levelled as a whole, with one threshold. A, C
and D are validation tiles of regions that were trained on; B is Hokkaido 2018 and was left out of training. The patches
are Hokkaido as well (3 m), those that do not overlap the scene of `yardsticks.py`, against both annotators.
"""

from __future__ import annotations

from ground import BLOCKS, patches, predict, tiles

from models.predictor import load_predictor
from tasks.thresholds import scene_threshold


def main() -> None:
    """Print one row a place and map."""
    predictor = load_predictor()
    card = predictor.card
    print(f"{'':<26}{'landslide':>10}{'eta':>6}{'threshold':>11}{'IoU, card':>11}{'IoU, scene':>12}")
    for ground in (*(tiles(block) for block in BLOCKS), patches()):
        probability = predict(predictor, ground, ground.levelled(card.median_rgb))
        chosen = scene_threshold(probability, card=card.threshold)
        for who, truth in ground.maps.items():
            iou = [ground.score(probability >= t, who)["iou"] for t in (card.threshold, chosen.probability)]
            print(f"{ground.name + ' ' + who:<26}{truth[ground.seen].mean():>10.3f}{chosen.separability:>6.2f}"
                  f"{chosen.probability:>11.3f}{iou[0]:>11.3f}{iou[1]:>12.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
