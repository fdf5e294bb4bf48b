"""What an operator decides once: which earthquakes count, where imagery is looked for, how it is processed and kept.

One YAML file. No I/O here but reading that file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import Field, ValidationError

from catalog.config import Strict, environment
from catalog.schema import InputError

USGS_HOST: Final = "earthquake.usgs.gov"


class QuakePolicy(Strict):
    """Which earthquakes are responded to, and over which ground."""

    feed: str = f"https://{USGS_HOST}/earthquakes/feed/v1.0/summary/4.5_day.geojson"
    """A USGS GeoJSON feed, or a file of one."""
    query: str | None = f"https://{USGS_HOST}/fdsnws/event/1/query"
    """ComCat, asked for what was updated since the last poll after an outage; None = never."""
    min_magnitude: float = 6.0


class StacSource(Strict):
    """A STAC API and how one of its collections is read."""

    url: str
    collection: str
    sensor: str
    """A name of `catalog.sensors.SENSORS`."""


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

    root: str = "store"
    """Zarr stores: a folder or s3://."""
    out: str = "products"
    """Products, a folder an event."""
    state: str = "state"
    """What the watchers know: the watch list and each event's area, imagery and versions."""
    hosts: tuple[str, ...] = (USGS_HOST,)
    """Hosts that documents and imagery may come from: `name`, `name:port`, or `*.name` for its subdomains."""
    earthquakes: QuakePolicy = QuakePolicy()
    imagery: ImageryPolicy = ImageryPolicy()
    detection: dict[str, Any] = Field(default_factory=dict)
    """Keys of every detection (model, block, dem, adapt, cluster ...), as in a run's configuration."""
    retention: RetentionPolicy = RetentionPolicy()


def load_policy(path: str | None = None) -> Policy:
    """The policy of a YAML file: the one named, else LANDSLIDENET_POLICY's, else the defaults.

    Raises: InputError when it cannot be read, or a key does not fit.
    """
    named = path or environment("LANDSLIDENET_POLICY")
    if not named:
        return Policy()
    try:
        values = yaml.safe_load(Path(named).read_text(encoding="utf-8")) or {}
        return Policy.model_validate(values)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"policy {named}: cannot be read ({error}); expected a YAML file") from None
    except ValidationError as error:
        lines = "; ".join(
            f"`{'.'.join(map(str, e['loc']))}`: {e['msg']} (got {e['input']!r:.80})" for e in error.errors()
        )
        raise InputError(f"policy {named}: {lines}") from None
