"""Which layers of a vector file are meant: FILE[:LAYER[,LAYER]], or the only one that holds polygons."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Final

import pyogrio

from catalog.files import filesystem, is_url, name_of, own_hosts, place_of
from catalog.opening import LEADING_DRIVERS, LOOKED_AT, check_name
from catalog.paths import expand_home
from catalog.ranges import RemoteFile
from catalog.schema import InputError

HOW: Final = "FILE[:LAYER[,LAYER]]"
NOT_AREAL: Final = re.compile(r"Point|LineString|CircularString|CompoundCurve|MultiCurve")
"""Kinds of layers that cannot hold a polygon, as OGR names them."""
MOST_SHOWN: Final = 6
MAX_BYTES: Final = 64 * 1024**2
"""Most that is read of a vector file at an address."""
NOT_LEFT: Final = "GFS file saving asked"
"""OGR's warning that it could not write beside a file (`untouched`)."""
GEOJSON_TYPES: Final = ("FeatureCollection", "Feature", "Polygon", "MultiPolygon", "GeometryCollection")


@dataclass(frozen=True)
class Layer:
    """A layer of a file."""

    name: str
    kind: str | None
    """Of its geometry, as OGR names it; None for a table without any."""


def split_source(source: str) -> tuple[str, str]:
    """File and layers of FILE[:LAYER[,LAYER]]; names of files and layers may hold colons. No layers: empty text.

    >>> split_source("/vsizip/maps.zip/scars.gpkg:2018,2019")
    ('/vsizip/maps.zip/scars.gpkg', '2018,2019')
    """
    if is_url(source):
        folder, slash, name = source.rpartition("/")
        name, _, wanted = name.partition(":") if "?" not in name else (name, "", "")
        return folder + slash + name, wanted
    source = expand_home(source)
    cuts = [len(source), *(place for place in range(len(source) - 1, 0, -1) if source[place] == ":")]
    cut = next((place for place in cuts if Path(source[:place]).exists()), len(source))
    return source[:cut], source[cut + 1 :]


@contextmanager
def local_file(file: str, *, what: str) -> Iterator[str]:
    """The path of a vector file: a person's own as it is; of what lies at an address a copy, which is GeoJSON alone.

    GDAL decides by content what a file is, and some only lead to others: here the content is what it says.

    Raises: InputError when an address does not answer, or not with GeoJSON.
    """
    if place_of(file) in ("local", "archive"):
        yield file
        return
    try:
        told = json.loads(_fetched(file))
        kind = told.get("type") if isinstance(told, dict) else None
    except (OSError, ValueError) as error:
        raise _not_fetched(file, f"{type(error).__name__}: {error}", what=what) from None
    if kind not in GEOJSON_TYPES:
        raise _not_fetched(file, f"its type is {kind!r:.40}", what=what)
    with TemporaryDirectory(prefix="landslidenet-") as folder:
        copy = Path(folder) / f"{PurePosixPath(name_of(file)).stem or 'layer'}.geojson"
        copy.write_text(json.dumps(told), encoding="utf-8")
        yield str(copy)


def _fetched(url: str) -> bytes:
    """The bytes at an address; at most `MAX_BYTES`. Raises: OSError, InputError, ValueError when there are more."""
    if place_of(url) == "http":
        with RemoteFile(url, hosts=own_hosts(url)) as file:
            text = file.read(MAX_BYTES + 1)
    else:
        fs, path = filesystem(url)
        with fs.open(path, "rb") as stored:
            text = stored.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    return text


def _not_fetched(file: str, why: str, *, what: str) -> InputError:
    return InputError(
        f"{what} {file}: cannot be read from there ({why}); expected a GeoJSON at an address; download other files and "
        "give them"
    )


def layers_of(file: str, *, what: str) -> list[Layer]:
    """The layers of a file, in its order.

    Raises: InputError when it is missing, no vector file, or one that leads to others and is not named so.
    """
    if not is_url(file):
        if not Path(file).exists():
            raise InputError(f"{what} {file}: no such file; expected a vector file, with layers as {HOW}")
        check_name(Path(file))
    name = untouched(file)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=NOT_LEFT)
            return [Layer(str(layer), kind) for layer, kind in pyogrio.list_layers(name)]
    except (pyogrio.errors.DataSourceError, UnicodeDecodeError) as error:
        said = str(error).replace(name, file)
        raise InputError(f"{what} {file}: is no vector file ({said}); expected e.g. a GeoPackage") from None


def untouched(file: str) -> str:
    """The name by which OGR reads a file without writing beside it: of an XML, GDAL's for bytes that only are read.

    Its GML driver leaves what it learnt of a file as NAME.gfs in the file's folder, and reads that the next time.
    """
    path = Path(file)
    if is_url(file) or path.suffix.lower() in LEADING_DRIVERS["VRT"] or not path.is_file():
        return file
    with path.open("rb") as stream:
        beginning = stream.read(LOOKED_AT).lstrip(b"\xef\xbb\xbf \r\n\t")
    return f"/vsisubfile/0,{file}" if beginning.startswith(b"<") else file


def named_layers(file: str, wanted: str, known: Sequence[Layer], *, what: str) -> list[int]:
    """Places of the layers that are named. Raises: InputError when one is not there, or has no geometry."""
    names = _split_names(wanted, [layer.name for layer in known])
    if not names:
        listed = ", ".join(layer.name for layer in known)
        raise InputError(f"{what} {file}: no layer {wanted}; expected of {listed}, as {HOW}")
    places = [index for name in names for index, layer in enumerate(known) if layer.name == name]
    if tables := [known[index].name for index in places if known[index].kind is None]:
        raise InputError(f"{what} {file}: {', '.join(tables)} is a table without geometry; expected layers of polygons")
    return places


def _split_names(text: str, known: Sequence[str]) -> list[str]:
    """The known names that a text lists; names may hold commas themselves. Empty where one is not known.

    >>> _split_names("a,b,c", ["a", "b,c"]), _split_names("a,d", ["a"])
    (['a', 'b,c'], [])
    """
    if text in known:
        return [text]
    for name in sorted(set(known), key=len, reverse=True):
        if text.startswith(f"{name},") and (rest := _split_names(text[len(name) + 1 :], known)):
            return [name, *rest]
    return []


def areal_layers(file: str, known: Sequence[Layer], *, what: str) -> list[int]:
    """Places of the layers that may hold polygons. Raises: InputError when there is none."""
    places = [i for i, layer in enumerate(known) if layer.kind is not None and not NOT_AREAL.search(layer.kind)]
    if not places:
        got = ", ".join(f"{layer.name} ({layer.kind or 'a table'})" for layer in known) or "no layer"
        raise InputError(f"{what} {file}: no layer holds polygons, got {got}; expected outlines as polygons")
    return places


def question_of(file: str, counts: Mapping[str, int], *, what: str) -> str:
    """Which of several layers with polygons is meant; counts : polygons by layer."""
    got = ", ".join(f"{name} ({count:,})" for name, count in list(counts.items())[:MOST_SHOWN])
    more = ", ..." if len(counts) > MOST_SHOWN else ""
    first, second, *_ = counts
    return (
        f"{what} {file}: got {len(counts)} layers with polygons: {got}{more}; expected to be told which; pass "
        f"'{file}:{first}', or several as '{file}:{first},{second}'"
    )
