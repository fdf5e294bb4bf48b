"""From whole objects to the inventory: attributes, vetoes with their reasons, and ids that survive a new version."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from pyproj import Geod

from catalog.schema import INVENTORY_COLUMNS, Column, LandslideError
from tasks.objects import Objects
from tasks.polygons import Geometries, to_ground

Values = NDArray[np.float64]

_GEOD: Final = Geod(ellps="WGS84")

CHANGE_SCORE: Final = "change_score"
"""The variable that says, in robust standard deviations of stable ground, how much a pixel changed."""

HIGH_MARGIN, MEDIUM_MARGIN, HIGH_OBSERVED = 0.6, 0.3, 0.9
CONFIDENCE_RULE: Final = (
    "margin = (mean probability - threshold) / (1 - threshold). "
    f"high: margin >= {HIGH_MARGIN:g} and at least {HIGH_OBSERVED:.0%} of the outline borders observed ground; "
    f"medium: margin >= {MEDIUM_MARGIN:g}; low: the rest. Not calibrated: an order to review in, not a probability."
)

VOLUME_LAW: Final = "Larsen et al. 2010, all landslides"
LOG10_ALPHA, LOG10_ALPHA_ERROR = -0.836, 0.015
GAMMA, GAMMA_ERROR = 1.332, 0.005
"""V = alpha A^gamma, m3 from m2. Source: Larsen, Montgomery and Korup 2010, Nature Geoscience 3, 247-251."""

SAME_LANDSLIDE_IOU: Final = 0.5
"""Above it an object is the landslide of an earlier version: each can then match one other only."""

CHANNEL_AREA_M2: Final = 1e6
"""A cell that drains more is a channel: our choice, at the upper end of the 0.1 to 1 km2 at which valleys turn from cut
by debris flows to cut by rivers. Source: Stock and Dietrich 2003, Water Resources Research 39, as others report it."""

COLUMN_STEMS: Final = {"relief_m": "local_relief_m"}
"""Variables whose mean has another name: a landslide's own relief is `relief_m`."""

FLAT_SLOPE_DEG: Final = 5.0
UNCHANGED_SIGMA: Final = 2.0
DARK_SHARE: Final = 1.0
"""Bared ground is brighter than the vegetation around it; the shadow of a cloud or a ridge is darker."""


@dataclass(frozen=True)
class Veto:
    """A rule that rejects a whole object and says why."""

    code: str
    sentence: str
    rejects: Callable[[pd.DataFrame], NDArray[np.bool_]]
    """Attributes -> (n,) bool; an attribute that is missing (NaN) rejects nothing."""


def _column(table: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """An attribute, NaN where it was not measured."""
    if name not in table:
        return np.full(len(table), np.nan)
    return table[name].to_numpy(dtype=np.float64)


VETOES: Final = (
    Veto(
        "flat",
        f"nine tenths of the object are flatter than {FLAT_SLOPE_DEG:g} degrees",
        lambda table: table["slope_p90_deg"].to_numpy(dtype=np.float64) < FLAT_SLOPE_DEG,
    ),
    Veto(
        "bluish",
        "it reflects more blue than red, as thin cloud, haze and water do; bared soil and rock reflect more red",
        lambda table: _column(table, "redness_mean") < 0,
    ),
    Veto(
        "dark",
        f"it is darker than {DARK_SHARE:g} times the scene's median brightness, as shadows are",
        lambda table: _column(table, "relative_brightness_mean") < DARK_SHARE,
    ),
    Veto(
        "no_change",
        f"the mean change since the pre-event image is below {UNCHANGED_SIGMA:g} robust standard deviations",
        lambda table: table[f"{CHANGE_SCORE}_mean"].to_numpy(dtype=np.float64) < UNCHANGED_SIGMA,
    ),
)
"""Every rule that rejects objects: a new rule is one entry. Objects below the smallest area are not kept at all."""


@dataclass(frozen=True)
class Provenance:
    """What an inventory is of and what made it; copied to every landslide."""

    event_id: str
    version: int
    threshold: float
    """Landslide probability from which a pixel is a landslide."""
    min_area_m2: float
    """Smaller objects are left out; measured in the grid's plane, so that n pixels are n * gsd_m**2."""
    model: str
    weights_sha256: str
    post_scenes: str
    post_date: str
    pre_scenes: str | None = None
    pre_date: str | None = None
    event_longitude: float | None = None
    event_latitude: float | None = None


def build_inventory(
    objects: Objects,
    *,
    gsd_m: float,
    epsg: int,
    provenance: Provenance,
    previous: gpd.GeoDataFrame | None = None,
) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    """Landslides and vetoed objects, two GeoDataFrames of the same columns in the grid's CRS, row-major order.

    Its columns are those of `catalog.schema.INVENTORY_COLUMNS`. What was not given (no DEM, no pre-event image, no
    epicentre) is null, never 0. Every further variable of the objects becomes a column `<name>_mean`. `previous` is the
    version before, whose ids are kept (see `identify`).

    Raises: LandslideError when a column is not as the contract says.
    """
    kept = objects.take(objects.tally.pixels * gsd_m**2 >= provenance.min_area_m2 - 1e-6)
    layer = gpd.GeoDataFrame(geometry=to_ground(kept.polygons, gsd_m=gsd_m), crs=f"EPSG:{epsg}")
    shape = pd.DataFrame(measure_shape(layer))
    columns = pd.concat([shape, pd.DataFrame(measure_ground(kept)), pd.DataFrame(measure_edge(kept))], axis=1)
    columns["h_over_l"] = columns["relief_m"] / columns["length_m"]
    columns["channel_connected"] = reaches_channel(kept)
    columns["distance_to_epicentre_km"] = _epicentre_km(layer, provenance)
    columns["confidence"] = classify_confidence(
        columns["probability_mean"].to_numpy(), columns["observed_fraction"].to_numpy(), threshold=provenance.threshold
    )
    columns["reasons"], columns["decision"] = judge(columns)
    for name, value in _stamp(provenance).items():
        columns[name] = value
    columns["id"], columns["supersedes"] = identify(kept, layer, gsd_m=gsd_m, provenance=provenance, previous=previous)
    columns = columns[["id", *columns.columns.drop("id")]]
    check_columns(columns)
    table = gpd.GeoDataFrame(columns, geometry=layer.geometry, crs=layer.crs)
    vetoed = (table["decision"] == "vetoed").to_numpy(dtype=bool)
    return table[~vetoed].reset_index(drop=True), table[vetoed].reset_index(drop=True)


def measure_shape(layer: gpd.GeoDataFrame) -> dict[str, Values | str]:
    """Area (geodesic, m2), perimeter, length and width (m) and volume (m3) of each polygon of a metric layer.

    Length and width are the sides of the smallest rotated rectangle; the perimeter follows the pixels' sides, and is
    therefore up to 4 / pi longer than a smooth outline. The volume's interval is that of the law's parameters, both one
    standard error off the same way: single landslides scatter around the law far more.
    """
    lonlat = layer.geometry.to_crs(4326)
    area = np.array([_geodesic_area(polygon) for polygon in lonlat], dtype=np.float64)
    polygons = layer.geometry.to_numpy()
    corners = shapely.get_coordinates(shapely.oriented_envelope(polygons)).reshape(-1, 5, 2)
    sides = np.hypot(*np.moveaxis(np.diff(corners[:, :3], axis=1), -1, 0))
    return {
        "area_m2": area,
        "perimeter_m": shapely.length(polygons),
        "length_m": sides.max(axis=1),
        "width_m": sides.min(axis=1),
        "volume_m3": scale_volume(area),
        "volume_low_m3": scale_volume(area, errors=-1.0),
        "volume_high_m3": scale_volume(area, errors=1.0),
        "volume_law": VOLUME_LAW,
    }


def _geodesic_area(polygon: shapely.Polygon) -> float:
    return float(abs(_GEOD.geometry_area_perimeter(shapely.geometry.polygon.orient(polygon))[0]))


def scale_volume(area_m2: Values, *, errors: float = 0.0) -> Values:
    """Volumes in m3, of the shape of `area_m2`; `errors` moves both parameters by so many standard errors.

    Source: Larsen et al. 2010, V = alpha A^gamma, all landslides (soil and bedrock).

    >>> round(float(scale_volume(np.array([1e4]))[0]))
    31046
    """
    alpha = 10.0 ** (LOG10_ALPHA + errors * LOG10_ALPHA_ERROR)
    volume: Values = alpha * area_m2 ** (GAMMA + errors * GAMMA_ERROR)
    return volume


def measure_ground(objects: Objects) -> dict[str, Values]:
    """Probability, slope, aspect, elevation and change of each object, (n,) each; NaN where an input is missing.

    `aspect_deg` is the circular mean, clockwise from north.
    """
    sine, cosine = objects.statistic("aspect_sin", "mean"), objects.statistic("aspect_cos", "mean")
    low, high = objects.statistic("elevation_m", "min"), objects.statistic("elevation_m", "max")
    columns = {
        "probability_mean": objects.statistic("probability", "mean"),
        "probability_max": objects.statistic("probability", "max"),
        "slope_mean_deg": objects.statistic("slope_deg", "mean"),
        "slope_p90_deg": objects.slope_percentile(90.0),
        "aspect_deg": np.degrees(np.arctan2(sine, cosine)) % 360.0,
        "elevation_min_m": low,
        "elevation_max_m": high,
        "relief_m": high - low,
        f"{CHANGE_SCORE}_mean": objects.statistic(CHANGE_SCORE, "mean"),
    }
    told = {"probability", "slope_deg", "aspect_sin", "aspect_cos", "elevation_m", CHANGE_SCORE}
    further = [name for name in objects.tally.variables if name not in told]
    return columns | {f"{COLUMN_STEMS.get(name, name)}_mean": objects.statistic(name, "mean") for name in further}


def reaches_channel(objects: Objects) -> pd.arrays.BooleanArray:
    """Whether each object touches a cell that drains more than `CHANNEL_AREA_M2`, (n,) bool; null without a DEM."""
    largest = objects.statistic("flow_accumulation_m2", "max")
    return pd.arrays.BooleanArray(largest > CHANNEL_AREA_M2, np.isnan(largest))


def check_columns(table: pd.DataFrame) -> None:
    """Nothing when the table keeps the contract of `INVENTORY_COLUMNS`.

    Raises: LandslideError naming the columns that are unknown, missing, of another kind, or null where they may not be.
    """
    problems = [f"{name} is not in catalog.schema.INVENTORY_COLUMNS" for name in table if name not in INVENTORY_COLUMNS]
    for name, column in INVENTORY_COLUMNS.items():
        if name not in table:
            problems += [] if column.name.endswith("_mean") else [f"{name} is missing"]
        elif not column.nullable and table[name].isna().any():
            problems.append(f"{name} has nulls")
        elif len(table) and not _is_kind(table[name], column):
            problems.append(f"{name} is {table[name].dtype}, expected {column.kind}")
    if problems:
        raise LandslideError(f"inventory: {'; '.join(problems)}")


def _is_kind(values: pd.Series[Any], column: Column) -> bool:
    if column.nullable and values.isna().all():
        return True
    of_kind = {
        "text": pd.api.types.is_string_dtype,
        "integer": pd.api.types.is_integer_dtype,
        "number": pd.api.types.is_float_dtype,
        "flag": pd.api.types.is_bool_dtype,
    }
    return bool(of_kind[column.kind](values))


def measure_edge(objects: Objects) -> dict[str, Values | NDArray[np.bool_]]:
    """Share of each outline (holes included) that borders observed ground, and whether some of it does not."""
    unseen, outline = objects.tally.unseen, np.maximum(objects.tally.outline, 1)
    return {"observed_fraction": 1.0 - unseen / outline, "touches_edge": unseen > 0}


def classify_confidence(probability: Values, observed_fraction: Values, *, threshold: float) -> NDArray[np.str_]:
    """`high`, `medium` or `low` for each object, (n,): see CONFIDENCE_RULE."""
    margin = (probability - threshold) / (1.0 - threshold) + 1e-9  # so that 0.8 is not below 0.8
    high = (margin >= HIGH_MARGIN) & (observed_fraction >= HIGH_OBSERVED)
    return np.select([high, margin >= MEDIUM_MARGIN], ["high", "medium"], default="low")


def judge(columns: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Reason codes (joined by ";", empty = none) and decision, `accepted` or `vetoed`, of each row."""
    rejected = {veto.code: veto.rejects(columns) for veto in VETOES}
    reasons = [";".join(code for code, hit in rejected.items() if hit[i]) for i in range(len(columns))]
    return reasons, ["vetoed" if reason else "accepted" for reason in reasons]


def identify(
    objects: Objects,
    layer: gpd.GeoDataFrame,
    *,
    gsd_m: float,
    provenance: Provenance,
    previous: gpd.GeoDataFrame | None,
) -> tuple[list[str], list[str]]:
    """Id of each object, and the earlier ids (joined by ";") that it replaces.

    An object that overlaps one of `previous` with an intersection over union above 0.5 *is* that landslide and keeps
    its id, so that an outline may move. A new one is named by a hash of the event and the position of its first pixel
    in row-major order, which no other object has: processing again gives the same ids. Earlier landslides that it
    overlaps without being them (parts merged, or a whole split) are those it supersedes.
    """
    carried: dict[int, str] = {}
    replaced: dict[int, list[str]] = {}
    for new, old_id, iou in _overlaps(layer, previous, gsd_m=gsd_m):
        if iou > SAME_LANDSLIDE_IOU:
            carried[new] = old_id
        else:
            replaced.setdefault(new, []).append(old_id)
    taken = set(carried.values())
    ids = []
    for i, (row, col) in enumerate(zip(*objects.first_pixels(), strict=True)):
        place = f"{provenance.event_id}/{(col + 0.5) * gsd_m:.2f}/{(row + 0.5) * -gsd_m:.2f}"
        fresh = _name(place)
        # The first pixel of a landslide that was split may now be another object's: that one is new in this version.
        ids.append(carried.get(i) or (fresh if fresh not in taken else _name(f"{place}/{provenance.version}")))
    return ids, [";".join(sorted(replaced.get(i, []))) for i in range(len(layer))]


def _name(place: str) -> str:
    return "ls-" + hashlib.sha256(place.encode()).hexdigest()[:16]


def _overlaps(
    layer: gpd.GeoDataFrame, previous: gpd.GeoDataFrame | None, *, gsd_m: float
) -> list[tuple[int, str, float]]:
    """Pairs of new row and earlier id that share ground (half a pixel), with their intersection over union."""
    if previous is None or previous.empty or layer.empty:
        return []
    new, old = layer.geometry.to_numpy(), previous.to_crs(layer.crs).geometry.to_numpy()
    old_row, new_row = shapely.STRtree(new).query(old, predicate="intersects")
    shared = shapely.area(shapely.intersection(new[new_row], old[old_row]))
    shared[shared < 0.5 * gsd_m**2] = 0.0  # neighbours that touch share rounding, not ground
    iou = shared / (shapely.area(new[new_row]) + shapely.area(old[old_row]) - shared)
    names = previous["id"].to_numpy()[old_row]
    pairs = zip(new_row, names, iou, strict=True)
    return [(int(row), str(name), float(value)) for row, name, value in pairs if value > 0.0]


def _epicentre_km(layer: gpd.GeoDataFrame, provenance: Provenance) -> Values:
    """Geodesic distance of each centroid from the epicentre; NaN where that is not known."""
    lon, lat = provenance.event_longitude, provenance.event_latitude
    if lon is None or lat is None or layer.empty:
        return np.full(len(layer), np.nan)
    centre = layer.geometry.centroid.to_crs(4326)
    distance = _GEOD.inv(np.full(len(layer), lon), np.full(len(layer), lat), centre.x.to_numpy(), centre.y.to_numpy())[
        2
    ]
    return np.asarray(distance, dtype=np.float64) / 1000.0


def _stamp(provenance: Provenance) -> dict[str, str | int | float | None]:
    """Columns that are the same for every landslide."""
    return {
        "event_id": provenance.event_id,
        "version": provenance.version,
        "pre_scenes": provenance.pre_scenes,
        "pre_date": provenance.pre_date,
        "post_scenes": provenance.post_scenes,
        "post_date": provenance.post_date,
        "model": provenance.model,
        "weights_sha256": provenance.weights_sha256,
        "threshold": provenance.threshold,
        "review_status": "unreviewed",
        "reviewer": "",
    }


def area_layer(area_px: shapely.MultiPolygon, *, gsd_m: float, epsg: int) -> gpd.GeoDataFrame:
    """One row, in the grid's CRS: the observed ground, from `tasks.objects.join_area`."""
    ground: Geometries = to_ground(np.array([area_px], dtype=object), gsd_m=gsd_m)
    return gpd.GeoDataFrame(geometry=ground, crs=f"EPSG:{epsg}")
