"""Does a damaged store change what is published? Damages stores one way at a time and runs detect again.

Exit status 1 when a product is not, byte for byte, the undisturbed one. Also prints what verifying the stores cost.

python benchmarks/damage.py [--one-by-one] [--size PX] [--only WORD]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"

from distributed import LocalCluster  # noqa: E402 - Prefect reads the setting when it is imported
from prefect.testing.utilities import prefect_test_harness  # noqa: E402

from flows.detect import detect  # noqa: E402
from tasks.review import simulate_event  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import damages  # noqa: E402 - of the tests

STEPS = ("ingest_post", "terrain", "change", "probability", "class")


def case(run: Callable[..., Path], home: Path, damage: Callable[..., None], place: int, steps: list[str]) -> str:
    """What differs from the undisturbed product, or the message that the run ended with."""
    shutil.copytree(home / "store", home / "damaged")
    for step in steps:
        damage(damages.Kept(home / "damaged" / "event", step), place)
    product = run(home / "damaged", home / "out")
    differ = damages.differences(home / "undisturbed/event/v1", product)
    for folder in ("damaged", "out"):
        shutil.rmtree(home / folder)
    return ", ".join(differ)


def cost(product: Path) -> tuple[float, float]:
    """CPU seconds of verifying, and of all stages."""
    stages = json.loads((product / "run.json").read_text())["provenance"]["stages"]
    return sum(stage["verify_s"] for stage in stages), sum(stage["cpu_s"] for stage in stages)


def main() -> int:
    """Every damage at three places, in the stores of five steps at once or in one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one-by-one", action="store_true", help="one store a run, not all five")
    parser.add_argument("--size", type=int, default=320, help="side of the simulated scene, pixels")
    parser.add_argument("--only", default="", help="damages whose name holds this")
    told = parser.parse_args()
    logging.disable(logging.WARNING)
    wrong = runs = 0
    with tempfile.TemporaryDirectory() as folder, prefect_test_harness(server_startup_timeout=180), LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0", memory_limit=0
    ) as cluster:  # fmt: skip
        home = Path(folder)
        scene = simulate_event(home / "scene", size_px=told.size, gsd_m=10.0, seed=7, sensor="rgb8")
        inputs = {role: str(scene[role]) for role in ("post", "pre", "dem")}

        def run(root: Path, out: Path) -> Path:
            where = {"root": str(root), "out": str(out), "cluster": {"address": cluster.scheduler_address}}
            return Path(detect({"name": "event", "block": 256, **inputs, **where}))

        _, made_s = cost(run(home / "store", home / "undisturbed"))
        verify_s, _ = cost(run(home / "store", home / "again"))
        print(f"verifying all stores twice: {verify_s:.2f} of {made_s:.1f} CPU s, {100 * verify_s / made_s:.2f} %")
        for damage in damages.DAMAGES:
            if told.only not in damage.__name__:
                continue
            for place in damages.PLACES:
                for steps in [[step] for step in STEPS] if told.one_by_one else [list(STEPS)]:
                    differ = case(run, home, damage, place, steps)
                    runs, wrong = runs + 1, wrong + bool(differ)
                    print(f"{damage.__name__:<26} {place:>2} {'+'.join(steps):<50} {differ or 'same'}", flush=True)
    print(f"{runs - wrong} of {runs} runs published the undisturbed product")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
