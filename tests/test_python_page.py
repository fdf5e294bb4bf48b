"""The page for notebooks: its code, block after block, as a notebook runs it (docs/python.md)."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import catalog
import models

PAGE = Path(__file__).parents[1] / "docs/python.md"


def test_python_page_goes_from_files_to_an_inventory(followed_scene, prefect_api, tmp_path, monkeypatch):
    for role in ("post", "pre", "dem"):
        (tmp_path / f"{role}.tif").symlink_to(followed_scene[role].resolve())
    monkeypatch.chdir(tmp_path)
    told = {}

    async def run_the_cells():  # in a running loop, as there
        for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            exec(compile(code, PAGE.name, "exec"), told)

    asyncio.run(run_the_cells())
    assert len(told["landslides"]) == told["version"].run()["headline"]["count"] > 0
    assert Path(told["folder"]).resolve() == told["version"].folder.resolve()
    assert told["probability"].shape == (1, 256, 256)


def test_catalog_and_models_hold_what_they_name():
    for package in (catalog, models):
        assert all(getattr(package, name) is not None for name in package.__all__)


def test_import_of_catalog_and_models_loads_nothing_heavy():
    code = "import sys, catalog, models; print(*{'torch', 'timm', 'prefect', 'xarray', 'rasterio'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
