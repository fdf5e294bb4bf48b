"""Stages on a real Dask cluster: what a failed block says, and what a stage records."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import dask
import numpy as np
import pytest
import xarray as xr
from distributed import Client, KilledWorker, LocalCluster
from processes import wait_until

from catalog import store
from catalog.grid import snap_grid
from catalog.schema import QUALITY, InputError, StoreError
from catalog.store import StoreRef
from models.numerics import choose_device
from tasks.stages import (
    AHEAD,
    FOLLOW_S,
    Stopwatch,
    collect_blocks,
    devices_of,
    run_blocks,
    run_whole,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client():
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", memory_limit=0) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def target(tmp_path):
    grid = snap_grid((500_000, 4_000_000, 505_000, 4_002_000), epsg=32633, gsd_m=10.0, block_px=256)
    return StoreRef(str(tmp_path), "event", "step-1", grid, (QUALITY,), 256)


def write(ref, block):
    return store.write_block(ref, block, xr.Dataset({"quality": (("y", "x"), np.zeros((256, 256), np.uint8))}))


def lose_the_disk(ref, block):
    if block != ref.grid.blocks[1]:
        return write(ref, block)
    raise OSError("no space left on device")


def kill_the_worker(ref, block):
    os._exit(1)


def refuse_the_file(ref, block):
    raise InputError("post.tif: cannot be read")


def write_share(share, block):
    ref, named = share
    assert named == block.id
    return write(ref, block)


def place(ref, block):
    time.sleep(0.2 if block == ref.grid.blocks[0] else 0)  # the first is done last
    return block.id


def write_all(ref):
    sum(i * i for i in range(400_000))
    return [write(ref, block) for block in ref.grid.blocks]


def run(kernel, target, client):
    return run_blocks("stage", kernel, target, target=target, client=client, report=lambda done, total: None)


@pytest.mark.parametrize(
    ("kernel", "kind", "cause"),
    [
        (lose_the_disk, StoreError, OSError),
        (kill_the_worker, StoreError, KilledWorker),
        (refuse_the_file, InputError, InputError),
    ],  # fmt: skip
)
def test_run_blocks_names_the_block_that_failed_and_keeps_the_cause(kernel, kind, cause, target, client):
    with pytest.raises(kind, match=r"stage, block r-\d+c\d+") as raised:
        run(kernel, target, client)
    assert isinstance(raised.value.__cause__, cause)


def _in_flight(client):
    """Blocks that wait for a worker, and those that one still runs although nobody waits for them any more."""
    ran = client.run(lambda dask_worker: len(dask_worker.state.executing))
    return any(client.processing().values()) or any(ran.values())


def test_run_blocks_again_does_the_missing_blocks_only(target, client):
    with pytest.raises(StoreError, match="no space left"):
        run(lose_the_disk, target, client)
    time.sleep(1)  # a block that was asked for last may still be on its way to the scheduler
    wait_until(lambda: not _in_flight(client), within_s=30)  # what was in flight goes on to its end
    kept = len(store.read_ledger(target))
    record = run(write, target, client)
    assert record.blocks_done_before == kept
    assert store.is_complete(target)


def test_run_blocks_sends_a_block_its_share_of_the_job(target, client):
    run_blocks(
        "stage", write_share, target, target=target, client=client, report=lambda done, total: None,
        share=lambda ref, block: (ref, block.id),
    )  # fmt: skip
    assert store.is_complete(target)


def test_collect_blocks_returns_results_in_the_order_of_the_blocks(target, client):
    blocks = target.grid.blocks
    results, _ = collect_blocks("stage", place, target, blocks=blocks, client=client, report=lambda done, total: None)
    assert results == [block.id for block in blocks]


def test_run_whole_records_the_cpu_of_its_worker(target, client):
    assert run_whole("stage", write_all, target, target=target, client=client).cpu_s > 0


def test_stopwatch_records_before_its_end():
    with Stopwatch("stage") as watch:
        time.sleep(0.05)
        assert watch.record().wall_s >= 0.05


def mark_and_wait(folder, block):
    """A block that is being worked on until `go` is there."""
    (folder / f"{block.id}.begun").touch()
    until = time.monotonic() + 60
    while not (folder / "go").exists() and time.monotonic() < until:
        time.sleep(0.05)
    return block.id


def test_blocks_in_flight_follow_the_workers_there_are_now(target, tmp_path):
    """None when the stage begins, then one, then three, while no block is done."""
    with (
        LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address="127.0.0.1:0", memory_limit=0,
                     processes=False) as cluster,
        Client(cluster) as client,
        ThreadPoolExecutor(1) as pool,
    ):  # fmt: skip
        done = pool.submit(
            collect_blocks, "stage", mark_and_wait, tmp_path, blocks=target.grid.blocks, client=client,
            report=lambda done, total: None,
        )  # fmt: skip
        in_flight = []
        for workers in (1, 3):
            cluster.scale(workers)
            wait_until(lambda workers=workers: len(list(tmp_path.glob("*.begun"))) == workers, within_s=30)
            time.sleep(2 * FOLLOW_S)
            in_flight.append(len(client.scheduler_info(n_workers=-1)["workers"]) and client.run_on_scheduler(_known))
        (tmp_path / "go").touch()
        assert done.result(timeout=60)[0] == [block.id for block in target.grid.blocks]
    assert in_flight == [AHEAD, 3 * AHEAD]


def _known(dask_scheduler):
    return len(dask_scheduler.tasks)


def test_devices_are_what_the_workers_say(client, monkeypatch):
    assert set(devices_of(client).values()) == {("127.0.0.1", choose_device())}
    monkeypatch.setattr("tasks.stages.choose_device", os.getpid)
    assert [device for _, device in devices_of(client).values()] == list(client.run(os.getpid).values())
