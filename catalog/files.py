"""Files wherever they are: a local path stays a path, a URL (s3://, https://) stays a URL."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal
from urllib.parse import urlsplit
from uuid import uuid4

import fsspec
from botocore.exceptions import BotoCoreError

from catalog.config import environment
from catalog.ranges import RemoteFile, whole_file
from catalog.schema import InputError
from catalog.web import ANY_PUBLIC

HTTP_OPTIONS: Final = {
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1",
    "GDAL_HTTP_LOW_SPEED_TIME": "30",
    "GDAL_HTTP_MAX_RETRY": "2",
    "GDAL_HTTP_RETRY_DELAY": "1",
}
"""Seconds, bytes a second, and tries: without them GDAL waits for a silent server for ever."""


ARCHIVE: Final = re.compile(r"/vsi(zip|tar|gzip|7z|rar)/")
"""GDAL's way to a file inside a local archive: /vsizip/FOLDER/scene.zip/post.tif."""

Place = Literal["local", "archive", "http", "s3"]


def is_url(path: str) -> bool:
    """True for what GDAL and fsspec read over the network, and for GDAL's own virtual files."""
    return "://" in path or path.startswith("/vsi")


def place_of(path: str) -> Place:
    """Where a file is: local, in a local archive, on a web server or on S3.

    Raises: InputError for every other kind of address.

    >>> place_of("scene/post.tif"), place_of("https://host/post.tif"), place_of("s3://bucket/post.tif")
    ('local', 'http', 's3')
    """
    if ARCHIVE.match(path):
        archive_of(path)
        return "archive"
    scheme = path.partition("://")[0].lower() if "://" in path else ""
    if scheme in ("http", "https"):
        return "http"
    if scheme == "s3":
        return "s3"
    if scheme or path.startswith("/vsi"):
        raise InputError(
            f"{path}: is no address that is read here; expected a file, http(s)://, s3:// or /vsizip/ARCHIVE.zip/FILE; "
            "write it as one of these, or copy the file"
        )
    return "local"


def archive_of(path: str) -> Path:
    """The local archive that a /vsizip/ path leads into.

    Raises: InputError when there is none.
    """
    inside = path[ARCHIVE.match(path).end() :] if ARCHIVE.match(path) else path  # type: ignore[union-attr]
    braced = re.match(r"\{([^{}]*)\}", inside)
    named = Path(braced[1] if braced else inside)
    found = next((place for place in (named, *named.parents) if place.is_file()), None)
    if found is None:
        raise InputError(f"{path}: there is no such archive; expected /vsizip/FOLDER/ARCHIVE.zip/FILE; check the path")
    return found


def absolute(path: str) -> str:
    """The path from the root of the file system; a URL as it is.

    >>> absolute("s3://scenes/post.tif")
    's3://scenes/post.tif'
    """
    start = ARCHIVE.match(path)
    if start and not path[start.end() :].startswith("{"):
        return start[0] + os.path.abspath(path[start.end() :])
    return path if is_url(path) else str(Path(path).resolve())


def name_of(path: str) -> str:
    """The last part of a path or URL, without a query: it may hold a signature.

    >>> name_of("https://host/a/post.tif?signature=secret")
    'post.tif'
    """
    return PurePosixPath(urlsplit(path).path).name if is_url(path) else Path(path).name


def state_of(path: str, *, hosts: Sequence[str]) -> str:
    """Digest (hex) of what a server says of a file's state: its size, and its ETag or time of change.

    Raises: InputError when it cannot be reached.
    """
    try:
        if place_of(path) == "http":
            with RemoteFile(path, hosts=hosts) as file:
                return hashlib.sha256((file.state or str(file.size)).encode()).hexdigest()
        fs, place = filesystem(path)
        return str(fs.ukey(place))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); expected a file") from None


def storage_options(url: str) -> dict[str, Any]:
    """Fsspec options: an S3 endpoint other than AWS comes from LANDSLIDENET_S3_ENDPOINT."""
    endpoint = environment("LANDSLIDENET_S3_ENDPOINT")
    return {"client_kwargs": {"endpoint_url": endpoint}} if url.startswith("s3://") and endpoint else {}


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path or URL, and what the path is called there."""
    fs, path = fsspec.core.url_to_fs(url, **storage_options(url))
    return fs, path


def exists(path: str) -> bool:
    """True when there is such a file."""
    if place_of(path) == "http":
        try:
            with RemoteFile(path, hosts=own_hosts(path)):
                return True
        except OSError:
            return False
    fs, place = filesystem(path)
    return bool(fs.exists(place))


def own_hosts(path: str) -> tuple[str, ...]:
    """Hosts that an address which a person named may lead to: its own, and public ones it sends on to."""
    return urlsplit(path).netloc.rpartition("@")[2], ANY_PUBLIC


def names_in(url: str) -> list[str]:
    """Names of what lies in a folder or below a prefix now, sorted; none where there is no such folder."""
    fs, place = filesystem(url)
    fs.invalidate_cache()
    try:
        found = fs.ls(place, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(posixpath.basename(str(path).rstrip("/")) for path in found)


def sha256_of(path: str) -> str:
    """Digest (hex) of a file's bytes, streamed; kept as long as the file stays the same.

    Raises: InputError when it cannot be read.
    """
    try:
        if place_of(path) == "http":
            with RemoteFile(path, hosts=own_hosts(path)) as file:
                state = file.state
            return _remote_digest(path, state) if state else _digest_of(whole_file(path, hosts=own_hosts(path)))
        fs, place = filesystem(path)
        return _digest(path, fs.ukey(place))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); expected a file") from None


@lru_cache(maxsize=1024)
def _digest(path: str, state: str) -> str:
    """The digest of a file in a state: `state` changes with size and time of change."""
    del state
    with fsspec.open(path, "rb", **storage_options(path)) as file:
        return _digest_of(iter(partial(file.read, 1 << 22), b""))


@lru_cache(maxsize=1024)
def _remote_digest(url: str, state: str) -> str:
    """The digest of what a web server has at an address, in a state that the server told of."""
    del state
    return _digest_of(whole_file(url, hosts=own_hosts(url)))


def _digest_of(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def gdal_options(path: str) -> dict[str, Any]:
    """GDAL's settings for a file.

    No listing of remote folders, an end to its patience with servers, and the S3 endpoint of LANDSLIDENET_S3_ENDPOINT.
    """
    if not is_url(path):
        return {}
    options: dict[str, Any] = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", **HTTP_OPTIONS}
    endpoint = environment("LANDSLIDENET_S3_ENDPOINT")
    if path.startswith("s3://") and endpoint:
        scheme, _, host = endpoint.rpartition("://")
        https = "NO" if scheme == "http" else "YES"
        options |= {"AWS_S3_ENDPOINT": host.rstrip("/"), "AWS_HTTPS": https, "AWS_VIRTUAL_HOSTING": "FALSE"}
    return options


def probe_root(root: str) -> None:
    """Write a tiny object below an address where stores are to go, and delete it.

    Raises: InputError when that is refused.
    """
    try:
        fs, path = filesystem(posixpath.join(root, f".probe-{uuid4().hex}"))
        fs.pipe_file(path, b"")
        fs.rm_file(path)
    except (OSError, BotoCoreError, ImportError, ValueError) as error:
        raise InputError(
            f"--root {root}: cannot be written ({error}); expected a place where objects can be written and deleted; "
            "check the address, the credentials (AWS_ACCESS_KEY_ID and others) and LANDSLIDENET_S3_ENDPOINT"
        ) from None


def write_whole(path: Path, text: str) -> Path:
    """Write a local text file, whole or not at all; returns its path. Folders are made where they are missing."""
    put_whole(str(path), text.encode())
    return path


def put_whole(url: str, payload: bytes) -> None:
    """Write a file or object, whole or not at all; a local one is on the disk, name and all, when this returns."""
    if "://" in url:
        fs, place = filesystem(url)
        fs.pipe_file(place, payload)
        return
    path = Path(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        with open(beside, "wb") as stream:
            stream.write(payload)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Have the disk hold what was written of a local file, or the names that were made in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
