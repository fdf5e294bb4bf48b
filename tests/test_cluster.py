"""The client of a flow run on a local cluster."""

from urllib.parse import urlsplit

from catalog.config import ClusterConfig
from flows.cluster import dask_client


def test_local_cluster_opens_no_fixed_port():
    with dask_client(ClusterConfig(workers=1)) as one, dask_client(ClusterConfig(workers=1)) as other:
        pages = [urlsplit(client.dashboard_link) for client in (one, other)]
    assert {page.hostname for page in pages} == {"127.0.0.1"}
    assert 8787 not in {page.port for page in pages}
