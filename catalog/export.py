"""Products out: one writer a file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import date, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import rasterio
import rasterio.shutil
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.enums import Resampling
from rasterio.windows import Window as RasterWindow

from catalog.cartography import draw_map
from catalog.folders import DIGEST, RUN, digest_of
from catalog.grid import Window
from catalog.product import POST_BANDS, Preview, Product
from catalog.report import render_report
from catalog.schema import (
    CLEAR,
    DISAGREEMENT,
    LANDSLIDE,
    LANDSLIDE_CLASS,
    NOT_OBSERVED,
    PROBABILITY,
    FloatArray,
    StoreError,
    Variable,
)
from catalog.stac import write_item
from catalog.vectors import write_geopackage, write_geoparquet

__all__ = ["WRITERS", "Product", "Writer", "read_preview", "write_run"]

Writer = Callable[[Product, Path], Path]

PREVIEW_PX: Final = 2000
GDAL_OPTIONS: Final = {"GDAL_CACHEMAX": 128, "GDAL_NUM_THREADS": "1", "GDAL_PAM_ENABLED": "NO"}
"""128 MB of block cache, and one thread: compressed bytes then do not depend on the machine."""
PACKAGES: Final = (
    "landslidenet", "dask", "geopandas", "numpy", "odc-geo", "prefect", "rasterio", "richdem2", "shapely", "timm",
    "torch", "xarray", "zarr",
)  # fmt: skip
CLASS_COLOURS: Final = {CLEAR: (0, 0, 0, 0), LANDSLIDE: (255, 61, 154, 255), NOT_OBSERVED: (150, 150, 150, 255)}
CLASS_NAMES: Final = {CLEAR: "clear", LANDSLIDE: "landslide", NOT_OBSERVED: "not observed"}


def read_preview(product: Product, *, max_px: int = PREVIEW_PX) -> Preview:
    """The product's imagery and probability averaged to at most `max_px` a side; one block of one is read at a time."""
    factor = max(1, -(-max(product.window.shape) // max_px))
    layers = [product.post[b] for b in POST_BANDS] + [product.probability]
    if product.pre is not None:
        layers += [product.pre[b] for b in POST_BANDS]
    mean = np.stack([_averaged(product, layer, factor) for layer in layers])
    transform = product.grid.geobox_of(product.window).transform @ Affine.scale(factor)
    return Preview(mean[:3], mean[4:] if product.pre is not None else None, mean[3], transform, factor)


def _averaged(product: Product, layer: xr.DataArray, factor: int) -> FloatArray:
    """Mean of a layer in each `factor` x `factor` cell of the window; NaN where less than half of it was observed."""
    shape = (-(-product.window.shape[0] // factor), -(-product.window.shape[1] // factor))
    total, seen, ground = (np.zeros(shape, np.float32) for _ in range(3))
    for window in _windows(product):
        values = layer.isel(_isel(window)).compute().to_numpy()
        valid = np.isfinite(values)
        inside = window.shift(-product.window.y0, -product.window.x0)
        for sums, part in ((total, np.where(valid, values, 0)), (seen, valid), (ground, np.ones_like(valid))):
            _add_pooled(sums, part.astype(np.float32), inside, factor)
    observed = (seen > 0) & (2 * seen >= ground)
    return np.divide(total, seen, out=np.full_like(total, np.nan), where=observed)


def _add_pooled(sums: FloatArray, values: FloatArray, window: Window, factor: int) -> None:
    """Add each `factor` x `factor` cell's sum of `values`, which lie at `window`, to the cell in `sums`."""
    starts = [np.unique(np.r_[0, np.arange(-a % factor, n, factor)]) for a, n in
              zip((window.y0, window.x0), values.shape, strict=True)]  # fmt: skip
    pooled = np.add.reduceat(np.add.reduceat(values, starts[0], axis=0), starts[1], axis=1)
    y, x = window.y0 // factor, window.x0 // factor
    sums[y : y + pooled.shape[0], x : x + pooled.shape[1]] += pooled


def _windows(product: Product) -> Iterator[Window]:
    """The part of each block inside the product's window: every block is computed once and alone."""
    for block in product.grid.blocks:
        window = product.grid.window(block).intersect(product.window)
        if not window.empty:
            yield window


def _isel(window: Window) -> dict[str, slice]:
    return dict(zip(("y", "x"), window.slices, strict=True))


def write_cog(product: Product, values: xr.DataArray, variable: Variable, path: Path) -> Path:
    """Cloud-optimised GeoTIFF of one variable, encoded by its contract and cropped to the product's window.

    Written block by block into a plain GeoTIFF, then copied by GDAL's COG driver: the same input gives the same bytes.
    Raises: StoreError when a value is outside the variable's range.
    """
    plain = path.with_suffix(".plain.tif")
    box = product.grid.geobox_of(product.window)
    profile = {"driver": "GTiff", "dtype": variable.dtype, "nodata": variable.nodata, "count": 1, "tiled": True,
               "blockxsize": 512, "blockysize": 512, "BIGTIFF": "IF_SAFER"}  # fmt: skip
    rows, cols = product.window.shape
    with rasterio.Env(**GDAL_OPTIONS):
        with rasterio.open(plain, "w", height=rows, width=cols, crs=f"EPSG:{product.grid.epsg}",
                           transform=box.transform, **profile) as tif:  # fmt: skip
            _describe(tif, variable)
            for window in _windows(product):
                block = values.isel(_isel(window)).compute().to_numpy()
                (y0, x0), (height, width) = (window.y0 - product.window.y0, window.x0 - product.window.x0), window.shape
                tif.write(_encode(block, variable), 1, window=RasterWindow(x0, y0, width, height))
        resampling = Resampling.nearest if variable.is_mask else Resampling.average
        try:
            rasterio.shutil.copy(plain, path, driver="COG", COMPRESS="DEFLATE", LEVEL=6, BLOCKSIZE=512, NUM_THREADS=1,
                                 PREDICTOR="NO" if variable.is_mask else "STANDARD", BIGTIFF="IF_SAFER",
                                 OVERVIEW_RESAMPLING=resampling.name)  # fmt: skip
        except CPLE_BaseError as error:  # GDAL tells of a failed seek where the disk is full
            full = shutil.disk_usage(path.parent).free < plain.stat().st_size
            code = errno.ENOSPC if full else errno.EIO
            raise OSError(code, f"{os.strerror(code)}, {error}", str(path)) from error
    plain.unlink()
    return path


def _describe(tif: Any, variable: Variable) -> None:  # noqa: ANN401 - a rasterio writer
    tif.set_band_description(1, variable.name)
    tif.update_tags(1, LONG_NAME=variable.long_name)
    if variable is LANDSLIDE_CLASS:
        tif.write_colormap(1, {value: CLASS_COLOURS.get(value, (0, 0, 0, 0)) for value in range(256)})
        tif.update_tags(1, **{f"CLASS_{value}": name for value, name in CLASS_NAMES.items()})
    else:
        tif.scales, tif.offsets = (variable.scale,), (variable.offset,)


def _encode(values: NDArray[Any], variable: Variable) -> NDArray[Any]:
    """Stored integers of a block in memory form; ranges are checked, never clipped."""
    if variable is LANDSLIDE_CLASS:
        unknown = set(np.unique(values).tolist()) - set(CLASS_NAMES)
        if unknown:
            raise StoreError(f"{variable.name}: got classes {sorted(unknown)}; expected {sorted(CLASS_NAMES)}")
        return values.astype(variable.dtype)
    seen = np.isfinite(values)
    low, high = variable.valid_range
    if seen.any() and not (low <= values[seen].min() and values[seen].max() <= high):
        got = f"{values[seen].min():g} to {values[seen].max():g}"
        raise StoreError(f"{variable.name}: got {got}; expected {low:g} to {high:g}: recompute this store")
    steps = np.rint((np.where(seen, values, low) - variable.offset) / variable.scale)
    return np.where(seen, steps, variable.nodata).astype(variable.dtype)


def _write_probability(product: Product, folder: Path) -> Path:
    return write_cog(product, product.probability, PROBABILITY, folder / "probability.tif")


def _write_disagreement(product: Product, folder: Path) -> Path:
    return write_cog(product, product.disagreement, DISAGREEMENT, folder / "disagreement.tif")


def _write_class(product: Product, folder: Path) -> Path:
    path = write_cog(product, product.landslide_class, LANDSLIDE_CLASS, folder / "class.tif")
    # GDAL keeps category names beside a GeoTIFF, and rasterio has no call for them
    names = "".join(f"<Category>{CLASS_NAMES.get(value, '')}</Category>" for value in range(256))
    aux = f'<PAMDataset><PAMRasterBand band="1"><CategoryNames>{names}</CategoryNames></PAMRasterBand></PAMDataset>\n'
    path.with_name("class.tif.aux.xml").write_text(aux)
    return path


def _write_map(product: Product, folder: Path) -> Path:
    return draw_map(product, product.preview or read_preview(product), folder / "map.png")


def _write_report(product: Product, folder: Path) -> Path:
    path = folder / "report.html"
    path.write_text(render_report(product, product.preview or read_preview(product)), encoding="utf-8")
    return path


def write_run(product: Product, folder: Path) -> Path:
    """`run.json`: what ran, on what, with what, the SHA-256 of each file beside it and of itself; keys in order."""
    files = {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(folder.iterdir())}
    run = {
        "event_id": product.event_id,
        "version": product.version,
        "event": product.event.model_dump(mode="json") if product.event else None,
        "headline": asdict(product.headline),
        "config": dict(product.config),
        "software": {"python": platform.python_version(), **{name: _installed(name) for name in PACKAGES}},
        "model": dict(product.model_card),
        "provenance": dict(product.provenance),
        "used": product.used,
        "not_used": product.not_used,
        "warnings": product.warnings,
        "difference": product.difference.as_dict() if product.difference else None,
        "files": files,
    }
    told = json.loads(json.dumps(run, default=_json))  # as it will be read
    told[DIGEST] = digest_of(told)
    path = folder / RUN
    path.write_text(json.dumps(told, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
    return path


def _installed(package: str) -> str | None:
    """Its version; None where it goes by another name (conda's richdem2 is richdem)."""
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(value: object) -> object:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"run.json: got a {type(value).__name__}; expected what JSON can hold")


WRITERS: Final[Mapping[str, Writer]] = MappingProxyType(
    {
        "inventory.gpkg": write_geopackage,
        "inventory.parquet": write_geoparquet,
        "probability.tif": _write_probability,
        "class.tif": _write_class,
        "disagreement.tif": _write_disagreement,
        "map.png": _write_map,
        "report.html": _write_report,
        "item.json": write_item,
    }
)
"""One writer a file, in this order; `run.json` comes after them, because it holds their hashes."""
