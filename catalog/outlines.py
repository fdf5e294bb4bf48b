"""Polygons of vector files, read by one rule of layers, geometry, CRS and text, and what was read of them in words.

Areas of interest, reference maps and labels all come in here. Attributes are not read, so their encoding cannot matter.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import geopandas as gpd
import numpy as np
import pyogrio
import pyproj
import shapely
from numpy.typing import NDArray
from shapely import GeometryType

from catalog.files import name_of
from catalog.layers import (
    NOT_LEFT,
    areal_layers,
    layers_of,
    local_file,
    named_layers,
    question_of,
    split_source,
    untouched,
)
from catalog.schema import InputError

AREAL: Final = (GeometryType.POLYGON, GeometryType.MULTIPOLYGON)
ANY_BYTES: Final = "ISO-8859-1"
"""Reads every byte as some character: names of fields are looked at, never used."""
STEP_DEG, STEP_M = 0.05, 5000.0
"""Sides are bent in another CRS: one of this length by less than a metre."""
NEAR_DEG: Final = 10.0
"""Ground so far beyond the area that a CRS is made for is cut away: its coordinates would mean nothing."""

Geometries = NDArray[np.object_]


@dataclass(frozen=True)
class Outlines:
    """The polygons of some layers of a file."""

    frame: gpd.GeoDataFrame
    """One row a feature, (multi)polygons that are valid and flat, in the file's CRS."""
    file: str
    layers: tuple[str, ...]
    what: str
    """What they are to be, for messages."""
    ignored: Mapping[str, int]
    """Features and parts without area, by kind."""

    def in_crs(self, epsg: int) -> gpd.GeoDataFrame:
        """The polygons in another CRS.

        Raises: InputError when they cannot be brought there.
        """
        target, source = pyproj.CRS.from_epsg(epsg), self.frame.crs
        shapes = self.frame.geometry.to_numpy()
        if source != target:
            shapes = _cut_far(shapes, target) if source.is_geographic else shapes
            shapes = shapely.segmentize(shapes, STEP_DEG if source.is_geographic else STEP_M)
        try:
            placed = gpd.GeoDataFrame(geometry=shapes, crs=source).to_crs(epsg)
        except pyproj.exceptions.ProjError as error:
            raise InputError(f"{self.what} {self.file}: cannot be brought to EPSG:{epsg} ({error})") from None
        if not np.isfinite(placed.total_bounds).all():
            raise InputError(
                f"{self.what} {self.file}: lies where EPSG:{epsg} has no coordinates; expected polygons near the "
                "imagery; check its coordinates and its CRS"
            )
        return gpd.GeoDataFrame(geometry=_repaired(placed.geometry.to_numpy(), Counter()), crs=epsg)

    @property
    def digest(self) -> str:
        """Digest (sha256, hex) of the polygons and their CRS: of all that was read."""
        known = hashlib.sha256(self.frame.crs.to_wkt().encode())
        for wkb in shapely.to_wkb(self.frame.geometry.to_numpy()):
            known.update(wkb)
        return known.hexdigest()

    @property
    def sentence(self) -> str:
        """What was read.

        >>> frame = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs=4326)
        >>> Outlines(frame, "a/aoi.gpkg", ("scar",), "aoi", {"Point": 2}).sentence
        'aoi: aoi.gpkg, layer scar, 1 polygon; left out: 2 Point'
        """
        count = len(self.frame)
        told = f"{self.what}: {name_of(self.file)}, layer{'s' if len(self.layers) > 1 else ''} "
        told += f"{', '.join(self.layers)}, {count:,} polygon{'s' if count > 1 else ''}"
        left = ", ".join(f"{number:,} {kind}" for kind, number in sorted(self.ignored.items()))
        return f"{told}; left out: {left}" if left else told


def read_outlines(source: str, *, what: str) -> Outlines:
    """The polygons of FILE[:LAYER[,LAYER]]; without layers of the only one that holds some. `what` names them.

    Features of other kinds are left out and counted; what crosses itself is made valid.

    Raises: InputError when file or layer is missing, several layers hold polygons and none is named, there is no CRS or
    one that the coordinates contradict, a surface cannot be read, or there is no polygon.
    """
    file, wanted = split_source(source)
    with local_file(file, what=what) as there:
        try:
            return _read(there, wanted, file=file, what=what)
        except InputError as error:
            raise InputError(str(error).replace(there, file)) from None


def _read(there: str, wanted: str, *, file: str, what: str) -> Outlines:
    """The polygons of a file that lies `there`, and is called `file` in messages."""
    known = layers_of(there, what=what)
    picked = named_layers(file, wanted, known, what=what) if wanted else areal_layers(file, known, what=what)
    found = {index: read_layer(there, index, what=what) for index in picked}
    holding = [index for index in picked if len(found[index][0])]
    if not wanted and len(holding) > 1:
        raise InputError(question_of(file, {known[i].name: len(found[i][0]) for i in holding}, what=what))
    ignored = sum((found[index][1] for index in picked), Counter[str]())
    if not holding:
        got = ", ".join(f"{n} {kind}" for kind, n in ignored.items()) or "nothing"
        names = ", ".join(known[index].name for index in picked)
        raise InputError(f"{what} {file}: layer {names} holds no polygon, got {got}; expected outlines as polygons")
    first = found[holding[0]][0]
    geometry = np.concatenate([found[i][0].to_crs(first.crs).geometry.to_numpy() for i in holding])
    taken = tuple(known[index].name for index in (picked if wanted else holding))
    return Outlines(gpd.GeoDataFrame(geometry=geometry, crs=first.crs), file, taken, what, ignored)


def read_layer(file: str, layer: str | int, *, what: str) -> tuple[gpd.GeoDataFrame, Counter[str]]:
    """The polygons of a layer, maybe none, with the count of what has no area by kind.

    Raises: InputError when it cannot be read, has no CRS that fits its coordinates, or holds surfaces of unknown form.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=f"Measured|{NOT_LEFT}")  # M is of no use here
            meta, _, wkb, _ = pyogrio.raw.read(untouched(file), layer=layer, columns=[], encoding=ANY_BYTES)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, pyogrio.errors.FeatureError) as error:
        raise InputError(f"{what} {file}: cannot be read ({error}); expected e.g. a GeoPackage") from None
    if wkb is None:
        raise InputError(f"{what} {file}: {layer} is a table without geometry; expected a layer of polygons")
    kept, ignored = _only_polygons(_decoded(wkb, file, what=what))
    crs = _checked_crs(meta["crs"], kept, file, what=what)
    kept = np.array([_unrolled(shape) for shape in kept], dtype=object) if crs.is_geographic else kept
    return gpd.GeoDataFrame(geometry=_repaired(kept, ignored), crs=crs), ignored


def _decoded(wkb: Geometries, file: str, *, what: str) -> Geometries:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NaN coordinates: refused below
        shapes = np.asarray(shapely.from_wkb(wkb, on_invalid="fix"), dtype=object)
    lost = np.array([text is not None for text in wkb], dtype=bool) & shapely.is_missing(shapes)
    for place in np.flatnonzero(shapely.get_type_id(shapes) == GeometryType.GEOMETRYCOLLECTION):
        lost[place] = _is_curved(shapes[place])
    known = [None if at else shape for shape, at in zip(shapes, lost, strict=True)]
    coordinates, owner = shapely.get_coordinates(known, return_index=True)
    lost[owner[~np.isfinite(coordinates).all(axis=1)]] = True
    if lost.any():
        raise InputError(_not_understood(file, int(lost.sum()), len(lost), what=what))
    return np.asarray(shapely.force_2d(shapes), dtype=object)


def _is_curved(collection: Any) -> bool:  # noqa: ANN401 - shapely's geometries
    """True where a part is a curve: GDAL draws them as lines, but not within a collection, and shapely knows none."""
    try:
        _parts(collection)
    except NotImplementedError:
        return True
    return False


def _not_understood(file: str, lost: int, count: int, *, what: str) -> str:
    return (
        f"{what} {file}: {lost:,} of {count:,} features have a surface that is not understood (curved in a collection, "
        "TIN, polyhedral, broken rings or coordinates); expected polygons; convert it: ogr2ogr -nlt CONVERT_TO_LINEAR "
        "-makevalid"
    )


def _only_polygons(shapes: Geometries) -> tuple[Geometries, Counter[str]]:
    """The polygons of each feature that has some, collections taken apart, and what else there was."""
    ignored: Counter[str] = Counter()
    kept = []
    for shape, areal in zip(shapes, np.isin(shapely.get_type_id(shapes), AREAL), strict=True):
        if shape is None or shape.is_empty:
            ignored["without geometry"] += 1
        elif areal:
            kept.append(shape)
        elif parts := [part for part in _parts(shape) if _counts(part, ignored)]:
            kept.append(parts[0] if len(parts) == 1 else shapely.union_all(shapely.make_valid(parts)))
    return np.array([*kept, None], dtype=object)[:-1], ignored


def _parts(shape: Any) -> list[Any]:  # noqa: ANN401 - shapely's geometries
    """The simple geometries of a collection of any depth."""
    if shape.geom_type == "GeometryCollection" or shape.geom_type.startswith("Multi"):
        return [simple for part in shapely.get_parts(shape) for simple in _parts(part)]
    return [shape]


def _counts(part: Any, ignored: Counter[str]) -> bool:  # noqa: ANN401 - shapely's geometries
    if part.geom_type == "Polygon" and not part.is_empty:
        return True
    ignored[part.geom_type] += 1
    return False


def _repaired(shapes: Geometries, ignored: Counter[str]) -> Geometries:
    """Polygons made valid; what has no area then is left out and counted."""
    good = shapely.is_valid(shapes)
    if good.all():
        return shapes
    mended, without = _only_polygons(shapely.make_valid(shapes[~good]))
    flat = int((~good).sum()) - len(mended)
    ignored.update({"without area": flat} if flat else {})
    return np.concatenate([shapes[good], mended])


def _checked_crs(text: str | None, shapes: Geometries, file: str, *, what: str) -> pyproj.CRS:
    if text is None:
        raise InputError(f"{what} {file}: has no CRS; assign one, e.g. with ogr2ogr -a_srs EPSG:32654")
    crs = pyproj.CRS(text)
    if not (crs.is_geographic or crs.is_projected):
        raise InputError(
            f"{what} {file}: its CRS {crs.name} is nowhere on earth; assign the right one, e.g. with ogr2ogr -a_srs "
            "EPSG:32654"
        )
    if not crs.is_geographic or not len(shapes):
        return crs
    left, bottom, right, top = shapely.total_bounds(shapes)
    if max(-left, right) > 360 or max(-bottom, top) > 90:
        raise InputError(
            f"{what} {file}: got coordinates of {left:.6g} to {right:.6g} and {bottom:.6g} to {top:.6g}; expected "
            f"longitudes and latitudes, as its CRS {crs.name} says (a GeoJSON that names none is in degrees); if they "
            "are metres assign their CRS, e.g. with ogr2ogr -a_srs EPSG:32654; if they are swapped, swap them"
        )
    return crs


def _unrolled(shape: Any) -> Any:  # noqa: ANN401 - shapely's geometries
    """A polygon that leaps from 180 to -180 degrees, running on past 180 instead."""
    west, _, east, _ = shape.bounds
    if not 180 < east - west < 360:
        return shape
    parts = [_past_180(part) for part in shapely.get_parts(shape)]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def _past_180(polygon: Any) -> Any:  # noqa: ANN401 - shapely's geometries
    longitudes = shapely.get_coordinates(polygon.exterior)[:, 0]
    if np.abs(np.diff(longitudes)).max() <= 180:
        return polygon
    return shapely.transform(polygon, lambda xy: xy + [360, 0] * (xy[:, :1] < 0))


def _cut_far(shapes: Geometries, target: pyproj.CRS) -> Geometries:
    """Polygons in degrees without what lies far from the area of a CRS; as they are where nothing does, or all."""
    area = target.area_of_use
    if area is None:
        return shapes
    west, east = area.west - NEAR_DEG, area.east + NEAR_DEG + (360 if area.east < area.west else 0)
    south, north = max(-90, area.south - NEAR_DEG), min(90, area.north + NEAR_DEG)
    near = shapely.union_all([shapely.box(west + turn, south, east + turn, north) for turn in (-360, 0, 360)])
    if shapely.within(shapes, near).all():
        return shapes
    left, _ = _only_polygons(shapely.intersection(shapely.make_valid(shapes), near))
    return left if len(left) else shapes
