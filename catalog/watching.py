"""A poll of the earthquake feed: what is read, what is kept, what is told. The rules are in `catalog.quake_rules`."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

from catalog.apart import kept_apart
from catalog.areas import Area, area_of_wkt, write_event
from catalog.comcat import Feed, Quake, parse_detail, parse_feed
from catalog.files import is_url
from catalog.identities import identify
from catalog.policy import Policy
from catalog.quake_rules import Decision, Sighting, advance, wanted
from catalog.qualifying import is_candidate, qualifies
from catalog.schema import InputError, StoreError
from catalog.shaking import area_key, area_of
from catalog.watchlist import Announcement, Watched, Watchlist, load_watchlist, save_watchlist
from catalog.web import MAX_BYTES, Unanswered, fetch

LOCK: Final = ".watching"
CHECK_S: Final = 10.0
"""How long a person waits to hear that the feed does not answer."""
OVERLAP: Final = timedelta(minutes=10)
"""ComCat is asked from a little before the last good poll: its answers are cached, and clocks differ."""
MAX_DETAILS: Final = 50
"""Details that one poll asks for; the others are asked for by the next."""

Emit = Callable[[Announcement], None]
"""Tells an announcement; may be called again for one that was told before."""


@dataclass(frozen=True)
class Poll:
    """What came of a poll."""

    watchlist: Watchlist
    decisions: tuple[Decision, ...]
    announced: tuple[Announcement, ...]
    warnings: tuple[str, ...]
    """What did not answer, or was refused, each with its reason."""
    is_good: bool
    """Everything that may have happened since the last good poll was read."""
    silent: timedelta
    """Since the last good poll, or the first one."""
    failures: tuple[str, ...] = ()
    """Earthquakes that something went wrong with; the others were decided upon."""


def poll(policy: Policy, *, now: datetime, emit: Emit) -> Poll:
    """One poll: the feed is read, decided upon, kept and told, in this order; an unanswered one changes nothing.

    Stopped at any point and started again, it announces the same: what is decided is kept before it is told, and told
    again until it is acknowledged.

    Raises: StoreError for a damaged watch list, or one that another watcher works on; InputError for a policy that
    cannot be worked with.
    """
    with _alone(Path(policy.state)):
        return _poll(policy, now=now, emit=emit)


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Keeps other watchers off a state folder; the system lets go of it when the process ends, however it does."""
    state.mkdir(parents=True, exist_ok=True)
    with open(state / LOCK, "w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"state {state}: another watcher polls; wait for it, or give each its own `state`"
            ) from None
        yield


def check_feed(policy: Policy) -> None:
    """Nothing where the feed answers. Raises: Unanswered; InputError for an address that is not allowed."""
    feed = policy.earthquakes.feed
    try:
        if is_url(feed):
            fetch(feed, hosts=policy.hosts, timeout_s=CHECK_S, tries=1)
        else:
            _read(feed, policy)
    except Unanswered as error:
        raise Unanswered(f"{error}; check the network, and `feed` and `hosts` of the policy") from None


def _poll(policy: Policy, *, now: datetime, emit: Emit) -> Poll:
    state, failures = Path(policy.state), list[str]()
    before = load_watchlist(state)
    told = _Told(state, emit, failures)
    started = _started(told.deliver(before), policy, now)
    listing = _listing(policy, started, now)
    if listing.feed is None:
        if started != before:
            save_watchlist(started, state)
        return Poll(
            started, (), tuple(told.announced), listing.warnings, is_good=False, silent=_silent(started, now),
            failures=tuple(failures),
        )  # fmt: skip
    ids = _asked(policy, started, listing.feed, now)
    sightings, warnings = _sightings(policy, started, listing.feed, ids[:MAX_DETAILS], now, failures)
    if put_off := len(ids[MAX_DETAILS:]):
        warnings = (f"{len(ids)} earthquakes to ask for; {MAX_DETAILS} are, the others by the next poll", *warnings)
    is_good = listing.is_good and not put_off  # else what an outage hid would be listed no more
    after, decisions = advance(
        started, sightings, policy.earthquakes, now, listed=listing.feed.quakes, failures=failures
    )
    if is_good:
        after = after.model_copy(update={"polled_utc": now})
    if after != before:
        save_watchlist(after, state)
    after = told.deliver(after)
    return Poll(
        after, decisions, tuple(told.announced), (*listing.warnings, *warnings), is_good=is_good,
        silent=_silent(after, now), failures=tuple(failures),
    )  # fmt: skip


def _started(watchlist: Watchlist, policy: Policy, now: datetime) -> Watchlist:
    """The list with the times that a poll counts from.

    The clock may have been ahead: a poll that is said to be later than now was at a time that nobody knows. ComCat is
    then asked for all that may still be responded to, and silence is counted from now.
    """
    polled, started = watchlist.polled_utc, watchlist.started_utc or now
    if polled is not None and polled > now:
        polled, started = now - timedelta(days=policy.earthquakes.max_age_days), now
    return watchlist.model_copy(update={"polled_utc": polled, "started_utc": min(started, now)})


def _silent(watchlist: Watchlist, now: datetime) -> timedelta:
    """Since the last good poll, or since the first one."""
    return now - max(time for time in (watchlist.polled_utc, watchlist.started_utc) if time is not None)


@dataclass
class _Told:
    """Tells what is in an outbox, and what of it was told."""

    state: Path
    emit: Emit
    failures: list[str]
    announced: list[Announcement] = field(default_factory=list)

    def deliver(self, watchlist: Watchlist) -> Watchlist:
        """The list without what could be told. Of each the event's folder is there before it is told.

        What cannot be told stays in the outbox, and so does what is to be told of the same event after it.
        """
        kept: list[Announcement] = []
        for number, announcement in enumerate(watchlist.outbox, 1):
            if announcement.event_id not in {other.event_id for other in kept}:
                with kept_apart(announcement.event_id, self.failures):
                    self._tell(watchlist, announcement)
                    self.announced.append(announcement)
                    left = (*kept, *watchlist.outbox[number:])
                    save_watchlist(watchlist.model_copy(update={"outbox": left}), self.state)
                    continue
            kept.append(announcement)
        return watchlist.model_copy(update={"outbox": tuple(kept)})

    def _tell(self, watchlist: Watchlist, announcement: Announcement) -> None:
        said = {known.id: known.announced for known in watchlist.events}.get(announcement.event_id)
        if said is None:
            raise StoreError(
                f"watch list of {self.state}: announces {announcement.event_id}, which it lacks; restore it from a "
                "backup"
            )
        area = Area(area_of_wkt(said.area), said.key, said.source)
        write_event(self.state, said.event.model_copy(update={"id": announcement.event_id}), area)
        self.emit(announcement)


@dataclass(frozen=True)
class _Listing:
    feed: Feed | None
    warnings: tuple[str, ...]
    is_good: bool


def _listing(policy: Policy, watchlist: Watchlist, now: datetime) -> _Listing:
    """The feed, and after an outage what happened in it."""
    rules, warnings, feeds = policy.earthquakes, [], []
    last = watchlist.polled_utc
    catches_up = rules.query is not None and last is not None
    catches_up = catches_up and now - (last or now) > timedelta(minutes=rules.catch_up_minutes)
    is_good = False
    try:
        feeds.append(parse_feed(_read(rules.feed, policy), where=rules.feed))
        is_good = not catches_up and (bool(feeds[0].quakes) or rules.query is None)
        if not feeds[0].quakes:
            warnings.append(f"{rules.feed}: holds no earthquake")
    except (Unanswered, InputError) as error:
        warnings.append(str(error))
    if catches_up and last is not None:
        try:
            feeds.append(_since(policy, last - OVERLAP))
            is_good = True
        except (Unanswered, InputError) as error:
            warnings.append(str(error))
    quakes = tuple(quake for feed in feeds for quake in feed.quakes)
    refused = [reason for feed in feeds for reason in feed.refused]
    return _Listing(Feed(quakes, tuple(refused)) if quakes or is_good else None, (*warnings, *refused), is_good)


def _since(policy: Policy, since: datetime) -> Feed:
    rules = policy.earthquakes
    regional = (region.min_magnitude for region in rules.regions if region.min_magnitude is not None)
    lowest = min(rules.alert_min_magnitude, rules.min_magnitude, *regional)
    asked = {
        "format": "geojson",
        "updatedafter": f"{since.astimezone(UTC):%Y-%m-%dT%H:%M:%S}",
        "minmagnitude": f"{lowest:g}",
        "includedeleted": "true",
    }
    url = f"{rules.query}?{urlencode(asked)}"
    data = _read(url, policy)
    return parse_feed(data, where=url) if data else Feed((), ())  # 204: nothing happened


def _read(address: str, policy: Policy) -> bytes:
    if is_url(address):
        return fetch(address, hosts=policy.hosts)
    try:
        with open(address, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise Unanswered(f"feed {address}: cannot be read ({error})") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"feed {address}: has more than {MAX_BYTES} bytes; refused")
    return data


def _asked(policy: Policy, watchlist: Watchlist, feed: Feed, now: datetime) -> tuple[str, ...]:
    """Ids of the earthquakes whose detail is to be asked for."""
    ids = wanted(watchlist, feed.quakes, policy.earthquakes, now)
    if policy.earthquakes.query is not None:
        return ids
    listed = {quake.event.id for quake in feed.quakes}  # nobody to ask for what left the feed
    return tuple(event_id for event_id in ids if event_id in listed)


def _sightings(
    policy: Policy, watchlist: Watchlist, feed: Feed, ids: Iterable[str], now: datetime, failures: list[str]
) -> tuple[tuple[Sighting, ...], tuple[str, ...]]:
    """What is decided upon: each detail with its area, and what ComCat deleted; and what went amiss."""
    warnings: list[str] = []
    quakes: list[Quake] = []
    listed_known = _known(watchlist, feed.quakes)
    for event_id in ids:
        listed = [quake for quake in feed.quakes if quake.event.id == event_id]
        with kept_apart(event_id, failures):
            try:
                quakes.append(_detail(event_id, listed, policy))
            except (Unanswered, InputError) as error:
                warnings.append(str(error))
                quakes += [quake for quake in listed if _stands_in(quake, listed_known[event_id], policy)]
    quakes += [quake for quake in feed.quakes if quake.deleted and listed_known[quake.event.id]]
    known = _known(watchlist, [*quakes, *feed.quakes])
    sightings = []
    for quake in quakes:
        with kept_apart(quake.event.id, failures):
            area, passed = _area(quake, known[quake.event.id], policy, now)
            sightings.append(Sighting(quake, area))
            warnings += [f"{quake.event.id}: {reason}" for reason in (*quake.refused, *passed)]
    return tuple(sightings), tuple(warnings)


def _known(watchlist: Watchlist, quakes: Iterable[Quake]) -> dict[str, tuple[Watched, ...]]:
    """What is on the watch list of each document's earthquake, by the document's id."""
    return {i: told.known for told in identify(watchlist, quakes) for i in told.members}


def _detail(event_id: str, listed: list[Quake], policy: Policy) -> Quake:
    """The detail of an event: the document itself may be one; without a query service the summary stands for it."""
    query = policy.earthquakes.query
    if listed and (query is None or listed[-1].detailed):
        return listed[-1]
    asked = {"eventid": event_id, "format": "geojson", "includedeleted": "true"}
    url = f"{query}?{urlencode(asked)}"
    quake = parse_detail(_read(url, policy), where=url)
    if event_id not in quake.ids:
        raise InputError(f"{url}: answered with another earthquake, {quake.event.id}")
    return quake


def _stands_in(quake: Quake, known: Sequence[Watched], policy: Policy) -> bool:
    """Whether a summary must do while the detail does not come: from then on its earthquake is followed."""
    return all(k.announced is None for k in known) and is_candidate(quake, policy.earthquakes)


def _area(quake: Quake, known: Sequence[Watched], policy: Policy, now: datetime) -> tuple[Area | None, tuple[str, ...]]:
    """The area, where a decision needs it: a new one of an earthquake that qualifies."""
    rules = policy.earthquakes
    is_announced = any(k.announced is not None for k in known)
    age = now - (quake.event.time_utc or now)
    if quake.deleted or not qualifies(quake, rules)[0]:
        return None, ()
    if not is_announced and age > timedelta(days=rules.max_age_days) and not known:
        return None, ()  # too old: declined without asking for its map
    if is_announced and any(k.area_key == area_key(quake, rules) for k in known):
        return None, ()
    return area_of(quake, rules, lambda url: _read_map(url, policy))


def _read_map(url: str, policy: Policy) -> bytes:
    return fetch(url, hosts=policy.hosts)
