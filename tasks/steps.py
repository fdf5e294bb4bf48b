"""The Prefect tasks: coarse steps that pass store references and JSON-sized values."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import geopandas as gpd
from distributed import Client, KilledWorker
from prefect import task
from prefect.cache_policies import NO_CACHE
from shapely.affinity import affine_transform

from catalog import scenes, store
from catalog.apart import quiet
from catalog.checks import Inputs, check_inputs
from catalog.config import RunConfig
from catalog.grid import Grid, regrid
from catalog.publication import publish as write_product
from catalog.schema import (
    BANDS,
    DISAGREEMENT,
    ELEVATION,
    LANDSLIDE_CLASS,
    PROBABILITY,
    QUALITY,
    InputError,
    LandslideError,
)
from catalog.sensors import sensor as find_sensor
from catalog.store import StoreRef
from catalog.versions import latest_version
from models.cards import ModelCard, find_weights, load_card
from models.numerics import Numerics, agree, choose_numerics
from tasks import blocks, change, decisions, inference, mapping, polygons, scenario, terrain
from tasks.artifacts import losses_of, progress_of, show_product
from tasks.inference import Tone
from tasks.pairing import keep_pairing, pair_epochs
from tasks.stages import (
    StageRecord,
    Stopwatch,
    collect_blocks,
    devices_of,
    one_a_host,
    run_alone,
    run_blocks,
    run_whole,
    verify_stores,
)
from tasks.story import Earlier, Paired, Pairing, Prepared, Run, Settled, earlier_of

logger = logging.getLogger(__name__)


HEALING: Final = (OSError, KilledWorker)
"""What another try can get past: a CommClosedError of Dask is an OSError too."""


def _heals(_task: object, _run: object, state: Any) -> bool:  # noqa: ANN401 - prefect State
    """Retry lost workers, disks and networks, also where they are the cause of a block's failure; nothing else."""
    error = state.result(raise_on_failure=False)
    while isinstance(error, BaseException) and not isinstance(error, InputError):
        if isinstance(error, HEALING):
            return True
        error = error.__cause__
    return False


RETRY: Final[dict[str, Any]] = {
    "retries": 2,
    "retry_delay_seconds": 10,
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": _heals,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}


def check(config: RunConfig, *, inputs: Inputs | None = None) -> Prepared:
    """Everything that can be known to be wrong is said here, before any work.

    inputs : where they were checked already.
    """
    try:
        weights = find_weights(config.model)
        card = load_card(weights)
    except ValueError as error:
        raise InputError(str(error)) from error
    inputs = inputs or check_inputs(config)
    low, high = card.gsd_range_m
    if not low <= inputs.grid.gsd_m <= high:
        told = (
            f"pixel size {inputs.grid.gsd_m:g} m is outside the {low:g} to {high:g} m at which {card.name} is known "
            "to work: treat the result as a lead, not as a map"
        )
        inputs = replace(inputs, warnings=(*inputs.warnings, told))
    inputs = replace(inputs, read=(*inputs.read, *scenario.check_sources(config, grid=inputs.grid)))
    missing = [band for band in card.bands if band not in find_sensor(config.sensor).bands]
    if missing:
        raise InputError(f"model {card.name} needs bands {missing}, which sensor {config.sensor} has not")
    earlier, wary = _earlier(config, inputs)
    inputs = replace(inputs, warnings=(*inputs.warnings, *wary))
    return Prepared(config, inputs, card, weights, earlier=earlier)


def _earlier(config: RunConfig, inputs: Inputs) -> tuple[Earlier | None, tuple[str, ...]]:
    """What the version before decided, and what is to be said of it. Raises: StoreError when its files are damaged."""
    latest = latest_version(Path(config.out), config.name)
    if latest is None:
        return None, ()
    latest.check()
    try:
        return earlier_of(latest.run(), inputs), ()
    except (KeyError, TypeError, ValueError, AttributeError):
        told = f"version {latest.number} was made by another release of this program: its decisions are made anew"
        logger.warning("%s", told)
        return None, (told,)


@task(task_run_name="ingest {epoch.role}", **RETRY)
@quiet()
def ingest(prepared: Prepared, epoch: scenes.Epoch, *, client: Client) -> tuple[StoreRef, StageRecord]:
    """One epoch's scenes, masked and composited, on the event's grid."""
    aoi = prepared.inputs.aoi
    target = prepared.target(
        f"ingest_{epoch.role}",
        (*(BANDS[band] for band in epoch.bands), QUALITY),
        grid=prepared.grid,
        depends_on={"epoch": epoch.fingerprint(), "aoi": aoi.wkb_hex if aoi is not None else None},
    )
    aoi_px = _to_pixels(aoi, prepared.grid) if aoi is not None else None
    seen, masks = blocks.scene_origins(epoch, epsg=prepared.grid.epsg), tuple(epoch.mask_digests())
    job = blocks.IngestJob(target, epoch, seen, masks, aoi_px)
    record = run_blocks(
        f"ingest {epoch.role}", blocks.ingest_block, job, target=target, client=client,
        report=progress_of(f"Ingest {epoch.role}"),
    )  # fmt: skip
    return target, record


def _to_pixels(geometry: Any, grid: Grid) -> Any:  # noqa: ANN401 - shapely
    return affine_transform(geometry, [1 / grid.gsd_m, 0, 0, -1 / grid.gsd_m, 0, 0])


@task(task_run_name="ingest elevation", **RETRY)
@quiet()
def ingest_elevation(prepared: Prepared, *, client: Client) -> tuple[StoreRef, StageRecord]:
    """The DEM on a grid of its own pixel size: finer cells would hold interpolation, not relief."""
    dem = prepared.inputs.dem
    if dem is None:
        raise InputError("elevation: no DEM was given")
    gsd_m = max(round(dem.gsd_m, 3), prepared.grid.gsd_m)
    grid = regrid(prepared.grid, gsd_m=gsd_m)
    target = prepared.target("elevation", (ELEVATION,), grid=grid, depends_on={"dem": dem.identity})
    job = blocks.ElevationJob(target, dem)
    return target, run_blocks(
        "elevation", blocks.elevation_block, job, target=target, client=client, report=progress_of("Elevation")
    )


@task(task_run_name="terrain", **RETRY)
@quiet()
def terrain_features(prepared: Prepared, elevation: StoreRef, *, client: Client) -> tuple[StoreRef, StageRecord]:
    """Slope, aspect, curvatures, position, ruggedness and relief."""
    local = tuple(f.variable for f in terrain.TERRAIN.values() if f.halo_px is not None)
    target = prepared.target("terrain", local, grid=elevation.grid, depends_on={"elevation": elevation.key})
    job = blocks.TerrainJob(target, elevation)
    return target, run_blocks(
        "terrain", blocks.terrain_block, job, target=target, client=client, report=progress_of("Terrain")
    )


@task(task_run_name="hydrology", **RETRY)
@quiet()
def hydrology(prepared: Prepared, elevation: StoreRef, *, client: Client) -> tuple[StoreRef, StageRecord]:
    """Flow accumulation and wetness of the whole DEM, on one worker."""
    whole = tuple(f.variable for f in terrain.TERRAIN.values() if f.halo_px is None)
    target = prepared.target("hydrology", whole, grid=elevation.grid, depends_on={"elevation": elevation.key})
    job = blocks.TerrainJob(target, elevation)
    return target, run_whole("hydrology", blocks.hydrology, job, target=target, client=client)


@task(task_run_name="pair pre with post", **RETRY)
@quiet()
def pair(prepared: Prepared, pre: StoreRef, post: StoreRef) -> Paired:
    """Shift of pre against post, radiometric normalisation and the scale of change on stable ground.

    Pre-event imagery is optional: what cannot be paired is left out with its reason, and the run goes on.
    """
    earlier = prepared.earlier
    with Stopwatch("pair") as watch:
        pairing, reason = pair_epochs(prepared.grid, pre, post), ""
        if earlier is not None and earlier.pairing is not None:
            pairing, reason = keep_pairing(earlier.pairing, pairing, version=earlier.version)
        record = watch.record()
    return Paired(pairing, record, (reason,) if reason else ())


@task(task_run_name="change", **RETRY)
@quiet()
def change_features(
    prepared: Prepared, pre: StoreRef, post: StoreRef, *, pairing: Pairing, client: Client
) -> tuple[StoreRef, StageRecord]:
    """Change features between the epochs, scaled on stable ground."""
    if pairing.normalisation is None or pairing.scaling is None:
        raise LandslideError(f"change: {pairing.refused}")
    shared = [v.name for v in pre.variables if v.name in post.names and v.name != "quality"]
    target = prepared.target(
        "change", change.variables(shared), grid=prepared.grid,
        depends_on={"pre": pre.key, "post": post.key, "pairing": asdict(pairing)},
    )  # fmt: skip
    job = blocks.ChangeJob(target, pre, post, pairing.coregistration, pairing.normalisation, pairing.scaling)
    return target, run_blocks(
        "change", blocks.change_block, job, target=target, client=client, report=progress_of("Change")
    )


@task(task_run_name="network {prepared.card.name}", **RETRY)
@quiet()
def settle_network(prepared: Prepared, post: StoreRef, *, client: Client, threads: int) -> Settled:
    """The run with the network that it is to use: as it is, fine-tuned on labels of the area, or adapted to the scene.

    Weights of the event's own are made once; a later run on the same inputs takes them again.

    Source: Xu et al. (2022), figure 2.
    """
    with Stopwatch("network") as watch:
        earlier, now = prepared.earlier, _measure_tone(prepared, post)
        tone, reason = now, ""
        if earlier is not None:
            tone, reason = decisions.keep_tone(earlier.tone, now, version=earlier.version)
        numerics = agree(client.run(choose_numerics, prepared.config.precision).values())
        settled = _settle(replace(prepared, numerics=numerics), post, tone, client=client, threads=threads)
    logger.info("network: %s, computed in %s", settled.scenario, numerics)
    return Settled(settled, tone, watch.record(), (reason,) if reason else ())


def _settle(prepared: Prepared, post: StoreRef, tone: Tone, *, client: Client, threads: int) -> Prepared:
    config = prepared.config
    if config.labels is None and config.adapt is None:
        return replace(prepared, scenario="as it is: neither labels of the area (--labels) nor --adapt were given")
    aoi = prepared.inputs.aoi
    plan = scenario.plan_network(
        post, tone, config=config, start=prepared.weights, card=prepared.card,
        scene={"post": prepared.inputs.post.fingerprint(), "aoi": aoi.wkb_hex if aoi is not None else None},
        threads=threads, mode=_numerics(prepared).mode,
    )  # fmt: skip
    weights, made = Path(plan.job.weights), "made by an earlier run of the same inputs"
    sound = scenario.are_sound(weights)
    if not sound and (kept := scenario.kept_weights(config, plan, prepared.earlier)):
        weights, made = kept, "kept from the version before, whose scenes are still among these"
    elif not sound:
        run_alone("network", plan.kernel, plan.job, client=client, topic=scenario.TOPIC, report=losses_of("Network"))
        made = "made by this run"
    card = load_card(weights)
    told = f"{plan.title}, {made}"
    if "held_out_f1" not in card.metrics:
        return replace(prepared, weights=weights, card=card, scenario=told)
    before, after = card.metrics["held_out_f1_before"], card.metrics["held_out_f1"]
    judged = f"F1 on ground held out {before:.3f} before, {after:.3f} after"
    if after <= before:
        return replace(prepared, scenario=f"as it is: {plan.title} it is no better, {judged}")
    return replace(prepared, weights=weights, card=card, scenario=f"{told}; {judged}")


@task(task_run_name="inference", **RETRY)
@quiet()
def probability(settled: Settled, post: StoreRef, *, client: Client, threads: int) -> tuple[StoreRef, StageRecord]:
    """Landslide probability of the post-event composite."""
    prepared, tone = settled.prepared, settled.tone
    numerics = _numerics(prepared)
    network = {**_network_key(prepared.card), **asdict(numerics)}
    target = prepared.target(
        "probability",
        (PROBABILITY, DISAGREEMENT),
        grid=prepared.grid,
        depends_on={"post": post.key, "network": network, "tone": asdict(tone)},
    )
    told = json.dumps(network, sort_keys=True)
    job = blocks.InferenceJob(target, post, tone, str(prepared.weights), threads, numerics, told)
    return target, run_blocks(
        "inference", blocks.probability_block, job, target=target, client=client, report=progress_of("Inference"),
        on=one_a_host(devices_of(client)),
    )  # fmt: skip


def _numerics(prepared: Prepared) -> Numerics:
    if prepared.numerics is None:
        raise LandslideError("network: it is not settled yet how it is computed")
    return prepared.numerics


def _network_key(card: ModelCard) -> dict[str, Any]:
    """What of a card decides the probabilities: the same weights run otherwise give others."""
    told = asdict(card)
    decisive = ("weights_sha256", "architecture", "calibration", "lattice_gsd_m", "oversampling", "window_px")
    return {name: told[name] for name in decisive}


def _measure_tone(prepared: Prepared, post: StoreRef) -> Tone:
    sample = blocks.observed_bands(store.read_sample(post))
    return inference.measure_tone(
        {band: sample[band].values for band in inference.RGB}, reference=prepared.card.median_rgb
    )


@task(task_run_name="inventory", **RETRY)
@quiet()
def inventory(run: Run, *, client: Client) -> mapping.Inventory:
    """Landslides as polygons with their attributes, joined over block seams, and the class raster burnt from them."""
    prepared, grid = run.prepared, run.prepared.grid
    settled = mapping.choose_threshold(prepared, run.stores["probability"])
    threshold = settled.probability
    previous = latest_version(Path(prepared.config.out), prepared.config.name)
    if previous is not None:
        previous.check()  # hours may have passed
    tone = run.tone or _measure_tone(prepared, run.stores["post"])
    job = mapping.objects_job(run, threshold=threshold, scene_median=tone.scene_median)
    pieces, outlined = collect_blocks(
        "objects", blocks.objects_block, job, blocks=grid.blocks, client=client, report=progress_of("Objects")
    )
    with Stopwatch("join") as watch:
        found = mapping.join_pieces(run, pieces, threshold=threshold, previous=previous)
        joined = watch.record()
    classes, burnt = _burn_classes(run, found.landslides, client=client)
    difference = mapping.difference_from(previous, found.landslides, classes) if previous else None
    verified = verify_stores((*run.stores.values(), classes), client=client)
    return mapping.Inventory(found, classes, difference, settled, (outlined, joined, burnt, verified))


def _burn_classes(run: Run, landslides: gpd.GeoDataFrame, *, client: Client) -> tuple[StoreRef, StageRecord]:
    grid = run.prepared.grid
    outlines = polygons.to_pixels(landslides.geometry.to_numpy(), gsd_m=grid.gsd_m)
    target = run.prepared.target(
        "class", (LANDSLIDE_CLASS,), grid=grid,
        depends_on={"post": run.stores["post"].key, "outlines": polygons.fingerprint(outlines)},
    )  # fmt: skip
    job = blocks.ClassJob(target, run.stores["post"], outlines)
    record = run_blocks(
        "class", blocks.class_block, job, target=target, client=client, report=progress_of("Class"),
        share=blocks.class_share,
    )  # fmt: skip
    return target, record


@task(task_run_name="publish", **RETRY)
@quiet()
def publish(run: Run, found: mapping.Inventory) -> str:
    """The product folder, written whole or not at all, and what the Prefect UI shows of it."""
    with Stopwatch("publish") as watch:
        product = mapping.compose_product(run, found)
        folder = write_product(
            product, Path(run.prepared.config.out), closing=lambda: mapping.closing(run, watch.record())
        )
        record = watch.record()
    show_product(folder, product, (*run.records, record))
    return str(folder)
