"""A command that is told to end, whatever it is in: within seconds, with one line, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from catalog.leftovers import clear_leftovers, cleared

ROOT = Path(__file__).parents[1]
LONGEST_S = 10

COMMAND = """
import sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from catalog.leftovers import cleared
from catalog.locks import hold_products
from flows.ending import ended_by_signals, signals_left_alone

def ready():
    print("ready", flush=True)

def in_a_wait():
    ready()
    threading.Event().wait()

def in_a_kernel():
    values = np.random.default_rng(0).random(30_000_000)
    ready()
    while True:
        np.sort(values)

def in_threads():
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(time.sleep, [0.01, 600, 600, 600]))

def in_work_that_fails():
    try:
        ready()
        time.sleep(600)
    finally:
        raise ValueError("unwound")

def with_workers():
    from catalog.config import ClusterConfig
    from flows.cluster import dask_client
    with dask_client(ClusterConfig(workers=2)) as client:
        futures = client.map(time.sleep, [600, 601])
        ready()
        client.gather(futures)

def with_a_stubborn_process():
    import signal, subprocess
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    process.stdout.readline()
    ready()
    process.wait()

threading.Timer(0.1, ready).start() if sys.argv[1] == "in_threads" else None
with ended_by_signals():
    home = Path(sys.argv[2])
    with hold_products(str(home / "out"), str(home / "store"), "e"), cleared(home / "out/e/.v1.partial") as partial:
        partial.mkdir()
        (partial / "class.tif").touch()
        globals()[sys.argv[1]]()
"""


HANGUP_ENDS = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
"""Whoever runs these tests may have hangups ignored (`nohup make test`)."""


def start(folder, phase):
    scratch = folder / "tmp"
    scratch.mkdir()
    command = [sys.executable, "-c", HANGUP_ENDS + COMMAND, phase, str(folder)]
    told = {**os.environ, "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=told, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        ("in_a_wait", signal.SIGTERM),
        ("in_a_wait", signal.SIGINT),
        ("in_a_wait", signal.SIGHUP),
        ("in_a_kernel", signal.SIGINT),
        ("in_threads", signal.SIGTERM),
        ("in_work_that_fails", signal.SIGTERM),
        ("with_workers", signal.SIGTERM),
        ("with_workers", signal.SIGINT),
        ("with_a_stubborn_process", signal.SIGTERM),
    ],
    ids=lambda told: told if isinstance(told, str) else told.name,
)
def test_a_signal_to_the_group_ends_everything_with_one_line(tmp_path, phase, number):
    running = start(tmp_path, phase)
    assert running.stdout.readline() == "ready\n"
    family = psutil.Process(running.pid).children(recursive=True)
    asked = time.monotonic()
    os.killpg(running.pid, number)
    _, said = running.communicate(timeout=120)
    assert time.monotonic() - asked < LONGEST_S
    assert running.returncode == 128 + number
    line = f"ended by {number.name}; what is finished is kept: run the same command again to go on"
    assert said.splitlines() == [line]
    gone, alive = psutil.wait_procs(family, timeout=LONGEST_S)
    assert not alive
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not list(tmp_path.glob("out/e/*"))


def test_a_hangup_that_was_ignored_stays_ignored(tmp_path):
    code = HANGUP_ENDS.replace("SIG_DFL", "SIG_IGN") + COMMAND
    running = subprocess.Popen(
        [sys.executable, "-c", code, "in_a_wait", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stdout.readline() == b"ready\n"
    running.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    running.send_signal(signal.SIGTERM)
    assert b"ended by SIGTERM" in running.communicate(timeout=60)[1]


def test_leftovers_are_removed_the_latest_first_and_renamed_before(tmp_path):
    folder = tmp_path / ".v1.partial"
    with cleared(tmp_path / "lock") as lock, cleared(folder):
        lock.touch()
        folder.mkdir()
        (folder / "class.tif").touch()
        clear_leftovers()
        assert list(tmp_path.iterdir()) == []
    with cleared(folder):
        folder.mkdir()
        folder.rename(tmp_path / "v1")
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]
