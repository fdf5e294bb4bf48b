"""Which documents are of which earthquake on the watch list: ids join and part as ComCat says now. Pure.

An id is of the newest document that names it. An entry of the list goes on with the earthquake that its own id is of;
by the other ids it went by only as long as nobody says where its own id is now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from catalog.comcat import Quake
from catalog.watchlist import Watched, Watchlist

Rank = tuple[bool, datetime, int, str]


@dataclass(frozen=True)
class Told:
    """One earthquake as documents tell of it."""

    quake: Quake
    """Its newest document; one that is not deleted goes before one that is: the other was merged into it."""
    ids: frozenset[str]
    """Every id it goes by now."""
    members: frozenset[str]
    """Preferred ids of its documents."""
    known: tuple[Watched, ...]
    """Entries of the watch list that go on with it; several turn out to be one."""


def identify(watchlist: Watchlist, quakes: Iterable[Quake]) -> tuple[Told, ...]:
    """The earthquakes that documents tell of, in order of time, each with the entries that it goes on with.

    An entry goes on with one earthquake at most.
    """
    groups = _groups(quakes)
    known = _matched(watchlist, groups)
    told = [Told(g.quake, g.ids, g.members, tuple(known.get(g.quake.event.id, ()))) for g in groups]
    return tuple(sorted(told, key=lambda t: (_seconds(t.quake), t.quake.event.id)))


def rank(quake: Quake) -> Rank:
    """Of two documents the one that ranks higher counts: not deleted, then newer, then of more ids."""
    return not quake.deleted, quake.updated_utc, len(quake.ids), quake.event.id


def _seconds(quake: Quake) -> float:
    return quake.event.time_utc.timestamp() if quake.event.time_utc is not None else float("inf")


def _groups(quakes: Iterable[Quake]) -> list[Told]:
    """The documents by earthquake, without entries: one is of the other's whose newer document names its id."""
    ordered = sorted(quakes, key=lambda quake: (quake.updated_utc, quake.detailed))
    latest = {quake.event.id: quake for quake in ordered}
    owner = {i: q.event.id for q in sorted(latest.values(), key=rank) for i in {*q.ids, q.event.id}}

    def root(event_id: str) -> str:
        while owner[event_id] != event_id:  # ends: an owner ranks higher
            event_id = owner[event_id]
        return event_id

    ids: dict[str, set[str]] = {}
    for name, event_id in owner.items():
        ids.setdefault(root(event_id), set()).add(name)
    return [
        Told(latest[first], frozenset(named), frozenset(named & latest.keys()), known=())
        for first, named in sorted(ids.items())
    ]


def _matched(watchlist: Watchlist, groups: Sequence[Told]) -> dict[str, list[Watched]]:
    """Entries by the preferred id of the earthquake that they go on with."""
    living = {i: group for group in groups if not group.quake.deleted for i in group.ids}
    found: dict[str, list[Watched]] = {}
    entries = [known for known in watchlist.events if known.state != "merged"]
    for known in entries:
        if known.id in living:
            found.setdefault(living[known.id].quake.event.id, []).append(known)
    for known in entries:
        group = _renamed(known, living) if known.id not in living else None
        if group is not None:
            found.setdefault(group.quake.event.id, [known])
    for known in watchlist.events:  # what was merged, and is told of apart from what it was merged into
        if known.state == "merged" and known.id in living:
            found.setdefault(living[known.id].quake.event.id, [known])
    alive = {known.id for told in found.values() for known in told}
    left = [known for known in entries if known.id not in alive]
    for quake in (group.quake for group in groups if group.quake.deleted):
        found[quake.event.id] = [known for known in left if _is_deletion_of(quake, known)]
    return found


def _renamed(known: Watched, living: Mapping[str, Told]) -> Told | None:
    """The earthquake that goes by other ids of an entry whose own id nobody names; before all what it went by last."""
    shared = [living[i] for i in known.ids if i in living]
    return max(shared, key=lambda group: (known.event.id in group.ids, rank(group.quake)), default=None)


def _is_deletion_of(deleted: Quake, known: Watched) -> bool:
    """Whether a deletion is of what an entry goes by now: a twin's, which was merged into it, is not."""
    if deleted.event.id == known.event.id:
        return True
    return deleted.event.id == known.id and known.event.id in deleted.ids
