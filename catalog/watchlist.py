"""The watch list: what is known of each earthquake and what is still to be told, and the file that it is kept in.

What is to be announced is in the list's outbox from the moment it is decided until it is acknowledged. The rules are
in `catalog.quake_rules`.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, ValidationError

from catalog.config import Event, Strict, is_name
from catalog.files import write_whole
from catalog.schema import StoreError
from catalog.validation import reasons

FILE: Final = "watchlist.json"
FORMAT: Final = 1
NAMESPACE: Final = uuid.UUID("6a1e3a52-6c0c-5b39-9d5c-0f6a4a9c5d21")

State = Literal["waiting", "active", "declined", "deleted", "merged", "closed"]


class Announced(Strict):
    """What the last announcement of an event said."""

    revision: int
    event: Event
    area: str
    """WKT, degrees."""
    key: str
    """What the area was made of."""
    source: str
    """The same in words."""


class Watched(Strict):
    """One earthquake on the list."""

    id: str
    """ComCat's preferred id until it is announced; from then on it names the event's folder and products for good."""
    ids: tuple[str, ...]
    """What it goes by as ComCat says now, and its own."""
    state: State
    reason: str
    first_seen_utc: datetime
    updated_utc: datetime
    """ComCat's update time of what was last taken in."""
    checked_utc: datetime
    event: Event
    area_key: str = ""
    """What the latest area was made of: the same key, the same area."""
    announced: Announced | None = None
    merged_into: str | None = None


class Announcement(Strict):
    """What is told of an event: at least once, under the same id each time."""

    event_id: str
    title: str
    revision: int
    reason: str

    @property
    def uuid(self) -> uuid.UUID:
        """The same for the same revision of the same event."""
        return uuid.uuid5(NAMESPACE, f"{self.event_id}:{self.revision}")


class Watchlist(Strict):
    """Everything that the watcher remembers."""

    format: int = FORMAT
    polled_utc: datetime | None = None
    """The last good poll."""
    started_utc: datetime | None = None
    """The first poll, good or not."""
    events: tuple[Watched, ...] = ()
    outbox: tuple[Announcement, ...] = ()
    parted: dict[str, datetime] = Field(default_factory=dict)
    """Ids that an earthquake no longer goes by, and since when: they are asked for, they may be another one."""

    def active(self) -> tuple[Watched, ...]:
        """Those that imagery is looked for."""
        return tuple(known for known in self.events if known.state == "active")


def load_watchlist(state: Path) -> Watchlist:
    """The watch list of a state folder; an empty one where there is none yet.

    Raises: StoreError when the file is damaged or of another format.
    """
    path = state / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Watchlist()
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"watch list {path}: cannot be read ({error}); restore it from a backup") from None
    try:
        watchlist = Watchlist.model_validate_json(text)
    except ValidationError as error:
        raise StoreError(
            f"watch list {path}: does not fit ({error.error_count()} errors, first: {reasons(error, Watchlist)[0]}); "
            "restore it from a backup, or move it away: what the feed still lists is announced again"
        ) from None
    if watchlist.format != FORMAT:
        raise StoreError(f"watch list {path}: has format {watchlist.format}; expected {FORMAT}; update landslidenet")
    if odd := [known.id for known in watchlist.events if not is_name(known.id)]:
        raise StoreError(f"watch list {path}: {odd[0]!r:.80} is no event id; restore it from a backup")
    return watchlist


def save_watchlist(watchlist: Watchlist, state: Path) -> Path:
    """Write the watch list, whole or not at all; returns its path."""
    return write_whole(state / FILE, watchlist.model_dump_json(indent=1) + "\n")
