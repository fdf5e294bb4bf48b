"""What the command line does beside the flows: simulate an event, evaluate a product. No network is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from geopandas import GeoDataFrame

from catalog.outlines import read_outlines
from catalog.paths import expand_home
from catalog.references import Reference, read_reference
from catalog.schema import InputError
from catalog.simulated import Report, keep_quiet, write_simulated_event
from catalog.truth import Mapped, check_overlap, is_raster, open_mapped, read_strips, valid_ground
from tasks.appearance import render
from tasks.evaluation import PixelCounts, area_error, clip, object_scores, pixel_scores, scores
from tasks.simulation import simulate


def simulate_event(
    out: Path, *, size_px: int, gsd_m: float, seed: int, sensor: str, report: Report = keep_quiet
) -> dict[str, Path]:
    """The files of a simulated event by role: pre, post, dem, event, truth; `report` hears how far it is."""
    report("earthquake", 0, 1)
    event = simulate(size_px=size_px, gsd_m=gsd_m, seed=seed, sensor=sensor)  # type: ignore[arg-type]
    report("earthquake", 1, 1)
    return write_simulated_event(
        event,
        out,
        render=lambda epoch, rows: render(event, epoch=epoch, rows=rows),  # type: ignore[arg-type]
        report=report,
    )


def evaluate_product(product: Path, *, truth: str, aoi: str | Path | None, valid: str | Path | None) -> dict[str, Any]:
    """Pixel scores, object detection and area error of a product against a reference map, and what was read of it.

    truth : polygons, FILE[:LAYER[,LAYER]], or a raster; aoi : likewise polygons; valid : a raster.

    Raises: InputError when product or reference cannot be read, or nothing of the product lies on the reference.
    """
    with open_mapped(Path(expand_home(str(product)))) as mapped:
        read: list[str] = []
        area = _outlines(str(aoi), mapped, what="aoi", read=read) if aoi else None
        seen = _reference(str(valid), mapped, what="valid", read=read) if valid else None
        reference = (_reference if is_raster(truth) else _outlines)(truth, mapped, what="truth", read=read)
        counts = PixelCounts()
        for strip in read_strips(mapped.classes, truth=reference, aoi=area, valid=seen):
            counts += pixel_scores(strip.predicted, strip.truth, strip.valid)
        if counts == PixelCounts():
            raise InputError(
                f"{product}: none of its observed pixels lies where truth{', aoi' if aoi else ''}"
                f"{' and valid' if valid else ''} say something; check that they are of the same place"
            )
        result: dict[str, Any] = {"product": str(product), "truth": truth, "read": read, "pixels": scores(counts)}
        if isinstance(reference, Reference):
            return result
        ground = valid_ground(mapped.classes, aoi=area, valid=seen)
        layers = clip(mapped.outlines(), ground), clip(reference, ground)
        return result | {"objects": object_scores(*layers), "area": area_error(*layers)}


def _outlines(source: str, mapped: Mapped, *, what: str, read: list[str]) -> GeoDataFrame:
    """Polygons in the product's CRS, some of which lie on it; what was read is added to `read`."""
    found = read_outlines(source, what=what)
    placed = found.in_crs(mapped.epsg)
    check_overlap(placed, mapped.classes, what=what, name=source)
    read.append(found.sentence)
    return placed


def _reference(source: str, mapped: Mapped, *, what: str, read: list[str]) -> Reference:
    """A raster, some of which lies on the product; what was read is added to `read`."""
    found = read_reference(expand_home(source), what=what)
    check_overlap(found, mapped.classes, what=what, name=source)
    read.append(found.sentence)
    return found
