"""Paths as people write them in configurations: `~` is their home, and nothing else is guessed at."""

from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import rasterio
import yaml

from catalog.config import AverageRun, ClusterConfig, RunConfig, TrainRun, parse_average, parse_config, parse_training
from catalog.events import with_event
from catalog.paths import FilePath, expand_home
from catalog.policy import ImageryPolicy, Policy, QuakePolicy, load_policy
from catalog.schema import InputError
from tasks.review import evaluate_product

RUN = {"name": "x", "post": "post.tif", "pre": "pre.tif"}
TRAINING = {"tiles": "tiles", "out": "out"}
AVERAGE = {**TRAINING, "weights": ["a", "b"]}
GIVEN = {
    RunConfig: (parse_config, {**RUN, "labels": "labels.gpkg", "adapt": "tiles"}),
    TrainRun: (parse_training, TRAINING),
    AverageRun: (parse_average, AVERAGE),
}
NO_PATHS = {
    "name", "sensor", "hosts", "leave_out", "hold_out", "threshold", "precision",
    "query", "landslide_alerts", "pager_alerts", "exclude",
}  # fmt: skip
"""Keys of text that name no file."""


def _texts(kind):
    """Key and type of what a configuration is told in words."""
    hints = get_type_hints(kind, include_extras=True)
    return {key: hint for key, hint in hints.items() if key in kind.model_fields and "str" in str(hint)}


def _is_path(hint):
    return FilePath.__metadata__[0] is getattr(hint, "__metadata__", (None,))[0] or any(
        _is_path(part) for part in getattr(hint, "__args__", ())
    )


PATHS = [(kind, key) for kind in GIVEN for key, hint in _texts(kind).items() if _is_path(hint)]


@pytest.mark.parametrize("kind", [*GIVEN, Policy, QuakePolicy, ImageryPolicy], ids=lambda kind: kind.__name__)
def test_every_key_of_text_is_a_path_or_known_to_be_none(kind):
    odd = {key for key, hint in _texts(kind).items() if not _is_path(hint) and not str(hint).startswith("dict")}
    assert odd <= NO_PATHS | {"model"} if kind is TrainRun else odd <= NO_PATHS


@pytest.mark.parametrize(("kind", "key"), PATHS, ids=lambda part: getattr(part, "__name__", part))
def test_tilde_in_a_configuration_is_the_home(monkeypatch, kind, key):
    monkeypatch.setenv("HOME", "/home/ana")
    parse, given = GIVEN[kind]
    several = isinstance(getattr(parse(given), key), tuple)
    found = getattr(parse({**given, key: ["~/a b/c.tif", "d.tif"] if several else "~/a b/c.tif"}), key)
    assert (found[0] if several else found) == "/home/ana/a b/c.tif"


@pytest.mark.parametrize(("kind", "key"), PATHS, ids=lambda part: getattr(part, "__name__", part))
@pytest.mark.parametrize("path", ["$HOME/c.tif", "/data/${EVENT}/c.tif", "a/$EVENT", "~nobody-of-this-name/c.tif"])
def test_variables_and_unknown_homes_are_refused(kind, key, path):
    parse, given = GIVEN[kind]
    several = isinstance(getattr(parse(given), key), tuple)
    with pytest.raises(InputError, match=f"`{key}.*(environment variable|no such home)"):
        parse({**given, key: [path, "b"] if several else path})


@pytest.mark.parametrize("path", ["a~/b.tif", "./~/b.tif", "~b.tif", "price$.tif", "$5/a.tif", "https://h/~u/x.tif"])
def test_other_names_stay_as_they_are(path):
    assert expand_home(path) == path


def test_tilde_in_a_policy_is_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    told = {"root": "~/s", "out": "~/p", "state": "~/t", "earthquakes": {"feed": "~/f.geojson", "dem": "~/d.tif"},
            "detection": {"dem": "~/d.tif"}}  # fmt: skip
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(told))
    monkeypatch.setenv("LANDSLIDENET_POLICY", "~/policy.yaml")
    policy = load_policy()
    found = policy.root, policy.out, policy.state, policy.earthquakes.feed, policy.earthquakes.dem
    assert found == tuple(str(tmp_path / name) for name in ("s", "p", "t", "f.geojson", "d.tif"))
    assert load_policy("~/policy.yaml") == policy
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump({"detection": {"dem": "$DEMS/d.tif"}}))
    with pytest.raises(InputError, match="environment variable"):
        load_policy()


def test_tilde_in_the_event_and_in_options_of_a_cluster(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "event.json").write_text('{"id": "e1"}')
    assert parse_config(with_event({**RUN, "event": "~/event.json"})).event.id == "e1"
    options = {"local_directory": "~/tmp", "job_script_prologue": "export A=$HOME/a", "nanny": True}
    assert ClusterConfig(options=options).options == {**options, "local_directory": str(tmp_path / "tmp")}


@pytest.mark.parametrize("flag", ["product", "truth", "aoi", "valid"])
def test_tilde_in_what_is_evaluated(monkeypatch, tmp_path, flag):
    monkeypatch.setenv("HOME", str(tmp_path))
    words = {"truth": "truth.tif", "aoi": None, "valid": None} | ({flag: f"~/{flag}.tif"} if flag != "product" else {})
    product = Path("~/class.tif") if flag == "product" else tmp_path / "class.tif"
    if flag != "product":
        _classes(tmp_path / "class.tif")
    with pytest.raises(InputError, match=str(tmp_path)):
        evaluate_product(product, **words)


def _classes(path):
    place = {"crs": "EPSG:32654", "transform": rasterio.Affine(3, 0, 500_000, 0, -3, 4_700_000)}
    with rasterio.open(path, "w", driver="GTiff", count=1, width=8, height=8, dtype="uint8", **place) as out:
        out.write(np.zeros((1, 8, 8), np.uint8))
