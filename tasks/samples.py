"""What networks are trained on: any labelled data set or scene as `models.augment.Tiles`, and honest splits of it.

A kind of data set is one entry of `DATASETS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
import shapely
import xarray as xr
from numpy.typing import NDArray

from catalog import store
from catalog.checks import check_scene
from catalog.grid import Grid, Window
from catalog.layers import layers_of
from catalog.outlines import read_outlines
from catalog.pairs import has_pairs, read_pairs
from catalog.scenes import Epoch
from catalog.schema import LANDSLIDE, NOT_OBSERVED, OBSERVED_QUALITY, InputError, StoreError
from catalog.store import StoreRef
from catalog.tiles import ID_TABLE, cut, read_landslide4sense, read_landslide4sense_h5
from models.augment import Tiles
from tasks import blocks, inference, polygons

READ_TILES: Final = 8
"""Tiles along one side of what is read of a scene at once."""
SQUARE: Final = 4
"""Tiles along one side of the squares of ground that a split in space keeps together."""

# --- labelled scenes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cutting:
    """How a scene or a pair becomes tiles."""

    tile_px: int = 128
    reference: tuple[float, float, float] = (46.0, 52.0, 51.0)
    """Median red, green and blue, 0..255, that a scene is levelled to: a model card's `median_rgb`. Default: that of
    Landslide4Sense without block B."""
    sensor: str = "rgb8"
    """Of a raster: a name of `catalog.sensors.SENSORS`."""


CUTTING: Final = Cutting()


@dataclass(frozen=True)
class Labels:
    """What was mapped, and where was looked."""

    landslides: str
    """Polygons: FILE[:LAYER[,LAYER]]."""
    aoi: str | None = None
    """Polygons of what was looked at, likewise; outside is unlabelled. None = all that was observed."""


@dataclass(frozen=True)
class Imagery:
    """A scene to cut tiles from."""

    name: str
    grid: Grid
    read: Callable[[Window], xr.Dataset]
    """Red, green and blue (NaN = not observed) and quality of a window, which may reach beyond the scene."""
    sample: Callable[[], xr.Dataset]
    """The same for pixels evenly over the scene."""


def read_labelled_store(ref: StoreRef, labels: Labels, *, cutting: Cutting) -> Tiles:
    """Tiles of an event's ingested composite; `label_scene` says which.

    Raises: StoreError when the store is not complete; InputError as `label_scene`.
    """
    if not store.is_complete(ref):
        raise StoreError(f"{ref.url} is not complete; re-run the step that writes it")
    imagery = Imagery(ref.event_id, ref.grid, partial(store.read_window, ref), partial(store.read_sample, ref))
    return label_scene(imagery, labels, cutting=cutting)


def read_labelled_raster(path: Path, labels: Labels, *, event: str, cutting: Cutting) -> Tiles:
    """Tiles of a post-event file, masked as a run masks it; `label_scene` says which.

    Raises: InputError when the file does not fit the sensor, and as `label_scene`.
    """
    epoch, grid = check_scene(path, sensor_name=cutting.sensor)
    step = math.ceil(math.sqrt(grid.scene.shape[0] * grid.scene.shape[1] / store.SAMPLE_PIXELS))
    imagery = Imagery(event, grid, partial(_read, epoch, grid), partial(_read, epoch, grid, grid.scene, step=step))
    return label_scene(imagery, labels, cutting=cutting)


def _read(epoch: Epoch, grid: Grid, window: Window, *, step: int = 1) -> xr.Dataset:
    composite = blocks.composite_window(epoch, grid, window)[[*inference.RGB, "quality"]]
    return composite.isel(y=slice(None, None, step), x=slice(None, None, step)).compute()


def label_scene(imagery: Imagery, labels: Labels, *, cutting: Cutting) -> Tiles:
    """Tiles side by side at the imagery's own pixel size, levelled as inference levels the scene, and their masks.

    Tiles lie on multiples of their size from the origin of the CRS. What was not observed or lies outside the area that
    was looked at is 255; tiles without a labelled pixel are left out.

    Raises: InputError when polygons cannot be read, or no landslide lies on what was observed and looked at.
    """
    grid = imagery.grid
    landslides = _in_pixels(labels.landslides, grid, what="labels")
    looked_at = _in_pixels(labels.aoi, grid, what="aoi") if labels.aoi else None
    sample = blocks.observed_bands(imagery.sample())
    tone = inference.measure_tone({band: sample[band].values for band in inference.RGB}, reference=cutting.reference)
    parts = []
    for window in _regions(grid, tile_px=cutting.tile_px):
        found = imagery.read(window)
        origin = (grid.row0 + window.y0, grid.col0 + window.x0)
        mask = polygons.burn(landslides, origin=origin, shape=window.shape).astype(np.uint8)
        seen = np.isin(found["quality"].values, OBSERVED_QUALITY)
        if looked_at is not None:
            seen &= polygons.burn(looked_at, origin=origin, shape=window.shape)
        image = tone.apply(np.stack([found[band].values for band in inference.RGB]))
        images, masks, first = cut(image, np.where(seen, mask, np.uint8(NOT_OBSERVED)), tile_px=cutting.tile_px)
        corners_m = (first + origin)[:, ::-1] * np.array([grid.gsd_m, -grid.gsd_m])
        parts.append(Tiles(images, masks, np.array(grid.gsd_m), np.array(imagery.name), corners_m=corners_m))
    tiles = Tiles.join(parts)
    if not _has_landslide(tiles):
        raise InputError(
            f"labels {labels.landslides}: no landslide lies on observed ground of {imagery.name}"
            f"{' within ' + labels.aoi if labels.aoi else ''}; check that they are of the same place"
        )
    return tiles


def _in_pixels(source: str, grid: Grid, *, what: str) -> NDArray[np.object_]:
    """Polygons of FILE[:LAYER[,LAYER]] in absolute pixels of a grid."""
    outlines = read_outlines(source, what=what).in_crs(grid.epsg).geometry.to_numpy()
    return np.asarray(shapely.transform(outlines, lambda xy: xy / (grid.gsd_m, -grid.gsd_m)))


def _regions(grid: Grid, *, tile_px: int) -> list[Window]:
    """Windows of whole tiles that cover the scene; tiles lie on absolute multiples of their size."""
    scene, side_px = grid.scene.shift(grid.row0, grid.col0), tile_px * READ_TILES
    spans = [
        [(k, min(k + side_px, -(-stop // tile_px) * tile_px)) for k in range(start // tile_px * tile_px, stop, side_px)]
        for start, stop in ((scene.y0, scene.y1), (scene.x0, scene.x1))
    ]
    windows = (Window(y0, x0, y1, x1) for y0, y1 in spans[0] for x0, x1 in spans[1])
    return [window.shift(-grid.row0, -grid.col0) for window in windows]


def _has_landslide(tiles: Tiles) -> bool:
    return bool((tiles.masks == LANDSLIDE).any())


# --- data sets -------------------------------------------------------------------------------------------------------

POST, TRUTH, AOI = "post.tif", "truth.gpkg", "aoi.gpkg"
SLIDES: Final = "landslides"
"""The layer of the truth that counts where there is one of this name."""


@dataclass(frozen=True)
class Dataset:
    """A kind of labelled data set on disk."""

    summary: str
    """How a folder of this kind looks."""
    recognises: Callable[[Path], bool]
    read: Callable[[Path, Cutting], tuple[Tiles, NDArray[np.bool_] | None]]
    """All its tiles, and which of them its publishers set aside for validation, if they did."""
    credit: str = "the user's own data, licence not stated"
    """Source and licence, for the card of what is trained on it."""
    limits: tuple[str, ...] = ()
    """What its labels and choice of tiles make a network miss or over-warn, for the card."""


def _published(folder: Path, cutting: Cutting) -> tuple[Tiles, NDArray[np.bool_]]:
    parts = [Tiles(*read_landslide4sense(folder, split=split)) for split in ("train", "validation")]
    return Tiles.join(parts), np.repeat([False, True], [len(part) for part in parts])


def _scene(folder: Path, cutting: Cutting) -> tuple[Tiles, None]:
    aoi = str(folder / AOI) if (folder / AOI).is_file() else None
    truth = str(folder / TRUTH)
    known = [layer.name for layer in layers_of(truth, what="labels")]
    labels = Labels(f"{truth}:{SLIDES}" if SLIDES in known else truth, aoi)
    return read_labelled_raster(folder / POST, labels, event=folder.resolve().name, cutting=cutting), None


L4S_CREDIT: Final = "Landslide4Sense, Sentinel-2 10 m, MIT (Ghorbanzadeh et al. 2022)"
L4S_LIMITS: Final = (
    "Trained on tiles that hold landslides: it over-warns where there are none.",
    "Training labels are coarse and shifted by 1-2 px in places; thin slides are thickened.",
)

DATASETS: Final[Mapping[str, Dataset]] = MappingProxyType(
    {
        "landslide4sense-rgb": Dataset(
            f"Landslide4Sense as RGB pictures: {ID_TABLE}, train/ and validation/ with images/ and masks/",
            lambda folder: (folder / ID_TABLE).is_file(),
            _published,
            L4S_CREDIT,
            L4S_LIMITS,
        ),
        "landslide4sense-h5": Dataset(
            "Landslide4Sense as published: img/image_N.h5 and mask/mask_N.h5",
            lambda folder: (folder / "img").is_dir() and (folder / "mask").is_dir(),
            lambda folder, _: (Tiles(*read_landslide4sense_h5(folder)), None),
            L4S_CREDIT,
            L4S_LIMITS,
        ),
        "scene": Dataset(
            f"a labelled scene, e.g. of `landslidenet simulate`: {POST}, polygons {TRUTH}, and {AOI} if only a part of "
            "it was looked at",
            lambda folder: (folder / POST).is_file() and (folder / TRUTH).is_file(),
            _scene,
        ),
        "pairs": Dataset(
            "pairs of GeoTIFFs: images/X.tif and masks/X.tif, or X_image.tif and X_mask.tif",
            has_pairs,
            lambda folder, cutting: (Tiles(*read_pairs(folder, tile_px=cutting.tile_px)), None),
        ),
    }
)
"""Every kind by name; the first that recognises a folder reads it."""


@dataclass(frozen=True)
class Samples:
    """Tiles to train on and tiles to validate on, with a landslide on either side."""

    train: Tiles
    validation: Tiles
    split: str
    """How they were told apart, for the model card."""
    credit: str
    limits: tuple[str, ...]
    """As in `Dataset`."""


def open_tiles(source: str | Path, *, left_out: Collection[str] = (), cutting: Cutting = CUTTING) -> Tiles:
    """All tiles of a folder of any kind in `DATASETS`, but those of the events left out.

    Raises: InputError when no kind fits, or the events are not there or not left.
    """
    return _open(source, left_out=left_out, cutting=cutting)[0]


def open_samples(
    source: str | Path,
    *,
    left_out: Collection[str] = (),
    held_out: Collection[str] = (),
    share: float = 0.2,
    cutting: Cutting = CUTTING,
) -> Samples:
    """The tiles of a folder of any kind, split: by the events held out, else as published, else in space.

    left_out : events of neither side. share : of the ground that a split in space validates on.

    Raises: InputError as `open_tiles`, or when the tiles cannot be split so.
    """
    tiles, published = _open(source, left_out=left_out, cutting=cutting)
    if held_out:
        _check_events(tiles, held_out, what="hold out")
        train, validation = tiles.split_by_event(held_out)
        split = f"validated on the events {', '.join(sorted(held_out))}"
    elif published is not None:
        train, validation = tiles.take(~published), tiles.take(published)
        split = "the published split"
    else:
        train, validation = split_in_space(tiles, share=share)
        split = f"in space: {share:g} of the squares of {SQUARE} x {SQUARE} tiles validate"
    if not (_has_landslide(train) and _has_landslide(validation)):
        raise InputError(
            f"tiles {source}, {split}: got {len(train)} training and {len(validation)} validation tiles, one side "
            "without a landslide; expected some on both; hold out other events, or choose another share"
        )
    without = f", without the events {', '.join(sorted(left_out))}" if left_out else ""
    kind = kind_of(source)
    return Samples(train, validation, split + without, kind.credit, kind.limits)


def kind_of(source: str | Path) -> Dataset:
    """The kind of data set that a folder holds. Raises: InputError listing the kinds when it is none of them."""
    folder = Path(source)
    kind = next((kind for kind in DATASETS.values() if kind.recognises(folder)), None)
    if kind is None:
        got = "an unknown kind of folder" if folder.is_dir() else "no folder"
        known = "; ".join(f"{name} ({kind.summary})" for name, kind in DATASETS.items())
        raise InputError(f"tiles {source}: got {got}; expected one of: {known}")
    return kind


def _open(source: str | Path, *, left_out: Collection[str], cutting: Cutting) -> tuple[Tiles, NDArray[np.bool_] | None]:
    tiles, published = kind_of(source).read(Path(source), cutting)
    if not left_out:
        return tiles, published
    _check_events(tiles, left_out, what="leave out")
    kept = ~np.isin(tiles.events, sorted(left_out))
    return tiles.take(kept), None if published is None else published[kept]


def _check_events(tiles: Tiles, named: Collection[str], *, what: str) -> None:
    known = set(tiles.events.tolist())
    if not set(named) < known:
        raise InputError(
            f"events to {what}: got {', '.join(sorted(named))}; expected some, not all, of {', '.join(sorted(known))}"
        )


# --- splits ----------------------------------------------------------------------------------------------------------


def split_in_space(tiles: Tiles, *, share: float) -> tuple[Tiles, Tiles]:
    """Tiles to train on and tiles to validate on, which lie on other ground: the same for the same tiles.

    Squares of 4 x 4 tiles are walked to and fro, row by row, and every (1 / share)th is for validation. Training tiles
    that overlap one for validation are left out: pairs need not lie on a lattice.

    Raises: InputError when places are not known, or the ground is too small for the share.
    """
    if np.isnan(tiles.corners_m).any():
        events = ", ".join(sorted(set(tiles.events.tolist())))
        raise InputError(
            f"tiles: their places are not known, so they cannot be split in space; hold out events, of {events}"
        )
    if not 0 < share < 1:
        raise InputError(f"share of the ground to validate on: got {share:g}; expected between 0 and 1")
    side_m = tiles.gsd_m * tiles.masks.shape[1]
    squares = np.floor(tiles.corners_m * (1, -1) / (SQUARE * side_m.max())).astype(np.int64)
    walk = sorted({(y, x) for x, y in squares.tolist()}, key=lambda at: (at[0], at[1] if at[0] % 2 == 0 else -at[1]))
    chosen = {at for k, at in enumerate(walk) if int((k + 1) * share) > int(k * share)}
    outside = np.array([(y, x) in chosen for x, y in squares.tolist()])
    if not outside.any() or outside.all():
        raise InputError(
            f"tiles: {len(walk)} square(s) of {SQUARE} x {SQUARE} tiles are too few for a share of {share:g}; expected "
            "more ground, smaller tiles or a share nearer to 0.5"
        )
    return tiles.take(~outside & ~_overlap(tiles, outside, side_m)), tiles.take(outside)


def _overlap(tiles: Tiles, chosen: NDArray[np.bool_], side_m: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N,) bool: tiles that share ground with one of the chosen."""
    inset = side_m * 1e-3  # neighbours touch, which is no overlap
    west, north = tiles.corners_m.T
    boxes = shapely.box(west + inset, north - side_m + inset, west + side_m - inset, north - inset)
    hit, _ = shapely.STRtree(boxes[chosen]).query(boxes, predicate="intersects")
    return np.isin(np.arange(len(tiles)), hit)
