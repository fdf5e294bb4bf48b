import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import xarray as xr
from processes import s3_server

from catalog import reuse, store
from catalog.encoding import decode
from catalog.files import filesystem
from catalog.grid import snap_grid
from catalog.refs import shard_url
from catalog.schema import BANDS, DISAGREEMENT, ELEVATION, PROBABILITY, QUALITY, StoreError
from catalog.store import StoreRef


@pytest.fixture
def ref(tmp_path):
    grid = snap_grid((500_000, 4_000_000, 505_000, 4_004_000), epsg=32633, gsd_m=10.0, block_px=256)
    return StoreRef(str(tmp_path), "event", "step-1", grid, (BANDS["red"], QUALITY, ELEVATION), 128)


def _block(ref, seed=0):
    rng = np.random.default_rng(seed)
    shape = (ref.grid.block_px,) * 2
    red = rng.uniform(0, 1, shape).astype(np.float32)
    red[:3] = np.nan
    values = {"red": red, "quality": rng.integers(0, 5, shape).astype(np.uint8), "elevation_m": red * 100}
    return xr.Dataset({name: (("y", "x"), v) for name, v in values.items()})


def _fill(ref):
    store.create_store(ref)
    for block in ref.grid.blocks:
        store.write_block(ref, block, _block(ref))
    store.mark_complete(ref)


def test_store_round_trip_keeps_values_and_nodata(ref):
    _fill(ref)
    got = store.read_block(ref, ref.grid.blocks[0])
    want = _block(ref)
    np.testing.assert_allclose(got["red"], want["red"], atol=1e-4)
    assert np.isnan(got["red"].values[:3]).all()
    np.testing.assert_array_equal(got["quality"], want["quality"])
    assert got["quality"].dtype == np.uint8


@pytest.mark.parametrize("decode_coords", [True, "all"])
def test_store_opens_georeferenced(ref, decode_coords):
    _fill(ref)
    dataset = xr.open_zarr(ref.url, consolidated=False, decode_coords=decode_coords)
    assert dataset.rio.crs.to_epsg() == 32633
    assert dataset.rio.transform() == ref.grid.geobox.transform
    assert dataset["red"].rio.crs.to_epsg() == 32633
    assert (dataset["red"].encoding["shards"], dataset["red"].encoding["chunks"]) == ((256, 256), (128, 128))


def test_store_ledger_knows_what_is_done(ref):
    store.create_store(ref)
    first, *others = ref.grid.blocks
    store.write_block(ref, first, _block(ref))
    assert set(store.read_ledger(ref)) == {first.id}
    assert store.pending_blocks(ref) == tuple(others)


def test_store_is_not_complete_before_its_last_block(ref):
    store.create_store(ref)
    store.write_block(ref, ref.grid.blocks[0], _block(ref))
    with pytest.raises(StoreError, match="not in the ledger"):
        store.mark_complete(ref)
    with pytest.raises(StoreError, match="not complete"):
        store.open_store(ref)


def test_store_refuses_unaligned_writes(ref):
    store.create_store(ref)
    with pytest.raises(StoreError, match="whole blocks of 256 px"):
        store.write_block(ref, ref.grid.blocks[0], _block(ref).isel(y=slice(0, 100)))


def test_store_refuses_values_outside_the_contract(ref):
    store.create_store(ref)
    wild = _block(ref).assign(elevation_m=lambda d: d["elevation_m"] + 20_000)
    with pytest.raises(StoreError, match="elevation_m is"):
        store.write_block(ref, ref.grid.blocks[0], wild)


def test_store_refuses_a_block_without_a_variable(ref):
    store.create_store(ref)
    with pytest.raises(StoreError, match="'quality'"):
        store.write_block(ref, ref.grid.blocks[0], _block(ref).drop_vars("quality"))


def test_store_reads_outside_the_grid_as_nodata(ref):
    _fill(ref)
    halo = store.read_block(ref, ref.grid.blocks[0], halo_px=5)
    assert halo.sizes["y"] == 266
    assert np.isnan(halo["red"].values[:5]).all()
    assert (halo["quality"].values[:5] == 255).all()


def test_store_opens_lazily_one_chunk_a_block(ref):
    _fill(ref)
    dataset = store.open_store(ref)
    assert dataset["red"].data.chunksize == (256, 256)
    assert dataset.rio.crs.to_epsg() == 32633


def test_store_gives_the_same_values_in_their_memory_dtype_however_it_is_read(ref):
    _fill(ref)
    block = ref.grid.blocks[1]
    opened = store.open_store(ref).compute()
    sample = store.read_sample(ref, max_pixels=10**9)
    for variable in ref.variables:
        whole = opened[variable.name]
        assert whole.dtype == sample[variable.name].dtype == variable.memory_dtype
        np.testing.assert_array_equal(
            store.read_block(ref, block)[variable.name], whole.values[ref.grid.window(block).slices]
        )
        np.testing.assert_array_equal(sample[variable.name], whole.values[ref.grid.scene.slices])


@pytest.mark.parametrize("variable", [BANDS["red"], PROBABILITY, DISAGREEMENT], ids=lambda v: v.name)
def test_store_decodes_each_stored_value_to_the_float32_nearest_to_it(variable):
    stored = np.arange(np.iinfo(variable.dtype).max + 1).astype(variable.dtype)
    expected = np.where(stored == variable.nodata, np.nan, stored * np.float64(variable.scale)).astype(np.float32)
    np.testing.assert_array_equal(decode(variable, stored), expected)


def _fill_with_absolute_rows_and_columns(ref):
    store.create_store(ref)
    for block in ref.grid.blocks:
        window = ref.grid.window(block)
        y, x = np.mgrid[window.slices]
        values = (y + ref.grid.row0) % 991 + (x + ref.grid.col0) % 997
        data = {
            "red": (values % 7 / 10).astype(np.float32),
            "quality": (values % 5).astype(np.uint8),
            "elevation_m": values.astype(np.float32),
        }
        store.write_block(ref, block, xr.Dataset({name: (("y", "x"), v) for name, v in data.items()}))
    store.mark_complete(ref)


def test_store_sample_does_not_depend_on_the_block_size(ref, tmp_path):
    small = snap_grid((500_000, 4_000_000, 505_000, 4_004_000), epsg=32633, gsd_m=10.0, block_px=64)
    other = StoreRef(str(tmp_path / "other"), ref.event_id, ref.key, small, ref.variables, 64)
    for each in (ref, other):
        _fill_with_absolute_rows_and_columns(each)
    few = [store.read_sample(each, max_pixels=1000) for each in (ref, other)]
    assert few[0].sizes["y"] * few[0].sizes["x"] <= 1100
    xr.testing.assert_identical(few[0], few[1])


@pytest.mark.parametrize(("max_pixels", "step"), [(3, 259), (1000, 15), (10**9, 1)])
def test_store_sample_is_every_kth_pixel_of_the_scene(ref, max_pixels, step):
    _fill_with_absolute_rows_and_columns(ref)
    sample = store.read_sample(ref, max_pixels=max_pixels)
    whole = store.read_window(ref, ref.grid.scene)
    xr.testing.assert_allclose(sample, whole.isel(y=slice(None, None, step), x=slice(None, None, step)))


def test_store_same_content_same_digest(ref, tmp_path):
    _fill(ref)
    other = replace(ref, root=str(tmp_path / "other"))
    _fill(other)
    digests = [{k: e["sha256"] for k, e in store.read_ledger(r).items()} for r in (ref, other)]
    assert digests[0] == digests[1]


def test_store_ledger_of_another_key_counts_as_absent(ref, tmp_path, caplog):
    """Written as such: an entry that another store of the same contract holds, laid into this one's ledger."""
    other = replace(ref, key="step-2")
    for each in (ref, other):
        _fill(each)
    entry = next((tmp_path / "event" / "step-1.ledger").glob("r*.json"))
    entry.write_bytes((tmp_path / "event" / "step-2.ledger" / entry.name).read_bytes())
    assert entry.stem not in store.read_ledger(ref)
    assert f"{entry} is of another store" in caplog.text
    assert [block.id for block in store.pending_blocks(ref)] == [entry.stem]


@pytest.mark.parametrize(
    "change",
    [
        {"variables": (BANDS["red"], QUALITY, ELEVATION, PROBABILITY)},
        {"variables": (replace(BANDS["red"], scale=1e-3), QUALITY, ELEVATION)},
        {"variables": (replace(BANDS["red"], nodata=65535), QUALITY, ELEVATION)},
        {"variables": (replace(BANDS["red"], valid_range=(0.0, 1.0)), QUALITY, ELEVATION)},
        {"chunk_px": 64},
        {"version": 2},
    ],
    ids=["variable", "scale", "nodata", "range", "chunk", "version"],
)
def test_store_of_another_contract_holds_no_finished_block(ref, change):
    _fill(ref)
    other = replace(ref, **change)
    store.create_store(other)
    assert store.pending_blocks(other) == ref.grid.blocks
    assert not store.is_complete(other)
    for name in other.names:
        assert name in xr.open_zarr(other.url, consolidated=False)


def test_store_whose_making_was_cut_off_at_any_file_is_made(ref, tmp_path):
    """What an earlier release, which wrote in place, left after so many files."""
    whole = replace(ref, root=str(tmp_path / "whole"))
    store.create_store(whole)
    files = [path for path in Path(whole.url).rglob("*") if path.is_file()]
    files.sort(key=lambda path: (path.parent != Path(whole.url), path))  # Zarr writes the group first
    for count in range(len(files)):
        cut = replace(ref, root=str(tmp_path / f"cut{count}"))
        for path in files[:count]:
            target = Path(cut.url) / path.relative_to(whole.url)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        store.create_store(cut)
        store.write_block(cut, cut.grid.blocks[0], _block(cut))
        assert store.read_block(cut, cut.grid.blocks[0])["quality"].max() < 255


@pytest.mark.parametrize("attempt", range(6))
def test_store_made_by_several_at_once_keeps_every_block(ref, attempt):
    several = Barrier(4)

    def create_and_write(part):
        several.wait()
        store.create_store(ref)
        for block in ref.grid.blocks[part :: several.parties]:
            store.write_block(ref, block, _block(ref, seed=part))

    with ThreadPoolExecutor(several.parties) as pool:
        list(pool.map(create_and_write, range(several.parties)))
    assert store.pending_blocks(ref) == ()
    assert [store.damage_of(ref, block) for block in ref.grid.blocks] == [""] * len(ref.grid.blocks)
    assert [path.name for path in Path(ref.folder).iterdir() if path.name.startswith(".")] == []


@pytest.fixture
def s3(monkeypatch):
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with s3_server() as endpoint:
        monkeypatch.setenv("LANDSLIDENET_S3_ENDPOINT", endpoint)
        yield endpoint


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_store_lives_on_s3(ref, s3):
    import s3fs

    s3fs.S3FileSystem(client_kwargs={"endpoint_url": s3}).mkdir("scenes")
    remote = replace(ref, root="s3://scenes/store")
    _fill(remote)
    np.testing.assert_allclose(store.read_block(remote, ref.grid.blocks[1])["red"], _block(ref)["red"], atol=1e-4)
    assert store.is_complete(remote)
    assert os.environ["LANDSLIDENET_S3_ENDPOINT"] == s3
    first, second, third, *_ = remote.grid.blocks
    fs, shard = filesystem(shard_url(remote, QUALITY, first))
    fs.rm_file(shard)
    fs.pipe_file(filesystem(f"{remote.ledger_url}/{second.id}.json")[1], b"")
    fs.rm_file(filesystem(f"{remote.url}/red/zarr.json")[1])
    store.create_store(remote)
    assert second.id not in store.discard_void_entries(remote)
    assert [store.damage_of(remote, block) for block in (first, third)] == [f"s3://{shard} is missing", ""]
    store.discard_blocks(remote, {first: "it is missing"})
    assert store.pending_blocks(remote) == (first, second)
    assert not store.is_complete(remote)
    again = replace(remote, key="step-2")
    store.create_store(again)
    assert reuse.earlier_keys(again.root, again.event_id, "step") == ("step-1",)


def test_adopt_block_takes_over_what_was_made_of_the_same(ref):
    first, *_, last = ref.grid.blocks
    digest = reuse.inputs_digest(ref, last, [np.arange(4), {"gsd": 10}])
    store.create_store(ref)
    made = store.write_block(ref, last, _block(ref, seed=1), record={"inputs": digest, "network_s": 1.5})
    later = replace(ref, key="step-2")
    store.create_store(later)
    assert reuse.adopt_block(later, first, digest) is None
    assert reuse.adopt_block(later, last, "other") is None
    taken = reuse.adopt_block(later, last, digest)
    assert (taken["taken_from"], taken["sha256"]) == ("step-1", made["sha256"])
    assert "network_s" not in taken
    assert store.read_ledger(later)[last.id] == taken
    xr.testing.assert_identical(store.read_block(later, last), store.read_block(ref, last))


@pytest.mark.parametrize("damage", ["delete", "flip", "edit"])
def test_adopt_block_leaves_a_damaged_block_where_it_is(ref, damage, caplog):
    block = ref.grid.blocks[-1]
    store.create_store(ref)
    store.write_block(ref, block, _block(ref, seed=1), record={"inputs": "same"})
    later = replace(ref, key="step-2")
    store.create_store(later)
    shard = Path(shard_url(ref, QUALITY, block))
    entry = Path(ref.ledger_url) / f"{block.id}.json"
    if damage == "delete":
        shard.unlink()
    elif damage == "flip":
        shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    else:
        entry.write_text(entry.read_text().replace("same", "seem"))
    assert reuse.adopt_block(later, block, "seem" if damage == "edit" else "same") is None
    assert store.read_ledger(later) == {}
    assert damage == "edit" or f"{block.id}: {shard} is missing or not what was written" in caplog.text


def test_adopt_block_looks_where_it_was_told(ref):
    """Stores are listed once a stage: what came later is not seen, and nothing is listed for a block."""
    block = ref.grid.blocks[0]
    told = reuse.earlier_keys(ref.root, ref.event_id, "step")
    store.create_store(ref)
    store.write_block(ref, block, _block(ref), record={"inputs": "same"})
    later = replace(ref, key="step-2", earlier=told)
    store.create_store(later)
    assert (told, reuse.adopt_block(later, block, "same")) == ((), None)
    told = reuse.earlier_keys(ref.root, ref.event_id, "step")
    assert told == ("step-1",)
    assert reuse.adopt_block(replace(later, earlier=told), block, "same")["taken_from"] == "step-1"


def test_adopt_block_follows_the_grid_that_grew(ref):
    """The same ground has another place in the store of a larger area."""
    block = ref.grid.blocks[-1]
    digest = reuse.inputs_digest(ref, block, ["same"])
    store.create_store(ref)
    store.write_block(ref, block, _block(ref, seed=1), record={"inputs": digest})
    grid = snap_grid((490_000, 4_000_000, 505_000, 4_014_000), epsg=32633, gsd_m=10.0, block_px=256)
    later = replace(ref, key="step-2", grid=grid)
    store.create_store(later)
    assert reuse.inputs_digest(later, block, ["same"]) == digest
    reuse.adopt_block(later, block, digest)
    xr.testing.assert_identical(store.read_block(later, block), store.read_block(ref, block))


def test_adopt_block_of_nodata_alone_leaves_no_old_pixels(ref):
    block = ref.grid.blocks[0]
    empty = _block(ref) * np.nan
    empty["quality"] = (("y", "x"), np.full((256, 256), 255, np.uint8))
    store.create_store(ref)
    store.write_block(ref, block, empty, record={"inputs": "same"})
    later = replace(ref, key="step-2")
    store.create_store(later)
    store.write_block(later, block, _block(ref))
    reuse.adopt_block(later, block, "same")
    assert np.isnan(store.read_block(later, block)["red"]).all()


@pytest.mark.parametrize("change", [{"version": 2}, {"chunk_px": 256}, {"variables": (QUALITY,)}, {"key": "other-1"}])
def test_inputs_digest_follows_the_contract_and_the_algorithm(ref, change):
    block = ref.grid.blocks[0]
    assert reuse.inputs_digest(ref, block, [1]) != reuse.inputs_digest(replace(ref, **change), block, [1])


def test_inputs_digest_tells_arrays_apart_by_shape_and_type(ref):
    block, values = ref.grid.blocks[0], np.zeros(6, np.uint8)
    told = [values, values.reshape(2, 3), values.astype(np.int8), values.view(np.uint16)]
    assert len({reuse.inputs_digest(ref, block, [v]) for v in told}) == len(told)
