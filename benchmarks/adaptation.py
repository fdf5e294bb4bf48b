"""ADANet across events: from the Landslide4Sense tiles without block B to Hokkaido 2018, no label of which is shown.

    python benchmarks/adaptation.py [--only adanet ...] [--seeds 0 1 2 3 4] [--table]

The sources are the MFFENets of `benchmarks/accuracy.py`, one a seed. Adapted to the scene; scored on the scene against
the event's inventory, and on the 13 patches outside it against both annotators. `card` is the threshold of the source's
validation tiles, `scene` the one that `detect` finds without labels; `oracle` is the best one, which only the labels
can tell: it says what is left to gain, not what a responder gets. The last method sees target labels too: the source is
fine-tuned on the inventory in the patches, which an event without labels has not, and scored on the scene.

One line a method and seed is appended to `benchmarks/results/adaptation.jsonl`; rows that are there are not run again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from accuracy import BENCH as NETWORKS
from accuracy import WORK, card_from, new_ground
from ground import patches, scene, tiles, windows
from rows import Bench, Row, markdown, spread
from torch import nn

from models.adaptation import AdaptConfig, adapt
from models.augment import Tiles
from models.cards import ModelCard
from models.numerics import choose_device, processor
from models.predictor import Predictor
from models.registry import create_model, extend_to_adanet
from models.training import TrainConfig, fit
from tasks.scenario import FINE_TUNING
from tasks.thresholds import margin_threshold

RESULTS: Final = Path(__file__).parent / "results/adaptation.jsonl"
PUBLISHED: Final = AdaptConfig(self_training=0.0, landslide_share=0.0)
"""The terms of the published ADANet alone."""

ORACLE: Final = "fine-tuned on labels of the patches"
METHODS: Final[Mapping[str, AdaptConfig | TrainConfig | None]] = {
    "source only": None,
    "ADANet": PUBLISHED,
    "ADANet + histogram matching": replace(PUBLISHED, match="histogram"),
    "ADANet + Wallis matching": replace(PUBLISHED, match="wallis"),
    "ADANet + rare-class sampling": replace(PUBLISHED, landslide_share=AdaptConfig().landslide_share),
    "ADANet + entropy": replace(PUBLISHED, entropy=0.01),
    "ADANet + self-training": replace(PUBLISHED, self_training=AdaptConfig().self_training),
    "ADANet + companions": AdaptConfig(),
    "companions without adversaries": AdaptConfig(adversarial=(0.0, 0.0)),
    "ADANet + companions, statistics a domain": AdaptConfig(statistics="per-domain"),
    ORACLE: TrainConfig(steps=AdaptConfig().steps, **FINE_TUNING),
}
SOURCE: Final = "mffenet"
"""The network of `benchmarks/accuracy.py` that is adapted, one a seed."""
MAIN: Final = ("source only", "ADANet", "ADANet + companions")
MAIN_SEEDS: Final = (0, 1, 2, 3, 4)
SEEDS: Final = (0, 1, 2)


def source_of(seed: int) -> tuple[nn.Module, ModelCard]:
    """The trained network of a seed, with its card. Raises: SystemExit when `accuracy.py` has not made it."""
    row = next((r for r in NETWORKS.known() if (r["network"], r["seed"]) == (SOURCE, seed)), None)
    path = WORK / f"{SOURCE}-{seed}.pt"
    if row is None or not path.is_file():
        raise SystemExit(f"no source of seed {seed}: run benchmarks/accuracy.py --only {SOURCE} --seeds {seed} first")
    network = create_model("mffenet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["average"])
    return network.eval(), card_from(row)


def labelled_patches(card: ModelCard) -> Tiles:
    """The patches at the network's pixel size with the inventory's labels, 255 = not seen."""
    ground = patches()
    masks = np.where(ground.seen, ground.maps["inventory"], 255).astype(np.uint8)
    return Tiles(ground.levelled(card.median_rgb), masks, gsd_m=np.array(ground.gsd_m))


def run(method: str, seed: int) -> dict[str, Any]:
    """Everything that one row knows."""
    network, card = source_of(seed)
    config, ground = METHODS[method], scene()
    rounds: list[dict[str, Any]] = []
    started = time.perf_counter()
    if isinstance(config, TrainConfig):
        network = fit(network, labelled_patches(card), replace(config, seed=seed))
    elif config is not None:
        read = tiles("ACD", split="train")
        source = Tiles(read.images, read.maps["labels"].astype("uint8"))
        adanet = extend_to_adanet(network, "mffenet-lite0")
        network = adapt(
            adanet, source, windows(ground, ground.levelled(card.median_rgb), card), replace(config, seed=seed),
            threshold=margin_threshold(**asdict(card.calibration), card=card.threshold),
            on_round=lambda told, _network: rounds.append(asdict(told)),
        )  # fmt: skip
    seconds = time.perf_counter() - started
    predictor = Predictor(network, card, device=choose_device())
    return {
        "method": method,
        "seed": seed,
        "scene": new_ground(predictor, ground, levelled=True),
        "patches": None if method == ORACLE else new_ground(predictor, patches(), levelled=True),
        "rounds": rounds,
        "seconds": round(seconds),
        "device": processor(),
    }


COLUMNS: Final = {
    "scene, card": ("scene", "inventory, card"),
    "scene, scene": ("scene", "inventory, scene"),
    "scene, oracle": ("scene", "inventory, oracle"),
    "patches, card": ("patches", "second annotator, card"),
    "patches, scene": ("patches", "second annotator, scene"),
}
"""IoU: ground, and where its threshold is from."""


def table(rows: list[Row]) -> str:
    """Mean and spread of the IoU by method, Otsu's first, as Markdown."""
    otsu = [g.score(g.otsu(), who)["iou"] for g, who in ((scene(), "inventory"), (patches(), "second annotator"))]
    lines = [["Otsu on red / green, no network", "", f"{otsu[0]:.3f}", "", "", f"{otsu[1]:.3f}", "", ""]]
    plain = {row["seed"]: row["scene"]["inventory, scene"] for row in rows if row["method"] == "source only"}
    for method in METHODS:
        own = [row for row in rows if row["method"] == method]
        if own:
            cells = [spread(row[place][key] for row in own if row[place]) for place, key in COLUMNS.values()]
            won = sum(row["scene"]["inventory, scene"] > plain.get(row["seed"], 1.0) for row in own)
            lines.append([method, str(len(own)), *cells, f"{won} of {len(own)}"])
    return markdown(["method", "seeds", *COLUMNS, "better than source only"], lines)


BENCH: Final = Bench(
    RESULTS, "method", list(METHODS), lambda method: MAIN_SEEDS if method in MAIN else SEEDS, run=run, table=table
)

if __name__ == "__main__":
    BENCH.main(__doc__)
