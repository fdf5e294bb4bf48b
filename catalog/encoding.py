"""What a variable is in a store and in memory: scaled integers or floats here, floats with NaN there."""

from __future__ import annotations

from typing import Any

import numpy as np

from catalog.schema import StoreError, Variable


def empty_value(variable: Variable) -> float:
    """What a pixel without data is in memory."""
    return variable.nodata if variable.is_mask else np.nan


def encode(variable: Variable, values: np.ndarray[Any, Any], *, where: str) -> np.ndarray[Any, Any]:
    """The stored integers or floats of values in memory. Raises: StoreError outside the valid range: never a clip."""
    if variable.is_mask:
        return np.ascontiguousarray(values, dtype=variable.dtype)
    low, high = variable.valid_range
    finite = np.isfinite(values)
    if finite.any() and (
        np.min(values, where=finite, initial=np.inf) < low - 1e-6
        or np.max(values, where=finite, initial=-np.inf) > high + 1e-6
    ):
        got = float(values[finite].min()), float(values[finite].max())
        raise StoreError(f"{where}: {variable.name} is {got} {variable.units}; expected within {variable.valid_range}")
    if variable.dtype == "float32":
        return np.ascontiguousarray(values, dtype=np.float32)
    scaled = np.rint((values.astype(np.float64) - variable.offset) / variable.scale)
    if variable.nodata == 0:
        scaled = np.maximum(scaled, 1)  # 0 means nodata: the darkest valid value is one step
    return np.where(finite, scaled, variable.nodata).astype(variable.dtype)


def decode(variable: Variable, stored: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The values in memory of what `encode` stored; scaled variables are float32, NaN = nodata.

    Computed in float64 and rounded once, without a float64 copy: the dtype of the computation is not that of the array.
    """
    if variable.memory_dtype == stored.dtype:
        return stored
    values = np.empty(stored.shape, variable.memory_dtype)
    np.multiply(stored, variable.scale, out=values, dtype=np.float64, casting="same_kind")
    values += variable.offset
    values[stored == variable.nodata] = np.nan
    return values
