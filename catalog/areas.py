"""The ground that imagery is looked for: geometry in degrees, split where maps are, cut to land with relief, kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyproj
import rasterio
import rasterio.features
import shapely
from rasterio.windows import Window, from_bounds
from rasterio.windows import transform as window_transform
from scipy.ndimage import maximum_filter, minimum_filter

from catalog.config import Event, is_event_id
from catalog.files import write_whole
from catalog.opening import open_raster
from catalog.schema import InputError

GEOD: Final = pyproj.Geod(ellps="WGS84")
ZONE_DEG: Final = 6.0
SLIVER_SHARE: Final = 0.05
"""A zone with less of the area than this gives it to its neighbour, whose projection serves it as well."""
GRID_DEG: Final = 1e-5
SIMPLER_DEG: Final = 0.005
RELIEF_M: Final = 500.0
"""Half the width of the window that relief is looked for in."""
DEM_PX: Final = 1500
"""A DEM is read coarser where it has more pixels to a side."""
DEGREE_M: Final = 111_320.0


@dataclass(frozen=True)
class Area:
    """Ground by its geometry: (multi)polygon in degrees, split at the antimeridian."""

    geometry: Any
    key: str
    """What it was made of: the same key, the same area."""
    source: str
    """The same in words."""
    is_circle: bool = False

    @property
    def km2(self) -> float:
        """Its size on the ellipsoid."""
        return area_km2(self.geometry)


def area_of_wkt(text: str) -> Any:  # noqa: ANN401 - shapely's geometries
    """The geometry of a WKT text of ours. Raises: InputError when it is none."""
    try:
        return shapely.from_wkt(text)
    except shapely.errors.GEOSException as error:
        raise InputError(f"area {text!r:.80}: no WKT ({error}); restore the watch list from a backup") from None


def area_km2(geometry: Any) -> float:  # noqa: ANN401
    """Size of a geometry in degrees, on the ellipsoid."""
    return abs(float(GEOD.geometry_area_perimeter(shapely.normalize(geometry))[0])) / 1e6


def changed_share(before: Any, after: Any) -> float:  # noqa: ANN401
    """How much of an area differs: symmetric difference over the size before; 0 = the same, over 1 = mostly new.

    >>> changed_share(shapely.box(0, 0, 1, 1), shapely.box(0, 0, 1, 1))
    0.0
    """
    size_km2 = area_km2(before)
    return area_km2(before.symmetric_difference(after)) / size_km2 if size_km2 > 0 else float(not after.is_empty)


def split_at_antimeridian(geometry: Any) -> Any:  # noqa: ANN401
    """The same ground with longitudes of -180 .. 180, cut where it crosses; the input's may run on past 180.

    >>> [part.bounds[0] for part in split_at_antimeridian(shapely.box(179, 0, 181, 1)).geoms]
    [-180.0, 179.0]
    """
    parts = []
    for turn in (-1, 0, 1):
        part = geometry.intersection(shapely.box(-180 + 360 * turn, -90, 180 + 360 * turn, 90))
        parts.append(shapely.transform(part, lambda xy, turn=turn: xy - [360 * turn, 0]))
    return _polygons(shapely.normalize(shapely.union_all(parts)))


def one_way_round(geometry: Any) -> Any:  # noqa: ANN401
    """The ground of geometry whose vertices jump between 180 and -180, cut at the antimeridian.

    >>> [one_way_round(shapely.box(west, 0, 179, 1)).area for west in (-179, 178)]
    [2.0, 1.0]
    """
    west, _, east, _ = geometry.bounds
    if east - west <= 180:
        return geometry
    return split_at_antimeridian(shapely.transform(geometry, lambda xy: np.column_stack([xy[:, 0] % 360, xy[:, 1]])))


def _polygons(geometry: Any) -> Any:  # noqa: ANN401
    """Its polygons, without the points and lines that intersections leave."""
    pieces = [piece for piece in shapely.get_parts(geometry) if piece.geom_type == "Polygon" and not piece.is_empty]
    nested = [p for piece in shapely.get_parts(geometry) if piece.geom_type == "MultiPolygon" for p in piece.geoms]
    whole = shapely.set_precision(shapely.union_all([*pieces, *nested]), GRID_DEG)
    return whole if whole.geom_type in ("Polygon", "MultiPolygon") else shapely.MultiPolygon()


def utm_parts(geometry: Any) -> dict[int, Any]:  # noqa: ANN401
    """The area by the UTM zones (EPSG code) it lies in; slivers go to the neighbour, all to one hemisphere."""
    west, _, east, _ = geometry.bounds
    zones = {}
    for number in range(int((west + 180) // ZONE_DEG), min(59, int((east + 180) // ZONE_DEG)) + 1):
        left = number * ZONE_DEG - 180
        part = _polygons(geometry.intersection(shapely.box(left, -90, left + ZONE_DEG, 90)))
        if not part.is_empty:
            zones[number] = part
    least_km2 = SLIVER_SHARE * area_km2(geometry)
    for number in sorted(zones, key=lambda n: area_km2(zones[n])):
        near = [n for n in (number - 1, number + 1) if n in zones]
        if near and area_km2(zones[number]) < least_km2:
            to = max(near, key=lambda n: (area_km2(zones[n]), n))
            zones[to] = shapely.union_all([zones[to], zones.pop(number)])
    base = 32601 if geometry.centroid.y >= 0 else 32701
    return {base + number: part for number, part in sorted(zones.items())}


def on_land_with_relief(area: Area, dem: str, *, min_relief_m: float) -> Area:
    """The area without sea and flat ground; where the DEM ends nothing is cut away.

    Sea is what is at or under 0 m, or nodata; relief is the difference of elevation within `RELIEF_M` around.

    Raises: InputError when the DEM cannot be read.
    """
    left = []
    try:
        with open_raster(dem) as source:
            for piece in _sides(area.geometry):
                known, kept = _relief(source, piece, min_relief_m=min_relief_m)
                left += [piece.intersection(kept), piece.difference(known)]
    except (InputError, rasterio.errors.RasterioError, rasterio.errors.CRSError) as error:
        raise InputError(f"DEM {dem}: cannot be read ({error}); correct `dem` of the earthquakes' policy") from None
    found = _polygons(shapely.union_all(left))
    simpler = _polygons(shapely.make_valid(shapely.simplify(found, SIMPLER_DEG)))
    return replace(area, geometry=simpler, source=f"{area.source}, on land with relief")


def _sides(geometry: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """The parts at either side of the antimeridian: the bounds of both together go around the earth."""
    west, _, east, _ = geometry.bounds
    if east - west <= 180:
        return (geometry,)
    return tuple(geometry.intersection(shapely.box(left, -90, left + 180, 90)) for left in (-180, 0))


def _relief(source: Any, geometry: Any, *, min_relief_m: float) -> tuple[Any, Any]:  # noqa: ANN401
    """Where a DEM says something, and where it says land with relief, both in degrees."""
    bounds = rasterio.warp.transform_bounds("EPSG:4326", source.crs, *geometry.bounds)
    full = Window(0, 0, source.width, source.height)
    window = from_bounds(*bounds, transform=source.transform)
    if not rasterio.windows.intersect(window, full):
        return shapely.Polygon(), shapely.Polygon()
    window = window.intersection(full).round_offsets().round_lengths(op="ceil").intersection(full)
    shape = tuple(max(1, min(DEM_PX, int(side))) for side in (window.height, window.width))
    read = source.read(1, window=window, out_shape=shape, masked=True, resampling=rasterio.enums.Resampling.average)
    transform = window_transform(window, source.transform) * rasterio.Affine.scale(
        window.width / shape[1], window.height / shape[0]
    )
    land = (read.filled(0) > 0) & np.isfinite(read.filled(0))
    metres = np.where(land, read.filled(0), 0).astype("float32")
    pixel_m = abs(transform.e) * (DEGREE_M if source.crs.is_geographic else 1.0)
    size = 2 * max(1, round(RELIEF_M / pixel_m)) + 1
    rough = maximum_filter(metres, size) - minimum_filter(metres, size) >= min_relief_m
    kept = maximum_filter((rough & land).astype("uint8"), size)
    to_degrees = pyproj.Transformer.from_crs(source.crs, "EPSG:4326", always_xy=True)
    return (
        _in_degrees(np.ones(shape, "uint8"), transform, to_degrees),
        _in_degrees(kept * land.astype("uint8"), transform, to_degrees),
    )


def _in_degrees(mask: Any, transform: Any, to_degrees: Any) -> Any:  # noqa: ANN401
    shapes = [shapely.geometry.shape(s) for s, _ in rasterio.features.shapes(mask, mask=mask > 0, transform=transform)]
    whole = shapely.union_all(shapes) if shapes else shapely.Polygon()
    return shapely.make_valid(shapely.transform(whole, lambda xy: np.column_stack(to_degrees.transform(*xy.T))))


def write_event(state: Path, event: Event, area: Area) -> list[Path]:
    """Write an event's folder: `event.json`, and `area-EPSG.geojson` for each UTM zone; returns the files.

    Files of zones that the area no longer lies in are deleted.

    Raises: InputError for an id that may not name a folder, or an empty area.
    """
    if not is_event_id(event.id):
        raise InputError(f"event {event.id!r:.80}: may not name a folder; expected letters, digits, `.`, `_`, `-`")
    if area.geometry.is_empty:
        raise InputError(f"event {event.id}: its area is empty ({area.source}); nothing is written")
    folder = state / event.id
    files = []
    for epsg, part in utm_parts(area.geometry).items():
        told = {"event_id": event.id, "epsg": epsg, "source": area.source, "area_km2": round(area_km2(part), 1)}
        files.append(write_whole(folder / f"area-{epsg}.geojson", _geojson(part, told)))
    for stale in set(folder.glob("area*.geojson")) - set(files):
        stale.unlink(missing_ok=True)
    return [*files, write_whole(folder / "event.json", event.model_dump_json(indent=1) + "\n")]


def _geojson(geometry: Any, properties: Mapping[str, object]) -> str:  # noqa: ANN401
    feature = {"type": "Feature", "properties": properties, "geometry": shapely.geometry.mapping(geometry)}
    return json.dumps({"type": "FeatureCollection", "features": [feature]}) + "\n"
