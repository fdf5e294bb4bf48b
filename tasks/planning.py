"""Which scenes a version of an inventory is made of, in which order, and which blocks they improve (docs/adr/0011).

Pure: geometries in longitude and latitude, shares of a block, no clock and no file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final, Generic, Literal, Protocol, TypeVar

from shapely import union_all
from shapely.geometry.base import BaseGeometry

MIN_GAIN: Final = 0.02
"""Share of a block that a scene must be expected to show anew."""

NEW_BELOW: Final = 0.05
"""Observed share of a block below which what a scene adds is called newly observed, not clearer."""

FINER: Final = 0.75
"""A pixel is finer when its side is at most this part of the other's."""

UNKNOWN_CLOUD: Final = 0.5
"""Cloud cover, share, expected of a scene that does not say it."""

CLOUD_STEP_PERCENT: Final = 20.0
"""Scenes whose cloud covers fall in the same step are equally clear."""

TAKES_OVER: Final = 0.25
"""Share of the area that another sensor must show more of, to be used instead without finer pixels."""

MAX_PRE: Final = 12

Reason = Literal["newly observed", "clearer", "finer pixels", "scene corrected", "scene withdrawn", "before the event"]


class Scene(Protocol):
    """What is known of a scene before its pixels are read (`catalog.candidates.Scene`)."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def sensor(self) -> str: ...  # noqa: D102
    @property
    def time_utc(self) -> datetime: ...  # noqa: D102
    @property
    def footprint(self) -> BaseGeometry: ...  # noqa: D102
    @property
    def cloud_percent(self) -> float | None: ...  # noqa: D102
    @property
    def gsd_m(self) -> float: ...  # noqa: D102
    @property
    def state(self) -> str: ...  # noqa: D102
    @property
    def orbit(self) -> float | None: ...  # noqa: D102
    @property
    def sun_elevation_deg(self) -> float | None: ...  # noqa: D102
    @property
    def sun_azimuth_deg(self) -> float | None: ...  # noqa: D102


AnyScene = TypeVar("AnyScene", bound=Scene)


@dataclass(frozen=True)
class Ground:
    """A block of the area, and what of it the last version did not see."""

    id: str
    outline: BaseGeometry
    """The block within the area."""
    missing: BaseGeometry
    """All of it, where there is no version yet."""

    @property
    def observed(self) -> float:
        """Observed share, 0-1."""
        return float(1.0 - self.missing.area / self.outline.area)


@dataclass(frozen=True)
class Plan(Generic[AnyScene]):
    """The scenes of one side of the event in order of preference, and why each block gets better by them."""

    scenes: tuple[AnyScene, ...]
    reasons: Mapping[str, tuple[Reason, ...]] = field(default_factory=dict)
    """By block that improves."""
    left_out: int = 0
    """Scenes that would add nothing."""


def imagery_digest(post: Sequence[Scene], pre: Sequence[Scene]) -> str:
    """Digest (sha256, hex) of which scenes are used, in which state and order."""
    told = [[[scene.id, scene.state] for scene in scenes] for scenes in (post, pre)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def response_key(*, event_id: str, area: str, imagery: str, model: str) -> str:
    """Idempotency key (sha256, hex): one version an event, area, imagery and model. `area`: digest of its outline."""
    return hashlib.sha256(json.dumps([event_id, area, imagery, model]).encode()).hexdigest()


# --- what a scene is expected to show --------------------------------------------------------------------------------


def clear_share(scene: Scene) -> float:
    """Share of a scene that is expected to be seen, 0-1."""
    return 1.0 - (UNKNOWN_CLOUD if scene.cloud_percent is None else scene.cloud_percent / 100)


def expected_share(grounds: Sequence[Ground], scenes: Sequence[Scene]) -> float:
    """Share of the area that scenes are expected to show together, 0-1: clouds of different days are independent."""
    total = sum(ground.outline.area for ground in grounds)
    seen = 0.0
    for ground in grounds:
        hidden = 1.0
        for scene in scenes:
            hidden *= 1.0 - _covers(scene, ground.outline) * clear_share(scene)
        seen += (1.0 - hidden) * ground.outline.area
    return float(seen / total)


def _covers(scene: Scene, geometry: BaseGeometry) -> float:
    """Share of a geometry that lies in a scene's footprint."""
    return float(scene.footprint.intersection(geometry).area / geometry.area) if geometry.area else 0.0


def choose_sensor(
    grounds: Sequence[Ground], found: Sequence[Scene], *, order: Sequence[str], used: str | None = None
) -> str | None:
    """The sensor that a version rests on: a run reads one. None when nothing was found.

    The one in use stays, until another is finer and expected to show as much as was observed, or shows
    `TAKES_OVER` of the area more. Without one: the sensor that is expected to show most of the area, within 5 % the
    finer one, then the policy's order.
    """
    shares = {name: expected_share(grounds, [s for s in found if s.sensor == name]) for name in order}
    finest = {name: min((s.gsd_m for s in found if s.sensor == name), default=float("inf")) for name in order}
    best = [name for name in order if shares[name] > 0 and shares[name] >= max(shares.values()) - 0.05]
    first = min(best, key=lambda name: (finest[name], order.index(name)), default=None)
    if used is None or first is None or first == used:
        return used or first
    total = sum(ground.outline.area for ground in grounds)
    observed = sum(ground.observed * ground.outline.area for ground in grounds) / total
    finer = finest[first] <= FINER * finest.get(used, float("inf")) and shares[first] >= observed
    return first if finer or shares[first] >= observed + TAKES_OVER else used


# --- after the event -------------------------------------------------------------------------------------------------


def plan_post(
    grounds: Sequence[Ground],
    *,
    used: Sequence[AnyScene],
    found: Sequence[AnyScene],
    corrections: Mapping[str, AnyScene] = MappingProxyType({}),
    withdrawn: Collection[str] = (),
) -> Plan[AnyScene]:
    """Post-event scenes in order, and the blocks that they improve on the last version.

    used : the last version's, in its order: they keep it, so that blocks without anything new keep their pixels.
    found : candidates. corrections : by id of a used scene, the later processing that takes its place.
    withdrawn : ids of used scenes that are no more.
    """
    reasons: dict[str, list[Reason]] = {}
    kept = [corrections.get(scene.id, scene) for scene in used if scene.id not in withdrawn]
    _touch(reasons, grounds, [scene for scene in used if scene.id in withdrawn], "scene withdrawn")
    _touch(reasons, grounds, [corrections[s.id] for s in used if s.id in corrections], "scene corrected")
    bare = union_all([scene.footprint for scene in used if scene.id in withdrawn])
    missing = {g.id: g.missing.union(g.outline.intersection(bare)) if bare.area else g.missing for g in grounds}
    hope = dict.fromkeys(missing, 1.0)
    known = {scene.id for scene in (*used, *kept)}
    fresh = sorted((scene for scene in found if scene.id not in known), key=_preference)
    added = [s for s in fresh if _adds(s, grounds, missing=missing, hope=hope, kept=kept, reasons=reasons)]
    order = kept
    for scene in added:
        order = _placed(order, scene)
    told = {block: tuple(dict.fromkeys(why)) for block, why in sorted(reasons.items())}
    return Plan(tuple(order), told, len(fresh) - len(added))


def _preference(scene: Scene) -> tuple[float, float, datetime]:
    """Finer first, then clearer in coarse steps, then the nearest to the event."""
    return scene.gsd_m, (1.0 - clear_share(scene)) * 100 // CLOUD_STEP_PERCENT, scene.time_utc


def _touch(
    reasons: dict[str, list[Reason]], grounds: Sequence[Ground], scenes: Sequence[Scene], reason: Reason
) -> None:
    for ground in grounds:
        if any(scene.footprint.intersection(ground.outline).area > 0 for scene in scenes):
            reasons.setdefault(ground.id, []).append(reason)


def _adds(
    scene: Scene,
    grounds: Sequence[Ground],
    *,
    missing: Mapping[str, BaseGeometry],
    hope: dict[str, float],
    kept: Sequence[Scene],
    reasons: dict[str, list[Reason]],
) -> bool:
    """True when a scene improves a block: its reason is noted, and less is hoped for from the next scenes there."""
    adds = False
    for ground in grounds:
        if not scene.footprint.intersects(ground.outline):
            continue
        hidden = missing[ground.id]
        shown = _covers(scene, hidden) * clear_share(scene)
        gain = shown * hidden.area / ground.outline.area * hope[ground.id]
        finer = _is_finer(scene, ground, kept)
        if gain < MIN_GAIN and not finer:
            continue
        adds = True
        hope[ground.id] *= 1.0 - shown
        if gain >= MIN_GAIN:
            reasons.setdefault(ground.id, []).append("newly observed" if ground.observed < NEW_BELOW else "clearer")
        if finer:
            reasons.setdefault(ground.id, []).append("finer pixels")
    return adds


def _is_finer(scene: Scene, ground: Ground, kept: Sequence[Scene]) -> bool:
    there = [other.gsd_m for other in kept if _covers(other, ground.outline) >= MIN_GAIN]
    shows = _covers(scene, ground.outline) * clear_share(scene) >= MIN_GAIN
    return bool(there) and shows and scene.gsd_m <= FINER * min(there)


def _placed(order: Sequence[AnyScene], scene: AnyScene) -> list[AnyScene]:
    """The scene before the first that is coarser than it, else last."""
    place = next((i for i, other in enumerate(order) if scene.gsd_m <= FINER * other.gsd_m), len(order))
    return [*order[:place], scene, *order[place:]]


# --- before the event ------------------------------------------------------------------------------------------------


def unlikeness(scene: Scene, reference: Scene) -> float:
    """How unlike the post-event reference a pre-event scene looks: the sum of what differs, each in its own unit.

    Units: 30 days of season, 10 degrees of sun elevation, 20 degrees of sun azimuth, another relative orbit, 25 % of
    cloud, one year of age. What a scene does not say counts nothing.
    """
    days = abs(scene.time_utc.timetuple().tm_yday - reference.time_utc.timetuple().tm_yday)
    cost = min(days, 365 - days) / 30 + (1.0 - clear_share(scene)) / 0.25
    cost += (reference.time_utc - scene.time_utc) / timedelta(days=365)
    if scene.sun_elevation_deg is not None and reference.sun_elevation_deg is not None:
        cost += abs(scene.sun_elevation_deg - reference.sun_elevation_deg) / 10
    if scene.sun_azimuth_deg is not None and reference.sun_azimuth_deg is not None:
        turn = abs(scene.sun_azimuth_deg - reference.sun_azimuth_deg) % 360
        cost += min(turn, 360 - turn) / 20
    if scene.orbit is not None and reference.orbit is not None:
        cost += scene.orbit != reference.orbit
    return float(cost)


def plan_pre(
    grounds: Sequence[Ground],
    *,
    reference: Scene,
    used: Sequence[AnyScene],
    found: Sequence[AnyScene],
    corrections: Mapping[str, AnyScene] = MappingProxyType({}),
    withdrawn: Collection[str] = (),
) -> Plan[AnyScene]:
    """Pre-event scenes in order: those in use, then the likest to the reference, as long as they show more ground."""
    reasons: dict[str, list[Reason]] = {}
    kept = [corrections.get(scene.id, scene) for scene in used if scene.id not in withdrawn]
    changed = [scene for scene in used if scene.id in withdrawn] + [
        corrections[scene.id] for scene in used if scene.id in corrections
    ]
    known = {scene.id for scene in (*used, *kept)}
    fresh = sorted((s for s in found if s.id not in known), key=lambda s: unlikeness(s, reference))
    hidden = {ground.id: 1.0 for ground in grounds}
    for scene in kept:
        _show(scene, grounds, hidden)
    added: list[AnyScene] = []
    for scene in fresh:
        if len(kept) + len(added) < MAX_PRE and _show(scene, grounds, hidden):
            added.append(scene)
    _touch(reasons, grounds, [*changed, *added], "before the event")
    told = {block: tuple(why) for block, why in sorted(reasons.items())}
    return Plan((*kept, *added), told, len(fresh) - len(added))


def _show(scene: Scene, grounds: Sequence[Ground], hidden: dict[str, float]) -> bool:
    """True when a scene shows a block's hidden part; the share that stays hidden is written down."""
    shown = {ground.id: _covers(scene, ground.outline) * clear_share(scene) for ground in grounds}
    if all(hidden[block] * share < MIN_GAIN for block, share in shown.items()):
        return False
    for block, share in shown.items():
        hidden[block] *= 1.0 - share
    return True
