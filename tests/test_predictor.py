import json
import shutil

import numpy as np
import pytest

from models import load_predictor
from models.cards import find_weights


@pytest.fixture(scope="module")
def predictor():
    return load_predictor("mffenet-lite0")


def _images(*size):
    return np.random.default_rng(0).integers(0, 255, (2, *size, 3), dtype=np.uint8)


@pytest.mark.parametrize(("size", "gsd_m"), [((64, 64), 10.0), ((100, 130), 3.0), ((70, 64), 30.0)], ids=str)
def test_predictor_gives_a_probability_a_pixel_for_any_size_and_gsd(predictor, size, gsd_m):
    probability = predictor.predict(_images(*size), gsd_m=gsd_m)
    assert probability.shape == (2, *size)
    assert probability.dtype == np.float32
    assert probability.min() >= 0
    assert probability.max() <= 1


def test_predictor_shows_imagery_at_half_its_pixel_size_within_the_lattice(predictor):
    assert [predictor.card.lattice_gsd(gsd_m) for gsd_m in (3.0, 10.0, 16.0, 30.0)] == [5.0, 5.0, 8.0, 12.5]


def test_predictor_takes_windows_as_they_are(predictor):
    windows = _images(64, 64)
    same = predictor.card.lattice_gsd_m[0]  # what is this fine is not resampled
    np.testing.assert_array_equal(predictor.predict_windows(windows), predictor.predict(windows, gsd_m=same))


def test_predictor_is_kept_by_weights_and_device(predictor):
    assert load_predictor("mffenet-lite0", device="cpu") is load_predictor("mffenet-lite0", device="cpu")


def test_predictor_of_the_same_weights_with_another_card_is_another(tmp_path):
    weights, cards = find_weights("mffenet-lite0"), []
    (tmp_path / "own.safetensors").symlink_to(weights)
    for scale in (0.5, 2.0):
        card = json.loads(weights.with_suffix(".json").read_text())
        card["calibration"]["scale"] = scale
        (tmp_path / "own.json").write_text(json.dumps(card))
        cards.append(load_predictor(str(tmp_path / "own.safetensors"), device="cpu").card)
    assert [card.calibration.scale for card in cards] == [0.5, 2.0]


@pytest.mark.parametrize("text", ["{", "[]", '{"calibration": {}}', '{"calibration": {"scale": 1}, "title": "x"}'])
def test_predictor_says_that_its_card_cannot_be_read(tmp_path, text):
    weights = tmp_path / "other.safetensors"
    shutil.copy(find_weights("mffenet-lite0"), weights)
    weights.with_suffix(".json").write_text(text)
    with pytest.raises(ValueError, match=r"model card other\.json: cannot be read .*; copy both files again"):
        load_predictor(str(weights))


def test_predictor_of_no_device_names_the_devices():
    with pytest.raises(ValueError, match="got 'gpu'; expected auto, cpu, cuda or cuda:N"):
        load_predictor("mffenet-lite0", device="gpu")


@pytest.mark.parametrize("gsd_m", [0.0, -3.0, float("nan"), float("inf")])
def test_predictor_of_a_pixel_size_that_is_none_says_so(predictor, gsd_m):
    with pytest.raises(ValueError, match="expected a size above 0"):
        predictor.predict(_images(64, 64), gsd_m=gsd_m)


@pytest.mark.parametrize(
    "images",
    [_images(63, 80), _images(64, 64).astype(np.float32), _images(64, 64)[0], _images(64, 64)[:0]],
    ids=["small", "float", "one", "none"],
)
def test_predictor_says_what_images_it_expects(predictor, images):
    with pytest.raises(ValueError, match="expected"):
        predictor.predict(images, gsd_m=10.0)
