"""Same result for any block size and worker count? Prints one row a run; exit status 1 when a run differs.

python benchmarks/invariance.py [--post FILE]   (default: the Hokkaido 2018 scene)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import geopandas as gpd

from catalog.config import data_dir

VARIANTS = {"block 512": ["--block", "512"], "block 1024": ["--block", "1024"], "2 workers": ["--workers", "2"],
            "1 worker": ["--workers", "1"]}  # fmt: skip


def run(post: Path, arguments: list[str], home: Path) -> Path:
    """The product folder of a fresh run."""
    places = ["--root", str(home / "store"), "--out", str(home / "out"), "--name", "scene", "--post", str(post)]
    command = [sys.executable, "-c", "from flows.cli import main; main()", "detect", *places, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Path(done.stdout.strip().splitlines()[-1])


def main() -> int:
    """Compare every variant with the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--post", type=Path, default=data_dir() / "hokkaido2018/scene_west/post_rgb.tif")
    post, reference, same = parser.parse_args().post, None, True
    print(f"{'run':<12} {'landslides':>10} {'windows':>8} {'class.tif':>10} {'probability':>12} {'polygons':>9}")
    for name, arguments in VARIANTS.items():
        with tempfile.TemporaryDirectory() as home:
            folder = run(post, arguments, Path(home))
            layer = gpd.read_file(folder / "inventory.gpkg", layer="landslides").sort_values("id")
            stages = json.loads((folder / "run.json").read_text())["provenance"]["stages"]
            windows = sum(stage["windows"] for stage in stages)
            got = [(folder / f).read_bytes() for f in ("class.tif", "probability.tif")]
            got.append(b"".join(layer.geometry.to_wkb()))
        reference = reference or got
        verdicts = ["same" if a == b else "DIFFERS" for a, b in zip(got, reference, strict=True)]
        same &= "DIFFERS" not in (verdicts[0], verdicts[2])
        print(f"{name:<12} {len(layer):>10} {windows:>8} {verdicts[0]:>10} {verdicts[1]:>12} {verdicts[2]:>9}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
