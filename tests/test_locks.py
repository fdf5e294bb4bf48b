import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from catalog.locks import Busy, hold_event, hold_products
from catalog.schema import InputError

HOLD = """
import sys, time
from catalog.locks import hold_event
with hold_event(sys.argv[1], "e"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the event."""
    root = str(Path(__file__).parents[1])
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=root)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_hold_event_refuses_a_second_holder_and_names_the_first(tmp_path, holder):
    with pytest.raises(Busy, match=f"process {holder.pid} "), hold_event(str(tmp_path), "e", timeout_s=0.3):
        pass


def test_hold_event_is_free_when_its_holder_was_killed(tmp_path, holder):
    holder.kill()
    with hold_event(str(tmp_path), "e", timeout_s=10):
        pass


def test_hold_event_holds_no_other_event(tmp_path, holder):
    with hold_event(str(tmp_path), "f", timeout_s=0):
        pass


def test_hold_event_refuses_ids_that_lead_elsewhere(tmp_path):
    with pytest.raises(InputError, match="event id"), hold_event(str(tmp_path), "../e"):
        pass


HOLD_PRODUCTS = """
import sys, time
from catalog.locks import hold_products
with hold_products(sys.argv[1], sys.argv[2], "e"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def maker(tmp_path):
    """Another process that makes the event's products, its stores on another disk."""
    places = str(tmp_path / "out"), str(tmp_path / "store")
    root = str(Path(__file__).parents[1])
    process = subprocess.Popen([sys.executable, "-c", HOLD_PRODUCTS, *places], stdout=subprocess.PIPE, cwd=root)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize(("out", "root"), [("out", "store"), ("out", "other"), ("other", "store")])
def test_hold_products_says_at_once_who_holds_them(tmp_path, maker, out, root):
    started = time.monotonic()
    told = rf"event e: another run holds it \(process {maker.pid} on {os.uname().nodename} since 20..-..-.. ..:.. UTC\)"
    with pytest.raises(Busy, match=told), hold_products(str(tmp_path / out), str(tmp_path / root), "e"):
        pass
    assert time.monotonic() - started < 5
    assert not (tmp_path / "other").exists()


def test_hold_products_is_free_when_its_holder_was_killed(tmp_path, maker):
    maker.kill()
    maker.wait()
    with hold_products(str(tmp_path / "out"), str(tmp_path / "store"), "e"):
        pass
    assert not list(tmp_path.rglob("*.lock"))


def test_hold_products_waits_as_long_as_it_is_told_and_says_so(tmp_path, maker, caplog):
    threading.Timer(0.5, maker.kill).start()
    with hold_products(str(tmp_path / "out"), str(tmp_path / "store"), "e", timeout_s=60):
        pass
    assert f"waiting for the run that holds it (process {maker.pid} on " in caplog.text


def test_hold_products_again_by_a_step_of_the_same_run(tmp_path):
    places = str(tmp_path / "out"), str(tmp_path / "store")
    with hold_products(*places, "e"):
        with hold_products(*places, "e"):
            pass
        with ThreadPoolExecutor(1) as pool:  # another run in the same process is another run
            with pytest.raises(Busy, match=f"process {os.getpid()} "):
                pool.submit(_hold, *places).result()
    _hold(*places)


def _hold(out, root):
    with hold_products(out, root, "e"):
        pass


def test_hold_products_leaves_nothing_that_was_not_there(tmp_path):
    (tmp_path / "store" / "e").mkdir(parents=True)
    with hold_products(str(tmp_path / "a" / "out"), str(tmp_path / "store"), "e"):
        (tmp_path / "store" / "e" / "kept").touch()
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {"store", "store/e", "store/e/kept"}


def test_hold_products_of_stores_elsewhere_holds_the_products(tmp_path):
    with hold_products(str(tmp_path), "s3://bucket/prefix", "e"):
        assert [path.name for path in (tmp_path / "e").iterdir()] == [".run.lock"]


def test_hold_products_of_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match="cannot be written"):
        _hold(str(tmp_path / "out"), str(tmp_path))


def test_hold_products_lets_one_in_at_a_time(tmp_path):
    """Files that come and go with their holders: no two hold one that is gone."""
    inside, most = [], []

    def hold():
        with hold_products(str(tmp_path), str(tmp_path), "e", timeout_s=60):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.005)
            inside.pop()

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(hold) for _ in range(12)]:
            done.result()
    assert most == [1] * 12
