"""Damaged stores: what is damaged is named and made again, and what is published is what was computed."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import damages
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster

from catalog import store
from catalog.grid import snap_grid
from catalog.schema import PROBABILITY, QUALITY, StoreError
from catalog.store import StoreRef
from flows.detect import detect
from tasks.review import simulate_event
from tasks.stages import run_blocks, run_whole, verify_stores

pytestmark = pytest.mark.slow
QUIET = {"report": lambda done, total: None}


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0", memory_limit=0
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster):
    with Client(cluster) as client:
        yield client


def write(ref, block):
    rng = np.random.default_rng([abs(block.row), abs(block.col)])
    shape = (ref.grid.block_px,) * 2
    values = {"probability": rng.random(shape).astype(np.float32), "quality": rng.integers(0, 5, shape, np.uint8)}
    return store.write_block(ref, block, xr.Dataset({name: (("y", "x"), v) for name, v in values.items()}))


def write_all(ref):
    return [write(ref, block) for block in ref.grid.blocks]


@pytest.fixture(scope="module")
def made(client, tmp_path_factory):
    """A complete store of six blocks."""
    grid = snap_grid((500_000, 4_000_000, 505_000, 4_002_000), epsg=32633, gsd_m=10.0, block_px=256)
    root = tmp_path_factory.mktemp("made")
    ref = StoreRef(str(root), "event", "probability-0123456789ab", grid, (PROBABILITY, QUALITY), 128)
    run_blocks("stage", write, ref, target=ref, client=client, **QUIET)
    return ref


@pytest.fixture
def copied(made, tmp_path):
    """The same store elsewhere, to be damaged."""
    shutil.copytree(Path(made.root) / "event", tmp_path / "event")
    return StoreRef(str(tmp_path), "event", made.key, made.grid, made.variables, made.chunk_px)


def contents(ref):
    return {str(p.relative_to(ref.url)): p.read_bytes() for p in Path(ref.url).rglob("*") if p.is_file()}


def whole(ref, client):
    return run_whole("stage", write_all, ref, target=ref, client=client)


def by_blocks(ref, client):
    return run_blocks("stage", write, ref, target=ref, client=client, **QUIET)


def warned(caplog):
    return [line.getMessage() for line in caplog.records if line.levelno >= logging.WARNING]


def _named(value):
    return getattr(value, "__name__", None)


@pytest.mark.parametrize(("again", "place"), [(whole, 0), *((by_blocks, n) for n in damages.PLACES)], ids=_named)
@pytest.mark.parametrize("damage", damages.DAMAGES, ids=_named)
def test_damaged_store_is_the_undamaged_one_again(damage, place, again, copied, made, client, caplog):
    kept = damages.Kept(Path(copied.root) / "event", "probability")
    damage(kept, place)
    with caplog.at_level(logging.WARNING):
        record = again(copied, client)
    assert contents(copied) == contents(made)
    assert store.is_complete(copied)
    assert bool(warned(caplog)) == (damage not in damages.SILENT)
    assert not list(Path(copied.root).rglob("*.part"))
    caplog.clear()
    assert again(copied, client).blocks_done_before == record.blocks  # and stays so
    assert not warned(caplog)


READERS = {
    "block": lambda ref: store.read_block(ref, ref.grid.blocks[0]),
    "halo": lambda ref: store.read_block(ref, ref.grid.blocks[1], halo_px=200),
    "sample": store.read_sample,
    "lazy": lambda ref: store.open_store(ref).compute(),
}


@pytest.mark.filterwarnings("ignore:Object at:zarr.errors.ZarrUserWarning")  # Zarr says first what is said after it
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    "damage",
    [damages.delete_shard, damages.truncate_shard, damages.empty_shard, damages.zero_shard, damages.flip_a_bit,
     damages.delete_store, damages.delete_metadata_of_group, damages.delete_metadata_of_array],
    ids=_named,
)  # fmt: skip
def test_store_damaged_while_it_is_in_use_is_a_message_never_pixels(damage, read, copied):
    damage(damages.Kept(Path(copied.root) / "event", "probability"), 0)
    with pytest.raises(StoreError, match=r"damaged while it was in use.*run the same command again"):
        read(copied)


def test_store_of_nodata_alone_has_its_files(made, tmp_path):
    ref = replace(made, root=str(tmp_path))
    store.create_store(ref)
    block = ref.grid.blocks[0]
    shape = (256, 256)
    nothing = {"probability": np.full(shape, np.nan, np.float32), "quality": np.full(shape, 255, np.uint8)}
    store.write_block(ref, block, xr.Dataset({name: (("y", "x"), v) for name, v in nothing.items()}))
    assert store.damage_of(ref, block) == ""
    assert np.isnan(store.read_block(ref, block)["probability"]).all()


def test_pixels_that_were_never_written_are_not_observed(made, tmp_path):
    ref = replace(made, root=str(tmp_path))
    store.create_store(ref)
    for variable in ref.variables:
        array = xr.open_zarr(ref.url, consolidated=False, mask_and_scale=False)[variable.name]
        assert (array == variable.nodata).all()


def test_stores_damaged_while_a_run_used_them_are_not_published_and_made_again(copied, made, client):
    damages.swap_shards(damages.Kept(Path(copied.root) / "event", "probability"), 0)
    with pytest.raises(StoreError, match=r"probability/c/0/0 is not what was written.*nothing is published"):
        verify_stores([made, copied], client=client)
    assert not store.is_complete(copied)
    by_blocks(copied, client)
    assert contents(copied) == contents(made)
    assert verify_stores([made, copied], client=client).blocks == 2 * len(made.grid.blocks)


@pytest.fixture(scope="module")
def run_detect(cluster, prefect_api, tmp_path_factory):
    """A run of detect on a simulated event, in this process: product folder of a root and an output."""
    scene = simulate_event(tmp_path_factory.mktemp("scene") / "s", size_px=320, gsd_m=10.0, seed=7, sensor="rgb8")
    inputs = {role: str(scene[role]) for role in ("post", "pre", "dem")}

    def run(root, out):
        where = {"root": str(root), "out": str(out), "cluster": {"address": cluster.scheduler_address}}
        return Path(detect({"name": "event", "block": 256, **inputs, **where}))

    return run


@pytest.fixture(scope="module")
def undisturbed(run_detect, tmp_path_factory):
    home = tmp_path_factory.mktemp("undisturbed")
    return home / "store", run_detect(home / "store", home / "out")


def _stages(product):
    return json.loads((product / "run.json").read_text())["provenance"]["stages"]


def test_detect_over_damaged_stores_publishes_the_undisturbed_product(undisturbed, run_detect, tmp_path, caplog):
    """Every damage once, three a store."""
    root, product = undisturbed
    shutil.copytree(root, tmp_path / "store")
    for number, step in enumerate(damages.STEPS):
        kept = damages.Kept(tmp_path / "store" / "event", step)
        for place, damage in zip(damages.PLACES, damages.DAMAGES[3 * number : 3 * number + 3], strict=True):
            damage(kept, place)
    again = run_detect(tmp_path / "store", tmp_path / "out")
    assert damages.differences(product, again) == []
    assert len(warned(caplog)) >= len(damages.DAMAGES) - len(damages.SILENT) - 3
    for step in damages.STEPS:
        before, after = (damages.Kept(home / "event", step) for home in (root, tmp_path / "store"))
        for path in before.zarr.rglob("*"):
            assert path.is_dir() or path.read_bytes() == (after.zarr / path.relative_to(before.zarr)).read_bytes()


def test_detect_again_verifies_for_less_than_three_hundredths_of_the_run(undisturbed, run_detect, tmp_path):
    root, product = undisturbed
    again = run_detect(root, tmp_path / "out")
    assert damages.differences(product, again) == []
    made, verified = _stages(product), _stages(again)
    assert all(stage["blocks_done_before"] == stage["blocks"] for stage in verified if stage["stage"] != "objects")
    cost_s = sum(stage["verify_s"] for stage in verified)
    assert 0 <= cost_s < 0.03 * sum(stage["cpu_s"] for stage in made)
