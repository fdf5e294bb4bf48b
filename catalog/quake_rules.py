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

from catalog.apart import kept_apart
from catalog.areas import Area, area_of_wkt, changed_share
from catalog.comcat import Quake
from catalog.config import Event
from catalog.identities import Told, identify, rank
from catalog.policy import QuakePolicy
from catalog.qualifying import is_candidate, may_qualify, qualifies
from catalog.schema import StoreError
from catalog.shaking import is_circle
from catalog.watchlist import Announced, Announcement, State, Watched, Watchlist

EARTH_KM: Final = 6371.0
FOLLOWED_AGE: Final = 0.1
"""An event is asked for again after a tenth of its age: often while it is young, daily after ten days."""
FORGET_DAYS: Final = 30.0
PARTED_FOR: Final = timedelta(hours=3)
"""How long an id that an earthquake no longer goes by is asked for."""


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


def wanted(watchlist: Watchlist, quakes: Sequence[Quake], policy: QuakePolicy, now: datetime) -> tuple[str, ...]:
    """Ids of the earthquakes whose detail is to be asked for, sorted: new or updated candidates, and followed ones."""
    told = identify(watchlist, quakes)
    ids: set[str] = set()
    seen: set[str] = set()
    for one in told:
        if one.quake.deleted:
            ids |= _doubted(watchlist, one)
            continue
        newer = any(not _is_over(known, policy, now) and _is_news(one, known, now) for known in one.known)
        if newer or (not one.known and is_candidate(one.quake, policy)):
            ids.add(one.quake.event.id)
            seen |= one.ids
        if newer:  # of an entry whose own id it does not go by: is that one another earthquake?
            ids |= {known.id for known in one.known if known.id not in one.ids}
    for followed in watchlist.events:
        if _is_due(followed, policy, now) and not seen & set(followed.ids):
            ids.add(followed.event.id)
    named = {i for one in told for i in one.ids}
    return tuple(sorted(ids | (watchlist.parted.keys() - named)))


def _is_news(told: Told, known: Watched, now: datetime) -> bool:
    """Whether documents say more of an entry than it took in last; when that was is not known where it is after now."""
    if told.quake.updated_utc == known.updated_utc:
        return told.ids | {known.id} != set(known.ids)
    return told.quake.updated_utc > known.updated_utc or known.updated_utc > now


def _doubted(watchlist: Watchlist, deleted: Told) -> set[str]:
    """What followed earthquakes go by now, of which another id was deleted since."""
    return {
        known.event.id
        for known in watchlist.events
        if known.state in ("waiting", "active")
        and deleted.ids & set(known.ids)
        and not deleted.known
        and deleted.quake.updated_utc > known.updated_utc
    }


def _age(known: Watched, now: datetime) -> timedelta:
    return now - (known.event.time_utc or min(known.first_seen_utc, now))


def _is_over(known: Watched, policy: QuakePolicy, now: datetime) -> bool:
    """Whether an earthquake is too old to be followed."""
    return _age(known, now) > timedelta(days=policy.follow_days)


def _is_due(known: Watched, policy: QuakePolicy, now: datetime) -> bool:
    """Whether an earthquake is followed and its turn has come; one that lay in the future, once its time has come.

    When it was asked for last is not known where that is after now.
    """
    if known.state not in ("waiting", "active", "declined", "closed") or _is_over(known, policy, now):
        return False
    if known.state == "closed" or known.checked_utc > now:
        return True
    if known.state == "declined":
        return known.checked_utc < (known.event.time_utc or known.first_seen_utc) <= now
    return now - known.checked_utc >= FOLLOWED_AGE * _age(known, now)


def advance(
    watchlist: Watchlist,
    sightings: Sequence[Sighting],
    policy: QuakePolicy,
    now: datetime,
    *,
    listed: Sequence[Quake] = (),
    failures: list[str] | None = None,
) -> tuple[Watchlist, tuple[Decision, ...]]:
    """The watch list after a poll, and what was decided; what is to be announced is in its outbox.

    `listed` documents are not decided upon, but say which ids are of one earthquake. What goes wrong with one is added
    to `failures` and leaves it as it was. Neither the order of the sightings nor a poll that came before changes what
    comes out.

    Raises: StoreError when something goes wrong and there are no `failures` to add it to.
    """
    failed: list[str] = []
    events = {known.id: _reopened(known, policy, now) for known in watchlist.events}
    outbox, touched, parted = list(watchlist.outbox), set(), dict(watchlist.parted)
    current = watchlist.model_copy(update={"events": tuple(events.values())})
    told = identify(current, [*(sighting.quake for sighting in sightings), *listed])
    for one in told:
        sighting = _sighting_of(one, sightings)
        if sighting is None:
            continue
        with kept_apart(one.quake.event.id, failed):
            known, merged = _survivor(one.known)
            after, announcement = _step(known, sighting, policy, now)
            if after is None:
                continue
            parted |= dict.fromkeys(_lost(known, after), now)
            events |= {other.id: other for other in merged}
            events = _renamed(_without(events, one), known, after)
            touched.add(after.id)
            outbox += [announcement] if announcement is not None else []
    kept = (_closed(known, policy, now) for known in events.values() if known.id in touched or _is_kept(known, now))
    ordered = tuple(sorted(kept, key=lambda known: (known.first_seen_utc, known.id)))
    if failures is not None:
        failures += failed
    elif failed:
        raise StoreError("; ".join(failed))
    ids = {i for one in told for i in one.ids}
    parted = {i: since for i, since in parted.items() if i not in ids and abs(now - since) < PARTED_FOR}
    after_all = watchlist.model_copy(update={"events": ordered, "outbox": tuple(outbox), "parted": parted})
    return after_all, _decisions(watchlist, after_all)


def _reopened(known: Watched, policy: QuakePolicy, now: datetime) -> Watched:
    """An entry that was closed before its time: the clock was ahead."""
    if known.state != "closed" or _is_over(known, policy, now):
        return known
    state: State = "waiting" if known.announced is None else "active"
    return _in(known, state, "it was closed before its time: the clock was ahead")


def _sighting_of(told: Told, sightings: Iterable[Sighting]) -> Sighting | None:
    """The sighting of an earthquake that counts, with its ids; None where it was not looked at."""
    members = [sighting for sighting in sightings if sighting.quake.event.id in told.members]
    latest = {m.quake.event.id: m for m in sorted(members, key=lambda m: (m.quake.updated_utc, m.quake.detailed))}
    best = max(latest.values(), key=lambda sighting: rank(sighting.quake), default=None)
    if best is None or best.quake.deleted != told.quake.deleted:
        return None
    return replace(best, quake=replace(best.quake, ids=told.ids))


def _lost(known: Watched | None, after: Watched) -> set[str]:
    """Ids that an entry went by before, and no longer does."""
    return set(known.ids) - set(after.ids) if known is not None else set()


def _without(events: Mapping[str, Watched], told: Told) -> dict[str, Watched]:
    """The entries; those that do not go on with an earthquake no longer go by its ids, but for their own."""
    own = {known.id for known in told.known}
    return {
        key: known
        if key in own or not told.ids & set(known.ids) - {key}
        else known.model_copy(update={"ids": tuple(i for i in known.ids if i == key or i not in told.ids)})
        for key, known in events.items()
    }


def _renamed(events: Mapping[str, Watched], known: Watched | None, after: Watched) -> dict[str, Watched]:
    """The entries with one that was decided upon; it may go by another id than before."""
    old = known.id if known is not None else after.id
    kept = {
        other.id: other.model_copy(update={"merged_into": after.id}) if other.merged_into == old else other
        for other in events.values()
        if other.id != old
    }
    return {**kept, after.id: after}


def _survivor(known: Sequence[Watched]) -> tuple[Watched | None, list[Watched]]:
    """The earthquake that others turned out to be, and those others, merged into it."""
    if not known:
        return None, []
    order = sorted(known, key=lambda k: (k.announced is None, k.state == "closed", k.first_seen_utc, k.id))
    first, others = order[0], order[1:]
    reason = f"ComCat says that it is the same earthquake as {first.id}"
    merged = [k.model_copy(update={"state": "merged", "reason": reason, "merged_into": first.id}) for k in others]
    ids = tuple(sorted({*first.ids, *(k.id for k in others)}))
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
    elif quake.updated_utc < known.updated_utc <= now or (known.state == "closed" and not quake.deleted):
        return known, None  # an older document, or one too late
    if quake.deleted:
        taken = known.model_copy(update={"updated_utc": min(quake.updated_utc, now), "checked_utc": now})
        return _in(taken, "deleted", "ComCat deleted it: it was no earthquake, or is another one"), None
    own = quake.event.id if known.announced is None else known.id
    taken = known.model_copy(
        update={
            "id": own,
            "ids": tuple(sorted({own, *quake.ids})),
            "first_seen_utc": min(known.first_seen_utc, now),
            "updated_utc": quake.updated_utc,
            "checked_utc": now,
            "event": quake.event,
            "merged_into": None,
        }
    )
    if taken.announced is None:
        return _unannounced(taken, sighting, policy, now)
    return _announced(taken, taken.announced, sighting, policy, parted_from=known.merged_into)


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
    known: Watched, last: Announced, sighting: Sighting, policy: QuakePolicy, *, parted_from: str | None
) -> tuple[Watched, Announcement | None]:
    """An earthquake that was announced stays so; what matters of a change is announced as its next revision."""
    area = sighting.area
    if area is not None and (area.geometry.is_empty or (area.is_circle and not is_circle(last.key))):
        area = None  # a map that was there is not given up for a circle
    changes = _changes(known, last, area, policy)
    if known.state == "deleted":
        changes = ["ComCat has it again", *changes]
    if parted_from is not None:
        changes = [f"ComCat says that it is not {parted_from}", *changes]
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
    if before.magnitude is None and after.magnitude is not None:
        changes.append(f"its magnitude is known: {after.magnitude:g}")
    if before.magnitude is not None and after.magnitude is not None:  # an unknown one says nothing
        if round(abs(after.magnitude - before.magnitude), 6) >= policy.revised_magnitude:
            changes.append(f"magnitude {before.magnitude:g} became {after.magnitude:g}")
    moved_km = _distance_km(before, after)
    if moved_km >= policy.revised_km:
        changes.append(f"the epicentre moved {moved_km:.0f} km")
    share = changed_share(area_of_wkt(last.area), area.geometry) if area is not None else 0.0
    if area is not None and share >= policy.revised_area:
        changes.append(f"{share:.0%} of its area differs ({area.source}, {area.km2:,.0f} km2)")
    return changes


def _distance_km(a: Event, b: Event) -> float:
    """Great-circle distance, haversine formula; 0 where a place is not known."""
    if a.latitude is None or a.longitude is None or b.latitude is None or b.longitude is None:
        return 0.0
    phi_a, phi_b = math.radians(a.latitude), math.radians(b.latitude)
    d_lambda = math.radians(b.longitude - a.longitude)
    h = math.sin((phi_b - phi_a) / 2) ** 2 + math.cos(phi_a) * math.cos(phi_b) * math.sin(d_lambda / 2) ** 2
    return 2 * EARTH_KM * math.asin(math.sqrt(min(1.0, h)))


def _announce(known: Watched, said: Announced, reason: str) -> tuple[Watched, Announcement]:
    after = _in(known, "active", reason).model_copy(update={"announced": said, "area_key": said.key})
    told = Announcement(event_id=known.id, title=known.event.title, revision=said.revision, reason=reason)
    return after, told


def _closed(known: Watched, policy: QuakePolicy, now: datetime) -> Watched:
    if known.state not in ("waiting", "active") or not _is_over(known, policy, now):
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
