"""What a run knows: its checked inputs, what it has made so far, and how it tells of that. No Prefect here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from catalog import scenes
from catalog.checks import Inputs
from catalog.config import RunConfig
from catalog.files import name_of
from catalog.grid import Grid
from catalog.identity import input_of
from catalog.layers import split_source
from catalog.reuse import earlier_keys
from catalog.schema import Variable
from catalog.store import StoreRef, store_key
from models.cards import ModelCard
from models.numerics import Numerics
from tasks import change, inference, preprocess, registration
from tasks.inventory import CONFIDENCE_RULE, VETOES, Provenance
from tasks.stages import StageRecord
from tasks.thresholds import Threshold

ALGORITHM_VERSIONS: Final = {
    "ingest": 2,
    "elevation": 1,
    "terrain": 1,
    "hydrology": 1,
    "change": 1,
    "probability": 2,
    "class": 2,
}
"""Raise a step's number when its result changes: its stores then get other keys."""

MIN_SIDE_PX: Final = 3
"""An object smaller than a square of this many pixels (imagery's or network's, the coarser) is not resolved."""


def resolved_area_m2(gsd_m: float, card: ModelCard) -> float:
    """Area of the smallest object that this network resolves in imagery of this pixel size."""
    return (MIN_SIDE_PX * max(gsd_m, card.lattice_gsd(gsd_m))) ** 2


@dataclass(frozen=True)
class Prepared:
    """What a run knows after its inputs were checked."""

    config: RunConfig
    inputs: Inputs
    card: ModelCard
    weights: Path
    scenario: str = ""
    """Which network is used and why (figure 2 of Xu et al. 2022), once that is settled."""
    numerics: Numerics | None = None
    """How the network is computed, once that is settled."""
    earlier: Earlier | None = None
    """What the version before decided; None where this one does not go on from it."""

    @property
    def grid(self) -> Grid:
        """The imagery's grid."""
        return self.inputs.grid

    @property
    def min_area_m2(self) -> float:
        """Smallest landslide delivered."""
        if self.config.min_area_m2 is not None:
            return self.config.min_area_m2
        return resolved_area_m2(self.grid.gsd_m, self.card)

    def target(self, step: str, variables: tuple[Variable, ...], *, grid: Grid, depends_on: dict[str, Any]) -> StoreRef:
        """The store of a step: its key holds its variables' contract, the grid and all that the step depends on."""
        contract = [repr(variable) for variable in variables]
        described = {**depends_on, "grid": asdict(grid), "contract": contract, "chunk_px": self.config.chunk_px}
        version = ALGORITHM_VERSIONS[step.split("_")[0]]
        key = store_key(step, version=version, depends_on=described)
        root, event_id = self.config.root, self.config.name
        earlier = earlier_keys(root, event_id, step)
        return StoreRef(root, event_id, key, grid, variables, self.config.chunk_px, version, earlier)


@dataclass(frozen=True)
class Pairing:
    """How pre-event imagery was brought to the post-event one."""

    coregistration: registration.Coregistration
    normalisation: preprocess.Normalisation | None = None
    scaling: change.ChangeScaling | None = None
    refused: str = ""
    """Why the two epochs cannot be compared pixel by pixel; empty when they can."""

    @property
    def usable(self) -> bool:
        """True when the two epochs match well enough to be compared pixel by pixel."""
        return not self.refused

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Pairing:
        """The pairing that `dataclasses.asdict` and JSON made of one."""
        kinds = {
            "coregistration": registration.Coregistration,
            "normalisation": preprocess.Normalisation,
            "scaling": change.ChangeScaling,
        }
        parts = {
            name: kind(**{key: _tupled(value) for key, value in told[name].items()})
            for name, kind in kinds.items()
            if told[name] is not None
        }
        return cls(**parts, refused=told["refused"])


@dataclass(frozen=True)
class Earlier:
    """What an earlier version of the same imagery's event decided for the whole scene."""

    version: int
    weights_sha256: str
    network_origin: Mapping[str, Any]
    tone: inference.Tone | None
    threshold: float | None
    pairing: Pairing | None


def earlier_of(run: Mapping[str, Any] | None, inputs: Inputs) -> Earlier | None:
    """The decisions of a published `run.json`, where it is of the same pixels and shares a post-event scene.

    What they rest on is then still there: a version that adds a scene goes on from them.
    """
    story = (run or {}).get("provenance", {})
    decided = story.get("decisions")
    if run is None or decided is None or decided["grid"] != _pixels(inputs.grid):
        return None
    scenes_before = {_name(entry) for entry in story["inputs"] if entry["role"] == "post"}
    if not scenes_before & {_name(entry) for entry in inputs.post.inputs()}:
        return None
    tone, pairing = decided["tone"], decided["pairing"]
    return Earlier(
        version=run["version"],
        weights_sha256=run["model"]["weights_sha256"],
        network_origin=story["network_origin"],
        tone=None if tone is None else inference.Tone(**{k: _tupled(v) for k, v in tone.items()}),
        threshold=decided["threshold"],
        pairing=None if pairing is None else Pairing.of(pairing),
    )


def _name(entry: Mapping[str, str | None]) -> str | None:
    """A file by its content, an item by its id."""
    return entry["sha256"] or entry["path"]


def _pixels(grid: Grid) -> list[float]:
    return [grid.epsg, grid.gsd_m]


def _tupled(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Settled:
    """A run with the tone and the network that it uses, and what it took to make that."""

    prepared: Prepared
    tone: inference.Tone
    record: StageRecord
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Paired:
    """How the epochs were paired, and what it took."""

    pairing: Pairing
    record: StageRecord
    reasons: tuple[str, ...] = ()
    """What was decided about the earlier version's pairing, a sentence each."""


@dataclass(frozen=True)
class Run:
    """What a run has produced so far: store references and what each stage cost.

    A value: a step is given it and returns its own result, which the flow adds. A step that is tried again then finds
    what it found before.
    """

    prepared: Prepared
    records: tuple[StageRecord, ...] = ()
    stores: Mapping[str, StoreRef] = field(default_factory=dict)
    pairing: Pairing | None = None
    threshold: Threshold | None = None
    tone: inference.Tone | None = None
    kept: tuple[str, ...] = ()
    """What was decided about the earlier version's decisions, a sentence each."""
    started_utc: datetime = field(default_factory=lambda: datetime.now(UTC))
    id: str = field(default_factory=lambda: uuid4().hex)
    """Of this run alone: it knows its own product by it."""

    @property
    def pre_used(self) -> scenes.Epoch | None:
        """The pre-event imagery that the result rests on; None where there was none or it was refused."""
        return self.prepared.inputs.pre if self.pairing and self.pairing.usable else None

    def with_store(self, name: str, made: tuple[StoreRef, StageRecord]) -> Run:
        """The run with the store that a step made."""
        ref, record = made
        return replace(self, stores={**self.stores, name: ref}, records=(*self.records, record))

    def with_pairing(self, paired: Paired) -> Run:
        """The run with its epochs paired."""
        kept, records = (*self.kept, *paired.reasons), (*self.records, paired.record)
        return replace(self, pairing=paired.pairing, kept=kept, records=records)

    def with_network(self, settled: Settled) -> Run:
        """The run with the network that was settled on."""
        kept, records = (*self.kept, *settled.reasons), (*self.records, settled.record)
        return replace(self, prepared=settled.prepared, tone=settled.tone, kept=kept, records=records)

    def with_threshold(self, threshold: Threshold, records: Iterable[StageRecord]) -> Run:
        """The run with its landslides outlined at a threshold, and what that took."""
        return replace(self, threshold=threshold, records=(*self.records, *records))


def provenance_of(run: Run, version: int, *, threshold: float) -> Provenance:
    """What the inventory is of, for every landslide."""
    prepared, inputs, pre = run.prepared, run.prepared.inputs, run.pre_used
    event = inputs.event
    return Provenance(
        event_id=prepared.config.name,
        version=version,
        threshold=threshold,
        min_area_m2=prepared.min_area_m2,
        model=prepared.card.name,
        weights_sha256=prepared.card.weights_sha256,
        post_scenes=", ".join(inputs.post.ids),
        post_date=_dates(inputs.post),
        pre_scenes=", ".join(pre.ids) if pre else None,
        pre_date=_dates(pre) if pre else None,
        event_longitude=event.longitude if event else None,
        event_latitude=event.latitude if event else None,
    )


def _dates(epoch: scenes.Epoch) -> str:
    times = epoch.time_range_utc
    return "unknown" if times is None else "/".join(sorted({time.date().isoformat() for time in times}))


def used(run: Run) -> list[str]:
    """What the result rests on, a sentence each."""
    inputs = run.prepared.inputs
    used = [f"post-event imagery: {', '.join(inputs.post.ids)}"]
    if run.pre_used:
        used.append(f"pre-event imagery: {', '.join(run.pre_used.ids)}")
    used += [f"reflectance of {told}" for epoch in (inputs.post, run.pre_used) if epoch for told in epoch.radiometry]
    if inputs.dem:
        used.append(f"DEM: {name_of(inputs.dem.path)}, {inputs.dem.gsd_m:g} m")
    used += inputs.read
    if inputs.event:
        used.append(f"event: {inputs.event.id}")
    used.append(f"network: {run.prepared.card.name}, {run.prepared.scenario}")
    used.append(f"network computed in {run.prepared.numerics}")
    if run.threshold:
        used.append(f"landslide probability that counts: {run.threshold.reason}")
    return [*used, *run.kept]


def not_used(run: Run) -> list[str]:
    """What the run went without, and why."""
    refused = run.pairing.refused if run.pairing else ""
    return [*run.prepared.inputs.not_used, *([f"change detection is not used: {refused}"] if refused else [])]


def warnings(run: Run) -> list[str]:
    """What a reader must be wary of."""
    told = list(run.prepared.inputs.warnings)
    if run.pairing and run.pairing.coregistration.verdict() == "warn":
        told.append(run.pairing.coregistration.sentence())
    if run.pairing and run.pairing.refused and run.pairing.coregistration.verdict() != "refuse":
        told.append(f"pre-event imagery was given, and is not used: {run.pairing.refused}")
    return told


def story_of(run: Run) -> dict[str, Any]:
    """The provenance of a run, for `run.json`."""
    pairing = run.pairing
    return {
        "run": run.id,
        "started_utc": run.started_utc.isoformat(timespec="seconds"),
        "inputs": _inputs(run.prepared.inputs, run.prepared.config),
        "stages": [record.as_dict() for record in run.records],
        "stores": {name: ref.key for name, ref in sorted(run.stores.items())},
        "scenario": run.prepared.scenario,
        "network_origin": run.prepared.card.origin,
        "numerics": asdict(run.prepared.numerics) if run.prepared.numerics else None,
        "threshold": asdict(run.threshold) if run.threshold else None,
        "min_area_m2": run.prepared.min_area_m2,
        "decisions": {
            "grid": _pixels(run.prepared.grid),
            "tone": asdict(run.tone) if run.tone else None,
            "threshold": run.threshold.probability if run.threshold else None,
            "pairing": asdict(pairing) if pairing else None,
        },
        "confidence_rule": CONFIDENCE_RULE,
        "vetoes": {veto.code: veto.sentence for veto in VETOES},
        "coregistration": asdict(pairing.coregistration) if pairing else None,
        "normalisation": asdict(pairing.normalisation) if pairing and pairing.normalisation else None,
        "network_grid": {
            "lattice_gsd_m": run.prepared.card.lattice_gsd(run.prepared.grid.gsd_m),
            "window_px": run.prepared.card.window_px,
            "windows": sum(record.windows for record in run.records),
        },
    }


def _inputs(inputs: Inputs, config: RunConfig) -> list[dict[str, str | None]]:
    """Every file and item that the run read, by role, with its digest."""
    epochs = [entry for epoch in (inputs.pre, inputs.post) if epoch for entry in epoch.inputs()]
    files = (
        ("DEM", inputs.dem.path if inputs.dem else None),
        ("area of interest", split_source(config.aoi)[0] if config.aoi else None),
    )
    return epochs + [input_of(path, role=role) for role, path in files if path]
