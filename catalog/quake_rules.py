"""What becomes of an earthquake on the watch list: pure rules of a poll, the policy and the time.

`advance` takes a poll and the time, and gives the next watch list with its decisions; the same poll again changes
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from catalog.areas import Area, area_of_wkt, changed_share
from catalog.comcat import Quake
from catalog.config import Event
from catalog.policy import QuakePolicy
from catalog.shaking import is_circle
from catalog.watchlist import Announced, Announcement, State, Watched, Watchlist

EARTH_KM: Final = 6371.0
FOLLOWED_AGE: Final = 0.1
"""An event is asked for again after a tenth of its age: often while it is young, daily after ten days."""
FORGET_DAYS: Final = 30.0


@dataclass(frozen=True)
class Sighting:
    """An earthquake as a poll found it; `area` and what it was made of are given where it qualifies and is new."""

    quake: Quake
    area: Area | None = None


@dataclass(frozen=True)
class Decision:
    """What was decided of an earthquake, and why."""

    event_id: str
    title: str
    state: State
    reason: str


@dataclass(frozen=True)
class _Bar:
    """What a place asks of an earthquake."""

    magnitude: float
    depth_km: float
    where: str
    ignored: bool


def _bar(event: Event, policy: QuakePolicy) -> _Bar:
    place = (event.longitude or 0.0, event.latitude or 0.0)
    region = next((region for region in policy.regions if region.holds(*place)), None)
    if region is None:
        return _Bar(policy.min_magnitude, policy.max_depth_km, "", ignored=False)
    return _Bar(
        policy.min_magnitude if region.min_magnitude is None else region.min_magnitude,
        policy.max_depth_km if region.max_depth_km is None else region.max_depth_km,
        f" of region {region.name}",
        region.ignore,
    )


def is_candidate(quake: Quake, policy: QuakePolicy) -> bool:
    """Whether a summary is worth its detail: it is large enough, or may be with an alert. The others are not kept."""
    magnitude = quake.event.magnitude
    if magnitude is None or quake.deleted:
        return False
    alerted = quake.has_ground_failure or quake.pager in policy.pager_alerts
    return magnitude >= _bar(quake.event, policy).magnitude or (alerted and magnitude >= policy.alert_min_magnitude)


def qualifies(quake: Quake, policy: QuakePolicy) -> tuple[bool, str]:
    """Whether an earthquake is one to respond to, and why (not)."""
    event, bar = quake.event, _bar(quake.event, policy)
    if quake.kind != "earthquake":
        return False, f"it is no earthquake but of kind {quake.kind!r}"
    if event.magnitude is None:
        return False, "it has no magnitude"
    if bar.ignored:
        return False, f"what happens{bar.where} is ignored"
    if event.depth_km is not None and event.depth_km > bar.depth_km:
        return False, f"depth {event.depth_km:g} km is over {bar.depth_km:g} km{bar.where}"
    if event.magnitude >= bar.magnitude:
        return True, f"magnitude {event.magnitude:g} is at least {bar.magnitude:g}{bar.where}"
    alert = _alert(quake, policy)
    if alert and event.magnitude >= policy.alert_min_magnitude:
        return True, f"magnitude {event.magnitude:g} with {alert} is at least {policy.alert_min_magnitude:g}"
    return False, f"magnitude {event.magnitude:g} is under {bar.magnitude:g}{bar.where}, and no alert says otherwise"


def may_qualify(quake: Quake, policy: QuakePolicy) -> bool:
    """Whether the detail of a summary could still say what qualifies it: the colour of its landslide alert."""
    if quake.detailed or policy.query is None or not quake.has_ground_failure:
        return False
    return any(qualifies(replace(quake, landslide=colour), policy)[0] for colour in policy.landslide_alerts)


def _alert(quake: Quake, policy: QuakePolicy) -> str:
    if quake.landslide in policy.landslide_alerts:
        return f"a {quake.landslide} landslide alert"
    return f"a {quake.pager} PAGER alert" if quake.pager in policy.pager_alerts else ""


def wanted(watchlist: Watchlist, quakes: Sequence[Quake], policy: QuakePolicy, now: datetime) -> tuple[str, ...]:
    """Ids of the earthquakes whose detail is to be asked for, sorted: new or updated candidates, and followed ones."""
    ids: set[str] = set()
    seen: set[str] = set()
    for quake in quakes:
        known = watchlist.find(quake.ids)
        newer = any(k.state != "closed" and quake.updated_utc > k.updated_utc for k in known)
        if not quake.deleted and (newer or (not known and is_candidate(quake, policy))):
            ids.add(quake.event.id)
            seen |= quake.ids
    for followed in watchlist.events:
        if _is_due(followed, now) and not seen & set(followed.ids):
            ids.add(followed.event.id)
    return tuple(sorted(ids))


def _is_due(known: Watched, now: datetime) -> bool:
    """Whether an earthquake is followed and its turn has come; one that lay in the future, once its time has come."""
    struck = known.event.time_utc or known.first_seen_utc
    if known.state == "declined":
        return known.checked_utc < struck <= now
    return known.state in ("waiting", "active") and now - known.checked_utc >= FOLLOWED_AGE * (now - struck)


def advance(
    watchlist: Watchlist, sightings: Sequence[Sighting], policy: QuakePolicy, now: datetime
) -> tuple[Watchlist, tuple[Decision, ...]]:
    """The watch list after a poll, and what was decided; what is to be announced is in its outbox.

    Neither the order of the sightings nor a poll that came before changes what comes out.
    """
    events = {known.id: known for known in watchlist.events}
    outbox = list(watchlist.outbox)
    touched = set()
    for sighting in _one_each(watchlist, sightings):
        current = watchlist.model_copy(update={"events": tuple(events.values())})
        known, merged = _survivor(current.find(sighting.quake.ids))
        events |= {other.id: other for other in merged}
        after, announcement = _step(known, sighting, policy, now)
        if after is not None:
            events = _renamed(events, known, after)
            touched.add(after.id)
        if announcement is not None:
            outbox.append(announcement)
    kept = (_closed(known, policy, now) for known in events.values() if known.id in touched or _is_kept(known, now))
    ordered = tuple(sorted(kept, key=lambda known: (known.first_seen_utc, known.id)))
    after_all = watchlist.model_copy(update={"events": ordered, "outbox": tuple(outbox)})
    return after_all, _decisions(watchlist, after_all)


def _renamed(events: Mapping[str, Watched], known: Watched | None, after: Watched) -> dict[str, Watched]:
    """The entries with one that was decided upon; it may go by another id than before."""
    old = known.id if known is not None else after.id
    kept = {
        other.id: other.model_copy(update={"merged_into": after.id}) if other.merged_into == old else other
        for other in events.values()
        if other.id != old
    }
    return {**kept, after.id: after}


def _one_each(watchlist: Watchlist, sightings: Iterable[Sighting]) -> list[Sighting]:
    """One sighting an earthquake: those that share an id, with one another or on the list, are one."""
    groups: list[tuple[set[str], list[Sighting]]] = []
    for sighting in sorted(sightings, key=lambda s: (s.quake.event.time_utc, s.quake.event.id, s.quake.updated_utc)):
        ids = set(sighting.quake.ids)
        ids |= {i for known in watchlist.find(ids) for i in known.ids}
        joined = [group for group in groups if group[0] & ids]
        groups = [group for group in groups if not group[0] & ids]
        members = [member for group in joined for member in group[1]]
        groups.append((ids.union(*(group[0] for group in joined)), [*members, sighting]))
    return [_told_last(members) for _, members in groups]


def _told_last(members: Sequence[Sighting]) -> Sighting:
    """The sighting that counts, with the ids of all.

    Of an id the latest; then what is not deleted (the other was merged into it), then what goes by the most ids.
    """
    latest = {m.quake.event.id: m for m in sorted(members, key=lambda s: (s.quake.updated_utc, s.quake.detailed))}
    best = max(
        latest.values(), key=lambda s: (not s.quake.deleted, len(s.quake.ids), s.quake.updated_utc, s.quake.event.id)
    )
    ids = frozenset().union(*(member.quake.ids for member in members))
    return replace(best, quake=replace(best.quake, ids=ids))


def _survivor(known: Sequence[Watched]) -> tuple[Watched | None, list[Watched]]:
    """The earthquake that others turned out to be, and those others, merged into it."""
    if not known:
        return None, []
    order = sorted(known, key=lambda k: (k.announced is None, k.state == "closed", k.first_seen_utc, k.id))
    first, others = order[0], order[1:]
    ids = tuple(sorted({i for k in known for i in k.ids}))
    reason = f"ComCat says that it is the same earthquake as {first.id}"
    merged = [k.model_copy(update={"state": "merged", "reason": reason, "merged_into": first.id}) for k in others]
    return first.model_copy(update={"ids": ids}), merged


def _step(
    known: Watched | None, sighting: Sighting, policy: QuakePolicy, now: datetime
) -> tuple[Watched | None, Announcement | None]:
    """What a sighting makes of what is known: the next entry of the list, and what is to be announced."""
    quake = sighting.quake
    if known is None:
        if quake.deleted or not (quake.detailed or is_candidate(quake, policy)):
            return None, None
        known = Watched(
            id=quake.event.id, ids=(), state="waiting", reason="", first_seen_utc=now, updated_utc=quake.updated_utc,
            checked_utc=now, event=quake.event,
        )  # fmt: skip
    elif quake.updated_utc < known.updated_utc or (known.state == "closed" and not quake.deleted):
        return known, None  # an older document, or one too late
    taken = known.model_copy(
        update={
            "ids": tuple(sorted({*known.ids, *quake.ids})),
            "updated_utc": quake.updated_utc,
            "checked_utc": now,
            "event": known.event if quake.deleted else quake.event,
        }
    )
    if quake.deleted:
        return _in(taken, "deleted", "ComCat deleted it: it was no earthquake, or is another one"), None
    if known.announced is None:
        return _unannounced(taken.model_copy(update={"id": quake.event.id}), sighting, policy, now)
    return _announced(taken, known.announced, sighting, policy)


def _in(known: Watched, state: State, reason: str) -> Watched:
    return known.model_copy(update={"state": state, "reason": reason})


def _unannounced(
    known: Watched, sighting: Sighting, policy: QuakePolicy, now: datetime
) -> tuple[Watched, Announcement | None]:
    quake, area = sighting.quake, sighting.area
    time_utc = known.event.time_utc or known.first_seen_utc
    fits, why = qualifies(quake, policy)
    if not fits and not may_qualify(quake, policy):
        return _in(known, "declined", why), None
    if time_utc > now + timedelta(minutes=policy.max_future_minutes):
        return _in(known, "declined", f"its time, {time_utc:%Y-%m-%d %H:%M} UTC, lies in the future"), None
    late_days = (known.first_seen_utc - time_utc) / timedelta(days=1)
    if late_days > policy.max_age_days:
        return _in(known, "declined", f"first seen {late_days:.0f} days later, over {policy.max_age_days:g} days"), None
    if not fits:
        return _in(known, "waiting", "its landslide alert is in its detail, which did not come yet"), None
    if area is None or (area.is_circle and now - time_utc < timedelta(hours=policy.shakemap_wait_hours)):
        until = time_utc + timedelta(hours=policy.shakemap_wait_hours)
        return _in(known, "waiting", f"{why}; no ShakeMap yet, waiting until {until:%Y-%m-%d %H:%M} UTC"), None
    if area.geometry.is_empty:
        return _in(known, "declined", f"{why}, but no ground is left of {area.source}"), None
    reason = f"{why}; its area is {area.source}, {area.km2:,.0f} km2"
    said = Announced(revision=1, event=known.event, area=area.geometry.wkt, key=area.key, source=area.source)
    return _announce(known, said, reason)


def _announced(
    known: Watched, last: Announced, sighting: Sighting, policy: QuakePolicy
) -> tuple[Watched, Announcement | None]:
    """An earthquake that was announced stays so; what matters of a change is announced as its next revision."""
    area = sighting.area
    if area is not None and (area.geometry.is_empty or (area.is_circle and not is_circle(last.key))):
        area = None  # a map that was there is not given up for a circle
    changes = _changes(known, last, area, policy)
    if known.state == "deleted":
        changes = ["ComCat has it again", *changes]
    if area is not None:
        known = known.model_copy(update={"area_key": area.key})
    if not changes:
        return _in(known, "active", known.reason), None
    said = last.model_copy(update={"revision": last.revision + 1, "event": known.event})
    if area is not None:
        said = said.model_copy(update={"area": area.geometry.wkt, "key": area.key, "source": area.source})
    return _announce(known, said, f"revision {said.revision}: " + "; ".join(changes))


def _changes(known: Watched, last: Announced, area: Area | None, policy: QuakePolicy) -> list[str]:
    before, after, changes = last.event, known.event, []
    magnitudes = (before.magnitude or 0.0, after.magnitude or 0.0)
    if round(abs(magnitudes[1] - magnitudes[0]), 6) >= policy.revised_magnitude:
        changes.append(f"magnitude {magnitudes[0]:g} became {magnitudes[1]:g}")
    moved_km = _distance_km(before, after)
    if moved_km >= policy.revised_km:
        changes.append(f"the epicentre moved {moved_km:.0f} km")
    share = changed_share(area_of_wkt(last.area), area.geometry) if area is not None else 0.0
    if area is not None and share >= policy.revised_area:
        changes.append(f"{share:.0%} of its area differs ({area.source}, {area.km2:,.0f} km2)")
    return changes


def _distance_km(a: Event, b: Event) -> float:
    """Great-circle distance, haversine formula."""
    phi_a, phi_b = math.radians(a.latitude or 0.0), math.radians(b.latitude or 0.0)
    d_lambda = math.radians((b.longitude or 0.0) - (a.longitude or 0.0))
    h = math.sin((phi_b - phi_a) / 2) ** 2 + math.cos(phi_a) * math.cos(phi_b) * math.sin(d_lambda / 2) ** 2
    return 2 * EARTH_KM * math.asin(math.sqrt(min(1.0, h)))


def _announce(known: Watched, said: Announced, reason: str) -> tuple[Watched, Announcement]:
    after = _in(known, "active", reason).model_copy(update={"announced": said, "area_key": said.key})
    told = Announcement(event_id=known.id, title=known.event.title, revision=said.revision, reason=reason)
    return after, told


def _closed(known: Watched, policy: QuakePolicy, now: datetime) -> Watched:
    age = now - (known.event.time_utc or known.first_seen_utc)
    if known.state not in ("waiting", "active") or age <= timedelta(days=policy.follow_days):
        return known
    return _in(known, "closed", f"followed for {policy.follow_days:g} days")


def _is_kept(known: Watched, now: datetime) -> bool:
    """Whether a declined earthquake is still worth remembering: ComCat no longer lists it by itself."""
    return known.state != "declined" or now - known.checked_utc < timedelta(days=FORGET_DAYS)


def _decisions(before: Watchlist, after: Watchlist) -> tuple[Decision, ...]:
    said = {known.id: (known.state, known.reason) for known in before.events}
    return tuple(
        Decision(known.id, known.event.title, known.state, known.reason)
        for known in after.events
        if said.get(known.id) != (known.state, known.reason)
    )
