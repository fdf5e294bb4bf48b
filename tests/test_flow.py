"""The main job through the real flow: a simulated event, real Dask workers, real Zarr, a real Prefect server.

The reference run, and one that is killed, are commands of their own with all that they start; the others run in this
process (`detection.landslidenet`).
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import geopandas as gpd
import numpy as np
import psutil
import pytest
import rasterio
from detection import landslidenet
from scipy.ndimage import binary_dilation

from models.numerics import choose_numerics
from tasks.review import evaluate_product, simulate_event

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]
LONGEST_S = 10
RUN = [sys.executable, "-c", "from flows.cli import main; main()"]


def _detect(*arguments):
    return landslidenet("detect", *arguments).last_line


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return simulate_event(tmp_path_factory.mktemp("scene") / "s", size_px=448, gsd_m=10.0, seed=7, sensor="rgb8")


@pytest.fixture(scope="module")
def inputs(scene):
    names = {"post": "--post", "pre": "--pre", "dem": "--dem", "event": "--event"}
    return [word for role, flag in names.items() for word in (flag, scene[role])]


@pytest.fixture(scope="module")
def done(inputs, tmp_path_factory):
    """The reference run: blocks of 256 px, two workers."""
    home = tmp_path_factory.mktemp("product")
    words = [*inputs, "--block", 256, "--workers", 2, "--root", home / "store", "--out", home / "out", "--json"]
    done = subprocess.run([*RUN, "detect", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def product(done):
    return Path(done.stdout.strip().splitlines()[-1])


def _bytes(folder):
    return (folder / "class.tif").read_bytes(), (folder / "probability.tif").read_bytes()


def _outlines(folder):
    layer = gpd.read_file(folder / "inventory.gpkg", layer="landslides")
    return layer.set_index("id").geometry.to_wkb().to_dict()


def test_detect_writes_a_complete_product(product):
    names = {p.name for p in product.iterdir()}
    wanted = "inventory.gpkg inventory.parquet probability.tif class.tif map.png report.html run.json item.json"
    assert set(wanted.split()) <= names
    with rasterio.open(product / "class.tif") as classes:
        assert set(np.unique(classes.read(1))) <= {0, 1, 255}


def test_detect_uses_everything_it_was_given(product):
    run = json.loads((product / "run.json").read_text())
    story = run["provenance"]
    stages = {s["stage"]: s for s in story["stages"]}
    assert {"terrain", "hydrology", "pair", "change", "inference", "objects", "join", "class", "publish"} <= set(stages)
    assert stages["hydrology"]["cpu_s"] > 0
    assert {entry["role"] for entry in story["inputs"]} == {"pre", "post", "DEM"}
    assert story["started_utc"] < story["finished_utc"]
    assert story["numerics"] == asdict(choose_numerics())
    assert f"network computed in {choose_numerics()}" in (product / "report.html").read_text()
    layer = gpd.read_file(product / "inventory.gpkg", layer="landslides")
    assert layer["slope_mean_deg"].notna().any()
    assert layer["change_score_mean"].notna().any()
    assert layer["channel_connected"].notna().all()
    assert layer["local_relief_m_mean"].notna().any()


def test_detect_again_keeps_the_ids_of_the_versions_before(inputs, product):
    out, root = product.parents[1], product.parents[2] / "store"
    again = _detect(*inputs, "--block", 256, "--root", root, "--out", out)
    assert again.name == "v2"
    assert _outlines(again) == _outlines(product)
    assert _bytes(again) == _bytes(product)
    stricter = _detect(*inputs, "--block", 256, "--root", root, "--out", out, "--threshold", 0.2)
    layer = gpd.read_file(stricter / "inventory.gpkg", layer="landslides")
    before = gpd.read_file(product / "inventory.gpkg", layer="landslides").set_index("id")
    assert (layer["version"] == 3).all()
    kept = layer[layer["id"].isin(before.index)]
    assert len(kept) > 0
    shared = kept.intersection(before.geometry.loc[kept["id"]].reset_index(drop=True).set_axis(kept.index)).area
    assert (shared > 0).all()


def test_detect_finds_simulated_landslides(product, scene):
    result = evaluate_product(product, truth=f"{scene['truth']}:landslides", aoi=None, valid=None)
    assert result["pixels"]["mcc"] > 0.3


def test_detect_prints_one_line_of_json_and_the_folder(done):
    run, folder = done.stdout.splitlines()
    assert json.loads(run) == json.loads((Path(folder) / "run.json").read_text())


def test_detect_is_quiet_on_the_terminal(done):
    assert "Finished in state" not in done.stderr
    assert "Inference" in done.stderr


def test_evaluate_of_the_inventory_agrees_with_that_of_the_product(product, scene):
    truth = f"{scene['truth']}:landslides"
    whole, drawn = (
        evaluate_product(source, truth=truth, aoi=None, valid=None) for source in (product, product / "inventory.gpkg")
    )
    assert drawn["pixels"] == whole["pixels"]
    assert drawn["objects"]["found"] == whole["objects"]["found"]


@pytest.fixture
def config(scene, tmp_path):
    """The reference run's inputs as a configuration file."""
    lines = [f"{role}: {scene[role]}" for role in ("post", "pre", "dem", "event")]
    lines += ["block: 256", f"root: {tmp_path / 'store'}", f"out: {tmp_path / 'out'}"]
    (tmp_path / "run.yaml").write_text("\n".join(lines))
    return tmp_path / "run.yaml"


def test_detect_result_does_not_depend_on_blocks(product, config):
    other = _detect(config, "--block", 512)
    assert _bytes(other)[0] == _bytes(product)[0]
    assert _outlines(other) == _outlines(product)


def test_detect_ended_in_inference_and_in_publish_resumes_from_the_ledger(product, inputs, prefect_api, tmp_path):
    """Told to end, then killed, in inference; told to end while it publishes: whoever comes next goes on.

    One worker makes what the two of the reference run made.
    """
    arguments = [*inputs, "--block", "256", "--root", tmp_path / "store", "--out", tmp_path / "out"]
    words = [*RUN, "detect", *map(str, arguments), "--workers", "1"]
    with _running(words, tmp_path, PREFECT_API_URL=prefect_api) as running:
        _wait_for_blocks(tmp_path / "store", running, least=1)
        _end(running, signal.SIGTERM, home=tmp_path)
    with _running(words, tmp_path, PREFECT_API_URL=prefect_api) as running:
        finished = _wait_for_blocks(tmp_path / "store", running, least=3)
        os.killpg(running.pid, signal.SIGKILL)
    with _running(words, tmp_path) as running:  # and a Prefect server of its own
        _wait_for(running, lambda: (tmp_path / "out/sim000007/.v1.partial").exists())
        _end(running, signal.SIGINT, home=tmp_path)
    kept = {p.name: p.stat().st_mtime_ns for p in finished}
    resumed = _detect(*arguments)
    stages = {s["stage"]: s for s in json.loads((resumed / "run.json").read_text())["provenance"]["stages"]}
    assert stages["inference"]["blocks_done_before"] == stages["inference"]["blocks"] > len(kept) >= 3
    ledger = next((tmp_path / "store").glob("*/probability-*.ledger"))
    assert all((ledger / name).stat().st_mtime_ns == time_ns for name, time_ns in kept.items())
    assert _bytes(resumed) == _bytes(product)
    assert _outlines(resumed) == _outlines(product)


@contextmanager
def _running(words, home, **variables):
    """A command in a group of its own, what it says in a file; none of it is there afterwards."""
    with (home / "said").open("w") as log:
        environment = {**os.environ, **variables}
        running = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True, env=environment)
        try:
            yield running
        finally:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()


def _end(running, number, *, home):
    """Tell a running command's group to end: it does within seconds, with one line, and leaves blocks only."""
    family = psutil.Process(running.pid).children(recursive=True)
    assert family
    asked = time.monotonic()
    os.killpg(running.pid, number)
    assert running.wait(timeout=120) == 128 + number
    assert time.monotonic() - asked < LONGEST_S
    assert psutil.wait_procs(family, timeout=LONGEST_S)[1] == []
    said = (home / "said").read_text()
    last = f"ended by {number.name}; what is finished is kept: run the same command again to go on"
    assert said.splitlines()[-1] == last
    assert "Traceback" not in said
    assert not list((home / "out/sim000007").iterdir())
    assert not [path for path in home.rglob("*") if path.name.startswith(".") or path.suffix == ".lock"]


def _wait_for(running, reached):
    for _ in range(30_000):
        if found := reached():
            return found
        assert running.poll() is None, "the run ended before it could be signalled"
        time.sleep(0.01)
    raise AssertionError("nothing was reached in time")


def _wait_for_blocks(root, running, *, least):
    def finished():
        blocks = sorted(root.glob("*/probability-*.ledger/r*.json"))
        return blocks if len(blocks) >= least else []

    return _wait_for(running, finished)


def test_detect_of_a_missing_file_is_one_message_and_status_2(tmp_path):
    done = landslidenet("detect", "--post", tmp_path / "nothing.tif", "--name", "x", check=False)
    assert done.returncode == 2
    assert "nothing.tif" in done.stderr
    assert "Traceback" not in done.stderr


def test_detect_uses_the_quality_band_of_its_sensor(tmp_path):
    """A Sentinel-2 scene with its scene classification: what is under cloud or shadow is not observed."""
    scene = simulate_event(tmp_path / "s", size_px=256, gsd_m=10.0, seed=3, sensor="sentinel2-l2a")
    places = ("--name", "s2", "--block", 256, "--root", tmp_path / "store", "--out", tmp_path / "out")
    folder = _detect("--post", scene["post"], "--sensor", "sentinel2-l2a", *places)
    with rasterio.open(folder / "class.tif") as classes, rasterio.open(scene["post"]) as post:
        observed = classes.read(1) != 255
        placed = classes.window(*post.bounds)
        assert (placed.col_off, placed.row_off) == (0, 0)
        scl = post.read(7)
    unseen = np.isin(scl, (3, 9))
    assert not observed[unseen].any()
    assert observed[~binary_dilation(unseen, np.ones((9, 9)))].all()  # masks of clouds are grown by a few pixels
    assert observed.mean() > 0.8


def test_detect_does_not_show_pre_imagery_that_it_refused(tmp_path):
    post, pre = (
        simulate_event(tmp_path / f"{seed}", size_px=256, gsd_m=10.0, seed=seed, sensor="rgb8")[role]
        for seed, role in ((3, "post"), (4, "pre"))
    )
    places = ("--name", "refused", "--block", 256, "--root", tmp_path / "store", "--out", tmp_path / "out")
    folder = _detect("--post", post, "--pre", pre, *places)
    report = (folder / "report.html").read_text()
    assert "change detection is not used" in report
    assert ">After<" in report
    assert ">Before<" not in report
