"""Labelled tiles from disk as arrays: Landslide4Sense in both of its forms, and what cuts any labelled image."""

from __future__ import annotations

import csv
import hashlib
import logging
import re
from bisect import bisect_right
from collections.abc import Collection
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from catalog.opening import open_unplaced
from catalog.schema import NOT_OBSERVED, FloatArray, InputError, MaskArray

logger = logging.getLogger(__name__)

LANDSLIDE4SENSE: Final = "landslide4sense/rgb"
LANDSLIDE4SENSE_H5: Final = "landslide4sense/h5"
ID_TABLE: Final = "png_id_to_l4s_file.csv"
GSD_M: Final = 10.0
RGB: Final = ("red", "green", "blue")
RGB_INDEX: Final = (3, 2, 1)
"""Of B4, B3 and B2 among the 14 bands: Sentinel-2 B1 to B12, slope, elevation."""
H5_SHAPE: Final = (128, 128, 14)
BLOCKS: Final = ("A", "B", "C", "D")
BLOCK_STARTS: Final = (1, 3020, 3196, 3340)
"""First training id of each block of ids, set by eye where the ground changes; B looks like Hokkaido."""
FOLDERS_WITHOUT_BLOCKS: Final = ("ValidData", "TestData")
"""Published parts that count their ids anew."""


class LabelledTiles(NamedTuple):
    """Tiles of one size, as `models.augment.Tiles` takes them, in its order."""

    images: NDArray[np.uint8]
    """(N, H, W, 3)."""
    masks: MaskArray
    """(N, H, W): 1 landslide, 0 not, 255 unlabelled or not observed."""
    gsd_m: NDArray[np.float64]
    """(N,)."""
    events: NDArray[np.str_]
    """(N,)."""
    bands: tuple[str, ...]
    corners_m: NDArray[np.float64]
    """(N, 2): easting and northing of the north-west corner; NaN = not known."""


def read_landslide4sense(
    folder: Path, *, split: Literal["train", "validation"], without_blocks: Collection[str] = ()
) -> LabelledTiles:
    """The RGB tiles (N, 128, 128, 3) in the order of their ids; a tile's event is the letter of its id block.

    without_blocks : letters of id blocks to leave out; B looks like Hokkaido.

    Raises: InputError when the folder is not the data set.

    Source: Ghorbanzadeh et al. (2022), Landslide4Sense, MIT licence.
    """
    table = folder / ID_TABLE
    if not table.is_file():
        raise InputError(f"tiles: {table} is missing; expected the Landslide4Sense RGB tiles with their id table")
    with table.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == split]
    blocks = {int(row["png_id"]): row["id_block"][0] for row in rows if row["id_block"][0] not in without_blocks}
    if not blocks:
        raise InputError(f"tiles: none of {len(rows)} {split} tiles is left without blocks {sorted(without_blocks)}")
    ids = sorted(blocks)
    images = [_read_png(folder / split / "images" / f"image_{i}.png", "RGB") for i in ids]
    masks = [(_read_png(folder / split / "masks" / f"mask_{i}.png", "L") > 0).astype(np.uint8) for i in ids]
    return _unplaced(images, masks, events=[blocks[i] for i in ids])


def fingerprint(folder: str) -> str:
    """Digest (sha256, hex) of the names and bytes of all files of a folder: where it lies does not matter.

    Raises: InputError when it is no folder or holds no file.
    """
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    if not paths:
        raise InputError(f"tiles: {folder} holds no file; expected a folder of labelled tiles")
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _read_png(path: Path, mode: Literal["RGB", "L"]) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert(mode), dtype=np.uint8)


def read_landslide4sense_h5(folder: Path) -> LabelledTiles:
    """The original tiles in the order of their ids, as RGB (N, 128, 128, 3); events as of `read_landslide4sense`.

    `img/image_N.h5` (key img, 128 x 128 x 14 float64, each band over its mean) and `mask/mask_N.h5` (key mask). Each
    tile is stretched to 8 bit by the largest value of its own red, green and blue, all three alike: the published RGB
    tiles come out to the bit. A file without its partner is left out, with a warning. The published ValidData and
    TestData have ids of their own: their event is the folder's name.

    Raises: InputError when there is no pair, or a file does not hold what it should.

    Source: Ghorbanzadeh et al. (2022), Landslide4Sense, MIT licence.
    """
    images, masks = (_numbered(folder / kind, kind) for kind in ("img", "mask"))
    ids = sorted(images.keys() & masks.keys())
    if not ids:
        raise InputError(
            f"tiles {folder}: got {len(images)} images and {len(masks)} masks without a common number; expected "
            "img/image_N.h5 with mask/mask_N.h5"
        )
    if alone := sorted(path.name for i, path in (images | masks).items() if i not in ids):
        logger.warning("tiles %s: left out without their partner: %s", folder, ", ".join(alone))
    named = folder.name if folder.name in FOLDERS_WITHOUT_BLOCKS else None
    return _unplaced(
        [_stretched(_read_h5(images[i], "img", H5_SHAPE)[..., RGB_INDEX], where=images[i]) for i in ids],
        [(_read_h5(masks[i], "mask", H5_SHAPE[:2]) > 0).astype(np.uint8) for i in ids],
        events=[named or BLOCKS[bisect_right(BLOCK_STARTS, i) - 1] for i in ids],
    )


def _numbered(folder: Path, kind: str) -> dict[int, Path]:
    """Files KIND_N.h5 of a folder by N, which counts from 1; an image is called image, not img."""
    name = re.compile(rf"{'image' if kind == 'img' else kind}_([1-9]\d*)\.h5")
    found = ((name.fullmatch(path.name), path) for path in folder.glob("*.h5"))
    return {int(match[1]): path for match, path in found if match}


def _read_h5(path: Path, key: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """An array of an HDF5 file; GDAL takes the first of three axes for its bands, which keeps their order."""
    with open_unplaced(f'HDF5:"{path}"://{key}', driver="HDF5Image") as dataset:
        values = dataset.read().astype(np.float64)
    values = values[0] if len(shape) == 2 else values
    if values.shape != shape or not np.isfinite(values).all():
        raise InputError(f"{path}: got {values.shape} in `{key}`; expected finite values {shape}; download it again")
    return np.asarray(values)


def _stretched(rgb: NDArray[np.float64], *, where: Path) -> NDArray[np.uint8]:
    """Truncated shares of the largest value, 0..255."""
    if rgb.min() < 0 or rgb.max() <= 0:
        raise InputError(
            f"{where}: got bands from {rgb.min():g} to {rgb.max():g}; expected values over their mean, > 0"
        )
    return np.asarray(rgb / rgb.max() * 255, dtype=np.uint8)


def _unplaced(images: list[NDArray[np.uint8]], masks: list[MaskArray], *, events: list[str]) -> LabelledTiles:
    count = len(images)
    return LabelledTiles(
        np.stack(images), np.stack(masks), np.full(count, GSD_M), np.array(events), RGB, np.full((count, 2), np.nan)
    )


def cut(image: FloatArray, mask: MaskArray, *, tile_px: int) -> tuple[NDArray[np.uint8], MaskArray, NDArray[np.int64]]:
    """Tiles (N, P, P, 3) uint8 side by side from the first pixel on, their masks (N, P, P) and first pixels (N, 2).

    image : (3, y, x) float32, 0..255, NaN = not observed, which the masks say as 255 and the tiles show in their own
    mean colour: a blank, as inference has it. What reaches beyond the image is not observed either. Tiles without a
    labelled pixel are left out.

    >>> images, masks, first = cut(np.full((3, 4, 6), 7, np.float32), np.zeros((4, 6), np.uint8), tile_px=4)
    >>> images.shape, (masks == 255).sum(axis=(1, 2)).tolist(), first.tolist()
    ((2, 4, 4, 3), [0, 8], [[0, 0], [0, 4]])
    """
    rows, cols = (-(-size // tile_px) for size in mask.shape)
    beyond = [(0, n * tile_px - size) for n, size in zip((rows, cols), mask.shape, strict=True)]
    values = np.pad(image, [(0, 0), *beyond], constant_values=np.nan)
    labels = np.pad(mask, beyond, constant_values=NOT_OBSERVED)
    labels = np.where(np.isfinite(values).all(axis=0), labels, NOT_OBSERVED).astype(np.uint8)
    labels = labels.reshape(rows, tile_px, cols, tile_px).swapaxes(1, 2)
    which = (labels != NOT_OBSERVED).any(axis=(2, 3))
    tiles = values.reshape(len(image), rows, tile_px, cols, tile_px).transpose(1, 3, 2, 4, 0)[which]
    blank = np.isnan(tiles).any(axis=-1)
    for tile, unseen in zip(tiles, blank, strict=True):
        tile[unseen] = tile[~unseen].mean(axis=0)
    return np.rint(np.clip(tiles, 0, 255)).astype(np.uint8), labels[which], np.argwhere(which) * tile_px
