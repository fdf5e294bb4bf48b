"""What a run is told: frozen, checked, and refused when a key is unknown. No I/O; the environment is read here only."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from catalog.named_secrets import check_whole, filled
from catalog.paths import FilePath, expand_home, home_of
from catalog.schema import InputError
from catalog.secrets import hidden, remember
from catalog.validation import reasons

DEFAULT_BLOCK_PX: Final = 2048
INNER_CHUNK_PX: Final = 512
DEFAULT_MODEL: Final = "mffenet-lite0"

EVENT_ID: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What an event may be called: its id names folders, resources and parts of addresses."""
EventId = Annotated[
    str, Field(pattern=EVENT_ID, description="1 to 64 letters, digits, `.`, `-` or `_`, a letter or digit first")
]
OUR_SUFFIXES: Final = (".json", ".geojson", ".gpkg", ".zarr", ".ledger", ".lock", ".tif", ".yaml", ".yml", ".db")
"""Of files that lie beside events' folders or in them: no event is called so."""
PART_NAME: Final = re.compile(r".*-32[67]\d\d")
"""What the part of an event in one UTM zone (its EPSG code) is called: no event is."""

Precision = Literal["auto", "fp32", "bf16"]
"""Number format of a network: what the hardware computes fastest, or one of these."""

FLAG_NAMES: Final = {
    "post_time": "post_time_utc",
    "pre_time": "pre_time_utc",
    "min_area": "min_area_m2",
    "gsd": "gsd_m",
    "block": "block_px",
}
"""Keys of a detection as the command line calls them."""

TRAINING_FLAG_NAMES: Final = {"crop": "crop_px", "loss": "losses"}

SEVERAL: Final = ("post", "pre", "mask", "pre_mask", "leave_out")
"""Keys that hold several files: one alone need not be a list."""


class Strict(BaseModel):
    """Base of every configuration: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        return [(name, hidden(value)) for name, value in super().__repr_args__()]


class Event(Strict):
    """An earthquake (or another trigger) as the pipeline sees it."""

    id: str
    """USGS ComCat id, or the operator's own."""
    title: str = ""
    time_utc: datetime | None = None
    longitude: float | None = Field(default=None, ge=-180, le=180)
    latitude: float | None = Field(default=None, ge=-90, le=90)
    depth_km: float | None = None
    magnitude: float | None = None

    @field_validator("time_utc")
    @classmethod
    def _aware(cls, value: datetime | None) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError(f"got {value.isoformat()} without a time zone; expected e.g. 2018-09-05T18:07:59Z")
        return value


class ClusterConfig(Strict):
    """Where the blocks run."""

    address: str = "local"
    """`local`, the address of a running scheduler (tcp://host:8786), or the dotted name of a cluster class."""
    workers: int | None = Field(default=None, ge=1)
    """Worker processes of a local cluster; None = one a core, at most eight."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of the network in each worker; None = cores / workers."""
    options: dict[str, Any] = Field(default_factory=dict, repr=False)
    """Keyword arguments of the cluster class; a text that begins with `~/` is a path."""

    @field_validator("options")
    @classmethod
    def _at_home(cls, value: dict[str, Any]) -> dict[str, Any]:
        return {key: home_of(text) if isinstance(text, str) else text for key, text in value.items()}


class StacConfig(Strict):
    """Imagery from a STAC API instead of files."""

    url: str
    collection: str
    days_before: int = Field(default=60, ge=1)
    days_after: int = Field(default=30, ge=1)
    max_cloud_percent: float = Field(default=60.0, ge=0, le=100)


class RunConfig(Strict):
    """Everything a detection run depends on."""

    name: EventId
    """Event id: names the store and the product folder."""
    post: tuple[FilePath, ...] = ()
    """Post-event rasters, or JSON files of STAC items; several are composited, the first that saw the ground wins."""
    pre: tuple[FilePath, ...] = ()
    stac: StacConfig | None = None
    sensor: str = "rgb8"
    """A name of `catalog.sensors.SENSORS`."""
    mask: tuple[FilePath, ...] = ()
    """Post-event mask rasters, non-zero = not observed (clouds an analyst drew)."""
    pre_mask: tuple[FilePath, ...] = ()
    post_time_utc: datetime | None = None
    pre_time_utc: datetime | None = None
    dem: FilePath | None = None
    dem_reproject: bool = False
    """Accept a DEM in a geographic CRS and reproject it."""
    aoi: FilePath | None = None
    event: Event | None = None
    hosts: tuple[str, ...] = ()
    """Hosts that the items of others may lead to: `name`, `name:port`, `*.name` for its public subdomains; none = those
    that given files of items name, the STAC API's own, and every public one."""
    model: FilePath = DEFAULT_MODEL
    """A registered model's name, or a folder or file with weights and card."""
    labels: FilePath | None = None
    """Landslides that were mapped in the area, FILE[:LAYER[,LAYER]]: the network is fine-tuned on them."""
    labelled_area: FilePath | None = None
    """Vector file of the ground that was looked at when they were mapped; None = all of the scene."""
    adapt: FilePath | None = None
    """Folder of labelled tiles of other events: without labels here the network is adapted from them (ADANet)."""
    leave_out: tuple[str, ...] = ()
    """Events among those tiles that take no part."""
    network_steps: int = Field(default=120, ge=1)
    """Steps of the optimiser in fine-tuning or adaptation."""
    adaptation: dict[str, Any] = Field(default_factory=dict)
    """Further settings of the adaptation: fields of `models.adaptation.AdaptConfig`, which switch its terms."""
    threshold: Literal["scene", "card"] | Annotated[float, Field(gt=0, lt=1)] = "scene"
    """Landslide probability from which a pixel is a landslide: a number, the model card's, or the scene's own."""
    min_area_m2: float | None = Field(default=None, ge=0)
    """Smallest landslide delivered; None = a 3 x 3 pixel square of the network or imagery, the coarser."""
    precision: Precision = "auto"
    """Number format of the network; it belongs to the result."""
    gsd_m: float | None = Field(default=None, gt=0)
    """Pixel size of the product; None = the imagery's own."""
    block_px: int = Field(default=DEFAULT_BLOCK_PX, ge=256, le=16384)
    root: FilePath = "store"
    out: FilePath = "out"
    cluster: ClusterConfig = ClusterConfig()

    @model_serializer(mode="wrap")
    def _without_secrets(self, as_dict: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """As JSON it goes to others: products, and Prefect, which keeps what a flow run was given."""
        values: dict[str, Any] = as_dict(self)
        if info.mode != "json":
            return values
        if "cluster" in values:
            values["cluster"] = {**values["cluster"], "options": {}}  # any of them may be a secret
        shown: dict[str, Any] = hidden(values)
        return shown

    @field_validator("post_time_utc", "pre_time_utc", mode="before")
    @classmethod
    def _iso(cls, value: object) -> object:
        """Refuse bare numbers, which would be read as seconds since 1970."""
        if isinstance(value, str):
            try:
                return datetime.fromisoformat(value.strip())
            except ValueError:
                pass
        elif value is None or isinstance(value, datetime):
            return value
        elif isinstance(value, date):
            return datetime(value.year, value.month, value.day)
        raise ValueError("no time; expected e.g. 2018-09-11T01:30:00Z or 2018-09-11, UTC")

    @field_validator("block_px")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError(f"got {value} px; expected a power of two (512, 1024, 2048 ...)")
        return value

    @model_validator(mode="after")
    def _has_imagery(self) -> RunConfig:
        if not self.post and self.stac is None:
            raise ValueError("no post-event imagery; give --post FILE, or a `stac` section in the configuration")
        if self.pre_mask and not self.pre:
            raise ValueError("a pre-event mask without pre-event imagery; give --pre FILE as well")
        return self

    @model_validator(mode="after")
    def _has_what_it_learns_from(self) -> RunConfig:
        if self.leave_out and not self.adapt:
            raise ValueError("events to leave out, but nothing to adapt from; give --adapt FOLDER as well")
        if self.labelled_area and not self.labels:
            raise ValueError("a labelled area without labels; give --labels FILE[:LAYER] as well")
        return self

    @property
    def chunk_px(self) -> int:
        """Inner chunk of a shard, in pixels."""
        return min(INNER_CHUNK_PX, self.block_px)


class TileRun(Strict):
    """Labelled tiles, how they are split, and where what is made of them goes."""

    tiles: FilePath
    """Folder of labelled tiles."""
    out: FilePath
    """Folder for weights, card and plots: one network each."""
    leave_out: tuple[str, ...] = ()
    """Events (Landslide4Sense: letters of id blocks) that take no part."""
    hold_out: tuple[str, ...] = ()
    """Events that validate; without any the data set's own split does, or one in space."""

    @field_validator("leave_out", "hold_out", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        """`A,B` is a list of two, an empty text of none."""
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class AverageRun(TileRun):
    """Everything that averaging is told."""

    weights: tuple[FilePath, ...] = Field(min_length=2)
    """Files or folders of trainings that went on from the same weights."""


class TrainRun(TileRun):
    """Everything a training is told; the numbers' defaults are those of `models.training.TrainConfig`."""

    model: str = DEFAULT_MODEL
    """A registered architecture."""
    start: FilePath | None = None
    """Weights to go on from: a registered name, a folder or a file with its card; None = ImageNet's."""
    seed: int = Field(default=0, ge=0)
    steps: int = Field(default=900, ge=1)
    precision: Precision = "auto"
    """Number format of the network; it belongs to the weights."""
    batch: int = Field(default=16, ge=2)
    """Crops a step: batch statistics need two."""
    crop_px: int = Field(default=192, ge=64, multiple_of=16)
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    losses: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {"boundary": 1.0, "dice": 1.0}
    """Weight by name of `models.losses.LOSSES`."""
    landslide_share: float = Field(default=0.0, ge=0, le=1)
    """Share of crops that are laid around a landslide."""
    noise: float = Field(default=0.0, ge=0, lt=1)
    """Largest share of a crop's pixels made black or white (salt and pepper)."""
    cloud: float = Field(default=0.0, ge=0, le=1)
    """Share of crops that lie under painted cloud and its shadow."""
    epoch_steps: int = Field(default=90, ge=1)
    """Steps after which the network is validated and the state saved."""
    patience: int | None = Field(default=None, ge=1)
    """Epochs without a better validation F1 after which training stops; None = never."""

    @field_validator("losses", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        """`boundary`, `["boundary=1", "dice=0.5"]` or weights by name."""
        if not isinstance(value, str | list | tuple):
            return value
        pairs = [str(word).partition("=") for word in ([value] if isinstance(value, str) else value)]
        if len({name for name, _, _ in pairs}) < len(pairs):
            raise ValueError("a loss is given twice; expected each NAME=WEIGHT once")
        return {name: weight if equals else 1.0 for name, equals, weight in pairs}


def is_name(text: str) -> bool:
    """Whether a run, and the folders of its stores and products, may be called so: an event's id, or of a part of it.

    >>> is_name("us2000h8ty-32654"), is_name("../etc"), is_name("a/b"), is_name("x" * 65), is_name("watchlist.json")
    (True, False, False, False, False)
    """
    return re.fullmatch(EVENT_ID, text) is not None and not text.lower().endswith(OUR_SUFFIXES)


def is_event_id(text: str) -> bool:
    """Whether an event may be called so: its folder must be no other's, and no file of ours.

    >>> is_event_id("us2000h8ty"), is_event_id("us2000h8ty-32654"), is_event_id("watchlist.json")
    (True, False, False)
    """
    return is_name(text) and PART_NAME.fullmatch(text) is None


def check_event_id(text: str) -> str:
    """The same text. Raises: ValueError when no event may be called so."""
    if not is_event_id(text):
        raise ValueError("expected an id that is no name of our own files and folders")
    return text


def parse_config(values: Mapping[str, Any]) -> RunConfig:
    """The checked configuration of keys and values; keys may be the flags' names (see `as_keys`).

    Raises: InputError naming each key that does not fit, what was expected and what was got.
    """
    keys = as_keys(values)
    check_whole(keys)
    keys = filled(keys, os.environ)
    if isinstance(keys.get("cluster"), Mapping):
        remember(keys["cluster"].get("options"))
    return _parse(RunConfig, keys)


def parse_training(values: Mapping[str, Any]) -> TrainRun:
    """The checked configuration of a training; keys may be the flags' names.

    Raises: InputError naming each key that does not fit, what was expected and what was got.

    >>> parse_training({"tiles": "tiles", "out": "out", "crop": 128, "loss": ["dice", "focal=0.5"]}).losses
    {'dice': 1.0, 'focal': 0.5}
    """
    return _parse(TrainRun, as_training_keys(values))


def parse_average(values: Mapping[str, Any]) -> AverageRun:
    """The checked configuration of an average.

    Raises: InputError naming each key that does not fit, what was expected and what was got.

    >>> parse_average({"weights": ["a", "b"], "tiles": "tiles", "out": "out", "leave-out": "B"}).leave_out
    ('B',)
    """
    return _parse(AverageRun, _renamed(values, {}))


Config = TypeVar("Config", bound=Strict)


def _parse(kind: type[Config], values: Mapping[str, Any]) -> Config:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError("configuration: " + "; ".join(reasons(error, kind, fix=_flag_of))) from None


def as_training_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values under the keys of `TrainRun`. Raises: InputError when a value is given twice."""
    return _renamed(values, TRAINING_FLAG_NAMES)


def as_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values under the configuration's keys, as a person may write them.

    `block`, `gsd`, `min-area` ... are the flags' names; `post: a.tif` is a list of one; `cluster: tcp://host:8786` is
    its address, and `workers` and `threads` belong to it.

    Raises: InputError when a value is given twice.

    >>> as_keys({"post": "a.tif", "block": 512, "workers": 2})
    {'post': ('a.tif',), 'block_px': 512, 'cluster': {'workers': 2}}
    """
    told = _renamed(values, FLAG_NAMES)
    told |= {key: (told[key],) for key in SEVERAL if isinstance(told.get(key), str)}
    if isinstance(told.get("cluster"), str):
        told["cluster"] = {"address": told["cluster"]}
    stated = told.get("cluster", {})
    placed = {key: told.pop(key) for key in ("workers", "threads") if key in told}
    if not placed or not isinstance(stated, Mapping):
        return told  # a cluster of another type is refused with the other keys
    if twice := sorted(placed.keys() & stated.keys()):
        raise InputError(f"configuration: `{twice[0]}` is given twice (also in `cluster`); keep one of them")
    return {**told, "cluster": {**stated, **placed}}


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name, value in values.items():
        plain = str(name).replace("-", "_")
        key = names.get(plain, plain)
        if key in told:
            raise InputError(f"configuration: `{name}` is given twice (also as `{key}`); keep one of them")
        told[key] = value
    return told


def _flag_of(key: str) -> str:
    """How a missing key is given."""
    if key == "name":
        return "; pass --name EVENT_ID or --event FILE|ID, or a `name` in the configuration"
    return "" if "." in key else f"; pass --{key.replace('_', '-')}, or `{key}` in the configuration"


Environment = Literal["LANDSLIDENET_DATA", "LANDSLIDENET_S3_ENDPOINT", "LANDSLIDENET_POLICY"]


def environment(name: Environment, default: str = "") -> str:
    """A setting of the environment: the only place where it is read."""
    return os.environ.get(name, default)


def data_dir() -> Path:
    """Folder of the real data used by tests and benchmarks."""
    return Path(expand_home(environment("LANDSLIDENET_DATA", "../shared/data"))).resolve()
