"""What a raster file is: its place on earth, its bands, and what it says of their numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning
from rasterio.warp import transform_bounds

from catalog.grid import Bounds, degrees_of, ground_px_m, is_metric, is_of_earth, lonlat_of
from catalog.opening import PERSON, Opening, open_raster
from catalog.schema import InputError


@dataclass(frozen=True)
class RasterInfo:
    """What a raster file says of itself."""

    path: str
    epsg: int | None
    crs_wkt: str
    transform: tuple[float, ...]
    """a, b, c, d, e, f of an affine transform."""
    shape: tuple[int, int]
    count: int
    dtype: str
    nodata: float | None
    gsd_m: float
    """The finer side of a pixel: metres on the ground at its centre, whatever the projection's are."""
    bounds: Bounds
    """In its own CRS."""
    band_names: tuple[str, ...]
    """Empty for a band without description."""
    colours: tuple[str, ...]
    """GDAL's colour interpretation of each band."""
    wavelengths_nm: tuple[float | None, ...]
    """Centre of each band, where its tags say it."""
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    """What each band says of its numbers: value = stored * scale + offset."""
    units: tuple[str, ...]
    """Empty for a band that does not say its unit."""
    alpha_index: int | None
    time_utc: datetime | None
    """When it was taken, as its tags say; None where they do not, or not legibly."""
    tags: dict[str, str]

    @property
    def crs(self) -> CRS:
        """Its coordinate reference system."""
        return CRS(self.crs_wkt)

    @property
    def crs_name(self) -> str:
        """EPSG:NUMBER, or the name it gives itself."""
        return _name(self.crs)

    @property
    def centre_lonlat(self) -> tuple[float, float]:
        """Longitude and latitude of its centre."""
        left, bottom, right, top = self.bounds
        return lonlat_of(self.crs_wkt, (left + right) / 2, (bottom + top) / 2)

    @property
    def lonlat_bounds(self) -> Bounds:
        """West, south, east, north; west is greater than east across the antimeridian."""
        return degrees_of(self.crs_wkt, self.bounds)

    def bounds_in(self, epsg: int) -> Bounds:
        """Left, bottom, right, top in another CRS (the hull of the densified edges)."""
        left, bottom, right, top = transform_bounds(self.crs_wkt, f"EPSG:{epsg}", *self.bounds)
        return left, bottom, right, top


def describe_raster(path: str | Path, *, allow_geographic: bool = False, opening: Opening = PERSON) -> RasterInfo:
    """What the file is, without reading its pixels.

    Raises: InputError when it is missing, no raster, without CRS, rotated, or (unless allowed) not in metres.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # said below as an error, with what to do
        with open_raster(str(path), opening) as dataset:
            _check_georeference(dataset, str(path), allow_geographic=allow_geographic)
            return _describe(dataset, str(path))


def _check_georeference(dataset: Any, path: str, *, allow_geographic: bool) -> None:  # noqa: ANN401 - rasterio
    if not dataset.count:
        inside = ", ".join(dataset.subdatasets[:8]) or "no bands"
        raise InputError(
            f"{path}: holds {inside}; expected a raster with bands; write what is wanted into a GeoTIFF "
            "(gdal_translate with one of these names, gdalbuildvrt -separate for several)"
        )
    if dataset.crs is None or dataset.transform.is_identity:
        raise InputError(_not_placed(dataset, path))
    if dataset.transform.b or dataset.transform.d or dataset.transform.e >= 0 or dataset.transform.a <= 0:
        raise InputError(
            f"{path}: is rotated, south-up or west-running; expected columns that run east and rows from north; "
            "run gdalwarp on it"
        )
    crs, fix = CRS(dataset.crs.to_wkt()), "assign the right CRS (gdal_edit -a_srs EPSG:...)"
    if not is_of_earth(crs):
        raise InputError(f"{path}: CRS {_name(crs)} is not of the Earth; expected a projected one in metres; {fix}")
    if crs.geographic and not allow_geographic:
        raise InputError(f"{path}: CRS {_name(crs)} is geographic; expected metres; reproject to the event's UTM zone")
    if not crs.geographic and not is_metric(crs):
        raise InputError(f"{path}: CRS {_name(crs)} is not in metres; reproject it to the event's UTM zone")
    if not math.isfinite(gsd_of(dataset)):
        raise InputError(f"{path}: its centre is nowhere on the Earth in CRS {_name(crs)}; {fix}")


def _not_placed(dataset: Any, path: str) -> str:  # noqa: ANN401 - rasterio
    lacks, assign = (
        ("CRS", "-a_srs EPSG:...") if dataset.crs is None else ("geotransform", "-a_ullr LEFT TOP RIGHT BOTTOM")
    )
    for what, there, fix in (
        ("ground control points", bool(dataset.gcps[0]), "gdalwarp -t_srs EPSG:... places it"),
        ("a sensor model (RPC)", dataset.rpcs is not None, "gdalwarp -rpc -t_srs EPSG:... with a DEM places it"),
    ):
        if there:
            return f"{path}: has {what} and no {lacks}; expected a projected raster in metres; {fix}"
    return f"{path}: has no {lacks}; expected a projected raster in metres; assign it (gdal_edit {assign})"


def _name(crs: CRS) -> str:
    return f"EPSG:{crs.epsg}" if crs.epsg else str(crs.proj.name)


def _describe(dataset: Any, path: str) -> RasterInfo:  # noqa: ANN401 - rasterio
    tags = {**dataset.tags(), **dataset.tags(ns="IMAGERY")}
    crs = CRS(dataset.crs.to_wkt())
    return RasterInfo(
        path=path,
        epsg=crs.epsg,
        crs_wkt=dataset.crs.to_wkt(),
        transform=tuple(dataset.transform)[:6],
        shape=dataset.shape,
        count=dataset.count,
        dtype=dataset.dtypes[0],
        nodata=dataset.nodata,
        gsd_m=gsd_of(dataset),
        bounds=tuple(dataset.bounds),
        band_names=tuple((text or "").strip() for text in dataset.descriptions),
        colours=tuple(kind.name for kind in dataset.colorinterp),
        wavelengths_nm=tuple(_wavelength_nm(dataset, i) for i in dataset.indexes),
        scales=tuple(dataset.scales),
        offsets=tuple(dataset.offsets),
        units=tuple((text or "").strip() for text in dataset.units),
        alpha_index=_alpha_index(dataset),
        time_utc=read_date(date_text(tags)),
        tags=tags,
    )


def _alpha_index(dataset: Any) -> int | None:  # noqa: ANN401 - rasterio
    """1-based band of transparency; GDAL takes any fourth 8-bit band for it, also one that says otherwise."""
    names = ((text or "alpha").strip().lower() for text in dataset.descriptions)
    bands = enumerate(zip(dataset.colorinterp, names, strict=True), 1)
    return next((i for i, (kind, name) in bands if kind == ColorInterp.alpha and name == "alpha"), None)


def masked_out(dataset: Any, **place: Any) -> NDArray[np.bool_] | np.bool_:  # noqa: ANN401 - rasterio
    """Where a mask or a band of transparency says that no band counts; `place` as of rasterio's `dataset_mask`."""
    flags = [flag for band in dataset.mask_flag_enums for flag in band]
    if MaskFlags.per_dataset not in flags or (MaskFlags.alpha in flags and _alpha_index(dataset) is None):
        return np.False_
    return np.asarray(dataset.dataset_mask(**place) == 0)


def gsd_of(dataset: Any) -> float:  # noqa: ANN401 - rasterio
    """`RasterInfo.gsd_m` of an open dataset."""
    return ground_px_m(dataset.crs.to_wkt(), tuple(dataset.transform)[:6], tuple(dataset.shape))


def _wavelength_nm(dataset: Any, index: int) -> float | None:  # noqa: ANN401 - rasterio
    """Centre of a band, nm, of its tags (ENVI's, and GDAL's domain IMAGERY)."""
    tags = {key.lower(): text for key, text in dataset.tags(index).items()}
    micrometres = dataset.tags(index, ns="IMAGERY").get("CENTRAL_WAVELENGTH_UM")
    text = micrometres or tags.get("wavelength", "")
    try:
        number = float(text)
    except ValueError:
        return None
    return number * 1000 if number < 100 else number  # some write micrometres, others nanometres


def date_text(tags: Mapping[str, str]) -> str:
    """What the tags say of when a picture was taken; empty where they say nothing.

    TIFF's own date is when a file was written: it counts where no program (TIFFTAG_SOFTWARE) says that it wrote it.
    """
    written = "" if tags.get("TIFFTAG_SOFTWARE") else tags.get("TIFFTAG_DATETIME", "")
    return (tags.get("ACQUISITIONDATETIME") or written).strip()


def read_date(text: str) -> datetime | None:
    """The time that a date tag says; None where it cannot be read."""
    date, _, clock = text.replace("T", " ").partition(" ")
    try:
        time = datetime.fromisoformat(f"{date.replace(':', '-')}T{clock or '00:00:00'}")
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
