"""The accuracy bench: MFFENet light beside its peers and without its parts, on ground like its training's and on new.

    python benchmarks/accuracy.py [--only mffenet unet ...] [--seeds 0 1 2] [--table]

Every network is trained on the Landslide4Sense tiles without id block B (Hokkaido) from the same ImageNet encoder, with
the same budget, augmentation and optimiser, and scored on: the validation tiles of the other blocks; block B, left out
whole; the Hokkaido scene and the patches outside it, as they are and levelled; validation tiles with salt-and-pepper
noise. Thresholds are chosen and probabilities calibrated on every second validation tile, scores are of the others.

One line a network and seed is appended to `benchmarks/results/accuracy.jsonl`; rows that are there are not run again.
The bench can be stopped at any time: a training goes on from its last epoch (`build/accuracy`). `--table` only prints.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from ground import Ground, patches, predict, scene, tiles
from networks import CONTENDERS
from numpy.typing import NDArray
from rows import Bench, Row, markdown, spread
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.augment import Tiles
from models.calibration import Calibration, calibration_error, fit_calibration
from models.cards import ModelCard, find_weights, load_card
from models.numerics import autocast, best_mode, choose_device, processor
from models.predictor import Predictor
from models.training import TrainConfig, Watcher, fit
from tasks.evaluation import pixel_scores, scores
from tasks.thresholds import scene_threshold

RESULTS: Final = Path(__file__).parent / "results/accuracy.jsonl"
WORK: Final = Path("build/accuracy")
BUDGET: Final = TrainConfig(steps=500, batch=16, crop_px=128, epoch_steps=50)
PEERS: Final = ("unet", "deeplabv3plus", "unet-head", "deeplabv3plus-head")
SEEDS: Final = dict.fromkeys(("mffenet", "published-start", *PEERS), (0, 1, 2, 3, 4))
DEFAULT_SEEDS: Final = (0, 1, 2)
THRESHOLDS: Final = tuple(round(0.02 * k, 2) for k in range(1, 48))
NOISE: Final = (0.0, 0.05, 0.1, 0.2, 0.3)
"""Shares of pixels made black or white, as the authors test it."""
NOISE_TILES: Final = 4
"""Noise is tested on every fourth of the scored validation tiles."""
TIMED_PX: Final = 256
UNCALIBRATED: Final = Calibration(scale=1.0, bias=0.0, prevalence=0.0)


def trained(name: str, seed: int, train: Tiles) -> tuple[nn.Module, float]:
    """The network and the seconds that training took (this session's part of it)."""
    contender, path = CONTENDERS[name], WORK / f"{name}-{seed}.pt"
    torch.manual_seed(seed)
    network = contender.build()
    config = replace(BUDGET, seed=seed, losses=contender.losses, augmentation=contender.augmentation)
    started = time.perf_counter()
    watcher = Watcher(on_epoch=lambda e: print(f"{name} seed {seed}: step {e.step}, loss {e.loss:.3f}", flush=True))
    WORK.mkdir(parents=True, exist_ok=True)
    return fit(network, train, config, watcher=watcher, checkpoint=path), time.perf_counter() - started


def bench_card(*, threshold: float, calibration: Calibration, reference: tuple[float, float, float]) -> ModelCard:
    """A card of the bench: how images are shown is that of the shipped one."""
    shipped = load_card(find_weights("mffenet-lite0"))
    return replace(shipped, name="bench", threshold=threshold, calibration=calibration, median_rgb=reference)


def card_from(row: dict[str, Any]) -> ModelCard:
    """The card of a network that a row is about."""
    told = row["card"]
    red, green, blue = told["median_rgb"]
    calibration = Calibration(**told["calibration"])
    return bench_card(threshold=told["threshold"], calibration=calibration, reference=(red, green, blue))


def card_of(network: nn.Module, *, reference: tuple[float, float, float]) -> tuple[ModelCard, dict[str, float]]:
    """A card, calibrated and with its threshold from every second validation tile, and the scores of the others."""
    card = bench_card(threshold=0.5, calibration=UNCALIBRATED, reference=reference)
    ground = tiles("ACD")
    raw = Predictor(network, card, device=choose_device()).predict(ground.images, gsd_m=ground.gsd_m).astype(np.float64)
    margin, truth = np.log(raw + 1e-7) - np.log1p(1e-7 - raw), ground.maps["labels"]
    fitted, scored = np.arange(len(truth)) % 2 == 0, np.arange(len(truth)) % 2 == 1
    calibration = fit_calibration(margin[fitted].ravel(), truth[fitted].ravel())
    probability = calibration.probability(margin)
    threshold = max(THRESHOLDS, key=lambda t: _f1(probability[fitted] >= t, truth[fitted]))
    found = scores(pixel_scores((probability[scored] >= threshold).astype(np.uint8), truth[scored], truth[scored] >= 0))
    ece = calibration_error(probability[scored].ravel(), truth[scored].ravel())
    told = {k: round(float(found[k] or 0), 4) for k in ("precision", "recall", "f1", "iou")}
    return replace(card, calibration=calibration, threshold=threshold), told | {"ece": round(ece, 4)}


def _f1(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    return float(2 * (predicted & truth).sum() / max(predicted.sum() + truth.sum(), 1))


def new_ground(predictor: Predictor, ground: Ground, *, levelled: bool) -> dict[str, float]:
    """IoU at the card's threshold, at the scene's, and at the best that knows the labels, for each map."""
    images = ground.levelled(predictor.card.median_rgb) if levelled else ground.images
    probability = predict(predictor, ground, images)
    card = predictor.card.threshold
    prevalence = predictor.card.calibration.prevalence
    own = scene_threshold(probability, card=card, prevalence=prevalence).probability
    return {
        f"{who}, {kind}": round(float(max(ground.score(probability >= t, who)["iou"] or 0 for t in tried)), 4)
        for who in ground.maps
        for kind, tried in (("card", [card]), ("scene", [own]), ("oracle", THRESHOLDS))
    }


def block_b() -> Ground:
    """All tiles of the block that no network was trained on, of both splits."""
    parts = [tiles("B", split=split) for split in ("train", "validation")]
    images, labels = (
        np.concatenate(arrays) for arrays in zip(*((p.images, p.maps["labels"]) for p in parts), strict=True)
    )
    return Ground("tiles B", 10.0, images, {"labels": labels})


def salted(images: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """The images with a share of their pixels black or white."""
    rng = np.random.default_rng(0)
    draw = rng.random(images.shape[:-1])[..., None]
    return np.where(draw < share / 2, 0, np.where(draw < share, 255, images)).astype(np.uint8)


def noise(predictor: Predictor) -> dict[str, float]:
    """F1 on validation tiles by the share of salt and pepper."""
    ground = tiles("ACD")
    picked = slice(1, None, 2 * NOISE_TILES)
    truth = ground.maps["labels"][picked]
    return {
        f"{share:.0%}": round(
            _f1(
                predictor.predict(salted(ground.images[picked], share), gsd_m=10.0) >= predictor.card.threshold, truth
            ), 4,
        )
        for share in NOISE
    }  # fmt: skip


def cost(network: nn.Module) -> dict[str, float]:
    """Parameters, TFLOP of a 512 px window (a multiply-add is two), CPU seconds of a 256 px window in bf16."""
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        network.eval()(torch.zeros(1, 3, 512, 512))
    window = torch.zeros(1, 3, TIMED_PX, TIMED_PX).contiguous(memory_format=torch.channels_last)
    times = []
    with torch.inference_mode(), autocast("cpu", best_mode("cpu")):
        for _ in range(9):
            started = time.perf_counter()
            network(window)
            times.append(time.perf_counter() - started)
    parameters = sum(p.numel() for p in network.parameters())
    return {"parameters": parameters, "tflop": round(counter.get_total_flops() / 1e12, 4), "window_s": min(times)}


def run(name: str, seed: int) -> dict[str, Any]:
    """Everything that one row knows."""
    read = tiles("ACD", split="train")
    train = Tiles(read.images, read.maps["labels"].astype(np.uint8))
    network, seconds = trained(name, seed, train)
    card, validation = card_of(network, reference=train.median_rgb())
    predictor = Predictor(network, card, device=choose_device())
    left_out = block_b()
    return {
        "network": name,
        "seed": seed,
        "validation": validation,
        "block B": new_ground(predictor, left_out, levelled=False),
        "block B, levelled": new_ground(predictor, left_out, levelled=True),
        "scene": new_ground(predictor, scene(), levelled=False),
        "scene, levelled": new_ground(predictor, scene(), levelled=True),
        "patches": new_ground(predictor, patches(), levelled=False),
        "patches, levelled": new_ground(predictor, patches(), levelled=True),
        "noise": noise(predictor),
        "card": {"threshold": card.threshold, "calibration": asdict(card.calibration), "median_rgb": card.median_rgb},
        "seconds": round(seconds),
        "device": processor(),
        "budget": {k: v for k, v in asdict(BUDGET).items() if k in ("steps", "batch", "crop_px", "learning_rate")},
    }


def _f1_of(iou: float) -> float:
    return 2 * iou / (1 + iou)


COLUMNS: Final = {
    "val F1": lambda row: row["validation"]["f1"],
    "val IoU": lambda row: row["validation"]["iou"],
    "val ECE": lambda row: row["validation"]["ece"],
    "B F1": lambda row: _f1_of(row["block B, levelled"]["labels, card"]),
    "scene IoU": lambda row: row["scene, levelled"]["inventory, card"],
}


def table(rows: list[Row]) -> str:
    """Mean and spread by network, then by noise, as Markdown; what a network costs is measured now, on this CPU."""
    titles = ["network", "seeds", *COLUMNS, "million weights", "TFLOP / 512 px", "s / 256 px"]
    lines, noisy = [], []
    for name, contender in CONTENDERS.items():
        own = [row for row in rows if row["network"] == name]
        if not own:
            continue
        cells = [spread(column(row) for row in own) for column in COLUMNS.values()]
        costs = cost(contender.build())
        price = [f"{costs['parameters'] / 1e6:.2f}", f"{costs['tflop']:.4f}", f"{costs['window_s']:.3f}"]
        lines.append([contender.title, str(len(own)), *cells, *price])
        noisy.append([contender.title, *(spread(row["noise"][f"{share:.0%}"] for row in own) for share in NOISE)])
    by_noise = markdown(["network", *(f"{share:.0%}" for share in NOISE)], noisy)
    return f"{markdown(titles, lines)}\n\nF1 by the share of salt and pepper:\n\n{by_noise}"


BENCH: Final = Bench(
    RESULTS, "network", list(CONTENDERS), lambda name: SEEDS.get(name, DEFAULT_SEEDS), run=run, table=table
)

if __name__ == "__main__":
    BENCH.main(__doc__)
