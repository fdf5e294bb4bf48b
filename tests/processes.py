"""Servers of tests as processes of their own: a port, when it listens, and an S3 server."""

import socket
import subprocess
import sys
import time
from contextlib import contextmanager

START_S = 180


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(answered, *, within_s=START_S, every_s=0.3, what="an answer"):
    """The first true answer."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if answer := answered():
            return answer
        time.sleep(every_s)
    raise AssertionError(f"no {what} within {within_s} s")


@contextmanager
def s3_server():
    """The address of an S3 server on loopback, stopped at the end."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: listens(port), what="S3 server")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()
