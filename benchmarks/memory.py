"""Peak memory of every stage at two scene sizes, over all processes together, and the ratio between them.

python benchmarks/memory.py [--sizes 4096 8192] [--block 2048]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path


def stages(size: int, block: int) -> dict[str, dict[str, float]]:
    """The stage records of a run on a simulated scene, by stage."""
    with tempfile.TemporaryDirectory() as home:
        scene, out = Path(home) / "scene", Path(home) / "out"
        cli = [sys.executable, "-c", "from flows.cli import main; main()"]
        subprocess.run([*cli, "simulate", "--out", str(scene), "--size", str(size)], check=True, capture_output=True)
        files = [w for k in ("post", "pre", "dem") for w in (f"--{k}", str(scene / f"{k}.tif"))]
        places = ["--event", str(scene / "event.json"), "--root", str(Path(home) / "store"), "--out", str(out)]
        command = [*cli, "detect", *files, *places, "--block", str(block)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        run = json.loads((Path(done.stdout.strip().splitlines()[-1]) / "run.json").read_text())
    return {record["stage"]: record for record in run["provenance"]["stages"]}


def main() -> None:
    """Print one row a stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs=2, default=[4096, 8192])
    parser.add_argument("--block", type=int, default=2048)
    options = parser.parse_args()
    small, large = (stages(size, options.block) for size in options.sizes)
    titles = [f"{size} px, MiB" for size in options.sizes]
    print(f"{'stage':<14} {titles[0]:>14} {titles[1]:>14} {'ratio':>7} {'wall ratio':>11}")
    for name, record in large.items():
        before = small[name]
        ratio = record["peak_rss_mib"] / before["peak_rss_mib"]
        wall = record["wall_s"] / max(before["wall_s"], 0.01)
        print(f"{name:<14} {before['peak_rss_mib']:>14.0f} {record['peak_rss_mib']:>14.0f} {ratio:>7.2f} {wall:>11.1f}")


if __name__ == "__main__":
    main()
