"""A file on a web server, read by ranges: from allowed hosts only, redirects included, and with an end to patience.

GDAL's own reader follows redirects to whatever host and asks for files beside the one it is given.
"""

from __future__ import annotations

import http.client
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Sequence
from typing import Any, Final
from urllib.parse import SplitResult, unquote, urljoin, urlsplit, urlunsplit

from catalog.web import SCHEMES, check_peer, check_url, is_loopback

FIRST_BYTES: Final = 1 << 16
"""Fetched at once at the least: a GeoTIFF's directories are at its beginning."""
LARGEST_AHEAD: Final = 1 << 21
PIECE_BYTES: Final = 1 << 20
KEPT: Final = 16
"""Pieces of a file that are remembered while it is open."""
WHOLE_BYTES: Final = 1 << 29
"""Most that is taken of a server that does not know ranges."""
CONNECT_S: Final = 10.0
SILENCE_S: Final = 30.0
LEAST_BYTES_S: Final = 1000.0
"""A slower answer is given up."""
TRIES: Final = 3
PAUSE_S: Final = 1.0
REDIRECTS: Final = (301, 302, 303, 307, 308)
MAX_REDIRECTS: Final = 5


class NoAnswer(OSError):
    """A server that did not answer with the file."""


class RemoteFile:
    """A file at an http(s) address as Python reads files; `size`, `etag` and `modified` are the server's words.

    Raises: InputError when it, or a redirect of it, leads to a host that is not allowed; NoAnswer without an answer.
    """

    def __init__(self, url: str, *, hosts: Sequence[str]) -> None:
        self.hosts = tuple(hosts)
        self.url, self._login = without_login(url)
        self._login_host = urlsplit(self.url).netloc
        check_url(self.url, hosts=self.hosts)
        self.place = 0
        self.size, self.etag, self.modified = 0, "", ""
        self._connection: http.client.HTTPConnection | None = None
        self._connected: tuple[str, str] = ("", "")
        self._kept: list[tuple[int, bytes]] = []
        self._ahead = FIRST_BYTES
        self._fetch(0, FIRST_BYTES)

    def read(self, size: int = -1) -> bytes:
        """The next bytes; all that follow without a size."""
        end = self.size if size < 0 else min(self.place + size, self.size)
        parts = []
        while self.place < end:
            start, piece = self._piece(self.place, end)
            part = piece[self.place - start : end - start]
            parts.append(part)
            self.place += len(part)
        return b"".join(parts)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place; returns it."""
        self.place = offset + (0, self.place, self.size)[whence]
        return self.place

    @property
    def state(self) -> str:
        """What changes with its content, by the server's words; empty where it has none."""
        return f"{self.size} {self.etag} {self.modified}" if self.etag or self.modified else ""

    def tell(self) -> int:
        """The place that is read next."""
        return self.place

    def close(self) -> None:
        """Let the connection go."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> RemoteFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _piece(self, place: int, end: int) -> tuple[int, bytes]:
        """What is kept at a place, with where it begins; fetched where it is not."""
        for start, piece in self._kept:
            if start <= place < start + len(piece):
                return start, piece
        goes_on = any(start + len(piece) == place for start, piece in self._kept[-1:])
        self._ahead = min(2 * self._ahead, LARGEST_AHEAD) if goes_on else FIRST_BYTES
        return self._fetch(place, max(end - place, self._ahead))

    def _fetch(self, start: int, count: int) -> tuple[int, bytes]:
        last = start + count - 1 if not self.size else min(start + count, self.size) - 1
        told = ""
        for attempt in range(TRIES):
            try:
                begins, data = self._ask(start, last)
                self._kept = [*self._kept[-(KEPT - 1) :], (begins, data)]
                return begins, data
            except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
                told = str(error) or type(error).__name__
            self.close()
            if attempt + 1 < TRIES:
                time.sleep(PAUSE_S * 2**attempt)
        raise NoAnswer(f"no answer in {TRIES} tries, last: {told}")

    def _ask(self, start: int, last: int) -> tuple[int, bytes]:
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._get(start, last)
            if answer.status in REDIRECTS and (target := answer.headers.get("Location")):
                answer.read(FIRST_BYTES)
                self.close()
                self.url = urljoin(self.url, target)
                check_url(self.url, hosts=self.hosts)
                continue
            return self._taken(answer, start, last)
        raise NoAnswer(f"more than {MAX_REDIRECTS} redirects")

    def _taken(self, answer: http.client.HTTPResponse, start: int, last: int) -> tuple[int, bytes]:
        if answer.status >= 500 or answer.status == 429:
            raise ConnectionError(f"answered {answer.status} {answer.reason}")
        if answer.status == 206:
            total = (answer.headers.get("Content-Range") or "").rpartition("/")[2]
            size, begins, limit = int(total) if total.isdecimal() else 0, start, last - start + 1
        elif answer.status == 200:
            size, begins, limit = int(answer.headers.get("Content-Length") or 0), 0, WHOLE_BYTES
        elif answer.status == 416 and not start:
            return 0, b""  # an empty file
        else:
            raise NoAnswer(f"answered {answer.status} {answer.reason}")
        if self.size and size != self.size:
            raise NoAnswer(f"its size changed from {self.size} to {size} bytes while it was read")
        if not 0 < size or (answer.status == 200 and size > limit):
            raise NoAnswer(f"answered without ranges, {size} bytes: too much to be read whole")
        self.size = size
        self.etag, self.modified = (answer.headers.get(key) or "" for key in ("ETag", "Last-Modified"))
        data = b"".join(_pieces(answer, min(limit, size - begins)))
        if len(data) < min(limit, size - begins):
            raise ConnectionError(f"cut off after {len(data)} bytes")
        return begins, data

    def _get(self, start: int, last: int) -> http.client.HTTPResponse:
        """The answer to one request, over the open connection where it is to the same server."""
        parts = urlsplit(self.url)
        if self._connection is None or self._connected != (parts.scheme, parts.netloc):
            self.close()
            self._connection = connect(parts, hosts=self.hosts)
            self._connected = (parts.scheme, parts.netloc)
        target = self.url if isinstance(self._connection, _ToProxy) else (parts.path or "/")
        if parts.query and target is not self.url:
            target += f"?{parts.query}"
        headers = {"User-Agent": "landslidenet", "Accept-Encoding": "identity", "Range": f"bytes={start}-{last}"}
        headers |= {"Authorization": self._login} if self._login and parts.netloc == self._login_host else {}
        self._connection.request("GET", target, headers=headers)
        return self._connection.getresponse()


def without_login(url: str) -> tuple[str, str]:
    """An address without the name and password in it, and what they are as a header (RFC 7617); empty without any.

    >>> without_login("https://me:word@host/a.tif")
    ('https://host/a.tif', 'Basic bWU6d29yZA==')
    """
    parts = urlsplit(url)
    login, at, place = parts.netloc.rpartition("@")
    if not at:
        return url, ""
    return urlunsplit(parts._replace(netloc=place)), f"Basic {b64encode(unquote(login).encode()).decode()}"


def _pieces(answer: http.client.HTTPResponse, count: int) -> Iterator[bytes]:
    """Up to so many bytes of an answer. Raises: TimeoutError when they trickle."""
    until = time.monotonic() + SILENCE_S + count / LEAST_BYTES_S
    while count > 0 and (piece := answer.read(min(count, PIECE_BYTES))):
        yield piece
        count -= len(piece)
        if time.monotonic() > until:
            raise TimeoutError(f"fewer than {LEAST_BYTES_S:g} bytes a second")


class _ToProxy(http.client.HTTPConnection):
    """A connection to a proxy, which is told whole addresses."""


def connect(parts: SplitResult, *, hosts: Sequence[str]) -> Any:  # noqa: ANN401 - of either class
    """A connection to an address's server, through the environment's proxy where it says so.

    Raises: InputError when only `*` or a `*.name` of `hosts` fits the host, and it leads inward.
    """
    host = parts.hostname or ""
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not is_loopback(host) and not urllib.request.proxy_bypass(host):
        return _through(proxy, parts)
    kind = http.client.HTTPSConnection if parts.scheme == SCHEMES[1] else http.client.HTTPConnection
    connection = kind(host, parts.port, timeout=CONNECT_S)
    connection.connect()
    connection.sock.settimeout(SILENCE_S)
    check_peer(str(connection.sock.getpeername()[0]), host=host, port=connection.port, hosts=hosts)
    return connection


def _through(proxy: str, parts: SplitResult) -> Any:  # noqa: ANN401
    place = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if parts.scheme == SCHEMES[0]:
        return _ToProxy(place.hostname or "", place.port, timeout=SILENCE_S)
    connection = http.client.HTTPSConnection(place.hostname or "", place.port, timeout=SILENCE_S)
    connection.set_tunnel(parts.hostname or "", parts.port or 443)
    return connection


def whole_file(url: str, *, hosts: Sequence[str]) -> Iterator[bytes]:
    """The bytes of a file, piece by piece. Raises: as `RemoteFile`."""
    with RemoteFile(url, hosts=hosts) as file:
        while piece := file.read(LARGEST_AHEAD):
            yield piece
