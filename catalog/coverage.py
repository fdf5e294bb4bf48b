"""Whether there is enough to look at: the pixels of a run that are in the area of interest, and hold something."""

from __future__ import annotations

from typing import Final

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from catalog.grid import Grid
from catalog.items import LOCAL
from catalog.scenes import Epoch, read_epoch
from catalog.schema import InputError
from catalog.store import sample_places

MIN_PIXELS: Final = 500
"""Fewer tell no tone of a scene (`tasks.inference`)."""


def check_coverage(post: Epoch, grid: Grid, *, footprint: BaseGeometry, aoi: BaseGeometry | None, area: str) -> None:
    """Raise where a run would look at fewer than 500 pixels of the post-event imagery.

    Those counted are the ones that a scene's tone is measured on: every pixel, of a large scene every k-th row and
    column. footprint, aoi : in the grid's CRS; area : the area's file, for messages.

    Raises: InputError for a small picture, a small area of interest, and for local pictures that are read whole (up to
    400,000 pixels) too few pixels that hold something and are not masked.
    """
    pixels = footprint.area / grid.gsd_m**2
    if pixels < MIN_PIXELS:
        raise InputError(
            f"post-event imagery: got {pixels:.0f} pixels of {grid.gsd_m:g} m; expected at least {MIN_PIXELS}; give a "
            "larger picture"
        )
    rows, cols = sample_places(grid)
    inside = _inside(footprint if aoi is None else footprint.intersection(aoi), grid, rows, cols)
    if inside.sum() < MIN_PIXELS:
        every = f" (every {rows.step}th row and column of a large scene)" if rows.step > 1 else ""
        raise InputError(
            f"{area or 'post-event imagery'}: the area to process holds {inside.sum()} pixels of {grid.gsd_m:g} m"
            f"{every}; expected at least {MIN_PIXELS}; draw a larger area; give parts far from each other a run each"
        )
    if rows.step > 1 or not all(item["properties"].get(LOCAL) for item in post.items):
        return
    seen = _seen(post, grid) & inside
    if seen.sum() < MIN_PIXELS:
        raise InputError(
            f"post-event imagery: {seen.sum()} of the {inside.sum()} pixels to process hold values and are not masked; "
            f"expected at least {MIN_PIXELS}; check the nodata value, --mask and the area of interest"
        )


def _inside(ground: BaseGeometry, grid: Grid, rows: range, cols: range) -> NDArray[np.bool_]:
    """(rows, cols) True where a pixel's centre is in the ground."""
    x, y = (np.asarray(cols) + grid.col0 + 0.5) * grid.gsd_m, -(np.asarray(rows) + grid.row0 + 0.5) * grid.gsd_m
    shapely.prepare(ground)
    return np.asarray(shapely.contains_xy(ground, *np.meshgrid(x, y)))


def _seen(post: Epoch, grid: Grid) -> NDArray[np.bool_]:
    """(y, x) True where a pixel of the scene window holds all bands in one picture, and no mask says otherwise."""
    seen = np.zeros(grid.scene.shape, bool)
    for scene in read_epoch(post, grid.geobox_of(grid.scene)):
        bands = scene[list(post.bands)].to_array().notnull().all("variable") & (scene["mask"] == 0)
        seen |= bands.to_numpy()
    return seen
