"""What does not fit a contract is said in the project's words: every key of every contract, with every odd value."""

import re
from dataclasses import dataclass

import pytest
from pydantic import TypeAdapter, ValidationError

from catalog.comcat import _Feature, _Product
from catalog.config import AverageRun, Event, RunConfig, TrainRun, parse_config
from catalog.events import parse_event
from catalog.policy import Policy, load_policy
from catalog.responses import Response, read_response
from catalog.schema import InputError, StoreError
from catalog.validation import reasons
from catalog.watchlist import Watchlist, load_watchlist
from models.adaptation import AdaptConfig

FOREIGN = re.compile(
    r"should|valid|Input|Value error|Extra inputs|Field required|pydantic|literal|constrained|function|union|type=|\^\["
)
"""Words that are the library's, and patterns that no user reads."""
ODD = (-1e9, 1e9, 0.5, float("nan"), "odd", "", [], [1], ["odd", {}], {}, {"odd": 1}, {1: "odd"}, None, True, b"odd")


def words_of(kind, values):
    try:
        TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        return reasons(error, kind)
    return []


def keys_of(kind):
    """Every key of a contract, with those of the contracts inside."""
    for name, field in getattr(kind, "model_fields", {}).items():
        yield (field.alias or name,)
        yield from ((field.alias or name, *inner) for inner in keys_of(field.annotation))


def placed(keys, value):
    for key in reversed(keys):
        value = {key: value}
    return value


@pytest.mark.parametrize(
    "kind", [RunConfig, TrainRun, AverageRun, Policy, Watchlist, Response, Event, _Feature, _Product]
)
def test_reasons_of_every_key_are_in_our_words(kind):
    told = {reason for keys in keys_of(kind) for value in ODD for reason in words_of(kind, placed(keys, value))}
    assert len(told) > 10
    assert not [reason for reason in told if FOREIGN.search(reason.replace("odd", ""))]


def test_reasons_of_a_dataclass_are_in_our_words():
    told = [
        reason for key in AdaptConfig.__dataclass_fields__ for v in ODD for reason in words_of(AdaptConfig, {key: v})
    ]
    assert "`match`: got 'odd'; expected " in "".join(told)
    assert not [reason for reason in told if FOREIGN.search(reason)]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"threshold": 7}, "`threshold`: got 7; expected `scene`, `card` or a number above 0 and below 1"),
        ({"threshold": "often"}, "`threshold`: got 'often'; expected `scene`, `card` or a number above 0 and below 1"),
        ({"cluster": {"workers": 0}}, "`cluster.workers`: got 0; expected a whole number of at least 1"),
        ({"cluster": {"nodes": 3}}, "unknown key `cluster.nodes`; expected one of: address, workers, threads, options"),
        ({"name": "a/b"}, "`name`: got 'a/b'; expected 1 to 64 letters"),
        ({"stac": {"url": "u"}}, "`stac.collection` is missing"),
        ({"post": [3]}, "`post.0`: got 3; expected text"),
        ({"event": {"id": "e", "latitude": 91}}, "`event.latitude`: got 91; expected a number of -90 to 90"),
        ({"event": {"id": "e", "time_utc": "soon"}}, "`event.time_utc`: got 'soon'; expected a time, e.g. 2018"),
    ],
)
def test_reasons_say_what_got_and_expected(values, told):
    with pytest.raises(InputError, match=re.escape(told)):
        parse_config({"name": "x", "post": "a.tif", **values})


def test_reasons_name_a_key_of_several_kinds_once():
    assert len(words_of(RunConfig, {"name": "x", "post": ["a"], "threshold": [0.5]})) == 1


def test_reasons_without_quoting_show_nothing_that_was_sent():
    @dataclass
    class Told:
        size: int

    with pytest.raises(ValidationError) as refused:
        TypeAdapter(Told).validate_python({"size": "<script>"})
    assert reasons(refused.value, Told, quote=False) == ["`size`: expected a whole number"]


@pytest.mark.parametrize("text", ['{"events": 3}', '{"events": [', "[]", '{"events": [], "more": 1}'])
def test_watch_list_that_does_not_fit_is_told_in_our_words(tmp_path, text):
    (tmp_path / "watchlist.json").write_text(text)
    with pytest.raises(StoreError) as told:
        load_watchlist(tmp_path)
    assert not FOREIGN.search(str(told.value))


@pytest.mark.parametrize("text", ['{"format": 2}', '{"event_id": "e", "searches": -1}', "{"])
def test_response_that_does_not_fit_is_told_in_our_words(tmp_path, text):
    (tmp_path / "e").mkdir()
    (tmp_path / "e/response.json").write_text(text)
    with pytest.raises(StoreError) as told:
        read_response(str(tmp_path), "e")
    assert not FOREIGN.search(str(told.value).replace("next version", ""))


def test_policy_that_does_not_fit_is_told_in_our_words(tmp_path):
    (tmp_path / "policy.yaml").write_text("earthquakes: {landslide_alerts: [purple]}\nretention: {days: 3}\n")
    with pytest.raises(InputError) as told:
        load_policy(str(tmp_path / "policy.yaml"))
    assert "`earthquakes.landslide_alerts.0`: got 'purple'; expected `green`, `yellow`" in str(told.value)
    assert "unknown key `retention.days`; expected one of: store_days, versions" in str(told.value)


def test_event_that_does_not_fit_is_told_in_our_words():
    with pytest.raises(InputError, match="event x: `magnitude`: got 'big'; expected a number"):
        parse_event('{"id": "e", "magnitude": "big"}', where="x")
