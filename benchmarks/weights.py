"""Weights beside each other: on ground like their training's, on new ground and under salt and pepper.

    python benchmarks/weights.py [WEIGHTS ...]

`WEIGHTS` are files or names of `landslidenet models`; without any, the shipped ones. The first columns are the cards'
own (all validation tiles); IoU is at the card's threshold / the scene's. Block B of Landslide4Sense and Hokkaido's
scene and patches (3 m) were left out of training; noise is F1 on every eighth validation tile by the share of pixels
made black or white.
"""

from __future__ import annotations

import argparse

from accuracy import NOISE, block_b, new_ground, noise
from ground import patches, scene
from rows import markdown

from catalog.config import DEFAULT_MODEL
from models.predictor import load_predictor

GROUNDS = (("B", block_b, "labels"), ("scene", scene, "inventory"), ("patches", patches, "second annotator"))
"""Title, place, and whose map is the reference."""


def row(weights: str) -> list[str]:
    """Scores of one file, in the order of the columns."""
    predictor = load_predictor(weights)
    card = predictor.card
    cells = [f"{card.name} {card.weights_sha256[:12]}", *(str(card.metrics[f"validation_{k}"]) for k in ("f1", "ece"))]
    for _, place, who in GROUNDS:
        found = new_ground(predictor, place(), levelled=True)
        cells.append(f"{found[f'{who}, card']:.3f} / {found[f'{who}, scene']:.3f}")
    return [*cells, *(f"{f1:.3f}" for f1 in noise(predictor).values())]


def main() -> None:
    """Print one row a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="*", default=[DEFAULT_MODEL])
    titles = ["weights", "val F1", "ECE", *(title for title, *_ in GROUNDS), *(f"{share:.0%} noise" for share in NOISE)]
    print(markdown(titles, [row(weights) for weights in parser.parse_args().weights]))


if __name__ == "__main__":
    main()
