"""Documents of the USGS earthquake catalogue (ComCat): what strangers sent becomes checked values, or is refused.

A feed or an answer of `fdsnws/event/1/query` holds summaries; an event's detail holds its products as well. No I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from catalog.config import Event, EventId, check_event_id
from catalog.schema import InputError
from catalog.validation import reasons
from catalog.web import parse_json

MAX_FEATURES: Final = 20_000
"""What the query service answers at most."""
MAX_PRODUCTS: Final = 2_000
"""Of one kind: an earthquake with all superseded products has some hundred."""
MAX_IDS: Final = 200
MAX_TEXT: Final = 200
TOLD_REASONS: Final = 3
FIRST_MS: Final = -8_520_336_000_000  # the year 1700
LAST_MS: Final = 4_102_444_800_000  # 2100
CONTENTS: Final = ("download/cont_pga.json", "download/cont_mmi.json", "download/cont_mi.json", "download/grid.xml")
"""Files of a ShakeMap that an area is made of."""

Alert = Literal["green", "yellow", "orange", "red"]
COLOURS: Final[tuple[Alert, ...]] = ("green", "yellow", "orange", "red")
Milliseconds = Annotated[int, Field(ge=FIRST_MS, le=LAST_MS)]


@dataclass(frozen=True)
class ShakeMap:
    """The preferred ShakeMap of an event: which one it is, and where its files are."""

    key: str
    """Source, code and update time: another key, another map."""
    version: str
    urls: Mapping[str, str]
    """Addresses by the names of `CONTENTS`; not yet checked against the allowed hosts."""


@dataclass(frozen=True)
class Quake:
    """What ComCat says of one earthquake; of a summary the products are unknown (`detailed` is false).

    Of a deleted one nothing is known but its ids.
    """

    event: Event
    ids: frozenset[str]
    """Every id it goes by, as this document says."""
    updated_utc: datetime
    deleted: bool = False
    kind: str = "earthquake"
    pager: Alert | None = None
    has_ground_failure: bool = False
    detailed: bool = False
    landslide: Alert | None = None
    """Colour of the ground-failure product's landslide alert."""
    shakemap: ShakeMap | None = None
    refused: tuple[str, ...] = ()
    """Products that could not be used, each with its reason."""


@dataclass(frozen=True)
class Feed:
    """The earthquakes of a document, and what was refused of it."""

    quakes: tuple[Quake, ...]
    refused: tuple[str, ...]


class _Told(BaseModel):
    """Base of what ComCat sends: keys that are not read here are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


def _printable(value: object) -> object:
    return "".join(c for c in value if c.isprintable())[:MAX_TEXT] if isinstance(value, str) else value


def _listed(value: object) -> object:
    """`,us1,at2,` is a list of two."""
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


def _mapped(value: object) -> object:
    """ComCat writes an empty mapping as an empty list."""
    return {} if value == [] else value


def _alert(value: object) -> Alert | None:
    """A colour; whatever else is sent (`pending`) is no alert yet."""
    return next((colour for colour in COLOURS if colour == value), None)


Text = Annotated[str, BeforeValidator(_printable)]
Mapped = Annotated[dict[str, Any], BeforeValidator(_mapped)]


class _Point(_Told):
    type: Literal["Point"]
    coordinates: Annotated[list[float | None], Field(min_length=2, max_length=3)]

    @field_validator("coordinates")
    @classmethod
    def _on_earth(cls, value: list[float | None]) -> list[float | None]:
        longitude, latitude, depth_km = value[0], value[1], value[2] if len(value) > 2 else None
        if longitude is None or latitude is None or not (-360 <= longitude <= 360 and -90 <= latitude <= 90):
            raise ValueError("expected [longitude, latitude, depth] in degrees and km")
        if depth_km is not None and not -10 <= depth_km <= 1000:
            raise ValueError("expected a depth of -10 .. 1000 km")
        return [(longitude + 180) % 360 - 180 if abs(longitude) > 180 else longitude, latitude, depth_km]


class _Content(_Told):
    url: Annotated[str, Field(max_length=2000)] = ""


class _Product(_Told):
    code: EventId
    source: EventId  # of a seismic network: ids begin with it
    update_ms: Milliseconds = Field(alias="updateTime")
    status: Annotated[str, Field(max_length=MAX_TEXT)] = "UPDATE"
    weight: Annotated[int, Field(ge=0, le=10**12, alias="preferredWeight")] = 0
    properties: Mapped = Field(default_factory=dict)
    contents: Mapped = Field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.source}:{self.code}:{self.update_ms}"


class _Properties(_Told):
    mag: Annotated[float, Field(ge=-10, le=11)] | None = None
    title: Text | None = None
    time: Milliseconds
    updated: Milliseconds
    kind: Text = Field(default="earthquake", alias="type")
    alert: Annotated[Alert | None, BeforeValidator(_alert)] = None
    ids: Annotated[list[EventId], Field(max_length=MAX_IDS), BeforeValidator(_listed)] = Field(default_factory=list)
    types: Annotated[list[str], Field(max_length=MAX_IDS), BeforeValidator(_listed)] = Field(default_factory=list)
    products: Mapped | None = None


FolderId = Annotated[EventId, AfterValidator(check_event_id)]
"""An id that may come to name an event's folder."""


class _Feature(_Told):
    type: Literal["Feature"]
    id: FolderId
    properties: _Properties
    geometry: _Point


class _DeletedProperties(_Told):
    updated: Milliseconds = LAST_MS  # not said: it is the last word
    ids: Annotated[list[EventId], Field(max_length=MAX_IDS), BeforeValidator(_listed)] = Field(default_factory=list)

    @field_validator("updated", mode="before")
    @classmethod
    def _said(cls, value: object) -> object:
        return LAST_MS if value is None else value


class _Deleted(_Told):
    """An event that is no more: ComCat sends it without place, time and magnitude."""

    type: Literal["Feature"]
    id: FolderId
    properties: _DeletedProperties


def parse_feed(data: bytes, *, where: str) -> Feed:
    """The earthquakes of a feed, of an answer of the query service, or of one event's detail.

    A feature that does not fit is refused with its reason; the others are kept.

    Raises: InputError naming `where` for what is no such document at all.
    """
    document = parse_json(data, where=where)
    kind = document.get("type") if isinstance(document, dict) else None
    features = [document] if kind == "Feature" else document.get("features") if kind == "FeatureCollection" else None
    if not isinstance(features, list):
        raise InputError(f"{where}: got no ComCat document; expected a GeoJSON FeatureCollection, or a Feature")
    if len(features) > MAX_FEATURES:
        raise InputError(f"{where}: has {len(features)} features; expected {MAX_FEATURES} at most; refused")
    quakes, refused = [], []
    for number, feature in enumerate(features):
        try:
            quakes.append(_quake(feature))
        except ValidationError as error:
            refused.append(f"{where}: feature {number + 1}: {_reasons(error, _Feature)}")
    return Feed(tuple(quakes), tuple(refused))


def parse_detail(data: bytes, *, where: str) -> Quake:
    """The earthquake of a detail document, with its products.

    Raises: InputError naming `where` when it is none.
    """
    feed = parse_feed(data, where=where)
    if feed.refused:
        raise InputError(f"{feed.refused[0]}; expected a ComCat detail document")
    if len(feed.quakes) != 1 or not (feed.quakes[0].detailed or feed.quakes[0].deleted):
        raise InputError(f"{where}: got no single event with products; expected a ComCat detail document")
    return feed.quakes[0]


def _quake(feature: object) -> Quake:
    properties = feature.get("properties") if isinstance(feature, dict) else None
    status = properties.get("status") if isinstance(properties, dict) else None
    return _deletion(feature) if str(status).lower() == "deleted" else _earthquake(feature)


def _deletion(feature: object) -> Quake:
    told = _Deleted.model_validate(feature)
    ids = frozenset({told.id, *told.properties.ids})
    return Quake(Event(id=told.id, title=told.id), ids, _utc(told.properties.updated), deleted=True)


def _earthquake(feature: object) -> Quake:
    told = _Feature.model_validate(feature)
    longitude, latitude, depth_km = told.geometry.coordinates
    values = told.properties
    event = Event(
        id=told.id,
        title=values.title or told.id,
        time_utc=_utc(values.time),
        longitude=longitude,
        latitude=latitude,
        depth_km=depth_km,
        magnitude=values.mag,
    )
    found = _products(values.products or {})
    return Quake(
        event=event,
        ids=frozenset({told.id, *values.ids}),
        updated_utc=_utc(values.updated),
        kind=values.kind,
        pager=values.alert,
        has_ground_failure="ground-failure" in values.types or "ground-failure" in (values.products or {}),
        detailed=values.products is not None,
        landslide=found.landslide,
        shakemap=found.shakemap,
        refused=found.refused,
    )


@dataclass(frozen=True)
class _Found:
    shakemap: ShakeMap | None
    landslide: Alert | None
    refused: tuple[str, ...]


def _products(products: Mapping[str, Any]) -> _Found:
    refused: list[str] = []
    shakemap = _preferred(products.get("shakemap", []), kind="shakemap", refused=refused)
    failure = _preferred(products.get("ground-failure", []), kind="ground-failure", refused=refused)
    landslide = _alert(failure.properties.get("landslide-alert")) if failure else None
    return _Found(_shakemap(shakemap) if shakemap else None, landslide, tuple(refused))


def _preferred(listed: object, *, kind: str, refused: list[str]) -> _Product | None:
    """The product that ComCat prefers: of each source's code the latest, then the greatest weight."""
    if not isinstance(listed, list) or len(listed) > MAX_PRODUCTS:
        refused.append(f"{kind}: expected a list of {MAX_PRODUCTS} products at most")
        return None
    latest: dict[tuple[str, str], _Product] = {}
    for value in listed:
        try:
            product = _Product.model_validate(value)
        except ValidationError as error:
            refused.append(f"{kind}: {_reasons(error, _Product)}")
            continue
        place = (product.source, product.code)
        if place not in latest or latest[place].update_ms < product.update_ms:
            latest[place] = product
    kept: Iterable[_Product] = (p for p in latest.values() if p.status.upper() != "DELETE")
    return max(kept, key=lambda p: (p.weight, p.update_ms, p.key), default=None)


def _shakemap(product: _Product) -> ShakeMap:
    urls = {}
    for name in CONTENTS:
        try:
            urls[name] = _Content.model_validate(product.contents.get(name, {})).url
        except ValidationError:
            urls[name] = ""  # as if the map had no such file: another one is read
    version = product.properties.get("version")
    return ShakeMap(
        key=product.key,
        version=str(_printable(version))[:16] if isinstance(version, str) else "",
        urls={name: url for name, url in urls.items() if url},
    )


def _utc(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _reasons(error: ValidationError, kind: type[_Told]) -> str:
    """What did not fit, without what was sent: it may be long, or meant for whoever reads the log."""
    told = [reason[:MAX_TEXT] for reason in reasons(error, kind, quote=False)]
    more = f"; and {len(told) - TOLD_REASONS} more" if len(told) > TOLD_REASONS else ""
    return str(_printable("; ".join(told[:TOLD_REASONS]))) + more
