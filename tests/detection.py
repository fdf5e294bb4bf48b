"""Commands in this process, on one Dask cluster and one Prefect server for all of its files of tests.

A process of its own for each would start Python, Dask's workers, torch and a Prefect server anew: more work than the
detections themselves. What a process of its own shows (what it prints, how it is killed, its own cluster) is tested in
test_flow.py.
"""

import sys
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

RUNNING = []
"""The address of the Dask cluster, while there is one (fixture `warm`)."""


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str

    @property
    def last_line(self):
        return Path(self.stdout.strip().splitlines()[-1])


@contextmanager
def warm_cluster(workers=2):
    """A Dask cluster for every detection in this process."""
    import dask
    from distributed import LocalCluster

    from flows.cluster import LOCAL_SETTINGS, LOOPBACK

    with ExitStack() as stack:
        stack.enter_context(dask.config.set(LOCAL_SETTINGS))
        cluster = LocalCluster(
            n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address=LOOPBACK, silence_logs=False
        )
        stack.enter_context(cluster)
        RUNNING.append(cluster.scheduler_address)
        stack.callback(RUNNING.clear)
        yield


def landslidenet(*words, check=True):
    """A command as a person gives it; a detection runs on the cluster of fixture `warm` unless it names another."""
    from flows.cli import main

    told = [str(word) for word in words]
    if told[0] == "detect" and not {"--cluster", "--workers"} & set(told):
        told += ["--cluster", RUNNING[0]]
    out, err, before = StringIO(), StringIO(), sys.argv
    sys.argv = ["landslidenet", *told]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
        status = 0
    except SystemExit as ended:
        status = ended.code or 0
    finally:
        sys.argv = before
    done = Done(int(status), out.getvalue(), err.getvalue())
    assert not check or status == 0, done.stderr[-3000:]
    return done
