"""Peak memory over all processes together at two scene sizes: of every stage, of the whole run, and of simulating.

python benchmarks/memory.py [--sizes 4096 8192] [--block 2048] [--scenes DIR]

Exit status 1 when a peak at the larger size is above the limit, or that of a stage or of the run grew by more than a
tenth. Publishing has no row of its own, because `run.json` is part of what it writes: it is in the row `detect`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tasks.stages import PeakMemory

LIMIT_MIB: Final = 6 * 1024
LIMIT_RATIO: Final = 1.1
CLI: Final = (sys.executable, "-c", "from flows.cli import main; main()")
SIMULATE: Final = "simulate"
"""It holds the whole ground of a scene: the limit is on its peak, not on the growth."""


def run(*words: str) -> tuple[str, float]:
    """Last line on stdout of a command, and the peak of its processes, MiB."""
    with (
        subprocess.Popen([*CLI, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        PeakMemory(process.pid) as memory,
    ):
        out, told = process.communicate()
    if process.returncode:
        raise SystemExit(f"{words[0]} failed:\n{told[-2000:]}")
    return out.strip().splitlines()[-1], memory.peak_mib


def peaks(size: int, block: int, scenes: Path) -> dict[str, float]:
    """Peaks, MiB, of simulating (where the scene is not there yet), of each stage, and of detecting as a whole."""
    scene, found = scenes / f"scene-{size}", {}
    if not (scene / "truth.gpkg").is_file():
        _, found[SIMULATE] = run(SIMULATE, "--out", str(scene), "--size", str(size))
    with tempfile.TemporaryDirectory() as home:
        files = [w for k in ("post", "pre", "dem") for w in (f"--{k}", str(scene / f"{k}.tif"))]
        places = ["--event", str(scene / "event.json"), "--root", f"{home}/store", "--out", f"{home}/out"]
        product, whole = run("detect", *files, *places, "--block", str(block))
        stages = json.loads((Path(product) / "run.json").read_text())["provenance"]["stages"]
        found |= {stage["stage"]: stage["peak_rss_mib"] for stage in stages} | {"detect": whole}
    return found


def verdict(name: str, before: float, after: float) -> str:
    """What is wrong with a row, or nothing."""
    if after > LIMIT_MIB:
        return f"above {LIMIT_MIB} MiB"
    if after > LIMIT_RATIO * before and name != SIMULATE:
        return f"grew by more than {LIMIT_RATIO - 1:.0%}"
    return ""


def main() -> None:
    """Print one row a stage and a total; exit with 1 when a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs=2, default=[4096, 8192])
    parser.add_argument("--block", type=int, default=2048)
    parser.add_argument("--scenes", type=Path, help="folder of simulated scenes, to keep and to use again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        small, large = (peaks(size, options.block, options.scenes or Path(temporary)) for size in options.sizes)
    rows = [(name, small[name], after) for name, after in large.items() if name in small]
    totals = (max(peak for name, peak in found.items() if name != SIMULATE) for found in (small, large))
    rows.append(("total", *totals))
    titles = [f"{size} px, MiB" for size in options.sizes]
    print(f"{'stage':<14} {titles[0]:>14} {titles[1]:>14} {'ratio':>7}")
    for name, before, after in rows:
        print(
            f"{name:<14} {before:>14.0f} {after:>14.0f} {after / before:>7.2f}  {verdict(name, before, after)}".rstrip()
        )
    sys.exit(any(verdict(*row) for row in rows))


if __name__ == "__main__":
    main()
