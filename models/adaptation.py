"""ADANet's training: from labelled source events to an unlabelled scene, by adversaries at two levels of the output.

Source: Xu et al. (2022), Landslides 19:1617-1647; Tsai et al. (2018), Learning to adapt structured output space. The
companions: entropy minimisation (Vu et al. 2019), self-training on pseudo-labels (Zou et al. 2018), batch statistics a
domain (Chang et al. 2019). Where this differs from the published training, and why, is in `docs/science.md`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from models.adanet import SOURCE, SOURCE_LABELS, TARGET_LABELS, ADANet, Discriminator, domain_labels
from models.augment import REFERENCE_GSD_M, Augmentation, Sampler, Tiles
from models.losses import IGNORE, combine_losses
from models.matching import Matching, match_tiles
from models.numerics import Mode, autocast, best_mode, choose_device
from models.training import descend, follow, normalise_images, predict_margins

POWER: Final = 0.9
"""Of the polynomial decay of both learning rates."""
TARGET_ZOOM: Final = (0.8, 1.6)
"""Magnification of the target's windows, which are at the network's pixel size."""

Threshold = Callable[[NDArray[np.float64]], float]
"""Margins of target pixels, any shape -> the margin from which a pixel is taken for a landslide."""


@dataclass(frozen=True)
class AdaptConfig:
    """How a network is adapted; a weight of 0 switches its term off."""

    seed: int = 0
    steps: int = 120
    batch: int = 4
    """Crops of each domain."""
    crop_px: int = 128
    learning_rate: float = 1e-4
    ema_decay: float = 0.97
    losses: Mapping[str, float] = field(default_factory=lambda: {"boundary": 1.0, "dice": 1.0})
    auxiliary: float = 0.5
    """Weight of the auxiliary output's segmentation loss."""
    adversarial: tuple[float, float] = (0.01, 0.002)
    """Weights of the adversarial losses of the main and of the auxiliary output."""
    discriminator_rate: float = 1e-4
    match: Matching = "none"
    """Colours of the source's tiles: as they are, or matched to the target's."""
    landslide_share: float = 0.25
    """Share of source crops that are laid around a landslide: landslides are rare."""
    entropy: float = 0.0
    self_training: float = 1.0
    uncertain: float = 0.5
    """Pseudo-labels: margins closer to the threshold than this are left out."""
    growth: float = 1.25
    """Pseudo-labels cover at most this many times the ground that the source's network calls a landslide: left alone,
    every round takes a little more."""
    round_steps: int = 30
    """Steps of a round: before each one the target is labelled and its entropy measured."""
    select: Literal["last", "entropy"] = "last"
    """Which round's weights are taken: no label of the target is ever asked."""
    statistics: Literal["frozen", "per-domain"] = "frozen"
    """Batch norm as the source left it, or with the target's own statistics. Neither mixes the domains."""
    augmentation: Augmentation = Augmentation()
    mode: Mode = field(default_factory=best_mode)
    """Number format of the forward pass; in another one the weights come out otherwise."""


def adapt(
    network: ADANet,
    source: Tiles,
    target: Tiles,
    config: AdaptConfig,
    *,
    threshold: Threshold,
    on_step: Callable[[int, Mapping[str, float]], None] = lambda _step, _losses: None,
    on_round: Callable[[Round, nn.Module], None] = lambda _round, _network: None,
) -> nn.Module:
    """The network adapted to the target (moving average of its weights), in eval mode, on the CPU.

    source : labelled tiles of other events. target : windows of the scene at the network's pixel size, levelled as
    inference levels them; their masks say where nothing was observed (255), no label is read from them.
    """
    adaptation = _Adaptation(network, source, target, config)
    best = np.inf
    for step in range(config.steps + 1):
        if step % config.round_steps == 0 or step == config.steps:
            told = adaptation.begin_round(threshold)
            on_round(told, adaptation.average)
            if config.select == "last" or told.entropy < best:
                best, chosen = told.entropy, copy.deepcopy(adaptation.average)
        if step < config.steps:
            on_step(step + 1, adaptation.advance())
    return chosen.to("cpu")


@dataclass(frozen=True)
class Round:
    """What the network says of the target when a round begins."""

    step: int
    landslide_share: float
    """Of the observed pixels, at the threshold of the pseudo-labels."""
    entropy: float
    """Mean over the observed pixels, 0..1."""


class _Adaptation:
    """The state of an adaptation between two steps."""

    def __init__(self, network: ADANet, source: Tiles, target: Tiles, config: AdaptConfig) -> None:
        torch.manual_seed(config.seed)
        self.config, self.device = config, choose_device()
        self.generator = torch.Generator().manual_seed(config.seed)
        rngs = [np.random.default_rng([config.seed, domain]) for domain in range(2)]
        self.source = Sampler(
            match_tiles(source, target, how=config.match), config.augmentation,
            crop_px=config.crop_px, rng=rngs[0], landslide_share=config.landslide_share,
        )  # fmt: skip
        self.target = Sampler(target, _target_augmentation(config, target), crop_px=config.crop_px, rng=rngs[1])
        self.seen, self.most = target.valid, 1.0
        self.network = network.to(self.device).to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.network).eval()
        self.discriminators = [Discriminator().to(self.device) for _ in range(2)]
        self.statistics = _Statistics(self.network, config.statistics)
        self.loss = combine_losses(config.losses)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=config.learning_rate, weight_decay=1e-2)
        self.judges = torch.optim.Adam(
            [p for d in self.discriminators for p in d.parameters()], lr=config.discriminator_rate, betas=(0.9, 0.99)
        )
        self.schedules = [
            torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=config.steps, power=POWER)
            for optimizer in (self.optimizer, self.judges)
        ]
        self.scaler = torch.amp.GradScaler(self.device, enabled=config.mode == "fp16")
        self.step = 0

    def begin_round(self, threshold: Threshold) -> Round:
        """Label the target by the averaged network; what that network says of it."""
        tiles = self.target.tiles
        images = tiles.images.astype(np.float32)
        margin = predict_margins(self.average, images, magnify=1, mode=self.config.mode).astype(np.float64)
        cut = max(threshold(margin[self.seen]), float(np.quantile(margin[self.seen], 1 - self.most)))
        landslide = margin >= cut
        if self.step == 0:
            self.most = min(1.0, self.config.growth * float(landslide[self.seen].mean()))
        labels = landslide.astype(np.uint8)
        labels[(np.abs(margin - cut) < self.config.uncertain) | ~self.seen] = IGNORE
        self.target.tiles = replace(tiles, masks=labels)
        return Round(self.step, float(landslide[self.seen].mean()), float(_entropy(margin[self.seen]).mean()))

    def advance(self) -> dict[str, float]:
        """The terms of the loss of one more step."""
        config, told = self.config, {}
        (source, source_labels), (target, pseudo) = (self._draw(s) for s in (self.source, self.target))
        with self.statistics.of("source"):
            source_logits = self._forward(source)
        aux, main = source_logits
        loss = self.loss(main, source_labels) + config.auxiliary * self.loss(aux, source_labels)
        told["segmentation"] = float(loss.detach())
        with self.statistics.of("target"):
            target_logits = self._forward(target)
        for name, weight, term in self._target_terms(target_logits, pseudo):
            told[name] = float(term.detach())
            loss = loss + weight * term
        descend(loss, self.network, self.optimizer, self.scaler)
        self.schedules[0].step()
        if any(config.adversarial):
            told["discriminators"] = self._judge(source_logits, target_logits)
        with self.statistics.of("target"):
            follow(self.average, self.network, decay=min(config.ema_decay, (1 + self.step) / (10 + self.step)))
        self.step += 1
        return told

    def _draw(self, sampler: Sampler) -> tuple[Tensor, Tensor]:
        images, labels = sampler.batch(self.config.batch)
        inputs = normalise_images(images.to(self.device)).contiguous(memory_format=torch.channels_last)
        return inputs, labels.to(self.device)

    def _forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(self.device, self.config.mode):
            aux, main = self.network(inputs)
        return aux.float(), main.float()

    def _target_terms(self, logits: tuple[Tensor, Tensor], pseudo: Tensor) -> Iterator[tuple[str, float, Tensor]]:
        config = self.config
        aux, main = logits
        levels = zip((main, aux), self.discriminators, config.adversarial, ("main", "auxiliary"), strict=True)
        for level, discriminator, weight, name in levels:
            if weight:
                verdict = discriminator(level.softmax(dim=1))
                fooled = binary_cross_entropy_with_logits(verdict, torch.full_like(verdict, SOURCE))
                yield f"adversarial, {name}", weight, fooled
        if config.entropy:
            yield "entropy", config.entropy, mean_entropy(main)
        if config.self_training:
            yield "self-training", config.self_training, self.loss(main, pseudo)

    def _judge(self, source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> float:
        """Train the discriminators on both domains' maps; their loss."""
        self.judges.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for level, discriminator in zip((1, 0), self.discriminators, strict=True):
            for logits, bounds in ((source[level], SOURCE_LABELS), (target[level], TARGET_LABELS)):
                verdict = discriminator(logits.detach().softmax(dim=1))
                labels = domain_labels(verdict, bounds, generator=self.generator)
                total = total + 0.5 * binary_cross_entropy_with_logits(verdict, labels)
        total.backward()  # type: ignore[no-untyped-call]
        self.judges.step()
        self.schedules[1].step()
        return float(total.detach())


def mean_entropy(logits: Tensor) -> Tensor:
    """Mean entropy of the class probabilities over its largest value, 0..1."""
    log_p = logits.log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1).mean() / float(np.log(logits.shape[1]))


class _Statistics:
    """Batch-norm statistics of two domains in one network."""

    def __init__(self, network: nn.Module, kind: Literal["frozen", "per-domain"]) -> None:
        self.network, self.kind = network, kind
        self.norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        state = [copy.deepcopy(dict(m.named_buffers())) for m in self.norms]
        self.kept = {"source": state, "target": copy.deepcopy(state)}

    @contextmanager
    def of(self, domain: str) -> Iterator[None]:
        """The network in training mode, with this domain's statistics."""
        self.network.train()
        for norm, buffers in zip(self.norms, self.kept[domain], strict=True):
            if self.kind == "frozen":
                norm.eval()
            else:
                for name, value in buffers.items():
                    setattr(norm, name, value)
        yield


def _entropy(margin: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy in bits of a pixel of two classes with these margins."""
    p = 1 / (1 + np.exp(-np.abs(margin)))
    return np.asarray(-(p * np.log2(p) + (1 - p) * np.log2(np.maximum(1 - p, 1e-12))))


def _target_augmentation(config: AdaptConfig, target: Tiles) -> Augmentation:
    """Half as varied as the source's: the target has one light, and is at the network's pixel size."""
    vary = config.augmentation
    low, high = (zoom * REFERENCE_GSD_M / float(target.gsd_m.max()) for zoom in TARGET_ZOOM)
    halved = {name: getattr(vary, name) / 2 for name in ("brightness", "chroma", "gamma", "saturation", "haze")}
    return replace(vary, zoom=(low, high), **halved)
