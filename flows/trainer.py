"""Commands of those who train: which networks there are, a training, the mean of several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from catalog.config import TrainRun, as_training_keys, parse_average, parse_training
from flows.surroundings import check_prefect_home
from flows.terminal import check_folder, err_console, flow_run, given, out_console, read_config


def models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """The registered networks: bands, pixel sizes, weights, licence, metrics."""
    from tasks.networks import list_models

    rows = list_models()
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table(title="Networks", title_justify="left", show_lines=True)
    table.add_column("name", no_wrap=True)
    table.add_column("what it is and knows", overflow="fold")
    keys = ("bands", "gsd_m", "parameters", "weights", "licence", "metrics")
    for row in rows:
        told = [row["summary"], *(f"{key.removesuffix('_m')}: {row[key]}" for key in keys)]
        table.add_row(row["name"], "\n".join(told))
    out_console.print(table, soft_wrap=False)


def _default(key: str) -> str:
    """A default of a training, as `--help` shows it."""
    return str(TrainRun.model_fields[key].default)


def train(
    config: Annotated[Path | None, typer.Argument(help="YAML file: the flags' names as keys.")] = None,
    tiles: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Labelled tiles: Landslide4Sense in either form, pairs of GeoTIFFs, or a labelled scene.",
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder for weights, model card, metrics and plots.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default=_default("model"), help="A network of `landslidenet models`."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHTS",
            show_default="ImageNet's encoder",
            help="Go on from trained weights: a name of `landslidenet models` or a .safetensors file with its card.",
        ),
    ] = None,
    leave_out: Annotated[
        str | None,
        typer.Option(metavar="EVENTS", show_default="none", help="Events (id blocks) that take no part, e.g. A,B."),
    ] = None,
    hold_out: Annotated[
        str | None,
        typer.Option(metavar="EVENTS", show_default="the data set's split", help="Events that validate, e.g. D."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(show_default=_default("seed"), help="The same seed and threads give the same weights.")
    ] = None,
    steps: Annotated[int | None, typer.Option(show_default=_default("steps"), help="Steps of the optimiser.")] = None,
    precision: Annotated[
        str | None, typer.Option(show_default=_default("precision"), help="Number format: fp32, bf16 or auto.")
    ] = None,
    batch: Annotated[int | None, typer.Option(show_default=_default("batch"), help="Crops in a step.")] = None,
    crop: Annotated[
        int | None,
        typer.Option(metavar="PX", show_default=_default("crop_px"), help="Side of a crop: a multiple of 16."),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(show_default=_default("learning_rate"), help="Highest of the one-cycle schedule.")
    ] = None,
    loss: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=WEIGHT",
            show_default="boundary=1 dice=1",
            help="Repeat to combine: boundary (weighs outlines), boundary-published, cross-entropy, dice, focal.",
        ),
    ] = None,
    landslide_share: Annotated[
        float | None,
        typer.Option(show_default=_default("landslide_share"), help="Share of crops laid around a landslide."),
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(
            show_default=_default("noise"),
            help="Largest share of a crop's pixels made black or white (salt and pepper).",
        ),
    ] = None,
    cloud: Annotated[
        float | None,
        typer.Option(show_default=_default("cloud"), help="Share of crops under painted cloud and its shadow."),
    ] = None,
    epoch_steps: Annotated[
        int | None,
        typer.Option(show_default=_default("epoch_steps"), help="Steps between validations; each saves the state."),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            metavar="EPOCHS",
            show_default="never",
            help="Stop after so many without a better validation F1, and take the best weights.",
        ),
    ] = None,
) -> None:
    """Train a network on labelled tiles. The last line on stdout is the weights file.

    A training that was killed goes on at its last epoch when the same command is run again.
    """
    flags = {
        "tiles": tiles, "out": out, "model": model, "start": start, "leave_out": leave_out,
        "hold_out": hold_out, "landslide_share": landslide_share, "seed": seed, "steps": steps,
        "precision": precision, "batch": batch,
        "crop_px": crop, "learning_rate": learning_rate, "losses": loss, "noise": noise, "cloud": cloud,
        "epoch_steps": epoch_steps, "patience": patience,
    }  # fmt: skip
    typer.echo(run_train(as_training_keys(read_config(config)) | given(flags)))


def run_train(values: dict[str, Any]) -> Path:
    """The weights of a training with these configuration values; what is there already is not trained again."""
    run = parse_training(values)
    check_folder(run.tiles, what="tiles")
    from tasks import learning

    prepared = learning.prepare(run)
    if prepared.finished:
        err_console.print(f"{prepared.weights} is trained already: nothing to do", markup=False, soft_wrap=True)
        return prepared.weights
    check_prefect_home()
    from flows.train import train as train_flow

    with flow_run() as follow:
        return Path(train_flow(run, follow=follow))


def average(
    weights: Annotated[
        list[str],
        typer.Argument(metavar="WEIGHTS...", help="Two or more trainings on from the same weights: files or folders."),
    ],
    tiles: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="The tiles of those trainings: they judge the mean.")
    ] = None,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Folder for weights, model card and plot.")] = None,
    leave_out: Annotated[
        str | None, typer.Option(metavar="EVENTS", show_default="none", help="As in the trainings.")
    ] = None,
    hold_out: Annotated[
        str | None, typer.Option(metavar="EVENTS", show_default="the data set's split", help="As in the trainings.")
    ] = None,
) -> None:
    """Average trainings on from the same weights, with a card of its own. The last line is the weights file."""
    flags = {"weights": weights, "tiles": tiles, "out": out, "leave_out": leave_out, "hold_out": hold_out}
    typer.echo(run_average(given(flags)))


def run_average(values: dict[str, Any]) -> Path:
    """The mean weights of these configuration values; what is there already is not made again."""
    run = parse_average(values)
    check_folder(run.tiles, what="tiles")
    from tasks import averaging

    prepared = averaging.prepare(run)
    if prepared.finished:
        err_console.print(f"{prepared.weights} is averaged already: nothing to do", markup=False, soft_wrap=True)
        return prepared.weights
    check_prefect_home()
    from flows.train import average as average_flow

    with flow_run():
        return Path(average_flow(run))
