"""Imagery that is looked for: several STAC APIs in order, what each answered, and the scenes that it lists."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import shapely
from shapely.geometry.base import BaseGeometry

from catalog.apart import kept_apart
from catalog.candidates import Scene, checked_scene, with_own, without_duplicates
from catalog.grid import bbox_of
from catalog.policy import ImageryPolicy, StacSource
from catalog.schema import InputError
from catalog.secrets import redact
from catalog.sensors import sensor
from catalog.stac_api import NONSENSE, ask_api
from catalog.web import Unanswered

logger = logging.getLogger(__name__)

MAX_TOLD: Final = 20


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
        answer: tuple[list[Any], bool] | None = None
        with kept_apart(f"{source.url} is passed over", passed):
            try:
                bbox = bbox_of(shapely.get_coordinates(area).T)
                query = {"bbox": bbox, "datetime": [start, end]}
                answer = _ask(source, policy=policy, hosts=hosts, **query)
            except NONSENSE as error:
                raise InputError(_short(error)) from None
        if answer is None:
            silent.append(source.url)
            continue
        if answer[1]:
            told.append(f"{source.url} lists more than {len(answer[0])} items: the first are looked at")
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


def _ask(
    source: StacSource,
    *,
    policy: ImageryPolicy,
    hosts: Sequence[str],
    **query: Any,  # noqa: ANN401 - pystac-client's
) -> tuple[list[Any], bool]:
    """Items of a source as it sent them, and whether it has more."""
    return ask_api(
        source.url,
        collection=source.collection,
        hosts=with_own(source.url, hosts),
        timeout_s=policy.timeout_s,
        max_items=policy.max_items,
        **query,
    )


def _short(error: Exception) -> str:
    return f"{str(error) or type(error).__name__:.300}"


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
