"""What became of the landslides from one version to the next."""

import geopandas as gpd
import numpy as np
import pytest
import shapely

from catalog.product import Difference
from catalog.schema import CHANGES
from tasks.differences import compare


def inventory(**boxes):
    """Rectangles by id; `supersedes` after the box."""
    rows = [
        {"id": f"ls-{name}", "supersedes": told[4] if len(told) > 4 else "", "geometry": shapely.box(*told[:4])}
        for name, told in boxes.items()
    ]
    layer = gpd.GeoDataFrame(rows, columns=["id", "supersedes", "geometry"], geometry="geometry", crs="EPSG:32654")
    return layer.assign(area_m2=layer.area)


def changes(before, after, *, seen_before=True, seen_after=True):
    table = compare(
        before, after, seen_before=np.full(len(after), seen_before), seen_after=np.full(len(before), seen_after)
    )
    return table.set_index("id")


@pytest.mark.parametrize(
    ("later", "change"),
    [
        ((0, 0, 100, 100), "unchanged"),
        ((0, 0, 100, 105), "unchanged"),
        ((0, 0, 100, 120), "grown"),
        ((20, 0, 120, 100), "changed"),
        ((0, 0, 100, 80), "changed"),
    ],
)
def test_compare_tells_what_became_of_a_landslide(later, change):
    assert changes(inventory(a=(0, 0, 100, 100)), inventory(a=later)).loc["ls-a", "change"] == change


@pytest.mark.parametrize(("seen", "reason"), [(True, "seen before"), (False, "for the first time")])
def test_compare_says_whether_the_ground_of_a_new_landslide_was_seen(seen, reason):
    row = changes(inventory(), inventory(a=(0, 0, 9, 9)), seen_before=seen).loc["ls-a"]
    assert row["change"] == "new"
    assert reason in row["reason"]


@pytest.mark.parametrize(("seen", "reason"), [(True, "not found"), (False, "no longer observed")])
def test_compare_says_why_a_landslide_was_withdrawn(seen, reason):
    row = changes(inventory(a=(0, 0, 9, 9)), inventory(), seen_after=seen).loc["ls-a"]
    assert row["change"] == "withdrawn"
    assert reason in row["reason"]


def test_compare_follows_landslides_that_were_merged():
    before = inventory(a=(0, 0, 10, 10), b=(20, 0, 30, 10))
    table = changes(before, inventory(c=(0, 0, 30, 10, "ls-a;ls-b")))
    assert table.loc["ls-c", "change"] == "changed"
    assert table.loc["ls-c", "area_before_m2"] == 200.0
    assert set(table.loc[["ls-a", "ls-b"], "reason"]) == {"replaced by ls-c"}


def test_compare_of_nothing_is_empty_and_keeps_the_crs():
    table = compare(inventory(), inventory(), seen_before=np.zeros(0, bool), seen_after=np.zeros(0, bool))
    assert len(table) == 0
    assert table.crs.to_epsg() == 32654


def test_difference_counts_every_change_and_names_what_moved():
    before = inventory(a=(0, 0, 10, 10), b=(20, 0, 30, 10))
    after = inventory(a=(0, 0, 10, 10), c=(50, 0, 60, 10))
    table = compare(before, after, seen_before=np.ones(2, bool), seen_after=np.ones(2, bool))
    difference = Difference(1, table, 0.0)
    assert difference.counts() == dict.fromkeys(CHANGES, 0) | {"unchanged": 1, "new": 1, "withdrawn": 1}
    assert difference.as_dict()["ids"] == {"new": ["ls-c"], "withdrawn": ["ls-b"]}
