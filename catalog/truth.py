"""Products and reference maps in, for evaluation: rasters by window, polygons by layer."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import geopandas as gpd
import numpy as np
import pyogrio
import rasterio
from affine import Affine
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import rasterize, shapes
from rasterio.windows import Window as RioWindow
from shapely.geometry import box, shape
from shapely.geometry.base import BaseGeometry

from catalog.files import place_of
from catalog.grid import is_metric
from catalog.layers import layers_of, split_source
from catalog.opening import open_raster
from catalog.outlines import read_layer
from catalog.paths import expand_home
from catalog.rasters import describe_raster
from catalog.references import Reference, strips
from catalog.schema import CLEAR, LANDSLIDE, NOT_OBSERVED, InputError

GROUND_PX: Final = 256
"""Side of the pieces of valid ground: what is clipped to them then meets few vertices."""
LONGEST_SIDE_PX: Final = 4096
MIN_GSD_M: Final = 1.0
"""The grid of an inventory that neither lies beside a raster nor states its pixel size."""
SNAP: Final = 1e-6
"""Part of a pixel that coordinates may be off by rounding."""


@dataclass(frozen=True)
class Mapped:
    """What a product maps: its class raster and the same as polygons."""

    classes: Path
    landslides: gpd.GeoDataFrame | None = None
    """The polygons the raster was burnt from, in its CRS; None where the raster came first."""

    @property
    def epsg(self) -> int:
        """EPSG code of both."""
        return epsg_of(self.classes)

    def outlines(self) -> gpd.GeoDataFrame:
        """The landslides as polygons in the raster's CRS; may be none."""
        return polygons_of(self.classes, value=LANDSLIDE) if self.landslides is None else self.landslides


@contextmanager
def open_mapped(product: Path) -> Iterator[Mapped]:
    """The map to score: of a product folder or a class raster as it is, of a GeoPackage from its polygons.

    A GeoPackage is burnt anew, so that what a reviewer changed in it counts: `landslides` where `observed_area` is, on
    the grid of the class.tif beside it, without one on a grid of the pixel size its `metadata` states.

    Raises: InputError when there is nothing to score, or a layer is missing.
    """
    if product.suffix.lower() != ".gpkg":
        yield Mapped(class_raster(product))
        return
    landslides, observed = read_inventory(product)
    beside = product.with_name("class.tif")
    with tempfile.TemporaryDirectory(prefix="landslidenet-") as folder:
        burnt = Path(folder) / "class.tif"
        profile = _profile_of(beside) if beside.is_file() else _profile_for(observed, gsd_m=_stated_gsd_m(product))
        landslides, observed = (layer.to_crs(profile["crs"]) for layer in (landslides, observed))
        _burn_classes(burnt, profile, landslides=landslides, observed=observed)
        yield Mapped(burnt, landslides.to_crs(epsg_of(burnt)))


def class_raster(product: Path) -> Path:
    """The class raster of a product folder, or the file itself. Raises: InputError when there is none."""
    path = product / "class.tif" if product.is_dir() else product
    if not path.is_file() or not is_raster(str(path)):
        raise InputError(
            f"{product}: no class raster; expected a product folder (OUT/EVENT_ID/vN), its class.tif, or an "
            "inventory.gpkg"
        )
    return path


def read_inventory(path: Path) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    """Landslides and observed ground of an inventory, polygons in one metric CRS; the landslides may be none.

    Raises: InputError when the file is no inventory.
    """
    known = [layer.name for layer in layers_of(str(path), what="inventory")]
    if missing := [name for name in ("landslides", "observed_area") if name not in known]:
        raise InputError(
            f"inventory {path}: no layer {', '.join(missing)}, got {', '.join(known)}; expected an inventory.gpkg as "
            "`detect` writes it: without observed_area nobody knows what was looked at"
        )
    landslides, _ = read_layer(str(path), "landslides", what="inventory")
    observed, _ = read_layer(str(path), "observed_area", what="inventory")
    if observed.empty:
        raise InputError(f"inventory {path}: its observed_area is empty; expected the ground that was looked at")
    metric = observed.crs if is_metric(CRS(observed.crs)) else observed.estimate_utm_crs()
    return landslides.to_crs(metric), observed.to_crs(metric)


def _stated_gsd_m(path: Path) -> float | None:
    """Pixel size in the table `metadata` of an inventory; None when it is not there."""
    if all(layer.name != "metadata" for layer in layers_of(str(path), what="inventory")):
        return None
    table = pyogrio.read_dataframe(path, layer="metadata", read_geometry=False)
    values = dict(zip(table["key"], table["value"], strict=True)) if {"key", "value"} <= set(table.columns) else {}
    try:
        return float(values["gsd_m"])
    except (KeyError, TypeError, ValueError):
        return None


def _profile_of(classes: Path) -> dict[str, Any]:
    with open_raster(str(classes)) as product:
        return {key: product.profile[key] for key in ("crs", "transform", "width", "height")}


def _profile_for(observed: gpd.GeoDataFrame, *, gsd_m: float | None) -> dict[str, Any]:
    """A grid over the observed ground, its origin a multiple of the pixel size."""
    left, bottom, right, top = observed.total_bounds.tolist()
    step = gsd_m if gsd_m and gsd_m > 0 else max(MIN_GSD_M, max(right - left, top - bottom) / LONGEST_SIDE_PX)
    west, north = math.floor(left / step + SNAP) * step, math.ceil(top / step - SNAP) * step
    width, height = math.ceil((right - west) / step - SNAP), math.ceil((north - bottom) / step - SNAP)
    transform = Affine(step, 0, west, 0, -step, north)
    return {"crs": observed.crs.to_wkt(), "transform": transform, "width": max(1, width), "height": max(1, height)}


def _burn_classes(
    path: Path, profile: dict[str, Any], *, landslides: gpd.GeoDataFrame, observed: gpd.GeoDataFrame
) -> None:
    """Write a class raster, strip by strip."""
    tiling = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "bigtiff": "if_safer"}
    with rasterio.open(
        path, "w", driver="GTiff", count=1, dtype="uint8", nodata=NOT_OBSERVED, **tiling, **profile
    ) as out:
        for window in strips(out):
            seen, slide = _burn(observed, out, window), _burn(landslides, out, window)
            strip = np.where(seen, np.where(slide, LANDSLIDE, CLEAR), NOT_OBSERVED)
            out.write(strip.astype(np.uint8), 1, window=window)


def check_overlap(outlines: gpd.GeoDataFrame | Reference, classes: Path, *, what: str, name: str) -> None:
    """Raise InputError when something lies wholly outside of a class raster."""
    epsg = epsg_of(classes)
    with open_raster(str(classes)) as product:
        ground = box(*product.bounds)
    if isinstance(outlines, Reference):
        meets = box(*outlines.info.bounds_in(epsg)).intersection(ground).area > 0
    else:
        meets = outlines.sindex.query(ground, predicate="intersects").size > 0
    if not meets:
        bounds = ", ".join(f"{value:.0f}" for value in ground.bounds)
        raise InputError(
            f"{what} {name}: lies outside of the product ({bounds} in EPSG:{epsg}); check that they are of the same "
            "place, and the CRS of both"
        )


@dataclass(frozen=True)
class Strip:
    """Some rows of a comparison: `predicted` (y, x) uint8, `truth` and `valid` (y, x) bool."""

    predicted: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    valid: NDArray[np.bool_]


def read_strips(
    classes: Path, *, truth: gpd.GeoDataFrame | Reference, aoi: gpd.GeoDataFrame | None, valid: Reference | None
) -> Iterator[Strip]:
    """A class raster and its reference, strip by strip on the raster's grid.

    Valid is what lies inside the area of interest, where `valid` is above 0 and a raster of truth says something.
    """
    with open_raster(str(classes)) as product:
        for window in strips(product):
            predicted = product.read(1, window=window)
            seen = _looked_at(product, window, aoi=aoi, valid=valid)
            if isinstance(truth, Reference):
                mapped = truth.read(_place(product, window))
                yield Strip(predicted, mapped > 0, seen & ~np.isnan(mapped))
            else:
                yield Strip(predicted, _burn(truth, product, window), seen)


def _looked_at(
    product: Any,  # noqa: ANN401 - rasterio
    window: RioWindow,
    *,
    aoi: gpd.GeoDataFrame | None,
    valid: Reference | None,
) -> NDArray[np.bool_]:
    """(y, x) of a window of the product: within the area, and where the raster says so."""
    seen = np.ones((int(window.height), int(window.width)), dtype=bool)
    seen &= _burn(aoi, product, window) if aoi is not None else True
    seen &= valid.read(_place(product, window)) > 0 if valid is not None else True
    return seen


def _place(product: Any, window: RioWindow) -> GeoBox:  # noqa: ANN401 - rasterio
    return GeoBox((int(window.height), int(window.width)), product.window_transform(window), product.crs.to_wkt())


def _burn(layer: gpd.GeoDataFrame, product: Any, window: RioWindow) -> NDArray[np.bool_]:  # noqa: ANN401 - rasterio
    size = (int(window.height), int(window.width))
    near = layer.geometry.iloc[layer.sindex.query(box(*product.window_bounds(window)))]
    if near.empty:
        return np.zeros(size, dtype=bool)
    return np.asarray(rasterize(near, out_shape=size, transform=product.window_transform(window)) > 0)


def polygons_of(classes: Path, *, value: int) -> gpd.GeoDataFrame:
    """The outlines of a value of a class raster."""
    with open_raster(str(classes)) as product:
        band = product.read(1)
        pieces = [shape(s) for s, _ in shapes(band, mask=band == value, connectivity=4, transform=product.transform)]
        return gpd.GeoDataFrame(geometry=pieces, crs=product.crs)


def valid_ground(classes: Path, *, aoi: gpd.GeoDataFrame | None, valid: Reference | None) -> gpd.GeoDataFrame:
    """Where both the product observed and the reference was mapped, as polygons of at most `GROUND_PX` a side."""
    pieces: list[BaseGeometry] = []
    with open_raster(str(classes)) as product:
        for window in strips(product):
            seen = product.read(1, window=window) != NOT_OBSERVED
            seen &= _looked_at(product, window, aoi=aoi, valid=valid)
            pieces += _pieces(seen, product.window_transform(window))
        return gpd.GeoDataFrame(geometry=pieces, crs=product.crs)


def _pieces(seen: NDArray[np.bool_], transform: Affine) -> Iterator[BaseGeometry]:
    """The outlines of what is true, cut at the edges of squares."""
    for row, col in np.ndindex(*(-(-size // GROUND_PX) for size in seen.shape)):
        y, x = row * GROUND_PX, col * GROUND_PX
        mask = seen[y : y + GROUND_PX, x : x + GROUND_PX]
        place = transform @ Affine.translation(x, y)
        yield from (shape(s) for s, _ in shapes(mask.astype(np.uint8), mask=mask, connectivity=4, transform=place))


def is_raster(source: str) -> bool:
    """True for a raster: what has the name of a GeoTIFF, or what holds pixels and no layers."""
    if Path(source).suffix.lower() in {".tif", ".tiff"}:
        return True
    if place_of(split_source(source)[0]) not in ("local", "archive"):
        return False
    try:
        return not layers_of(split_source(source)[0], what="map")
    except InputError:
        pass  # no vector file
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # said when it is to be placed
            with open_raster(expand_home(source)):
                return True
    except InputError:
        return False


def epsg_of(classes: Path) -> int:
    """EPSG code of a raster."""
    epsg = describe_raster(classes).epsg
    if epsg is None:
        raise InputError(f"{classes}: its CRS has no EPSG code; reproject it, e.g. with gdalwarp -t_srs EPSG:32633")
    return epsg
