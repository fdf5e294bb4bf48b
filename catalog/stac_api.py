"""A STAC API is asked here and nowhere else: over `catalog.web`, so that redirects too lead to allowed hosts only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import pystac
from pystac_client import Client
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO

from catalog.schema import InputError
from catalog.web import Unanswered, fetch, parse_json

PAGE_ITEMS: Final = 100
MAX_PAGES: Final = 50
TRIES: Final = 2
PATIENCE: Final = 4
"""Longest that all pages may take, in `timeout_s` of one answer."""
NONSENSE: Final = (pystac.STACError, pystac.STACTypeError, APIError, ValueError, KeyError, TypeError, AttributeError)
"""What pystac-client raises of an answer that is no STAC."""


def ask_api(
    url: str,
    *,
    collection: str,
    hosts: Sequence[str],
    timeout_s: float,
    max_items: int = PAGE_ITEMS * MAX_PAGES,
    limit: int = PAGE_ITEMS,
    login: str = "",
    **query: Any,  # noqa: ANN401 - pystac-client's
) -> tuple[list[Any], bool]:
    """Items of an API as it sent them, `max_items` at most, and whether it has more.

    timeout_s : of one answer, whole. login : the value of an Authorization header, for the API's own host only.

    Raises: InputError for an address that is not allowed; Unanswered without an answer; one of `NONSENSE` for one that
    is no STAC.
    """
    deadline = time.monotonic() + PATIENCE * timeout_s
    client = Client.open(url, stac_io=_GuardedIO(url, hosts=hosts, timeout_s=timeout_s, login=login))
    search = client.search(method="GET", collections=[collection], max_items=None, limit=limit, **query)
    listed: list[Any] = []
    for number, page in enumerate(search.pages_as_dicts(), 1):
        if not isinstance(page.get("features"), list):
            raise InputError("STAC answer: got no list of features; expected an ItemCollection")
        listed += page["features"]
        more = any(link.get("rel") == "next" for link in page.get("links") or [])
        if len(listed) > max_items or (more and number >= MAX_PAGES):
            return listed[:max_items], True
        if time.monotonic() > deadline:
            raise Unanswered(f"pages did not end within {PATIENCE * timeout_s:g} s")
    return listed, False


class _GuardedIO(StacApiIO):
    """pystac-client over `catalog.web`: allowed hosts, limits of size and time, GET, and strict JSON."""

    def __init__(self, url: str, *, hosts: Sequence[str], timeout_s: float, login: str) -> None:
        super().__init__(max_retries=None)
        self.own, self.hosts, self.timeout_s, self.login = urlsplit(url).netloc, hosts, timeout_s, login

    def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:  # noqa: ANN401 - pystac's
        """The answer; a link to a file is never opened."""
        if isinstance(source, pystac.Link):
            link = source.to_dict()
            return self.request(str(link["href"]), method=link.get("method"))
        return self.request(str(source), *args, **kwargs)

    def request(
        self,
        href: str,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> str:
        """The text at an address."""
        if (method or "GET").upper() != "GET":
            raise InputError(f"{href:.200}: asks to be read by {method!r:.20}; expected GET")
        url = href + (("&" if "?" in href else "?") + urlencode(parameters) if parameters else "")
        login = self.login if urlsplit(url).netloc == self.own else ""
        answer = fetch(url, hosts=self.hosts, timeout_s=self.timeout_s, tries=TRIES, login=login)
        return answer.decode("utf-8")

    def json_loads(self, txt: str, *args: Any, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401 - pystac's
        """The object of a JSON text."""
        value = parse_json(txt.encode(), where="STAC answer")
        if not isinstance(value, dict):
            raise InputError(f"STAC answer: got a {type(value).__name__}; expected an object")
        return value
