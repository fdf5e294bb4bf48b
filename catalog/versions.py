"""What was published of an event before: its versions, their landslides, decisions and observed ground."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import geopandas as gpd
import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window as RasterWindow

from catalog import store
from catalog.files import sha256_of
from catalog.folders import free_number, read_run, version_folders, way_out
from catalog.opening import open_raster
from catalog.schema import NOT_OBSERVED, InputError, StoreError
from catalog.store import StoreRef

BUILT_ON: Final = ("inventory.parquet", "class.tif")
"""Files of a version that the next one reads; `inventory.gpkg` is the one that people work in."""
PRODUCT: Final = (*BUILT_ON, "run.json", "inventory.gpkg")
"""A folder that holds none of these holds no version."""


@dataclass(frozen=True)
class Version:
    """A published version: its number and its folder."""

    number: int
    folder: Path

    def run(self) -> dict[str, Any]:
        """`run.json`."""
        return read_run(self.folder)

    def check(self) -> None:
        """Nothing when what the next version builds on is as it was published.

        Raises: StoreError naming the file that is missing or damaged, and what to do.
        """
        run = self.run()
        if run.get("version") != self.number:
            raise StoreError(
                f"{self.folder}: its run.json is of version {run.get('version')}: it is a copy or was renamed; give it "
                f"back its name, or another one than v and a number (mv {self.folder} {self.folder}.copy)"
            )
        for name in BUILT_ON:
            self._check_file(name, run.get("files", {}).get(name))

    def _check_file(self, name: str, stated: Any) -> None:  # noqa: ANN401 - what run.json says of it
        path = self.folder / name
        if not path.is_file():
            raise StoreError(f"{path}: is missing; {way_out(self.folder)}")
        if not isinstance(stated, dict):
            raise StoreError(f"{path}: run.json does not say what it held; {way_out(self.folder)}")
        size = path.stat().st_size
        if size != stated.get("bytes"):
            raise StoreError(f"{path}: got {size} bytes; expected {stated.get('bytes')}; {way_out(self.folder)}")
        try:
            same = sha256_of(str(path)) == stated.get("sha256")
        except InputError as error:
            raise StoreError(f"{error}; {way_out(self.folder)}") from None
        if not same:
            raise StoreError(f"{path}: is not what was published (its SHA-256 differs); {way_out(self.folder)}")

    def landslides(self) -> gpd.GeoDataFrame:
        """The inventory, as it was published."""
        return gpd.read_parquet(self.folder / "inventory.parquet")

    def observed_at(self, points: gpd.GeoSeries) -> NDArray[np.bool_]:
        """Whether it saw the ground at each point, (n,)."""
        with open_raster(str(self.folder / "class.tif")) as tif:
            places = points.to_crs(tif.crs)
            picked = [value[0] for value in tif.sample(zip(places.x, places.y, strict=True), masked=False)]
            left, bottom, right, top = tif.bounds
        inside = places.x.between(left, right) & places.y.between(bottom, top)
        seen = np.array(picked, np.uint8).reshape(len(places)) != NOT_OBSERVED
        return np.asarray(seen & inside.to_numpy(bool))

    def newly_observed_m2(self, classes: StoreRef) -> float | None:
        """Ground that a later class raster of the same pixels sees and this one did not; None for other pixels."""
        grid, name, pixels = classes.grid, classes.names[0], 0
        with open_raster(str(self.folder / "class.tif")) as tif:
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
    return tuple(Version(number, folder) for number, folder in version_folders(out / event_id))


def next_version(out: Path, event_id: str) -> int:
    """Version number after the highest that is taken; 1 when there is none."""
    return free_number(out / event_id)


def latest_version(out: str | Path, event_id: str) -> Version | None:
    """The highest version that has any file of a product; None when there is none."""
    known = reversed(versions(Path(out), event_id))
    return next((version for version in known if any((version.folder / name).is_file() for name in PRODUCT)), None)
