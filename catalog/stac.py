"""The product as a STAC item with relative assets, and the event's versions as a collection."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import geopandas as gpd
import numpy as np
import pystac
import shapely
from pystac.errors import STACError, STACTypeError
from pystac.extensions.projection import ProjectionExtension
from pystac.utils import datetime_to_str
from shapely.geometry import mapping

from catalog.areas import one_way_round
from catalog.files import write_whole
from catalog.folders import version_folders
from catalog.grid import bbox_of
from catalog.product import Product
from catalog.schema import DISAGREEMENT, LANDSLIDE_CLASS, PROBABILITY, Variable

logger = logging.getLogger(__name__)

RASTER_SCHEMA: Final = "https://stac-extensions.github.io/raster/v2.0.0/schema.json"
MLM_SCHEMA: Final = "https://stac-extensions.github.io/mlm/v1.4.0/schema.json"
COG: Final = pystac.MediaType.COG
LICENCE: Final = "other"
FOOTPRINT_PX: Final = 4
"""How far an item's geometry may be from the outline of the observed area."""

ASSETS: Final = (
    ("inventory", "inventory.gpkg", pystac.MediaType.GEOPACKAGE, "Inventory, styled for QGIS", ("data",)),
    ("inventory_parquet", "inventory.parquet", "application/vnd.apache.parquet", "Landslides, GeoParquet", ("data",)),
    ("probability", "probability.tif", COG, "Landslide probability", ("data",)),
    ("class", "class.tif", COG, "Landslide, clear or not observed", ("data",)),
    (
        "disagreement",
        "disagreement.tif",
        COG,
        "Disagreement of overlapping windows; nodata where one only saw the ground",
        ("data", "uncertainty"),
    ),
    ("map", "map.png", pystac.MediaType.PNG, "Map", ("overview", "thumbnail")),
    ("report", "report.html", pystac.MediaType.HTML, "Report", ("overview",)),
    ("run", "run.json", pystac.MediaType.JSON, "Configuration, versions, hashes and timings", ("metadata",)),
)
NETWORK_TITLE: Final = "The network's card with the digest of its weights, under `model`"
NETWORK_ROLES: Final = ["metadata", "mlm:model"]
"""MLM asks for one asset of this role; weights stay where they are, a product holds their card."""
_RASTERS: Final[Mapping[str, Variable]] = {
    "probability": PROBABILITY,
    "class": LANDSLIDE_CLASS,
    "disagreement": DISAGREEMENT,
}


def write_item(product: Product, folder: Path) -> Path:
    """`item.json`: a STAC item with the projection, raster and MLM extensions' fields and relative links."""
    return write_whole(folder / "item.json", _as_json(build_item(product).to_dict(include_self_link=False)))


def write_collection(product: Product, event_dir: Path) -> Path:
    """`collection.json` of an event's folder: it links the item of every version published so far."""
    return refresh_collection(event_dir, event_id=product.event_id, title=product.title)


def refresh_collection(event_dir: Path, *, event_id: str, title: str, without: str = "") -> Path:
    """`collection.json` of an event's folder, from the items of the versions that are there but the one to go.

    Without any there is none.
    """
    path = event_dir / "collection.json"
    known = [(folder, _read_item(folder / "item.json")) for _, folder in version_folders(event_dir)]
    items = [(folder, item) for folder, item in known if item and folder.name != without]
    if not items:
        path.unlink(missing_ok=True)
        return path
    boxes = [item.bbox for _, item in items if item.bbox]
    times = [item.datetime for _, item in items if item.datetime]
    corners = np.array([[(b[0], b[1]), (b[2], b[3])] for b in boxes]).reshape(-1, 2)
    union = list(bbox_of(corners.T))
    collection = pystac.Collection(
        id=event_id,
        title=title,
        description=f"Landslide inventories of {title}, one item a version.",
        extent=pystac.Extent(pystac.SpatialExtent([union]), pystac.TemporalExtent([[min(times), max(times)]])),
        license=LICENCE,
    )
    document = collection.to_dict(include_self_link=False)
    document["links"] = [{"rel": "root", "href": "./collection.json", "type": "application/json"}] + [
        {"rel": "item", "href": f"./{folder.name}/item.json", "type": "application/geo+json"} for folder, _ in items
    ]
    return write_whole(path, _as_json(document))


def _read_item(path: Path) -> pystac.Item | None:
    """The item of a version; None, with a warning, where it is missing or damaged: the others stay linked."""
    try:
        item = pystac.Item.from_dict(json.loads(path.read_text("utf-8")))
        if item.datetime is None or item.bbox is None or len(item.bbox) != 4:
            raise ValueError("without a time or a bounding box")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, STACTypeError, STACError) as error:
        logger.warning("%s: cannot be read (%r); the collection leaves it out until it is restored", path, error)
        return None
    return item


def build_item(product: Product) -> pystac.Item:
    """The STAC item of a product; its geometry is the footprint, its datetime the first post-event scene's.

    The network's fields (MLM) are the model card's.
    """
    footprint = _footprint(product)
    when, source = _datetime(product)
    network = product.model_card.get("mlm", {})
    item = pystac.Item(
        id=f"{product.event_id}-v{product.version}",
        geometry=mapping(footprint),
        bbox=list(bbox_of(shapely.get_coordinates(footprint).T)),
        datetime=when,
        properties={
            "title": f"Landslide inventory of {product.title}, version {product.version}",
            "version": str(product.version),
            "gsd": product.grid.gsd_m,
            **_range(product),
            "landslidenet:datetime_source": source,
            "landslidenet:landslides": product.headline.count,
            "landslidenet:landslide_area_m2": round(product.headline.area_m2),
            "landslidenet:landslide_area_range_m2": [round(area) for area in product.headline.area_range_m2],
            "landslidenet:observed_area_m2": round(product.headline.observed_m2),
            **network,
            **_bands(network),
        },
        stac_extensions=[RASTER_SCHEMA, *([MLM_SCHEMA] if network else [])],
        collection=product.event_id,
    )
    box = product.grid.geobox_of(product.window)
    ProjectionExtension.ext(item, add_if_missing=True).apply(
        code=f"EPSG:{product.grid.epsg}", shape=list(box.shape), transform=list(box.transform)[:6]
    )
    for key, href, media_type, title, roles in ASSETS:
        extra = _raster_fields(_RASTERS[key]) if key in _RASTERS else None
        item.add_asset(key, pystac.Asset(f"./{href}", title, None, str(media_type), list(roles), extra))
    if network:
        item.add_asset("network", pystac.Asset("./run.json", NETWORK_TITLE, None, pystac.MediaType.JSON, NETWORK_ROLES))
    for rel in ("root", "parent", "collection"):
        item.add_link(pystac.Link(rel, "../collection.json", "application/json"))
    return item


def _bands(network: Mapping[str, Any]) -> dict[str, Any]:
    """The bands that the network takes, by name: MLM asks that an item describes them."""
    names = dict.fromkeys(name for given in network.get("mlm:input", ()) for name in given["bands"])
    return {"bands": [{"name": name} for name in names]} if names else {}


def _footprint(product: Product) -> shapely.Geometry:
    """Where the product looks, in degrees: the observed area without the holes of its clouds, to a few pixels.

    The exact outline is a layer of the inventory; in an item it would be 51 MB for 4096 x 4096 pixels.
    """
    ground = product.observed_area.geometry
    outlines = shapely.polygons(shapely.get_exterior_ring(shapely.get_parts(ground.to_numpy())))
    filled = gpd.GeoSeries([shapely.union_all(outlines)], crs=ground.crs)
    return one_way_round(filled.simplify(FOOTPRINT_PX * product.grid.gsd_m).to_crs(4326).iloc[0])


def _raster_fields(variable: Variable) -> dict[str, Any]:
    band: dict[str, Any] = {
        "name": variable.name,
        "description": variable.long_name,
        "data_type": variable.dtype,
        "nodata": int(variable.nodata),
        "unit": variable.units,
    }
    if not variable.is_mask:
        band |= {"raster:scale": variable.scale, "raster:offset": variable.offset}
    return {"bands": [band]}


def _datetime(product: Product) -> tuple[datetime, str]:
    """When the ground was seen, or the nearest thing known, and which of these it is."""
    if product.post_time_utc is not None:
        return product.post_time_utc[0].astimezone(UTC), "post_scenes"
    if product.event is not None and product.event.time_utc is not None:
        return product.event.time_utc.astimezone(UTC), "event"
    return datetime.now(UTC), "published"


def _range(product: Product) -> dict[str, str]:
    """`start_datetime` and `end_datetime` where the post-event scenes are of several times."""
    first, last = product.post_time_utc or (None, None)
    if first is None or last is None or first == last:
        return {}
    return {f"{name}_datetime": datetime_to_str(time) for name, time in (("start", first), ("end", last))}


def _as_json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
