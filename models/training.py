"""Training of a network on labelled tiles: seeded, repeatable, and resumed where it was killed."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from models.augment import Augmentation, Sampler, Tiles
from models.layers import resize
from models.losses import Loss, combine_losses
from models.mffenet import STRIDE
from models.numerics import Mode, autocast, best_mode, choose_device

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LARGEST_GRADIENT = 5.0
GPU_BATCH: Final = 8
FIX: Final = "expected this one's; repeat the command as it was to resume, or train into another folder"

Scores = Mapping[str, float]
"""Validation scores by name; `SELECTED_BY` is what early stopping goes by."""
SELECTED_BY: Final = "f1"


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained."""

    seed: int = 0
    start_sha256: str | None = None
    """Of the weights that training goes on from; None: a fresh network."""
    steps: int = 900
    batch: int = 16
    crop_px: int = 192
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    ema_decay: float = 0.995
    losses: Mapping[str, float] = field(default_factory=lambda: {"boundary": 1.0, "dice": 1.0})
    epoch_steps: int = 90
    """Steps after which the network is validated and the state saved."""
    patience: int | None = None
    """Epochs without a better validation F1 after which training stops and the best weights are taken; None: the last
    ones are."""
    landslide_share: float = 0.0
    """Share of crops that are laid around a landslide; 0: wherever they fall."""
    augmentation: Augmentation = Augmentation()
    mode: Mode = field(default_factory=best_mode)
    """Number format of the forward pass; in another one the weights come out otherwise."""


@dataclass(frozen=True)
class Epoch:
    """What an epoch ended with."""

    step: int
    loss: float
    """Mean of the training loss over the epoch."""
    scores: Scores = field(default_factory=dict)


@dataclass(frozen=True)
class Watcher:
    """Who hears of a training, and what validates it: all optional."""

    on_step: Callable[[int, float], None] = lambda _step, _loss: None
    on_epoch: Callable[[Epoch], None] = lambda _epoch: None
    validate: Callable[[nn.Module], Scores] = lambda _network: {}


def normalise_images(images: Tensor) -> Tensor:
    """uint8-valued images (B, 3, H, W) as ImageNet-normalised float32."""
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1).to(images.device)
    std = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1).to(images.device)
    return (images.float() / 255 - mean) / std


def batch_on(device: torch.device) -> int:
    """Images that a network takes at once when it predicts: one was fastest on CPUs, a GPU waits for more."""
    return 1 if device.type == "cpu" else GPU_BATCH


def fit(
    network: nn.Module,
    tiles: Tiles,
    config: TrainConfig,
    *,
    watcher: Watcher = Watcher(),  # noqa: B008 - frozen
    checkpoint: Path | None = None,
) -> nn.Module:
    """The trained network (the exponential moving average of its weights), in eval mode, on the CPU.

    AdamW, one-cycle learning rate. `checkpoint` is written after every epoch; where it exists, training goes on from it
    and ends with the same weights as if it had never stopped.

    Raises: ValueError when the checkpoint is of another configuration or network, or a loss is not known.
    """
    training = _Training(network, tiles, config)
    if checkpoint is not None and checkpoint.is_file():
        training.restore(checkpoint)
    losses: list[float] = []
    while training.step < config.steps and not training.stalled:
        losses.append(training.advance())
        watcher.on_step(training.step, losses[-1])
        if training.step % config.epoch_steps == 0 or training.step == config.steps:
            epoch = Epoch(training.step, float(np.mean(losses)), watcher.validate(training.average))
            training.judge(epoch)
            watcher.on_epoch(epoch)
            losses.clear()
            if checkpoint is not None:
                training.save(checkpoint)
    return training.chosen.to("cpu")


class _Training:
    """The state of a training between two steps."""

    def __init__(self, network: nn.Module, tiles: Tiles, config: TrainConfig) -> None:
        torch.manual_seed(config.seed)
        self.config, self.device = config, choose_device()
        self.sampler = Sampler(
            tiles, config.augmentation, crop_px=config.crop_px, rng=np.random.default_rng(config.seed),
            landslide_share=config.landslide_share,
        )  # fmt: skip
        self.network = network.to(self.device).to(memory_format=torch.channels_last).train()
        self.average = copy.deepcopy(self.network).eval()
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=config.learning_rate, total_steps=config.steps, pct_start=0.15
        )
        self.scaler = torch.amp.GradScaler(self.device, enabled=config.mode == "fp16")
        self.identity = identify(tiles, config)
        self.loss: Loss = combine_losses(config.losses)
        self.step, self.since_best, self.best_score = 0, 0, -np.inf
        self.best: dict[str, Tensor] | None = None

    def advance(self) -> float:
        """The loss of one more step."""
        images, labels = self.sampler.batch(self.config.batch)
        inputs = normalise_images(images.to(self.device)).contiguous(memory_format=torch.channels_last)
        with autocast(self.device, self.config.mode):
            logits = self.network(inputs)
        loss = self.loss(logits, labels.to(self.device))
        descend(loss, self.network, self.optimizer, self.scaler)
        self.schedule.step()
        follow(self.average, self.network, decay=min(self.config.ema_decay, (1 + self.step) / (10 + self.step)))
        self.step += 1
        return float(loss.detach())

    def judge(self, epoch: Epoch) -> None:
        """Remember the weights of the best epoch, when early stopping asks for it."""
        if self.config.patience is None:
            return
        if epoch.scores[SELECTED_BY] > self.best_score:
            self.best_score, self.since_best = epoch.scores[SELECTED_BY], 0
            self.best = copy.deepcopy(self.average.state_dict())
        else:
            self.since_best += 1

    @property
    def stalled(self) -> bool:
        """True when patience has run out."""
        return self.config.patience is not None and self.since_best >= self.config.patience

    @property
    def chosen(self) -> nn.Module:
        """The average with the best epoch's weights, where one was chosen."""
        if self.best is not None:
            self.average.load_state_dict(self.best)
        return self.average

    def save(self, path: Path) -> None:
        """Everything that the next step depends on, written beside and renamed: a killed writer leaves the old one."""
        state = {
            "identity": self.identity,
            "counters": {"step": self.step, "since_best": self.since_best, "best_score": float(self.best_score)},
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "device_rng": torch.cuda.get_rng_state() if self.device == "cuda" else None,
            "sampler_rng": json.dumps(self.sampler.rng.bit_generator.state),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def restore(self, path: Path) -> None:
        """Go on from a saved state. Raises: ValueError when it is of another configuration or network."""
        state = _load(path, self.identity, device=self.device)
        _refuse_another_network(path, state, self.network)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.best = state["best"]
        counters = state["counters"]
        self.step, self.since_best, self.best_score = (counters[k] for k in ("step", "since_best", "best_score"))
        torch.set_rng_state(state["torch_rng"].cpu())
        if self.device == "cuda" and state.get("device_rng") is not None:  # None: begun on a CPU
            torch.cuda.set_rng_state(state["device_rng"].cpu())
        self.sampler.rng.bit_generator.state = json.loads(state["sampler_rng"])


def _load(path: Path, identity: str, *, device: str) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (EOFError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"checkpoint {path}: it cannot be read ({type(error).__name__}); delete it") from error
    if state["identity"] != identity:
        raise ValueError(
            f"checkpoint {path}: got the state of a training with another configuration or other tiles; {FIX}"
        )
    return state


def _refuse_another_network(path: Path, state: Mapping[str, Any], network: nn.Module) -> None:
    saved, own = ({k: v.shape for k, v in s.items()} for s in (state["network"], network.state_dict()))
    if saved != own:
        raise ValueError(f"checkpoint {path}: got the state of another network; {FIX}")


def checkpoint_step(path: Path, *, identity: str, build: Callable[[], nn.Module]) -> int:
    """The step at which a training with this identity (`identify`) goes on: 0 where there is no checkpoint.

    build : makes the network that is to be trained; asked for its shapes alone.

    Raises: ValueError when the checkpoint cannot be read, or is of another configuration or network.
    """
    if not path.is_file():
        return 0
    state = _load(path, identity, device="cpu")
    with torch.device("meta"):  # no memory, and no random number is drawn
        _refuse_another_network(path, state, build())
    return int(state["counters"]["step"])


def identify(tiles: Tiles, config: TrainConfig) -> str:
    """Digest (sha256, hex) of the configuration and the tiles of a training."""
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
    for array in (tiles.images, tiles.masks, tiles.gsd_m):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def follow(average: nn.Module, network: nn.Module, *, decay: float) -> None:
    """Move the moving average of the weights a step towards the network's."""
    with torch.no_grad():
        for ours, theirs in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
            if ours.dtype.is_floating_point:
                ours.lerp_(theirs, 1 - decay)
            else:
                ours.copy_(theirs)


def descend(loss: Tensor, network: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """One step of the optimiser down the clipped gradient; the loss is scaled where float16 would lose small ones."""
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
    scaler.step(optimizer)
    scaler.update()


@torch.inference_mode()
def predict_margins(
    network: nn.Module, images: NDArray[np.float32], *, magnify: float, mode: Mode
) -> NDArray[np.float32]:
    """Margin logit(landslide) - logit(other), (N, H, W), of images (N, H, W, 3) in 0..255, shown magnified.

    Sides come to the nearest multiple of 16 px that the network takes.
    """
    network = network.eval()
    device = next(network.parameters()).device
    shown = [max(STRIDE, STRIDE * round(n * magnify / STRIDE)) for n in images.shape[1:3]]
    results = []
    for batch in torch.split(torch.from_numpy(images).permute(0, 3, 1, 2), batch_on(device)):
        pixels = batch.float().to(device)
        large = interpolate(pixels, size=shown, mode="bicubic", antialias=magnify < 1).clamp(0, 255)
        with autocast(device.type, mode):
            logits = network(normalise_images(large).contiguous(memory_format=torch.channels_last))
        margin = logits.float()[:, -1:] - logits.float()[:, :1]
        results.append(_to_size(margin, images.shape[1:3])[:, 0].cpu().numpy())
    return np.concatenate(results)


def _to_size(margin: Tensor, size: tuple[int, ...]) -> Tensor:
    """Margins (B, 1, h, w) averaged or interpolated to a size (H, W)."""
    height, width = size
    return adaptive_avg_pool2d(margin, (height, width)) if margin.shape[-1] > width else resize(margin, (height, width))
