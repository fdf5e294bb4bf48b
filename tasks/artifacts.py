"""What the Prefect UI shows of a run: progress by blocks, the stage table, the map with its numbers, what changed."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any, Final

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from catalog.cartography import read_thumbnail
from catalog.markdown import plain
from catalog.product import Difference, Product
from catalog.schema import CHANGES
from tasks.stages import Report, StageRecord

ARTIFACT_MAP_PX: Final = 900
"""Longest side of the map in the Prefect UI, which refuses artifacts of megabytes."""


def _key(title: str) -> str:
    return title.lower().replace(" ", "-")


def progress_of(title: str, *, unit: str = "blocks") -> Report:
    """A report that moves a progress artifact of the Prefect UI."""
    artifact: Any = create_progress_artifact(progress=0.0, key=_key(title), description=f"{title}: {unit}")

    def report(done: int, total: int) -> None:
        update_progress_artifact(artifact, progress=100.0 * done / max(total, 1))
        _follow(title, done, total)

    return report


LOSSES_EVERY: Final = 25
"""Training steps of a row of the losses' table."""


def losses_of(title: str) -> Callable[[int, int, Mapping[str, float]], None]:
    """A report of a training step: moves the progress, and adds the mean losses of every 25 steps to a table."""
    progress = progress_of(title, unit="training steps")
    recent: list[Mapping[str, float]] = []
    rows: list[dict[str, float]] = []

    def report(step: int, total: int, losses: Mapping[str, float]) -> None:
        progress(step, total)
        recent.append(losses)
        if step % LOSSES_EVERY == 0 or step == total:
            means = {name: round(mean(told[name] for told in recent), 4) for name in losses}
            recent.clear()
            rows.append({"step": step, **means})
            create_table_artifact(table=rows, key=f"{_key(title)}-losses", description=f"{title}: mean losses so far")

    return report


_LISTENERS: Final[list[Callable[[str, int, int], None]]] = []


def _follow(title: str, done: int, total: int) -> None:
    for listener in _LISTENERS:
        listener(title, done, total)


@contextmanager
def following(listener: Callable[[str, int, int], None]) -> Iterator[None]:
    """Call `listener(stage, done, total)` for every finished block inside: the command line's progress bars."""
    _LISTENERS.append(listener)
    try:
        yield
    finally:
        _LISTENERS.remove(listener)


def show_product(folder: Path, product: Product, records: Sequence[StageRecord]) -> None:
    """The stage table, and the map with links and numbers, as artifacts of the flow run."""
    create_table_artifact(table=[r.as_dict() for r in records], key="stages", description="What each stage cost")
    picture = base64.b64encode(read_thumbnail(folder / "map.png", max_px=ARTIFACT_MAP_PX)).decode()
    head = product.headline
    lines = [
        f"# {plain(product.title)}, version {product.version}",
        f"**{head.count} landslides**, {head.area_m2 / 1e6:.3f} km²; {head.observed_percent:.1f} % observed.",
        f"![map](data:image/jpeg;base64,{picture})",
        *(f"- used: {sentence}" for sentence in product.used),
        *(f"- not used: {sentence}" for sentence in product.not_used),
        *(f"- **warning**: {sentence}" for sentence in product.warnings),
        f"- product: `{folder}`",
    ]
    if product.difference is not None:
        _show_difference(product.difference)
    create_markdown_artifact("\n\n".join(lines), key="map", description="Map and headline numbers")


def _show_difference(difference: Difference) -> None:
    told = difference.as_dict()
    ids = told.pop("ids")
    rows = [{"landslides": change, "number": told[change], "meaning": text, "ids": ", ".join(ids.get(change, []))}
            for change, text in CHANGES.items()]  # fmt: skip
    seen = difference.newly_observed_m2
    ground = "" if seen is None else f"; {seen / 1e6:.3f} km² seen for the first time"
    create_table_artifact(table=rows, key="difference", description=f"Since version {difference.before}{ground}")
