"""What the command line does beside the flows: simulate, evaluate, list and train networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch

from catalog.schema import InputError
from catalog.simulated import Report, keep_quiet, write_simulated_event
from catalog.tiles import read_landslide4sense
from catalog.truth import (
    check_reference_raster,
    is_raster,
    open_mapped,
    read_polygons,
    read_strips,
    valid_ground,
)
from models.augment import Tiles
from models.calibration import calibration_error, fit_calibration
from models.cards import WEIGHTS_DIR, ModelCard, load_card, save_model
from models.registry import MODELS, create_model
from models.training import TrainConfig, Watcher, fit, predict_margins
from tasks.appearance import render
from tasks.evaluation import PixelCounts, area_error, clip, object_scores, pixel_scores, scores
from tasks.simulation import simulate

THRESHOLDS: Final = tuple(round(0.02 * k, 2) for k in range(5, 40))
VALIDATION_MAGNIFY: Final = 2


def simulate_event(
    out: Path, *, size_px: int, gsd_m: float, seed: int, sensor: str, report: Report = keep_quiet
) -> dict[str, Path]:
    """The files of a simulated event by role: pre, post, dem, event, truth; `report` hears how far it is."""
    report("earthquake", 0, 1)
    event = simulate(size_px=size_px, gsd_m=gsd_m, seed=seed, sensor=sensor)  # type: ignore[arg-type]
    report("earthquake", 1, 1)
    return write_simulated_event(
        event,
        out,
        render=lambda epoch, rows: render(event, epoch=epoch, rows=rows),  # type: ignore[arg-type]
        report=report,
    )


def evaluate_product(product: Path, *, truth: str, aoi: Path | None, valid: Path | None) -> dict[str, Any]:
    """Pixel scores, object detection and area error of a product against a reference map.

    Raises: InputError when product or reference cannot be read, or nothing of the product lies on the reference.
    """
    with open_mapped(product) as mapped:
        area = read_polygons(str(aoi), epsg=mapped.epsg, what="aoi") if aoi else None
        seen = check_reference_raster(valid, what="valid") if valid else None
        reference = (
            check_reference_raster(Path(truth), what="truth")
            if is_raster(truth)
            else read_polygons(truth, epsg=mapped.epsg)
        )
        counts = PixelCounts()
        for strip in read_strips(mapped.classes, truth=reference, aoi=area, valid=seen):
            counts += pixel_scores(strip.predicted, strip.truth, strip.valid)
        if counts == PixelCounts():
            raise InputError(f"{product}: no observed pixel lies on the reference {truth}; check that they overlap")
        result: dict[str, Any] = {"product": str(product), "truth": truth, "pixels": scores(counts)}
        if isinstance(reference, Path):
            return result
        ground = valid_ground(mapped.classes, aoi=area, valid=seen)
        layers = clip(mapped.outlines(), ground), clip(reference, ground)
        return result | {"objects": object_scores(*layers), "area": area_error(*layers)}


def list_models() -> list[dict[str, Any]]:
    """The registered networks with what their cards say."""
    rows = []
    for entry in MODELS.values():
        weights = WEIGHTS_DIR / f"{entry.name}.safetensors"
        card = load_card(weights) if weights.is_file() else None
        rows.append({
            "name": entry.name,
            "summary": entry.summary,
            "bands": ", ".join(entry.bands),
            "gsd_m": "{:g}-{:g}".format(*card.gsd_range_m) if card else "as trained",
            "parameters": f"{entry.parameters:,}",
            "weights": f"shipped, {weights.stat().st_size / 1e6:.1f} MB" if card else "none shipped",
            "licence": card.licence if card else "-",
            "metrics": ", ".join(f"{k} {v}" for k, v in card.metrics.items()) if card else "-",
        })  # fmt: skip
    return rows


def fit_network(
    tiles: Path, *, model: str, config: TrainConfig, without_blocks: str, on_step: Callable[[int, float], None]
) -> torch.nn.Module:
    """The network trained on the training tiles, from ImageNet weights where the encoder has them."""
    torch.manual_seed(config.seed)
    network = create_model(model, pretrained=True)
    return fit(network, _tiles(tiles, "train", without_blocks), config, watcher=Watcher(on_step=on_step))


def _tiles(folder: Path, split: Literal["train", "validation"], without_blocks: str) -> Tiles:
    return Tiles(*read_landslide4sense(folder, split=split, without_blocks=without_blocks))


def publish_network(
    network: torch.nn.Module, tiles: Path, *, out: Path, model: str, config: TrainConfig, without_blocks: str
) -> ModelCard:
    """Weights and card in a folder, calibrated on the validation tiles, with the threshold of their best F1."""
    train, validation = (_tiles(tiles, split, without_blocks) for split in ("train", "validation"))
    images = validation.images.astype(np.float32)
    margin = predict_margins(network, images, magnify=VALIDATION_MAGNIFY).astype(np.float64)
    fitted, held_out = np.arange(len(margin)) % 2 == 0, np.arange(len(margin)) % 2 == 1
    truth = validation.masks == 1
    calibration = fit_calibration(margin[fitted].ravel(), truth[fitted].ravel())
    probability = calibration.probability(margin)
    counts = {t: _counts(probability >= t, truth) for t in THRESHOLDS}
    threshold = max(counts, key=lambda t: scores(counts[t])["f1"] or 0.0)
    best = scores(counts[threshold])
    metrics = {f"validation_{k}": round(float(best[k] or 0), 3) for k in ("precision", "recall", "f1", "iou")}
    metrics["validation_ece"] = round(
        calibration_error(probability[held_out].ravel(), truth[held_out].ravel()), 4
    )  # on the tiles that the calibration was not fitted on
    card = {
        "name": model,
        "architecture": model,
        "bands": MODELS[model].bands,
        "gsd_range_m": (3.0, 12.5),
        "lattice_gsd_m": LATTICE_GSD_M,
        "oversampling": float(VALIDATION_MAGNIFY),
        "window_px": WINDOW_PX,
        "threshold": threshold,
        "median_rgb": train.median_rgb(),
        "calibration": calibration,
        "licence": "GPL-3.0-or-later (weights); data MIT",
        "data": "Landslide4Sense RGB tiles, Sentinel-2 10 m, MIT (Ghorbanzadeh et al. 2022); ImageNet encoder weights",
        "split": (
            f"{len(train.images)} training and {len(validation.images)} validation tiles of the published split, id "
            f"blocks {sorted(without_blocks)} left out (B looks like Hokkaido); last iteration; calibrated on every "
            "second validation tile, ECE on the others, threshold by F1 on all of them"
        ),
        "training": asdict(config),
        "metrics": metrics,
        "limits": LIMITS,
    }
    return save_model(network, out, card=card)


LATTICE_GSD_M: Final = (5.0, 12.5)
WINDOW_PX: Final = 256
LIMITS: Final = (
    "Plain RGB: bare fields, river beds, roads and quarries look like landslides; use pre-event imagery and a DEM.",
    "Trained on tiles that hold landslides: it over-warns where there are none.",
    "Training labels are coarse and shifted by 1-2 px in places; thin slides are thickened.",
    "Validation tiles come from the training tiles' regions: new regions score lower.",
)


def _counts(predicted: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> PixelCounts:
    tp = int((predicted & truth).sum())
    return PixelCounts(tp, int(predicted.sum()) - tp, int(truth.sum()) - tp, int((~predicted & ~truth).sum()))
