"""Earthquakes: a file or a ComCat id becomes an `Event`."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from catalog.config import Event
from catalog.paths import expand_home
from catalog.schema import InputError
from catalog.validation import reasons
from catalog.web import Unanswered, fetch, parse_json

COMCAT_URL: Final = "https://earthquake.usgs.gov/fdsnws/event/1/query"
PLACE_CHARACTERS: Final = 40


def load_event(source: str, *, comcat_url: str = COMCAT_URL) -> Event:
    """The earthquake of a ComCat GeoJSON detail file, of our own event.json, or of a ComCat id (asked over HTTP).

    Raises: InputError when the file or answer is missing, is not JSON, or is no single event.
    """
    source = expand_home(source)
    path = Path(source)
    if path.suffix.lower() in {".json", ".geojson"} or path.is_file():
        return parse_event(_read(path), where=source)
    query = urllib.parse.urlencode({"eventid": source, "format": "geojson"})
    return parse_event(_fetch(f"{comcat_url}?{query}", event_id=source), where=source)


def event_title(event: Event) -> str:
    """Id, magnitude and place, as runs are named: `us2000h8ty M6.6 27 km E of Tomakomai, Japan`."""
    place = event.title.partition(" - ")[2] or event.title
    magnitude = "" if event.magnitude is None else f"M{event.magnitude:g}"
    return " ".join(filter(None, (event.id, magnitude, place[:PLACE_CHARACTERS].strip())))


def with_event(values: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration values with the event looked up where it is a file or an id; its id names the run that has no name.

    Raises: InputError as `load_event` does.
    """
    found = dict(values)
    if isinstance(found.get("event"), str):
        found["event"] = load_event(found["event"]).model_dump()
    event = found.get("event")
    known = event.get("id") if isinstance(event, Mapping) else getattr(event, "id", None)
    return found if known is None else {"name": known, **found}


def parse_event(text: str, *, where: str) -> Event:
    """The earthquake of a JSON text: a ComCat detail feature, or an object with the fields of `Event`.

    Raises: InputError naming `where` and what does not fit.
    """
    values = parse_json(text.encode(), where=f"event {where}")
    if isinstance(values, dict) and values.get("type") == "Feature":
        values = _from_comcat(values, where=where)
    if not isinstance(values, dict) or "id" not in values:
        raise InputError(
            f"event {where}: got no single event; expected a ComCat detail GeoJSON (type Feature), or an object with "
            "id, title, time_utc, longitude, latitude, depth_km, magnitude"
        )
    try:
        return Event.model_validate(values)
    except ValidationError as error:
        raise InputError(f"event {where}: {'; '.join(reasons(error, Event))}") from None


def _from_comcat(feature: dict[str, Any], *, where: str) -> dict[str, Any]:
    """The fields of `Event` from a ComCat feature; its time is in milliseconds since 1970, UTC."""
    try:
        properties, (longitude, latitude, depth_km) = feature["properties"], feature["geometry"]["coordinates"]
        return {
            "id": feature["id"],
            "title": properties.get("title") or "",
            "time_utc": datetime.fromtimestamp(properties["time"] / 1000, UTC),
            "longitude": longitude,
            "latitude": latitude,
            "depth_km": depth_km,
            "magnitude": properties.get("mag"),
        }
    except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
        raise InputError(
            f"event {where}: this GeoJSON feature is not ComCat's ({type(error).__name__}: {error}); expected id, "
            "properties.time and a point with depth; download the event's detail file again"
        ) from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"event {path}: cannot be read ({error}); give an existing JSON file or a ComCat id") from None


def _fetch(url: str, *, event_id: str) -> str:
    host = urllib.parse.urlsplit(url).netloc  # of our own constant, or the caller's; redirects elsewhere are refused
    try:
        return fetch(url, hosts=[host]).decode("utf-8")
    except Unanswered as error:
        reason = f"the catalogue did not answer with it ({error})"
    except UnicodeDecodeError as error:
        reason = f"the catalogue answered with what is no text ({error})"
    raise InputError(f"event {event_id}: {reason}; check the id, or give the event as a JSON file")
