"""What the scene's threshold gains and costs beside the model card's, on labelled ground of other places and sensors.

    python benchmarks/thresholds.py [--magnify 2]

Each id block of the Landslide4Sense tiles (10 m) is taken for one scene: levelled as a whole, with one threshold. A, C
and D are validation tiles of regions that were trained on; B is Hokkaido 2018 and was left out of training. The patches
are Hokkaido as well (3 m), those that do not overlap the scene of `yardsticks.py`, against both annotators. Images are
run at their own pixel size, as `detect` does; `--magnify 2` shows the tiles at 5 m, as validation does.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Final

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image

from catalog.config import data_dir
from catalog.tiles import LANDSLIDE4SENSE, read_landslide4sense
from models.predictor import Predictor, load_predictor
from tasks.evaluation import pixel_scores, scores
from tasks.inference import RGB, measure_tone
from tasks.thresholds import scene_threshold

PATCHES: Final = data_dir() / "hokkaido2018/patches"
IN_SCENE: Final = ("672", "742")
"""Patches that overlap the scene."""
BLOCKS: Final = "ABCD"


@dataclass(frozen=True)
class Ground:
    """Images (N, H, W, 3) uint8 of one place, and who mapped what there: (N, H, W) bool, by name."""

    name: str
    gsd_m: float
    images: NDArray[np.uint8]
    maps: dict[str, NDArray[np.bool_]]


def tiles(block: str) -> Ground:
    """The validation tiles of an id block."""
    others = set(BLOCKS) - {block}
    found = read_landslide4sense(data_dir() / LANDSLIDE4SENSE, split="validation", without_blocks=others)
    return Ground(f"tiles {block}", 10.0, found.images, {"": found.masks > 0})


def patches() -> Ground:
    """The patches outside the scene, with the maps of both annotators."""
    names = sorted(p.name.split("_")[0] for p in PATCHES.glob("*_post_rgb.tif"))
    names = [name for name in names if name not in IN_SCENE]
    images = np.stack([np.moveaxis(_read(f"{name}_post_rgb.tif"), 0, -1) for name in names])
    kinds = {"second annotator": "mask_xiaoao", "inventory": "inventory_koukita_class"}
    maps = {who: np.stack([_read(f"{n}_{file}.tif")[0] > 0 for n in names]) for who, file in kinds.items()}
    return Ground("patches", 3.0, images, maps)


def _read(name: str) -> NDArray[np.uint8]:
    with rasterio.open(PATCHES / name) as raster:
        return raster.read()


def predict(predictor: Predictor, ground: Ground, images: NDArray[np.uint8], *, magnify: int) -> NDArray[np.float32]:
    """Probability (N, H, W) of the ground's levelled images; 10 m tiles are shown magnified."""
    if magnify == 1 or ground.gsd_m < 10:
        return predictor.predict(images, gsd_m=ground.gsd_m)
    n, height, width, _ = images.shape
    size = (width * magnify, height * magnify)
    large = np.stack([np.asarray(Image.fromarray(i).resize(size, Image.Resampling.BICUBIC)) for i in images])
    probability = predictor.predict(large, gsd_m=ground.gsd_m / magnify)
    return probability.reshape(n, height, magnify, width, magnify).mean(axis=(2, 4))


def main() -> None:
    """Print one row a place and map."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--magnify", type=int, default=1)
    magnify = parser.parse_args().magnify
    predictor = load_predictor()
    card = predictor.card
    print(f"{'':<26}{'landslide':>10}{'eta':>6}{'threshold':>11}{'IoU, card':>11}{'IoU, scene':>12}")
    for ground in (*(tiles(block) for block in BLOCKS), patches()):
        reflectance = ground.images.astype(np.float32) / 255
        seen = ((ground.images > 0).any(axis=-1)) & ((ground.images < 255).any(axis=-1))
        sample = {band: np.where(seen, reflectance[..., i], np.nan) for i, band in enumerate(RGB)}
        tone = measure_tone(sample, reference=card.median_rgb)
        toned = np.stack([tone.apply(np.moveaxis(image, -1, 0)) for image in reflectance])
        levelled = np.rint(np.moveaxis(toned, 1, -1)).astype(np.uint8)
        probability = np.where(seen, predict(predictor, ground, levelled, magnify=magnify), np.float32(np.nan))
        chosen = scene_threshold(probability, card=card.threshold)
        for who, truth in ground.maps.items():
            iou = [
                scores(pixel_scores((probability >= t).astype(np.uint8), truth, seen))["iou"]
                for t in (card.threshold, chosen.probability)
            ]
            label = f"{ground.name} {who}".strip()
            share = truth[seen].mean()
            print(f"{label:<26}{share:>10.3f}{chosen.separability:>6.2f}{chosen.probability:>11.3f}"
                  f"{iou[0]:>11.3f}{iou[1]:>12.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
