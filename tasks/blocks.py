"""What a Dask worker runs: one block read, one block written. No Prefect here, and no model in a graph.

Each function reads its inputs from complete stores, calls the pure functions of the science, and hands a lazy Dataset
to `catalog.store.write_block`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import shapely
import xarray as xr
from numpy.typing import NDArray

from catalog import reuse, scenes, store
from catalog.grid import Block, Bounds, Grid, Window
from catalog.schema import LANDSLIDE, NOT_OBSERVED, OBSERVED_QUALITY, FloatArray, Quality
from catalog.store import StoreRef
from models.numerics import Numerics
from models.predictor import load_predictor
from tasks import change, extraction, inference, objects, polygons, preprocess, registration, terrain
from tasks.coarsening import BlockMeans


@dataclass(frozen=True)
class IngestJob:
    """Scenes of one epoch to one composite on the grid."""

    target: StoreRef
    epoch: scenes.Epoch
    seen: tuple[SceneOrigin, ...]
    """One a scene of the epoch."""
    masks: tuple[str, ...]
    """Digests of the epoch's masks."""
    aoi_px: Any = None
    """Area of interest in absolute pixel coordinates (shapely), or None."""


@dataclass(frozen=True)
class SceneOrigin:
    """What the pixels of a scene come from, and where they lie."""

    digest: str
    bounds: Bounds
    """Left, bottom, right, top, m, in the grid's CRS."""


def scene_origins(epoch: scenes.Epoch, *, epsg: int) -> tuple[SceneOrigin, ...]:
    """The origin of each scene of an epoch; reads the header of its first band."""
    told = zip(epoch.origins(), epoch.qa_rules, epoch.footprints(epsg), strict=True)
    return tuple(SceneOrigin(json.dumps([origin, rule], default=str), bounds) for origin, rule, bounds in told)


def ingest_block(job: IngestJob, block: Block) -> dict[str, Any]:
    """Composite of the epoch's scenes with its quality classes; outside the area of interest is not observed.

    Made again only where a scene that lies on the block is another one.
    """
    grid, window = job.target.grid, job.target.grid.window(block)
    inside = None
    if job.aoi_px is not None:
        inside = polygons.burn([job.aoi_px], origin=_absolute(grid, window), shape=window.shape)
    ground = shapely.box(*grid.geobox_of(window.expand(preprocess.GROW_HALO_PX)).boundingbox.bbox)
    near = [scene.digest for scene in job.seen if shapely.box(*scene.bounds).buffer(grid.gsd_m).intersects(ground)]
    inputs = [job.epoch.role, job.epoch.sensor, job.epoch.bands, near, job.masks, inside]

    def composite() -> xr.Dataset:
        core = composite_window(job.epoch, grid, window)
        if inside is None:
            return core
        return core.assign(quality=core["quality"].where(xr.DataArray(inside, dims=("y", "x")), Quality.NODATA))

    return _made(job.target, block, inputs, composite)


def _made(target: StoreRef, block: Block, inputs: Sequence[Any], make: Callable[[], xr.Dataset]) -> dict[str, Any]:
    """The ledger entry of a block: taken over from an earlier store that made it of the same inputs, else made."""
    digest = reuse.inputs_digest(target, block, inputs)
    taken = reuse.adopt_block(target, block, digest)
    return taken or store.write_block(target, block, make(), record={"inputs": digest})


def composite_window(epoch: scenes.Epoch, grid: Grid, window: Window) -> xr.Dataset:
    """Lazy composite of the epoch's scenes in a window of the grid, with its quality classes."""
    halo = preprocess.GROW_HALO_PX
    loaded = scenes.read_epoch(epoch, grid.geobox_of(window.expand(halo)))
    qualities = [
        preprocess.grow_mask(preprocess.quality(scene, qa=qa), px=halo)
        for scene, qa in zip(loaded, epoch.qa_rules, strict=True)
    ]
    return preprocess.composite(loaded, qualities).isel(y=slice(halo, -halo), x=slice(halo, -halo))


def _absolute(grid: Grid, window: Window) -> tuple[int, int]:
    return grid.row0 + window.y0, grid.col0 + window.x0


@dataclass(frozen=True)
class ElevationJob:
    """A DEM to elevation on its own grid."""

    target: StoreRef
    dem: scenes.DemSource


def elevation_block(job: ElevationJob, block: Block) -> dict[str, Any]:
    """Elevation of a block, warped from the DEM."""
    geobox = job.target.grid.geobox_of(job.target.grid.window(block))

    def elevation() -> xr.Dataset:
        return scenes.read_elevation(job.dem, geobox).to_dataset(name="elevation_m")

    return _made(job.target, block, [job.dem.identity], elevation)


@dataclass(frozen=True)
class TerrainJob:
    """Elevation to the terrain features of a neighbourhood."""

    target: StoreRef
    elevation: StoreRef


def terrain_block(job: TerrainJob, block: Block) -> dict[str, Any]:
    """Terrain features of a block, read with the widest halo."""
    halo = terrain.MAX_HALO_PX
    elevation = store.read_block(job.elevation, block, halo_px=halo)["elevation_m"]

    def features() -> xr.Dataset:
        found = terrain.terrain(elevation, gsd_m=job.elevation.grid.gsd_m)
        return found.isel(y=slice(halo, -halo), x=slice(halo, -halo))

    return _made(job.target, block, [elevation.values], features)


def hydrology(job: TerrainJob) -> list[dict[str, Any]]:
    """Flow accumulation and wetness of the whole DEM, written block by block: no halo makes drainage local."""
    grid = job.elevation.grid
    factor = terrain.flow_factor(grid.scene.shape, gsd_m=grid.gsd_m)
    result = terrain.drainage(coarse_elevation(job.elevation, factor), gsd_m=grid.gsd_m, factor=factor)
    entries = []
    for block in grid.blocks:
        window = grid.window(block)
        fields = {
            name: (("y", "x"), _spread(getattr(result, name), result.factor, window=window, scene=grid.scene))
            for name in job.target.names
        }
        entries.append(store.write_block(job.target, block, xr.Dataset(fields)))
    return entries


def coarse_elevation(elevation: StoreRef, factor: int) -> FloatArray:
    """Means of cells of a DEM, each block of which is read once, and let go."""
    scene = elevation.grid.scene
    cells = BlockMeans(scene.shape, factor=factor)
    for block in elevation.grid.blocks:
        part = elevation.grid.window(block).intersect(scene)
        piece = store.read_window(elevation, part)["elevation_m"].values
        cells.add(piece, origin=(part.y0 - scene.y0, part.x0 - scene.x0))
    return cells.means()


def _spread(coarse: FloatArray, factor: int, *, window: Window, scene: Window) -> FloatArray:
    """The pixels of a window from a scene-wide field of `factor` times larger cells; NaN outside the scene."""
    full = np.full(window.shape, np.nan, dtype=np.float32)
    inside = window.intersect(scene)
    rows = np.minimum((np.arange(inside.y0, inside.y1) - scene.y0) // factor, coarse.shape[0] - 1)
    cols = np.minimum((np.arange(inside.x0, inside.x1) - scene.x0) // factor, coarse.shape[1] - 1)
    full[inside.shift(-window.y0, -window.x0).slices] = coarse[np.ix_(rows, cols)]
    return full


@dataclass(frozen=True)
class ChangeJob:
    """Two composites to change features."""

    target: StoreRef
    pre: StoreRef
    post: StoreRef
    coregistration: registration.Coregistration
    normalisation: preprocess.Normalisation
    scaling: change.ChangeScaling


def aligned_pre(
    pre: xr.Dataset, *, coregistration: registration.Coregistration, normalisation: preprocess.Normalisation
) -> xr.Dataset:
    """Pre-event bands moved onto the post-event ones and brought to their radiometry."""
    return preprocess.normalise(registration.align(observed_bands(pre), coregistration), normalisation)


def observed_bands(scene: xr.Dataset) -> xr.Dataset:
    """The bands of an epoch, NaN where it is not observed."""
    return scene.drop_vars("quality").where(scene["quality"].isin(OBSERVED_QUALITY))


def change_block(job: ChangeJob, block: Block) -> dict[str, Any]:
    """Change features of a block."""
    halo = registration.SHIFT_HALO_PX
    pre = store.read_block(job.pre, block, halo_px=halo)
    post = observed_bands(store.read_block(job.post, block))

    def features() -> xr.Dataset:
        moved = aligned_pre(pre, coregistration=job.coregistration, normalisation=job.normalisation)
        core = moved.isel(y=slice(halo, -halo), x=slice(halo, -halo))
        return change.change(core.assign_coords(y=post.y, x=post.x), post, scaling=job.scaling)

    pairing = [asdict(part) for part in (job.coregistration, job.normalisation, job.scaling)]
    return _made(job.target, block, [pairing, *_arrays(pre), *_arrays(post)], features)


def _arrays(data: xr.Dataset) -> list[NDArray[Any]]:
    return [data[name].values for name in sorted(map(str, data.data_vars))]


@dataclass(frozen=True)
class InferenceJob:
    """A post-event composite to landslide probability."""

    target: StoreRef
    post: StoreRef
    tone: inference.Tone
    model: str
    threads: int
    numerics: Numerics
    network: str
    """What of the network and its numerics decides the probabilities, as text."""


def probability_block(job: InferenceJob, block: Block) -> dict[str, Any]:
    """Blended probability and window disagreement of a block, not observed where the imagery is not."""
    predictor = load_predictor(job.model, threads=job.threads, numerics=job.numerics)
    grid = job.target.grid
    gsd_m = predictor.card.lattice_gsd(grid.gsd_m)
    lattice = inference.Lattice(predictor.card.window_px, scale=gsd_m / grid.gsd_m)
    core, scene = (_extent(grid, window) for window in (grid.window(block), grid.scene))
    needed = inference.imagery_needed(core, lattice=lattice, scene=scene)
    place = Window(needed.y0, needed.x0, needed.y1, needed.x1)
    imagery = store.read_window(job.post, place.shift(-grid.row0, -grid.col0))
    quality = store.read_block(job.post, block)["quality"]
    edges = place.expand(1).intersect(Window(scene.y0, scene.x0, scene.y1, scene.x1))  # beyond them it is mirrored
    inputs = [job.network, asdict(job.tone), asdict(place), asdict(edges), quality.values]
    inputs += [imagery[band].values for band in inference.RGB]
    digest = reuse.inputs_digest(job.target, block, inputs)
    if (taken := reuse.adopt_block(job.target, block, digest)) is not None:
        return taken
    image = job.tone.apply(np.stack([imagery[band].values for band in inference.RGB]))
    before, started = predictor.network_s, time.perf_counter()
    blended = inference.predict_block(
        image, origin=(needed.y0, needed.x0), core=core, scene=scene, lattice=lattice,
        predict=predictor.predict_windows,
    )  # fmt: skip
    seen = quality.isin(OBSERVED_QUALITY)
    fields = {"probability": blended.probability, "disagreement": blended.disagreement}
    data = xr.Dataset({name: (("y", "x"), values) for name, values in fields.items()}, coords=quality.coords)
    record = {
        "inputs": digest,
        "windows": blended.windows,
        "network_s": round(predictor.network_s - before, 3),
        "predict_s": round(time.perf_counter() - started, 3),
    }
    return store.write_block(job.target, block, data.where(seen), record=record)


def _extent(grid: Grid, window: Window) -> inference.Extent:
    y, x = _absolute(grid, window)
    return inference.Extent(y, x, y + window.shape[0], x + window.shape[1])


@dataclass(frozen=True)
class ObjectsJob:
    """Probability and features to the pieces of landslides in a block."""

    probability: StoreRef
    post: StoreRef
    threshold: float
    scene_median: float
    """Median of (red + green + blue) / 3 of the scene, reflectance."""
    features: tuple[StoreRef, ...] = field(default=())
    """Stores whose variables are summarised in each object, on the same or on another grid of the same CRS."""


def objects_block(job: ObjectsJob, block: Block) -> tuple[objects.BlockObjects, objects.BlockObjects]:
    """Pieces of landslides of a block, with their statistics, and its observed ground."""
    grid = job.probability.grid
    window = grid.window(block)
    probability = store.read_block(job.probability, block)["probability"].values
    post = store.read_block(job.post, block)
    observed = np.isin(post["quality"].values, OBSERVED_QUALITY)
    with np.errstate(invalid="ignore"):
        landslide = observed & (probability >= job.threshold)
    values: dict[str, FloatArray] = {"probability": probability, **_colour(post, scene_median=job.scene_median)}
    for ref in job.features:
        values |= _features_on(grid, window, ref)
    origin = _absolute(grid, window)
    pieces = extraction.extract_objects(landslide, origin=origin, values=values, observed=observed)
    return pieces, extraction.extract_area(observed, origin=origin)


def _colour(post: xr.Dataset, *, scene_median: float) -> dict[str, FloatArray]:
    """Redness, (red - blue) / (red + blue), and brightness over the scene's median brightness, of each pixel."""
    red, green, blue = (post[band].values for band in inference.RGB)
    with np.errstate(invalid="ignore", divide="ignore"):
        redness = (red - blue) / (red + blue)
    return {
        "redness": np.where(np.isfinite(redness), redness, np.nan).astype(np.float32),
        "relative_brightness": ((red + green + blue) / 3 / scene_median).astype(np.float32),
    }


def _features_on(grid: Grid, window: Window, ref: StoreRef) -> dict[str, FloatArray]:
    """Every variable of a store at the pixel centres of a window of the imagery's grid (nearest cell)."""
    if ref.grid == grid:
        data = store.read_window(ref, window)
        return {name: data[name].values for name in ref.names}
    rows = np.floor((np.arange(window.y0, window.y1) + grid.row0 + 0.5) * grid.gsd_m / ref.grid.gsd_m).astype(int)
    cols = np.floor((np.arange(window.x0, window.x1) + grid.col0 + 0.5) * grid.gsd_m / ref.grid.gsd_m).astype(int)
    rows, cols = rows - ref.grid.row0, cols - ref.grid.col0
    part = Window(int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1)
    data = store.read_window(ref, part)
    pick = np.ix_(rows - part.y0, cols - part.x0)
    return {name: data[name].values[pick] for name in ref.names}


@dataclass(frozen=True)
class ClassJob:
    """Delivered polygons to the class raster, so that both say the same."""

    target: StoreRef
    post: StoreRef
    landslides_px: polygons.Geometries
    """(n,) accepted landslides in absolute pixel coordinates (shapely polygons)."""


def class_share(job: ClassJob, block: Block) -> ClassJob:
    """The job with those landslides only that meet the block: a scene's would be sent once a block."""
    grid = job.target.grid
    window = grid.window(block)
    near = polygons.meeting(job.landslides_px, origin=_absolute(grid, window), shape=window.shape)
    return replace(job, landslides_px=near)


def class_block(job: ClassJob, block: Block) -> dict[str, Any]:
    """1 landslide, 0 clear, 255 not observed."""
    grid = job.target.grid
    window = grid.window(block)
    quality = store.read_block(job.post, block)["quality"]
    slide = polygons.burn(job.landslides_px, origin=_absolute(grid, window), shape=window.shape)
    classes = np.where(slide, LANDSLIDE, 0).astype(np.uint8)
    classes = np.where(np.isin(quality.values, OBSERVED_QUALITY), classes, NOT_OBSERVED).astype(np.uint8)
    return store.write_block(job.target, block, quality.copy(data=classes).to_dataset(name="landslide_class"))
