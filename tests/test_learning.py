"""Training through the command line: what it refuses, what it leaves behind, and that a kill changes nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image
from red_slides import write_tiles
from test_cli import refused, run  # noqa: F401 - a fixture

from catalog.config import TrainRun, parse_training
from catalog.schema import InputError, ModelError
from catalog.training import read_epochs, write_epochs
from models.calibration import reliability
from models.cards import find_weights, load_card, load_network
from models.losses import LOSSES
from models.training import TrainConfig
from tasks import learning

PX = 64
RUN = [sys.executable, "-c", "from flows.cli import main; main()"]
TINY = {
    "model": "mffenet-lite0-w32",
    "crop_px": 64,
    "batch": 2,
    "steps": 6,
    "epoch_steps": 2,
    "seed": 3,
    "leave_out": "B",
}
SEMVER = r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The order in which sums are taken depends on the threads, and with it the last bits of the weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Red slides on green ground, as the Landslide4Sense tiles lie on disk."""
    return write_tiles(
        tmp_path_factory.mktemp("tiles"), px=PX, train=6, validation=6, in_b=lambda number: number in (5, 11)
    )


def prepared(tiles, out, **changes):
    return learning.prepare(parse_training({"tiles": str(tiles), "out": str(out), **TINY, **changes}))


def trained(prepared, on_step=lambda _step, _loss: None):
    network, rows = learning.train_network(prepared, on_step=on_step, on_epoch=lambda _rows: None)
    return learning.publish_network(prepared, network, rows)


@pytest.fixture(scope="module")
def whole(tiles, tmp_path_factory):
    """A training that nothing disturbed."""
    one = prepared(tiles, tmp_path_factory.mktemp("whole"))
    trained(one)
    return one


def digest(weights):
    """Of the file, checked against its card: pytest takes minutes to show how megabytes differ."""
    return load_card(weights).weights_sha256


def command(whole, out, *words):
    """The same training by its flags, into another folder."""
    flags = {"--tiles": whole.run.tiles, "--out": out, "--model": TINY["model"], "--crop": 64, "--batch": 2,
             "--steps": 6, "--epoch-steps": 2, "--seed": 3, "--leave-out": "B"}  # fmt: skip
    return ["train", *(str(word) for pair in flags.items() for word in pair), *words]


def test_training_defaults_are_those_of_the_networks():
    told, config = TrainRun(tiles="t", out="o"), TrainConfig()
    shared = set(TrainRun.model_fields) & set(TrainConfig.__dataclass_fields__)
    assert {name: getattr(told, name) for name in shared} == {name: getattr(config, name) for name in shared}
    assert shared == set(learning.TOLD)


@pytest.mark.parametrize(
    ("loss", "losses"),
    [
        ("dice", {"dice": 1.0}),
        (["boundary=1", "dice=0.5"], {"boundary": 1.0, "dice": 0.5}),
        ({"boundary-published": 1, "focal": 2}, {"boundary-published": 1.0, "focal": 2.0}),
    ],
)
def test_training_losses_may_be_written_in_three_ways(loss, losses):
    assert parse_training({"tiles": "t", "out": "o", "loss": loss}).losses == losses


@pytest.mark.parametrize(("text", "events"), [("A,C", ("A", "C")), ("", ()), (["A"], ("A",))])
def test_training_events_held_out_are_a_list(text, events):
    assert parse_training({"tiles": "t", "out": "o", "hold-out": text}).hold_out == events


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step: 3", "unknown key `step`; expected one of: tiles, out, leave_out"),
        ("steps: 0", "`steps`: got 0; expected a whole number of at least 1"),
        ("crop: 100", "`crop_px`: got 100; expected a whole number of at least 64, a multiple of 16"),
        ("batch: 1", "`batch`: got 1; expected a whole number of at least 2"),
        ("learning_rate: -1", "`learning_rate`: got -1; expected a number above 0"),
        ("patience: soon", "`patience`: got 'soon'; expected a whole number"),
        ("model: unet", "`model`: got 'unet'; expected one of mffenet-lite0-w32"),
        ("start: nowhere.safetensors", "`start`: model: no weights for 'nowhere.safetensors'"),
        ("start: mffenet-lite0\nmodel: mffenet-lite0-w32", "got weights of mffenet-lite0; expected mffenet-lite0-w32"),
        ("model: adanet-lite0", "an ADANet is made of one of them by `landslidenet adapt`"),
        ("loss: [hinge=1]", "got ['hinge']; expected some of boundary, "),
        ("loss: {dice: 0}", "`losses.dice`: got 0; expected a number above 0"),
        ("loss: [dice=1, dice=2]", "a loss is given twice"),
        ("crop: 64\ncrop_px: 64", "`crop_px` is given twice"),
        ("tiles: nowhere", "tiles nowhere: got no folder; expected one with labelled tiles"),
        ("leave_out: A,B", "events to leave out: got A, B; expected some, not all, of A, B"),
        ("hold_out: C", "events to hold out: got C; expected some, not all, of A, B"),
    ],
)
def test_train_of_a_bad_configuration_is_one_message(run, tiles, tmp_path, text, message):  # noqa: F811
    base = {"tiles": str(tiles), "out": str(tmp_path / "out")}
    lines = [f"{key}: {value}" for key, value in base.items() if not text.startswith(key)]
    (tmp_path / "run.yaml").write_text("\n".join([*lines, text]))
    assert message in refused(run, "train", tmp_path / "run.yaml")


def test_train_without_tiles_says_which_flag_is_missing(run, tmp_path):  # noqa: F811
    assert "`tiles` is missing; pass --tiles" in refused(run, "train", "--out", tmp_path)


def test_train_flags_win_over_the_file(run, tiles, tmp_path):  # noqa: F811
    (tmp_path / "run.yaml").write_text(f"tiles: {tiles}\nout: {tmp_path}\ncrop: 64\nloss: dice")
    words = ("--crop", 100, "--loss", "hinge=1")
    assert "got 100;" in refused(run, "train", tmp_path / "run.yaml", *words[:2])
    assert "['hinge']" in refused(run, "train", tmp_path / "run.yaml", *words[2:])


def test_train_help_names_every_loss(run, monkeypatch):  # noqa: F811
    monkeypatch.setenv("COLUMNS", "200")
    shown = " ".join(run("train", "--help")[1].split())
    assert all(name in shown for name in LOSSES)
    assert "[default: (900)]" in shown


def test_train_refuses_tiles_of_one_class(tiles, tmp_path):
    for path in (tiles / "train" / "masks").glob("*.png"):
        target = tmp_path / path.relative_to(tiles)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((PX, PX), np.uint8)).save(target)
    for part in ("train/images", "validation"):
        (tmp_path / part).symlink_to(tiles / part)
    (tmp_path / "png_id_to_l4s_file.csv").symlink_to(tiles / "png_id_to_l4s_file.csv")
    with pytest.raises(InputError, match="one side without a landslide"):
        prepared(tmp_path, tmp_path / "out")


def test_training_leaves_weights_card_scores_and_plots(whole):
    assert {path.name for path in whole.out.iterdir()} == {
        "mffenet-lite0-w32.safetensors", "mffenet-lite0-w32.json", "metrics.jsonl", "training.png", "reliability.png",
    }  # fmt: skip
    for plot in ("training.png", "reliability.png"):
        with Image.open(whole.out / plot) as picture:
            assert min(picture.size) > 400


def test_metrics_have_a_line_an_epoch(whole):
    rows = [json.loads(line) for line in whole.metrics.read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert set(rows[0]) == {"step", "loss", "threshold", "precision", "recall", "f1", "iou", "seconds"}


def test_epochs_after_the_saved_step_are_left_out(tmp_path):
    write_epochs(tmp_path / "metrics.jsonl", [{"step": 2}, {"step": 4}])
    assert read_epochs(tmp_path / "metrics.jsonl", until_step=2) == [{"step": 2}]


def test_card_says_how_the_network_was_trained(whole):
    card = load_card(whole.weights)
    assert card.metrics["seed"] == card.training["seed"] == 3
    assert {"validation_f1", "validation_iou", "validation_ece"} <= set(card.metrics)
    assert card.training["losses"] == {"boundary": 1.0, "dice": 1.0}
    assert "5 training and 5 validation tiles" in card.split
    assert "without the events B" in card.split


def test_card_reliability_holds_every_pixel_calibration_was_not_fitted_on(whole):
    tables = load_card(whole.weights).reliability
    assert {name: sum(entry["pixels"] for entry in table) for name, table in tables.items()} == {
        "before": 2 * PX * PX, "after": 2 * PX * PX,
    }  # fmt: skip


def assert_is_mlm(fields, *, bands):
    """What MLM 1.4 asks of an item's properties, as far as it can be said without its schema."""
    assert {"mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"} <= set(fields)
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", fields["mlm:name"])
    assert fields["mlm:tasks"] == ["semantic-segmentation"]
    assert fields["mlm:framework"] == "PyTorch"
    assert re.fullmatch(SEMVER, fields["mlm:framework_version"])
    assert fields["mlm:accelerator"] in {None, "amd64", "cuda"}
    assert fields["mlm:total_parameters"] > 0
    assert (fields["mlm:pretrained_source"] is not None) == fields["mlm:pretrained"]
    (given,), (result,) = fields["mlm:input"], fields["mlm:output"]
    assert given["bands"] == list(bands)
    assert len(given["value_scaling"]) == len(bands)
    assert all(s["type"] == "z-score" and s["stddev"] > 0 and s["mean"] > 1 for s in given["value_scaling"])
    for tensor in (given["input"], result["result"]):
        assert len(tensor["shape"]) == len(set(tensor["dim_order"])) == 4
        assert all(size == -1 or size > 0 for size in tensor["shape"])
        assert tensor["data_type"] == "float32"
    assert [entry["value"] for entry in result["classification:classes"]] == [0, 1]


def test_card_has_the_fields_of_the_mlm_extension(whole):
    assert_is_mlm(load_card(whole.weights).mlm, bands=("red", "green", "blue"))


def test_shipped_card_has_the_fields_of_the_mlm_extension():
    card = load_card(find_weights("mffenet-lite0"))
    assert_is_mlm(card.mlm, bands=card.bands)
    assert card.reliability["after"]
    assert card.metrics["seeds"] == [each["seed"] for each in card.training["mean_of"]]
    assert len({each["start_sha256"] for each in card.training["mean_of"]}) == 1


def test_reliability_counts_pixels_of_the_same_probability():
    (low, high) = reliability(np.array([0.1, 0.1, 0.95, 1.0]), np.array([True, False, True, True]))
    assert (low.probability, low.frequency, low.pixels) == (0.1, 0.5, 2)
    assert (high.probability, high.frequency, high.pixels) == (pytest.approx(0.975), 1.0, 2)


class _Killed(Exception):
    pass


def test_training_killed_between_the_scores_and_the_state_has_no_line_twice(tiles, whole, tmp_path):
    def kill(step, _loss):
        if step == 3:
            raise _Killed

    with pytest.raises(_Killed):
        trained(prepared(tiles, tmp_path), on_step=kill)
    rows = read_epochs(tmp_path / "metrics.jsonl", until_step=9)
    write_epochs(
        tmp_path / "metrics.jsonl", [*rows, {**rows[0], "step": 4}]
    )  # written, and killed before the state was
    again = prepared(tiles, tmp_path)
    assert again.step == 2
    trained(again)
    assert [row["step"] for row in read_epochs(again.metrics, until_step=9)] == [2, 4, 6]
    assert digest(again.weights) == digest(whole.weights)


def test_training_with_patience_stops_early_and_takes_the_best(tiles, tmp_path):
    one = prepared(tiles, tmp_path, steps=12, epoch_steps=1, patience=1)
    card = trained(one)
    rows = read_epochs(one.metrics, until_step=12)
    best = max(range(len(rows)), key=lambda k: rows[k]["f1"])
    assert len(rows) == best + 1 + 1 < 12
    assert card.training["steps_done"] == len(rows)
    assert "epoch with the best F1" in card.split


@pytest.mark.parametrize(("key", "field"), [("noise", "impulse"), ("cloud", "cloud")])
def test_training_with_noise_or_cloud_is_another_training(tiles, tmp_path, key, field):
    plain, other = (prepared(tiles, tmp_path / str(share), **{key: share}) for share in (0.0, 0.2))
    assert getattr(other.config.augmentation, field) == 0.2
    assert other.identity != plain.identity


def test_training_goes_on_from_weights(tiles, whole, tmp_path):
    one = prepared(tiles, tmp_path, start=str(whole.weights), steps=1, learning_rate=1e-9)
    card, before = trained(one), load_card(whole.weights)
    ours, theirs = (load_network(weights, load_card(weights)).state_dict() for weights in (one.weights, whole.weights))
    learned = [name for name in ours if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-3) for name in learned)
    assert card.training["start_sha256"] == before.weights_sha256
    title = f"mffenet-lite0-w32 {before.weights_sha256[:12]}"
    assert f"started from {title} weights, made of {before.data}" in card.data
    assert before.split in card.split
    assert card.mlm["mlm:pretrained_source"] == title


def test_training_from_other_weights_is_another_training(tiles, whole, tmp_path):
    prepared(tiles, tmp_path, start=str(whole.out))
    trained(prepared(tiles, tmp_path))
    with pytest.raises(InputError, match="made otherwise"):
        prepared(tiles, tmp_path, start=str(whole.out))


def test_training_that_diverges_is_an_error(tiles, tmp_path):
    with pytest.raises(ModelError, match="training diverged: got a mean loss of nan"):
        trained(prepared(tiles, tmp_path, learning_rate=1e12, steps=8, epoch_steps=8))
    assert not list(tmp_path.glob("*.safetensors"))


def test_training_of_a_network_whose_weights_cannot_be_downloaded_says_so(tiles, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="`model` mffenet-resnet50: its ImageNet weights could not be downloaded"):
        trained(prepared(tiles, tmp_path, model="mffenet-resnet50"))


def test_training_refuses_the_folder_of_another(tiles, whole):
    with pytest.raises(InputError, match="made otherwise; .* choose another --out"):
        prepared(tiles, whole.out, seed=4)
    with pytest.raises(InputError, match="made otherwise"):
        prepared(tiles, whole.out, model="mffenet-lite0")


def test_training_refuses_a_state_of_another_configuration(tiles, tmp_path):
    torch.save({"identity": "another"}, tmp_path / "state.pt")
    with pytest.raises(InputError, match="another configuration or other tiles"):
        prepared(tiles, tmp_path)


def test_training_refuses_a_state_of_another_network_before_any_work(tiles, tmp_path):
    def kill(step, _loss):
        if step == 3:
            raise _Killed

    with pytest.raises(_Killed):
        trained(prepared(tiles, tmp_path), on_step=kill)
    with pytest.raises(InputError, match="state of another network"):
        prepared(tiles, tmp_path, model="mffenet-lite0")
    assert prepared(tiles, tmp_path).step == 2


def test_training_refuses_a_state_that_cannot_be_read(tiles, tmp_path):
    (tmp_path / "state.pt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(InputError, match=r"state\.pt: it cannot be read .*; delete it"):
        prepared(tiles, tmp_path)


def test_training_shows_tiles_as_its_card_says(whole):
    card = load_card(whole.weights)
    sizes = (2.0, 3.0, 10.0, 16.0, 30.0)
    assert [learning.LATTICE_GSD(gsd_m) for gsd_m in sizes] == [card.lattice_gsd(gsd_m) for gsd_m in sizes]


def test_train_again_says_that_it_is_done(run, whole, capsys):  # noqa: F811
    before = whole.weights.stat().st_mtime_ns
    run_words = command(whole, whole.out)
    from flows.cli import app

    app(run_words, standalone_mode=False)
    said = capsys.readouterr()
    assert said.out == f"{whole.weights}\n"
    assert "is trained already" in said.err
    assert whole.weights.stat().st_mtime_ns == before


def artifact(api, key):
    """What the Prefect UI shows under a key; by hand, because Prefect's `Artifact.get` leaves its socket open."""
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"{api}/artifacts/latest/filter", data=b"{}", headers=headers)
    with urllib.request.urlopen(asked) as answer:
        return next(row["data"] for row in json.load(answer) if row["key"] == key)


@pytest.mark.slow
def test_train_killed_by_the_system_goes_on_to_the_same_weights(whole, prefect_api, tmp_path):
    environment = {
        **os.environ,
        "PREFECT_API_URL": prefect_api,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "OMP_NUM_THREADS": "1",
    }
    words = [*RUN, *command(whole, tmp_path / "out")]
    first = subprocess.Popen(words, env=environment, start_new_session=True, stderr=subprocess.PIPE)
    state, deadline = tmp_path / "out" / "state.pt", time.monotonic() + 120
    while not state.is_file() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    assert state.is_file()
    assert not (tmp_path / "out" / whole.weights.name).exists()

    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out" / whole.weights.name)
    assert re.search(r"going on at step [24] of 6", done.stderr)
    assert "6/6" in done.stderr
    assert digest(tmp_path / "out" / whole.weights.name) == digest(whole.weights)
    assert [row["step"] for row in read_epochs(tmp_path / "out/metrics.jsonl", until_step=9)] == [2, 4, 6]
    assert not state.exists()
    table = artifact(prefect_api, "training-epochs").splitlines()[2:]
    assert [line.split(" | ")[0] for line in table] == ["| 2", "| 4", "| 6"]
