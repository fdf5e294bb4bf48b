import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer
from pystac import Collection, Item
from shapely.geometry import box

from catalog.config import Event
from catalog.locks import hold_event
from catalog.policy import RetentionPolicy
from catalog.responses import save_event
from catalog.retention import BUSY, Held, Removal, doubted_clock, plan_retention, read_held, remove
from catalog.schema import StoreError
from catalog.stac import refresh_collection
from flows.housekeeping import housekeeping

NOW = datetime(2026, 3, 1, tzinfo=UTC)
POLICY = RetentionPolicy(store_days=30, versions=2)


def _held(kind, number=0, *, days=40.0, event="e1"):
    return Held(kind, event, (f"/{kind}-{number}",), 10, NOW - timedelta(days=days), number)


def _names(removals):
    return [removal.held.places[0] for removal in removals]


def test_plan_deletes_the_stores_of_an_event_that_was_quiet_for_long():
    held = [_held("store", 1, days=31), _held("store", 2, days=99), _held("store", 3, days=1, event="e2")]
    removals = plan_retention(held, POLICY, now=NOW)
    assert _names(removals) == ["/store-1", "/store-2"]
    assert removals[0].why == "event idle for 31 days, stores are kept 30"


def test_plan_keeps_old_stores_of_an_event_that_published_lately():
    assert not plan_retention([_held("store", days=99), _held("version", 1, days=2)], POLICY, now=NOW)


def test_plan_keeps_the_first_version_and_the_latest():
    removals = plan_retention([_held("version", n, days=9) for n in (4, 1, 7, 3, 6)], POLICY, now=NOW)
    assert _names(removals) == ["/version-3", "/version-4"]


def test_plan_leaves_an_event_alone_that_is_worked_on():
    held = [*(_held("version", n) for n in range(1, 9)), _held("unfinished", 9, days=0.1)]
    assert not plan_retention(held, POLICY, now=NOW)


def test_plan_deletes_what_a_cut_off_publication_left():
    assert _names(plan_retention([_held("unfinished", 2, days=1)], POLICY, now=NOW)) == ["/unfinished-2"]


@given(
    numbers=st.sets(st.integers(1, 30), min_size=1),
    hours=st.integers(0, 3000),
    store_days=st.integers(1, 100),
    versions=st.integers(1, 5),
)
def test_plan_never_names_the_first_nor_the_latest_nor_anything_of_a_busy_event(numbers, hours, store_days, versions):
    held = [_held("version", n, days=hours / 24) for n in numbers] + [_held("store", days=hours / 24)]
    policy = RetentionPolicy(store_days=store_days, versions=versions)
    removals = plan_retention(held, policy, now=NOW)
    gone = {r.held.number for r in removals if r.held.kind == "version"}
    assert not gone & {min(numbers), max(numbers)}
    if gone:
        assert len(numbers - gone) == versions + 1
    if timedelta(hours=hours) < BUSY:
        assert not removals


def _age(path, days):
    then = (datetime.now(UTC) - timedelta(days=days)).timestamp()
    for file in [path, *path.rglob("*")]:
        os.utime(file, (then, then), follow_symlinks=False)


def _store(root, event, key, days=40.0):
    for suffix in ("zarr", "ledger"):
        folder = root / event / f"{key}.{suffix}"
        folder.mkdir(parents=True)
        (folder / "zarr.json").write_text("0123456789")
        _age(folder, days)


def _version(out, event, number, days=40.0):
    folder = out / event / f"v{number}"
    folder.mkdir(parents=True)
    item = Item(f"{event}-v{number}", {"type": "Point", "coordinates": [1, 2]}, [1, 2, 1, 2], datetime(2026, 1, 1), {})
    (folder / "item.json").write_text(json.dumps(item.to_dict(include_self_link=False)))
    _age(folder, days)


@pytest.fixture
def places(tmp_path):
    """A root and a products folder with an event that is quiet and one that is not."""
    root, out = tmp_path / "store", tmp_path / "products"
    _store(root, "quiet", "post-0123456789ab")
    _store(root, "quiet", "change-features-0123456789ab")
    _store(root, "busy", "post-0123456789ab", days=0)
    for number in (1, 2, 3, 4):
        _version(out, "quiet", number)
        _version(out, "busy", number, days=0)
    refresh_collection(out / "quiet", event_id="quiet", title="M6.6 Quiet")
    _age(out / "quiet", 40)
    return root, out


def _remove_all(root, out):
    removals = plan_retention(read_held(str(root), str(out)), POLICY, now=datetime.now(UTC))
    return [remove(removal, root=str(root), out=str(out)) for removal in removals]


def test_remove_deletes_stores_and_versions_and_writes_the_collection_anew(places):
    root, out = places
    assert _remove_all(root, out) == [True, True, True]
    assert not list((root / "quiet").iterdir())
    assert sorted(path.name for path in (out / "quiet").iterdir()) == ["collection.json", "v1", "v3", "v4"]
    collection = Collection.from_file(str(out / "quiet/collection.json"))
    assert collection.title == "M6.6 Quiet"
    assert [link.href for link in collection.links if link.rel == "item"] == [
        f"./{name}/item.json" for name in ("v1", "v3", "v4")
    ]
    assert len(list((root / "busy").iterdir())) == 2
    assert len(list((out / "busy").iterdir())) == 4
    assert not _remove_all(root, out)


def test_remove_leaves_what_was_written_to_since_the_plan(places):
    root, out = places
    removals = plan_retention(read_held(str(root), str(out)), POLICY, now=datetime.now(UTC))
    store = next(removal for removal in removals if removal.held.kind == "store")
    (Path(store.held.places[0]) / "r-00000000.json").write_text("a new block")
    assert not remove(store, root=str(root), out=str(out))
    assert all(Path(place).is_dir() for place in store.held.places)


def test_remove_follows_no_link_and_counts_none(places, tmp_path):
    root, out = places
    elsewhere = tmp_path / "elsewhere"
    _store(elsewhere, "quiet", "post-aaaaaaaaaaaa")
    (root / "linked").symlink_to(elsewhere / "quiet", target_is_directory=True)
    (root / "quiet/post-bbbbbbbbbbbb.zarr").symlink_to(elsewhere / "quiet/post-aaaaaaaaaaaa.zarr")
    (root / "quiet/post-0123456789ab.zarr/inner").symlink_to(elsewhere, target_is_directory=True)
    _age(root / "quiet/post-0123456789ab.zarr", 40)
    assert {held.event_id for held in read_held(str(root), str(out))} == {"quiet", "busy"}
    assert all(_remove_all(root, out))
    assert len(list((elsewhere / "quiet").rglob("zarr.json"))) == 2


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("store", "{root}/quiet/../../elsewhere-0123456789ab.zarr"),
        ("store", "{root}/other/post-0123456789ab.zarr"),
        ("store", "{root}/quiet/notes"),
        ("version", "{root}/quiet/v2"),
        ("version", "{out}/quiet/networks"),
    ],
)
def test_remove_refuses_what_is_not_an_entry_of_the_event(kind, place, places):
    root, out = places
    held = Held(kind, "quiet", (place.format(root=root, out=out),), 1, NOW)
    with pytest.raises(StoreError, match="nothing is deleted there"):
        remove(Removal(held, "because"), root=str(root), out=str(out))


def test_read_held_is_empty_for_folders_that_are_not_there(tmp_path):
    assert read_held(str(tmp_path / "a"), str(tmp_path / "b")) == ()


def test_read_held_passes_over_what_another_run_renamed_meanwhile(places, monkeypatch):
    root, out = places
    partial, look = root / "busy/post-0123456789ab.zarr/c.partial", os.lstat
    partial.write_text("a block")

    def renaming(path, **told):
        if partial.exists():
            partial.unlink()
        return look(path, **told)

    monkeypatch.setattr(os, "lstat", renaming)
    assert "busy" in {held.event_id for held in read_held(str(root), str(out))}


def test_retention_on_s3(monkeypatch, tmp_path):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        address = "http://{}:{}".format(*server.get_host_and_port())
        monkeypatch.setenv("LANDSLIDENET_S3_ENDPOINT", address)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        s3 = boto3.client("s3", endpoint_url=address, region_name="us-east-1")
        s3.create_bucket(Bucket="kept")
        for name in ("zarr/zarr.json", "zarr/red/c/0/0", "ledger/complete.json"):
            s3.put_object(Bucket="kept", Key=f"store/quiet/post-0123456789ab.{name}", Body=b"12345")
        s3.put_object(Bucket="kept", Key="store/quiet/notes.txt", Body=b"")
        held = read_held("s3://kept/store", str(tmp_path))
        assert [(h.kind, h.size_bytes, len(h.places)) for h in held] == [("store", 15, 2)]
        later = datetime.now(UTC) + timedelta(days=31)
        (removal,) = plan_retention(held, POLICY, now=later)
        assert remove(removal, root="s3://kept/store", out=str(tmp_path))
        left = [entry["Key"] for entry in s3.list_objects_v2(Bucket="kept")["Contents"]]
        assert left == ["store/quiet/notes.txt"]
    finally:
        server.stop()


@pytest.fixture
def rules(places, tmp_path):
    """A policy file over the places."""
    root, out = places
    told = {"root": str(root), "out": str(out), "state": str(tmp_path / "state")}
    path = tmp_path / "policy.yaml"
    path.write_text(json.dumps({**told, "retention": {"store_days": 30, "versions": 2}}))
    return str(path)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_housekeeping_says_in_a_dry_run_what_it_then_deletes(places, rules):
    _, out = places
    expected = housekeeping(policy=rules, dry_run=True)
    assert (out / "quiet/v2").is_dir()
    assert housekeeping(policy=rules) == expected > 0
    assert not (out / "quiet/v2").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_housekeeping_leaves_an_event_that_a_response_holds(places, rules, tmp_path):
    root, out = places
    for base in (root, out):  # the two areas of one event
        (base / "quiet").rename(base / "quiet-32654")
    state = str(tmp_path / "state")
    save_event(state, Event(id="quiet"), box(1, 2, 3, 4))
    with hold_event(state, "quiet"):
        assert housekeeping(policy=rules) == 0
    assert (out / "quiet-32654/v2").is_dir()
    assert housekeeping(policy=rules) > 0
    assert not (out / "quiet-32654/v2").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_housekeeping_goes_on_after_what_cannot_be_deleted(places, rules):
    root, out = places
    (out / "quiet/collection.json").write_text("{")
    _age(out / "quiet", 40)
    state = housekeeping(policy=rules, return_state=True)
    assert state.is_failed()
    assert "1 of 3 removals failed: " in state.message
    assert not list((root / "quiet").iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_housekeeping_deletes_nothing_by_a_clock_that_leapt(places, rules, tmp_path):
    _, out = places
    assert not doubted_clock(str(tmp_path / "state"), datetime.now(UTC) - timedelta(days=400))
    assert housekeeping(policy=rules) == 0
    assert (out / "quiet/v2").is_dir()
    assert housekeeping(policy=rules) > 0
    assert not (out / "quiet/v2").exists()


@pytest.mark.parametrize(
    ("days", "doubted"), [((0, 1, 2, 3), [0, 0, 0, 0]), ((0, 400, 1, 2), [0, 1, 1, 0]), ((0, 9, 10), [0, 1, 0])]
)
def test_doubted_clock_believes_a_leap_once_the_clock_goes_on_from_it(days, doubted, tmp_path):
    start = datetime(2024, 1, 1, tzinfo=UTC)
    told = [doubted_clock(str(tmp_path), start + timedelta(days=day)) for day in days]
    assert [bool(reason) for reason in told] == doubted


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"run_utc": "2024-01-01"}', '{"run_utc": 7}'])
def test_doubted_clock_doubts_a_damaged_record(text, tmp_path):
    (tmp_path / "housekeeping.json").write_text(text)
    assert doubted_clock(str(tmp_path), datetime(2024, 1, 1, tzinfo=UTC))
    assert not doubted_clock(str(tmp_path), datetime(2024, 1, 1, tzinfo=UTC))
