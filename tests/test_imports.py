"""The directions of the house, read from the source: who may import whom, and who may touch what."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("catalog", "models", "tasks", "flows")
SHELLS = {"tasks.steps", "tasks.blocks", "tasks.stages", "tasks.review"}
"""Modules of tasks that know the catalogue and the networks; the rest of tasks is pure."""


def _modules():
    return sorted(p for package in OURS for p in (ROOT / package).glob("*.py"))


def _name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _imports(path):
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
    ours = {name.split(".")[0] for name in _imports(path)} & set(OURS)
    assert ours <= allowed, f"{module} imports {ours - allowed}"
    if package == "tasks" and module not in SHELLS:
        reached = {n for n in _imports(path) if n.startswith("catalog.") and not n.startswith("catalog.schema")}
        assert not reached, f"{module} is pure science, yet imports {reached}"


@pytest.mark.parametrize("path", _modules(), ids=_name)
def test_imports_of_prefect_stay_in_flows_and_steps(path):
    uses = any(name.split(".")[0] == "prefect" for name in _imports(path))
    assert not uses or path.parent.name == "flows" or _name(path) == "tasks.steps"


@pytest.mark.parametrize("path", _modules(), ids=_name)
def test_imports_of_rasterio_and_zarr_stay_in_the_catalogue(path):
    if path.parent.name == "catalog":
        return
    reached = {n for n in _imports(path) if n.split(".")[0] in {"rasterio", "zarr", "fsspec", "pyogrio"}}
    geometry = {"rasterio.features"}  # arrays to polygons and back: no file is touched (docs/adr/0002)
    assert all(any(n.startswith(g) for g in geometry) or n == "rasterio" for n in reached), reached


@pytest.mark.parametrize("path", _modules(), ids=_name)
def test_computing_stays_in_the_shells(path):
    if _name(path) in SHELLS | {"catalog.store", "catalog.export"}:
        return
    calls = {
        node.func.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert not calls & {"compute", "persist"}
