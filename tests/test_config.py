from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from catalog.config import is_event_id, parse_config
from catalog.events import with_event
from catalog.schema import InputError


def test_config_unknown_key_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"unknown key `imagery`; expected one of: name, post"):
        parse_config({"name": "x", "post": ["a.tif"], "imagery": 1})


def test_config_without_imagery_says_how_to_give_it():
    with pytest.raises(InputError, match="--post FILE"):
        parse_config({"name": "x"})


def test_config_block_must_be_a_power_of_two():
    with pytest.raises(InputError, match="1000 px; expected a power of two"):
        parse_config({"name": "x", "post": ["a.tif"], "block_px": 1000})


def test_config_time_without_zone_is_refused():
    with pytest.raises(InputError, match="without a time zone"):
        parse_config({"name": "x", "post": ["a.tif"], "event": {"id": "e", "time_utc": "2018-09-05T18:07:59"}})


def test_config_is_frozen():
    config = parse_config({"name": "x", "post": ["a.tif"]})
    with pytest.raises(ValueError, match="frozen"):
        config.name = "y"


def test_config_name_must_make_a_folder():
    with pytest.raises(InputError, match="`name`"):
        parse_config({"name": "../up", "post": ["a.tif"]})


@pytest.mark.parametrize("text", ["", "..", "a/b", "a\\b", "a b", "é", "-a", "us1\n", "a" * 65])
def test_is_event_id_refuses_what_may_not_name_a_folder(text):
    assert not is_event_id(text)


def test_config_without_a_name_says_how_to_give_one():
    with pytest.raises(InputError, match="pass --name EVENT_ID or --event"):
        parse_config({"post": ["a.tif"]})


def test_config_takes_the_flags_names():
    flags = {"name": "x", "post": "a.tif", "block": 512, "gsd": 3, "min-area": 90, "post_time": "2018-09-11T01:30:00Z"}
    config = parse_config(flags)
    assert (config.block_px, config.gsd_m, config.min_area_m2) == (512, 3.0, 90.0)
    assert config.post_time_utc == datetime(2018, 9, 11, 1, 30, tzinfo=UTC)


@pytest.mark.parametrize("key", ["post", "pre", "mask", "pre_mask"])
def test_config_one_file_need_not_be_a_list(key):
    config = parse_config({"name": "x", "post": "a.tif", "pre": "p.tif", key: "b.tif"})
    assert getattr(config, key) == ("b.tif",)


def test_config_cluster_may_be_its_address():
    cluster = parse_config({"name": "x", "post": "a.tif", "cluster": "tcp://h:1", "workers": 3}).cluster
    assert (cluster.address, cluster.workers) == ("tcp://h:1", 3)


@pytest.mark.parametrize(
    ("twice", "key"),
    [({"block": 512, "block_px": 512}, "block_px"), ({"workers": 1, "cluster": {"workers": 2}}, "workers")],
)
def test_config_value_given_twice_is_refused(twice, key):
    with pytest.raises(InputError, match=f"`{key}` is given twice"):
        parse_config({"name": "x", "post": "a.tif", **twice})


@pytest.mark.parametrize("value", ["yesterday", "2018", 2018, 1536629400.0, ["2018-09-11"]])
def test_config_time_that_is_none_is_refused(value):
    with pytest.raises(InputError, match="`post_time_utc`: no time; expected e.g. 2018-09-11T01:30:00Z"):
        parse_config({"name": "x", "post": "a.tif", "post_time": value})


@pytest.mark.parametrize(
    "odd",
    [
        {"cluster": 7},
        {"cluster": ["a"], "workers": 1},
        {"post": 5},
        {"post": {"a": 1}},
        {1: 2},
        {"event": 7},
        {"block": "x"},
    ],
    ids=str,
)
def test_config_of_odd_types_is_a_message(odd):
    with pytest.raises(InputError, match="configuration: "):
        parse_config(with_event({"name": "x", "post": "a.tif", **odd}))


def test_config_event_may_be_a_file_which_names_the_run(tmp_path):
    (tmp_path / "event.json").write_text('{"id": "e1", "magnitude": 6.6}')
    config = parse_config(with_event({"post": "a.tif", "event": str(tmp_path / "event.json")}))
    assert (config.name, config.event.magnitude) == ("e1", 6.6)


def test_config_event_may_be_written_out():
    assert parse_config(with_event({"post": "a.tif", "event": {"id": "e2"}})).name == "e2"


def test_config_example_of_the_documentation_is_valid():
    text = (Path(__file__).parents[1] / "docs/operations.md").read_text()
    example = text.split("### A configuration file")[1].split("```yaml\n")[1].split("```")[0]
    config = parse_config({**yaml.safe_load(example), "event": None})
    assert (config.name, config.block_px, config.cluster.workers) == ("us2000h8ty", 1024, 2)
    assert len(config.post) == 2
