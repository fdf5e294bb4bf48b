"""Labelled ground that the benches score on: tiles, patches and the scene of Hokkaido 2018, as `detect` sees them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import numpy as np
import rasterio
from numpy.typing import NDArray
from skimage.filters import threshold_otsu

from catalog.config import data_dir
from catalog.tiles import LANDSLIDE4SENSE, read_landslide4sense
from models.augment import Tiles
from models.cards import ModelCard
from models.predictor import Predictor
from tasks.evaluation import pixel_scores, scores
from tasks.inference import RGB, Extent, Lattice, lattice_windows, measure_tone, network_window, predict_block

HOKKAIDO: Final = data_dir() / "hokkaido2018"
IN_SCENE: Final = ("672", "742")
"""Patches that overlap the scene."""
BLOCKS: Final = "ABCD"

Probability = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Ground:
    """Images (N, H, W, 3) uint8 of one place, and who mapped what there: (N, H, W) bool, by name."""

    name: str
    gsd_m: float
    images: NDArray[np.uint8]
    maps: dict[str, NDArray[np.bool_]]

    @cached_property
    def seen(self) -> NDArray[np.bool_]:
        """(N, H, W): neither black nor white."""
        return (self.images > 0).any(axis=-1) & (self.images < 255).any(axis=-1)

    def levelled(self, reference: tuple[float, float, float]) -> NDArray[np.uint8]:
        """The images with the tone of training tiles of these medians, as `detect` levels a scene."""
        reflectance = self.images.astype(np.float32) / 255
        sample = {band: np.where(self.seen, reflectance[..., i], np.nan) for i, band in enumerate(RGB)}
        tone = measure_tone(sample, reference=reference)
        toned = np.stack([tone.apply(np.moveaxis(image, -1, 0)) for image in reflectance])
        return np.rint(np.moveaxis(toned, 1, -1)).astype(np.uint8)

    def score(self, landslide: NDArray[np.bool_], who: str) -> dict[str, float | int | None]:
        """Pixel scores of a map (N, H, W) against one of the labels, where the ground is seen."""
        return scores(pixel_scores(landslide.astype(np.uint8), self.maps[who], self.seen))

    def otsu(self) -> NDArray[np.bool_]:
        """Otsu's threshold on red / green over all of it: a map without any network."""
        red, green = (self.images[..., band].astype(np.float32) for band in (0, 1))
        ratio = red / np.maximum(green, 1)
        return ratio > threshold_otsu(ratio[self.seen])


def tiles(blocks: str, *, split: Literal["train", "validation"] = "validation") -> Ground:
    """The tiles of id blocks."""
    others = set(BLOCKS) - set(blocks)
    read = read_landslide4sense(data_dir() / LANDSLIDE4SENSE, split=split, without_blocks=others)
    return Ground(f"tiles {blocks}", 10.0, read.images, {"labels": read.masks > 0})


def patches() -> Ground:
    """The 13 patches outside the scene, with the maps of both annotators."""
    folder = HOKKAIDO / "patches"
    names = sorted(p.name.split("_")[0] for p in folder.glob("*_post_rgb.tif"))
    names = [name for name in names if name not in IN_SCENE]
    images = np.stack([np.moveaxis(_read(folder / f"{name}_post_rgb.tif"), 0, -1) for name in names])
    kinds = {"second annotator": "mask_xiaoao", "inventory": "inventory_koukita_class"}
    maps = {who: np.stack([_read(folder / f"{n}_{file}.tif")[0] > 0 for n in names]) for who, file in kinds.items()}
    return Ground("patches", 3.0, images, maps)


def scene() -> Ground:
    """The scene west of Atsuma, 3 m, with the event's inventory (scar or deposit)."""
    folder = HOKKAIDO / "scene_west"
    valid = _read(folder / "valid.tif")[0] > 0
    image = np.where(valid, _read(folder / "post_rgb.tif"), 0)
    truth = _read(folder / "inventory_class.tif") > 0
    return Ground("scene", 3.0, np.moveaxis(image, 0, -1)[None].astype(np.uint8), {"inventory": truth})


def _read(path: object) -> NDArray[np.uint8]:
    with rasterio.open(path) as raster:
        return raster.read()


def predict(predictor: Predictor, ground: Ground, images: NDArray[np.uint8]) -> Probability:
    """Landslide probability (N, H, W) of images of this ground, NaN = not seen; a scene on the lattice of `detect`."""
    if len(images) > 1:
        return np.where(ground.seen, predictor.predict(images, gsd_m=ground.gsd_m), np.float32(np.nan))
    image, whole, lattice = _scene(ground, images, predictor.card)
    blended = predict_block(
        image, origin=(0, 0), core=whole, scene=whole, lattice=lattice,
        predict=predictor.predict_windows,
    )  # fmt: skip
    return np.where(ground.seen[0], blended.probability, np.float32(np.nan))[None]


def places(predictor: Predictor) -> Iterator[tuple[Ground, Probability]]:
    """Blocks of tiles, patches and scene, each levelled as one scene, with its landslide probability."""
    for ground in (*(tiles(block) for block in BLOCKS), patches(), scene()):
        yield ground, predict(predictor, ground, ground.levelled(predictor.card.median_rgb))


def windows(ground: Ground, images: NDArray[np.uint8], card: ModelCard) -> Tiles:
    """A scene's windows side by side, as `adapt` sees them; masks are 0 where observed, else 255."""
    image, whole, lattice = _scene(ground, images, card)
    found = [
        network_window(image, origin=(0, 0), at=at, scene=whole, lattice=lattice)
        for at in lattice_windows(whole, lattice)
    ]
    drawn = [window for window in found if window is not None]
    masks = np.stack([np.where(window.seen, 0, 255) for window in drawn]).astype(np.uint8)
    return Tiles(np.stack([w.pixels for w in drawn]), masks, gsd_m=np.array(card.lattice_gsd(ground.gsd_m)))


def _scene(ground: Ground, images: NDArray[np.uint8], card: ModelCard) -> tuple[NDArray[np.float32], Extent, Lattice]:
    lattice = Lattice(card.window_px, scale=card.lattice_gsd(ground.gsd_m) / ground.gsd_m)
    image = np.where(ground.seen[0], np.moveaxis(images[0], -1, 0), np.float32(np.nan))
    return image, Extent(0, 0, *images.shape[1:3]), lattice
