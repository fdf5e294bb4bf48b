"""The Prefect tasks: coarse steps that pass store references and JSON-sized values. The one place that knows them all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from distributed import Client
from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE

from catalog import scenes, store
from catalog.config import RunConfig
from catalog.grid import Grid, regrid
from catalog.schema import (
    BANDS,
    DISAGREEMENT,
    ELEVATION,
    LANDSLIDE_CLASS,
    OBSERVED_QUALITY,
    PROBABILITY,
    QUALITY,
    InputError,
    LandslideError,
    Variable,
)
from catalog.sensors import sensor as find_sensor
from catalog.store import StoreRef, store_key
from models.cards import ModelCard, find_weights, load_card
from tasks import blocks, change, inference, preprocess, terrain
from tasks.stages import Report, StageRecord, run_blocks

logger = logging.getLogger(__name__)

ALGORITHM_VERSIONS: Final = {
    "ingest": 1,
    "elevation": 1,
    "terrain": 1,
    "hydrology": 1,
    "change": 1,
    "probability": 1,
    "class": 1,
}
"""Raise a step's number when its result changes: its stores then get other keys."""


def _heals(_task: object, _run: object, state: Any) -> bool:  # noqa: ANN401 - prefect State
    """Retry lost workers and networks; never bad input or a broken contract."""
    result = state.result(raise_on_failure=False)
    return isinstance(result, OSError) or not isinstance(result, LandslideError | ValueError | TypeError)


RETRY: Final[dict[str, Any]] = {
    "retries": 2,
    "retry_delay_seconds": 10,
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": _heals,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}


@dataclass(frozen=True)
class Prepared:
    """What a run knows after its inputs were checked."""

    config: RunConfig
    inputs: scenes.Inputs
    card: ModelCard
    weights: Path

    @property
    def grid(self) -> Grid:
        """The imagery's grid."""
        return self.inputs.grid

    def target(self, step: str, variables: tuple[Variable, ...], *, grid: Grid, depends_on: dict[str, Any]) -> StoreRef:
        """The store of a step: its key holds the grid and everything the step depends on."""
        described = {**depends_on, "grid": asdict(grid)}
        key = store_key(step, version=ALGORITHM_VERSIONS[step.split("_")[0]], depends_on=described)
        return StoreRef(self.config.root, self.config.name, key, grid, variables, self.config.chunk_px)


def check(config: RunConfig) -> Prepared:
    """Everything that can be known to be wrong is said here, before any work."""
    try:
        weights = find_weights(config.model)
        card = load_card(weights)
    except ValueError as error:
        raise InputError(str(error)) from error
    inputs = scenes.check_inputs(config)
    low, high = card.gsd_range_m
    if not low <= inputs.grid.gsd_m <= high:
        told = (
            f"pixel size {inputs.grid.gsd_m:g} m is outside the {low:g} to {high:g} m at which {card.name} is known "
            "to work: treat the result as a lead, not as a map"
        )
        inputs = replace(inputs, warnings=(*inputs.warnings, told))
    missing = [band for band in card.bands if band not in find_sensor(config.sensor).bands]
    if missing:
        raise InputError(f"model {card.name} needs bands {missing}, which sensor {config.sensor} has not")
    return Prepared(config, inputs, card, weights)


def _progress(title: str) -> Report:
    """A report that moves a progress artifact of the Prefect UI."""
    artifact = create_progress_artifact(progress=0.0, key=title.lower().replace(" ", "-"), description=f"{title}: blocks")

    def report(done: int, total: int) -> None:
        update_progress_artifact(artifact, progress=100.0 * done / max(total, 1))
        _follow(title, done, total)

    return report


_LISTENERS: Final[list[Callable[[str, int, int], None]]] = []


def _follow(title: str, done: int, total: int) -> None:
    for listener in _LISTENERS:
        listener(title, done, total)


def on_progress(listener: Callable[[str, int, int], None]) -> None:
    """Call `listener(stage, done, total)` for every finished block: the command line's progress bars."""
    _LISTENERS.append(listener)


@task(task_run_name="ingest {epoch.role}", **RETRY)
def ingest(prepared: Prepared, epoch: scenes.Epoch, *, client: Client) -> tuple[StoreRef, StageRecord]:
    """One epoch's scenes, masked and composited, on the event's grid."""
    sensor = find_sensor(epoch.sensor)
    bands = tuple(band for band in BANDS if band in sensor.bands)
    aoi = prepared.inputs.aoi
    target = prepared.target(
        f"ingest_{epoch.role}",
        (*(BANDS[band] for band in bands), QUALITY),
        grid=prepared.grid,
        depends_on={"epoch": epoch.fingerprint(), "aoi": aoi.wkb_hex if aoi is not None else None},
    )
    aoi_px = _to_pixels(aoi, prepared.grid) if aoi is not None else None
    job = blocks.IngestJob(target, epoch, sensor.qa, bands, aoi_px)
    record = run_blocks(
        f"ingest {epoch.role}", blocks.ingest_block, job, target=target, client=client,
        report=_progress(f"Ingest {epoch.role}"),
    )  # fmt: skip
    return target, record


def _to_pixels(geometry: Any, grid: Grid) -> Any:  # noqa: ANN401 - shapely
    from shapely.affinity import affine_transform

    return affine_transform(geometry, [1 / grid.gsd_m, 0, 0, -1 / grid.gsd_m, 0, 0])


@task(task_run_name="ingest elevation", **RETRY)
def ingest_elevation(prepared: Prepared, *, client: Client) -> tuple[StoreRef, StageRecord]:
    """The DEM on a grid of its own pixel size: finer cells would hold interpolation, not relief."""
    dem = prepared.inputs.dem
    if dem is None:
        raise InputError("elevation: no DEM was given")
    gsd_m = max(round(dem.gsd_m, 3), prepared.grid.gsd_m)
    grid = regrid(prepared.grid, gsd_m=gsd_m)
    target = prepared.target("elevation", (ELEVATION,), grid=grid, depends_on={"dem": dem.fingerprint})
    job = blocks.ElevationJob(target, dem)
    return target, run_blocks(
        "elevation", blocks.elevation_block, job, target=target, client=client, report=_progress("Elevation")
    )


@task(task_run_name="terrain", **RETRY)
def terrain_features(prepared: Prepared, elevation: StoreRef, *, client: Client) -> tuple[StoreRef, StageRecord]:
    """Slope, aspect, curvatures, position, ruggedness and relief."""
    local = tuple(f.variable for f in terrain.TERRAIN.values() if f.halo_px is not None)
    target = prepared.target("terrain", local, grid=elevation.grid, depends_on={"elevation": elevation.key})
    job = blocks.TerrainJob(target, elevation)
    return target, run_blocks(
        "terrain", blocks.terrain_block, job, target=target, client=client, report=_progress("Terrain")
    )


@task(task_run_name="hydrology", **RETRY)
def hydrology(prepared: Prepared, elevation: StoreRef, *, client: Client) -> tuple[StoreRef, StageRecord]:
    """Flow accumulation and wetness of the whole DEM, on one worker."""
    whole = tuple(f.variable for f in terrain.TERRAIN.values() if f.halo_px is None)
    target = prepared.target("hydrology", whole, grid=elevation.grid, depends_on={"elevation": elevation.key})
    job = blocks.TerrainJob(target, elevation)
    return target, run_whole("hydrology", blocks.hydrology, job, target=target, client=client)


@dataclass(frozen=True)
class Pairing:
    """How pre-event imagery was brought to the post-event one."""

    coregistration: preprocess.Coregistration
    normalisation: preprocess.Normalisation | None
    scaling: change.ChangeScaling | None

    @property
    def usable(self) -> bool:
        """True when the two epochs match well enough to be compared pixel by pixel."""
        return self.normalisation is not None and self.scaling is not None


@task(task_run_name="pair pre with post", **RETRY)
def pair(prepared: Prepared, pre: StoreRef, post: StoreRef) -> Pairing:
    """Shift of pre against post, radiometric normalisation and the scale of change on stable ground."""
    coregistration = _coregister(prepared.grid, pre, post)
    if coregistration.verdict() == "refuse":
        return Pairing(coregistration, None, None)
    samples = [blocks.observed_bands(store.read_sample(ref)) for ref in (pre, post)]
    bands = [name for name in samples[0].data_vars if name in samples[1].data_vars]
    before, after = (np.stack([s[band].values.ravel() for band in bands]) for s in samples)
    normalisation = preprocess.fit_normalisation(before, after, names=[str(b) for b in bands])
    features = change.change(preprocess.normalise(samples[0], normalisation), samples[1])
    scaling = change.measure_scaling({str(name): features[name].values for name in features.data_vars})
    return Pairing(coregistration, normalisation, scaling)


def _coregister(grid: Grid, pre: StoreRef, post: StoreRef) -> preprocess.Coregistration:
    """The shift measured on a lattice of windows over the scene."""
    side = preprocess.WINDOW_PX
    shifts = []
    for y0, x0 in preprocess.coregistration_windows(grid.scene.shape, window_px=side):
        window = replace(grid.scene, y0=grid.scene.y0 + y0, x0=grid.scene.x0 + x0)
        window = replace(window, y1=window.y0 + side, x1=window.x0 + side)
        before, after = (store.read_window(ref, window) for ref in (pre, post))
        observed = np.isin(before["quality"].values, OBSERVED_QUALITY) & np.isin(after["quality"].values, OBSERVED_QUALITY)
        shifts.append(preprocess.window_shift(_grey(before), _grey(after), observed=observed))
    return preprocess.combine_shifts([s for s in shifts if s is not None])


def _grey(scene: Any) -> np.ndarray[Any, Any]:  # noqa: ANN401 - xr.Dataset
    return np.asarray(np.mean([scene[band].values for band in inference.RGB], axis=0), dtype=np.float32)


@task(task_run_name="change", **RETRY)
def change_features(
    prepared: Prepared, pre: StoreRef, post: StoreRef, *, pairing: Pairing, client: Client
) -> tuple[StoreRef, StageRecord]:
    """Change features between the epochs, scaled on stable ground."""
    if pairing.normalisation is None or pairing.scaling is None:
        raise LandslideError(f"change: {pairing.coregistration.sentence()}")
    shared = [v.name for v in pre.variables if v.name in post.names and v.name != "quality"]
    target = prepared.target(
        "change", change.variables(shared), grid=prepared.grid, depends_on={"pre": pre.key, "post": post.key}
    )
    job = blocks.ChangeJob(target, pre, post, pairing.coregistration, pairing.normalisation, pairing.scaling)
    return target, run_blocks(
        "change", blocks.change_block, job, target=target, client=client, report=_progress("Change")
    )


@task(task_run_name="inference {prepared.card.name}", **RETRY)
def probability(prepared: Prepared, post: StoreRef, *, client: Client, threads: int) -> tuple[StoreRef, StageRecord]:
    """Landslide probability of the post-event composite."""
    sample = blocks.observed_bands(store.read_sample(post))
    tone = inference.measure_tone(
        {band: sample[band].values for band in inference.RGB}, median_luminance=prepared.card.median_luminance
    )
    target = prepared.target(
        "probability",
        (PROBABILITY, DISAGREEMENT),
        grid=prepared.grid,
        depends_on={"post": post.key, "weights": prepared.card.weights_sha256, "tone": asdict(tone)},
    )
    job = blocks.InferenceJob(target, post, tone, str(prepared.weights), threads)
    return target, run_blocks(
        "inference", blocks.probability_block, job, target=target, client=client, report=_progress("Inference")
    )
