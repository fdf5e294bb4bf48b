"""Blocks over a Dask client: only the pending ones, a few ahead of the workers, with a record of what they cost."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from queue import SimpleQueue
from typing import Any, Final

import psutil
from distributed import Client, wait

from catalog import store
from catalog.grid import Block
from catalog.schema import LandslideError, StoreError
from catalog.store import StoreRef
from models.numerics import choose_device

logger = logging.getLogger(__name__)

MIB: Final = 1024**2
SAMPLE_EVERY_S: Final = 0.2
AHEAD: Final = 2
"""Blocks queued a worker: enough to keep it busy, few enough to bound what is in flight."""
FOLLOW_S: Final = 1.0
"""How often it is looked whether workers came or went, while no block is done."""

Report = Callable[[int, int], None]
"""Called with blocks done and blocks in all."""

Share = Callable[[Any, Block], object]
"""What of a job a block is sent."""


@dataclass(frozen=True)
class StageRecord:
    """What a stage cost.

    `wall_s` is from its first to its last block, whatever else the workers did in between: stages that run in parallel
    wait for one another, so their walls overlap and do not add up; `cpu_s` is its own. `peak_rss_mib` is over all
    processes of this machine's process tree while it ran.
    """

    stage: str
    wall_s: float
    cpu_s: float
    blocks: int
    blocks_done_before: int
    bytes_written: int
    peak_rss_mib: float
    network_s: float
    windows: int
    blocks_taken_over: int = 0
    """Blocks that an earlier run of the event had made of the same inputs."""
    blocks_damaged: int = 0
    """Blocks made before whose files were not what their ledger says: they were made again."""
    verify_s: float = 0.0
    """CPU seconds of looking at the files of blocks that were made before; they are part of `cpu_s`."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-sized values."""
        return asdict(self)


class PeakMemory:
    """The highest resident memory of a process (this one unless told) and its children while the context is open."""

    def __init__(self, pid: int | None = None) -> None:
        self.peak_mib = 0.0
        self._process = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.peak_mib = max(self.peak_mib, _tree_rss(self._process) / MIB)
            self._stop.wait(SAMPLE_EVERY_S)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _tree_rss(process: psutil.Process) -> int:
    total = 0
    with suppress(psutil.NoSuchProcess):
        for member in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # ended between listing and asking
                total += member.memory_info().rss
    return total


def timed_block(kernel: Callable[..., Any], job: object, block: Block) -> tuple[Any, float]:
    """The kernel's result on a block and its CPU seconds; runs on a worker."""
    started = time.thread_time()
    return kernel(job, block), time.thread_time() - started


def timed_whole(kernel: Callable[..., Any], job: object) -> tuple[Any, float]:
    """The kernel's result and its CPU seconds; runs on a worker."""
    started = time.thread_time()
    return kernel(job), time.thread_time() - started


def whole(job: object, _block: Block) -> object:
    """The job as it is: the share of a block where all blocks need the same."""
    return job


def run_blocks(
    stage: str,
    kernel: Callable[..., dict[str, Any]],
    job: object,
    *,
    target: StoreRef,
    client: Client,
    report: Report,
    share: Share = whole,
    on: Sequence[str] | None = None,
) -> StageRecord:
    """The record of a stage whose kernel writes each block of `target`; finished blocks are skipped.

    A worker gets `share(job, block)` for its job, so that what is sent need not grow with the scene; `on` names the
    workers that may be asked, where not all may.

    Raises: StoreError naming the block that failed; the finished ones stay done.
    """
    total = len(target.grid.blocks)
    with PeakMemory() as memory:
        started, entries = time.perf_counter(), []
        pending, audit = open_target(stage, target, client=client)
        cpu_s = audit.cpu_s
        results = _map(stage, kernel, job, pending, client=client, share=share, on=on)
        for done, (_, entry, block_cpu_s) in enumerate(results, start=1):
            entries.append(entry)
            cpu_s += block_cpu_s
            report(total - len(pending) + done, total)
        with _disk_of(stage):
            store.mark_complete(target)
    record = StageRecord(
        stage=stage,
        wall_s=round(time.perf_counter() - started, 2),
        cpu_s=round(cpu_s, 2),
        blocks=total,
        blocks_done_before=total - len(pending),
        bytes_written=sum(entry["bytes"] for entry in entries if "taken_from" not in entry),
        peak_rss_mib=round(memory.peak_mib, 1),
        network_s=round(sum(entry.get("network_s", 0.0) for entry in entries), 2),
        windows=sum(entry.get("windows", 0) for entry in entries),
        blocks_taken_over=sum("taken_from" in entry for entry in entries),
        blocks_damaged=audit.damaged,
        verify_s=round(audit.cpu_s, 2),
    )
    logger.info(
        "%s: %d blocks of %s, %d done before, %d taken over, %.1f s",
        stage, total, target.key, total - len(pending), record.blocks_taken_over, record.wall_s,
    )  # fmt: skip
    return record


@dataclass(frozen=True)
class Audit:
    """What was seen when finished blocks were compared with their ledger entries."""

    damaged: int
    cpu_s: float


def open_target(stage: str, target: StoreRef, *, client: Client) -> tuple[tuple[Block, ...], Audit]:
    """The blocks of a store that are to be made, once it is there and its finished blocks were verified on the workers.

    What was damaged since it was written leaves the ledger, with a warning that names it.
    """
    with _disk_of(stage):
        store.create_store(target)
        entries = store.discard_void_entries(target)
    finished = [block for block in target.grid.blocks if block.id in entries]
    damaged, cpu_s = _damage(stage, target, finished, client=client)
    with _disk_of(stage):
        store.discard_blocks(target, damaged)
    sound = {*finished} - {*damaged}
    pending = tuple(block for block in target.grid.blocks if block not in sound)
    return pending, Audit(len(damaged), cpu_s)


def verify_stores(stores: Sequence[StoreRef], *, client: Client) -> StageRecord:
    """The record of comparing every block of complete stores with what their ledgers say that was written.

    Raises: StoreError where one is damaged; it leaves the ledger, so that the next run makes it again.
    """
    with Stopwatch("verify") as watch:
        cpu_s = 0.0
        for target in stores:
            damaged, store_cpu_s = _damage(target.key, target, target.grid.blocks, client=client)
            cpu_s += store_cpu_s
            if damaged:
                store.discard_blocks(target, damaged)
                block, why = next(iter(damaged.items()))
                raise StoreError(
                    f"{target.key}, block {block.id}: {why}, though this run read it; nothing is published; run the "
                    f"same command again: {len(damaged)} damaged blocks are made anew"
                )
        record = watch.record()
    blocks = sum(len(target.grid.blocks) for target in stores)
    return replace(record, cpu_s=round(cpu_s, 2), verify_s=round(cpu_s, 2), blocks=blocks, blocks_done_before=blocks)


def _damage(stage: str, target: StoreRef, blocks: Sequence[Block], *, client: Client) -> tuple[dict[Block, str], float]:
    """What is wrong with each damaged block, and the CPU seconds of looking."""
    found, cpu_s = {}, 0.0
    if blocks:
        for block, why, block_cpu_s in _map(f"verify {stage}", store.damage_of, target, blocks, client=client):
            cpu_s += block_cpu_s
            if why:
                found[block] = why
    return found, cpu_s


def collect_blocks(
    stage: str,
    kernel: Callable[..., Any],
    job: object,
    *,
    blocks: Sequence[Block],
    client: Client,
    report: Report,
) -> tuple[list[Any], StageRecord]:
    """The kernel's results in block order, and the record, of a stage that returns small results."""
    results: dict[Block, Any] = {}
    with PeakMemory() as memory:
        started, cpu_s = time.perf_counter(), 0.0
        for done, (block, result, block_cpu_s) in enumerate(_map(stage, kernel, job, blocks, client=client), start=1):
            results[block] = result
            cpu_s += block_cpu_s
            report(done, len(blocks))
    wall_s = round(time.perf_counter() - started, 2)
    record = StageRecord(stage, wall_s, round(cpu_s, 2), len(blocks), 0, 0, round(memory.peak_mib, 1), 0.0, 0)
    return [results[block] for block in blocks], record


def _map(
    stage: str,
    kernel: Callable[..., Any],
    job: object,
    blocks: Sequence[Block],
    *,
    client: Client,
    share: Share = whole,
    on: Sequence[str] | None = None,
) -> Iterator[tuple[Block, Any, float]]:
    """Blocks with their results and CPU seconds, as they come.

    Raises: StoreError, or the kernel's own LandslideError, naming the block that failed; its cause is what happened.
    """
    queue = iter(blocks)
    running: dict[Any, Block] = {}
    while True:
        for block in islice(queue, max(0, AHEAD * (len(on) if on else workers_now(client)) - len(running))):
            key = f"{stage}-{block.id}-{time.time_ns()}"
            future = client.submit(
                timed_block, kernel, share(job, block), block, pure=False, key=key,
                workers=on, allow_other_workers=on is not None,  # where those are lost, and come back elsewhere
            )  # fmt: skip
            running[future] = block
        if not running:
            break
        for future in _next_done(list(running)):
            block = running.pop(future)
            if (error := future.exception()) is not None:
                raise _failed(f"{stage}, block {block.id}", error) from error
            result, cpu_s = future.result()
            yield block, result, cpu_s
            del future, result
    client.run(trim_worker)


def one_a_host(workers: Mapping[str, tuple[str, str]]) -> tuple[str, ...] | None:
    """Addresses of the workers that may hold a network; None = all of them.

    A CPU is shared by all; a GPU would hold a copy of the network for each worker process of its host, of which each
    takes the first device.

    workers : host and device of each worker by address.

    >>> one_a_host({"tcp://a:1": ("a", "cuda"), "tcp://a:2": ("a", "cuda"), "tcp://b:1": ("b", "cpu")})
    ('tcp://a:1', 'tcp://b:1')
    >>> one_a_host({"tcp://a:1": ("a", "cpu"), "tcp://a:2": ("a", "cpu")}) is None
    True
    """
    seen: set[str] = set()
    chosen = []
    for address, (host, device) in sorted(workers.items()):
        if device == "cpu" or host not in seen:
            chosen.append(address)
        if device != "cpu":
            seen.add(host)
    return tuple(chosen) if seen else None


def devices_of(client: Client) -> dict[str, tuple[str, str]]:
    """Host and device of each worker by address: what this process has is another matter."""
    hosts = client.scheduler_info(n_workers=-1)["workers"]
    devices = client.run(choose_device)
    return {address: (str(hosts[address]["host"]), device) for address, device in devices.items() if address in hosts}


def workers_now(client: Client) -> int:
    """Workers that a cluster has at this moment; one, for which is waited, where it has none."""
    return max(1, len(client.scheduler_info(n_workers=-1)["workers"]))


def _next_done(futures: Sequence[Any]) -> Sequence[Any]:
    """Those that are done, as soon as one is; none after a while, in which workers may have come or gone."""
    try:
        return list(wait(futures, timeout=FOLLOW_S, return_when="FIRST_COMPLETED").done)  # type: ignore[no-untyped-call]
    except TimeoutError:
        return ()


@contextmanager
def _disk_of(stage: str) -> Iterator[None]:
    """Name the stage whose store could not be written or read here, as the workers' errors name theirs."""
    try:
        yield
    except OSError as error:
        raise _failed(stage, error) from error


def _failed(where: str, error: BaseException) -> LandslideError:
    """The error of a block that says where it happened: of the same class when it is one of ours."""
    if isinstance(error, LandslideError):
        return type(error)(f"{where}: {error}")
    return StoreError(f"{where} failed: {type(error).__name__}: {error}")


def run_whole(stage: str, kernel: Callable[..., Any], job: object, *, target: StoreRef, client: Client) -> StageRecord:
    """The record of a stage that one worker does in one go."""
    with PeakMemory() as memory:
        started = time.perf_counter()
        pending, audit = open_target(stage, target, client=client)
        entries: list[dict[str, Any]] = []
        cpu_s = 0.0
        if pending:
            future = client.submit(timed_whole, kernel, job, pure=False)
            if (error := future.exception()) is not None:  # type: ignore[no-untyped-call]
                raise _failed(stage, error) from error
            entries, cpu_s = future.result()
        with _disk_of(stage):
            store.mark_complete(target)
    total = len(target.grid.blocks)
    return StageRecord(
        stage, round(time.perf_counter() - started, 2), round(cpu_s + audit.cpu_s, 2), total, total - len(pending),
        sum(entry["bytes"] for entry in entries), round(memory.peak_mib, 1), 0.0, 0,
        blocks_damaged=audit.damaged, verify_s=round(audit.cpu_s, 2),
    )  # fmt: skip


def run_alone(
    stage: str, kernel: Callable[..., None], job: object, *, client: Client, topic: str, report: Callable[..., None]
) -> None:
    """Run a kernel on one worker; `report` is called here with each tuple that the kernel logs under `topic`.

    Raises: StoreError, or the kernel's own LandslideError; its cause is what happened.
    """
    heard: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()
    client.subscribe_topic(topic, lambda event: heard.put(event[1]))  # type: ignore[no-untyped-call]
    try:
        future = client.submit(kernel, job, pure=False)
        future.add_done_callback(lambda _: heard.put(None))  # type: ignore[no-untyped-call]
        for told in iter(heard.get, None):  # in the task's own thread, whose artifacts are the run's
            report(*told)
        if (error := future.exception()) is not None:  # type: ignore[no-untyped-call]
            raise _failed(stage, error) from error
    finally:
        client.unsubscribe_topic(topic)  # type: ignore[no-untyped-call]


class Stopwatch:
    """Measures what runs inside it, on this process alone; `record` may be asked for before the end."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._memory = PeakMemory()

    def __enter__(self) -> Stopwatch:
        give_back_freed_memory()
        self._memory.__enter__()
        self._started, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.__exit__()
        give_back_freed_memory()

    def record(self) -> StageRecord:
        """What it cost so far."""
        wall_s, cpu_s = time.perf_counter() - self._started, time.process_time() - self._cpu
        return StageRecord(
            self.stage, round(wall_s, 2), round(cpu_s, 2), 0, 0, 0, round(self._memory.peak_mib, 1), 0.0, 0
        )


M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
"""Parameter numbers of glibc's mallopt. Source: glibc, malloc.h."""
LARGE_BYTES: Final = 4 * MIB
RELEASE_WAIT_S: Final = 2.0
"""Longest that a worker waits for results to be let go before it gives memory back."""


def share_one_heap() -> None:
    """Let all threads of this process use one heap, and return what is larger than 4 MiB as soon as it is freed.

    glibc gives each thread a heap of its own, and keeps ever larger pieces in it; a flow run has dozens of threads and
    one that works.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


async def trim_worker(dask_worker: Any) -> None:  # noqa: ANN401 - distributed.Worker
    """Give back what a worker freed, once the results that were fetched from it are let go, which takes a moment."""
    until = time.monotonic() + RELEASE_WAIT_S
    while len(dask_worker.data) and time.monotonic() < until:
        await asyncio.sleep(0.05)
    give_back_freed_memory()


def give_back_freed_memory() -> None:
    """Return to the system what was freed: glibc keeps small pieces, such as those that polygons are made of."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
    if trim is not None:
        trim(0)
