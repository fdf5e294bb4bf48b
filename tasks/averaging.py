"""The shell of averaging: several trainings of one network in, their mean with a card of its own out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from catalog.config import AverageRun
from catalog.schema import InputError
from models.cards import ModelCard, find_weights, load_card, load_network
from models.soups import mean_network
from tasks.learning import open_labelled, publish_judged, refuse_other_weights
from tasks.samples import Samples

SHARED: Final = ("architecture", "bands", "lattice_gsd_m", "oversampling", "window_px", "median_rgb")
"""What the cards of the trainings must agree in."""


@dataclass(frozen=True)
class Prepared:
    """An average whose trainings, tiles and folder were checked."""

    run: AverageRun
    members: tuple[tuple[Path, ModelCard], ...]
    samples: Samples

    @property
    def weights(self) -> Path:
        """The file of the mean weights."""
        return Path(self.run.out) / f"{self.members[0][1].architecture}.safetensors"

    @property
    def training(self) -> dict[str, Any]:
        """What the card says of how the weights were made."""
        return {"mean_of": [{"weights_sha256": card.weights_sha256, **card.training} for _, card in self.members]}

    @property
    def finished(self) -> bool:
        """True when the weights are there already, of these very trainings."""
        return self.weights.is_file()

    def wrote(self, weights: Path) -> bool:
        """True for the mean of these very trainings. Raises: ValueError when its card cannot be read."""
        return weights == self.weights and load_card(weights).training == self.training


def prepare(run: AverageRun) -> Prepared:
    """The average of a configuration, checked: nothing is written.

    Raises: InputError when weights cannot be read or do not belong together, the tiles are not theirs, or the folder
    holds other weights.
    """
    try:
        members = tuple((weights, load_card(weights)) for weights in map(find_weights, run.weights))
    except ValueError as error:
        raise InputError(f"`weights`: {error}") from None
    _refuse_strangers(members)
    samples = open_labelled(run)
    _, card = members[0]
    if samples.train.median_rgb() != card.median_rgb:
        raise InputError(
            f"`tiles` {run.tiles}: got training tiles of median colour {samples.train.median_rgb()}; expected "
            f"{card.median_rgb}, as the weights' cards say; give the tiles of their trainings, split as there"
        )
    prepared = Prepared(run, members, samples)
    refuse_other_weights(Path(run.out), ours=prepared.wrote)
    return prepared


def _refuse_strangers(members: tuple[tuple[Path, ModelCard], ...]) -> None:
    """Weights that would not average: of other networks or from other beginnings, or given twice."""
    (first, reference), *others = members
    begun = reference.training.get("start_sha256")
    if begun is None:
        raise InputError(
            f"`weights` {first}: got weights that were not trained on from others; expected trainings on from the same "
            "weights (`landslidenet train --start`): the mean of others is no network"
        )
    for weights, card in others:
        for key in SHARED:
            if getattr(card, key) != getattr(reference, key):
                raise InputError(
                    f"`weights` {weights}: got {key} {getattr(card, key)}; expected {getattr(reference, key)}, as in "
                    f"{first}"
                )
        if (got := card.training.get("start_sha256")) != begun:
            raise InputError(
                f"`weights` {weights}: got a training on from {str(got)[:12]}; expected one from {begun[:12]}, as in "
                f"{first}"
            )
    digests = [card.weights_sha256 for _, card in members]
    if len(set(digests)) < len(digests):
        raise InputError("`weights`: got the same weights twice; expected each training once")


def publish_mean(prepared: Prepared) -> ModelCard:
    """The mean weights with their card, calibrated and judged anew, and their reliability diagram."""
    network = mean_network([load_network(weights, card) for weights, card in prepared.members])
    cards = [card for _, card in prepared.members]
    told = {f.name: getattr(cards[0], f.name) for f in fields(ModelCard) if f.name != "weights_sha256"}
    facts = told | {
        "name": cards[0].architecture,
        "data": _each(card.data for card in cards),
        "split": f"{_each(card.split for card in cards)}; the weights are the mean of {len(cards)} such trainings'",
        "training": prepared.training,
    }
    seeds = {"seeds": [card.training["seed"] for card in cards]}
    return publish_judged(network, Path(prepared.run.out), prepared.samples.validation, facts=facts, seeds=seeds)


def _each(texts: Iterable[str]) -> str:
    """Different texts, each once."""
    return "; ".join(dict.fromkeys(texts))
