import json
from datetime import UTC, datetime

import numpy as np
import pytest
import rasterio
from affine import Affine

from catalog.checks import check_inputs
from catalog.config import RunConfig
from catalog.scenes import read_epoch
from catalog.schema import InputError

SIZE = 48
WHERE = Affine(10, 0, 583_200, 0, -10, 4_737_000)
KEYS = ("blue", "green", "red", "nir")
FOREST = (0.02, 0.04, 0.03, 0.25)
"""Reflectance of dark ground, by band."""


def scene(folder, *, offset_dn, dark=FOREST, stated=None, asset=None, name="a"):
    """A STAC item whose pixels are `dark` and more, stored with `offset_dn`."""
    rng = np.random.default_rng(5)
    assets = {}
    for key, floor in zip(KEYS, dark, strict=True):
        dn = np.rint((floor + rng.gamma(2.0, 0.02, (SIZE, SIZE))) * 1e4).astype(np.uint16) + np.uint16(offset_dn)
        profile = {"count": 1, "height": SIZE, "width": SIZE, "dtype": "uint16", "nodata": 0}
        with rasterio.open(
            folder / f"{name}_{key}.tif", "w", driver="GTiff", **profile, transform=WHERE, crs="EPSG:32654"
        ) as out:
            out.write(dn[None])
        assets[key] = {"href": f"{name}_{key}.tif", **(asset or {})}
    item = {
        "type": "Feature", "stac_version": "1.0.0", "id": name, "links": [], "assets": assets,
        "properties": {"datetime": "2023-09-11T01:30:00Z", **(stated or {})},
        "bbox": [142, 42, 143, 43], "geometry": {"type": "Point", "coordinates": [142.5, 42.5]},
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(item))
    return str(folder / f"{name}.json")


def checked(folder, post, **more):
    places = {"root": str(folder / "s"), "out": str(folder / "o"), "block_px": 256}
    return check_inputs(RunConfig(name="e", post=(post,), sensor="sentinel2-l2a", **places, **more))


def red(inputs):
    return float(read_epoch(inputs.post, inputs.grid.geobox)[0]["red"].min())


APPLIED = {"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": True}
STALE = {"raster:bands": [{"nodata": 0, "scale": 0.0001, "offset": -0.1}]}


@pytest.mark.parametrize(
    ("offset_dn", "stated", "asset", "reason"),
    [
        (1000, {"s2:processing_baseline": "05.09"}, {}, "offset -0.1: processing baseline 05.09"),
        (1000, {"processing:version": "05.09"}, {"raster:scale": 1e-4, "raster:offset": -0.1}, "the item's assets"),
        (1000, {}, {"bands": [{"raster:offset": -0.1, "nodata": 0}]}, "the item's assets"),
        (0, {"s2:processing_baseline": "02.14"}, {}, "offset +0: processing baseline 02.14"),
        (0, APPLIED, STALE, "offset +0: earthsearch:boa_offset_applied"),
    ],
    ids=["baseline", "asset", "stac-1.1", "old", "applied"],
)
def test_offset_that_an_item_states_and_its_pixels_bear_out(tmp_path, offset_dn, stated, asset, reason):
    inputs = checked(tmp_path, scene(tmp_path, offset_dn=offset_dn, stated=stated, asset=asset))
    assert red(inputs) == pytest.approx(0.03, abs=0.004)
    assert reason in inputs.post.radiometry[0]
    assert inputs.warnings == () or all("offset" not in told for told in inputs.warnings)


@pytest.mark.parametrize(
    ("offset_dn", "stated", "told"),
    [
        (
            1000,
            APPLIED,
            "offset -0.1: earthsearch:boa_offset_applied says that it is taken away, but its dark",
        ),
        (
            0,
            {"s2:processing_baseline": "05.09"},
            "offset +0: processing baseline 05.09, but its dark pixels do not",
        ),
        (1000, {}, "offset -0.1: no processing baseline is known, but its dark pixels carry"),
    ],
    ids=["applied-is-wrong", "taken-away-unsaid", "nothing-said"],
)
def test_offset_that_the_pixels_refute_is_not_applied(tmp_path, offset_dn, stated, told):
    inputs = checked(tmp_path, scene(tmp_path, offset_dn=offset_dn, stated=stated))
    assert red(inputs) == pytest.approx(0.03, abs=0.004)
    assert told in inputs.post.radiometry[0]
    assert any("reflectance offset" in warning and "a:" in warning for warning in inputs.warnings)


@pytest.mark.parametrize("dark", [(0.12, 0.17, 0.24, 0.3), (0.4, 0.4, 0.4, 0.4)], ids=["desert", "cloud"])
def test_offset_of_bright_ground_is_as_stated(tmp_path, dark):
    inputs = checked(tmp_path, scene(tmp_path, offset_dn=0, dark=dark, stated=APPLIED))
    assert red(inputs) == pytest.approx(dark[2], abs=0.006)


def test_offset_of_a_stated_old_baseline_holds_and_is_doubted(tmp_path):
    inputs = checked(tmp_path, scene(tmp_path, offset_dn=1000, stated={"s2:processing_baseline": "02.14"}))
    assert red(inputs) == pytest.approx(0.13, abs=0.006)
    assert any("look as if they carried the offset" in told for told in inputs.warnings)


def test_offsets_of_two_dates_that_differ_are_told(tmp_path):
    stated = {"s2:processing_baseline": "02.14"}
    post = scene(tmp_path, offset_dn=0, stated=stated, name="post")
    pre = scene(tmp_path, offset_dn=0, dark=(0.13, 0.14, 0.16, 0.3), name="pre",
                stated={**stated, "datetime": "2023-01-11T01:30:00Z"})  # fmt: skip
    told = checked(tmp_path, post, pre=(pre,)).warnings
    assert any(text.startswith("the darkest pixels of post and pre differ by 0.1") for text in told)


def test_offset_reasons_that_an_item_brings_along_are_not_ours(tmp_path):
    brought = {"landslidenet:offset": -0.4, "landslidenet:offset_reason": "trust me", "s2:processing_baseline": "02.14"}
    inputs = checked(tmp_path, scene(tmp_path, offset_dn=0, stated=brought))
    assert red(inputs) == pytest.approx(0.03, abs=0.004)


def test_offset_of_a_file_that_states_its_own(tmp_path):
    scene(tmp_path, offset_dn=1000)
    stack = np.concatenate([rasterio.open(tmp_path / f"a_{key}.tif").read() for key in KEYS])
    profile = {"count": 4, "height": SIZE, "width": SIZE, "dtype": "uint16", "nodata": 0}
    path = tmp_path / "stack.tif"
    with rasterio.open(path, "w", driver="GTiff", **profile, transform=WHERE, crs="EPSG:32654") as out:
        out.write(stack)
        out.descriptions, out.scales, out.offsets = ("B02", "B03", "B04", "B08"), (1e-4,) * 4, (-0.1,) * 4
    inputs = checked(tmp_path, str(path), post_time_utc=datetime(2023, 9, 11, tzinfo=UTC))
    assert red(inputs) == pytest.approx(0.03, abs=0.004)
    assert "stated by the item's assets" in inputs.post.radiometry[0]
    with rasterio.open(path, "r+") as out:
        out.scales = (1e-3,) * 4
    with pytest.raises(InputError, match=r"states reflectance = DN \* 0.001 -0.1; .* expects DN \* 0.0001"):
        checked(tmp_path, str(path))
