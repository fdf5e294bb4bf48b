"""The same inventory wherever stores and blocks are: S3, a Dask cluster of other processes; and what a fault leaves.

Every run is the command line's, in this process but for one that is cut off; servers and workers are real.
"""

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import geopandas as gpd
import pytest
from detection import landslidenet
from distributed import LocalCluster
from prefect_server import end, serving
from processes import free_port, listens, s3_server, wait_until

from tasks.review import simulate_event

pytestmark = [
    pytest.mark.slow,
    # of the S3 client's own event loop, which is left to the interpreter's end
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
RUN = [sys.executable, "-c", "from flows.cli import main; main()"]


@contextmanager
def started(*module_and_words, log):
    """A Python module that runs as a process of its own."""
    with log.open("ab") as stream:
        command = [sys.executable, "-m", *map(str, module_and_words)]
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        yield process
    finally:
        end(process)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A scene of 384 px: several blocks of 256 px."""
    scene = simulate_event(tmp_path_factory.mktemp("scene") / "s", size_px=320, gsd_m=10.0, seed=7, sensor="rgb8")
    names = {"post": "--post", "pre": "--pre", "dem": "--dem", "event": "--event"}
    return [str(word) for role, flag in names.items() for word in (flag, scene[role])]


def words_of(inputs, home, *words, root=None):
    places = ["--root", root or home / "store", "--out", home / "out"]
    return ["detect", *inputs, "--block", "256", *map(str, (*places, *words))]


@pytest.fixture(scope="module")
def local(inputs, tmp_path_factory, warm):
    return landslidenet(*words_of(inputs, tmp_path_factory.mktemp("local"))).last_line


def same_inventory(folder, reference):
    """True when landslides, their ids and outlines, and the class raster are the same."""
    one, other = (gpd.read_file(f / "inventory.gpkg", layer="landslides").set_index("id") for f in (folder, reference))
    outlines = one.geometry.to_wkb().to_dict() == other.geometry.to_wkb().to_dict()
    return len(one) > 0 and outlines and (folder / "class.tif").read_bytes() == (reference / "class.tif").read_bytes()


def published(home):
    return sorted(p.name for p in (home / "out").glob("*/v*"))


def test_detect_with_stores_on_s3_gives_the_local_inventory(inputs, local, tmp_path, monkeypatch):
    import s3fs

    key = {"key": "testing", "secret": "testing"}
    with s3_server() as endpoint:
        fs = s3fs.S3FileSystem(client_kwargs={"endpoint_url": endpoint}, skip_instance_cache=True, **key)
        fs.mkdir("scenes")
        words = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in {**words, "LANDSLIDENET_S3_ENDPOINT": endpoint}.items():
            monkeypatch.setenv(name, value)
        with LocalCluster(  # its worker has the variables: it is this process
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0", memory_limit=0
        ) as cluster:
            told = words_of(inputs, tmp_path, "--cluster", cluster.scheduler_address, root="s3://scenes/store")
            there = landslidenet(*told).last_line
        fs.invalidate_cache()
        assert [name for name in fs.find("scenes/store") if name.endswith("/complete.json")]
    assert same_inventory(there, local)
    assert not (tmp_path / "store").exists()


@contextmanager
def dask_cluster(folder):
    """Address of a scheduler and its two workers, each a process of its own."""
    port = free_port()
    quiet = ("--dashboard-address", "127.0.0.1:0")
    scheduler = ("dask", "scheduler", "--host", "127.0.0.1", "--port", port, *quiet)
    address = f"tcp://127.0.0.1:{port}"
    worker = ("dask", "worker", address, "--host", "127.0.0.1", "--nthreads", "1", "--memory-limit", "0", *quiet)
    logs = [folder / f"{name}.log" for name in ("scheduler", "one", "two")]
    with started(*scheduler, log=logs[0]):
        wait_until(lambda: listens(port), what="Dask scheduler")
        with started(*worker, log=logs[1]) as one, started(*worker, log=logs[2]) as two:
            for log in logs[1:]:
                wait_until(lambda log=log: "Registered to" in log.read_text(), what="Dask worker")
            yield address, one, two


def test_detect_on_two_dask_workers_survives_the_death_of_one(inputs, local, tmp_path):
    with dask_cluster(tmp_path) as (address, one, two), ThreadPoolExecutor(1) as aside:

        def kill_one():
            wait_until(lambda: list((tmp_path / "store").glob("*/*.ledger/r*.json")), every_s=0.05, what="block")
            end(one, how=signal.SIGKILL)
            return published(tmp_path)

        before = aside.submit(kill_one)
        done = landslidenet(*words_of(inputs, tmp_path, "--cluster", address))
        assert before.result() == []
        assert two.poll() is None
    assert same_inventory(done.last_line, local)
    assert published(tmp_path) == ["v1"]


def test_detect_while_the_prefect_server_restarts_heals_or_says_so(inputs, local, migrated, tmp_path):
    port = free_port()
    words = [*RUN, *words_of(inputs, tmp_path, "--workers", 1)]
    with serving(tmp_path, port=port, migrated=migrated) as server:
        said = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running = subprocess.Popen(words, env=server.environment, **said)
        wait_until(lambda: list((tmp_path / "store").glob("*/*.ledger/r*.json")), what="block")
    with serving(tmp_path, port=port):
        out, err = running.communicate(timeout=300)
        if running.returncode:
            assert published(tmp_path) == []
            assert not [line for line in err.splitlines() if line.startswith("Traceback")], err[-3000:]
            folder = landslidenet(*words_of(inputs, tmp_path)).last_line
        else:
            folder = Path(out.strip().splitlines()[-1])
    assert same_inventory(folder, local)
    assert published(tmp_path) == ["v1"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a size in MB; only root may mount one."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "disk"
    place.mkdir()

    def mounted(size_mb):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", place], check=True)
        return place

    yield mounted
    subprocess.run(["umount", place], check=False)  # it is not there when the mount failed


@pytest.mark.parametrize("full", ["root", "out"])
def test_detect_on_a_full_disk_says_so_and_publishes_nothing(full, inputs, local, small_disk, tmp_path):
    disk = small_disk(1)
    places = {"root": local.parents[2] / "store", "out": tmp_path / "out", full: disk / full}
    words = [word for name, place in places.items() for word in (f"--{name}", place)]
    done = landslidenet("detect", *inputs, "--block", "256", *words, check=False)
    assert done.returncode == 1, done.stderr[-3000:]
    assert not list(places["out"].glob("*/v*"))
    said = done.stderr.splitlines()[-1]
    assert said.startswith("failed: "), said
    assert "No space left on device" in said
