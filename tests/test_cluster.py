"""The client of a flow run on a local cluster."""

from urllib.parse import urlsplit

import pytest

from catalog.config import ClusterConfig
from catalog.schema import InputError
from flows.cluster import dask_client


def test_local_cluster_opens_no_fixed_port():
    with dask_client(ClusterConfig(workers=1)) as one, dask_client(ClusterConfig(workers=1)) as other:
        pages = [urlsplit(client.dashboard_link) for client in (one, other)]
    assert {page.hostname for page in pages} == {"127.0.0.1"}
    assert 8787 not in {page.port for page in pages}


def test_local_cluster_keeps_no_profile_that_grows_with_the_run():
    with dask_client(ClusterConfig(workers=1)) as client:
        (callbacks,) = client.run(lambda dask_worker: sorted(dask_worker.periodic_callbacks)).values()
    assert "heartbeat" in callbacks
    assert "profile" not in callbacks


def test_dask_client_refuses_an_address_of_no_scheduler():
    with pytest.raises(InputError, match="no Dask scheduler answers at foo://x:1"):
        with dask_client(ClusterConfig(address="foo://x:1")):
            pass
