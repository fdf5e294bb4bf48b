"""A product: what a finished run hands to the writers, its decimated preview, and the numbers every page quotes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final

import geopandas as gpd
import numpy as np
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from pyproj import Geod, Transformer
from shapely import LinearRing, Polygon, box, get_coordinates, get_parts

from catalog.config import Event
from catalog.grid import Grid, Window
from catalog.schema import CHANGES, FloatArray, InputError

CONFIDENCE_COLOURS: Final[Mapping[str, str]] = MappingProxyType(
    {"high": "#FF3D9A", "medium": "#FFC02E", "low": "#63D2FF"}
)
"""Confidence classes, most certain first. Magenta, amber and cyan differ in hue and in lightness, so that they stay
apart for colour-blind readers, and none of them is a colour of forest, rock or soil."""

LANDSLIDE_COLUMNS: Final = ("id", "area_m2", "confidence", "probability_mean")
"""Columns of the landslides that map, report and style read; every other column is delivered as it comes."""

PIXEL_SIDES: Final = 4 / math.pi
"""Length along pixels' sides over that of a smooth outline, mean over its directions."""
POST_BANDS: Final = ("red", "green", "blue")
_GEOD: Final = Geod(ellps="WGS84")


@dataclass(frozen=True)
class Preview:
    """The product's rasters, averaged down to a size a page can hold; all (rows, cols) of one decimated grid."""

    post: FloatArray
    """(3, y, x) float32, reflectance, NaN = not observed."""
    pre: FloatArray | None
    """As `post`; None where the product has none."""
    probability: FloatArray
    """(y, x) float32, 0-1, NaN = not observed."""
    transform: Affine
    """Preview pixels to metres of the event's CRS."""
    factor: int
    """Product pixels along the side of a preview pixel."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, cols = self.probability.shape
        return rows, cols

    @property
    def extent_m(self) -> tuple[float, float, float, float]:
        """Left, right, bottom, top in metres."""
        rows, cols = self.shape
        left, top = self.transform.c, self.transform.f
        return left, left + cols * self.transform.a, top + rows * self.transform.e, top


@dataclass(frozen=True)
class Headline:
    """The numbers a responder reads first."""

    count: int
    area_m2: float
    area_range_m2: tuple[float, float]
    """The same with each outline half a pixel further in or out."""
    largest_m2: float
    observed_m2: float
    """Geodesic area in which a landslide would have been seen."""
    scene_m2: float
    """Area of the rectangle that was asked for or imaged."""
    vetoed: int
    by_confidence: Mapping[str, int]

    @property
    def observed_percent(self) -> float:
        """Observed share of the scene, 0-100."""
        return 100 * self.observed_m2 / self.scene_m2


@dataclass(frozen=True, eq=False)
class Difference:
    """The landslides of two versions beside each other."""

    before: int
    """Number of the earlier version."""
    table: gpd.GeoDataFrame
    """A row a landslide of either version, from `tasks.differences.compare`."""
    newly_observed_m2: float | None
    """Ground seen for the first time; None where the versions have different pixels."""

    def counts(self) -> dict[str, int]:
        """Landslides by change."""
        found = self.table["change"].value_counts()
        return {change: int(found.get(change, 0)) for change in CHANGES}

    def as_dict(self) -> dict[str, Any]:
        """JSON-sized values: the counts, and the ids of what is not unchanged."""
        moved = self.table[self.table["change"] != "unchanged"]
        ids = {str(change): sorted(rows["id"]) for change, rows in moved.groupby("change")}
        told = {"from_version": self.before, "newly_observed_m2": self.newly_observed_m2}
        return {**told, **self.counts(), "ids": ids}


@dataclass(frozen=True, eq=False)
class Product:
    """One version of one event's inventory, ready to be written; rasters are lazy and cover the whole grid."""

    event: Event | None
    event_id: str
    version: int
    config: Mapping[str, Any]
    grid: Grid
    window: Window
    """The observed area's window of the grid: what rasters are cropped to."""
    landslides: gpd.GeoDataFrame
    """In the grid's CRS, with `LANDSLIDE_COLUMNS` and more."""
    vetoed: gpd.GeoDataFrame
    """Objects that were found and then rejected; column `reasons`."""
    observed_area: gpd.GeoDataFrame
    """One row: where a landslide would have been seen."""
    probability: xr.DataArray
    """(y, x) float32, 0-1, NaN = not observed."""
    landslide_class: xr.DataArray
    """(y, x) uint8: 1 landslide, 0 clear, 255 not observed."""
    disagreement: xr.DataArray
    """(y, x) float32, 0-1, NaN = not observed."""
    post: xr.Dataset
    """red, green, blue: (y, x) float32, reflectance, NaN = nodata."""
    pre: xr.Dataset | None = None
    """As `post`; None without pre-event imagery that the result rests on."""
    post_time_utc: tuple[datetime, datetime] | None = None
    """First and last post-event scene; None = not known."""
    used: list[str] = field(default_factory=list)
    not_used: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    model_card: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    difference: Difference | None = None
    """From the version before; None in the first."""
    preview: Preview | None = None
    """Filled in by `catalog.publication.publish`, so that map and report read the imagery once."""

    @property
    def title(self) -> str:
        """The event's title, or its id."""
        return (self.event.title if self.event else "") or self.event_id

    @cached_property
    def scene_lonlat(self) -> Polygon:
        """The scene's rectangle in longitude and latitude."""
        bounds = self.grid.geobox_of(self.grid.scene).boundingbox
        scene: Polygon = gpd.GeoSeries([box(*bounds.bbox)], crs=self.grid.epsg).to_crs(4326).iloc[0]
        return scene

    @cached_property
    def headline(self) -> Headline:
        """The product's headline numbers."""
        area, edge = self.landslides["area_m2"], self._half_pixel_m2
        counts = self.landslides["confidence"].astype(str).value_counts()
        return Headline(
            count=len(self.landslides),
            area_m2=float(area.sum()),
            area_range_m2=(float((area - edge).clip(lower=0.0).sum()), float((area + edge).sum())),
            largest_m2=float(area.max()) if len(area) else 0.0,
            observed_m2=_geodesic_area(self.observed_area.geometry.to_numpy(), epsg=self.grid.epsg),
            scene_m2=_geodesic_area(self.scene_lonlat, epsg=4326),
            vetoed=len(self.vetoed),
            by_confidence={name: int(counts.get(name, 0)) for name in CONFIDENCE_COLOURS},
        )

    @property
    def _half_pixel_m2(self) -> NDArray[np.float64]:
        """Area of half a pixel along each landslide's outline, (n,)."""
        outline: NDArray[np.float64] = self.landslides.geometry.length.to_numpy() / PIXEL_SIDES
        return outline * self.grid.gsd_m / 2


def _geodesic_area(polygons: Any, *, epsg: int) -> float:  # noqa: ANN401 - any shapely polygons
    """Area, m2, of polygons of a CRS: outlines less holes, ring by ring, as clouds have millions of vertices."""
    to_degrees = Transformer.from_crs(epsg, 4326, always_xy=True)

    def ring_m2(ring: LinearRing) -> float:
        return abs(float(_GEOD.polygon_area_perimeter(*to_degrees.transform(*get_coordinates(ring).T))[0]))

    parts = get_parts(polygons)
    return sum(ring_m2(part.exterior) - sum(map(ring_m2, part.interiors)) for part in parts)


def check_product(product: Product) -> None:
    """Nothing when the product can be written.

    Raises: InputError when a layer is in another CRS, a column or band is missing, or the window leaves the grid.
    """
    what = f"product {product.event_id} v{product.version}"
    missing = [c for c in LANDSLIDE_COLUMNS if c not in product.landslides.columns]
    missing += [] if "reasons" in product.vetoed.columns else ["vetoed.reasons"]
    missing += [f"post.{band}" for band in POST_BANDS if band not in product.post]
    if missing:
        raise InputError(f"{what}: missing {', '.join(missing)}; build the layers with tasks.inventory")
    for name in ("landslides", "vetoed", "observed_area"):
        crs = getattr(product, name).crs
        if crs is None or crs.to_epsg() != product.grid.epsg:
            raise InputError(f"{what}: layer {name} is in {crs}; expected EPSG:{product.grid.epsg}, reproject it first")
    whole = Window(0, 0, *product.grid.shape)
    if product.window.empty or product.window.intersect(whole) != product.window:
        raise InputError(f"{what}: window {product.window} is empty or leaves the grid {whole}; crop to what was seen")


def stretch(rgb: FloatArray, *, percent: tuple[float, float] = (2.0, 98.0)) -> NDArray[np.uint8]:
    """Display image (y, x, 4) uint8, RGBA, of a (3, y, x) reflectance: each band stretched, NaN transparent.

    >>> stretch(np.full((3, 1, 2), np.nan, np.float32))[0, 0, 3]
    np.uint8(0)
    """
    seen = np.isfinite(rgb).all(axis=0)
    image = np.zeros((*seen.shape, 4), np.uint8)
    for i, band in enumerate(rgb):
        if seen.any():
            low, high = np.percentile(band[seen], percent)
            image[seen, i] = np.interp(band[seen], (low, max(high, low + 1e-6)), (0, 255)).astype(np.uint8)
    image[seen, 3] = 255
    return image
