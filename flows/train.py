"""Train a network on labelled tiles, average trainings, bring one to a scene, score a product: with their artifacts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from prefect import get_run_logger, runtime, tags
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from catalog.config import AverageRun, RunConfig, TrainRun, parse_average, parse_config, parse_training
from catalog.locks import hold_products
from flows.cluster import all_threads, dask_client
from flows.guarded import guarded_flow
from tasks import averaging, learning, review, steps

REPORT_EVERY: Final = 25
Follow = Callable[[str, int, int], None]
"""(what, done, total): how far it is."""


def _told(parameter: str) -> dict[str, Any]:
    """Keys and values of a flow's configuration, checked already or not."""
    told = runtime.flow_run.parameters[parameter]
    return told if isinstance(told, dict) else dict(told.model_dump())


def _run_name() -> str:
    values = _told("run")
    return f"{values.get('model', 'default model')} · seed {values.get('seed', 0)}"


def _mean_name() -> str:
    values = _told("run")
    return f"mean of {len(values.get('weights', ()))} · {values.get('out', 'no folder')}"


def _scene_name() -> str:
    values = _told("config")
    return f"{values.get('name') or 'event'} · {values.get('model', 'default model')}"


@guarded_flow(name="adapt", flow_run_name=_scene_name)
def adapt(config: RunConfig | dict[str, Any]) -> str:
    """The weights that `detect` would use for this scene: fine-tuned on its labels, or adapted without any.

    Args:
        config: Keys and values of a detection, with `labels` or `adapt`.

    Raises: InputError for inputs that cannot be worked with.

    """
    config = parse_config(config) if isinstance(config, dict) else config
    with hold_products(config.out, config.root, config.name):
        prepared = steps.check(config)
        for warning in prepared.inputs.warnings:
            get_run_logger().warning("%s", warning)
        with tags(f"event:{config.name}", f"model:{prepared.card.name}"), dask_client(config.cluster) as client:
            post, _ = steps.ingest(prepared, prepared.inputs.post, client=client)
            settled = steps.settle_network(prepared, post, client=client, threads=all_threads(config.cluster))
    get_run_logger().info("network: %s", settled.prepared.scenario)
    return str(settled.prepared.weights)


@guarded_flow(name="evaluate", flow_run_name="{product}")
def evaluate(product: Path, truth: str, aoi: str | None = None, valid: str | None = None) -> dict[str, Any]:
    """Scores of a product against mapped landslides, as a table in the Prefect UI too.

    Raises: InputError when product or reference cannot be read.
    """
    result = review.evaluate_product(Path(product), truth=truth, aoi=aoi, valid=valid)
    create_table_artifact(table=[result["pixels"]], key="scores", description="Landslide class, observed pixels")
    return result


@guarded_flow(name="train", flow_run_name=_run_name)
def train(run: TrainRun | dict[str, Any], *, follow: Follow | None = None) -> str:
    """Tiles to weights with a model card; returns the weights file. A killed training goes on at its last epoch.

    Args:
        run: Keys and values as in a training's configuration file: tiles, out, model, steps ...
        follow: For callers in Python: hears of every step. Leave it empty.

    Raises: InputError for inputs that cannot be worked with.

    """
    log = get_run_logger()
    prepared = learning.prepare(parse_training(run) if isinstance(run, dict) else run)
    if prepared.finished:
        log.info("%s is trained already", prepared.weights)
        return str(prepared.weights)
    if prepared.step:
        log.info("going on at step %d of %d", prepared.step, prepared.config.steps)
    network, rows = learning.train_network(prepared, on_step=_reporter(prepared, follow), on_epoch=_show_epochs)
    card = learning.publish_network(prepared, network, rows)
    log.info("threshold %.2f, %s", card.threshold, card.metrics)
    return str(prepared.weights)


@guarded_flow(name="average", flow_run_name=_mean_name)
def average(run: AverageRun | dict[str, Any]) -> str:
    """The mean of several trainings with a model card of its own; returns the weights file.

    Args:
        run: Keys and values: weights, tiles, out, leave_out, hold_out.

    Raises: InputError for inputs that cannot be worked with.

    """
    log = get_run_logger()
    prepared = averaging.prepare(parse_average(run) if isinstance(run, dict) else run)
    if prepared.finished:
        log.info("%s is averaged already", prepared.weights)
        return str(prepared.weights)
    card = averaging.publish_mean(prepared)
    log.info("threshold %.2f, %s", card.threshold, card.metrics)
    return str(prepared.weights)


def _reporter(prepared: learning.Prepared, follow: Follow | None) -> learning.OnStep:
    """Steps as a progress artifact and on the terminal."""
    steps = prepared.config.steps
    artifact: Any = create_progress_artifact(
        progress=100.0 * prepared.step / steps, key="training", description=f"Training {prepared.run.model}: steps"
    )

    def report(step: int, _loss: float) -> None:
        if follow is not None:
            follow("training steps", step, steps)
        if step % REPORT_EVERY == 0 or step == steps:
            update_progress_artifact(artifact, progress=100.0 * step / steps)

    return report


def _show_epochs(rows: Sequence[Mapping[str, float]]) -> None:
    """The epochs so far as a table in the Prefect UI, and the last one in the log."""
    last = rows[-1]
    get_run_logger().info("step %d, loss %.3f, validation F1 %.3f", last["step"], last["loss"], last["f1"])
    lines = [f"| {row['step']} | {row['loss']:.4f} | {row['f1']:.3f} | {row['iou']:.3f} |" for row in rows]
    table = "\n".join(["| step | loss | validation F1 | IoU |", "|---|---|---|---|", *lines])
    create_markdown_artifact(table, key="training-epochs", description="Training: epochs so far")
