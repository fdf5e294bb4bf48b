"""Products and reference maps in, for evaluation: rasters by window, polygons by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.features import rasterize, shapes
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RioWindow
from shapely.geometry import shape

from catalog.rasters import describe_raster
from catalog.schema import InputError

STRIP_ROWS = 1024


def class_raster(product: Path) -> Path:
    """The class raster of a product folder, or of the folder an inventory lies in, or the file itself.

    Raises: InputError when there is none.
    """
    folder = product if product.is_dir() else product.parent
    path = product if product.suffix == ".tif" else folder / "class.tif"
    if not path.is_file():
        raise InputError(
            f"{product}: no class raster; expected a product folder (OUT/EVENT_ID/vN), its class.tif, or its "
            "inventory.gpkg with class.tif beside it"
        )
    return path


def read_polygons(source: str, *, epsg: int) -> gpd.GeoDataFrame:
    """Polygons of FILE[:LAYER[,LAYER]] in a CRS, layers one after the other.

    Raises: InputError when file or layer is missing, it has no CRS, or holds no polygon.
    """
    name, _, wanted = source.partition(":") if not Path(source).exists() else (source, "", "")
    path = Path(name)
    if not path.is_file():
        raise InputError(f"truth {name}: no such file; expected FILE[:LAYER[,LAYER]]")
    try:
        known = [str(layer) for layer in pyogrio.list_layers(path)[:, 0]]
    except pyogrio.errors.DataSourceError as error:
        raise InputError(f"truth {name}: is no vector file ({error}); expected e.g. a GeoPackage") from error
    layers = wanted.split(",") if wanted else known[:1]
    if strangers := [layer for layer in layers if layer not in known]:
        raise InputError(f"truth {name}: no layer {strangers}; expected of {known}")
    frames = [gpd.read_file(path, layer=layer)[["geometry"]] for layer in layers]
    if any(frame.crs is None for frame in frames):
        raise InputError(f"truth {name}: has no CRS; assign one, e.g. with ogr2ogr -a_srs")
    merged = gpd.GeoDataFrame(pd.concat([frame.to_crs(epsg) for frame in frames], ignore_index=True), crs=epsg)
    merged = merged[merged.geom_type.isin(["Polygon", "MultiPolygon"])].reset_index(drop=True)
    if merged.empty:
        raise InputError(f"truth {name}: layers {layers} hold no polygon")
    return merged


@dataclass(frozen=True)
class Strip:
    """Some rows of a comparison: `predicted` (y, x) uint8, `truth` and `valid` (y, x) bool."""

    predicted: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    valid: NDArray[np.bool_]


def read_strips(
    classes: Path, *, truth: gpd.GeoDataFrame | Path, aoi: gpd.GeoDataFrame | None, valid: Path | None
) -> Iterator[Strip]:
    """A class raster and its reference, strip by strip on the raster's grid; nearest pixel for reference rasters."""
    with rasterio.open(classes) as product:
        for row in range(0, product.height, STRIP_ROWS):
            window = RioWindow(0, row, product.width, min(STRIP_ROWS, product.height - row))
            inside = _burn(aoi, product, window) if aoi is not None else True
            seen = _warp(valid, product, window) > 0 if valid is not None else True
            wanted = _warp(truth, product, window) > 0 if isinstance(truth, Path) else _burn(truth, product, window)
            predicted = product.read(1, window=window)
            yield Strip(predicted, wanted, np.broadcast_to(np.asarray(inside) & seen, predicted.shape))


def _burn(layer: gpd.GeoDataFrame, product: Any, window: RioWindow) -> NDArray[np.bool_]:  # noqa: ANN401 - rasterio
    size = (int(window.height), int(window.width))
    if layer.empty:
        return np.zeros(size, dtype=bool)
    return np.asarray(rasterize(layer.geometry, out_shape=size, transform=product.window_transform(window)) > 0)


def _warp(path: Path, product: Any, window: RioWindow) -> NDArray[Any]:  # noqa: ANN401 - rasterio
    place = {"crs": product.crs, "transform": product.transform, "width": product.width, "height": product.height}
    with rasterio.open(path) as source, WarpedVRT(source, resampling=Resampling.nearest, **place) as warped:
        return np.asarray(warped.read(1, window=window))


def polygons_of(classes: Path, *, value: int) -> gpd.GeoDataFrame:
    """The outlines of a value of a class raster."""
    with rasterio.open(classes) as product:
        band = product.read(1)
        pieces = [shape(s) for s, _ in shapes(band, mask=band == value, connectivity=4, transform=product.transform)]
        return gpd.GeoDataFrame(geometry=pieces, crs=product.crs)


def valid_ground(classes: Path, *, aoi: gpd.GeoDataFrame | None, valid: Path | None) -> gpd.GeoDataFrame:
    """Where both the product observed and the reference was mapped, as polygons."""
    with rasterio.open(classes) as product:
        window = RioWindow(0, 0, product.width, product.height)
        seen = product.read(1) != 255
        seen &= _burn(aoi, product, window) if aoi is not None else True
        seen &= _warp(valid, product, window) > 0 if valid is not None else True
        mask = seen.astype(np.uint8)
        pieces = [shape(s) for s, _ in shapes(mask, mask=seen, connectivity=4, transform=product.transform)]
        return gpd.GeoDataFrame(geometry=pieces, crs=product.crs)


def is_raster(source: str) -> bool:
    """True for the name of a raster file."""
    return Path(source).suffix.lower() in {".tif", ".tiff", ".vrt"}


def epsg_of(classes: Path) -> int:
    """EPSG code of a raster."""
    epsg = describe_raster(classes).epsg
    if epsg is None:
        raise InputError(f"{classes}: its CRS has no EPSG code; reproject it, e.g. with gdalwarp -t_srs EPSG:32633")
    return epsg
