"""The self-contained report: one HTML file that reads without JavaScript, prints, and asks the net for nothing."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final

import geopandas as gpd
import matplotlib as mpl
import numpy as np
import pandas as pd
from affine import Affine
from jinja2 import Environment, StrictUndefined, Template
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from shapely.geometry import MultiPolygon, Polygon

from catalog.cartography import describe_place, format_area
from catalog.product import CONFIDENCE_COLOURS, Preview, Product, stretch
from catalog.schema import CHANGES, FloatArray

LARGEST_ROWS: Final = 25
MAX_OUTLINES: Final = 6000
"""Landslides drawn in the report's map; beyond that the largest, so that a browser stays quick."""
JPEG_QUALITY: Final = 82
UNSEEN_RGB: Final = (217, 220, 223)
INK, ACCENT = "#1b1f24", "#a31a5c"

ATTRIBUTES: Final[Mapping[str, tuple[str, str]]] = {
    "area_m2": ("Area", "{:,.0f} m²"),
    "confidence": ("Confidence", "{}"),
    "probability_mean": ("Probability, mean", "{:.2f}"),
    "probability_max": ("Probability, highest", "{:.2f}"),
    "length_m": ("Length", "{:,.0f} m"),
    "width_m": ("Width", "{:,.0f} m"),
    "slope_mean_deg": ("Slope, mean", "{:.0f}°"),
    "h_over_l": ("Height / length", "{:.2f}"),
    "relief_m": ("Relief", "{:,.0f} m"),
    "channel_connected": ("Reaches a channel", "{}"),
    "volume_m3": ("Volume, by scaling law", "{:,.0f} m³"),
    "pga_g": ("Peak ground acceleration", "{:.2f} g"),
    "distance_to_epicentre_km": ("Distance to the epicentre", "{:.1f} km"),
    "observed_fraction": ("Observed part", "{:.0%}"),
    "reasons": ("Reasons", "{}"),
    "review_status": ("Review", "{}"),
}
"""Attributes shown on a click and in the table, where the inventory has them: label and format."""
MACHINE_READ: Final = ("mlm", "reliability")
"""Parts of the model card that the report leaves to `item.json` and `run.json`."""
TABLE_COLUMNS: Final = ("area_m2", "confidence", "probability_mean", "slope_mean_deg", "relief_m", "volume_m3")


def render_report(product: Product, preview: Preview) -> str:
    """The report as one HTML document, images and plots inside it."""
    ranked = product.landslides.sort_values("area_m2", ascending=False, kind="stable")
    lonlat = ranked.head(LARGEST_ROWS).representative_point().to_crs(4326)
    return _template().render(
        product=product,
        changes=CHANGES,
        card={key: value for key, value in product.model_card.items() if key not in MACHINE_READ},
        headline=product.headline,
        place=describe_place(product),
        layers=_layers(preview),
        size=preview.shape[::-1],
        outlines=_outlines(ranked.head(MAX_OUTLINES), preview.transform),
        unseen=_unseen_path(product.observed_area, preview),
        colours=dict(CONFIDENCE_COLOURS),
        columns=[(ATTRIBUTES[c][0], c) for c in TABLE_COLUMNS if c in ranked],
        rows=_rows(ranked.head(LARGEST_ROWS)),
        coordinates=[f"{p.y:.5f}, {p.x:.5f}" for p in lonlat],
        size_plot=_size_plot(ranked["area_m2"].to_numpy(np.float64)),
        reasons=_reasons(product.vetoed),
        scale_m=product.grid.gsd_m * preview.factor,
        stages=product.provenance.get("stages", []),
        drawn=min(len(ranked), MAX_OUTLINES),
    )


@cache
def _template() -> Template:
    source = files("catalog").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"area": format_area, "flat": flatten, "shown": _shown}
    return environment.from_string(source)


def flatten(value: object, prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as (dotted key, text) rows, for a table.

    >>> flatten({"dem": {"gsd_m": 30, "void": []}})
    [('dem.gsd_m', '30'), ('dem.void', 'none')]
    """
    if isinstance(value, Mapping):
        return [
            row for key, inner in value.items() for row in flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(value, list | tuple):
        return [(prefix, ", ".join(_shown(v) for v in value) or "none")]
    return [(prefix, _shown(value))]


def _shown(value: object) -> str:
    """A value as a person writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _layers(preview: Preview) -> list[dict[str, str]]:
    layers = [{"key": "post", "label": "After", "uri": _jpeg(stretch(preview.post))}]
    if preview.pre is not None:
        layers.insert(0, {"key": "pre", "label": "Before", "uri": _jpeg(stretch(preview.pre))})
    return [*layers, {"key": "probability", "label": "Probability", "uri": _jpeg(_coloured(preview.probability))}]


def _coloured(probability: FloatArray) -> NDArray[np.uint8]:
    seen = np.isfinite(probability)
    image: NDArray[np.uint8] = mpl.colormaps["magma"](np.where(seen, probability, 0), bytes=True)
    image[..., 3] = np.where(seen, 255, 0)
    return image


def _jpeg(rgba: NDArray[np.uint8]) -> str:
    """Data URI; what is transparent becomes the grey of unseen ground."""
    rgb = np.where(rgba[..., 3:] > 0, rgba[..., :3], np.array(UNSEEN_RGB, np.uint8))
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _outlines(landslides: gpd.GeoDataFrame, transform: Affine) -> list[dict[str, Any]]:
    """Each landslide as an SVG path in preview pixels, with the attributes that a click shows."""
    pixels = landslides.geometry.affine_transform(_shapely_inverse(transform)).simplify(0.35)
    return [
        {"id": row["id"], "confidence": row["confidence"], "path": _svg_path(shape), "facts": _facts(row)}
        for row, shape in zip(landslides.to_dict("records"), pixels, strict=True)
    ]


def _facts(row: Mapping[Any, Any]) -> list[tuple[str, str]]:
    return [(label, text) for name, (label, _) in ATTRIBUTES.items() if (text := _formatted(row, name))]


def _rows(landslides: gpd.GeoDataFrame) -> list[dict[str, str]]:
    return [
        {"id": str(row["id"]), **{name: _formatted(row, name) or "–" for name in TABLE_COLUMNS}}
        for row in landslides.to_dict("records")
    ]


def _formatted(row: Mapping[Any, Any], name: str) -> str:
    """The attribute as text; empty where the inventory has none."""
    value = row.get(name)
    if isinstance(value, list | tuple):
        value = "; ".join(map(str, value))
    if value is None or pd.isna(value) or value == "":
        return ""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if name == "volume_m3":  # scaling laws do not carry more than two digits
        value = float(f"{value:.2g}")
    return ATTRIBUTES[name][1].format(value)


def _unseen_path(observed: gpd.GeoDataFrame, preview: Preview) -> str:
    """SVG path of the preview outside the observed area (to be filled even-odd)."""
    rows, cols = preview.shape
    pixels = observed.geometry.affine_transform(_shapely_inverse(preview.transform))
    # to keep rings apart takes GEOS a gigabyte for the clouds of a large scene; an even-odd fill does not need it
    shapes = pixels.simplify(0.5, preserve_topology=False)
    return f"M0 0H{cols}V{rows}H0Z" + "".join(_svg_path(shape) for shape in shapes)


def _shapely_inverse(transform: Affine) -> list[float]:
    inverse = ~transform
    return [inverse.a, inverse.b, inverse.d, inverse.e, inverse.c, inverse.f]


def _svg_path(shape: Polygon | MultiPolygon) -> str:
    parts = shape.geoms if isinstance(shape, MultiPolygon) else [shape]
    rings = [ring for part in parts if not part.is_empty for ring in (part.exterior, *part.interiors)]
    return "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y, *_ in ring.coords[:-1]) + "Z" for ring in rings)


def _reasons(vetoed: gpd.GeoDataFrame) -> Sequence[tuple[str, int]]:
    """Reasons for rejection and how often each was given, most frequent first."""
    lists = vetoed["reasons"].map(lambda r: list(r) if isinstance(r, list | tuple) else str(r).split(";"))
    counts = lists.explode().dropna().astype(str).str.strip().value_counts()
    return sorted(((str(reason), int(n)) for reason, n in counts.items()), key=lambda item: (-item[1], item[0]))


def _size_plot(area_m2: NDArray[np.float64]) -> str:
    """Inline SVG: number of landslides at least as large as an area, on logarithmic axes; empty below five of them."""
    if len(area_m2) < 5:
        return ""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "landslidenet", "font.family": "sans-serif"}):
        figure = Figure(figsize=(5.2, 3.3))
        axes = figure.add_axes((0.13, 0.16, 0.85, 0.80))
        sizes = np.sort(area_m2)[::-1]
        axes.step(sizes, np.arange(1, len(sizes) + 1), where="pre", color=ACCENT, linewidth=1.6)
        median = float(np.median(sizes))
        axes.axvline(median, color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.annotate(f"median {format_area(median)}", (median, 1), xytext=(5, 4), textcoords="offset points",
                      fontsize=9, color=INK)  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="area, m²", ylabel="landslides at least this large",
                 ylim=(0.9, 10 ** math.ceil(math.log10(len(sizes) + 1))))  # fmt: skip
        axes.grid(True, which="major", color="#e3e5e8", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
