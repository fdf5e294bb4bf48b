"""What changed from one version of an inventory to the next."""

from __future__ import annotations

from typing import Any, Final

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from catalog.schema import Change

TOLERANCE: Final = 0.1
"""Share of a landslide's area that may move before it is called changed."""


def compare(
    before: gpd.GeoDataFrame,
    after: gpd.GeoDataFrame,
    *,
    seen_before: NDArray[np.bool_],
    seen_after: NDArray[np.bool_],
) -> gpd.GeoDataFrame:
    """The landslides of two versions beside each other, in the later one's CRS; a row a landslide of either.

    Columns: id, change (see `catalog.schema.CHANGES`), reason, area_before_m2, area_after_m2, outline (the later one).

    seen_before : (len(after),) whether the earlier version saw the ground of each later landslide.
    seen_after : (len(before),) whether the later version sees the ground of each earlier landslide.
    """
    old = before.to_crs(after.crs).set_index("id")
    replaced = {name: row.id for row in after.itertuples() for name in _names(row.supersedes)}
    rows = [_later(row, old, seen=bool(seen)) for row, seen in zip(after.itertuples(), seen_before, strict=True)]
    present = set(after["id"])
    for name, row, seen in zip(old.index, old.itertuples(), seen_after, strict=True):
        if name not in present:
            reason = f"replaced by {replaced[name]}" if name in replaced else _lost(seen=bool(seen))
            rows.append((name, "withdrawn", reason, row.area_m2, np.nan, row.geometry))
    columns = ["id", "change", "reason", "area_before_m2", "area_after_m2", "geometry"]
    table = pd.DataFrame(rows, columns=columns)
    return gpd.GeoDataFrame(table, geometry="geometry", crs=after.crs)


def _names(joined: object) -> list[str]:
    return [name for name in str(joined or "").split(";") if name.startswith("ls-")]


def _later(row: Any, old: gpd.GeoDataFrame, *, seen: bool) -> tuple[Any, ...]:  # noqa: ANN401 - a named tuple of pandas
    if row.id in old.index:
        was = old.loc[row.id]
        return row.id, *_moved(was.geometry, row.geometry), was["area_m2"], row.area_m2, row.geometry
    if parts := [name for name in _names(row.supersedes) if name in old.index]:
        area = float(old.loc[parts, "area_m2"].sum())
        return row.id, "changed", f"replaces {', '.join(parts)}", area, row.area_m2, row.geometry
    reason = "found on ground that was seen before" if seen else "on ground seen for the first time"
    return row.id, "new", reason, np.nan, row.area_m2, row.geometry


def _moved(was: shapely.Geometry, now: shapely.Geometry) -> tuple[Change, str]:
    if was.equals(now):
        return "unchanged", ""
    growth = shapely.area(now) / shapely.area(was) - 1.0
    if growth > TOLERANCE:
        return "grown", f"area {growth:+.0%}"
    other = shapely.area(shapely.symmetric_difference(was, now)) / shapely.area(was)
    if other > TOLERANCE:
        return "changed", f"{other:.0%} of its ground is other, area {growth:+.0%}"
    return "unchanged", ""


def _lost(*, seen: bool) -> str:
    return "seen again, and not found" if seen else "its ground is no longer observed"
