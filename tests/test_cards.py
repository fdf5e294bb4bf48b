"""A model card whose values no network can have is refused, naming field, what was got and what was expected."""

import json
import shutil

import pytest

from models.cards import find_weights, load_card


@pytest.fixture
def card(tmp_path):
    """Weights with a card that says something else."""
    shipped = find_weights("mffenet-lite0")
    values = json.loads(shipped.with_suffix(".json").read_text())

    def with_values(**changed):
        path = tmp_path / "own.safetensors"
        if not path.exists():
            shutil.copy(shipped, path)
        told = dict(values)
        for name, value in changed.items():
            group, _, key = name.partition("__")
            told[group] = {**told[group], key: value} if key else value
        path.with_suffix(".json").write_text(json.dumps(told))
        return path

    return with_values


WRONG = {
    "window_px": (-1, 0, 250, 32, 8192, 256.0, True, "256", None),
    "threshold": (7, 0, 1, -0.1, float("nan"), "0.4", True),
    "oversampling": (0, -2, float("inf"), 17, "2"),
    "gsd_range_m": ([12.5, 3], [3], [3, 4, 5], [0, 5], [3, float("nan")], ["3", "5"], 3),
    "lattice_gsd_m": ([12.5, 5], [-5, 5], [5, float("inf")]),
    "median_rgb": ([46, 52], [46, 52, 256], [0, 52, 51], [46, 52, float("nan")], "46,52,51"),
    "bands": (["nir", "red", "green"], ["blue", "green", "red"], ["red"], "red", []),
    "weights_sha256": ("", "ab12", "F" * 64, 7),
    "architecture": ("resnet", "", None),
    "name": ("", "../../etc", 7, "a" * 200),
    "calibration__scale": (float("nan"), float("inf"), "1", True),
    "calibration__bias": (float("nan"), "0", None),
    "calibration__prevalence": (0, 1, 5, -0.1),
    "limits": ("none", [1]),
    "training": ([], "x"),
    "licence": (None, 3),
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in WRONG.items() for value in values], ids=str
)
def test_card_with_a_wrong_value_is_refused(card, field, value):
    name = field.replace("__", r"\.")
    with pytest.raises(ValueError, match=rf"`{name}`: got .*; expected ") as told:
        load_card(card(**{field: value}))
    assert "own.json" in str(told.value)


@pytest.mark.parametrize(
    "changed", [{"window_px": 512}, {"threshold": 0.9}, {"oversampling": 1}, {"gsd_range_m": [3, 3]}]
)
def test_card_with_other_right_values_is_read(card, changed):
    assert load_card(card(**changed))


def test_card_tells_of_every_wrong_value_at_once(card):
    with pytest.raises(ValueError, match=r"`window_px`: got -1; .*`threshold`: got 7"):
        load_card(card(window_px=-1, threshold=7))
