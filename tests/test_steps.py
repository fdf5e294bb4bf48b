"""The steps on small stores made by hand: what they decide, without a flow or a cluster."""

import hashlib
from dataclasses import is_dataclass, replace
from datetime import UTC, datetime
from typing import get_args, get_origin, get_type_hints

import geopandas
import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from distributed import KilledWorker
from distributed.comm.core import CommClosedError
from prefect.states import Failed
from shapely.geometry import box

from catalog import store
from catalog.config import RunConfig
from catalog.schema import BANDS, QUALITY, InputError, StoreError
from catalog.store import StoreRef
from tasks import steps, story

SIDE = 384
LEFT, TOP = 583_680.0, 4_736_640.0


def texture(*, seed=0, dx=0.0):
    """Waves evaluated at shifted columns, (3, y, x) in 20..200."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIDE, 0:SIDE] - np.array([0, dx])[:, None, None]
    frequency, (angle, phase) = rng.uniform(0.05, 1.5, 120), rng.uniform(0, 6.28, (2, 120))
    waves = np.zeros((SIDE, SIDE))
    for f, a, p in zip(frequency, angle, phase, strict=True):
        waves += f**-0.7 * np.cos(f * (np.sin(a) * y + np.cos(a) * x) + p)
    gains = np.array([1.0, 0.9, 0.8])[:, None, None]
    return np.clip(gains * (100 + 25 * waves / waves.std()), 20, 200).astype(np.uint8)


def write(path, data, **more):
    profile = {**more, "driver": "GTiff", "count": len(data), "height": SIDE, "width": SIDE, "dtype": data.dtype}
    with rasterio.open(path, "w", **profile, crs="EPSG:32654", transform=Affine(3, 0, LEFT, 0, -3, TOP)) as out:
        out.write(data)
    return str(path)


def prepare(folder, *, post, pre, **more):
    config = RunConfig(
        name="e", block_px=256, root=str(folder / "store"), out=str(folder / "out"),
        post=(write(folder / "post.tif", post),), pre=(write(folder / "pre.tif", pre, compress="deflate"),),
        post_time_utc=datetime(2018, 9, 11, tzinfo=UTC), pre_time_utc=datetime(2018, 8, 1, tzinfo=UTC), **more,
    )  # fmt: skip
    return steps.check(config)


def keep(prepared, key, picture):
    """A finished store of an epoch."""
    variables = (*(BANDS[band] for band in ("red", "green", "blue")), QUALITY)
    ref = StoreRef(prepared.config.root, "e", key, prepared.grid, variables, 256)
    values = np.full((4, *prepared.grid.shape), np.nan, np.float32)
    values[(slice(0, 3), *prepared.grid.scene.slices)] = picture / 255
    values[3] = np.where(np.isfinite(values[0]), 0, 255)
    names = ("red", "green", "blue", "quality")
    whole = xr.Dataset({name: (("y", "x"), v) for name, v in zip(names, values, strict=True)})
    whole["quality"] = whole["quality"].astype(np.uint8)
    store.create_store(ref)
    for block in ref.grid.blocks:
        y, x = ref.grid.window(block).slices
        store.write_block(ref, block, whole.isel(y=y, x=x))
    store.mark_complete(ref)
    return ref


def paired(folder, *, post, pre):
    prepared = prepare(folder, post=post, pre=pre)
    paired = steps.pair.fn(prepared, keep(prepared, "pre", pre), keep(prepared, "post", post))
    return story.Run(prepared).with_pairing(paired)


def test_pair_of_images_that_match_is_used(tmp_path):
    run = paired(tmp_path, pre=texture(), post=texture(dx=1.3))
    assert run.pairing.usable
    assert run.pairing.coregistration.dx_px == pytest.approx(1.3, abs=0.1)
    assert "pre-event imagery: pre" in story.used(run)
    assert story.provenance_of(run, 1, threshold=0.5).pre_scenes == "pre"
    assert not [told for told in story.not_used(run) if "change detection" in told]


def test_used_says_what_was_read_of_vector_files(tmp_path):
    area = geopandas.GeoDataFrame(geometry=[box(LEFT, TOP - 600, LEFT + 600, TOP)], crs=32654)
    area.to_file(tmp_path / "map.gpkg", layer="area")
    area.to_file(tmp_path / "map.gpkg", layer="scars", mode="a")
    files = {"aoi": f"{tmp_path}/map.gpkg:area", "labels": f"{tmp_path}/map.gpkg:scars"}
    run = story.Run(prepare(tmp_path, post=texture(), pre=texture(), **files))
    told = [line for line in story.used(run) if "map.gpkg" in line]
    assert told == ["area of interest: map.gpkg, layer area, 1 polygon", "labels: map.gpkg, layer scars, 1 polygon"]
    (source,) = [entry for entry in story.story_of(run)["inputs"] if entry["role"] == "area of interest"]
    assert source["path"] == "map.gpkg"


def test_pair_that_is_refused_is_not_called_used(tmp_path):
    run = paired(tmp_path, pre=texture(seed=5), post=texture())
    assert not run.pairing.usable
    assert story.used(run)[0] == "post-event imagery: post"
    assert not [told for told in story.used(run) if "pre-event" in told]
    provenance = story.provenance_of(run, 1, threshold=0.5)
    assert (provenance.pre_scenes, provenance.pre_date) == (None, None)
    assert story.not_used(run)[-1].startswith("change detection is not used: pre and post could not be co-registered")
    assert not [told for told in story.warnings(run) if "co-registered" in told]


def test_pre_that_is_post_is_warned_of_and_not_used(tmp_path):
    run = paired(tmp_path, pre=texture(), post=texture())
    assert not run.pairing.usable
    assert "100% of the pixels of pre are those of post" in story.warnings(run)[-1]


def test_pair_without_common_radiometry_leaves_pre_out_and_goes_on(tmp_path):
    pre = texture()
    pre[2] = 90  # a band without contrast cannot be normalised
    run = paired(tmp_path, pre=pre, post=texture())
    assert not run.pairing.usable
    assert "change detection is not used: radiometric normalisation: blue has no contrast" in story.not_used(run)[-1]


@pytest.mark.parametrize(
    "change",
    [{"lattice_gsd_m": (3.0, 5.0)}, {"window_px": 128}, {"oversampling": 1.0}, {"architecture": "mffenet-resnet101"}],
    ids=str,
)
def test_network_key_follows_how_the_weights_are_run(tmp_path, change):
    card = prepare(tmp_path, post=texture(), pre=texture()).card
    assert steps._network_key(replace(card, **change)) != steps._network_key(card)


@pytest.mark.parametrize(
    "change",
    [(), (QUALITY, BANDS["red"]), (replace(QUALITY, units="m"),), (replace(QUALITY, nodata=0),),
     (replace(QUALITY, scale=0.5),), (replace(QUALITY, valid_range=(0, 4)),), (replace(QUALITY, dtype="uint16"),)],
    ids=["none", "one more", "units", "nodata", "scale", "range", "dtype"],
)  # fmt: skip
def test_target_of_another_contract_is_another_store(tmp_path, change):
    prepared = prepare(tmp_path, post=texture(), pre=texture())
    keys = [prepared.target("class", v, grid=prepared.grid, depends_on={}).key for v in ((QUALITY,), change)]
    assert keys[0] != keys[1]


def test_target_knows_the_stores_that_blocks_may_be_taken_from(tmp_path):
    prepared = prepare(tmp_path, post=texture(), pre=texture())
    earlier = keep(prepared, "ingest_post-0123456789ab", texture())
    keep(prepared, "ingest_pre-0123456789ab", texture())
    target = prepared.target("ingest_post", earlier.variables, grid=prepared.grid, depends_on={})
    assert target.earlier == (earlier.key,)


def test_pair_leaves_a_record_of_its_stage(tmp_path):
    (record,) = paired(tmp_path, pre=texture(), post=texture()).records
    assert record.stage == "pair"
    assert record.wall_s > 0


def test_story_names_every_input_with_its_digest(tmp_path):
    told = story.story_of(story.Run(prepare(tmp_path, post=texture(), pre=texture(seed=1))))
    assert [(entry["role"], entry["path"]) for entry in told["inputs"]] == [("pre", "pre.tif"), ("post", "post.tif")]
    assert told["inputs"][1]["sha256"] == hashlib.sha256((tmp_path / "post.tif").read_bytes()).hexdigest()
    assert datetime.fromisoformat(told["started_utc"]).tzinfo is not None


def caused(error, by):
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    ("error", "heals"),
    [
        (StoreError("block r0c0 failed"), False),
        (caused(StoreError("block r0c0 failed"), OSError("disk")), True),
        (caused(StoreError("block r0c0 failed"), KilledWorker("key", None, None)), True),
        (caused(StoreError("block r0c0 failed"), CommClosedError("closed")), True),
        (caused(StoreError("block r0c0 failed"), ValueError("shape")), False),
        (OSError("network"), True),
        (InputError("post.tif: does not exist"), False),
        (caused(InputError("block r0c0: post.tif is no raster"), OSError("open")), False),
        (caused(StoreError("block r0c0"), caused(InputError("no raster"), OSError("open"))), False),
        (ValueError("bug"), False),
    ],
    ids=str,
)
def test_heals_follows_the_cause_but_never_bad_input(error, heals):
    assert steps._heals(None, None, Failed(data=error)) == heals


RETRIED = sorted(name for name, step in vars(steps).items() if getattr(step, "retries", 0))


def dataclasses_of(kind, seen=()):
    """The dataclasses that a type is, holds, or is made of."""
    for inner in get_args(kind):
        yield from dataclasses_of(inner, seen)
    if is_dataclass(kind) and kind not in seen:
        yield kind
        for told in get_type_hints(kind).values():
            yield from dataclasses_of(told, (*seen, kind))


@pytest.mark.parametrize("name", RETRIED)
def test_a_step_that_is_tried_again_is_given_and_returns_values(name):
    """What a first try could change, the second would find changed."""
    for kind in get_type_hints(getattr(steps, name).fn).values():
        for found in dataclasses_of(kind):
            assert found.__dataclass_params__.frozen, found
            lists = [field for field, told in get_type_hints(found).items() if get_origin(told) in (list, dict, set)]
            assert not (found.__module__.startswith("tasks.") and lists), f"{found.__name__}: {lists}"


def test_run_counts_a_stage_once_however_often_its_step_was_tried(tmp_path):
    prepared = prepare(tmp_path, post=texture(), pre=texture())
    refs = (keep(prepared, "pre", texture()), keep(prepared, "post", texture()))
    before = story.Run(prepared)
    tries = [steps.pair.fn(prepared, *refs) for _ in range(2)]
    after = before.with_pairing(tries[-1])
    assert [record.stage for record in after.records] == ["pair"]
    assert before.records == ()
