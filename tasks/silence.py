"""RichDEM without its progress bars."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_stderr_lock = threading.Lock()


@contextmanager
def silence() -> Iterator[None]:
    """Nothing on stderr: RichDEM's C++ writes its bars to the file descriptor, without an option not to.

    It holds the interpreter lock while it computes, so that no other thread's words are lost.
    """
    with _stderr_lock:
        sys.stderr.flush()
        kept = os.dup(2)
        try:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
