"""What every command shares: consoles, progress, file options, configuration files, a flow run, its end, log lines."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from typer.core import TyperCommand

from catalog.config import SEVERAL
from catalog.schema import InputError, LandslideError
from flows.surroundings import check_prefect_home

out_console = Console(highlight=False, soft_wrap=True, emoji=False)
SERVER_START_S = 180
"""A busy machine needs longer than Prefect's 20 s to start its embedded server."""

SCORES = ("precision", "recall", "f1", "iou", "mcc")
err_console = Console(stderr=True, highlight=False, emoji=False)

FILE_OPTIONS: Final = tuple(f"--{key.replace('_', '-')}" for key in SEVERAL)
CONFIG_SUFFIXES: Final = (".yaml", ".yml")

Follow = Callable[[str, int, int], None]
"""(what, done, total): how far long work is."""


class ManyFiles(TyperCommand):
    """A command whose file options take every word up to the next option, so that shell globs work."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - click's, or typer's copy of it
        """Parse `--post a.tif b.tif` as `--post a.tif --post b.tif`."""
        return super().parse_args(ctx, spread_files(args))


def spread_files(words: Sequence[str]) -> list[str]:
    """The words with each file option repeated before every file; a YAML file after the first is the configuration.

    >>> spread_files(["--post", "a.tif", "b.tif", "--pre", "p.tif", "run.yaml"])
    ['--post', 'a.tif', '--post', 'b.tif', '--pre', 'p.tif', 'run.yaml']
    """
    spread: list[str] = []
    option, has_value = None, False
    for place, word in enumerate(words):
        if word == "--":
            return [*spread, *words[place:]]
        if word.startswith("-"):
            name, equals, _ = word.partition("=")
            option, has_value = (name if name in FILE_OPTIONS else None), bool(equals)
        elif option and has_value and not word.lower().endswith(CONFIG_SUFFIXES):
            spread.append(option)
        else:
            has_value = True
        spread.append(word)
    return spread


@contextmanager
def progress() -> Iterator[Follow]:
    """How far long work is, on stderr: bars in a terminal, a line now and then in a file or pipe."""
    if not err_console.file.isatty():
        yield progress_lines()
        return
    bars: dict[str, TaskID] = {}
    columns = (TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err_console) as shown:

        def follow(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = shown.add_task(what, total=total)
            shown.update(bars[what], completed=done, total=total)

        yield follow


def progress_lines() -> Follow:
    """A line for the first of each thing that is followed, for each tenth of it, and for its end: plain text."""
    tenths: dict[str, int] = {}

    def follow(what: str, done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if tenths.get(what, -1) < tenth:
            tenths[what] = tenth
            line = f"{datetime.now():%H:%M:%S} {what}: {done}/{total}"
            err_console.print(line, markup=False, soft_wrap=True)

    return follow


def check_folder(folder: str, *, what: str) -> None:
    """Nothing where there is such a folder. Raises: InputError."""
    if not Path(folder).is_dir():
        raise InputError(f"{what} {folder}: got no folder; expected one with labelled tiles; check the path")


def read_config(path: Path | None) -> dict[str, Any]:
    """The keys and values of a YAML file; none without one. Raises: InputError when it cannot be read."""
    if path is None:
        return {}
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"configuration {path}: cannot be read ({error}); expected a YAML file") from error
    if not isinstance(values, dict):
        raise InputError(f"configuration {path}: got {type(values).__name__}; expected keys and values")
    return values


def given(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given."""
    return {key: value for key, value in flags.items() if value is not None}


@contextmanager
def flow_run() -> Iterator[Follow]:
    """Progress on stderr; without a Prefect server one is started for the run.

    Raises: InputError when Prefect's home cannot be written.
    """
    check_prefect_home()
    from prefect.settings import (
        PREFECT_SERVER_ANALYTICS_ENABLED,
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
        temporary_settings,
    )

    server = {
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: SERVER_START_S,
        PREFECT_SERVER_ANALYTICS_ENABLED: False,
    }
    with progress() as follow, temporary_settings(server):
        yield follow


def print_scores(result: dict[str, Any]) -> None:
    """Pixel scores, object detection by size class and area error as tables on stdout."""
    for sentence in result["read"]:
        out_console.print(sentence, markup=False)
    pixels = Table(title="Landslide class, observed pixels", title_justify="left")
    for key in SCORES:
        pixels.add_column(key, justify="right")
    pixels.add_row(*(_figure(result["pixels"][key]) for key in SCORES))
    out_console.print(pixels)
    if "objects" not in result:
        return
    table = Table(title="Mapped landslides found, by size", title_justify="left")
    for key in ("size, m2", "mapped", "found", "rate"):
        table.add_column(key, justify="right")
    for name, row in result["objects"]["by_size_m2"].items():
        table.add_row(name, *(_figure(value) for value in row.values()))
    out_console.print(table)
    area = result["area"]
    out_console.print(
        f"False alarms: {result['objects']['false_alarms']} of {result['objects']['predicted']} landslides. "
        f"Area: {area['predicted_m2'] / 1e6:.3f} km2 found, {area['truth_m2'] / 1e6:.3f} km2 mapped."
    )


def _figure(value: float | int | None) -> str:
    if value is None:
        return "undefined"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def print_end(folder: Path, *, told: Collection[str] = ()) -> None:
    """What a detection came to, on stderr: landslides, their area and its range, what was not seen, where to read on.

    told : warnings that were given already.
    """
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    head = run["headline"]
    low, high = (f"{area / 1e6:.3f}" for area in head["area_range_m2"])
    classes = ", ".join(f"{head['by_confidence'][name]} {name}" for name in ("high", "medium", "low"))
    unseen = max(head["scene_m2"] - head["observed_m2"], 0.0)
    lines = [
        *(f"warning: {warning}" for warning in run["warnings"] if warning not in told),
        f"{head['count']} landslides (confidence: {classes}), {head['area_m2'] / 1e6:.3f} km2; {low} to {high} with "
        "each outline half a pixel further in or out",
        f"not seen: {unseen / 1e6:.3f} km2 of {head['scene_m2'] / 1e6:.3f} km2 ({unseen / head['scene_m2']:.0%})",
        f"report: {folder / 'report.html'}",
    ]
    for line in lines:
        err_console.print(line, markup=False, soft_wrap=True)


def terminal_handler() -> logging.Handler:
    """Log lines on stderr, without what Prefect's engine says of states: how a run ended is said once, by the command.

    What a flow itself logs is shown; a Prefect server gets every line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    handler.addFilter(_is_news)
    return handler


LATE_WORKER: Final = "Worker process still alive"
"""What Dask says of a worker that a busy machine ends late, before it ends it."""


def _is_news(line: logging.LogRecord) -> bool:
    """False for what Prefect's engine hands on to the command or says below WARNING, and for late workers of Dask."""
    place = Path(line.pathname)
    if line.name == "distributed.nanny" and line.getMessage().startswith(LATE_WORKER):
        return False
    if "prefect" not in place.parent.parts:
        return True
    error = line.exc_info[1] if line.exc_info else None
    of_engine = place.name.endswith("_engine.py") and line.levelno >= logging.ERROR
    handed_on = of_engine and (error is None or isinstance(error, LandslideError))
    return line.levelno >= logging.WARNING and not handed_on
