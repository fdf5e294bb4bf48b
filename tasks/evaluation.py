"""How good an inventory is against a mapped one: by pixels, by objects, and in total area."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray

from catalog.schema import CLEAR, LANDSLIDE, NOT_OBSERVED, InputError, MaskArray

FOUND_SHARE: Final = 0.1
"""Share of a mapped landslide to be covered before it counts as found; of a predicted one, to be no false alarm.

Kept low on purpose: two careful annotators of the Hokkaido 2018 image reach an IoU of 0.34-0.74 only, so a strict
overlap would score how they draw, whereas a responder asks whether the place was flagged. It is above zero because
neighbours that touch are not a detection. Reported with every score; choose another by `min_overlap`.
"""

SIZE_CLASSES_M2: Final = (1e3, 1e4, 1e5)
"""Bounds between the size classes, decades as in size-frequency plots (Malamud et al. 2004, ESPL 29, 687-711)."""


@dataclass(frozen=True)
class PixelCounts:
    """Pixels by prediction and truth; counts of blocks add up."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    def __add__(self, other: PixelCounts) -> PixelCounts:
        return PixelCounts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)


def pixel_scores(predicted: MaskArray, truth: NDArray[np.bool_], valid: NDArray[np.bool_]) -> PixelCounts:
    """Counts over the pixels that are valid and observed, of a block or of a scene.

    predicted : (y, x) uint8, 1 landslide, 0 clear, 255 not observed (left out); truth, valid : (y, x) bool, `valid` is
    where the truth was mapped.

    Raises: InputError when shapes differ, or when a class is none of the three.

    >>> pixel_scores(np.array([[1, 0, 255]], np.uint8), np.array([[True, True, True]]), np.ones((1, 3), bool))
    PixelCounts(tp=1, fp=0, fn=1, tn=0)
    """
    if not predicted.shape == truth.shape == valid.shape:
        shapes = f"{predicted.shape}, {truth.shape}, {valid.shape}"
        raise InputError(f"predicted, truth and valid: got the shapes {shapes}; expected one; align them first")
    unknown = set(np.unique(predicted).tolist()) - {LANDSLIDE, CLEAR, NOT_OBSERVED}
    if unknown:
        raise InputError(f"predicted: got the classes {sorted(unknown)}; expected 1, 0 and 255; threshold it first")
    counted = valid & (predicted != NOT_OBSERVED)
    code = 2 * (predicted[counted] == LANDSLIDE) + truth[counted].astype(bool)
    tn, fn, fp, tp = (int(n) for n in np.bincount(code, minlength=4))
    return PixelCounts(tp, fp, fn, tn)


def scores(counts: PixelCounts) -> dict[str, float | int | None]:
    """Scores of the landslide class, 0-1 (mcc -1 to 1), with the counts; None where one is undefined.

    Source: Matthews 1975, Biochimica et Biophysica Acta 405, 442-451 (mcc).

    >>> scores(PixelCounts(tp=1, fp=1, fn=0, tn=2))["iou"]
    0.5
    """
    tp, fp, fn, tn = counts.tp, counts.fp, counts.fn, counts.tn
    spread = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return {
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "tn": tn,
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "iou": _ratio(tp, tp + fp + fn),
        "mcc": _ratio(tp * tn - fp * fn, spread),
        "prevalence": _ratio(tp + fn, tp + fp + fn + tn),
    }


def object_scores(
    predicted: gpd.GeoDataFrame,
    truth: gpd.GeoDataFrame,
    *,
    min_overlap: float = FOUND_SHARE,
) -> dict[str, Any]:
    """Detection rate of mapped landslides, in all and by size class, and the share of false alarms in the predictions.

    Both layers in one metric CRS, clipped to the ground that was both mapped and observed (`clip`). A mapped landslide
    is found when at least `min_overlap` of its area is covered by predictions together; a prediction is a false alarm
    when less than that of it is mapped. Size classes go by clipped area. A rate over no object is None.

    Raises: InputError when the layers' CRS differ or are not in metres.
    """
    _check_crs(predicted, truth)
    found_in, mapped = _clean(predicted), _clean(truth)
    found = _covered_share(mapped, found_in) >= min_overlap
    false = _covered_share(found_in, mapped) < min_overlap
    size = np.digitize(shapely.area(mapped), SIZE_CLASSES_M2)
    classes = {name: _detection(found[size == i]) for i, name in enumerate(_class_names())}
    return {
        "min_overlap": min_overlap,
        **_detection(found),
        "predicted": int(false.size),
        "false_alarms": int(false.sum()),
        "false_alarm_share": _ratio(int(false.sum()), false.size),
        "by_size_m2": classes,
    }


def clip(layer: gpd.GeoDataFrame, ground: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """The part of each polygon on the ground, made valid; those outside are left out.

    ground : pieces that do not overlap, in the layer's CRS. A polygon is cut by the pieces it meets only: small ones
    (`catalog.truth.valid_ground`) make this quick where clouds give the ground millions of vertices.

    Raises: InputError when the two CRS differ or are not in metres.
    """
    _check_crs(layer, ground)
    shapes, pieces = _clean(layer), shapely.make_valid(ground.geometry.to_numpy())
    which, piece = shapely.STRtree(pieces).query(shapes, predicate="intersects")
    parts = shapely.intersection(shapes[which], pieces[piece])
    clipped = [parts[a] if b == a + 1 else shapely.union_all(parts[a:b]) for _, a, b in _runs(which)]
    return gpd.GeoDataFrame(geometry=clipped, crs=layer.crs)


def area_error(predicted: gpd.GeoDataFrame, truth: gpd.GeoDataFrame) -> dict[str, float | None]:
    """Total landslide area, m2, predicted and mapped, their difference and ratio, and the part they share.

    Layers as for `object_scores`. Overlaps within a layer (a scar and its deposit) count once.

    Raises: InputError when the layers' CRS differ or are not in metres.
    """
    _check_crs(predicted, truth)
    one, other = (shapely.union_all(_clean(layer)) for layer in (predicted, truth))
    shared = shapely.area(shapely.intersection(one, other))
    return {
        "predicted_m2": float(one.area),
        "truth_m2": float(other.area),
        "difference_m2": float(one.area - other.area),
        "ratio": _ratio(one.area, other.area),
        "shared_m2": float(shared),
        "iou": _ratio(float(shared), float(one.area + other.area - shared)),
    }


def _ratio(part: float, total: float) -> float | None:
    return float(part / total) if total > 0 else None


def _detection(found: NDArray[np.bool_]) -> Mapping[str, float | int | None]:
    count = int(found.sum())
    return {"truth": int(found.size), "found": count, "detection_rate": _ratio(count, found.size)}


def _class_names() -> list[str]:
    """One name a size class.

    >>> _class_names()
    ['<1e3', '1e3-1e4', '1e4-1e5', '>=1e5']
    """
    powers = [f"1e{round(math.log10(bound))}" for bound in SIZE_CLASSES_M2]
    between = [f"{low}-{high}" for low, high in zip(powers, powers[1:], strict=False)]
    return [f"<{powers[0]}", *between, f">={powers[-1]}"]


def _check_crs(one: gpd.GeoDataFrame, other: gpd.GeoDataFrame) -> None:
    if one.crs is None or one.crs != other.crs or not one.crs.is_projected:
        raise InputError(
            f"layers to compare: got the CRS {one.crs} and {other.crs}; expected one projected CRS in metres; "
            "reproject both to the event's UTM zone"
        )


def _clean(layer: gpd.GeoDataFrame) -> NDArray[np.object_]:
    """The layer's polygons made valid; what has no area is dropped."""
    shapes = layer.geometry.to_numpy()
    shapes = shapely.make_valid(shapes[~(shapely.is_missing(shapes) | shapely.is_empty(shapes))])
    # Repairing or clipping can leave lines beside the polygons: without area they cannot be overlaid with them.
    shapes = shapely.buffer(shapes, 0.0)
    kept: NDArray[np.object_] = shapes[shapely.area(shapes) > 0]
    return kept


def _covered_share(shapes: NDArray[np.object_], cover: NDArray[np.object_]) -> NDArray[np.float64]:
    """Share of each shape's area, (n,), that lies under the union of `cover`."""
    area = np.zeros(shapes.size)
    which, under = shapely.STRtree(cover).query(shapes, predicate="intersects")
    for i, start, end in _runs(which):
        area[i] = shapely.intersection(shapes[i], shapely.union_all(cover[under[start:end]])).area
    share: NDArray[np.float64] = area / shapely.area(shapes)
    return share


def _runs(index: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Value, start and end of each run of equal values."""
    starts = np.flatnonzero(np.diff(index, prepend=-1))
    ends = np.append(starts, index.size)[1:]
    return [(int(index[s]), int(s), int(e)) for s, e in zip(starts, ends, strict=True)]
