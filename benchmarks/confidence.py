"""Whether the confidence classes order landslides as a reviewer would: how many of each class are mapped ones.

    python benchmarks/confidence.py

Places as in `thresholds.py`, each one scene at the threshold that `detect` takes by default. An object is a connected
patch of landslide pixels within one image, from `detect`'s least area on, before any veto; it is a mapped landslide
when at least half of it is mapped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from ground import Ground, Probability, places
from numpy.typing import NDArray
from skimage.measure import label, regionprops

from catalog.product import CONFIDENCE_COLOURS
from models.predictor import load_predictor
from tasks.inventory import classify_confidence
from tasks.story import resolved_area_m2
from tasks.thresholds import scene_threshold

MAPPED_SHARE: Final = 0.5


def objects(
    landslide: NDArray[np.bool_], probability: Probability, truth: NDArray[np.bool_], *, min_pixels: float
) -> Iterator[tuple[float, float]]:
    """Mean probability of each object of (N, H, W) images, and the share of it that is mapped."""
    for image, values, mapped in zip(landslide, probability, truth, strict=True):
        for found in regionprops(label(image, connectivity=2)):
            if found.area >= min_pixels:
                inside = tuple(found.coords.T)
                yield float(values[inside].mean()), float(mapped[inside].mean())


def rows_of(ground: Ground, probability: Probability, *, threshold: float, min_area_m2: float) -> Iterator[str]:
    """One row a map of this ground."""
    for who, truth in ground.maps.items():
        found = objects(probability >= threshold, probability, truth, min_pixels=min_area_m2 / ground.gsd_m**2)
        mean, share = np.array([*found]).T
        classes = classify_confidence(mean, np.ones_like(mean), threshold=threshold)
        mapped = {name: share[classes == name] >= MAPPED_SHARE for name in CONFIDENCE_COLOURS}
        cells = (f"{hits.sum()} of {hits.size}" for hits in mapped.values())
        yield f"{ground.name + ' ' + who:<26}{threshold:>10.3f}" + "".join(f"{cell:>14}" for cell in cells)


def main() -> None:
    """Print how many objects of each class are mapped landslides."""
    predictor = load_predictor()
    card = predictor.card
    print(f"{'':<26}{'threshold':>10}" + "".join(f"{name:>14}" for name in CONFIDENCE_COLOURS))
    for ground, probability in places(predictor):
        chosen = scene_threshold(probability, card=card.threshold, prevalence=card.calibration.prevalence)
        min_area_m2 = resolved_area_m2(ground.gsd_m, card)
        print(
            "\n".join(rows_of(ground, probability, threshold=chosen.probability, min_area_m2=min_area_m2)), flush=True
        )


if __name__ == "__main__":
    main()
