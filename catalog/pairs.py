"""Labelled pairs from disk: a folder of images and the masks drawn on them, of any size, cut into tiles."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Final

import numpy as np

from catalog.grid import is_metric
from catalog.opening import open_raster
from catalog.rasters import RasterInfo, describe_raster
from catalog.sampling import picture_decoding, read_whole
from catalog.schema import LANDSLIDE, NOT_OBSERVED, InputError
from catalog.tiles import RGB, LabelledTiles, cut

SUFFIXES: Final = (".tif", ".tiff")
SPLIT: Final = "split.csv"
HOW: Final = "images/X.tif with masks/X.tif, or X_image.tif with X_mask.tif"


def has_pairs(folder: Path) -> bool:
    """True where the names are those of pairs."""
    return any(all(kinds) for kinds in _named(folder).values())


def read_pairs(folder: Path, *, tile_px: int) -> LabelledTiles:
    """Tiles of every pair, in the order of the names; see `catalog.tiles.cut` for what a tile shows.

    Images: 8-bit red, green, blue (and transparency), as they are, and not observed where pictures of that kind are not
    (`Decoding.picture`); masks on the same pixels: 1 landslide, 0 not, 255 unlabelled. A pair's event is the folder's
    name, or what `split.csv` (columns name, event) says.

    Raises: InputError when there is no pair, one is incomplete or does not fit, or nothing is labelled.
    """
    found = _named(folder)
    if not found:
        raise InputError(f"pairs {folder}: got no image; expected {HOW}")
    if alone := [f"{name} has no {'mask' if mask is None else 'image'}" for name, (image, mask) in found.items()
                 if image is None or mask is None]:  # fmt: skip
        raise InputError(f"pairs {folder}: {'; '.join(alone)}; expected {HOW}")
    events = _events(folder, list(found))
    parts = [
        _read(image, mask, event=events[name], tile_px=tile_px)
        for name, (image, mask) in found.items()
        if image and mask
    ]
    images, masks, gsd_m, named, corners_m = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("images", "masks", "gsd_m", "events", "corners_m")
    )
    if not len(masks):
        raise InputError(
            f"pairs {folder}: got no pixel that is labelled and seen; expected masks with 0 and 1 where the images are "
            "not transparent: is a fourth band, e.g. near infrared, marked as transparency?"
        )
    if not (masks == LANDSLIDE).any():
        raise InputError(
            f"pairs {folder}: no mask holds a 1, only {np.unique(masks).tolist()}; expected 1 landslide, 0 not, 255 "
            "unlabelled; where 255 means landslide, write 1 for it, e.g. with gdal_calc"
        )
    return LabelledTiles(images, masks, gsd_m, named, RGB, corners_m)


def _named(folder: Path) -> dict[str, tuple[Path | None, Path | None]]:
    """Image and mask by name, sorted; None for one that is missing."""
    apart = {kind: _files(folder / f"{kind}s", "") for kind in ("image", "mask")}
    beside = {kind: _files(folder, f"_{kind}") for kind in ("image", "mask")}
    images, masks = apart["image"] | beside["image"], apart["mask"] | beside["mask"]
    return {name: (images.get(name), masks.get(name)) for name in sorted(images.keys() | masks.keys())}


def _files(folder: Path, ending: str) -> dict[str, Path]:
    paths = (path for path in folder.glob(f"*{ending}.*") if path.suffix.lower() in SUFFIXES)
    return {path.stem.removesuffix(ending): path for path in paths}


def _events(folder: Path, names: list[str]) -> dict[str, str]:
    table = folder / SPLIT
    if not table.is_file():
        return dict.fromkeys(names, folder.resolve().name)
    with table.open(newline="") as stream:
        reader = csv.DictReader(stream)
        if not {"name", "event"} <= set(reader.fieldnames or ()):
            raise InputError(f"{table}: got columns {reader.fieldnames}; expected name, event")
        events = {row["name"]: row["event"] for row in reader}
    if missing := [name for name in names if not events.get(name)]:
        raise InputError(f"{table}: no event for {', '.join(missing)}; expected a row for every pair")
    return events


def _read(image_path: Path, mask_path: Path, *, event: str, tile_px: int) -> LabelledTiles:
    """The tiles of a pair; may be none."""
    info, drawn = (describe_raster(path, allow_geographic=True) for path in (image_path, mask_path))
    _check(info, drawn, tile_px=tile_px)
    colours = [i for i in range(1, info.count + 1) if i != info.alpha_index]
    image = read_whole(str(image_path), decoding=picture_decoding(info, colours))
    with open_raster(str(mask_path)) as dataset:
        mask = np.asarray(dataset.read(1))
    if strange := set(np.unique(mask).tolist()) - {0, LANDSLIDE, NOT_OBSERVED}:
        raise InputError(f"{mask_path}: got values {sorted(strange)}; expected 1 landslide, 0 not, 255 unlabelled")
    images, masks, first = cut(image, mask, tile_px=tile_px)
    step = np.array([info.transform[0], info.transform[4]])
    corners_m = np.array([info.transform[2], info.transform[5]]) + first[:, ::-1] * step
    known = corners_m if is_metric(info.crs) else np.full_like(corners_m, np.nan)
    count = len(images)
    return LabelledTiles(images, masks, np.full(count, info.gsd_m), np.full(count, event), RGB, known)


def _check(info: RasterInfo, drawn: RasterInfo, *, tile_px: int) -> None:
    colours = info.count - (info.alpha_index is not None)
    if info.dtype != "uint8" or colours != len(RGB):
        raise InputError(
            f"{info.path}: got {colours} band(s) of {info.dtype}; expected red, green and blue of uint8; convert it, "
            "e.g. with gdal_translate -ot Byte -scale -b 1 -b 2 -b 3"
        )
    if drawn.dtype != "uint8" or drawn.count != 1:
        raise InputError(f"{drawn.path}: got {drawn.count} band(s) of {drawn.dtype}; expected one of uint8")
    if drawn.shape != info.shape:
        raise InputError(f"{drawn.path}: got {drawn.shape} px; expected {info.shape}, as {info.path}")
    if drawn.crs != info.crs or not np.allclose(drawn.bounds, info.bounds, rtol=0, atol=info.transform[0] / 2):
        raise InputError(f"{drawn.path}: lies elsewhere than {info.path}; expected the same pixels; warp it onto them")
    if min(info.shape) < tile_px:
        raise InputError(
            f"{info.path}: got {info.shape} px; expected at least one tile of {tile_px} px; cut smaller tiles"
        )
