import pytest

from catalog.config import parse_config
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
