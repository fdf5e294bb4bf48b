"""Imagery that is looked for: several STAC APIs in order, what each answered, and the scenes that it lists."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlencode

import pystac
import shapely
from pystac_client import Client
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from shapely.geometry.base import BaseGeometry

from catalog.apart import kept_apart
from catalog.candidates import Scene, checked_scene, with_own, without_duplicates
from catalog.grid import bbox_of
from catalog.policy import ImageryPolicy, StacSource
from catalog.schema import InputError
from catalog.secrets import redact
from catalog.sensors import sensor
from catalog.web import Unanswered, fetch, parse_json

logger = logging.getLogger(__name__)

PAGE_ITEMS: Final = 100
MAX_PAGES: Final = 50
TRIES: Final = 2
MAX_TOLD: Final = 20
NONSENSE: Final = (pystac.STACError, pystac.STACTypeError, APIError, ValueError, KeyError, TypeError, AttributeError)
"""What pystac-client raises of an answer that is no STAC."""


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    scenes: tuple[Scene, ...]
    told: tuple[str, ...] = ()
    """Which APIs were passed over, which items were refused or left out, and why."""
    passed_over: tuple[str, ...] = ()
    """Addresses of the APIs that did not answer: what they do not list says nothing."""


def search_imagery(
    policy: ImageryPolicy, *, area: BaseGeometry, start: datetime, end: datetime, hosts: Sequence[str]
) -> Found:
    """Scenes over an area (longitude, latitude) taken from `start` to `end`, each once, clear enough.

    Every source is asked, in order. One that does not answer, or not with STAC, is passed over and told of.

    Raises: Unanswered when no source answered; InputError when the policy has none.
    """
    if not policy.sources:
        raise InputError("imagery: got no STAC source; expected one; add `imagery: sources:` to the policy")
    scenes: list[Scene] = []
    told: list[str] = []
    passed: list[str] = []
    silent: list[str] = []
    for source in policy.sources:
        answer: tuple[list[Any], list[str]] | None = None
        with kept_apart(f"{source.url} is passed over", passed):
            try:
                bbox = bbox_of(shapely.get_coordinates(area).T)
                query = {"bbox": bbox, "datetime": [start, end], "limit": PAGE_ITEMS}
                answer = _ask(source, policy=policy, hosts=hosts, **query)
            except NONSENSE as error:
                raise InputError(_short(error)) from None
        if answer is None:
            silent.append(source.url)
            continue
        told += answer[1]
        for value in answer[0]:
            with kept_apart(f"an item of {source.url} is refused", told):
                scenes.append(_scene_of(value, source, area=area, start=start, end=end, hosts=hosts))
    if len(passed) == len(policy.sources):
        raise Unanswered("imagery: no STAC API answered: " + "; ".join(passed))
    clear = [scene for scene in scenes if (scene.cloud_percent or 0) <= policy.max_cloud_percent]
    if len(clear) < len(scenes):
        told.append(f"{len(scenes) - len(clear)} scenes have more than {policy.max_cloud_percent:g} % cloud")
    once = without_duplicates(scene for scene in clear if scene.id not in policy.exclude)
    more = [f"and {len(told) - MAX_TOLD} more"] if len(told) > MAX_TOLD else []
    sentences = tuple(redact(sentence) for sentence in (*passed, *told[:MAX_TOLD], *more))
    for sentence in sentences:
        logger.warning("%s", sentence)
    return Found(once, sentences, tuple(silent))


def is_withdrawn(scene: Scene, policy: ImageryPolicy, *, hosts: Sequence[str]) -> bool:
    """True when the API that listed a scene answers, and knows it no more.

    Raises: Unanswered when it does not answer, so that nothing is known.
    """
    place = (scene.source, scene.item["collection"])
    source = next((s for s in policy.sources if (s.url, s.collection) == place), None)
    if source is None:
        return False  # the source was taken out of the policy: that says nothing of its scenes
    try:
        listed, _ = _ask(source, policy=policy, hosts=hosts, ids=[scene.id], limit=1)
    except (InputError, *NONSENSE) as error:
        raise Unanswered(f"{source.url}: {_short(error)}") from None
    return not listed


def _short(error: Exception) -> str:
    return f"{str(error) or type(error).__name__:.300}"


# --- asking ----------------------------------------------------------------------------------------------------------


class _GuardedIO(StacApiIO):
    """pystac-client over `catalog.web`: allowed hosts, limits of size and time, GET, and strict JSON."""

    def __init__(self, *, hosts: Sequence[str], timeout_s: float) -> None:
        super().__init__(max_retries=None)
        self.hosts, self.timeout_s = hosts, timeout_s

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
        return fetch(url, hosts=self.hosts, timeout_s=self.timeout_s, tries=TRIES).decode("utf-8")

    def json_loads(self, txt: str, *args: Any, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401 - pystac's
        """The object of a JSON text."""
        value = parse_json(txt.encode(), where="STAC answer")
        if not isinstance(value, dict):
            raise InputError(f"STAC answer: got a {type(value).__name__}; expected an object")
        return value


def _ask(
    source: StacSource,
    *,
    policy: ImageryPolicy,
    hosts: Sequence[str],
    **query: Any,  # noqa: ANN401 - pystac-client's
) -> tuple[list[Any], list[str]]:
    """Items of a source as it sent them, and what was left of them."""
    deadline = time.monotonic() + 4 * policy.timeout_s
    guarded = _GuardedIO(hosts=with_own(source.url, hosts), timeout_s=policy.timeout_s)
    client = Client.open(source.url, stac_io=guarded)
    search = client.search(method="GET", collections=[source.collection], max_items=None, **query)
    listed: list[Any] = []
    for number, page in enumerate(search.pages_as_dicts(), 1):
        if not isinstance(page.get("features"), list):
            raise InputError("STAC answer: got no list of features; expected an ItemCollection")
        listed += page["features"]
        more = any(link.get("rel") == "next" for link in page.get("links") or [])
        if len(listed) > policy.max_items or (more and number >= MAX_PAGES):
            told = f"{source.url} lists more than {min(len(listed), policy.max_items)} items: the first are looked at"
            return listed[: policy.max_items], [told]
        if time.monotonic() > deadline:
            raise Unanswered(f"pages did not end within {4 * policy.timeout_s:g} s")
    return listed, []


def _scene_of(
    value: object, source: StacSource, *, area: BaseGeometry, start: datetime, end: datetime, hosts: Sequence[str]
) -> Scene:
    """The scene of an item that is what was asked for. Raises: InputError when it is not."""
    scene = checked_scene(value, source=source, entry=sensor(source.sensor), hosts=with_own(source.url, hosts))
    if not start <= scene.time_utc <= end:
        raise InputError(f"STAC item {scene.id}: taken {scene.time_utc:%Y-%m-%d}, which was not asked for")
    if not scene.footprint.intersects(area):
        raise InputError(f"STAC item {scene.id}: does not touch the area")
    return scene
