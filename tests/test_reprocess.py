"""A clearer scene arrives: only what it touches is computed again, and the next version says what changed."""

import json
import shutil

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from detection import landslidenet

from tasks.review import simulate_event

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]
BLOCK, SIDE = 256, 640


def _stages(folder):
    stages = json.loads((folder / "run.json").read_text())["provenance"]["stages"]
    return {stage["stage"]: stage for stage in stages}


def _made(root, step, *, key):
    """Blocks of a store that were computed, and those taken over."""
    entries = [json.loads(path.read_text()) for path in (root / f"{key}.ledger").glob("r*.json")]
    taken = {entry["block"] for entry in entries if "taken_from" in entry}
    return {entry["block"] for entry in entries} - taken, taken


@pytest.fixture(scope="module")
def runs(tmp_path_factory, warm):
    """Version 1 with a corner under cloud, version 2 with a second scene of that corner alone."""
    home = tmp_path_factory.mktemp("reprocess")
    scene = simulate_event(home / "scene", size_px=SIDE, gsd_m=10.0, seed=7, sensor="rgb8")
    cloudy, clear = home / "cloudy.tif", home / "clear.tif"
    shutil.copy(scene["post"], cloudy)
    with rasterio.open(cloudy, "r+") as tif:
        tif.nodata = 0
        pixels = tif.read()
        pixels[:, :200, :200] = 0
        tif.write(pixels)
    with rasterio.open(scene["post"]) as tif:
        window = rasterio.windows.Window(0, 0, 240, 240)
        corner = np.clip(tif.read(window=window).astype(int) + 2, 1, 255).astype(np.uint8)
        profile = {**tif.profile, "height": 240, "width": 240, "nodata": 0}
    with rasterio.open(clear, "w", **profile) as tif:
        tif.write(corner)
    common = ["--pre", scene["pre"], "--dem", scene["dem"], "--event", scene["event"], "--block", BLOCK,
              "--root", home / "store", "--out", home / "out"]  # fmt: skip
    first = landslidenet("detect", "--post", cloudy, *common).last_line
    second = landslidenet("detect", "--post", cloudy, clear, *common).last_line
    return home, first, second


def test_second_scene_computes_only_the_blocks_that_it_touches(runs):
    home, _, second = runs
    stores = json.loads((second / "run.json").read_text())["provenance"]["stores"]
    root = next((home / "store").iterdir())
    assert root.name == second.parent.name
    for name, step in (("post", "ingest_post"), ("probability", "probability"), ("change", "change")):
        made, taken = _made(root, step, key=stores[name])
        assert 0 < len(made) < len(taken), (name, made, taken)
        corner = min(made | taken, key=lambda block: [int(part) for part in block[1:].split("c")])
        assert corner in made
    stages = _stages(second)
    assert stages["inference"]["blocks_taken_over"] == len(_made(root, "probability", key=stores["probability"])[1])
    assert 0 < stages["inference"]["network_s"] < _stages(runs[1])["inference"]["network_s"]


def test_second_version_keeps_decisions_and_says_so(runs):
    _, first, second = runs
    before, after = (json.loads((folder / "run.json").read_text()) for folder in (first, second))
    decided = [run["provenance"]["decisions"] for run in (before, after)]
    assert decided[0] == decided[1]
    assert [line for line in after["used"] if "version 1's is kept" in line]
    assert [line for line in after["used"] if "shift and radiometry are kept" in line]


def test_second_version_says_what_changed(runs):
    _, first, second = runs
    difference = json.loads((second / "run.json").read_text())["difference"]
    assert json.loads((first / "run.json").read_text())["difference"] is None
    assert difference["from_version"] == 1
    seen = [rasterio.open(folder / "class.tif").read(1) != 255 for folder in (first, second)]
    assert difference["newly_observed_m2"] == (seen[1].sum() - seen[0].sum()) * 100 > 3e6
    assert difference["new"] > 0
    before, after = (gpd.read_file(folder / "inventory.gpkg", layer="landslides") for folder in (first, second))
    table = gpd.read_file(second / "inventory.gpkg", layer="changes").set_index("id")
    assert set(table.index) == {*before["id"], *after["id"]}
    far = before[before.representative_point().x > before.total_bounds[0] + 4500]
    assert (table.loc[far["id"], "change"] == "unchanged").all()
    assert "Since version 1" in (second / "report.html").read_text()


def test_same_scenes_again_compute_no_block(runs):
    home, _, second = runs
    config = json.loads((second / "run.json").read_text())["config"]
    values = {key: value for key, value in config.items() if value not in (None, [], {})}
    path = home / "again.yaml"
    path.write_text(json.dumps(values))
    third = landslidenet("detect", path).last_line
    stages = _stages(third)
    assert stages["inference"]["blocks_done_before"] == stages["inference"]["blocks"]
    assert (third / "class.tif").read_bytes() == (second / "class.tif").read_bytes()
    assert json.loads((third / "run.json").read_text())["difference"]["new"] == 0
