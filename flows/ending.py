"""An end is an end: SIGINT, SIGTERM and SIGHUP end a command at once, in whatever it is, with one line.

A flow has dozens of threads, worker processes and perhaps a server of its own; unwound one by one they take minutes and
tell of each other's loss. What is worth keeping is on disk: blocks with their ledger, whole versions. So a thread that
does nothing else hears of the signal, ends all processes, removes what would be left behind, and leaves.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import psutil

from catalog.leftovers import clear_leftovers

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FAMILY_S: Final = 5.0
"""Longest that is waited for processes that were killed."""
UNWINDING_S: Final = 0.2
"""Until then the thread has heard of a signal that made the command fail."""
TRACKER: Final = "multiprocessing.resource_tracker"
"""Of Python's: it ends by itself, once it has removed the semaphores of the processes that were killed."""
QUIET: Final = "ignore:resource_tracker"
"""What it would say of that."""
SHOW_CURSOR: Final = "\r\x1b[K\x1b[?25h"
"""Progress bars hide it: ECMA-48 EL, and DECTCEM of VT220."""

_ENDING: Final = threading.Event()
_LEFT_ALONE: Final = threading.Event()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Inside, a signal ends the process with status 128 + its number; `nohup` keeps it from SIGHUP."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
    heard = [number for number in SIGNALS if number not in ignored]
    receiving, sending = os.pipe()
    os.set_blocking(sending, False)
    wakeup = signal.set_wakeup_fd(sending, warn_on_full_buffer=False)  # written to whatever the main thread is in
    before = {number: signal.signal(number, lambda *_: None) for number in heard}
    threading.Thread(target=_listen, args=(receiving, heard), daemon=True, name="signals").start()
    # threads and processes that start from here on do not see a Ctrl-C: it is the listening thread's alone
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    filters = os.environ.get("PYTHONWARNINGS", "")
    os.environ["PYTHONWARNINGS"] = f"{filters},{QUIET}".lstrip(",")
    try:
        yield
    finally:
        if _ENDING.wait(0.0 if sys.exc_info()[0] is None else UNWINDING_S):
            threading.Event().wait()  # the other thread ends the process
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.environ["PYTHONWARNINGS"] = filters
        os.close(sending)


@contextmanager
def signals_left_alone() -> Iterator[None]:
    """Inside, signals are those of the command, which ends by itself."""
    _LEFT_ALONE.set()
    try:
        yield
    finally:
        _LEFT_ALONE.clear()


def _listen(receiving: int, heard: Collection[int]) -> None:
    with open(receiving, "rb", buffering=0) as signals:
        while numbers := signals.read(64):
            for number in numbers:
                if number in heard and not _LEFT_ALONE.is_set():
                    _end(number)


def _end(number: int) -> None:
    _ENDING.set()
    terminal = os.dup(sys.stderr.fileno())
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stderr.fileno())  # what still runs here has nothing to say that helps
    _end_family()
    clear_leftovers()
    line = f"ended by {signal.Signals(number).name}; what is finished is kept: run the same command again to go on\n"
    with suppress(OSError):  # the terminal may be closed
        os.write(terminal, ((SHOW_CURSOR if os.isatty(terminal) else "") + line).encode())
    os._exit(128 + number)


def _end_family() -> None:
    """Kill every process that was started from here, and those that are started meanwhile to replace them."""
    until = time.monotonic() + FAMILY_S
    known: set[psutil.Process] = set()
    while time.monotonic() < until:
        known |= {process for process in psutil.Process().children(recursive=True) if not _is_tracker(process)}
        for process in known:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        _, left = psutil.wait_procs(known, timeout=0.2)
        if not known:
            return
        known = set(left)


def _is_tracker(process: psutil.Process) -> bool:
    try:
        return any(TRACKER in word for word in process.cmdline())
    except psutil.Error:
        return False
