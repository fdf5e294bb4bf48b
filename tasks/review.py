"""What the command line does beside the flows: simulate an event, evaluate a product. No network is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from catalog.schema import InputError
from catalog.simulated import Report, keep_quiet, write_simulated_event
from catalog.truth import (
    check_reference_raster,
    is_raster,
    open_mapped,
    read_polygons,
    read_strips,
    valid_ground,
)
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


def evaluate_product(product: Path, *, truth: str, aoi: Path | None, valid: Path | None) -> dict[str, Any]:
    """Pixel scores, object detection and area error of a product against a reference map.

    Raises: InputError when product or reference cannot be read, or nothing of the product lies on the reference.
    """
    with open_mapped(product) as mapped:
        area = read_polygons(str(aoi), epsg=mapped.epsg, what="aoi") if aoi else None
        seen = check_reference_raster(valid, what="valid") if valid else None
        reference = (
            check_reference_raster(Path(truth), what="truth")
            if is_raster(truth)
            else read_polygons(truth, epsg=mapped.epsg)
        )
        counts = PixelCounts()
        for strip in read_strips(mapped.classes, truth=reference, aoi=area, valid=seen):
            counts += pixel_scores(strip.predicted, strip.truth, strip.valid)
        if counts == PixelCounts():
            raise InputError(f"{product}: no observed pixel lies on the reference {truth}; check that they overlap")
        result: dict[str, Any] = {"product": str(product), "truth": truth, "pixels": scores(counts)}
        if isinstance(reference, Path):
            return result
        ground = valid_ground(mapped.classes, aoi=area, valid=seen)
        layers = clip(mapped.outlines(), ground), clip(reference, ground)
        return result | {"objects": object_scores(*layers), "area": area_error(*layers)}
