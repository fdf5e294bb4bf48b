"""Makes bigtujunga.npz: a 50 x 50 px crop of the Big Tujunga DEM (30 m) and what gdaldem and RichDEM say of it.

    python make_reference.py DATA/dem/bigtujunga_topotoolbox/bigtujunga.tif

gdaldem slope | aspect | TPI | TRI -alg Riley | roughness, without -compute_edges; RichDEM TerrainAttribute
profile_curvature | planform_curvature, FillDepressions(epsilon=True) and FlowAccumulation(method="Dinf"), raw, with
its own signs, units and borders. Made with GDAL 3.6.2 and richdem2 2.4.3.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import rasterio
import richdem

COLUMN, ROW, SIDE = 400, 250, 50
GDALDEM = {
    "slope_deg": ("slope",),
    "aspect_deg": ("aspect",),
    "tpi_m": ("TPI",),
    "tri_m": ("TRI", "-alg", "Riley"),
    "roughness_m": ("roughness",),
}


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as raster:
        return raster.read(1, masked=True).astype("float32").filled(np.nan)


def main(dem_path: str) -> None:
    arrays = {}
    with tempfile.TemporaryDirectory() as folder:
        crop = Path(folder, "crop.tif")
        window = [str(n) for n in (COLUMN, ROW, SIDE, SIDE)]
        subprocess.run(["gdal_translate", "-q", "-srcwin", *window, dem_path, crop], check=True)
        arrays["dem"] = read(crop)
        for name, (mode, *options) in GDALDEM.items():
            out = Path(folder, f"{name}.tif")
            subprocess.run(["gdaldem", mode, crop, out, "-q", *options], check=True)
            arrays[name] = read(out)
    grid = richdem.rdarray(arrays["dem"].astype("float64"), no_data=-9999.0, geotransform=(0, 30, 0, 0, 0, -30))
    for name in ("profile_curvature", "planform_curvature"):
        arrays[f"richdem_{name}"] = np.asarray(richdem.TerrainAttribute(grid, name))
    filled = richdem.FillDepressions(grid, epsilon=True)
    arrays["richdem_flow_cells"] = np.asarray(richdem.FlowAccumulation(filled, method="Dinf")).astype("float32")
    np.savez_compressed(Path(__file__).with_name("bigtujunga.npz"), **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
