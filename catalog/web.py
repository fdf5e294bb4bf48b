"""Documents from the net: from hosts that the operator named, within limits, and parsed as what strangers sent."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import socket
import threading
import time
import urllib.error
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any, Final, NoReturn
from urllib.parse import SplitResult, urlsplit

import defusedxml
import defusedxml.ElementTree

from catalog.schema import InputError, LandslideError

SCHEMES: Final = ("http", "https")
ANY_PUBLIC: Final = "*"
"""As an entry of `hosts`: every host with a public address."""
MAX_BYTES: Final = 32 * 1024**2
MAX_DEPTH: Final = 64
TIMEOUT_S: Final = 30.0
TRIES: Final = 3
PAUSE_S: Final = 1.0
PIECE_BYTES: Final = 1 << 16


class Unanswered(LandslideError):
    """A server that did not answer, or not with what was asked for: another try, later, can get past it."""


def check_url(url: str, *, hosts: Sequence[str]) -> SplitResult:
    """The parts of an address that may be read.

    An exact entry of `hosts` is trusted wherever its name leads; what a `*.name` (or `*`) fits must lead to a public
    address.

    Raises: InputError for another scheme, a name or password in it, or a host that is not among `hosts`.

    >>> check_url("https://a.example.org/x", hosts=["a.example.org"]).hostname
    'a.example.org'
    """
    if not (url.isascii() and url.isprintable()) or set(url) & set(' \\<>"'):
        raise InputError(f"address {url!r:.200}: has characters that no address has; expected https://HOST/...")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError as error:
        raise InputError(f"address {url!r:.200}: {error}; expected https://HOST/...") from None
    if parts.scheme not in SCHEMES or parts.username is not None or parts.password is not None or not host:
        raise InputError(f"address {url!r:.200}: expected http(s)://HOST/... without a name or password")
    names = {host, f"{host}:{port or {'http': 80, 'https': 443}[parts.scheme]}"}
    if names & {entry.lower() for entry in hosts}:
        return parts
    if _fits_wildcard(host, hosts):
        _check_public(host, url)
        return parts
    raise InputError(
        f"address {url!r:.200}: host {host} is not allowed; expected one of {', '.join(hosts)}; add it to `hosts`"
    )


def _fits_wildcard(host: str, hosts: Sequence[str]) -> bool:
    return any(entry == ANY_PUBLIC or (entry.startswith("*.") and host.endswith(entry[1:].lower())) for entry in hosts)


def check_peer(address: str, *, host: str, port: int, hosts: Sequence[str]) -> None:
    """Raise InputError when a connection to a host that only a wildcard allowed leads to an address inside."""
    if not {entry.lower() for entry in hosts} & {host.lower(), f"{host.lower()}:{port}"}:
        _refuse_inward(address, host)


def _check_public(host: str, url: str) -> None:
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise Unanswered(f"address {url!r:.200}: {host} is not found ({error})") from None
    if inward := [address for address in found if not ipaddress.ip_address(address).is_global]:
        raise InputError(f"address {url!r:.200}: {host} leads to {inward[0]}, which is not public; name it in `hosts`")


def fetch(
    url: str,
    *,
    hosts: Sequence[str],
    max_bytes: int = MAX_BYTES,
    timeout_s: float = TIMEOUT_S,
    tries: int = TRIES,
    login: str = "",
) -> bytes:
    """What is at an address. `timeout_s` is for the whole answer; redirects are followed to allowed hosts only.

    login : the value of an Authorization header; where the address redirects to it is not sent.

    Raises: InputError for an address or an answer that is not allowed; Unanswered when no try was answered.
    """
    check_url(url, hosts=hosts)
    for attempt in range(tries):
        try:
            return _read(url, hosts, max_bytes=max_bytes, timeout_s=timeout_s, login=login)
        except urllib.error.HTTPError as error:
            told = f"{error.code} {error.reason}"
            error.close()
            if error.code < 500 and error.code != 429:
                raise Unanswered(f"{url}: answered {told}") from None
        except (OSError, EOFError, http.client.HTTPException) as error:
            told = str(error) or type(error).__name__
        if attempt + 1 < tries:
            time.sleep(PAUSE_S * 2**attempt)
    raise Unanswered(f"{url}: no answer in {tries} tries, last: {told}")


class _Guard(urllib.request.HTTPRedirectHandler):
    def __init__(self, hosts: Sequence[str]) -> None:
        self.hosts = hosts

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:  # noqa: ANN401 - urllib's
        check_url(newurl, hosts=self.hosts)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Deadline:
    """Ends every connection of a try when its time is up, also one whose headers trickle in."""

    def __init__(self, timeout_s: float) -> None:
        self.passed = False
        self._ends = time.monotonic() + timeout_s
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(timeout_s, self._end)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def watch(self, opened: socket.socket) -> None:
        self._sockets.append(opened)
        if time.monotonic() > self._ends:
            self._end()

    def _end(self) -> None:
        self.passed = True
        for opened in self._sockets:
            with contextlib.suppress(OSError):  # closed already
                opened.shutdown(socket.SHUT_RDWR)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself: no proxy leads there.

    >>> is_loopback("localhost"), is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("example.org")
    (True, True, True, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Proxies(urllib.request.ProxyHandler):
    """The environment's proxies, but for this machine."""

    def proxy_open(self, req: Any, proxy: str, type: str) -> Any:  # noqa: A002, ANN401 - urllib's
        return None if is_loopback(urlsplit(req.full_url).hostname or "") else super().proxy_open(req, proxy, type)


class _Watched(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens connections that a deadline ends, and that lead outward where only a `*.name` allowed their host."""

    def __init__(self, hosts: Sequence[str], deadline: _Deadline) -> None:
        urllib.request.HTTPHandler.__init__(self)
        urllib.request.HTTPSHandler.__init__(self)
        self.hosts, self.deadline = hosts, deadline

    def http_open(self, req: urllib.request.Request) -> Any:  # noqa: ANN401 - urllib's
        return self.do_open(self._connection(http.client.HTTPConnection), req)

    def https_open(self, req: urllib.request.Request) -> Any:  # noqa: ANN401 - urllib's
        return self.do_open(self._connection(http.client.HTTPSConnection), req)

    def _connection(self, kind: type[http.client.HTTPConnection]) -> Any:  # noqa: ANN401 - urllib wants a class
        guard = self

        class Connection(kind):  # type: ignore[valid-type, misc]
            def connect(self) -> None:
                super().connect()
                guard.deadline.watch(self.sock)
                address = str(self.sock.getpeername()[0])
                if _fits_wildcard(self.host, guard.hosts):  # else it is a proxy, or exact
                    check_peer(address, host=self.host, port=self.port, hosts=guard.hosts)

        return Connection


def _refuse_inward(address: str, host: str) -> None:
    if not ipaddress.ip_address(address.partition("%")[0]).is_global:
        raise InputError(f"host {host} led to {address}, which is not public; name it in `hosts`")


def _read(url: str, hosts: Sequence[str], *, max_bytes: int, timeout_s: float, login: str) -> bytes:
    pieces, size = [], 0
    request = urllib.request.Request(url, headers={"User-Agent": "landslidenet"})
    if login:
        request.add_unredirected_header("Authorization", login)
    with _Deadline(timeout_s) as deadline:
        opener = urllib.request.build_opener(_Guard(hosts), _Watched(hosts, deadline), _Proxies())
        try:
            with opener.open(request, timeout=timeout_s) as answer:
                stated = answer.headers.get("Content-Length", "")
                promised = int(stated[:18]) if stated.isascii() and stated.isdigit() else 0
                if promised > max_bytes:
                    raise InputError(f"{url}: has {promised} bytes; expected {max_bytes} at most; refused")
                while piece := answer.read1(PIECE_BYTES):
                    pieces.append(piece)
                    size += len(piece)
                    if size > max_bytes:
                        raise InputError(f"{url}: has more than {max_bytes} bytes; refused")
        except (OSError, http.client.HTTPException):
            if deadline.passed:
                raise TimeoutError(f"not whole after {timeout_s:g} s") from None
            raise
        if deadline.passed:
            raise TimeoutError(f"not whole after {timeout_s:g} s")
    if size < promised:
        raise EOFError(f"cut off after {size} of {promised} bytes")
    return b"".join(pieces)


def parse_json(data: bytes, *, where: str) -> Any:  # noqa: ANN401 - any JSON value
    """The value of a JSON document; the words NaN and Infinity, and nesting deeper than 64, are refused.

    A number beyond floats (1e999) comes out infinite: whoever takes numbers checks each, so that one costs no other.

    Raises: InputError naming `where`.
    """
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error}); expected a JSON document") from None
    if _deeper(value, MAX_DEPTH):
        raise InputError(f"{where}: nested deeper than {MAX_DEPTH}; refused")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _deeper(value: object, depth: int) -> bool:
    if depth < 0:
        return True
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_deeper(part, depth - 1) for part in inner)


def parse_xml(data: bytes, *, where: str) -> ET.Element:
    """The root of an XML document; document types and entities are refused.

    Raises: InputError naming `where`.
    """
    try:
        root: ET.Element = defusedxml.ElementTree.fromstring(data, forbid_dtd=True)
    except (ET.ParseError, defusedxml.DefusedXmlException, ValueError, LookupError) as error:
        raise InputError(f"{where}: not XML that is read here ({type(error).__name__}: {error})") from None
    return root
