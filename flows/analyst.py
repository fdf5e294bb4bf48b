"""Commands of the analyst: detect landslides, adapt a network to a scene, score a product.

What is heavy (networks, Prefect, Dask) is imported in a command, once its arguments and files are known to be good: a
mistake is answered at once. `tests/test_cli.py` holds every module of commands to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from catalog.config import RunConfig, as_keys, parse_config
from catalog.events import with_event
from catalog.folders import read_run
from catalog.schema import InputError
from flows.surroundings import check_prefect_home
from flows.terminal import CONFIG_SUFFIXES, flow_run, given, print_end, print_scores, read_config


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
    aoi: Annotated[str | None, typer.Option(help="FILE[:LAYER[,LAYER]]: the area of interest.")] = None,
    event: Annotated[str | None, typer.Option(help="event.json, a ComCat GeoJSON, or a USGS event id.")] = None,
    name: Annotated[str | None, typer.Option(help="Event id: names store and product folder.")] = None,
    sensor: Annotated[str | None, typer.Option(help="rgb8, rgbnir8, planetscope-4b, sentinel2-l2a ...")] = None,
    post_time: Annotated[str | None, typer.Option(help="Acquisition, e.g. 2018-09-11T01:30:00Z.")] = None,
    pre_time: Annotated[str | None, typer.Option(help="Acquisition of the pre-event imagery.")] = None,
    model: Annotated[str | None, typer.Option(help="Registered name, or weights file.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="FILE[:LAYER[,LAYER]]: landslides mapped here, to fine-tune the network on.")
    ] = None,
    labelled_area: Annotated[str | None, typer.Option(help="FILE[:LAYER[,LAYER]]: the ground that was mapped.")] = None,
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
    precision: Annotated[
        str | None, typer.Option(help="Of the network: fp32, bf16, or what the hardware does fastest (auto, default).")
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
        "threshold": threshold, "precision": precision, "min_area_m2": min_area, "gsd_m": gsd,
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
    config = parse_config(with_event(values))
    check_prefect_home()
    told = _check(config)
    from catalog.locks import hold_products
    from flows.detect import detect as detect_flow

    with hold_products(config.out, config.root, config.name):  # before a server is started for the run
        folder = Path(_in_flow(detect_flow, config))
    print_end(folder, told=told)
    return folder


def _check(config: RunConfig) -> tuple[str, ...]:
    """The inputs' warnings, which the flow tells; what is wrong is said within seconds, files before networks."""
    from catalog.checks import check_inputs

    inputs = check_inputs(config)
    from tasks.steps import check

    return check(config, inputs=inputs).inputs.warnings


def _in_flow(flow: Callable[[RunConfig], str], config: RunConfig) -> str:
    """Run a flow on a checked configuration; it checks again, as it does for those who start it elsewhere."""
    from tasks.artifacts import following

    with flow_run() as follow, following(follow):
        return flow(config)


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
    labelled_area: Annotated[str | None, typer.Option(help="FILE[:LAYER[,LAYER]]: the ground that was mapped.")] = None,
    name: Annotated[str | None, typer.Option(help="Event id.")] = None,
    sensor: Annotated[str | None, typer.Option(help="Of a raster: rgb8, sentinel2-l2a ...")] = None,
    model: Annotated[str | None, typer.Option(help="Network to start from.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the optimiser.")] = None,
    precision: Annotated[str | None, typer.Option(help="Of the network: fp32, bf16 or auto (default).")] = None,
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
        "sensor": sensor, "model": model, "network_steps": steps, "precision": precision, "root": root, "out": out,
    }  # fmt: skip
    values = _scene_values(scene) | given(flags)
    if workers is not None:
        values["cluster"] = {**values.get("cluster", {}), "workers": workers}
    if not (values.get("adapt") or values.get("labels")):
        raise InputError("adapt: nothing to learn from; pass --tiles FOLDER of other events, or --labels of this scene")
    config = parse_config(values)
    check_prefect_home()
    _check(config)
    from flows.train import adapt as adapt_flow

    typer.echo(_in_flow(adapt_flow, config))


def _scene_values(scene: Path) -> dict[str, Any]:
    """The configuration of a product's run, of a YAML file, or of a raster."""
    if (scene / "run.json").is_file():
        return as_keys(read_run(scene)["config"])
    if scene.suffix.lower() in CONFIG_SUFFIXES:
        return as_keys(read_config(scene))
    return {"post": (str(scene),), "name": scene.stem}


def evaluate(
    product: Annotated[Path, typer.Argument(help="Product folder, class.tif or inventory.gpkg.")],
    truth: Annotated[
        str, typer.Option(help="FILE[:LAYER[,LAYER]]: polygons; or a raster: 0, above 0 = landslide, nodata = unknown.")
    ],
    aoi: Annotated[str | None, typer.Option(help="FILE[:LAYER[,LAYER]]: score inside these polygons only.")] = None,
    valid: Annotated[str | None, typer.Option(help="Raster: score where it is above 0 only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Score a product against mapped landslides: pixels, objects by size, area."""
    from tasks.review import evaluate_product

    result = evaluate_product(product, truth=truth, aoi=aoi, valid=valid)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        print_scores(result)
