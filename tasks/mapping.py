"""From a run's probabilities to its landslides, and from these to the product. No Prefect here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import geopandas as gpd
from shapely import MultiPolygon

from catalog import store
from catalog.grid import Grid, Window
from catalog.product import Difference, Product
from catalog.schema import NOT_OBSERVED, InputError
from catalog.store import StoreRef
from catalog.versions import Version, next_version
from tasks import blocks, decisions, objects, story
from tasks.differences import compare
from tasks.inventory import area_layer, build_inventory
from tasks.stages import StageRecord, give_back_freed_memory
from tasks.story import Prepared, Run
from tasks.thresholds import Threshold, scene_threshold

FEATURES: Final = ("elevation", "terrain", "hydrology", "change")
"""Stores whose variables are summarised in each landslide, where the run has them."""


def choose_threshold(prepared: Prepared, probability: StoreRef) -> Threshold:
    """The probability that counts in this run: the user's, the model card's, or the scene's own."""
    wanted, card = prepared.config.threshold, prepared.card.threshold
    if wanted == "scene" and prepared.card.origin.get("kind") == "fine-tuned":
        return Threshold(card, f"the scene's, {card:g}: of the best F1 on labelled ground held out of fine-tuning")
    if wanted == "scene":
        sample = store.read_sample(probability)["probability"].values
        now = scene_threshold(sample, card=card, prevalence=prepared.card.calibration.prevalence)
        earlier = prepared.earlier
        if earlier is None or earlier.weights_sha256 != prepared.card.weights_sha256:
            return now
        return decisions.keep_threshold(earlier.threshold, now, sample, version=earlier.version)
    if wanted == "card":
        return Threshold(card, f"the model card's, {card:g}, as asked for")
    return Threshold(wanted, f"{wanted:g}, as asked for")


def objects_job(run: Run, *, threshold: float, scene_median: float) -> blocks.ObjectsJob:
    """What the workers outline landslides from; scene_median : median brightness of the scene, reflectance."""
    probability, post = run.stores["probability"], run.stores["post"]
    features = tuple(run.stores[name] for name in FEATURES if name in run.stores)
    return blocks.ObjectsJob(probability, post, threshold, scene_median, features)


@dataclass(frozen=True)
class Landslides:
    """The landslides of a run as layers."""

    version: int
    landslides: gpd.GeoDataFrame
    vetoed: gpd.GeoDataFrame
    observed_area: gpd.GeoDataFrame
    window: Window


@dataclass(frozen=True)
class Inventory:
    """The landslides of a run, the class raster that says the same, what is new, and what it took."""

    layers: Landslides
    landslide_class: StoreRef
    difference: Difference | None
    """From the version before; None in the first."""
    threshold: Threshold
    records: tuple[StageRecord, ...]


Pieces = list[tuple[objects.BlockObjects, objects.BlockObjects]]


def join_pieces(run: Run, pieces: Pieces, *, threshold: float, previous: Version | None) -> Landslides:
    """Whole landslides with their attributes, and the observed area, from the blocks' pieces, which are used up.

    Raises: InputError when nothing was observed.
    """
    config, grid = run.prepared.config, run.prepared.grid
    slides, grounds = (list(part) for part in zip(*pieces, strict=True))
    pieces.clear()  # what is done with is let go: joining takes more memory than its result
    area_px = objects.join_area(grounds)
    grounds.clear()
    observed_area, window = observed_ground(area_px, grid)
    del area_px
    give_back_freed_memory()
    found = objects.join_objects(slides)
    slides.clear()
    give_back_freed_memory()
    version = next_version(Path(config.out), config.name)
    landslides, vetoed = build_inventory(
        found,
        gsd_m=grid.gsd_m,
        epsg=grid.epsg,
        provenance=story.provenance_of(run, version, threshold=threshold),
        previous=previous.landslides() if previous else None,
    )
    return Landslides(version, landslides, vetoed, observed_area, window)


def difference_from(previous: Version, landslides: gpd.GeoDataFrame, classes: StoreRef) -> Difference:
    """What became of the landslides of the version before."""
    before = previous.landslides().to_crs(landslides.crs)
    seen_before = previous.observed_at(landslides.representative_point())
    seen_after = store.read_points(classes, before.representative_point()) != NOT_OBSERVED
    table = compare(before, landslides, seen_before=seen_before, seen_after=seen_after)
    return Difference(previous.number, table, previous.newly_observed_m2(classes))


def observed_ground(area_px: MultiPolygon, grid: Grid) -> tuple[gpd.GeoDataFrame, Window]:
    """The observed ground as a layer of one row, and the window of the grid that holds it.

    Raises: InputError when nothing was observed.
    """
    if area_px.is_empty:
        raise InputError(
            "post imagery: no pixel is observed; check the mask, the nodata value and the area of interest"
        )
    left, top, right, bottom = (round(v) for v in area_px.bounds)
    window = Window(top - grid.row0, left - grid.col0, bottom - grid.row0, right - grid.col0)
    return area_layer(area_px, gsd_m=grid.gsd_m, epsg=grid.epsg), window


def compose_product(run: Run, found: Inventory) -> Product:
    """What the writers are given."""
    prepared, layers = run.prepared, found.layers
    probability = store.open_store(run.stores["probability"])
    return Product(
        event=prepared.inputs.event,
        event_id=prepared.config.name,
        version=layers.version,
        config=prepared.config.model_dump(mode="json"),
        grid=prepared.grid,
        window=layers.window,
        landslides=layers.landslides,
        vetoed=layers.vetoed,
        observed_area=layers.observed_area,
        probability=probability["probability"],
        landslide_class=store.open_store(found.landslide_class)["landslide_class"],
        disagreement=probability["disagreement"],
        post=store.open_store(run.stores["post"]),
        pre=store.open_store(run.stores["pre"]) if run.pre_used else None,
        post_time_utc=prepared.inputs.post.time_range_utc,
        used=story.used(run),
        not_used=story.not_used(run),
        warnings=story.warnings(run),
        difference=found.difference,
        model_card=asdict(prepared.card),
        provenance=story.story_of(run),
    )


def closing(run: Run, publishing: StageRecord) -> dict[str, Any]:
    """What `run.json` knows last: when the run ended, and what publishing took up to there."""
    return {
        "finished_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "stages": [record.as_dict() for record in (*run.records, publishing)],
    }
