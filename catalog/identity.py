"""What an input is: every byte that is read of it, with what lies beside it and what it leads to, at any depth."""

from __future__ import annotations

import hashlib
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from catalog.files import archive_of, is_url, name_of, place_of, sha256_of, state_of
from catalog.opening import PERSON, Opening, files_of
from catalog.schema import InputError
from catalog.web import parse_xml

SOURCE_TAGS: Final = ("SourceFilename", "SourceDataset")
"""Elements of a VRT that must name what is read."""
VIRTUAL: Final = {"/vsicurl/": "", "/vsis3/": "s3://"}
"""GDAL's ways to the addresses that are read here."""
XML_BYTES: Final = 32 * 1024**2


def input_of(path: str, *, role: str) -> dict[str, str | None]:
    """Role, file name and `content_digest` of an input file.

    Raises: InputError when it cannot be read.
    """
    return {"role": role, "path": name_of(path), "sha256": content_digest(path)}


def content_digest(path: str) -> str:
    """Digest (hex) of all bytes that are read of a person's file; it does not depend on where the file lies.

    Of a file alone it is its SHA-256; else one of the digests of all that GDAL reads with it: world file, metadata,
    mask and overviews beside it, the sources of a VRT, and what these come with.

    Raises: InputError when a part cannot be read, or is none whose bytes can be known.
    """
    digests = [_bytes_digest(part) for part in parts_of(path)]
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def origin_digest(href: str, opening: Opening) -> str:
    """Digest of an item's file: the content of a local one; of one elsewhere what its server says of its state.

    The address is no part of it: it may be signed, and files move.

    Raises: InputError when it cannot be reached.
    """
    if opening == PERSON:
        return content_digest(href)
    if place_of(href) == "local":
        return sha256_of(href)  # it is read alone
    return state_of(href, hosts=opening.hosts or ())


def parts_of(path: str) -> list[str]:
    """Every file that is read for a person's raster, each once, itself first.

    Raises: InputError for a part of a VRT that is no file.
    """
    found: dict[str, None] = {}
    waiting = [path]
    while waiting:
        name = waiting.pop(0)
        part = _address(name)
        if part in found:
            continue
        found[part] = None
        if part == path and place_of(path) in ("http", "s3"):
            break  # it is read alone
        waiting += [*filter(_is_file, files_of(name)), *_vrt_sources(part)]
    return list(found)


def _is_file(name: str) -> bool:
    """False for what GDAL lists beside files: texts and protocols of a VRT, whose sources `_vrt_sources` finds."""
    return not name.startswith(("<", "vrt://")) and (is_url(name) or os.path.exists(name))


def _address(name: str) -> str:
    """A file as it is called here, of what GDAL calls it."""
    start = next((start for start in VIRTUAL if name.startswith(start)), None)
    return name if start is None else VIRTUAL[start] + name.removeprefix(start)


def _bytes_digest(part: str) -> str:
    if place_of(part) != "archive":
        return sha256_of(part)
    archive = archive_of(part)
    inside = part.partition(str(archive))[2]
    return hashlib.sha256(f"{sha256_of(str(archive))} {inside}".encode()).hexdigest()


# --- VRTs ------------------------------------------------------------------------------------------------------------


def _vrt_sources(path: str) -> Iterator[str]:
    """What a VRT names, also where GDAL does not tell of it: nested texts, subdatasets, files of any element."""
    file = Path(path)
    if file.suffix.lower() != ".vrt" or not file.is_file() or file.stat().st_size > XML_BYTES:
        return
    yield from _named_by(parse_xml(file.read_bytes(), where=path), file)


def _named_by(root: ET.Element, vrt: Path) -> Iterator[str]:
    for element in root.iter():
        text = (element.text or "").strip()
        if text.startswith("<"):
            yield from _named_by(parse_xml(text.encode(), where=str(vrt)), vrt)
            continue
        named = [text, *element.attrib.values()]
        files = [found for name in named if name and (found := _resolved(name, vrt))]
        if text and not files and element.tag in SOURCE_TAGS:
            files = list(files_of(text))
            if not files:
                raise InputError(
                    f"{vrt}: its source {text!r:.200} is no file whose content can be known; expected files, "
                    "http(s):// or s3://; make a GeoTIFF of it (gdal_translate)"
                )
        yield from files


def _resolved(name: str, vrt: Path) -> str | None:
    """The file or address of a name in a VRT; None when it is neither."""
    if name.startswith("vrt://"):
        name = name.removeprefix("vrt://").partition("?")[0]
    if is_url(name):
        return name if name.startswith(("http://", "https://", "s3://", "/vsi")) else None
    for place in (vrt.parent / name, Path(name)):
        try:
            if place.is_file():
                return str(place)
        except (OSError, ValueError):  # too long for a name, or no name at all
            return None
    return None
