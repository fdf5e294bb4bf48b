import subprocess
import sys
from pathlib import Path

import pytest

from catalog.locks import Busy, hold_event
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
