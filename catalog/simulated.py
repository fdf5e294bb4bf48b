"""A simulated event as files: the same kinds of input that a real one comes as, and the truth beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol

import geopandas as gpd
import numpy as np
import pyogrio
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.io import DatasetWriter
from rasterio.windows import Window

from catalog.schema import FloatArray, InputError

STRIP_ROWS: Final = 512
"""Rows rendered and written at once: whole rows of tiles, so that each tile is compressed once."""
_TILING: Final = {"driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
_FIXED_DATE: Final = "2024-01-06T12:00:00Z"
"""Written into the GeoPackage as its last change, so that the same event is the same file."""

RenderStrip = Callable[[str, slice], NDArray[Any]]
"""(epoch, rows) -> (band, y, x) uint8 or uint16."""


class Shock(Protocol):
    """The earthquake; `x_m` and `y_m` in the scene's CRS."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def title(self) -> str: ...  # noqa: D102
    @property
    def time_utc(self) -> datetime: ...  # noqa: D102
    @property
    def x_m(self) -> float: ...  # noqa: D102
    @property
    def y_m(self) -> float: ...  # noqa: D102
    @property
    def depth_km(self) -> float: ...  # noqa: D102
    @property
    def magnitude(self) -> float: ...  # noqa: D102


class Scene(Protocol):
    """What is written of a simulated event; geometries are in pixels, x east and y down."""

    @property
    def size_px(self) -> int: ...  # noqa: D102
    @property
    def gsd_m(self) -> float: ...  # noqa: D102
    @property
    def dem_gsd_m(self) -> float: ...  # noqa: D102
    @property
    def epsg(self) -> int: ...  # noqa: D102
    @property
    def left_m(self) -> float: ...  # noqa: D102
    @property
    def top_m(self) -> float: ...  # noqa: D102
    @property
    def earthquake(self) -> Shock: ...  # noqa: D102
    @property
    def elevation_m(self) -> FloatArray: ...  # noqa: D102
    @property
    def acquired_utc(self) -> Mapping[str, datetime]: ...  # noqa: D102
    @property
    def band_names(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def landslides(self) -> gpd.GeoDataFrame: ...  # noqa: D102
    @property
    def clouds(self) -> gpd.GeoDataFrame: ...  # noqa: D102


Report = Callable[[str, int, int], None]
"""(what, rows done, rows in all)."""


def keep_quiet(what: str, done: int, total: int) -> None:
    """Report to nobody."""


def write_simulated_event(
    scene: Scene, folder: Path, *, render: RenderStrip, report: Report = keep_quiet
) -> dict[str, Path]:
    """The files of the event by role: pre, post, dem, event, truth. The same scene gives the same bytes.

    `truth.gpkg` has the layers landslides (id, area_m2; also those under clouds) and clouds (epoch).

    Raises: InputError when `folder` exists and holds any of the files.
    """
    names = {"pre": "pre.tif", "post": "post.tif", "dem": "dem.tif", "event": "event.json", "truth": "truth.gpkg"}
    paths = {role: folder / name for role, name in names.items()}
    taken = [path.name for path in paths.values() if path.exists()]
    if taken:
        raise InputError(f"{folder}: already holds {', '.join(taken)}; expected an empty folder; choose another one")
    folder.mkdir(parents=True, exist_ok=True)
    for epoch in ("pre", "post"):
        _write_image(scene, paths[epoch], epoch, render, report=report)
    _write_dem(scene, paths["dem"])
    paths["event"].write_text(json.dumps(_event(scene), indent=2) + "\n", encoding="utf-8")
    _write_truth(scene, paths["truth"])
    return paths


def _write_image(scene: Scene, path: Path, epoch: str, render: RenderStrip, *, report: Report) -> None:
    """One epoch, strip by strip."""
    first = render(epoch, slice(0, min(STRIP_ROWS, scene.size_px)))
    with _raster(scene, path, scene.gsd_m, count=len(first), dtype=first.dtype.name, predictor=2, nodata=0) as target:
        target.update_tags(TIFFTAG_DATETIME=scene.acquired_utc[epoch].strftime("%Y:%m:%d %H:%M:%S"))
        for i, name in enumerate(scene.band_names, start=1):
            target.set_band_description(i, name)
        for top in range(0, scene.size_px, STRIP_ROWS):
            rows = slice(top, min(top + STRIP_ROWS, scene.size_px))
            strip = render(epoch, rows) if top else first
            target.write(strip, window=Window(0, top, scene.size_px, rows.stop - top))
            report(f"{epoch} image", rows.stop, scene.size_px)


def _write_dem(scene: Scene, path: Path) -> None:
    """The elevation, float32, m, on its own coarser grid with the same origin; it may reach past the imagery."""
    shape = scene.elevation_m.shape
    with _raster(
        scene, path, scene.dem_gsd_m, count=1, dtype="float32", predictor=3, nodata=np.nan, side=shape[0]
    ) as target:
        target.set_band_description(1, "elevation_m")
        target.write(scene.elevation_m, 1)


def _raster(
    scene: Scene, path: Path, gsd_m: float, *, count: int, dtype: str, predictor: int, nodata: float,
    side: int | None = None,
) -> DatasetWriter:  # fmt: skip
    """An empty tiled GeoTIFF on the scene's origin, open for writing."""
    side = scene.size_px if side is None else side
    where = Affine(gsd_m, 0, scene.left_m, 0, -gsd_m, scene.top_m)
    return rasterio.open(
        path, "w", **_TILING, width=side, height=side, count=count, dtype=dtype, nodata=nodata, predictor=predictor,
        crs=f"EPSG:{scene.epsg}", transform=where, interleave="pixel", bigtiff="if_safer", alpha="no",
    )  # fmt: skip


def _event(scene: Scene) -> dict[str, Any]:
    """The earthquake as `Event` reads it."""
    shock = scene.earthquake
    to_degrees = Transformer.from_crs(f"EPSG:{scene.epsg}", "EPSG:4326", always_xy=True)
    longitude, latitude = to_degrees.transform(shock.x_m, shock.y_m)
    return {
        "id": shock.id,
        "title": shock.title,
        "time_utc": shock.time_utc.isoformat().replace("+00:00", "Z"),
        "longitude": round(longitude, 4),
        "latitude": round(latitude, 4),
        "depth_km": shock.depth_km,
        "magnitude": shock.magnitude,
    }


def _write_truth(scene: Scene, path: Path) -> None:
    """Landslides and clouds as polygons in the scene's CRS."""
    with _fixed_date():
        for layer, frame in (("landslides", scene.landslides), ("clouds", scene.clouds)):
            placed = frame.set_geometry(_placed(scene, frame.geometry.to_numpy()), crs=f"EPSG:{scene.epsg}")
            pyogrio.write_dataframe(placed, path, layer=layer, driver="GPKG", geometry_type="MultiPolygon",
                                    promote_to_multi=True)  # fmt: skip


def _placed(scene: Scene, polygons: NDArray[np.object_]) -> NDArray[np.object_]:
    """Pixel coordinates to metres."""
    scale, origin = np.array([scene.gsd_m, -scene.gsd_m]), np.array([scene.left_m, scene.top_m])
    return np.asarray(shapely.transform(polygons, lambda xy: origin + xy * scale))


@contextmanager
def _fixed_date() -> Iterator[None]:
    """GDAL writes `_FIXED_DATE` where it would write the time of day."""
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": _FIXED_DATE})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})
