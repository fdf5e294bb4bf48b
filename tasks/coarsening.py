"""Means of square cells of a raster that comes in pieces, none of which is kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from catalog.schema import FloatArray


class BlockMeans:
    """Sums and counts of cells of `factor` x `factor` pixels, from the top-left corner; each pixel is added once."""

    def __init__(self, shape: tuple[int, int], *, factor: int) -> None:
        self._factor = factor
        cells = tuple(-(-side // factor) for side in shape)
        self._total: NDArray[np.float64] = np.zeros(cells)
        self._count: NDArray[np.float64] = np.zeros(cells)

    def add(self, piece: FloatArray, *, origin: tuple[int, int]) -> None:
        """Take a piece (y, x) in, NaN = nothing there; origin : row and column of its first pixel."""
        if not piece.size:
            return
        seen = np.isfinite(piece)
        cells = tuple(slice(at // self._factor, (at + n - 1) // self._factor + 1)
                      for at, n in zip(origin, piece.shape, strict=True))  # fmt: skip
        self._total[cells] += self._summed(np.where(seen, piece, 0.0).astype(np.float64), origin)
        self._count[cells] += self._summed(seen.astype(np.float64), origin)

    def _summed(self, pixels: NDArray[np.float64], origin: tuple[int, int]) -> NDArray[np.float64]:
        """Sums of the cells that a piece meets."""
        for axis, (at, size) in enumerate(zip(origin, pixels.shape, strict=True)):
            starts = np.arange(-(at % self._factor), size, self._factor).clip(0)
            pixels = np.add.reduceat(pixels, starts, axis=axis)
        return pixels

    def means(self) -> FloatArray:
        """(y, x) float32 of the cells; NaN where no pixel had a value."""
        with np.errstate(invalid="ignore"):
            return np.asarray(np.where(self._count > 0, self._total / self._count, np.nan), dtype=np.float32)
