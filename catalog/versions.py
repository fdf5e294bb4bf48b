"""What was published of an event before: its versions, their landslides, decisions and observed ground."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window as RasterWindow

from catalog import store
from catalog.schema import NOT_OBSERVED
from catalog.store import StoreRef
from catalog.vectors import read_landslides


@dataclass(frozen=True)
class Version:
    """A published version: its number and its folder."""

    number: int
    folder: Path

    def run(self) -> dict[str, Any]:
        """`run.json`."""
        told: dict[str, Any] = json.loads((self.folder / "run.json").read_text("utf-8"))
        return told

    def landslides(self) -> gpd.GeoDataFrame:
        """The inventory."""
        return read_landslides(self.folder)

    def observed_at(self, points: gpd.GeoSeries) -> NDArray[np.bool_]:
        """Whether it saw the ground at each point, (n,)."""
        with rasterio.open(self.folder / "class.tif") as tif:
            places = points.to_crs(tif.crs)
            picked = [value[0] for value in tif.sample(zip(places.x, places.y, strict=True), masked=False)]
            left, bottom, right, top = tif.bounds
        inside = places.x.between(left, right) & places.y.between(bottom, top)
        seen = np.array(picked, np.uint8).reshape(len(places)) != NOT_OBSERVED
        return np.asarray(seen & inside.to_numpy(bool))

    def newly_observed_m2(self, classes: StoreRef) -> float | None:
        """Ground that a later class raster of the same pixels sees and this one did not; None for other pixels."""
        grid, name, pixels = classes.grid, classes.names[0], 0
        with rasterio.open(self.folder / "class.tif") as tif:
            if tif.crs.to_epsg() != grid.epsg or abs(tif.transform.a - grid.gsd_m) > 1e-9:
                return None
            row0, col0 = round(-tif.transform.f / grid.gsd_m), round(tif.transform.c / grid.gsd_m)
            for block in grid.blocks:
                now = store.read_block(classes, block)[name].to_numpy() != NOT_OBSERVED
                window = grid.window(block).shift(grid.row0 - row0, grid.col0 - col0)
                place = RasterWindow(window.x0, window.y0, *reversed(window.shape))
                before = tif.read(1, window=place, boundless=True, fill_value=NOT_OBSERVED)
                pixels += int((now & (before == NOT_OBSERVED)).sum())
        return pixels * grid.gsd_m**2


def versions(out: Path, event_id: str) -> tuple[Version, ...]:
    """The published versions of an event, oldest first. Partial folders do not count."""
    folders = (path for path in (out / event_id).glob("v*") if path.is_dir())
    named = ((re.fullmatch(r"v(\d+)", path.name), path) for path in folders)
    return tuple(sorted((Version(int(m[1]), path) for m, path in named if m), key=lambda version: version.number))


def next_version(out: Path, event_id: str) -> int:
    """Version number after the highest published one; 1 when there is none."""
    return 1 + max((version.number for version in versions(out, event_id)), default=0)


def latest_version(out: str | Path, event_id: str) -> Version | None:
    """The highest version that has an inventory; None when there is none."""
    known = reversed(versions(Path(out), event_id))
    return next((version for version in known if (version.folder / "inventory.gpkg").is_file()), None)
