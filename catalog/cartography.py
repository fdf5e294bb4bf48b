"""The map a duty officer prints: post-event imagery, outlined landslides, and what was not seen."""

from __future__ import annotations

import math
from io import BytesIO
from pathlib import Path
from typing import Final

import geopandas as gpd
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon, Rectangle
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image
from pyproj import Geod, Transformer

from catalog.product import CONFIDENCE_COLOURS, Preview, Product, stretch

MAP_INCHES: Final = 9.0
"""Longer side of the map; the page is never narrower than `PAGE_INCHES`."""
PAGE_INCHES: Final = 7.6
DPI: Final = 180
INK, MUTED, UNSEEN = "#1b1f24", "#5c6570", "#d9dcdf"
HATCH: Final = "#a9afb6"
_STEPS: Final = (1, 2, 5)
_COMPASS: Final = ("N", "NE", "E", "SE", "S", "SW", "W", "NW")


def draw_map(product: Product, preview: Preview, path: Path) -> Path:
    """`map.png`: the event's map with scale, ticks, legend, numbers and credits, for a scene of any aspect."""
    left, right, bottom, top = preview.extent_m
    scale = MAP_INCHES / max(right - left, top - bottom)
    map_width, map_height = (max((right - left) * scale, 0.4), max((top - bottom) * scale, 0.4))
    width, above, below = max(map_width + 1.0, PAGE_INCHES), 1.05, 2.05
    height = map_height + above + below
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    x0 = max(0.7, (width - map_width) / 2 if map_width < width - 1.0 else 0.7)
    axes = figure.add_axes((x0 / width, below / height, map_width / width, map_height / height))
    _draw_ground(axes, product, preview)
    _draw_landslides(axes, product.landslides, line_pt=_line_pt(len(product.landslides)))
    _draw_epicentre(axes, product, preview)
    _draw_ticks(axes, product, inches=(map_width, map_height))
    _draw_title(figure, product, width, height)
    _draw_footer(figure, product, preview, width, height, m_per_inch=1 / scale)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return path


def describe_place(product: Product) -> str:
    """Where the map is, in words: centre, and distance and direction from the epicentre where it is known."""
    lon, lat = product.grid.centre_lonlat
    text = f"{abs(lat):.2f}° {'N' if lat >= 0 else 'S'}, {abs(lon):.2f}° {'E' if lon >= 0 else 'W'}"
    event = product.event
    if event is None or event.longitude is None or event.latitude is None:
        return f"Centre {text}"
    azimuth, _, metres = Geod(ellps="WGS84").inv(event.longitude, event.latitude, lon, lat)
    compass = _COMPASS[round((azimuth % 360) / 45) % 8]
    return f"Centre {text}, {metres / 1000:.0f} km {compass} of the epicentre"


def format_area(area_m2: float) -> str:
    """An area with three significant digits in the unit that reads best.

    >>> format_area(812), format_area(45_300), format_area(3_214_000)
    ('812 m²', '4.53 ha', '3.21 km²')
    """
    value, unit = (area_m2 / 1e6, "km²") if area_m2 >= 1e6 else (area_m2 / 1e4, "ha")
    if area_m2 < 1e4:
        value, unit = area_m2, "m²"
    digits = max(0, 2 - math.floor(math.log10(value))) if value >= 1 and unit != "m²" else 0
    return f"{value:,.{digits}f} {unit}"


def _line_pt(count: int) -> float:
    """Thinner outlines where there are many, so that small landslides stay visible inside them."""
    return float(np.interp(math.log10(count + 1), (1.5, 3.7), (1.5, 0.5)))


def _draw_ground(axes: Axes, product: Product, preview: Preview) -> None:
    left, right, bottom, top = preview.extent_m
    axes.set_facecolor(UNSEEN)
    with_hatch = Rectangle((left, bottom), right - left, top - bottom, facecolor=UNSEEN, edgecolor=HATCH,
                           hatch="////", linewidth=0, zorder=0)  # fmt: skip
    axes.add_patch(with_hatch)
    image = stretch(preview.post)
    image[..., 3] = np.where(np.isfinite(preview.probability), image[..., 3], 0)
    axes.imshow(image, extent=preview.extent_m, interpolation="antialiased", zorder=1, aspect="equal")
    edge = product.observed_area.boundary.simplify(abs(preview.transform.a), preserve_topology=False)
    if not edge.is_empty.all():
        edge.plot(ax=axes, color=INK, linewidth=0.5, linestyle=(0, (4, 2)), zorder=2, aspect=None)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.set(xlabel="", ylabel="")


def _draw_landslides(axes: Axes, landslides: gpd.GeoDataFrame, *, line_pt: float) -> None:
    for zorder, (name, colour) in enumerate([*CONFIDENCE_COLOURS.items()][::-1], start=4):
        shapes = landslides.geometry[landslides["confidence"].astype(str) == name]
        rings = [
            np.asarray(ring.coords)[:, :2] for shape in shapes.explode() for ring in (shape.exterior, *shape.interiors)
        ]
        if rings:
            casing = [Stroke(linewidth=line_pt + 0.9, foreground="black", alpha=0.55), Normal()]
            axes.add_collection(PolyCollection(rings, facecolor="none", edgecolor=colour, linewidth=line_pt,
                                               path_effects=casing, zorder=zorder), autolim=False)  # fmt: skip


def _draw_epicentre(axes: Axes, product: Product, preview: Preview) -> None:
    event = product.event
    if event is None or event.longitude is None or event.latitude is None:
        return
    x, y = Transformer.from_crs(4326, product.grid.epsg, always_xy=True).transform(event.longitude, event.latitude)
    left, right, bottom, top = preview.extent_m
    if left <= x <= right and bottom <= y <= top:
        axes.plot(x, y, marker="*", markersize=15, color="white", markeredgecolor="black", zorder=8)


def _draw_ticks(axes: Axes, product: Product, *, inches: tuple[float, float]) -> None:
    """UTM kilometre ticks, and small crosses where they meet instead of lines across the imagery."""
    for axis, size in zip((axes.xaxis, axes.yaxis), inches, strict=True):
        axis.set_major_locator(MaxNLocator(nbins=max(1, int(size / 1.6)), steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda metres, _: f"{metres / 1000:,.4g}" if metres < 1e6
                                               else f"{metres / 1000:,.1f}".removesuffix(".0")))  # fmt: skip
    axes.tick_params(labelsize=7, colors=MUTED, length=3, width=0.5, direction="out", top=True, right=True)
    for label in axes.get_yticklabels():
        label.set(rotation=90, va="center")
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    xs = [x for x in axes.get_xticks() if x0 < x < x1]
    ys = [y for y in axes.get_yticks() if y0 < y < y1]
    if xs and ys:
        cross = np.array(np.meshgrid(xs, ys)).reshape(2, -1)
        axes.scatter(cross[0], cross[1], marker="+", s=22, linewidths=0.5, color="white", alpha=0.8, zorder=3)
    for spine in axes.spines.values():
        spine.set(linewidth=0.7, color=INK)


def _draw_title(figure: Figure, product: Product, width: float, height: float) -> None:
    event, headline = product.event, product.headline
    figure.text(0.7 / width, 1 - 0.32 / height, f"Landslides, {product.title}", fontsize=15, fontweight="bold",
                color=INK, va="center")  # fmt: skip
    facts = [f"{event.time_utc.day} {event.time_utc:%B %Y, %H:%M UTC}" if event and event.time_utc else "",
             f"M {event.magnitude:.1f}" if event and event.magnitude is not None else "",
             f"inventory v{product.version}"]  # fmt: skip
    figure.text(0.7 / width, 1 - 0.58 / height, "  ·  ".join(f for f in facts if f), fontsize=9, color=MUTED,
                va="center")  # fmt: skip
    counted = f"{headline.count:,} landslide{'' if headline.count == 1 else 's'}"
    numbers = (f"{counted}, {format_area(headline.area_m2)}" if headline.count else "No landslide detected") + (
        f"  ·  observed {format_area(headline.observed_m2)}, {headline.observed_percent:.0f} % of the scene"
    )
    figure.text(0.7 / width, 1 - 0.81 / height, numbers, fontsize=9.5, color=INK, va="center")


def _draw_footer(
    figure: Figure, product: Product, preview: Preview, width: float, height: float, *, m_per_inch: float
) -> None:
    """Scale bar and north arrow, legend, and the lines that say where this is and what it came from."""
    footer = figure.add_axes((0, 0, 1, 1.62 / height))
    footer.set(xlim=(0, width), ylim=(0, 1.62))
    footer.axis("off")
    _draw_scale_bar(footer, m_per_inch=m_per_inch, max_inches=min(2.2, width * 0.25))
    counts = product.headline.by_confidence
    handles: list[Patch | Line2D] = [
        Patch(
            facecolor="none", edgecolor=colour, linewidth=1.8, label=f"landslide, {name} confidence ({counts[name]:,})"
        )
        for name, colour in CONFIDENCE_COLOURS.items()
    ]
    handles.append(Patch(facecolor=UNSEEN, edgecolor=HATCH, hatch="////", linewidth=0.5,
                         label="not observed: nothing is known here"))  # fmt: skip
    handles.append(Line2D([], [], color=INK, linewidth=0.8, linestyle=(0, (4, 2)), label="limit of the observed area"))
    footer.legend(handles=handles, loc="upper left", bbox_to_anchor=(3.35 / width, 1.02), frameon=False, fontsize=8,
                  labelcolor=INK, ncols=2 if width > 8.2 else 1, handlelength=1.6, labelspacing=0.45)  # fmt: skip
    zone = f"WGS 84 / UTM, EPSG:{product.grid.epsg}; grid ticks in km"
    pixel = f"pixels of {product.grid.gsd_m:g} m" + (f", shown at {product.grid.gsd_m * preview.factor:g} m"
                                                     if preview.factor > 1 else "")  # fmt: skip
    credit = str(product.provenance.get("credit", "")) or "imagery: see run.json for its sources and licence"
    model = product.model_card.get("name", "unknown model")
    for y, text in ((0.30, f"{describe_place(product)}.  {zone}; {pixel}."),
                    (0.14, f"Automatic detection ({model}), not field-checked.  Credit: {credit}.")):  # fmt: skip
        footer.text(0.7, y, text, fontsize=6.8, color=MUTED, va="center")


def _draw_scale_bar(footer: Axes, *, m_per_inch: float, max_inches: float) -> None:
    most = m_per_inch * max_inches
    power = 10 ** math.floor(math.log10(most))
    length = max(step * power for step in _STEPS if step * power <= most)
    inches, x, y = length / m_per_inch, 0.7, 1.2
    for i in range(4):
        footer.add_patch(Rectangle((x + i * inches / 4, y), inches / 4, 0.07, linewidth=0.6, edgecolor=INK,
                                   facecolor=INK if i % 2 == 0 else "white"))  # fmt: skip
    unit, size = ("km", length / 1000) if length >= 1000 else ("m", length)
    for share in (0.0, 0.5, 1.0):
        label = f"{size * share:g}" + (f" {unit}" if share == 1 else "")
        footer.text(x + share * inches, y + 0.13, label, fontsize=7.5, color=INK, ha="center", va="bottom")
    arrow = np.array([(0, 0.42), (0.11, 0), (0, 0.09), (-0.11, 0)]) + (x + 0.12, 0.58)
    footer.add_patch(Polygon(arrow, closed=True, facecolor=INK, linewidth=0))
    footer.text(x + 0.34, 0.74, "N", fontsize=10, fontweight="bold", color=INK, ha="center", va="center")
    footer.text(x + 0.52, 0.74, "grid north", fontsize=7, color=MUTED, va="center")


def read_thumbnail(path: Path, *, max_px: int) -> bytes:
    """A picture as JPEG of at most `max_px` a side."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
        small.thumbnail((max_px, max_px))
        stream = BytesIO()
        small.save(stream, "JPEG", quality=80)
    return stream.getvalue()
