"""Train a network on labelled tiles, choose its threshold on validation tiles, write weights and model card."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from tasks import steps


@flow(name="train", flow_run_name="train {model} seed {seed}", validate_parameters=False)
def train(*, tiles: Path, out: Path, model: str, seed: int, steps_count: int, without_blocks: str) -> Path:
    """Tiles to weights with a model card; returns the weights file."""
    network = steps.fit_network(tiles, model=model, seed=seed, steps=steps_count, without_blocks=without_blocks)
    return steps.publish_network(
        network, tiles, out=out, model=model, seed=seed, steps=steps_count, without_blocks=without_blocks
    )
