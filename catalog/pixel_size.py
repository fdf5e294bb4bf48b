"""The pixel size of an event's grid, and how large it may get without a word of the person who runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from catalog.files import name_of
from catalog.grid import Grid
from catalog.rasters import RasterInfo
from catalog.schema import InputError

MOST_RATIO: Final = 3.0
"""Between the coarsest and the finest scene: beyond, nobody can mean both without saying which."""
MOST_PIXELS: Final = 4_000_000_000
"""About 63,000 x 63,000: 630 km at 10 m, 19 km at 0.3 m."""
FIX: Final = "say the product's pixel size with --gsd METRES, as coarse as the landslides allow"


def choose_gsd_m(files: Sequence[RasterInfo], *, stated: float | None) -> float:
    """The stated pixel size, m, else the finest scene's.

    Raises: InputError where none is stated and the scenes differ too much to choose.
    """
    if stated is not None:
        return stated
    finest, coarsest = (choose(files, key=lambda info: info.gsd_m) for choose in (min, max))
    if coarsest.gsd_m > MOST_RATIO * finest.gsd_m:
        raise InputError(
            f"post-event imagery: got pixels of {finest.gsd_m:g} m ({name_of(finest.path)}) and of "
            f"{coarsest.gsd_m:g} m ({name_of(coarsest.path)}); expected sizes within a factor of {MOST_RATIO:g}, or "
            f"one that is chosen; {FIX}, or leave one of them out"
        )
    return finest.gsd_m


def check_size(grid: Grid, *, stated: float | None) -> Grid:
    """The grid. Raises: InputError where it is very large and no pixel size was stated."""
    rows, cols = grid.scene.shape
    if stated is None and rows * cols > MOST_PIXELS:
        raise InputError(
            f"area to process: got {cols:,} x {rows:,} pixels of {grid.gsd_m:g} m; expected {MOST_PIXELS:,} at most "
            f"where no pixel size is stated; {FIX}, or give a smaller area with --aoi"
        )
    return grid
