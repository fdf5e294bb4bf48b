"""What a training leaves beside its weights: scores by epoch, as JSON lines and as a plot, and reliability."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from catalog.files import write_whole

Row = Mapping[str, float]
"""An epoch: step, loss, scores on validation tiles, seconds."""

DPI: Final = 150
ACCENT, INK, GRID = "#a31a5c", "#1b1f24", "#e3e5e8"
COLOURS: Final = {"before": "#8a939c", "after": ACCENT}
"""Colour by the state of calibration."""


def read_epochs(path: Path, *, until_step: int) -> list[Row]:
    """The epochs of `metrics.jsonl` up to a step: later ones were not saved and come again. None without a file."""
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["step"] <= until_step]


def write_epochs(path: Path, rows: Sequence[Row]) -> None:
    """`metrics.jsonl`, one line an epoch; written whole, so that a kill leaves no half line."""
    write_whole(path, "".join(json.dumps(dict(row)) + "\n" for row in rows))


def draw_training(path: Path, rows: Sequence[Row]) -> None:
    """`training.png`: loss and validation F1 by step."""
    figure, (above, below) = _figure(rows=2, size=(6.4, 5.4))
    steps = [row["step"] for row in rows]
    for axes, key, label, colour in ((above, "loss", "training loss", INK), (below, "f1", "validation F1", ACCENT)):
        axes.plot(steps, [row[key] for row in rows], color=colour, linewidth=1.6, marker="o", markersize=3)
        axes.set(ylabel=label, xlim=(0, None), ylim=(0, None))
    best = max(rows, key=lambda row: row["f1"])
    below.annotate(f"best {best['f1']:.3f}", (best["step"], best["f1"]), xytext=(0, 5), textcoords="offset points",
                   ha="right", fontsize=9, color=INK)  # fmt: skip
    below.set(xlabel="step", ylim=(0, 1))
    figure.savefig(path, dpi=DPI, metadata={"Software": None})


def draw_reliability(path: Path, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """`reliability.png`: the share of landslide pixels against what was predicted, and how many pixels there are.

    tables : bins (probability, frequency, pixels) by name, `before` and `after` calibration.
    """
    figure, (above, below) = _figure(rows=2, size=(5.4, 6.8), heights=(3, 1))
    above.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label="perfect")
    for name, bins in tables.items():
        probability = [b["probability"] for b in bins]
        above.plot(probability, [b["frequency"] for b in bins], color=COLOURS[name], linewidth=1.6, marker="o",
                   markersize=4, label=f"{name} calibration")  # fmt: skip
        below.plot(probability, [b["pixels"] for b in bins], color=COLOURS[name], linewidth=1.2, marker="o",
                   markersize=3)  # fmt: skip
    above.set(ylabel="share of landslide pixels", xlim=(0, 1), ylim=(0, 1))
    above.legend(frameon=False, fontsize=9, loc="upper left")
    below.set(xlabel="predicted probability", ylabel="pixels", yscale="log", xlim=(0, 1))
    figure.savefig(path, dpi=DPI, metadata={"Software": None})


def _figure(
    *, rows: int, size: tuple[float, float], heights: Sequence[float] | None = None
) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, 1, sharex=True, height_ratios=heights)
    for axes in panels:
        axes.grid(True, color=GRID, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    return figure, panels
