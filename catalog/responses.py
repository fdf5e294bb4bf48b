"""What is known of the response to an event: its folder, what was looked for and found, and the versions made.

`STATE/EVENT_ID/` holds event.json and area*.geojson, written by whoever opened the response, and response.json.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

import geopandas
from pydantic import AwareDatetime, Field, ValidationError
from pyogrio.errors import DataLayerError, DataSourceError
from shapely.geometry.base import BaseGeometry

from catalog.areas import split_at_antimeridian
from catalog.config import Event, Strict, is_event_id
from catalog.events import load_event, parse_event
from catalog.files import write_whole
from catalog.folders import read_run, version_folders
from catalog.layers import split_source
from catalog.outlines import read_outlines
from catalog.policy import ImageryPolicy
from catalog.schema import InputError, StoreError
from catalog.validation import reasons

AREA_NAME: Final = re.compile(r"area(?:-(\d{5}))?\.geojson")
AREA_FILE: Final = "area.geojson"
PART_ZONE: Final = re.compile(r"-\d{5}$")
"""What the name of one of several areas has after the event's id."""
MAX_AREA_BYTES: Final = 32 * 1024**2

TELL_AGAIN: Final = timedelta(hours=6)
"""After so long without a version, imagery that was told of is told of again."""


class Claim(Strict):
    """A version that was begun."""

    key: str
    """Idempotency key: event, area, imagery and model."""
    part: str
    """Name of the detection."""
    run: str
    """The flow run that began it."""
    claimed_utc: AwareDatetime


class Version(Strict):
    """A version that was published."""

    part: str
    number: int = Field(ge=1)
    key: str
    imagery: str
    """Digest of its scenes."""
    model: str
    sensor: str
    folder: str
    """Of the product."""
    items: str
    """Folder of post.json, pre.json and area.geojson: what it was made of."""
    post: tuple[str, ...]
    pre: tuple[str, ...] = ()
    reasons: dict[str, int] = Field(default_factory=dict)
    """Blocks by why they were expected to get better."""
    published_utc: AwareDatetime


class Response(Strict):
    """What response.json holds."""

    format: Literal[1] = 1
    event_id: str
    state: Literal["waiting", "active", "closed"] = "waiting"
    reason: str = ""
    """Why it is in this state."""
    waiting_since: AwareDatetime | None = None
    searches: int = Field(default=0, ge=0)
    """Since something was found."""
    searched_utc: AwareDatetime | None = None
    next_search_utc: AwareDatetime | None = None
    expected: tuple[str, ...] = ()
    """What imagery is expected next."""
    told: tuple[str, ...] = ()
    """What the last search met: APIs passed over, items refused."""
    announced: dict[str, AwareDatetime] = Field(default_factory=dict)
    """When each key was told of, of imagery that improves something."""
    claims: tuple[Claim, ...] = ()
    versions: tuple[Version, ...] = ()

    def latest(self, part: str) -> Version | None:
        """The last version of a part; None without any."""
        return next((version for version in reversed(self.versions) if version.part == part), None)

    def made(self, key: str) -> Version | None:
        """The version of a key; None when it was not published."""
        return next((version for version in self.versions if version.key == key), None)


@dataclass(frozen=True)
class Part:
    """One area of interest of an event: within one UTM zone, and a detection of its own."""

    name: str
    path: Path
    epsg: int | None
    """Of the zone it was cut to; None = the event has one area."""
    outline: BaseGeometry
    """Longitude and latitude."""

    @property
    def digest(self) -> str:
        """Digest (sha256, hex) of the outline."""
        return hashlib.sha256(self.outline.normalize().wkb).hexdigest()


def pause_after(searches: int, policy: ImageryPolicy) -> timedelta:
    """How long to wait after so many searches in a row that found nothing that improves.

    >>> [pause_after(n, ImageryPolicy()) // timedelta(hours=1) for n in (1, 2, 3, 4, 5, 60)]
    [1, 2, 4, 8, 12, 12]
    """
    doublings = min(max(searches - 1, 0), 16)
    return timedelta(minutes=min(policy.first_pause_minutes * 2**doublings, policy.longest_pause_minutes))


def is_due(response: Response | None, now: datetime, policy: ImageryPolicy | None = None) -> bool:
    """True when an event's imagery is to be searched.

    A time that was written down and is after now is not known: the clock was ahead. The search is then due, also of
    what was closed by it; nor is a pause longer than the policy's longest.
    """
    if response is None or (response.searched_utc is not None and response.searched_utc > now):
        return True
    if response.state == "closed" or response.next_search_utc is None:
        return response.state != "closed"
    longest = timedelta(minutes=(policy or ImageryPolicy()).longest_pause_minutes)
    return now >= response.next_search_utc or response.next_search_utc - now > longest


def is_to_announce(response: Response, key: str, now: datetime) -> bool:
    """True when imagery that improves something was not told of yet, or so long ago that the telling is lost.

    So it is when it was told of at a time after now, which is not known.
    """
    told = response.announced.get(key)
    return response.made(key) is None and (told is None or told > now or now - told >= TELL_AGAIN)


def close_or_open(response: Response, *, last: datetime | None, now: datetime, why: str) -> Response:
    """The response, closed after its last moment; one that was closed before it (by a clock ahead) is open again."""
    if last is not None and now > last:
        return response.model_copy(update={"state": "closed", "reason": f"closed: {why}", "next_search_utc": None})
    if response.state != "closed":
        return response
    state = "active" if response.versions else "waiting"
    return response.model_copy(update={"state": state, "reason": "it was closed before its time: the clock was ahead"})


def after_search(
    response: Response,
    policy: ImageryPolicy,
    *,
    now: datetime,
    improves: bool,
    expected: tuple[str, ...],
    told: tuple[str, ...],
) -> Response:
    """What is known once a search was answered: when the next one is due, and what is expected."""
    searches = 0 if improves else response.searches + 1
    return response.model_copy(
        update={
            "searches": searches,
            "searched_utc": now,
            "next_search_utc": now + pause_after(searches, policy),
            "expected": expected,
            "told": told,
        }
    )


def after_version(response: Response, version: Version) -> Response:
    """What is known once a version was published."""
    reason = f"{version.part} v{version.number} was published {version.published_utc:%Y-%m-%d %H:%M} UTC"
    update: dict[str, Any] = {
        "versions": (*response.versions, version),
        "claims": tuple(claim for claim in response.claims if claim.key != version.key),
        "announced": {key: told for key, told in response.announced.items() if key != version.key},
        "waiting_since": None,
    }
    if response.state != "closed":
        update |= {"state": "active", "reason": reason}
    return response.model_copy(update=update)


# --- the folder ------------------------------------------------------------------------------------------------------


def folder_of(state: str, event_id: str) -> Path:
    """The folder of an event's response, within STATE.

    Raises: InputError when the id could lead elsewhere.
    """
    if not is_event_id(event_id):
        raise InputError(f"event id {event_id!r:.80}: expected 1 to 64 letters, digits, . _ - and no . or - first")
    return Path(state) / event_id


def known_events(state: str) -> tuple[str, ...]:
    """Ids of the events that have a response's folder."""
    folders = (path.parent.name for path in Path(state).glob("*/event.json"))
    return tuple(sorted(name for name in folders if is_event_id(name)))


def event_of(state: str, name: str) -> str | None:
    """The followed event that stores and products of this name are of; None for a single run's."""
    known = known_events(state)
    return next((event_id for event_id in (name, PART_ZONE.sub("", name)) if event_id in known), None)


def open_event(state: str, event_id: str) -> tuple[Event, tuple[Part, ...]]:
    """The event and its areas, as they were saved.

    Raises: InputError when there is no such response, or its files cannot be read.
    """
    folder = folder_of(state, event_id)
    try:
        event = parse_event((folder / "event.json").read_text(encoding="utf-8"), where=str(folder / "event.json"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"event {event_id}: {folder} has no event.json ({error}); expected an event that watch-earthquakes "
            "follows; give `event` and `aoi` files to respond to another one"
        ) from None
    files = sorted(folder.glob("area*.geojson"))
    matched = [(path, match[1]) for path in files if (match := AREA_NAME.fullmatch(path.name))]
    found = [(path, zone) for path, zone in matched if zone] or matched
    if not found:
        raise InputError(f"event {event_id}: {folder} has no area*.geojson; give an `aoi` file")
    names = [event_id if len(found) == 1 else f"{event_id}-{zone}" for _, zone in found]
    return event, tuple(
        Part(name, path, int(zone) if zone else None, read_area(path))
        for name, (path, zone) in zip(names, found, strict=True)
    )


def read_area(source: str | Path) -> BaseGeometry:
    """The union of the polygons of FILE[:LAYER[,LAYER]], longitude and latitude, split at the antimeridian.

    Raises: InputError when it is too large, cannot be read, or holds no polygon.
    """
    path = Path(split_source(str(source))[0])
    if path.is_file() and path.stat().st_size > MAX_AREA_BYTES:
        raise InputError(f"{path}: has more than {MAX_AREA_BYTES} bytes; expected an area of interest")
    frame = read_outlines(str(source), what="area of interest").in_crs(4326)
    outline: BaseGeometry = frame.geometry.union_all()
    west, _, east, _ = outline.bounds
    return outline if west >= -180 and east <= 180 else split_at_antimeridian(outline)


def read_named(event_id: str, *, event: str | None, aoi: str | None) -> tuple[Event, BaseGeometry]:
    """An event that a person names by files, and its area.

    Raises: InputError when one of the two is missing, cannot be read, or is of another event.
    """
    if not (event and aoi):
        raise InputError(f"event {event_id}: got one of `event` and `aoi`; expected both, or none for a watched event")
    loaded = load_event(event)
    if loaded.id != event_id:
        raise InputError(f"event {event_id}: the file {event} is of {loaded.id}; give its id")
    return loaded, read_area(aoi)


def save_event(state: str, event: Event, area: BaseGeometry) -> None:
    """Open the response of an event that a person names: event.json and area.geojson are written."""
    folder = folder_of(state, event.id)
    earlier = [path for path in folder.glob("area*.geojson") if path.name != AREA_FILE]
    write_area(folder / AREA_FILE, area)
    for path in earlier:
        path.unlink()
    write_whole(folder / "event.json", event.model_dump_json(indent=2) + "\n")


def write_area(path: Path, area: BaseGeometry) -> None:
    """Save an area (longitude, latitude) as GeoJSON."""
    write_whole(path, str(geopandas.GeoDataFrame(geometry=[area], crs=4326).to_json()))


def read_response(state: str, event_id: str) -> Response | None:
    """What is known of the response; None when nothing is yet.

    Raises: StoreError when response.json is damaged.
    """
    path = folder_of(state, event_id) / "response.json"
    if not path.is_file():
        return None
    try:
        return Response.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        why = reasons(error, Response)[0] if isinstance(error, ValidationError) else error
        raise StoreError(
            f"{path}: cannot be read ({why}); restore it from the backup, or move it away: the search starts anew, "
            "and the next version is made of what it finds"
        ) from None


def write_response(state: str, response: Response) -> None:
    """Save what is known of the response, whole or not at all."""
    write_whole(folder_of(state, response.event_id) / "response.json", response.model_dump_json(indent=2) + "\n")


def write_inputs(folder: Path, *, post: Mapping[str, Any], pre: Mapping[str, Any], area: BaseGeometry) -> None:
    """What a version is made of: ItemCollections post.json and, where it has scenes, pre.json; area.geojson."""
    for name, collection in (("post", post), ("pre", pre)):
        if collection["features"]:
            write_whole(folder / f"{name}.json", json.dumps(collection, indent=1) + "\n")
    write_area(folder / AREA_FILE, area)


def read_items(folder: str, name: Literal["post", "pre"]) -> tuple[dict[str, Any], ...]:
    """The items that a version was made of; none where it had none.

    Raises: StoreError when the file is damaged.
    """
    path = Path(folder) / f"{name}.json"
    if name == "pre" and not path.is_file():
        return ()
    try:
        return tuple(json.loads(path.read_text(encoding="utf-8"))["features"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); restore it from the backup") from None


# --- products --------------------------------------------------------------------------------------------------------


def observed_by(folder: str) -> BaseGeometry:
    """What a product saw, longitude and latitude.

    Raises: StoreError when its inventory cannot be read.
    """
    path = Path(folder) / "inventory.gpkg"
    try:
        frame = geopandas.read_file(path, layer="observed_area").to_crs(4326)
    except (DataSourceError, DataLayerError, OSError, ValueError, AttributeError) as error:
        raise StoreError(
            f"{path}: cannot be read ({error}); restore the product, or move the event's response.json away: "
            "the search starts anew"
        ) from None
    seen: BaseGeometry = frame.geometry.make_valid().union_all()
    return seen


def published_from(out: str, part: str, items: str) -> tuple[int, str] | None:
    """Number and folder of a version that was made of these items (their folder); None when there is none.

    What a run published before it was killed is found again by this.

    Raises: StoreError when a version's run.json is damaged.
    """
    for number, folder in reversed(version_folders(Path(out) / part)):
        if (folder / "run.json").is_file() and read_run(folder)["config"].get("post") == [
            str(Path(items) / "post.json")
        ]:
            return number, str(folder)
    return None
