"""One Dask client a flow run: a local cluster, a running scheduler, or any `distributed` cluster class by name."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

import dask
from distributed import Client, LocalCluster, WorkerPlugin

from catalog.config import ClusterConfig
from catalog.leftovers import cleared
from catalog.schema import InputError

logger = logging.getLogger(__name__)

MAX_LOCAL_WORKERS: Final = 8
CONNECT_TIMEOUT_S: Final = 30
HEAP_BYTES: Final = {"MALLOC_MMAP_THRESHOLD_": 32 << 20, "MALLOC_TRIM_THRESHOLD_": 512 << 20}
"""Pieces up to which glibc takes memory from its heap, and free heap that it keeps. Dask's own setting gives memory
back at once and takes it again for the next array, which took the kernel as long as a third of the work. Workers trim
when a stage ends."""
ONE_THREAD: Final = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), 1)
"""Of the array libraries in a worker, as Dask has it: workers share the cores. The network's threads are told apart."""
LOCAL_SETTINGS: Final = {
    "distributed.worker.profile.enabled": False,
    "distributed.nanny.pre-spawn-environ": {name: str(value) for name, value in {**HEAP_BYTES, **ONE_THREAD}.items()},
}
"""Dask's sampling profiler keeps a call tree for every second: the memory of each process would grow with the run."""
LOOPBACK: Final = "127.0.0.1:0"
"""Any free port, for this machine alone: without an address the scheduler's pages take port 8787."""


class Hushed(WorkerPlugin):
    """A worker that keeps silent: what befalls a block is an error of the run, and its scheduler ends with it."""

    def setup(self, worker: object) -> None:
        """Called by each worker when it starts."""
        logging.getLogger("distributed.worker").setLevel(logging.CRITICAL)


def worker_count(config: ClusterConfig) -> int:
    """Workers of a local cluster: what was asked for, else one a core up to eight."""
    return config.workers or min(os.cpu_count() or 1, MAX_LOCAL_WORKERS)


def network_threads(config: ClusterConfig) -> int:
    """Threads the network may use in each worker: what was asked for, else cores / workers."""
    return config.threads or max(1, (os.cpu_count() or 1) // worker_count(config))


def all_threads(config: ClusterConfig) -> int:
    """Threads of a network that one worker alone trains: those of all workers of a machine."""
    return network_threads(config) * worker_count(config)


@contextmanager
def dask_client(config: ClusterConfig) -> Iterator[Client]:
    """A connected client; a cluster that was started here is closed with it.

    Raises: InputError when the scheduler does not answer or the cluster class cannot be imported.
    """
    if config.address == "local":
        logging.getLogger("distributed").setLevel(logging.WARNING)
        with (
            cleared(Path(mkdtemp(prefix="landslidenet-"))) as scratch,
            dask.config.set({**LOCAL_SETTINGS, "temporary-directory": str(scratch)}),
            LocalCluster(  # type: ignore[no-untyped-call]
                n_workers=worker_count(config), threads_per_worker=1, dashboard_address=LOOPBACK, memory_limit=0
            ) as cluster,
            Client(cluster) as client,  # type: ignore[no-untyped-call]
        ):
            client.register_plugin(Hushed())
            yield client
    elif "://" in config.address:
        try:
            client = Client(config.address, timeout=CONNECT_TIMEOUT_S)  # type: ignore[no-untyped-call]
        except (OSError, ValueError) as error:
            raise InputError(
                f"cluster: no Dask scheduler answers at {config.address} ({error}); "
                "start one with `dask scheduler`, or pass --cluster local"
            ) from error
        with client:
            yield client
    else:
        with (
            _cluster_class(config.address)(**config.options) as cluster,
            Client(cluster) as client,  # type: ignore[no-untyped-call]
        ):
            yield client


def _cluster_class(name: str) -> Any:  # noqa: ANN401 - any class with the interface of distributed.deploy.Cluster
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"cluster: got {name!r}; expected `local`, tcp://HOST:PORT, or the dotted name of a cluster class "
            "such as dask_kubernetes.operator.KubeCluster"
        ) from error
