"""One moment at which a version is published: before it nothing is, after it everything can be done again."""

import json
import shutil
from dataclasses import replace

import geopandas as gpd
import pystac
import pytest
from test_export import EVENT, make_product, strip_of

from catalog.export import WRITERS
from catalog.publication import publish
from catalog.schema import StoreError
from catalog.stac import refresh_collection
from catalog.versions import BUILT_ON, Version, latest_version, next_version


@pytest.fixture(scope="module")
def own():
    """A product that knows its run."""
    made = strip_of(make_product())
    return replace(made, provenance={**made.provenance, "run": "a"})


@pytest.fixture(scope="module")
def first(own, tmp_path_factory):
    return publish(own, tmp_path_factory.mktemp("first"))


@pytest.fixture
def published(first, tmp_path):
    """Version 1, to do with as one likes."""
    shutil.copytree(first.parent, tmp_path / EVENT.id)
    return tmp_path / EVENT.id / "v1"


def links(event_dir):
    return [link.href for link in pystac.Collection.from_file(str(event_dir / "collection.json")).get_item_links()]


def test_publish_goes_on_beside_copies_of_versions(own, published):
    shutil.copytree(published, published.with_name("v1.bak"))
    shutil.copytree(published, published.with_name("v1 copy"))
    (published.parent / "v2").touch()
    out = published.parent.parent
    assert next_version(out, EVENT.id) == 3
    publish(replace(own, version=3), out)
    assert [href.split("/")[-2] for href in links(published.parent)] == ["v1", "v3"]


def test_publish_is_done_when_the_collection_cannot_be_written(own, tmp_path, caplog):
    collection = tmp_path / EVENT.id / "collection.json"
    (collection / "in the way").mkdir(parents=True)
    folder = publish(own, tmp_path)
    assert set(WRITERS) < {path.name for path in folder.iterdir()}
    assert "v1 is published; collection.json cannot be written" in caplog.text
    shutil.rmtree(collection)
    assert publish(own, tmp_path) == folder  # tried again: what follows is made up for
    assert len(links(folder.parent)) == 1


def test_publish_again_by_the_same_run_changes_nothing_that_is_published(own, published):
    before = {path.name: path.stat().st_mtime_ns for path in published.iterdir()}
    assert publish(own, published.parent.parent) == published
    assert {path.name: path.stat().st_mtime_ns for path in published.iterdir()} == before


@pytest.mark.parametrize("run", ["b", None])
def test_publish_never_writes_over_another_runs_version(own, published, run):
    with pytest.raises(StoreError, match="publish as version 2"):
        publish(replace(own, provenance={"run": run}), published.parent.parent)


def test_publish_that_fails_leaves_nothing(own, tmp_path):
    with pytest.raises(StoreError, match="probability: got"):
        publish(replace(own, probability=own.probability * 3), tmp_path)
    assert not list((tmp_path / EVENT.id).iterdir())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_publish_leaves_damaged_items_out_of_the_collection(own, published, text, caplog):
    (published / "item.json").write_text(text)
    publish(replace(own, version=2), published.parent.parent)
    assert [href.split("/")[-2] for href in links(published.parent)] == ["v2"]
    assert "v1/item.json: cannot be read" in caplog.text


def test_collection_of_no_version_is_none(published):
    refresh_collection(published.parent, event_id=EVENT.id, title="", without="v1")
    assert not (published.parent / "collection.json").exists()


# --- what the next version builds on ----------------------------------------------------------------------------------


def damage(path, how):
    data = path.read_bytes()
    middle = len(data) // 2
    if how == "missing":
        path.unlink()
    elif how == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(
            {
                "empty": b"",
                "cut": data[:middle],
                "zeroed": bytes(len(data)),
                "flipped": data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :],
                "grown": data + b"x",
            }[how]
        )


def test_a_version_is_sound_as_it_was_published(own, published):
    Version(1, published).check()
    layer = Version(1, published).landslides()
    assert layer["id"].tolist() == own.landslides["id"].tolist()
    assert layer.geometry.geom_equals(own.landslides.geometry.reset_index(drop=True)).all()


@pytest.mark.parametrize("how", ["missing", "folder", "empty", "cut", "zeroed", "flipped", "grown"])
@pytest.mark.parametrize("name", BUILT_ON)
def test_a_damaged_version_is_named_with_what_to_do(published, name, how):
    damage(published / name, how)
    latest = latest_version(published.parent.parent, EVENT.id)
    with pytest.raises(StoreError, match=rf"v1/{name}: .*restore it from a backup, or move the folder away \(mv "):
        latest.check()


def test_a_version_whose_inventory_a_person_edited_is_sound(published):
    """`inventory.gpkg` is what people work in, and QGIS changes it by opening it; ids are those of the parquet."""
    path = published / "inventory.gpkg"
    layer = gpd.read_file(path, layer="landslides")
    before = layer["id"].tolist()
    layer.iloc[1:].assign(id="mine").to_file(path, layer="landslides")
    version = latest_version(published.parent.parent, EVENT.id)
    version.check()
    assert version.landslides()["id"].tolist() == before


def test_a_copy_that_is_called_like_a_later_version_is_told_of(published):
    shutil.copytree(published, published.with_name("v7"))
    with pytest.raises(StoreError, match=r"v7: its run\.json is of version 1: it is a copy"):
        latest_version(published.parent.parent, EVENT.id).check()


def test_a_version_that_lost_most_of_its_files_is_not_passed_over(own, published):
    out = published.parent.parent
    second = publish(replace(own, version=2), out)
    for path in second.iterdir():
        if path.name != "class.tif":
            path.unlink()
    latest = latest_version(out, EVENT.id)
    assert latest.number == 2
    with pytest.raises(StoreError, match=r"v2/run\.json: cannot be read"):
        latest.check()


def test_run_json_knows_its_own_digest(published):
    path = published / "run.json"
    path.write_text(path.read_text().replace("ab12", "ab13"))
    assert json.loads(path.read_text())["provenance"]["hashes"] == {"weights": "ab13"}
    with pytest.raises(StoreError, match=r"run\.json: is not as it was published"):
        Version(1, published).check()
