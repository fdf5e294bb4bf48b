"""What an operator decides once: which earthquakes count, where imagery is looked for, how it is processed and kept.

One YAML file. No I/O here but reading that file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import Field, ValidationError, field_validator

from catalog.config import Strict, as_keys, environment, parse_config
from catalog.paths import FilePath, expand_home
from catalog.schema import InputError
from catalog.sensors import SENSORS
from catalog.validation import reasons

DECIDED: Final = ("name", "post", "pre", "stac", "sensor", "aoi", "event", "hosts", "root", "out")
"""Keys of a detection that the response decides."""
USGS_HOST: Final = "earthquake.usgs.gov"


class Region(Strict):
    """Where other thresholds hold; of several that hold a place the first counts."""

    name: str
    bounds: tuple[float, float, float, float]
    """West, south, east, north in degrees; west > east crosses the antimeridian."""
    min_magnitude: float | None = None
    """None = the policy's."""
    max_depth_km: float | None = None
    """None = the policy's."""
    ignore: bool = False
    """No earthquake of it is responded to."""

    @field_validator("bounds")
    @classmethod
    def _on_earth(cls, value: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        west, south, east, north = value
        if max(abs(west), abs(east)) > 180 or not -90 <= south < north <= 90:
            raise ValueError("expected west, south, east, north: longitudes of -180 .. 180, south under north")
        return value

    def holds(self, longitude: float, latitude: float) -> bool:
        """Whether a place lies in it."""
        west, south, east, north = self.bounds
        across = west <= longitude <= east if west <= east else longitude >= west or longitude <= east
        return across and south <= latitude <= north


AlertColour = Literal["green", "yellow", "orange", "red"]


class QuakePolicy(Strict):
    """Which earthquakes are responded to, and over which ground."""

    feed: FilePath = f"https://{USGS_HOST}/earthquakes/feed/v1.0/summary/4.5_day.geojson"
    """A USGS GeoJSON feed, or a file of one (or of an event's detail); it has to list what the thresholds ask for."""
    query: str | None = f"https://{USGS_HOST}/fdsnws/event/1/query"
    """ComCat: asked for what was updated since the last good poll after an outage, and for details; None = never."""
    catch_up_minutes: float = Field(default=60, gt=0)
    """Without a good poll for so long, ComCat is asked for what happened since."""
    silence_hours: float = Field(default=6, gt=0)
    """Without a good poll for so long, the watcher's run fails, so that somebody looks."""

    min_magnitude: float = 6.0
    max_depth_km: float = 150.0
    regions: tuple[Region, ...] = ()
    alert_min_magnitude: float = 5.0
    """Enough for an earthquake with one of these alerts."""
    landslide_alerts: tuple[AlertColour, ...] = ("yellow", "orange", "red")
    """Of USGS ground failure."""
    pager_alerts: tuple[AlertColour, ...] = ("orange", "red")
    max_age_days: float = Field(default=30, gt=0)
    """Older when first seen: not responded to."""
    max_future_minutes: float = Field(default=10, ge=0)
    """An earthquake later than this from now has a wrong time, or the clock has."""
    shakemap_wait_hours: float = Field(default=3, ge=0)
    """Since the earthquake; then its area is a circle by its magnitude."""
    follow_days: float = Field(default=90, gt=0)
    """Since the earthquake; then it is closed, and revised no more."""
    revised_area: float = Field(default=0.1, gt=0, le=1)
    """Share of the area that must differ for a revision to be announced; or one of the next two."""
    revised_magnitude: float = Field(default=0.2, gt=0)
    revised_km: float = Field(default=10.0, gt=0)
    """The epicentre moved so far."""

    min_pga_g: float = Field(default=0.1, gt=0, le=5)
    """Ground shaken less is left out; where a ShakeMap has only intensities, `min_mmi` does so."""
    min_mmi: float = Field(default=6.0, ge=1, le=10)
    dem: FilePath | None = None
    """An elevation raster (it may be coarse): sea and flat ground are cut away; where it ends nothing is."""
    min_relief_m: float = Field(default=50.0, ge=0)
    """Difference of elevation within about a kilometre; less is flat."""


class StacSource(Strict):
    """A STAC API and how one of its collections is read."""

    url: str
    collection: str
    sensor: str
    """A name of `catalog.sensors.SENSORS`."""

    @field_validator("sensor")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in SENSORS:
            raise ValueError(f"expected one of {', '.join(SENSORS)}")
        return value


class ImageryPolicy(Strict):
    """Where imagery is looked for, and what is good enough."""

    sources: tuple[StacSource, ...] = ()
    """In order of preference; one that does not answer is passed over and told of."""
    days_before: int = Field(default=365, ge=1)
    days_after: int = Field(default=60, ge=1)
    max_cloud_percent: float = Field(default=80.0, ge=0, le=100)
    exclude: tuple[str, ...] = ()
    """Ids of scenes that are not used, whatever an API says: damaged ones, or wrong ones; as if withdrawn."""
    timeout_s: float = Field(default=30.0, gt=0, le=600)
    """For one answer of a STAC API, whole."""
    first_pause_minutes: float = Field(default=60.0, gt=0)
    """From one search for an event to the next; doubled after each that finds nothing better, up to the longest."""
    longest_pause_minutes: float = Field(default=720.0, gt=0)
    max_items: int = Field(default=200, ge=1, le=2000)
    """Items taken of one search; more are told of, and left."""


class RetentionPolicy(Strict):
    """How long stores and versions are kept."""

    store_days: int = Field(default=90, ge=1)
    """Stores of an event are deleted so long after its last response; the product does not depend on them."""
    versions: int = Field(default=10, ge=1)
    """Versions of an event kept beside the first; the latest is always kept."""


class Policy(Strict):
    """Everything that the watchers and the response are told."""

    root: FilePath = "store"
    """Zarr stores: a folder or s3://."""
    out: FilePath = "products"
    """Products, a folder an event."""
    state: FilePath = "state"
    """What the watchers know: the watch list and each event's area, imagery and versions."""
    hosts: tuple[str, ...] = (USGS_HOST,)
    """Hosts that documents and imagery may come from: `name`, `name:port`, or `*.name` for its subdomains."""
    earthquakes: QuakePolicy = QuakePolicy()
    imagery: ImageryPolicy = ImageryPolicy()
    detection: dict[str, Any] = Field(default_factory=dict)
    """Keys of every detection (model, block, dem, adapt, cluster ...), as in a run's configuration."""
    retention: RetentionPolicy = RetentionPolicy()

    @field_validator("detection")
    @classmethod
    def _fits(cls, value: dict[str, Any]) -> dict[str, Any]:
        """A key that no detection takes is found now, not after the first earthquake."""
        try:
            if decided := [key for key in DECIDED if key in as_keys(value)]:
                raise ValueError(f"`{decided[0]}` is decided by the response; leave it out")
            parse_config({"name": "event", "post": "post.json", "pre": "pre.json", **value})
        except InputError as error:
            raise ValueError(str(error)) from None
        return value


def load_policy(path: str | None = None) -> Policy:
    """The policy of a YAML file: the one named, else LANDSLIDENET_POLICY's, else the defaults.

    Raises: InputError when it cannot be read, or a key does not fit.
    """
    named = expand_home(path or environment("LANDSLIDENET_POLICY"))
    if not named:
        return Policy()
    try:
        values = yaml.safe_load(Path(named).read_text(encoding="utf-8")) or {}
        return Policy.model_validate(values)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"policy {named}: cannot be read ({error}); expected a YAML file") from None
    except ValidationError as error:
        raise InputError(f"policy {named}: {'; '.join(reasons(error, Policy))}") from None
