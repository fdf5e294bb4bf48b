"""Means of trainings: what is refused, what the mean is, and that it is made once."""

import json
import shutil

import pytest
import torch
from red_slides import write_tiles
from test_cli import refused, run  # noqa: F401 - a fixture

from catalog.config import parse_average, parse_training
from catalog.schema import InputError
from models.cards import load_card, load_network
from models.soups import mean_network
from tasks import averaging, learning

TINY = {"model": "mffenet-lite0-w32", "crop_px": 64, "batch": 2, "steps": 1, "epoch_steps": 1, "leave_out": "B"}


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    return write_tiles(
        tmp_path_factory.mktemp("tiles"), px=64, train=6, validation=6, in_b=lambda number: number in (5, 11)
    )


@pytest.fixture(scope="module")
def trainings(tiles, tmp_path_factory):
    """A fresh training, and two on from it."""
    home = tmp_path_factory.mktemp("trainings")

    def train(name, **changes):
        told = {"tiles": str(tiles), "out": str(home / name), **TINY, **changes}
        prepared = learning.prepare(parse_training(told))
        network, rows = learning.train_network(prepared, on_step=lambda *_: None, on_epoch=lambda _: None)
        learning.publish_network(prepared, network, rows)
        return prepared.weights

    fresh = train("fresh")
    return fresh, train("one", start=str(fresh)), train("two", start=str(fresh), seed=1, learning_rate=1e-2)


def prepared(weights, tiles, out, **changes):
    told = {"weights": [str(one) for one in weights], "tiles": str(tiles), "out": str(out), "leave-out": "B"}
    return averaging.prepare(parse_average(told | changes))


def copied(weights, folder, **changes):
    """The weights in another folder, their card saying something else."""
    folder.mkdir()
    path = shutil.copy(weights, folder)
    told = json.loads(weights.with_suffix(".json").read_text())
    (folder / f"{weights.stem}.json").write_text(json.dumps(told | changes))
    return path


def test_average_is_the_mean_of_parameters_and_batch_statistics(tiles, trainings, tmp_path):
    _, one, two = trainings
    average = prepared([one, two], tiles, tmp_path)
    assert not average.finished
    card = averaging.publish_mean(average)
    mean, first, second = (load_network(path, load_card(path)).state_dict() for path in (average.weights, one, two))
    for name in first:
        if first[name].is_floating_point():
            assert torch.allclose(mean[name], (first[name] + second[name]) / 2, rtol=1e-3, atol=1e-6), name
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "reliability.png").is_file()
    assert card == load_card(average.weights)


def test_average_is_calibrated_and_judged_anew(tiles, trainings, tmp_path):
    _, one, two = trainings
    average = prepared([one, two], tiles, tmp_path)
    card, members = averaging.publish_mean(average), [load_card(path) for path in (one, two)]
    network = mean_network([load_network(path, load_card(path)) for path in (one, two)])
    margin = learning.margins_of(network, average.samples.validation, lattice_gsd=learning.LATTICE_GSD)
    judged = learning.judge(margin, average.samples.validation.masks)
    assert (card.calibration, card.threshold) == (judged.calibration, judged.threshold)
    assert card.calibration not in [member.calibration for member in members]
    assert card.metrics["seeds"] == [0, 1]
    assert "the weights are the mean of 2 such trainings'" in card.split
    told = [{"weights_sha256": member.weights_sha256, **member.training} for member in members]
    assert card.training == {"mean_of": told}
    same = ("architecture", "bands", "median_rgb", "window_px", "lattice_gsd_m", "limits", "mlm")
    assert all(getattr(card, name) == getattr(members[0], name) for name in same)


def test_average_is_made_once_and_its_folder_refused_to_others(tiles, trainings, tmp_path):
    fresh, one, two = trainings
    averaging.publish_mean(prepared([one, two], tiles, tmp_path / "mean"))
    assert prepared([one, two], tiles, tmp_path / "mean").finished
    with pytest.raises(InputError, match="made otherwise; expected an empty folder or what this very command left"):
        prepared([two, one], tiles, tmp_path / "mean")
    with pytest.raises(InputError, match="made otherwise"):
        prepared([one, two], tiles, fresh.parent)
    with pytest.raises(InputError, match="made otherwise"):
        learning.prepare(parse_training({"tiles": str(tiles), "out": str(tmp_path / "mean"), **TINY}))


def test_average_of_trainings_that_do_not_belong_together_is_refused(tiles, trainings, tmp_path):
    fresh, one, two = trainings
    training = load_card(two).training
    cases = {
        "not trained on from others; expected trainings on from the same weights": [fresh, one],
        "got a training on from None; expected one from": [one, fresh],
        "got a training on from aaaaaaaaaaaa; expected one from": [
            one, copied(two, tmp_path / "begun", training=training | {"start_sha256": "a" * 64})
        ],
        r"got window_px 128; expected 256, as in": [one, copied(two, tmp_path / "window", window_px=128)],
        "got the same weights twice": [one, two, copied(one, tmp_path / "twice")],
        "model: no weights for": [one, tmp_path / "nowhere.safetensors"],
    }  # fmt: skip
    for message, weights in cases.items():
        with pytest.raises(InputError, match=message):
            prepared(weights, tiles, tmp_path / "out")


def test_average_needs_the_tiles_of_its_trainings(tiles, trainings, tmp_path):
    with pytest.raises(InputError, match="got training tiles of median colour .*; give the tiles of their trainings"):
        prepared([copied(w, tmp_path / w.parent.name, median_rgb=[1, 2, 3]) for w in trainings[1:]], tiles, tmp_path)


def test_average_command_prints_the_weights_file(run, tiles, trainings, tmp_path):  # noqa: F811
    _, one, two = trainings
    words = ["--tiles", tiles, "--leave-out", "B", "--out", tmp_path / "mean"]
    assert "expected a list of at least 2" in refused(run, "average", one, *words)
    assert "`tiles` is missing; pass --tiles" in refused(run, "average", one, two)
    weights = tmp_path / "mean/mffenet-lite0-w32.safetensors"
    status, out, _ = run("average", one.parent, two.parent, *words)
    assert (status, out.split()) == (0, [str(weights)])
    status, out, err = run("average", one, two, *words)
    assert (status, out.split()) == (0, [str(weights)])
    assert "is averaged already: nothing to do" in " ".join(err.split())


def test_networks_of_different_shapes_have_no_mean():
    with pytest.raises(ValueError, match="different parameters; expected one architecture"):
        mean_network([torch.nn.Conv2d(1, 1, 1), torch.nn.Conv2d(1, 1, 3)])
    with pytest.raises(ValueError, match="networks to average: got 0"):
        mean_network([])
