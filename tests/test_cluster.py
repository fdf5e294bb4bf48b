"""The client of a flow run on a local cluster."""

import logging
import os
from urllib.parse import urlsplit

import pytest

from catalog.config import ClusterConfig
from catalog.schema import InputError
from flows.cluster import dask_client

LIBRARIES = ("OMP", "OPENBLAS", "MKL")


def test_local_cluster_opens_no_fixed_port():
    with dask_client(ClusterConfig(workers=1)) as one, dask_client(ClusterConfig(workers=1)) as other:
        pages = [urlsplit(client.dashboard_link) for client in (one, other)]
    assert {page.hostname for page in pages} == {"127.0.0.1"}
    assert 8787 not in {page.port for page in pages}


@pytest.fixture(scope="module")
def worker():
    """What a worker of a local cluster is: its environment, its periodic callbacks, the level of its log."""

    def told(dask_worker):
        level = logging.getLogger("distributed.worker").getEffectiveLevel()
        return dict(os.environ), sorted(dask_worker.periodic_callbacks), level

    with pytest.MonkeyPatch.context() as patch:
        for library in LIBRARIES:  # what a person sets goes before
            patch.delenv(f"{library}_NUM_THREADS", raising=False)
        with dask_client(ClusterConfig(workers=1)) as client:
            (found,) = client.run(told).values()
    return found


def test_local_cluster_keeps_no_profile_that_grows_with_the_run(worker):
    assert "heartbeat" in worker[1]
    assert "profile" not in worker[1]


@pytest.mark.parametrize("library", LIBRARIES)
def test_array_libraries_of_local_workers_share_the_cores(library, worker):
    assert worker[0][f"{library}_NUM_THREADS"] == "1"


def test_local_workers_do_not_tell_that_their_scheduler_ended_first(worker):
    assert worker[2] == logging.CRITICAL


def test_dask_client_refuses_an_address_of_no_scheduler():
    with pytest.raises(InputError, match="no Dask scheduler answers at foo://x:1"):
        with dask_client(ClusterConfig(address="foo://x:1")):
            pass
