"""How pre-event imagery is brought to the post-event one: its shift, its radiometry, the scale of change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from catalog import store
from catalog.grid import Grid, Window
from catalog.schema import OBSERVED_QUALITY, FloatArray, InputError
from catalog.store import StoreRef
from tasks import blocks, change, decisions, inference, preprocess, registration
from tasks.preprocess import BoolArray
from tasks.story import Pairing

PIECE_PX: Final = 2048
"""Longest side of what is read of an epoch at once."""


def pair_epochs(grid: Grid, pre: StoreRef, post: StoreRef) -> Pairing:
    """How pre is moved and normalised to post, or why the two cannot be compared pixel by pixel."""
    coregistration = _coregister(grid, pre, post)
    if coregistration.verdict() == "refuse":
        return Pairing(coregistration, refused=coregistration.sentence())
    after = blocks.observed_bands(store.read_sample(post))
    before = moved_sample(pre, coregistration).assign_coords(y=after["y"], x=after["x"])
    try:
        return Pairing(coregistration, *_common_radiometry(before, after))
    except InputError as error:
        return Pairing(coregistration, refused=str(error))


def moved_sample(
    pre: StoreRef, coregistration: registration.Coregistration, *, max_pixels: int = store.SAMPLE_PIXELS
) -> xr.Dataset:
    """The bands that `change_block` compares, before normalisation, at the pixels of `store.read_sample`.

    Moved at full resolution, as blocks are: neighbours of a sample are not neighbours on the ground. Read a piece at a
    time, whose size changes no pixel.
    """
    rows, columns = store.sample_places(pre.grid, max_pixels=max_pixels)
    bands = [name for name in pre.names if name != "quality"]
    sample = {band: np.empty((len(rows), len(columns)), np.float32) for band in bands}
    shift = {"dy_px": coregistration.dy_px, "dx_px": coregistration.dx_px}
    for piece in _pieces(pre.grid):
        (y, to_y), (x, to_x) = (store.picks(*axis) for axis in zip((rows, columns), piece.slices, strict=True))
        around = piece.expand(registration.SHIFT_HALO_PX)
        at = _places(y, from_=around.y0), _places(x, from_=around.x0)
        seen = blocks.observed_bands(store.read_window(pre, around))
        for band, values in sample.items():
            values[to_y, to_x] = registration.shift_image(seen[band].values, **shift, at=at)
    return xr.Dataset({band: (("y", "x"), values) for band, values in sample.items()})


def _pieces(grid: Grid) -> Iterator[Window]:
    """The scene in squares that are read at once: blocks, unless these are larger than `PIECE_PX`."""
    side, scene = min(grid.block_px, PIECE_PX), grid.scene
    for y in range(scene.y0 // side * side, scene.y1, side):
        for x in range(scene.x0 // side * side, scene.x1, side):
            yield Window(y, x, y + side, x + side).intersect(scene)


def _places(picked: slice, *, from_: int) -> range:
    return range(picked.start - from_, picked.stop - from_, picked.step)


def keep_pairing(before: Pairing, now: Pairing, *, version: int) -> tuple[Pairing, str]:
    """The pairing to use and why; the reason is empty where the earlier one was refused."""
    if not before.usable or before.normalisation is None or before.scaling is None:
        return now, ""
    stands = (
        now.normalisation is not None
        and now.scaling is not None
        and decisions.same_light(before.normalisation, now.normalisation)
        and decisions.same_scale(before.scaling, now.scaling)
        and decisions.still_matches(before.coregistration, now.coregistration)
    )
    if not stands:
        return now, f"pairing: measured anew, pre and post lie or look otherwise than in version {version}"
    return before, f"pairing: version {version}'s shift and radiometry are kept"


def _common_radiometry(before: xr.Dataset, after: xr.Dataset) -> tuple[preprocess.Normalisation, change.ChangeScaling]:
    """How pre becomes like post, and how much ground that did not change differs then, from a sample of each."""
    bands = [str(name) for name in before.data_vars if name in after.data_vars]
    x, y = (np.stack([sample[band].values.ravel() for band in bands]) for sample in (before, after))
    normalisation = preprocess.fit_normalisation(x, y, names=bands)
    features = change.change(preprocess.normalise(before, normalisation), after)
    return normalisation, change.measure_scaling({str(n): features[n].values for n in features.data_vars})


def _coregister(grid: Grid, pre: StoreRef, post: StoreRef) -> registration.Coregistration:
    """The shift measured on a lattice of windows over the scene."""
    side = registration.choose_window_px(grid.scene.shape)
    corners = registration.coregistration_windows(grid.scene.shape, window_px=side)
    windows = [Window(y0, x0, y0 + side, x0 + side).shift(grid.scene.y0, grid.scene.x0) for y0, x0 in corners]
    pairs = zip(_greys(pre, windows), _greys(post, windows), strict=True)
    with threadpool_limits(1, user_api="blas"):  # its matrices are small: threads would wait for work, at full load
        shifts = [registration.window_shift(was, now, observed=then & here) for (was, then), (now, here) in pairs]
    return registration.combine_shifts(shifts)


def _greys(ref: StoreRef, windows: Sequence[Window]) -> Iterator[tuple[FloatArray, BoolArray]]:
    """Brightness of each window of an epoch, and where it is observed.

    Windows that overlap so much that the scene has fewer pixels than they have together are cut from the scene.
    """
    scene = ref.grid.scene
    at_once = math.prod(scene.shape) <= sum(math.prod(window.shape) for window in windows)
    whole = _grey(ref, scene) if at_once else None
    for window in windows:
        if whole is None:
            yield _grey(ref, window)
        else:
            rows_and_columns = window.shift(-scene.y0, -scene.x0).slices
            grey, observed = whole
            yield grey[rows_and_columns], observed[rows_and_columns]


def _grey(ref: StoreRef, window: Window) -> tuple[FloatArray, BoolArray]:
    wanted = (*inference.RGB, "quality")
    read = store.read_window(replace(ref, variables=tuple(v for v in ref.variables if v.name in wanted)), window)
    grey = np.mean([read[band].values for band in inference.RGB], axis=0)
    return np.asarray(grey, np.float32), np.isin(read["quality"].values, OBSERVED_QUALITY)
