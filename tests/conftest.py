import atexit
import os
import shutil
import tempfile

os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="prefect-")  # before Prefect reads it: of each test process alone
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch reads it: a second thread of small networks mostly spins
atexit.register(shutil.rmtree, os.environ["PREFECT_HOME"], ignore_errors=True)

import pytest  # noqa: E402

from catalog.config import data_dir  # noqa: E402


def pytest_collection_modifyitems(items):
    """Slow tests come first, so that no process waits for another's last file; without the data, real ones are skipped.

    In CI they fail without the data.
    """
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if data_dir().is_dir() or os.environ.get("CI"):
        return
    for item in items:
        if item.get_closest_marker("real"):
            item.add_marker(pytest.mark.skip(reason=f"no real data at {data_dir()}"))


# what fixtures import waits until one is asked for: most files of tests need none of it


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    """A database of Prefect's server, for copies: made once for all test processes."""
    from prefect_server import migrated_database

    folder = tmp_path_factory.getbasetemp()
    return migrated_database(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder)


@pytest.fixture(scope="session")
def prefect_api(migrated):
    """Address of a Prefect server for the flow runs of this process."""
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_DATABASE_CONNECTION_URL
    from prefect.testing.utilities import prefect_test_harness

    folder = tempfile.mkdtemp(prefix="prefect-")  # the harness removes it
    shutil.copy(migrated, f"{folder}/prefect-test.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefect.testing.utilities.mkdtemp", lambda: folder)
        with prefect_test_harness(server_startup_timeout=180):
            assert f"{folder}/prefect-test.db" in PREFECT_SERVER_DATABASE_CONNECTION_URL.value()
            yield PREFECT_API_URL.value()


@pytest.fixture(scope="session")
def warm(prefect_api):
    """A Prefect server and a Dask cluster for the detections of this process (`detection.landslidenet`)."""
    from detection import warm_cluster

    with warm_cluster():
        yield


@pytest.fixture
def two_threads():
    """Two threads for torch, which otherwise has one in tests."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def followed_scene(tmp_path_factory):
    from tasks.review import simulate_event

    return simulate_event(tmp_path_factory.mktemp("scene") / "s", size_px=192, gsd_m=10.0, seed=7, sensor="rgb8")


@pytest.fixture
def followed(tmp_path, followed_scene):
    """An event that is followed, and its imagery on servers (`followed_event.Followed`)."""
    from followed_event import Followed
    from stac_server import files_of

    with files_of(tmp_path / "files") as host:
        event = Followed(tmp_path, followed_scene, host)
        yield event
        event.api.stop()
