"""What there is to be done for an event: its imagery is searched, and a plan made for each of its areas.

A shell that knows the catalogue; both the watcher and the response ask it. Only `detection_of` writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from geopandas import GeoSeries
from shapely import Polygon, box
from shapely.geometry.base import BaseGeometry

from catalog.apart import kept_apart
from catalog.candidates import (
    Scene,
    as_collection,
    check_addresses,
    compare,
    from_saved,
    is_newer,
    listed_again,
    with_own,
)
from catalog.config import DEFAULT_BLOCK_PX, DEFAULT_MODEL, Event
from catalog.folders import number_of
from catalog.grid import snap_grid, utm_epsg
from catalog.imagery import Found, is_withdrawn, search_imagery
from catalog.pixel_size import check_size
from catalog.policy import Policy
from catalog.responses import (
    AREA_FILE,
    Part,
    Response,
    Version,
    folder_of,
    observed_by,
    open_event,
    read_area,
    read_items,
    read_response,
    write_inputs,
)
from catalog.schema import InputError, StoreError
from catalog.secrets import redact
from catalog.sensors import SENSORS
from catalog.web import Unanswered
from tasks.planning import MIN_GAIN, Ground, Plan, choose_sensor, imagery_digest, plan_post, plan_pre, response_key
from tasks.revisits import expected_next

MIN_OUTLINE_SHARE: Final = 1e-6
"""Part of a block below which the area only touches it."""

FINEST_DEFAULT_GSD_M: Final = 10.0


@dataclass(frozen=True)
class PartOutlook:
    """What there is to be done for one area of an event."""

    part: Part
    sensor: str | None
    """None where nothing was found."""
    post: Plan[Scene]
    pre: Plan[Scene]
    grounds: tuple[Ground, ...]
    last: Version | None
    model: str
    imagery: str
    """Digest of the planned scenes."""
    key: str
    """Idempotency key of the version that they would make."""
    reasons: Mapping[str, tuple[str, ...]]
    """By block that would get better."""
    told: tuple[str, ...] = ()
    """What the search met."""

    @property
    def improves(self) -> bool:
        """True when another version would be better than the last."""
        return bool(self.reasons) and bool(self.post.scenes)

    @property
    def why(self) -> str:
        """One sentence: what is to be done, or why nothing is."""
        if self.improves:
            counts = ", ".join(f"{count} {reason}" for reason, count in self.counted().items())
            return f"{len(self.reasons)} of {len(self.grounds)} blocks get better: {counts}"
        if self.last is None:
            return "no post-event imagery yet that shows the area"
        number = self.last.number
        if not self.post.scenes:
            return f"every scene of v{number} is withdrawn and there is no other: v{number} stays"
        return f"nothing that is better than v{number}; {self.post.left_out} scenes would add nothing"

    @property
    def sides(self) -> tuple[tuple[str, Plan[Scene]], tuple[str, Plan[Scene]]]:
        """The two plans by name."""
        return ("post", self.post), ("pre", self.pre)

    def counted(self) -> dict[str, int]:
        """Blocks by reason."""
        reasons = [reason for why in self.reasons.values() for reason in why]
        return {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}


@dataclass(frozen=True)
class Outlook:
    """What there is to be done for an event."""

    event: Event
    response: Response
    parts: tuple[PartOutlook, ...]
    expected: tuple[str, ...]
    """Imagery that is expected next, a sentence a sensor."""
    failed: tuple[str, ...] = ()
    """Areas that could not be looked at, each with the reason."""

    @property
    def told(self) -> tuple[str, ...]:
        """What the search met, each once."""
        return tuple(dict.fromkeys(redact(sentence) for part in self.parts for sentence in part.told))

    @property
    def improves(self) -> bool:
        """True when at least one area would get better."""
        return any(part.improves for part in self.parts)


def look(policy: Policy, event_id: str, *, now: datetime) -> Outlook:
    """The outlook of an event as the STAC APIs answer now.

    One of several areas that cannot be looked at is passed over, and told of in `failed`.

    Raises: InputError for an event without folder, time or area; Unanswered when no API answers; StoreError when the
    last version's files are damaged, or no area can be looked at.
    """
    event, parts = open_event(policy.state, event_id)
    if event.time_utc is None:
        raise InputError(f"event {event_id}: event.json has no time_utc; expected when it was, to tell pre from post")
    response = read_response(policy.state, event_id) or Response(event_id=event_id, waiting_since=now)
    seen: list[Scene] = []
    outlooks, failed = _look_at_each(policy, event.time_utc, parts, response, now=now, seen=seen)
    sensors = {source.sensor: SENSORS[source.sensor].long_name for source in policy.imagery.sources}
    return Outlook(event, response, outlooks, expected_next(sensors, seen, now=now), failed)


def _look_at_each(
    policy: Policy, time_utc: datetime, parts: Sequence[Part], response: Response, *, now: datetime, seen: list[Scene]
) -> tuple[tuple[PartOutlook, ...], tuple[str, ...]]:
    if len(parts) == 1:  # its failure is the event's
        return (_look_at(policy, time_utc, parts[0], response, now=now, seen=seen),), ()
    outlooks: list[PartOutlook] = []
    failed: list[str] = []
    for part in parts:
        with kept_apart(part.name, failed):
            outlooks.append(_look_at(policy, time_utc, part, response, now=now, seen=seen))
    if not outlooks:
        raise StoreError("; ".join(failed))
    return tuple(outlooks), tuple(failed)


def _look_at(
    policy: Policy, time_utc: datetime, part: Part, response: Response, *, now: datetime, seen: list[Scene]
) -> PartOutlook:
    imagery, last = policy.imagery, response.latest(part.name)
    latest = min(now, time_utc + timedelta(days=imagery.days_after))
    ask = {"area": part.outline, "hosts": policy.hosts}
    post = search_imagery(imagery, start=time_utc, end=max(latest, time_utc), **ask)
    pre = search_imagery(imagery, start=time_utc - timedelta(days=imagery.days_before), end=time_utc, **ask)
    seen += [*post.scenes, *pre.scenes]
    order = tuple(dict.fromkeys(source.sensor for source in imagery.sources))
    grounds = grounds_of(policy, part, post.scenes, last)
    name = choose_sensor(grounds, post.scenes, order=order, used=last.sensor if last else None)
    told = [*post.told, *(sentence for sentence in pre.told if sentence not in post.told)]
    used_post, used_pre = (
        _used(policy, last, name, side, found, told) for side, found in (("post", post), ("pre", pre))
    )
    post_plan = plan_post(grounds, used=used_post.scenes, **_changes(policy, used_post, post, name, told))
    pre_plan = _plan_pre(policy, grounds, post_plan, used_pre, pre, name, told)
    digest = imagery_digest(post_plan.scenes, pre_plan.scenes)
    model = str(policy.detection.get("model", DEFAULT_MODEL))
    return PartOutlook(
        part, name, post_plan, pre_plan, grounds, last, model, digest,
        key=response_key(event_id=part.name, area=part.digest, imagery=digest, model=model),
        reasons=_reasons(grounds, post_plan, pre_plan, last=last, part=part, model=model),
        told=tuple(told),
    )  # fmt: skip


def _reasons(
    grounds: Sequence[Ground], post: Plan[Scene], pre: Plan[Scene], *, last: Version | None, part: Part, model: str
) -> dict[str, tuple[str, ...]]:
    """Why each block would get better: by imagery, a revised area, or another model."""
    if last is None:
        return dict(post.reasons)
    changed = part.outline.symmetric_difference(read_area(Path(last.items) / AREA_FILE))
    reasons: dict[str, tuple[str, ...]] = {}
    for ground in grounds:
        why: list[str] = [*post.reasons.get(ground.id, ()), *pre.reasons.get(ground.id, ())]
        if changed.intersection(ground.outline).area > MIN_GAIN * ground.outline.area:
            why.append("area revised")
        if last.model != model:
            why.append("another model")
        if why:
            reasons[ground.id] = tuple(why)
    return reasons


@dataclass(frozen=True)
class _Used:
    """Scenes of the last version, as they were listed last, and ids of those that may be read no more."""

    scenes: tuple[Scene, ...] = ()
    refused: frozenset[str] = frozenset()


def _used(policy: Policy, last: Version | None, sensor: str | None, side: str, found: Found, told: list[str]) -> _Used:
    """Scenes of the last version, where the next rests on the same sensor."""
    if last is None or last.sensor != sensor:
        return _Used()
    scenes: list[Scene] = []
    refused: set[str] = set()
    for item in read_items(last.items, side):  # type: ignore[arg-type]
        saved = from_saved(item, sensor_name=last.sensor)
        fresh = listed_again(saved, found.scenes)
        if fresh is not None and not is_newer(fresh, saved):  # a later processing is a correction
            scenes.append(fresh)
            continue
        scenes.append(saved)
        if fresh is None and not _may_be_read(saved, policy, told):
            refused.add(saved.id)
    return _Used(tuple(scenes), frozenset(refused))


def _may_be_read(scene: Scene, policy: Policy, told: list[str]) -> bool:
    """Whether the policy allows a scene's addresses. Its API's own host counts as long as the policy names that."""
    named = any(source.url == scene.source for source in policy.imagery.sources)
    try:
        check_addresses(scene, hosts=with_own(scene.source, policy.hosts) if named else policy.hosts)
    except InputError as error:
        told.append(f"{scene.id} is used no more: {error}")
        return False
    except Unanswered as error:
        told.append(f"whether {scene.id} may be read is not known: {error}")
    return True


def _changes(policy: Policy, used: _Used, found: Found, sensor: str | None, told: list[str]) -> dict[str, Any]:
    """What was found, as a plan takes it: other pictures, corrections of used ones, and which of those are no more."""
    corrections, others = compare(used.scenes, [scene for scene in found.scenes if scene.sensor == sensor])
    listed = {(scene.source, scene.id) for scene in found.scenes}
    unlisted = [s for s in used.scenes if s.id not in corrections and (s.source, s.id) not in listed]
    withdrawn = {s.id for s in unlisted if s.id in used.refused or _is_gone(s, policy, found, told)}
    return {"found": others, "corrections": corrections, "withdrawn": withdrawn}


def _is_gone(scene: Scene, policy: Policy, found: Found, told: list[str]) -> bool:
    """True when the API says that it knows a scene no more; where it does not answer, the scene stays."""
    if scene.id in policy.imagery.exclude:
        told.append(f"{scene.id} is excluded by the policy")
        return True
    if scene.source in found.passed_over or any(scene.same_view(other) for other in found.scenes):
        return False  # nothing is known, or another API lists the same picture
    try:
        gone = is_withdrawn(scene, policy.imagery, hosts=policy.hosts)
    except Unanswered as error:
        told.append(f"whether {scene.id} was withdrawn is not known: {error}")
        return False
    told += [f"{scene.id} is withdrawn: {scene.source} lists it no more"] if gone else []
    return gone


def _plan_pre(
    policy: Policy,
    grounds: Sequence[Ground],
    post: Plan[Scene],
    used: _Used,
    found: Found,
    sensor: str | None,
    told: list[str],
) -> Plan[Scene]:
    if not post.scenes:
        return Plan(())
    changes = _changes(policy, used, found, sensor, told)
    return plan_pre(grounds, reference=post.scenes[0], used=used.scenes, **changes)


def grounds_of(policy: Policy, part: Part, found: Iterable[Scene], last: Version | None) -> tuple[Ground, ...]:
    """The blocks of an area, as a detection would cut it, and what of each the last version did not see."""
    epsg = part.epsg or utm_epsg(part.outline.centroid.x, part.outline.centroid.y)
    stated = policy.detection.get("gsd_m", policy.detection.get("gsd"))
    gsd_m = float(stated) if stated else min((scene.gsd_m for scene in found), default=FINEST_DEFAULT_GSD_M)
    block_px = int(policy.detection.get("block_px", policy.detection.get("block", DEFAULT_BLOCK_PX)))
    outline = GeoSeries([part.outline], crs=4326).to_crs(epsg).iloc[0]
    grid = check_size(snap_grid(outline.bounds, epsg=epsg, gsd_m=gsd_m, block_px=block_px), stated=stated)
    boxes = [box(*grid.geobox_of(grid.window(block)).boundingbox.bbox) for block in grid.blocks]
    inner = GeoSeries([_dense(b, block_px * gsd_m / 8) for b in boxes], crs=epsg).to_crs(4326)
    seen = observed_by(last.folder) if last else Polygon()
    grounds = []
    for block, whole in zip(grid.blocks, inner, strict=True):
        ground = whole.intersection(part.outline)
        if ground.area > MIN_OUTLINE_SHARE * whole.area:
            grounds.append(Ground(block.id, ground, ground.difference(seen)))
    return tuple(grounds)


def _dense(outline: BaseGeometry, step_m: float) -> BaseGeometry:
    """The outline with vertices along its sides: they bend in longitude and latitude."""
    return outline.segmentize(step_m)


def inputs_of(policy: Policy, event_id: str, found: PartOutlook) -> Path:
    """The folder of what a version is made of: one a key, so that what a run was told never changes under it."""
    return (folder_of(policy.state, event_id) / "imagery" / found.key[:16]).resolve()


def detection_of(policy: Policy, event: Event, found: PartOutlook) -> dict[str, Any]:
    """The configuration of the detection that makes the planned version; its items and area are saved first."""
    folder = inputs_of(policy, event.id, found)
    write_inputs(
        folder, post=as_collection(found.post.scenes), pre=as_collection(found.pre.scenes), area=found.part.outline
    )
    imagery = {name: [str(folder / f"{name}.json")] for name, plan in found.sides if plan.scenes}
    return {
        **policy.detection,
        **imagery,
        "name": found.part.name,
        "aoi": str(folder / AREA_FILE),
        "hosts": allowed_hosts(policy),
        "event": event.model_dump(mode="json"),
        "sensor": found.sensor,
        "root": policy.root,
        "out": policy.out,
    }


def allowed_hosts(policy: Policy) -> tuple[str, ...]:
    """Hosts that imagery may come from: the operator's, and those of the STAC APIs."""
    return (*policy.hosts, *dict.fromkeys(urlsplit(source.url).netloc for source in policy.imagery.sources))


def version_of(policy: Policy, event_id: str, found: PartOutlook, *, product: str, now: datetime) -> Version:
    """The record of the planned version, now that its product is published."""
    return Version(
        part=found.part.name,
        number=number_of(product),
        key=found.key,
        imagery=found.imagery,
        model=found.model,
        sensor=str(found.sensor),
        folder=str(Path(product).resolve()),
        items=str(inputs_of(policy, event_id, found)),
        post=tuple(scene.id for scene in found.post.scenes),
        pre=tuple(scene.id for scene in found.pre.scenes),
        reasons=found.counted(),
        published_utc=now,
    )
