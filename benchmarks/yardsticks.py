"""How the shipped network does on a real event it has not seen, beside what needs no network at all.

    python benchmarks/yardsticks.py

Hokkaido 2018, scene_west, against the event's inventory (scar or deposit) within the valid imagery: the detect run with
the shipped weights at the scene's threshold and at the model card's, Otsu's threshold on red / green, and a U-Net of
segmentation_models.pytorch with the same encoder, trained on the same tiles (`--unet-epochs`, 0 leaves it out).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import rasterio
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from skimage.filters import threshold_otsu

from catalog.config import data_dir
from catalog.tiles import LANDSLIDE4SENSE, read_landslide4sense
from models.losses import soft_dice_loss
from models.numerics import autocast, best_mode
from models.pretrained import imagenet_state
from models.training import normalise_images
from tasks.evaluation import pixel_scores, scores
from tasks.review import evaluate_product

SCENE = data_dir() / "hokkaido2018/scene_west"
COLUMNS = ("precision", "recall", "f1", "iou", "mcc")


def shipped(threshold: str) -> dict[str, float | int | None]:
    """Scores of `landslidenet detect` with its defaults but for the threshold."""
    with tempfile.TemporaryDirectory() as home:
        places = ["--root", f"{home}/store", "--out", f"{home}/out", "--name", "hokkaido-west"]
        command = [sys.executable, "-c", "from flows.cli import main; main()", "detect", *places]
        command += ["--post", str(SCENE / "post_rgb.tif"), "--sensor", "rgb8", "--threshold", threshold]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        truth = f"{data_dir() / 'hokkaido2018/inventory_koukita.gpkg'}:scar,deposit"
        folder = Path(done.stdout.strip().splitlines()[-1])
        return evaluate_product(folder, truth=truth, aoi=None, valid=SCENE / "valid.tif")["pixels"]


def _score(landslide: NDArray[np.bool_]) -> dict[str, float | int | None]:
    with rasterio.open(SCENE / "valid.tif") as valid, rasterio.open(SCENE / "inventory_class.tif") as truth:
        return scores(pixel_scores(landslide.astype(np.uint8), truth.read(1) > 0, valid.read(1) > 0))


def otsu() -> dict[str, float | int | None]:
    """Scores of Otsu's threshold on red / green, without any network."""
    with rasterio.open(SCENE / "post_rgb.tif") as post, rasterio.open(SCENE / "valid.tif") as valid:
        red, green, _ = post.read().astype(np.float32)
        ratio = red / np.maximum(green, 1)
        return _score(ratio > threshold_otsu(ratio[valid.read(1) > 0]))


def unet(epochs: int) -> dict[str, float | int | None]:
    """Scores of a plain U-Net with the same encoder, trained on the same tiles, shown the scene as it is."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, classes=2)
    known = network.encoder.model.state_dict()
    network.encoder.model.load_state_dict({k: v for k, v in imagenet_state().items() if k in known}, strict=False)
    tiles = read_landslide4sense(data_dir() / LANDSLIDE4SENSE, split="train", without_blocks="B")
    images, masks = tiles.images, tiles.masks
    batch, steps = 16, epochs * (len(images) // 16)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps)
    for _ in range(steps):
        picks = rng.integers(len(images), size=batch)
        pixels = torch.from_numpy(images[picks]).permute(0, 3, 1, 2).float()
        pixels = torch.nn.functional.interpolate(pixels, scale_factor=2, mode="bilinear")
        labels = torch.from_numpy(masks[picks]).repeat_interleave(2, 1).repeat_interleave(2, 2).long()
        with autocast("cpu", best_mode("cpu")):
            logits = network(normalise_images(pixels))
        loss = torch.nn.functional.cross_entropy(logits.float(), labels) + soft_dice_loss(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    with rasterio.open(SCENE / "post_rgb.tif") as post, torch.inference_mode():
        image = torch.from_numpy(post.read()).float()[None]
        return _score((network(normalise_images(image)).softmax(dim=1)[0, 1] >= 0.5).numpy())


def main() -> None:
    """Print one row a method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unet-epochs", type=int, default=15)
    options = parser.parse_args()
    rows = {
        "detect, scene's threshold": shipped("scene"),
        "detect, card's threshold": shipped("card"),
        "Otsu on red / green": otsu(),
    }
    if options.unet_epochs:
        rows[f"U-Net, {options.unet_epochs} epochs"] = unet(options.unet_epochs)
    print(f"{'':<26}" + "".join(f"{name:>11}" for name in COLUMNS))
    for name, row in rows.items():
        print(f"{name:<26}" + "".join(f"{row[c]:>11.3f}" for c in COLUMNS))


if __name__ == "__main__":
    main()
