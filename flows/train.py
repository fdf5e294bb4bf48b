"""Train a network on labelled tiles, choose its threshold on validation tiles, write weights and model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from models.training import TrainConfig
from tasks import review

REPORT_EVERY = 25


@flow(name="train", flow_run_name="train {model}, seed {config.seed}", validate_parameters=False)
def train(*, tiles: Path, out: Path, model: str, config: TrainConfig, without_blocks: str) -> Path:
    """Tiles to weights with a model card; returns the weights file."""
    log = get_run_logger()
    artifact: Any = create_progress_artifact(progress=0.0, key="training", description="Training: steps")

    def on_step(step: int, loss: float) -> None:
        if step % REPORT_EVERY == 0 or step == config.steps:
            log.info("step %d of %d, loss %.3f", step, config.steps, loss)
            update_progress_artifact(artifact, progress=100.0 * step / config.steps)

    network = review.fit_network(tiles, model=model, config=config, without_blocks=without_blocks, on_step=on_step)
    card = review.publish_network(network, tiles, out=out, model=model, config=config, without_blocks=without_blocks)
    log.info("threshold %.2f, %s", card.threshold, card.metrics)
    return out / f"{card.name}.safetensors"
