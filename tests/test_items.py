import json
from datetime import UTC, datetime

import numpy as np
import pytest
import rasterio
from affine import Affine

from catalog.checks import check_inputs
from catalog.config import RunConfig
from catalog.items import LOCAL, local_item, stored_items
from catalog.schema import InputError
from catalog.sensors import sensor

RGB = sensor("rgb8")


def picture(path):
    data = np.random.default_rng(0).integers(20, 200, (3, 60, 60)).astype(np.uint8)
    where = Affine(10, 0, 583_200, 0, -10, 4_737_000)
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=60, width=60, dtype="uint8", transform=where, crs="EPSG:32654"
    ) as out:
        out.write(data)
    return path


def described(path, *, item_id="a", href="post.tif", **properties):
    """The item of a picture as a STAC API would have it."""
    item = local_item(path, RGB, time_utc=datetime(2018, 9, 11, tzinfo=UTC)).to_dict(transform_hrefs=False)
    for asset in item["assets"].values():
        asset["href"] = href
    del item["properties"][LOCAL]
    return {**item, "id": item_id, "properties": {**item["properties"], **properties}}


@pytest.fixture
def scene(tmp_path):
    return described(picture(tmp_path / "post.tif"), updated="2018-09-12T00:00:00Z")


def saved(tmp_path, value):
    path = tmp_path / "items.json"
    path.write_text(json.dumps(value))
    return path


def collection(*items):
    return {"type": "FeatureCollection", "features": list(items)}


def test_stored_items_keep_their_order(tmp_path, scene):
    path = saved(tmp_path, collection({**scene, "id": "b"}, scene))
    assert [item.id for item in stored_items(path, RGB)] == ["b", "a"]


def test_stored_items_hrefs_are_relative_to_the_file(tmp_path, scene):
    (item,) = stored_items(saved(tmp_path, scene), RGB)
    assert item.assets["red"].href == str(tmp_path / "post.tif")


def test_stored_items_are_not_taken_for_files_read_by_content(tmp_path, scene):
    scene["properties"][LOCAL] = True
    (item,) = stored_items(saved(tmp_path, scene), RGB)
    assert LOCAL not in item.properties


@pytest.mark.parametrize("href", ["/vsicurl/http://a/x.tif", "file:///etc/passwd", "ftp://a/x", "https://u:p@a/x.tif"])
def test_stored_items_lead_to_files_http_and_s3_only(tmp_path, scene, href):
    scene["assets"]["red"]["href"] = href
    with pytest.raises(InputError, match="expected a file, http"):
        stored_items(saved(tmp_path, scene), RGB)


@pytest.mark.parametrize("value", [[], "text", {"type": "Feature"}, {"type": "FeatureCollection"}, collection("x")])
def test_stored_items_of_something_else(tmp_path, value):
    with pytest.raises(InputError, match="cannot be read as STAC items"):
        stored_items(saved(tmp_path, value), RGB)


def test_stored_items_none(tmp_path):
    with pytest.raises(InputError, match="without items"):
        stored_items(saved(tmp_path, collection()), RGB)


def test_stored_items_band_missing(tmp_path, scene):
    del scene["assets"]["red"]
    with pytest.raises(InputError, match=r"band\(s\) red missing"):
        stored_items(saved(tmp_path, scene), RGB)


def inputs_of(tmp_path, path):
    return check_inputs(
        RunConfig(name="e", post=(str(path),), block_px=256, root=str(tmp_path / "s"), out=str(tmp_path / "o"))
    )


def test_check_inputs_of_stored_items(tmp_path, scene):
    inputs = inputs_of(tmp_path, saved(tmp_path, collection(scene)))
    assert inputs.post.ids == ("a",)
    assert inputs.grid.epsg == 32654
    assert inputs.post.inputs() == [
        {"role": "post", "path": "a", "sha256": None, "updated": "2018-09-12T00:00:00Z"}
    ]  # fmt: skip


def test_check_inputs_of_stored_items_count_by_id_and_update(tmp_path, scene):
    def fingerprint(**changes):
        item = {**scene, "properties": {**scene["properties"], **changes}}
        return inputs_of(tmp_path, saved(tmp_path, item)).post.fingerprint()

    assert fingerprint() == fingerprint(**{"eo:cloud_cover": 3})
    assert fingerprint() != fingerprint(updated="2018-09-13T00:00:00Z")
