"""The operator's file: what does not fit is found when it is read, not when an earthquake strikes."""

import pytest
import yaml

from catalog.policy import Policy, load_policy
from catalog.schema import InputError

SOURCE = {"url": "https://stac.example.org", "collection": "c", "sensor": "rgb8"}


def _region(*bounds):
    return {"earthquakes": {"regions": [{"name": "here", "bounds": list(bounds)}]}}


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"retentoin": {}}, "`retentoin`"),
        ({"detection": {"blok": 1024}}, "`detection`.*unknown key `blok`"),
        ({"detection": {"block": 1000}}, "expected a power of two"),
        ({"detection": {"block": 512, "block-px": 512}}, "given twice"),
        ({"detection": {"out": "elsewhere"}}, "`out` is decided by the response"),
        ({"detection": {"post": "a.tif"}}, "`post` is decided by the response"),
        ({"imagery": {"sources": [{**SOURCE, "sensor": "sentinel2"}]}}, "expected one of .*sentinel2-l2a"),
        (_region(141, 50, 142, 40), "south under north"),
        (_region(170, -30, 190, -10), "longitudes of -180"),
    ],
)
def test_load_policy_refuses(tmp_path, told, reason):
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump(told))
    with pytest.raises(InputError, match=reason):
        load_policy(str(path))


def test_policy_takes_what_a_detection_does_under_either_name():
    flags = {"block": 512, "gsd": 10, "workers": 2, "dem": "dem.vrt", "pre_mask": "lake.tif", "min-area": 400}
    assert Policy(detection=flags).detection == flags


def test_load_policy_says_when_it_is_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_policy(str(tmp_path / "no.yaml"))
