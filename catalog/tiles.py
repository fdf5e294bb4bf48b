"""Labelled tiles from disk: the Landslide4Sense RGB tiles as arrays."""

from __future__ import annotations

import csv
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from catalog.schema import InputError

LANDSLIDE4SENSE = "landslide4sense/rgb"


def read_landslide4sense(
    folder: Path, *, split: Literal["train", "validation"], without_blocks: Collection[str] = ()
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (N, 128, 128, 3) and masks (N, 128, 128; 1 = landslide), in the order of their ids.

    without_blocks : letters of id blocks to leave out; B looks like Hokkaido.

    Raises: InputError when the folder is not the data set.

    Source: Ghorbanzadeh et al. (2022), Landslide4Sense, MIT licence.
    """
    table = folder / "png_id_to_l4s_file.csv"
    if not table.is_file():
        raise InputError(f"tiles: {table} is missing; expected the Landslide4Sense RGB tiles with their id table")
    with table.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == split]
    ids = sorted(int(row["png_id"]) for row in rows if row["id_block"][0] not in without_blocks)
    if not ids:
        raise InputError(f"tiles: none of {len(rows)} {split} tiles is left without blocks {sorted(without_blocks)}")
    images = [_read(folder / split / "images" / f"image_{i}.png", "RGB") for i in ids]
    masks = [(_read(folder / split / "masks" / f"mask_{i}.png", "L") > 0).astype(np.uint8) for i in ids]
    return np.stack(images), np.stack(masks)


def _read(path: Path, mode: Literal["RGB", "L"]) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert(mode), dtype=np.uint8)
