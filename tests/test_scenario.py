"""The scene's own network through the real flow: adapted from other events, or fine-tuned on labels of the area."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import httpx
import numpy as np
import pytest
import torch
from detection import RUNNING, landslidenet
from red_slides import write_tiles
from test_cli import refused, run  # noqa: F401 - a fixture

from catalog.config import RunConfig
from flows.train import adapt
from models.augment import Tiles
from models.cards import find_weights, load_card, load_network
from models.predictor import Predictor
from tasks import scenario
from tasks.review import simulate_event

PX = 64


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return simulate_event(tmp_path_factory.mktemp("scene") / "s", size_px=448, gsd_m=10.0, seed=7, sensor="rgb8")


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Labelled tiles of two other events, as Landslide4Sense lies on disk."""
    return write_tiles(
        tmp_path_factory.mktemp("tiles"), px=PX, train=6, validation=2, in_b=lambda number: number % 2 == 1
    )


def _landslidenet(*arguments):
    return landslidenet(*arguments).last_line


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def inputs(scene, home, warm):
    return ["--post", scene["post"], "--name", "sim", "--block", 256, "--root", home / "store",
            "--out", home / "out", "--network-steps", 2,
            "--cluster", RUNNING[0], "--workers", 1, "--threads", 1]  # fmt: skip


@pytest.fixture(scope="module")
def adapted(inputs, tiles):
    return _landslidenet("detect", *inputs, "--adapt", tiles, "--leave-out", "B")


def _story(product):
    told = json.loads((product / "run.json").read_text())
    return told, next(sentence for sentence in told["used"] if sentence.startswith("network: "))


@pytest.mark.slow
def test_adapted_network_is_an_artefact_of_the_event(adapted, tiles, home):
    told, sentence = _story(adapted)
    (weights,) = (home / "out/sim/networks").glob("adanet-*.safetensors")
    card = load_card(weights)
    assert sentence.endswith("adapted to this scene without labels (ADANet), made by this run")
    assert weights.stem in sentence
    assert told["model"]["weights_sha256"] == card.weights_sha256
    assert card.architecture == "adanet-lite0"
    assert card.origin["weights"] == load_card(find_weights("mffenet-lite0")).weights_sha256
    assert card.origin["leave_out"] == ["B"]
    assert "from 4 labelled tiles (events: A)" in card.data
    assert "no label of the scene was used" in card.split
    assert {"network", "inference"} <= {stage["stage"] for stage in told["provenance"]["stages"]}


@pytest.mark.slow
def test_adaptation_shows_its_losses_in_its_run(scene, tiles, tmp_path, prefect_api):
    weights = adapt({"post": str(scene["post"]), "name": "sim", "adapt": str(tiles), "network_steps": 2, "block": 256,
                     "adaptation": {"batch": 1, "crop_px": 64}, "workers": 1, "threads": 1,
                     "root": str(tmp_path / "store"), "out": str(tmp_path / "out")})  # fmt: skip
    assert Path(weights).is_file()
    asked = {"artifacts": {"key": {"any_": ["network", "network-losses"]}}, "sort": "KEY_ASC"}
    progress, losses = httpx.post(f"{prefect_api}/artifacts/latest/filter", json=asked).json()
    assert progress["data"] == 100.0
    (row,) = json.loads(losses["data"])
    assert row["step"] == 2
    assert {"segmentation", "adversarial, main", "adversarial, auxiliary", "discriminators"} < set(row)
    assert losses["flow_run_id"]
    assert losses["flow_run_id"] == progress["flow_run_id"]


@pytest.mark.slow
def test_adapted_network_is_taken_again_for_the_same_inputs(adapted, inputs, tiles, home):
    again = _landslidenet("detect", *inputs, "--adapt", tiles, "--leave-out", "B")
    assert _story(again)[1].endswith("made by an earlier run of the same inputs")
    assert (again / "class.tif").read_bytes() == (adapted / "class.tif").read_bytes()
    weights = _landslidenet("adapt", again, "--tiles", tiles)  # the product's own configuration
    assert weights.is_file()
    assert weights.parent == home / "out/sim/networks"
    assert len(list(weights.parent.glob("*.safetensors"))) == 1


@pytest.mark.slow
def test_labels_of_the_area_fine_tune_the_network(inputs, tiles, scene, home):
    product = _landslidenet("detect", *inputs, "--labels", f"{scene['truth']}:landslides", "--adapt", tiles)
    told, sentence = _story(product)
    (weights,) = (home / "out/sim/networks").glob("mffenet-*.safetensors")
    card = load_card(weights)
    before, after = card.metrics["held_out_f1_before"], card.metrics["held_out_f1"]
    assert f"F1 on ground held out {before:.3f} before, {after:.3f} after" in sentence
    assert ("as it is: " in sentence) == (after <= before)
    assert (told["model"]["name"] == weights.stem) == (after > before)
    assert card.origin["kind"] == "fine-tuned"
    assert set(card.reliability) == {"before", "after"}


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_network_as_it_is_says_why(scene, tmp_path):
    product = _landslidenet("detect", "--post", scene["post"], "--name", "sim", "--block", 1024,
                            "--root", tmp_path / "store", "--out", tmp_path / "out")  # fmt: skip
    assert _story(product)[1] == (
        "network: mffenet-lite0, as it is: neither labels of the area (--labels) nor --adapt were given"
    )


def _refused(run, tmp_path, scene, *words):  # noqa: F811
    return refused(run, "detect", "--post", scene["post"], "--name", "x", "--root", tmp_path, "--out", tmp_path, *words)


def test_sources_that_cannot_be_read_are_refused_before_any_work(run, tmp_path, scene):  # noqa: F811
    assert "got no folder; expected one of: landslide4sense-rgb" in _refused(run, tmp_path, scene, "--adapt", "nowhere")
    assert "labels" in _refused(run, tmp_path, scene, "--labels", "nowhere.gpkg")
    told = _refused(run, tmp_path, scene, "--leave-out", "B")
    assert "events to leave out, but nothing to adapt from; give --adapt FOLDER" in told
    told = _refused(run, tmp_path, scene, "--labelled-area", "area.gpkg")
    assert "a labelled area without labels; give --labels" in told
    assert "adapt: nothing to learn from; pass --tiles" in refused(run, "adapt", scene["post"])


@pytest.mark.usefixtures("warm")
def test_labels_elsewhere_are_refused(tmp_path, scene):
    elsewhere = gpd.read_file(scene["truth"], layer="landslides").translate(1e5, 0)
    elsewhere.to_file(tmp_path / "elsewhere.gpkg")
    places = ("--root", tmp_path / "s", "--out", tmp_path / "o")
    labels = ("--labels", tmp_path / "elsewhere.gpkg")
    done = landslidenet("detect", "--post", scene["post"], "--name", "x", *places, *labels, check=False)
    assert done.returncode == 2
    assert "no landslide lies on observed ground of x" in done.stderr


def test_windows_to_adapt_to_are_the_likeliest_and_others_evenly(monkeypatch):
    monkeypatch.setattr(scenario, "MOST_WINDOWS", 4)
    images = np.zeros((9, PX, PX, 3), np.uint8)
    images[[2, 7]] = 200
    weights = find_weights("mffenet-lite0")
    card = load_card(weights)
    predictor = Predictor(load_network(weights, replace(card)), card, device="cpu")
    likely = np.argsort([-predictor.predict_windows(image[None]).mean() for image in images], kind="stable")[:2]
    chosen = scenario.choose_windows(
        Tiles(images, np.zeros(images.shape[:3], np.uint8), events=np.arange(9).astype(str)), predictor
    )
    assert len(chosen) == 4
    assert set(likely.astype(str)) <= set(chosen.events.tolist())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"selftraining": 1}, "`adaptation`: unknown key selftraining; expected one of: seed, steps, batch"),
        ({"statistics": "mixed"}, "`adaptation`: `statistics`: got 'mixed'; expected `frozen`, `per-domain`"),
    ],
    ids=["unknown", "unfit"],
)
def test_settings_of_the_adaptation_that_do_not_fit_are_refused(run, tmp_path, scene, tiles, settings, message):  # noqa: F811
    config = {"post": str(scene["post"]), "name": "x", "adapt": str(tiles), "adaptation": settings}
    (tmp_path / "run.yaml").write_text(json.dumps(config))  # JSON is YAML
    assert message in refused(run, "detect", tmp_path / "run.yaml", "--root", tmp_path / "s", "--out", tmp_path / "o")


def test_weights_of_an_event_that_were_damaged_are_made_again(tmp_path, caplog):
    source = find_weights("mffenet-lite0")
    for path in (source, source.with_suffix(".json")):
        shutil.copy(path, tmp_path)
    weights = tmp_path / source.name
    assert scenario.are_sound(weights)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert not scenario.are_sound(weights)
    assert f"{weights}: model card" in caplog.text
    assert not scenario.are_sound(tmp_path / "none.safetensors")


def test_adanet_starts_the_same_whatever_the_worker_did_before():
    weights = find_weights("mffenet-lite0")
    states = []
    for drawn in (0, 7):
        torch.rand(drawn)
        states.append(scenario.start_networks(weights, load_card(weights))[1].state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True))


def test_settings_switch_the_terms_of_the_adaptation():
    config = RunConfig(name="x", post=("a.tif",), adapt="tiles", network_steps=7,
                       adaptation={"adversarial": [0, 0], "match": "histogram"})  # fmt: skip
    told = scenario.adapt_config(config)
    assert (told.steps, told.adversarial, told.match) == (7, (0.0, 0.0), "histogram")
