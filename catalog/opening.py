"""Files that others made are opened here and nowhere else: which drivers may read them, and what they may lead to.

GDAL decides by content what a file is, whatever its name: a `.tif` may be a list of other files. So it counts who named
the file. A person's own files are hers, also a VRT that leads elsewhere, as long as its name says what it is. What lies
at an address, or what a STAC item names, is a GeoTIFF or JPEG 2000, alone.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import rasterio
from rasterio.abc import FileContainer
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.vrt import WarpedVRT

from catalog.files import HTTP_OPTIONS, gdal_options, name_of, own_hosts, place_of
from catalog.ranges import RemoteFile
from catalog.schema import InputError

ALONE: Final = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}
"""Nothing beside a file counts: neither statistics nor masks, overviews, world files or coordinates."""

FOREIGN_DRIVERS: Final = {
    "GTiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "JP2OpenJPEG": (b"\0\0\0\x0cjP  ", b"\xffO\xffQ"),
}
"""What a file of others may be, by its first bytes."""

LEADING_DOMAINS: Final = ("OVERVIEWS", "ProxyOverviewRequest", "GEOLOCATION")
"""Metadata by which a GeoTIFF names other files, which GDAL would open with any driver."""

LEADING_DRIVERS: Final = {"VRT": (".vrt",)}
"""Drivers whose files only name others, and the names under which a person's own may be one. Others of that kind
(tile indices, web services, caches) are no input: what they lead to cannot be known."""
REFUSED_DRIVERS: Final = (
    "CALS", "DERIVED", "EEDA", "EEDAI", "GTI", "HTTP", "MRF", "NGW", "OGCAPI", "PLMOSAIC", "PLSCENES", "PostGISRaster",
    "STACIT", "STACTA", "WCS", "WMS", "WMTS",
)  # fmt: skip
LEADING_ROOTS: Final = re.compile(
    rb"<(VRTDataset|OGRVRTDataSource|OGRVRTLayer|MRF_META|GDAL_WMS|WMS_|WMT_|TiledWMS|WCS_GDAL|Capabilities|"
    rb"GDALTileIndexDataset|GDALWMTS|OGRWFSDataSource|ogr_gmlas)|gdal_streamed_alg"
)
"""How such files begin."""
LOOKED_AT: Final = 4096
DESCRIBING_SUFFIXES: Final = (".xml", ".txt", ".json", ".rpb", ".imd", ".tfw", ".til")
"""Of files that come with imagery and are none."""


@dataclass(frozen=True)
class Opening:
    """Who named a file, and from which hosts it may come."""

    hosts: tuple[str, ...] | None = None
    """None = a person named it herself. Else an item did, and these are the hosts that it may lead to."""


PERSON: Final = Opening()


@contextmanager
def open_raster(path: str, opening: Opening = PERSON) -> Iterator[Any]:
    """An open rasterio dataset.

    Raises: InputError when the file is missing, is not a raster, or is none that may be opened by who named it.
    """
    with ExitStack() as stack:
        try:
            dataset = _opened(path, opening, stack)
        except OSError as error:  # RasterioIOError is one
            raise _unreadable(path, error) from None
        try:
            yield dataset
        except RasterioIOError as error:
            raise _unreadable(path, error) from None


def _opened(path: str, opening: Opening, stack: ExitStack) -> Any:  # noqa: ANN401 - rasterio
    place = place_of(path)
    if place == "http":
        return _open_remote(path, opening, stack)
    if place == "s3" or opening.hosts is not None:
        return _open_alone(path, stack)
    return _open_own(path, stack)


def _unreadable(path: str, error: OSError) -> InputError:
    name = name_of(path).lower()
    fix = "expected e.g. a GeoTIFF"
    if name.endswith(DESCRIBING_SUFFIXES):
        fix = "it may describe imagery and holds none; give the raster itself, or the folder of a file a band"
    elif ".hgt" in name:
        fix = "a tile of SRTM is known by its name; call it as it came, e.g. N42E141.hgt or N42E141.hgt.zip"
    return InputError(f"{path}: cannot be read as a raster ({error}); {fix}")


def files_of(path: str) -> list[str]:
    """Every file that GDAL reads for a person's raster, also masks and overviews; none where it is no raster."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.Env(**HTTP_OPTIONS), rasterio.open(path) as dataset:
                for index in dataset.indexes:
                    dataset.overviews(index)  # GDAL knows of those beside a file once they are asked for
                return [str(name) for name in dataset.files]
        except RasterioIOError:
            return []


@contextmanager
def open_unplaced(name: str, *, driver: str) -> Iterator[Any]:
    """An open rasterio dataset of a driver's own naming, without a place on earth. Raises: InputError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.open(name, driver=driver) as dataset:
                yield dataset
        except RasterioIOError as error:
            raise InputError(f"{name}: cannot be read ({error}); expected a file of {driver}") from None


@contextmanager
def warped(dataset: Any, **place: Any) -> Iterator[Any]:  # noqa: ANN401 - rasterio
    """An open dataset as one on another grid; `place` as of `rasterio.vrt.WarpedVRT`."""
    with WarpedVRT(dataset, **place) as there:
        yield there


# --- what a person names ---------------------------------------------------------------------------------------------


def check_name(path: Path) -> None:
    """Raise InputError for a file that leads to others under a name that does not say so."""
    try:
        with path.open("rb") as file:
            beginning = file.read(LOOKED_AT)
    except IsADirectoryError:
        return
    found = LEADING_ROOTS.search(beginning) if beginning.lstrip(b"\xef\xbb\xbf \r\n\t")[:1] in (b"<", b"{") else None
    if found and path.suffix.lower() not in LEADING_DRIVERS["VRT"]:
        raise InputError(
            f"{path}: its content is {found[0].decode()}, which leads to other files; expected what its name says; "
            "give the files themselves, or name a VRT .vrt"
        )


def _open_own(path: str, stack: ExitStack) -> Any:  # noqa: ANN401 - rasterio
    if not path.startswith("/vsi"):
        if not Path(path).exists():
            raise InputError(f"{path}: the file does not exist; expected a raster; check the path")
        check_name(Path(path))
    stack.enter_context(rasterio.Env(**HTTP_OPTIONS))  # a VRT may lead to servers
    dataset = stack.enter_context(rasterio.open(path))
    suffixes = LEADING_DRIVERS.get(dataset.driver)
    if dataset.driver in REFUSED_DRIVERS or (suffixes and not path.lower().endswith(suffixes)):
        raise InputError(
            f"{path}: is a {dataset.driver}, which leads to other files; expected pixels, or a VRT named .vrt; make a "
            "GeoTIFF of it (gdal_translate)"
        )
    return dataset


# --- what others name ------------------------------------------------------------------------------------------------


class _OneFile(FileContainer):  # type: ignore[misc]
    """A file system for GDAL that holds one file: there is nothing beside it."""

    def __init__(self, name: str, file: RemoteFile) -> None:
        self.name, self.file = name, file

    def open(self, path: str, mode: str = "r", **_: object) -> RemoteFile:
        """The file."""
        if path != self.name or mode not in ("r", "rb"):
            raise FileNotFoundError(path)
        self.file.seek(0)
        return self.file

    def isfile(self, path: str) -> bool:
        """Whether it is the file."""
        return path == self.name

    def isdir(self, path: str) -> bool:
        """There is none."""
        return False

    def ls(self, path: str) -> list[str]:
        """Nothing."""
        return []

    def mtime(self, path: str) -> int:
        """Not known."""
        return 0

    def size(self, path: str) -> int:
        """Of the file, bytes."""
        return self.file.size

    def rm(self, path: str) -> None:
        """Nothing is deleted."""
        raise PermissionError(path)


def _open_remote(path: str, opening: Opening, stack: ExitStack) -> Any:  # noqa: ANN401 - rasterio
    file = stack.enter_context(RemoteFile(path, hosts=own_hosts(path) if opening.hosts is None else opening.hosts))
    beginning = file.read(LOOKED_AT)
    driver = _driver_of(beginning, path)
    name = f"remote/file{'.jp2' if driver == 'JP2OpenJPEG' else '.tif'}"  # the address may hold a signature
    stack.enter_context(rasterio.Env(**ALONE))
    dataset = stack.enter_context(rasterio.open(name, driver=driver, opener=_OneFile(name, file)))
    _check_leads_nowhere(dataset, path)
    return dataset


def _driver_of(beginning: bytes, path: str) -> str:
    """The driver of the first bytes, which no message repeats: they may be of a secret."""
    for driver, starts in FOREIGN_DRIVERS.items():
        if beginning.startswith(starts):
            return driver
    raise _not_alone(path, "it is neither, whatever its name")


def _not_alone(path: str, why: str) -> InputError:
    return InputError(
        f"{path}: cannot be read as a raster from elsewhere: {why}; expected a GeoTIFF or JPEG 2000 with all in it; "
        "download and look at it, then give the file itself"
    )


def _open_alone(path: str, stack: ExitStack) -> Any:  # noqa: ANN401 - rasterio
    """A local file that an item names, or an object of S3."""
    if place_of(path) == "local":
        if not Path(path).is_file():
            raise InputError(f"{path}: the file does not exist; expected a raster; check the path")
        with Path(path).open("rb") as file:
            drivers = [_driver_of(file.read(LOOKED_AT), path)]
    else:
        drivers = list(FOREIGN_DRIVERS)
    stack.enter_context(rasterio.Env(**gdal_options(path) | ALONE))
    for number, driver in enumerate(drivers, 1):
        try:
            dataset = stack.enter_context(rasterio.open(path, driver=driver))
            break
        except RasterioIOError:
            if number == len(drivers):
                raise
    _check_leads_nowhere(dataset, path)
    return dataset


def _check_leads_nowhere(dataset: Any, path: str) -> None:  # noqa: ANN401 - rasterio
    """Raise before anything is read of a GeoTIFF that names other files in its tags."""
    if named := [domain for domain in LEADING_DOMAINS if dataset.tags(ns=domain)]:
        raise _not_alone(path, f"its metadata ({named[0]}) names other files")
