"""Hokkaido's scene before and after adaptation, beside the image: probabilities, and where the maps are wrong.

    python benchmarks/pictures.py [--out docs/images/adaptation.jpg]

The shipped weights, adapted to the scene without its labels as `landslidenet detect --adapt` does, each cut at the
threshold that the scene gives. The event's inventory is the reference: it is generous, and leaves small slides out.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Final

import matplotlib.pyplot as plt
import numpy as np
from ground import Ground, Probability, predict, scene, tiles, windows
from matplotlib.axes import Axes
from numpy.typing import NDArray

from models.adaptation import AdaptConfig, adapt
from models.augment import Tiles
from models.cards import find_weights, load_card, load_network
from models.predictor import Predictor
from models.registry import extend_to_adanet
from tasks.thresholds import margin_threshold, scene_threshold

FOUND, FALSE, MISSED = (46, 160, 67), (230, 60, 60), (60, 120, 230)
"""Colours of landslides found, false alarms and landslides missed."""
BRIGHT: Final = 2.2
"""The image is dark: gain of the picture."""


def adapted(ground: Ground, start: Predictor) -> Predictor:
    """The network adapted to the ground from the tiles of other events."""
    card = start.card
    network = extend_to_adanet(load_network(find_weights(card.name), card), card.architecture)
    read = tiles("ACD", split="train")
    threshold = margin_threshold(**asdict(card.calibration), card=card.threshold)
    source = Tiles(read.images, read.maps["labels"].astype(np.uint8))
    target = windows(ground, ground.levelled(card.median_rgb), card)
    return Predictor(adapt(network, source, target, AdaptConfig(), threshold=threshold), card, device="cpu")


def errors(image: NDArray[np.uint8], landslide: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The image in grey with landslides found, falsely called and missed in colour."""
    picture = np.repeat(image.mean(axis=-1, keepdims=True) * 0.6, 3, axis=-1)
    for where, colour in ((landslide & truth, FOUND), (landslide & ~truth, FALSE), (~landslide & truth, MISSED)):
        picture[where] = 0.45 * picture[where] + 0.55 * np.array(colour)
    return picture.astype(np.uint8)


def draw(ground: Ground, maps: dict[str, Probability], *, card: float, out: Path) -> None:
    """One row a map: the probability, and the errors at the scene's threshold; the image first."""
    image = (ground.images[0].astype(np.float32) * BRIGHT).clip(0, 255).astype(np.uint8)
    truth = ground.maps["inventory"][0]
    figure, axes = plt.subplots(2, 3, figsize=(15, 10.4), layout="constrained")
    _show(axes[0, 0], image, "After the earthquake, 3 m")
    _show(axes[1, 0], image, "The inventory (scar or deposit)")
    axes[1, 0].contour(truth, levels=[0.5], colors="#ffd02e", linewidths=0.7)
    for row, (name, probability) in zip(axes, maps.items(), strict=True):
        threshold = scene_threshold(probability, card=card).probability
        landslide = probability >= threshold
        iou = ground.score(landslide, "inventory")["iou"]
        _show(row[1], probability[0], f"{name}: probability", cmap="magma", vmin=0, vmax=1)
        title = f"IoU {iou:.3f} at {threshold:.2f}: green found, red false, blue missed"
        _show(row[2], errors(image, landslide[0], truth), title)
    figure.savefig(out, dpi=80, pil_kwargs={"quality": 82})


def _show(axes: Axes, picture: NDArray[np.generic], title: str, **how: object) -> None:
    axes.imshow(picture, **how)
    axes.set_title(title, fontsize=11)
    axes.set_axis_off()


def main() -> None:
    """Adapt, predict and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images/adaptation.jpg"))
    out = parser.parse_args().out
    weights = find_weights("mffenet-lite0")
    card, ground = load_card(weights), scene()
    before = Predictor(load_network(weights, card), card, device="cpu")
    after = adapted(ground, before)
    levelled = ground.levelled(card.median_rgb)
    maps = {"Shipped weights": predict(before, ground, levelled), "Adapted": predict(after, ground, levelled)}
    draw(ground, maps, card=card.threshold, out=out)


if __name__ == "__main__":
    main()
