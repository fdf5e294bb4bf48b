"""How pre-event imagery is brought to the post-event one: its shift, its radiometry, the scale of change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from catalog import store
from catalog.grid import Grid
from catalog.schema import OBSERVED_QUALITY, InputError
from catalog.store import StoreRef
from tasks import blocks, change, decisions, inference, preprocess, registration
from tasks.story import Pairing


def pair_epochs(grid: Grid, pre: StoreRef, post: StoreRef) -> Pairing:
    """How pre is moved and normalised to post, or why the two cannot be compared pixel by pixel."""
    coregistration = _coregister(grid, pre, post)
    if coregistration.verdict() == "refuse":
        return Pairing(coregistration, refused=coregistration.sentence())
    before, after = (blocks.observed_bands(store.read_sample(ref)) for ref in (pre, post))
    try:
        return Pairing(coregistration, *_common_radiometry(before, after))
    except InputError as error:
        return Pairing(coregistration, refused=str(error))


def keep_pairing(before: Pairing, now: Pairing, *, version: int) -> tuple[Pairing, str]:
    """The pairing to use and why; the reason is empty where the earlier one was refused."""
    if not before.usable or before.normalisation is None:
        return now, ""
    stands = now.normalisation is not None and decisions.same_light(before.normalisation, now.normalisation)
    if not stands or not decisions.still_matches(before.coregistration, now.coregistration):
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
    shifts = []
    for y0, x0 in registration.coregistration_windows(grid.scene.shape, window_px=side):
        window = replace(grid.scene, y0=grid.scene.y0 + y0, x0=grid.scene.x0 + x0)
        window = replace(window, y1=window.y0 + side, x1=window.x0 + side)
        before, after = (store.read_window(ref, window) for ref in (pre, post))
        observed = np.isin(before["quality"].values, OBSERVED_QUALITY) & np.isin(
            after["quality"].values, OBSERVED_QUALITY
        )
        shifts.append(registration.window_shift(_grey(before), _grey(after), observed=observed))
    return registration.combine_shifts(shifts)


def _grey(scene: Any) -> np.ndarray[Any, Any]:  # noqa: ANN401 - xr.Dataset
    return np.asarray(np.mean([scene[band].values for band in inference.RGB], axis=0), dtype=np.float32)
