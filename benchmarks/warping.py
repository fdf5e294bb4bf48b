"""Do pieces of a scene equal the whole, by odc.stac.load and by our sampler? Prints one row a case and reader.

python benchmarks/warping.py
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path

import dask
import numpy as np
import odc.stac
import pystac
import rasterio
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.warp import transform_bounds
from scipy.ndimage import gaussian_filter
from shapely.geometry import box, mapping

from catalog.sampling import Decoding, sample

SIDE, GSD_M, BLOCK_PX = 1100, 10.0, 341
Array = NDArray[np.float64]


def grid(gsd_m: float, left: float, top: float, size: int = 1023) -> GeoBox:
    """A square GeoBox in UTM zone 54 N."""
    return GeoBox((size, size), Affine(gsd_m, 0, left, 0, -gsd_m, top), "EPSG:32654")


CASES = {
    "aligned": (32654, 583_200.0, 4_737_000.0, grid(10, 583_400, 4_736_800)),
    "shifted 3.7 m": (32654, 583_200.0, 4_737_000.0, grid(10, 583_403.7, 4_736_796.3)),
    "to 3 m": (32654, 583_200.0, 4_737_000.0, grid(3, 583_401, 4_736_799)),
    "to 30 m": (32654, 583_200.0, 4_737_000.0, grid(30, 583_410, 4_736_790, 341)),
    "next UTM zone": (32653, 1_074_158.0, 4_763_456.0, grid(10, 583_400, 4_736_800)),
}


def scene(folder: Path, *, epsg: int, left: float, top: float) -> pystac.Item:
    """The STAC item of one band of smooth noise, DN around 3000, GSD 10 m."""
    noise = gaussian_filter(np.random.default_rng(0).normal(size=(SIDE, SIDE)), 1.0)
    data = (noise * 4000 + 3000).clip(1, 10_000).astype(np.uint16)
    path, transform = folder / f"{epsg}.tif", Affine(GSD_M, 0, left, 0, -GSD_M, top)
    profile = {"driver": "GTiff", "count": 1, "height": SIDE, "width": SIDE, "dtype": "uint16", "nodata": 0}
    with rasterio.open(path, "w", **profile, crs=f"EPSG:{epsg}", transform=transform) as out:
        out.write(data, 1)
    far = (left, top - SIDE * GSD_M, left + SIDE * GSD_M, top)
    bounds = transform_bounds(f"EPSG:{epsg}", "EPSG:4326", *far)
    properties = {"proj:code": f"EPSG:{epsg}", "proj:shape": [SIDE, SIDE], "proj:transform": list(transform)[:6]}
    item = pystac.Item("a", mapping(box(*bounds)), list(bounds), datetime(2024, 1, 1, tzinfo=UTC), properties)
    bands = {"raster:bands": [{"data_type": "uint16", "nodata": 0}]}
    cog = "image/tiff; application=geotiff"
    item.add_asset("red", pystac.Asset(str(path), media_type=cog, roles=["data"], extra_fields=bands))
    return item


def by_odc(item: pystac.Item, geobox: GeoBox, *, chunks: dict[str, int] | None) -> Array:
    """The band by odc.stac.load, as a whole or by Dask chunks."""
    with dask.config.set(scheduler="synchronous"):
        loaded = odc.stac.load([item], bands=["red"], geobox=geobox, resampling="bilinear", chunks=chunks)
        return np.asarray(loaded["red"].isel(time=0).values, dtype=np.float64)


def by_sampler(item: pystac.Item, geobox: GeoBox, *, chunks: dict[str, int] | None) -> Array:
    """The band by `catalog.sampling.sample`, as a whole or by pieces."""
    step = chunks["y"] if chunks else max(geobox.shape)
    whole = np.empty(geobox.shape)
    for y in range(0, geobox.shape[0], step):
        for x in range(0, geobox.shape[1], step):
            part = geobox[y : y + step, x : x + step]
            values = sample(item.assets["red"].href, part, decoding=Decoding((1,), nodata=(0.0,)))
            whole[y : y + step, x : x + step] = values[0]
    return whole


def main() -> None:
    """Print how many pixels of the pieces differ from the whole, and by how much at most."""
    print(f"{'case':<15} {'reader':<14} {'pixels that differ':>18} {'largest, DN':>12}")
    with tempfile.TemporaryDirectory() as home:
        for name, (epsg, left, top, geobox) in CASES.items():
            item = scene(Path(home), epsg=epsg, left=left, top=top)
            for reader, load in {"odc.stac.load": by_odc, "sample": by_sampler}.items():
                whole = load(item, geobox, chunks=None)
                parts = load(item, geobox, chunks={"y": BLOCK_PX, "x": BLOCK_PX})
                differs = np.abs(np.nan_to_num(whole) - np.nan_to_num(parts))
                print(f"{name:<15} {reader:<14} {np.mean(differs > 0):>18.1%} {differs.max():>12g}")


if __name__ == "__main__":
    main()
