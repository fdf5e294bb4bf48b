"""The main job: imagery in, a versioned landslide inventory out."""

from __future__ import annotations

from typing import Any

from prefect import flow, runtime, tags
from prefect.task_runners import ThreadPoolTaskRunner

from catalog.config import RunConfig, parse_config
from flows.cluster import dask_client, network_threads
from tasks import steps


def _run_name() -> str:
    config = runtime.flow_run.parameters["config"]
    values = config if isinstance(config, dict) else config.model_dump()
    return f"{values['name']} · {values.get('sensor', 'rgb8')} · {values.get('model', 'default model')}"


@flow(
    name="detect",
    flow_run_name=_run_name,
    task_runner=ThreadPoolTaskRunner(max_workers=6),  # type: ignore[arg-type]
    validate_parameters=False,
)
def detect(config: RunConfig | dict[str, Any]) -> str:
    """Landslide inventory of an event; returns the product folder.

    Inputs are checked before any work. Finished blocks of an earlier, interrupted run are not done again.

    Raises: InputError for inputs that cannot be worked with.
    """
    config = parse_config(config) if isinstance(config, dict) else config
    prepared = steps.check(config)
    with tags(f"event:{config.name}", f"model:{prepared.card.name}"), dask_client(config.cluster) as client:
        return _story(prepared, client=client, threads=network_threads(config.cluster))


def _story(prepared: steps.Prepared, *, client: Any, threads: int) -> str:  # noqa: ANN401 - distributed.Client
    inputs = prepared.inputs
    on = {"client": client}
    run = steps.Run(prepared)

    post = steps.ingest.submit(prepared, inputs.post, **on)
    pre = steps.ingest.submit(prepared, inputs.pre, **on) if inputs.pre else None
    elevation = steps.ingest_elevation.submit(prepared, **on) if inputs.dem else None
    run.post = run.keep(post)

    pending = {"probability": steps.probability.submit(prepared, run.post, threads=threads, **on)}
    if elevation:
        run.elevation = run.keep(elevation)
        pending["terrain"] = steps.terrain_features.submit(prepared, run.elevation, **on)
        pending["hydrology"] = steps.hydrology.submit(prepared, run.elevation, **on)
    if pre:
        run.pre = run.keep(pre)
        run.pairing = steps.pair(prepared, run.pre, run.post)
        if run.pairing.usable:
            pending["change"] = steps.change_features.submit(
                prepared, run.pre, run.post, pairing=run.pairing, **on
            )
    run.stores = {name: run.keep(future) for name, future in pending.items()}

    inventory = steps.inventory(run, **on)
    return steps.publish(run, inventory, **on)
