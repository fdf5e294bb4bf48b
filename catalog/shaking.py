"""Where an earthquake shook the ground enough for landslides: of its ShakeMap, else of its magnitude."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

import numpy as np
import rasterio.features
import shapely
from rasterio.transform import from_origin

from catalog.apart import kept_apart
from catalog.areas import GEOD, Area, on_land_with_relief, split_at_antimeridian
from catalog.comcat import Quake, ShakeMap
from catalog.config import Event
from catalog.policy import QuakePolicy
from catalog.schema import InputError
from catalog.web import Unanswered, parse_json, parse_xml

Reader = Callable[[str], bytes]
"""What is at an address."""

MAX_SIDE: Final = 5000
"""Rows and columns of a grid."""
MAX_POINTS: Final = 500_000
"""Points of all contours at a level."""
NAMESPACE: Final = "{http://earthquake.usgs.gov/eqcenter/shakemap}"
PERCENT_G: Final = ("pctg", "%g")
AZIMUTHS: Final = 72
POLAR_STEP_DEG: Final = 10.0
MMI_SLACK: Final = 0.5
PGA_SLACK: Final = 0.5
CIRCLE: Final = "circle"
UNCUT: Final = ":uncut"
"""Of the key of an area whose elevation could not be read: it is made again."""


def area_key(quake: Quake, policy: QuakePolicy) -> str:
    """What the area of an earthquake would be made of, before it is: its ShakeMap, else magnitude and epicentre."""
    if quake.shakemap is not None:
        return f"shakemap:{quake.shakemap.key}:{policy.min_pga_g:g}g:{policy.min_mmi:g}"
    return _circle_key(quake.event)


def _circle_key(event: Event) -> str:
    magnitude = "unknown" if event.magnitude is None else f"{event.magnitude:.1f}"
    return f"{CIRCLE}:M{magnitude}:{event.longitude:.2f}:{event.latitude:.2f}"


def is_circle(key: str) -> bool:
    """Whether an area of this key was made of the magnitude."""
    return key.startswith(f"{CIRCLE}:")


def area_of(quake: Quake, policy: QuakePolicy, read: Reader) -> tuple[Area, tuple[str, ...]]:
    """The area of an earthquake, and why better sources of it were passed over.

    PGA contour, grid, intensity contour, circle: the first that can be read. Sea and flat ground are cut away where
    the policy names a DEM that can be read.
    """
    passed: list[str] = []
    found = _shaken(quake.shakemap, policy, read, passed) if quake.shakemap is not None else None
    area = circle(quake.event) if found is None else Area(found[0], area_key(quake, policy), found[1])
    if policy.dem is not None and not area.geometry.is_empty:
        area = _cut(area, policy.dem, policy, passed)
    return area, tuple(passed)


def _cut(area: Area, dem: str, policy: QuakePolicy, passed: list[str]) -> Area:
    """The area on land with relief; all of it where the elevation cannot be read: too much is better than nothing."""
    with kept_apart(f"elevation {dem}", passed):
        return on_land_with_relief(area, dem, min_relief_m=policy.min_relief_m)
    return replace(area, key=f"{area.key}{UNCUT}")


def _shaken(shakemap: ShakeMap, policy: QuakePolicy, read: Reader, passed: list[str]) -> tuple[Any, str] | None:
    pga, mmi = 100 * policy.min_pga_g, policy.min_mmi
    ways: tuple[tuple[str, str, Callable[[bytes, str], Any]], ...] = (
        ("download/cont_pga.json", f"PGA >= {policy.min_pga_g:g} g", lambda data, at: inside_contour(
            data, level=pga, lowest=PGA_SLACK * pga, where=at)),
        ("download/grid.xml", f"PGA >= {policy.min_pga_g:g} g", lambda data, at: inside_grid(
            data, min_pga_g=policy.min_pga_g, where=at)),
        ("download/cont_mmi.json", f"MMI >= {mmi:g}", lambda data, at: inside_contour(
            data, level=mmi, lowest=mmi - MMI_SLACK, where=at)),
        ("download/cont_mi.json", f"MMI >= {mmi:g}", lambda data, at: inside_contour(
            data, level=mmi, lowest=mmi - MMI_SLACK, where=at)),
    )  # fmt: skip
    name = f"ShakeMap {shakemap.key.split(':')[0]} v{shakemap.version}"
    for file, measure, inside in ways:
        if (url := shakemap.urls.get(file)) is None:
            continue
        with kept_apart(f"{name} {file}", passed):
            try:
                return inside(read(url), f"{name} {file}"), f"{name} {measure}"
            except (InputError, Unanswered) as error:
                passed.append(str(error))
    return None


def inside_contour(data: bytes, *, level: float, lowest: float, where: str) -> Any:  # noqa: ANN401 - shapely's
    """The ground inside the contours of a level, of a GeoJSON of contour lines; a ring within a ring is a hole.

    A map without the level is read at its next lower one, not under `lowest`.

    Raises: InputError for what is no such document, has no such level, or whose contour runs off the map: which side
    is shaken more would be a guess.
    """
    lines = list(_lines(parse_json(data, where=where), where=where))
    levels = {value for value, _ in lines if lowest <= value <= level * (1 + 1e-6)}
    if not levels:
        raise InputError(f"{where}: has no contour of {lowest:g} .. {level:g}; expected one")
    rings = [points for value, points in lines if value == max(levels)]
    if sum(map(len, rings)) > MAX_POINTS:
        raise InputError(f"{where}: has over {MAX_POINTS} points; refused")
    whole = shapely.Polygon()
    for points in rings:
        points[:, 0] = np.unwrap(points[:, 0], period=360)
        if len(points) < 4 or not np.allclose(points[0], points[-1]):
            raise InputError(f"{where}: the contour of {max(levels):g} runs off the map")
        whole = whole.symmetric_difference(split_at_antimeridian(shapely.make_valid(shapely.Polygon(points))))
    return split_at_antimeridian(whole)


def _lines(document: Any, *, where: str) -> Iterator[tuple[float, Any]]:  # noqa: ANN401
    """Value and (n, 2) points of each contour line."""
    try:
        for feature in document["features"]:
            value, geometry = float(feature["properties"]["value"]), feature["geometry"]
            several = {"LineString": [geometry["coordinates"]], "MultiLineString": geometry["coordinates"]}
            for line in several[geometry["type"]]:
                points = np.array([point[:2] for point in line], dtype="float64")
                if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
                    raise ValueError("a line without finite points")
                if (np.abs(points) > [360, 90]).any():
                    raise ValueError("a point that is not on earth")
                yield value, points
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise InputError(f"{where}: no contours ({type(error).__name__}: {error}); expected GeoJSON lines") from None


def inside_grid(data: bytes, *, min_pga_g: float, where: str) -> Any:  # noqa: ANN401 - shapely's
    """The ground of a ShakeMap grid (version 3.5 or 4) that was shaken so much, in degrees; empty where none was.

    Raises: InputError for what is no such document, or does not hold what it says.
    """
    root = parse_xml(data, where=where)
    try:
        return _polygonised(root, min_pga_g)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{where}: no ShakeMap grid ({type(error).__name__}: {error}); expected a grid.xml") from None


def _polygonised(root: Any, min_pga_g: float) -> Any:  # noqa: ANN401
    spec = root.find(f"{NAMESPACE}grid_specification")
    body = root.find(f"{NAMESPACE}grid_data")
    fields = {f.attrib["name"]: f.attrib for f in root.findall(f"{NAMESPACE}grid_field")}
    if spec is None or body is None or not body.text:
        raise ValueError("no specification, or no data")
    columns, rows = int(spec.attrib["nlon"]), int(spec.attrib["nlat"])
    west, east, south, north = (float(spec.attrib[k]) for k in ("lon_min", "lon_max", "lat_min", "lat_max"))
    east += 360 if east < west else 0
    if not (2 <= columns <= MAX_SIDE and 2 <= rows <= MAX_SIDE):
        raise ValueError(f"{columns} x {rows} cells; expected 2 .. {MAX_SIDE} a side")
    if not (-360 <= west < east <= 540 and east - west <= 360 and -90 <= south < north <= 90):
        raise ValueError(f"bounds {west}, {south}, {east}, {north} are not on earth")
    if fields["PGA"].get("units") not in PERCENT_G:
        raise ValueError(f"PGA in {fields['PGA'].get('units')!r}; expected %g")
    places = [int(fields[name]["index"]) - 1 for name in ("LON", "LAT", "PGA")]
    if min(places) < 0:
        raise ValueError("a field without a column")
    values = np.loadtxt(io.StringIO(body.text), usecols=places, ndmin=2)
    if values.shape != (rows * columns, 3) or not np.isfinite(values).all():
        raise ValueError(f"{len(values)} rows of numbers; expected {rows * columns} finite ones")
    step_x, step_y = (east - west) / (columns - 1), (north - south) / (rows - 1)
    corner = (abs((values[0, 0] - west + 180) % 360 - 180), abs(values[0, 1] - north))
    if corner[0] > step_x or corner[1] > step_y:
        raise ValueError("its first row is not the north-west corner")
    return _cells(values[:, 2].reshape(rows, columns) / 100 >= min_pga_g, west, north, step_x, step_y)


def _cells(shaken: Any, west: float, north: float, step_x: float, step_y: float) -> Any:  # noqa: ANN401
    transform = from_origin(west - step_x / 2, north + step_y / 2, step_x, step_y)
    found = rasterio.features.shapes(shaken.astype("uint8"), mask=shaken, transform=transform)
    whole = shapely.union_all([shapely.geometry.shape(shape) for shape, _ in found])
    return split_at_antimeridian(shapely.simplify(whole, step_x / 2))


def circle(event: Event) -> Area:
    """The ground within `radius_km` of the epicentre.

    Raises: InputError for an event without magnitude or place.
    """
    if event.magnitude is None or event.longitude is None or event.latitude is None:
        raise InputError(f"event {event.id}: without magnitude and epicentre it has no area; give both")
    reach_km = radius_km(event.magnitude)
    azimuths = np.linspace(0, 360, AZIMUTHS, endpoint=False)
    ones = np.ones(AZIMUTHS)
    x, y, _ = GEOD.fwd(event.longitude * ones, event.latitude * ones, azimuths, 1000 * reach_km * ones)
    ring = np.column_stack([np.unwrap(x, period=360), y])
    if abs(ring[-1, 0] - ring[0, 0]) > 180:  # around a pole: all longitudes, and the pole itself
        edge, pole = np.abs(y).min(), math.copysign(1, event.latitude)
        ring = np.array([[-180, edge * pole], [180, edge * pole], [180, 90 * pole], [-180, 90 * pole]])
    geometry = split_at_antimeridian(shapely.segmentize(shapely.Polygon(ring), POLAR_STEP_DEG))
    source = f"a circle of {reach_km:.0f} km by its magnitude {event.magnitude:g}"
    return Area(geometry, _circle_key(event), source, is_circle=True)


def radius_km(magnitude: float) -> float:
    """How far from the epicentre landslides are looked for: half the rupture, and the reach of its landslides.

    The reach is that of a circle as large as the largest area affected, log10 A = 3.176 + 0.742 (M - 5.8): the line
    through Keefer's bound, 1,500 km2 at M 5.8 and 500,000 km2 at M 9.2. A rupture may run to one side of its
    epicentre, hence half its length, log10 L = -2.44 + 0.59 M.

    Source: Keefer 1984 (GSA Bulletin 95, 406-421); Wells & Coppersmith 1994 (BSSA 84, 974-1002, subsurface rupture
    length, all slip types).

    >>> round(radius_km(6.6)), round(radius_km(7.8))
    (57, 193)
    """
    area_km2 = 10 ** (3.176 + 0.742 * (magnitude - 5.8))
    rupture_km = 10 ** (-2.44 + 0.59 * magnitude)
    return float(rupture_km / 2 + math.sqrt(area_km2 / math.pi))
