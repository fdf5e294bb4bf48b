"""Vector products: a GeoPackage that QGIS opens styled, and GeoParquet."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import Final

import geopandas as gpd
import pandas as pd
import pyogrio
from jinja2 import Environment, StrictUndefined

from catalog.product import CONFIDENCE_COLOURS, Product
from catalog.schema import INVENTORY_COLUMNS

LAYERS: Final = ("landslides", "vetoed", "observed_area")

_STYLE_TABLE: Final = """
CREATE TABLE layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), f_table_schema TEXT(256),
    f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT,
    useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30),
    update_time DATETIME DEFAULT '1970-01-01T00:00:00.000Z');
INSERT INTO gpkg_contents (table_name, data_type, identifier) VALUES ('layer_styles', 'attributes', 'layer_styles');
"""
"""The table QGIS keeps default styles in (QgsProviderRegistry; QGIS user manual, "Saving styles in a database")."""


def write_geopackage(product: Product, folder: Path) -> Path:
    """`inventory.gpkg`: layers landslides, vetoed, observed_area, changes (from version 2 on), metadata, and styles."""
    path = folder / "inventory.gpkg"
    for name in LAYERS:
        layer = flat(getattr(product, name))
        pyogrio.write_dataframe(layer, path, layer=name, driver="GPKG", geometry_type="MultiPolygon",
                                promote_to_multi=True)  # fmt: skip
    if product.difference is not None:
        pyogrio.write_dataframe(product.difference.table, path, layer="changes", driver="GPKG",
                                geometry_type="MultiPolygon", promote_to_multi=True)  # fmt: skip
    table = pd.DataFrame(list(_metadata(product).items()), columns=["key", "value"])
    pyogrio.write_dataframe(table, path, layer="metadata", driver="GPKG")
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(_STYLE_TABLE)
        for name in LAYERS:
            db.execute(
                "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName,"
                " styleQML, styleSLD, useAsDefault, description, owner) VALUES ('', '', ?, 'geom', ?, ?, '', 1, ?, '')",
                (name, name, qgis_style(name), f"default style of {name}"),
            )
    return path


def write_geoparquet(product: Product, folder: Path) -> Path:
    """`inventory.parquet`: the landslides as GeoParquet 1.1, WKB, with a bounding-box column to filter on."""
    path = folder / "inventory.parquet"
    flat(product.landslides).to_parquet(
        path, index=False, schema_version="1.1.0", geometry_encoding="WKB", write_covering_bbox=True
    )
    return path


def qgis_style(layer: str) -> str:
    """QGIS 3 style document (QML) of a layer; landslides are categorised by confidence."""
    source = files("catalog").joinpath("templates/style.qml.j2").read_text(encoding="utf-8")
    template = Environment(undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return template.from_string(source).render(layer=layer, colours=dict(CONFIDENCE_COLOURS))


def flat(layer: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """A copy whose list-valued columns are text joined by "; ", as GIS formats hold scalars only."""
    layer = layer.reset_index(drop=True)
    lists = [c for c in layer.columns if layer[c].map(lambda v: isinstance(v, list | tuple)).any()]
    for column in lists:
        layer[column] = layer[column].map(lambda v: "; ".join(map(str, v)) if isinstance(v, list | tuple) else v)
    return layer


def _explained(name: str) -> str:
    column = INVENTORY_COLUMNS[name]
    return f"{name}: {column.meaning}" + (f" [{column.units}]" if column.units else "")


def _metadata(product: Product) -> Mapping[str, str]:
    event, headline = product.event, product.headline
    return {
        "event_id": product.event_id,
        "event_title": product.title,
        "event_time_utc": event.time_utc.isoformat() if event and event.time_utc else "",
        "version": str(product.version),
        "crs": f"EPSG:{product.grid.epsg}",
        "gsd_m": f"{product.grid.gsd_m:g}",
        "landslides": str(headline.count),
        "landslide_area_m2": f"{headline.area_m2:.0f}",
        "observed_area_m2": f"{headline.observed_m2:.0f}",
        "observed_percent_of_scene": f"{headline.observed_percent:.1f}",
        "model": str(product.model_card.get("name", "")),
        "used": "\n".join(product.used),
        "not_used": "\n".join(product.not_used),
        "warnings": "\n".join(product.warnings),
        "columns": "\n".join(_explained(name) for name in product.landslides if name in INVENTORY_COLUMNS),
        "read_me": "Outside observed_area nothing is known: it is not free of landslides. Not checked by a person "
        "unless review_status says so.",
    }
