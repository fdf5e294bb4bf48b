"""The command line: results on stdout, everything else on stderr; exit status 0 done, 1 failed, 2 bad input."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from catalog.config import RunConfig, TrainRun, as_keys, as_training_keys, parse_config, parse_training
from catalog.schema import InputError, LandslideError
from flows import duty
from flows.terminal import (
    CONFIG_SUFFIXES,
    ManyFiles,
    err_console,
    flow_run,
    given,
    out_console,
    print_scores,
    progress_bars,
    read_config,
    terminal_handler,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="From satellite imagery before and after an earthquake to a landslide inventory for QGIS.",
)


@app.command(cls=ManyFiles)
def detect(
    config: Annotated[Path | None, typer.Argument(help="YAML file: the flags' names as keys.")] = None,
    post: Annotated[
        list[str] | None, typer.Option(metavar="FILE...", help="Post-event scenes: rasters, or folders as delivered.")
    ] = None,
    pre: Annotated[list[str] | None, typer.Option(metavar="FILE...", help="Pre-event scenes.")] = None,
    mask: Annotated[
        list[str] | None, typer.Option(metavar="FILE...", help="Rasters, non-zero = not observed (post).")
    ] = None,
    pre_mask: Annotated[
        list[str] | None, typer.Option(metavar="FILE...", help="Rasters, non-zero = not observed (pre).")
    ] = None,
    dem: Annotated[str | None, typer.Option(help="Elevation raster, metres.")] = None,
    dem_reproject: Annotated[bool | None, typer.Option("--dem-reproject", help="Accept a geographic DEM.")] = None,
    aoi: Annotated[str | None, typer.Option(help="Vector file: the area of interest.")] = None,
    event: Annotated[str | None, typer.Option(help="event.json, a ComCat GeoJSON, or a USGS event id.")] = None,
    name: Annotated[str | None, typer.Option(help="Event id: names store and product folder.")] = None,
    sensor: Annotated[str | None, typer.Option(help="rgb8, rgbnir8, planetscope-4b, sentinel2-l2a ...")] = None,
    post_time: Annotated[str | None, typer.Option(help="Acquisition, e.g. 2018-09-11T01:30:00Z.")] = None,
    pre_time: Annotated[str | None, typer.Option(help="Acquisition of the pre-event imagery.")] = None,
    model: Annotated[str | None, typer.Option(help="Registered name, or weights file.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="FILE[:LAYER[,LAYER]]: landslides mapped here, to fine-tune the network on.")
    ] = None,
    labelled_area: Annotated[str | None, typer.Option(help="Vector file: the ground that was mapped.")] = None,
    adapt: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="Labelled tiles of other events: adapt the network to this scene (ADANet)."
        ),
    ] = None,
    leave_out: Annotated[
        list[str] | None, typer.Option(metavar="EVENT...", help="Events among those tiles that take no part.")
    ] = None,
    network_steps: Annotated[int | None, typer.Option(help="Steps of fine-tuning or adaptation.")] = None,
    threshold: Annotated[
        str | None, typer.Option(help="Landslide probability that counts: a number, `card`, or `scene` (default).")
    ] = None,
    min_area: Annotated[float | None, typer.Option(help="Smallest landslide, m2.")] = None,
    gsd: Annotated[float | None, typer.Option(help="Pixel size of the product, m.")] = None,
    block: Annotated[int | None, typer.Option(help="Block size, px: a power of two.")] = None,
    root: Annotated[str | None, typer.Option(help="Where stores live: a folder or s3://BUCKET/PREFIX.")] = None,
    out: Annotated[str | None, typer.Option(help="Where products go: OUT/EVENT_ID/vN/.")] = None,
    cluster: Annotated[str | None, typer.Option(help="local, tcp://HOST:PORT, or a cluster class.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes of a local cluster.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the network in each worker.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print run.json in one line; the folder is the line after.")
    ] = False,
) -> None:
    """Imagery to a versioned landslide inventory. The last line on stdout is the product's folder."""
    flags = {
        "post": post, "pre": pre, "mask": mask, "pre_mask": pre_mask, "dem": dem, "dem_reproject": dem_reproject,
        "aoi": aoi, "event": event, "name": name, "sensor": sensor, "post_time_utc": post_time,
        "pre_time_utc": pre_time, "model": model, "labels": labels,
        "labelled_area": labelled_area, "adapt": adapt, "leave_out": leave_out,
        "network_steps": network_steps,
        "threshold": threshold, "min_area_m2": min_area, "gsd_m": gsd,
        "block_px": block, "root": root, "out": out,
    }  # fmt: skip
    values = as_keys(read_config(config)) | given(flags)
    placed = given({"address": cluster, "workers": workers, "threads": threads})
    stated = values.get("cluster") or {}
    if isinstance(stated, dict):
        values["cluster"] = stated | placed
    folder = run_detect(values)
    if as_json:
        typer.echo(json.dumps(json.loads((folder / "run.json").read_text(encoding="utf-8"))))
    typer.echo(folder)


def run_detect(values: dict[str, Any]) -> Path:
    """The product folder of a detection with these configuration values; the event is looked up first."""
    from catalog.events import with_event  # heavy imports wait until a command needs them
    from flows.detect import detect as detect_flow

    return Path(_in_flow(detect_flow, parse_config(with_event(values))))


def _in_flow(flow: Callable[[RunConfig], str], config: RunConfig) -> str:
    """Run a flow; inputs are checked first, so that a bad one is a message within seconds; the flow checks again."""
    from tasks.artifacts import following
    from tasks.steps import check

    check(config)
    with flow_run() as follow, following(follow):
        return flow(config)


@app.command(cls=ManyFiles)
def adapt(
    scene: Annotated[Path, typer.Argument(help="Product folder of a run, its YAML configuration, or a raster.")],
    tiles: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Labelled tiles of other events, to adapt from (ADANet).")
    ] = None,
    leave_out: Annotated[
        list[str] | None, typer.Option(metavar="EVENT...", help="Events among those tiles that take no part.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="FILE[:LAYER[,LAYER]]: landslides mapped here, to fine-tune on instead.")
    ] = None,
    labelled_area: Annotated[str | None, typer.Option(help="Vector file: the ground that was mapped.")] = None,
    name: Annotated[str | None, typer.Option(help="Event id.")] = None,
    sensor: Annotated[str | None, typer.Option(help="Of a raster: rgb8, sentinel2-l2a ...")] = None,
    model: Annotated[str | None, typer.Option(help="Network to start from.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the optimiser.")] = None,
    root: Annotated[str | None, typer.Option(help="Where stores live.")] = None,
    out: Annotated[str | None, typer.Option(help="Weights go to OUT/EVENT_ID/networks/.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes of a local cluster.")] = None,
) -> None:
    """Bring a network to a scene: fine-tuned on its labels, or adapted from other events without any (ADANet).

    `detect` with the same inputs and --adapt or --labels uses the weights that this makes. Last line on stdout: their
    file.
    """
    flags = {
        "adapt": tiles, "leave_out": leave_out, "labels": labels, "labelled_area": labelled_area, "name": name,
        "sensor": sensor, "model": model, "network_steps": steps, "root": root, "out": out,
    }  # fmt: skip
    values = _scene_values(scene) | given(flags)
    if workers is not None:
        values["cluster"] = {**values.get("cluster", {}), "workers": workers}
    if not (values.get("adapt") or values.get("labels")):
        raise InputError("adapt: nothing to learn from; pass --tiles FOLDER of other events, or --labels of this scene")
    config = parse_config(values)
    from flows.train import adapt as adapt_flow

    typer.echo(_in_flow(adapt_flow, config))


def _scene_values(scene: Path) -> dict[str, Any]:
    """The configuration of a product's run, of a YAML file, or of a raster."""
    if (scene / "run.json").is_file():
        return as_keys(json.loads((scene / "run.json").read_text(encoding="utf-8"))["config"])
    if scene.suffix.lower() in CONFIG_SUFFIXES:
        return as_keys(read_config(scene))
    return {"post": (str(scene),), "name": scene.stem}


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="Folder for pre.tif post.tif dem.tif event.json truth.gpkg.")],
    size: Annotated[int, typer.Option(help="Width and height, px.")] = 2048,
    gsd: Annotated[float, typer.Option(help="Pixel size, m.")] = 10.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    sensor: Annotated[str, typer.Option(help="Sensor whose pixels are written.")] = "rgb8",
) -> None:
    """A simulated earthquake with landslides, for demonstration and tests. Last line on stdout: the folder."""
    from tasks.review import simulate_event

    with progress_bars() as follow:
        paths = simulate_event(out, size_px=size, gsd_m=gsd, seed=seed, sensor=sensor, report=follow)
    for path in paths.values():
        err_console.print(f"  {path}", markup=False, soft_wrap=True)
    typer.echo(out)


@app.command()
def evaluate(
    product: Annotated[Path, typer.Argument(help="Product folder, class.tif or inventory.gpkg.")],
    truth: Annotated[str, typer.Option(help="FILE[:LAYER[,LAYER]]: polygons, or a raster with > 0 = landslide.")],
    aoi: Annotated[Path | None, typer.Option(help="Vector file: score inside it only.")] = None,
    valid: Annotated[Path | None, typer.Option(help="Raster: score where it is non-zero only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Score a product against mapped landslides: pixels, objects by size, area."""
    from tasks.review import evaluate_product

    result = evaluate_product(product, truth=truth, aoi=aoi, valid=valid)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        print_scores(result)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for scene, store and product.")] = Path("demo"),
    size: Annotated[int, typer.Option(help="Width and height of the simulated scene, px.")] = 1536,
) -> None:
    """Simulate an earthquake, detect its landslides, score them: the main job on one machine."""
    from tasks.review import evaluate_product, simulate_event

    folder = out / f"scene-{size}"
    names = {"pre": "pre.tif", "post": "post.tif", "dem": "dem.tif", "event": "event.json", "truth": "truth.gpkg"}
    scene = {role: folder / name for role, name in names.items()}
    if all(path.is_file() for path in scene.values()):
        err_console.print(f"using the scene of an earlier demo: {folder}", markup=False)
    else:
        with progress_bars() as follow:
            scene = simulate_event(folder, size_px=size, gsd_m=10.0, seed=7, sensor="rgb8", report=follow)
    values = {
        "post": [str(scene["post"])], "pre": [str(scene["pre"])], "dem": str(scene["dem"]),
        "event": str(scene["event"]), "sensor": "rgb8", "root": str(out / "store"), "out": str(out / "products"),
        "block_px": 512,
    }  # fmt: skip
    product = run_detect(values)
    result = evaluate_product(product, truth=f"{scene['truth']}:landslides", aoi=None, valid=None)
    out_console.print("Simulated truth: these scores say that the pipeline works, not how it does on a real event.")
    print_scores(result)
    typer.echo(product)


@app.command()
def models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """The registered networks: bands, pixel sizes, weights, licence, metrics."""
    from tasks.review import list_models

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


@app.command()
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
    leave_out: Annotated[
        str | None,
        typer.Option(metavar="EVENTS", show_default="none", help="Events (id blocks) that take no part, e.g. A,B."),
    ] = None,
    hold_out: Annotated[
        str | None,
        typer.Option(metavar="EVENTS", show_default="the data set's split", help="Events that validate, e.g. D."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(show_default=_default("seed"), help="The same seed gives the same weights.")
    ] = None,
    steps: Annotated[int | None, typer.Option(show_default=_default("steps"), help="Steps of the optimiser.")] = None,
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
        "tiles": tiles, "out": out, "model": model, "leave_out": leave_out,
        "hold_out": hold_out, "landslide_share": landslide_share, "seed": seed, "steps": steps, "batch": batch,
        "crop_px": crop, "learning_rate": learning_rate, "losses": loss, "epoch_steps": epoch_steps,
        "patience": patience,
    }  # fmt: skip
    typer.echo(run_train(as_training_keys(read_config(config)) | given(flags)))


def run_train(values: dict[str, Any]) -> Path:
    """The weights of a training with these configuration values; what is there already is not trained again."""
    from tasks import learning

    run = parse_training(values)
    prepared = learning.prepare(run)
    if prepared.finished:
        err_console.print(f"{prepared.weights} is trained already: nothing to do", markup=False, soft_wrap=True)
        return prepared.weights
    from flows.train import train as train_flow

    with flow_run() as follow:
        return Path(train_flow(run, follow=follow))


for command in (duty.respond, duty.watch, duty.up):
    app.command()(command)


def main() -> None:
    """Entry point: a bad input is one clear message and status 2, any other failure of ours status 1."""
    logging.basicConfig(level=logging.WARNING, handlers=[terminal_handler()])
    try:
        app()
    except InputError as error:
        err_console.print("error:", str(error), markup=False, soft_wrap=True)
        sys.exit(2)
    except LandslideError as error:
        err_console.print("failed:", str(error), markup=False, soft_wrap=True)
        sys.exit(1)
