"""An event's folder of products as people leave it: copies, files, links and damage beside the versions."""

import json

import pytest

from catalog.folders import DIGEST, digest_of, free_number, number_of, read_run, version_folders, version_number
from catalog.schema import StoreError

STRANGERS = (
    "v1.bak", "v2 copy", "v2 (1)", "v01", "v0", "v", "v3_old", "v-1", "v1.damaged", ".v4.partial", "V9", "vault",
    "v٣", "1", "v2~", "v1e3",
)  # fmt: skip


@pytest.fixture
def event_dir(tmp_path):
    for name in ("v2", "v10", *STRANGERS):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize("name", STRANGERS)
def test_version_number_of_what_only_looks_like_one_is_none(name):
    assert version_number(name) is None


def test_version_folders_are_counted_numerically_among_copies(event_dir):
    (event_dir / "v12").touch()
    assert [number for number, _ in version_folders(event_dir)] == [2, 10]


@pytest.mark.parametrize("kind", ["file", "folder", "broken link"])
def test_free_number_is_after_whatever_holds_a_versions_name(event_dir, kind):
    place = event_dir / "v11"
    if kind == "folder":
        place.mkdir()
    elif kind == "file":
        place.touch()
    else:
        place.symlink_to(event_dir / "elsewhere")
    assert free_number(event_dir) == 12


def test_number_of_refuses_a_folder_that_is_no_versions(event_dir):
    assert number_of(event_dir / "v10") == 10
    with pytest.raises(StoreError, match=r"v1\.bak: got a folder that is no version's"):
        number_of(event_dir / "v1.bak")


RUN = {"config": {"post": ["a.tif"]}, "version": 3, "provenance": {"decisions": {"threshold": 0.38}}}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"config": 1}', json.dumps(RUN)[:40], "\x00" * 64],
    ids=["empty", "torn", "list", "null", "hollow", "config", "half", "zeros"],
)
def test_read_run_says_which_file_is_damaged_and_what_to_do(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(StoreError, match=r"run\.json: .*restore it from a backup, or move the folder away"):
        read_run(tmp_path)


def test_read_run_sees_a_figure_that_was_changed_but_no_change_of_layout(tmp_path):
    told = {**RUN, DIGEST: digest_of(RUN)}
    (tmp_path / "run.json").write_text(json.dumps(told, indent=7))
    assert read_run(tmp_path)["version"] == 3
    (tmp_path / "run.json").write_text(json.dumps(told).replace("0.38", "0.83"))
    with pytest.raises(StoreError, match="is not as it was published"):
        read_run(tmp_path)
