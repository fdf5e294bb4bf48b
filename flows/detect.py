"""The main job: imagery in, a versioned landslide inventory out."""

from __future__ import annotations

from typing import Any

from prefect import get_run_logger, runtime, tags
from prefect.task_runners import ThreadPoolTaskRunner

from catalog.config import RunConfig, parse_config
from catalog.events import with_event
from catalog.locks import hold_products
from flows.cluster import all_threads, dask_client, network_threads
from flows.guarded import guarded_flow
from tasks import steps
from tasks.stages import share_one_heap
from tasks.story import Prepared, Run


def _run_name() -> str:
    config = runtime.flow_run.parameters["config"]
    values = config if isinstance(config, dict) else config.model_dump()
    name, sensor = values.get("name") or "event", values.get("sensor", "rgb8")
    return f"{name} · {sensor} · {values.get('model', 'default model')}"


@guarded_flow(
    name="detect",
    flow_run_name=_run_name,
    task_runner=ThreadPoolTaskRunner(max_workers=6),
)
def detect(config: RunConfig | dict[str, Any]) -> str:
    """Landslide inventory of an event; returns the product folder.

    Inputs are checked before any work. Finished blocks of an earlier, interrupted run are not done again.

    Args:
        config: Keys and values as in a configuration file: name, post, pre, sensor, dem, aoi, event, root, out ...

    Raises: InputError for inputs that cannot be worked with; Busy, at once, while another run is at work on the event.

    """
    share_one_heap()
    config = parse_config(with_event(config)) if isinstance(config, dict) else config
    with hold_products(config.out, config.root, config.name):
        prepared = steps.check(config)
        for warning in prepared.inputs.warnings:
            get_run_logger().warning("%s", warning)
        with tags(f"event:{config.name}", f"model:{prepared.card.name}"), dask_client(config.cluster) as client:
            return _story(prepared, client=client)


def _story(prepared: Prepared, *, client: Any) -> str:  # noqa: ANN401 - distributed.Client
    inputs, run = prepared.inputs, Run(prepared)
    post = steps.ingest.submit(prepared, inputs.post, client=client)
    pre = steps.ingest.submit(prepared, inputs.pre, client=client) if inputs.pre else None
    elevation = steps.ingest_elevation.submit(prepared, client=client) if inputs.dem else None

    run = run.with_store("post", post.result())
    post_ref, cluster = run.stores["post"], prepared.config.cluster
    network = steps.settle_network.submit(prepared, post_ref, client=client, threads=all_threads(cluster))
    waiting: Any = network  # Prefect resolves a future that a task is given
    features = {
        "probability": steps.probability.submit(waiting, post_ref, client=client, threads=network_threads(cluster))
    }
    if elevation:
        run = run.with_store("elevation", elevation.result())
        elevation_ref = run.stores["elevation"]
        features["terrain"] = steps.terrain_features.submit(prepared, elevation_ref, client=client)
        features["hydrology"] = steps.hydrology.submit(prepared, elevation_ref, client=client)
    if pre:
        run = run.with_store("pre", pre.result())
        run = run.with_pairing(steps.pair(prepared, run.stores["pre"], post_ref))
        if run.pairing and run.pairing.usable:
            features["change"] = steps.change_features.submit(
                prepared, run.stores["pre"], post_ref, pairing=run.pairing, client=client
            )
    run = run.with_network(network.result())
    for name, future in features.items():
        run = run.with_store(name, future.result())

    found = steps.inventory(run, client=client)
    return steps.publish(run.with_threshold(found.threshold, found.records), found)
