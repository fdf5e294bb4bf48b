"""What a Dask worker does to bring a network to a scene: adapt it without labels, or fine-tune it on some.

The scheme of Xu et al. (2022), figure 2: with labels in the area MFFENet is trained on them; without, ADANet adapts
from labelled events. The weights are an artefact of the event, with a card that says what they rest on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import shapely
import torch
from distributed import get_worker
from pydantic import TypeAdapter, ValidationError
from torch import nn

from catalog import store, tiles
from catalog.config import RunConfig
from catalog.grid import Grid, Window
from catalog.outlines import read_outlines
from catalog.schema import InputError
from catalog.store import StoreRef
from catalog.validation import reasons
from models.adanet import ADANet
from models.adaptation import AdaptConfig, Round, adapt
from models.augment import Augmentation, Tiles
from models.cards import ModelCard, load_card, load_network, save_model
from models.numerics import Mode, Numerics, choose_device
from models.predictor import Predictor
from models.registry import extend_to_adanet
from models.training import TrainConfig, Watcher, fit
from tasks import inference
from tasks.judging import Judgement, judge, margins_of
from tasks.samples import Cutting, Labels, kind_of, open_tiles, read_labelled_store, split_in_space
from tasks.story import Earlier
from tasks.thresholds import margin_threshold

logger = logging.getLogger(__name__)

FINE_TUNING: Final[Mapping[str, Any]] = {
    "batch": 8,
    "crop_px": 128,
    "learning_rate": 2e-4,
    "ema_decay": 0.97,
    "landslide_share": 0.5,
    "augmentation": Augmentation(brightness=0.2, chroma=0.06, gamma=0.12, saturation=0.12, haze=0.015),
}
"""Gentler than a training from ImageNet: the scene has one light, and little of it is labelled."""
HELD_OUT_SHARE: Final = 0.3
MOST_WINDOWS: Final = 96
"""Windows of the target that a network is adapted to: half of those with most landslide by the source's network, half
evenly over the scene."""
MOST_LOOKED_AT: Final = 4 * MOST_WINDOWS
LEAST_SEEN: Final = 0.5
"""Observed share of a window that is worth adapting to."""
ALGORITHM_VERSION: Final = 1
"""Raise it when the same origin gives other weights."""
STEMS: Final[Mapping[str, str]] = {"adapted": "adanet", "fine-tuned": "mffenet"}
"""By the kind of an event's own weights: what their files' names begin with."""
FRESH_SEED: Final = 67280421310721
"""What torch itself seeds a new process with."""
TOPIC: Final = "landslidenet-network"
"""Dask topic on which a worker tells how far it is: steps done, steps in all, the step's losses by name."""


@dataclass(frozen=True)
class NetworkJob:
    """A post-event composite and a network to start from, to weights of the event's own."""

    post: StoreRef
    tone: inference.Tone
    start: str
    """Weights to start from."""
    weights: str
    """Weights to make; their card lies beside them."""
    origin: Mapping[str, Any]
    """Everything that decides the new weights: their name is its digest, and their card keeps it."""
    threads: int

    @property
    def name(self) -> str:
        """Of the new network."""
        return Path(self.weights).stem


@dataclass(frozen=True)
class AdaptJob(NetworkJob):
    """ADANet: no label of the scene is known."""

    source: str
    """Labelled tiles of other events."""
    leave_out: tuple[str, ...]
    """Events among them that take no part."""
    config: AdaptConfig


@dataclass(frozen=True)
class FineTuneJob(NetworkJob):
    """Supervised training on landslides that were mapped in the scene."""

    labels: Labels
    config: TrainConfig


@dataclass(frozen=True)
class Plan:
    """How a scene gets its own network."""

    title: str
    kernel: Callable[..., None]
    job: NetworkJob


def check_sources(config: RunConfig, *, grid: Grid) -> tuple[str, ...]:
    """What was read of the labels of the area, a sentence each.

    Raises: InputError when they, or tiles to adapt from, cannot be read, or lie outside of the scene.
    """
    box = grid.geobox_of(grid.scene).boundingbox
    scene = shapely.box(box.left, box.bottom, box.right, box.top)
    read = []
    for what, source in (("labels", config.labels), ("labelled area", config.labelled_area)):
        if source:
            found = read_outlines(source, what=what)
            if not found.in_crs(grid.epsg).intersects(scene).any():
                bounds = ", ".join(f"{value:.0f}" for value in scene.bounds)
                raise InputError(
                    f"{what} {source}: no {'landslide' if what == 'labels' else 'part'} lies on observed ground of "
                    f"{config.name} ({bounds} in EPSG:{grid.epsg}); check that both are of one place, and their CRS"
                )
            read.append(found.sentence)
    if config.adapt:
        kind_of(config.adapt)
        adapt_config(config)
    return tuple(read)


def adapt_config(config: RunConfig) -> AdaptConfig:
    """The settings of a run's adaptation. Raises: InputError naming those that are not known or do not fit."""
    told = {"steps": config.network_steps, **config.adaptation}
    known = [field.name for field in fields(AdaptConfig) if field.name != "mode"]  # that is `precision`
    if unknown := sorted(set(told) - set(known)):
        raise InputError(f"`adaptation`: unknown key {', '.join(unknown)}; expected one of: {', '.join(known)}")
    try:
        return TypeAdapter(AdaptConfig).validate_python(told)
    except ValidationError as error:
        raise InputError(f"`adaptation`: {'; '.join(reasons(error, AdaptConfig))}") from None


def plan_network(
    post: StoreRef,
    tone: inference.Tone,
    *,
    config: RunConfig,
    start: Path,
    card: ModelCard,
    scene: Mapping[str, Any],
    threads: int,
    mode: Mode,
) -> Plan:
    """Fine-tuning where labels of the area are given, else ADANet.

    scene : what the composite was made of; not how it is cut into blocks, which must not matter. mode : number format.

    Raises: InputError when labels or tiles cannot be read.
    """
    grid = {"epsg": post.grid.epsg, "gsd_m": post.grid.gsd_m}
    common = {"weights": card.weights_sha256, "scene": dict(scene), "grid": grid, "tone": asdict(tone)}
    if config.labels:
        return _plan_fine_tuning(post, tone, config=config, start=start, common=common, threads=threads, mode=mode)
    training = replace(adapt_config(config), mode=mode)
    source = str(config.adapt)
    told = {"source": tiles.fingerprint(source), "leave_out": config.leave_out, "training": asdict(training)}
    origin = {"kind": "adapted", **common, **told}
    job = AdaptJob(post, tone, str(start), _place(config, origin), origin, threads, source, config.leave_out, training)
    return Plan("adapted to this scene without labels (ADANet)", adapt_network, job)


def _plan_fine_tuning(
    post: StoreRef,
    tone: inference.Tone,
    *,
    config: RunConfig,
    start: Path,
    common: Mapping[str, Any],
    threads: int,
    mode: Mode,
) -> Plan:
    labels = Labels(str(config.labels), config.labelled_area)
    sources = [(source, what) for source, what in ((labels.landslides, "labels"), (labels.aoi, "aoi")) if source]
    digests = [read_outlines(source, what=what).digest for source, what in sources]
    training = TrainConfig(steps=config.network_steps, mode=mode, **FINE_TUNING)
    told = {"labels": labels.landslides, "files": digests, "training": asdict(training)}
    origin = {"kind": "fine-tuned", **common, **told}
    job = FineTuneJob(post, tone, str(start), _place(config, origin), origin, threads, labels, training)
    return Plan(f"fine-tuned on the labels of the area ({config.labels})", fine_tune_network, job)


def _place(config: RunConfig, origin: Mapping[str, Any]) -> str:
    """Where an event's own weights lie: beside its products, named by what they are made of."""
    key = store.store_key(STEMS[origin["kind"]], version=ALGORITHM_VERSION, depends_on=origin)
    return str(Path(config.out).absolute() / config.name / "networks" / f"{key}.safetensors")


def kept_weights(config: RunConfig, plan: Plan, earlier: Earlier | None) -> Path | None:
    """The weights that the version before made for the event; None where it made none, or by other settings.

    They rest on the scenes of that version, which are among the present ones; not on their tone.
    """
    if earlier is None or not earlier.network_origin:
        return None
    origin, wanted = ({k: v for k, v in told.items() if k not in ("scene", "tone")}
                      for told in (earlier.network_origin, plan.job.origin))  # fmt: skip
    if json.loads(json.dumps(origin)) != json.loads(json.dumps(wanted)):
        return None
    place = Path(_place(config, earlier.network_origin))
    return place if are_sound(place) else None


def are_sound(weights: Path) -> bool:
    """Whether an event's own weights are there, as their card says; damaged ones are warned of, and made again."""
    if not weights.is_file():
        return False
    try:
        load_card(weights)
    except ValueError as error:
        logger.warning("%s: %s; the weights are made again", weights, error)
        return False
    return True


def adapt_network(job: AdaptJob) -> None:
    """Write the adapted weights and their card.

    Raises: InputError when the source cannot be read or nothing of the scene is observed.
    """
    torch.set_num_threads(job.threads)
    card = load_card(Path(job.start))
    source = open_tiles(job.source, left_out=job.leave_out)
    start, network = start_networks(Path(job.start), card)
    looks = Predictor(start, card, device=choose_device(), numerics=Numerics(job.config.mode))
    target = choose_windows(read_windows(job.post, job.tone, card), looks)
    rounds: list[Round] = []
    adapted = adapt(
        network, source, target, job.config,
        threshold=margin_threshold(**asdict(card.calibration), card=card.threshold),
        on_step=lambda step, losses: get_worker().log_event(TOPIC, (step, job.config.steps, losses)),
        on_round=lambda told, _network: rounds.append(told),
    )  # fmt: skip
    told = _adapted_card(card, job, source=source, target=target, rounds=rounds)
    save_model(adapted, Path(job.weights).parent, card=told)


def start_networks(weights: Path, card: ModelCard) -> tuple[nn.Module, ADANet]:
    """The network to start from, and ADANet of it, whose new output is the same whatever the worker did before."""
    torch.manual_seed(FRESH_SEED)
    start = load_network(weights, card)
    return start, extend_to_adanet(start, card.architecture)


def fine_tune_network(job: FineTuneJob) -> None:
    """Write the weights fine-tuned on the labelled ground, their card with the scores on ground held out.

    Raises: InputError when labels cannot be read, or are too few to train on and to check with.
    """
    torch.set_num_threads(job.threads)
    card = load_card(Path(job.start))
    labelled = read_labelled_store(job.post, job.labels, cutting=Cutting(reference=card.median_rgb))
    train, held = split_in_space(labelled, share=HELD_OUT_SHARE)
    for what, part in (("to train on", train), ("held out to check with", held)):
        if not ((part.masks == 1).any() and (part.masks == 0).any()):
            raise InputError(
                f"labels {job.labels.landslides}: the ground {what} ({len(part)} tiles) does not show landslides and "
                "other ground; expected both; map more of the scene, or give --labelled-area"
            )
    start = load_network(Path(job.start), card)
    margins = partial(margins_of, tiles=held, lattice_gsd=card.lattice_gsd, mode=job.config.mode)
    before = judge(margins(start), held.masks)
    steps = job.config.steps
    watcher = Watcher(on_step=lambda step, loss: get_worker().log_event(TOPIC, (step, steps, {"loss": loss})))
    tuned = fit(start, train, job.config, watcher=watcher)
    after = judge(margins(tuned), held.masks)
    told = _tuned_card(card, job, tiles=(len(train), len(held)), before=before, after=after)
    save_model(tuned, Path(job.weights).parent, card=told)


def read_windows(post: StoreRef, tone: inference.Tone, card: ModelCard) -> Tiles:
    """Windows of the scene side by side, as the network sees them; masks are 0 where observed, else 255.

    At most `MOST_LOOKED_AT`, evenly over the scene; those of which less than half is observed are left out.

    Raises: InputError when no window is half observed.
    """
    scene = scene_extent(post.grid)
    gsd_m = card.lattice_gsd(post.grid.gsd_m)
    lattice = inference.Lattice(card.window_px, scale=gsd_m / post.grid.gsd_m)
    places = inference.lattice_windows(scene, lattice)
    picked = [places[i] for i in np.unique(np.linspace(0, len(places) - 1, MOST_LOOKED_AT).round().astype(int))]
    found = [_read_window(post, tone, at, lattice=lattice, scene=scene) for at in picked]
    windows = [window for window in found if window is not None and window.seen.mean() >= LEAST_SEEN]
    if not windows:
        raise InputError(
            f"post imagery: none of {len(picked)} windows of {card.window_px} px is half observed; expected some to "
            "adapt to; check the mask and the area of interest, or run without --adapt"
        )
    masks = np.stack([np.where(window.seen, 0, 255) for window in windows]).astype(np.uint8)
    return Tiles(np.stack([window.pixels for window in windows]), masks, gsd_m=np.array(gsd_m))


def scene_extent(grid: Grid) -> inference.Extent:
    """The scene in absolute imagery pixels."""
    y, x = grid.row0 + grid.scene.y0, grid.col0 + grid.scene.x0
    return inference.Extent(y, x, y + grid.scene.shape[0], x + grid.scene.shape[1])


def _read_window(
    post: StoreRef, tone: inference.Tone, at: tuple[int, int], *, lattice: inference.Lattice, scene: inference.Extent
) -> inference.NetworkWindow | None:
    needed = inference.window_extent(at, lattice=lattice, scene=scene)
    part = Window(needed.y0, needed.x0, needed.y1, needed.x1).shift(-post.grid.row0, -post.grid.col0)
    imagery = store.read_window(post, part)
    image = tone.apply(np.stack([imagery[band].values for band in inference.RGB]))
    return inference.network_window(image, origin=(needed.y0, needed.x0), at=at, scene=scene, lattice=lattice)


def choose_windows(windows: Tiles, predictor: Predictor) -> Tiles:
    """At most `MOST_WINDOWS` of the windows: those with most landslide, and others evenly."""
    if len(windows.images) <= MOST_WINDOWS:
        return windows
    share = np.array([predictor.predict_windows(image[None]).mean() for image in windows.images])
    order = np.argsort(-share, kind="stable")
    most, rest = order[: MOST_WINDOWS // 2], np.sort(order[MOST_WINDOWS // 2 :])
    even = rest[np.linspace(0, len(rest) - 1, MOST_WINDOWS // 2).round().astype(int)]
    return windows.take(np.sort(np.concatenate([most, even])))


def _tuned_card(
    card: ModelCard, job: FineTuneJob, *, tiles: tuple[int, int], before: Judgement, after: Judgement
) -> dict[str, Any]:
    """The card of a network that was fine-tuned in this scene."""
    trained, held = tiles
    told = replace(
        card,
        name=job.name,
        data=f"{card.data}. Fine-tuned on {trained} tiles of {job.post.event_id}, labelled by {job.labels.landslides}",
        split=f"{trained} tiles to train on, {held} on other ground of the scene to check with; calibrated on every "
        "second of those, ECE on the others, threshold by F1 on all of them; the last step's weights",
        training=asdict(job.config),
        calibration=after.calibration,
        threshold=after.threshold,
        reliability=after.reliability,
        metrics={f"held_out_{name}": value for name, value in after.scores.items()}
        | {f"held_out_{name}_before": value for name, value in before.scores.items()},
        limits=(*card.limits, f"Made for {job.post.event_id}: on other scenes use the weights it started from."),
        origin=dict(job.origin),
    )
    return _values(told)


def _adapted_card(
    card: ModelCard, job: AdaptJob, *, source: Tiles, target: Tiles, rounds: list[Round]
) -> dict[str, Any]:
    """The source's card, with what the adaptation changes."""
    events = ", ".join(sorted(set(source.events.tolist()))) or "not named"
    told = replace(
        card,
        name=job.name,
        architecture=card.architecture.replace("mffenet", "adanet"),
        data=f"{card.data}. Adapted to {len(target.images)} windows of {job.post.event_id} without labels, from "
        f"{len(source.images)} labelled tiles (events: {events})",
        split="no label of the scene was used, neither to train nor to choose; calibration and threshold are those of "
        f"the source: {card.split}",
        training=asdict(job.config),
        metrics={f"source_{name}": value for name, value in card.metrics.items()}
        | {f"target_{name}": round(value, 4) for name, value in asdict(rounds[-1]).items() if name != "step"},
        limits=(*card.limits, f"Made for {job.post.event_id}: on other scenes use the weights it started from."),
        origin=dict(job.origin),
    )
    return _values(told)


def _values(card: ModelCard) -> dict[str, Any]:
    """What `save_model` is told: the digest of the weights is its own to find."""
    return {field.name: getattr(card, field.name) for field in fields(card) if field.name != "weights_sha256"}
