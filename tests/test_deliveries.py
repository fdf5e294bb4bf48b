"""Scenes as delivered: Sentinel-2 and Landsat as folders with a file a band."""

from datetime import UTC, datetime

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.shutil import copy

from catalog.checks import check_inputs
from catalog.config import RunConfig
from catalog.items import local_item
from catalog.scenes import Epoch, read_epoch
from catalog.schema import InputError
from catalog.sensors import sensor

LEFT, TOP = 583_200.0, 4_737_000.0
SAFE = "S2A_MSIL2A_20220301T012345_N0400_R031_T54TWN_20220301T040506.SAFE"
S2_DN = {"B02": 1500, "B03": 1700, "B04": 1900, "B08": 4000, "B11": 3000, "B12": 2500}
LANDSAT_DN = {"B2": 9000, "B3": 9500, "B4": 10_000, "B5": 18_000, "B6": 15_000, "B7": 13_000}
METADATA = """<?xml version="1.0" encoding="UTF-8"?>
<n1:Level-2A_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-2A.xsd">
  <n1:General_Info><Product_Info><PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE></Product_Info>
    <Product_Image_Characteristics>
      <QUANTIFICATION_VALUES_LIST><BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE>
      </QUANTIFICATION_VALUES_LIST>{offsets}
    </Product_Image_Characteristics></n1:General_Info>
</n1:Level-2A_User_Product>
"""
OFFSETS = "".join(f'<BOA_ADD_OFFSET band_id="{i}">-1000</BOA_ADD_OFFSET>' for i in range(13))


def write(path, value, *, gsd=10.0, size=40, dtype=np.uint16, driver="GTiff"):
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": driver, "count": 1, "height": size, "width": size, "dtype": dtype, "crs": "EPSG:32654"}
    profile |= {"QUALITY": "100", "REVERSIBLE": "YES"} if driver == "JP2OpenJPEG" else {}
    with rasterio.open(path, "w", **profile, transform=Affine(gsd, 0, LEFT, 0, -gsd, TOP)) as out:
        out.write(np.full((1, size, size), value, dtype))


def sentinel(folder, *, metadata=None, driver="GTiff", suffix="tif"):
    images = folder / "GRANULE/L2A_T54TWN_A012345_20220301T012345/IMG_DATA"
    for name, value in S2_DN.items():
        if name in ("B02", "B03", "B04", "B08"):
            write(images / f"R10m/T54TWN_20220301T012345_{name}_10m.{suffix}", value, driver=driver)
        if name != "B08":
            write(
                images / f"R20m/T54TWN_20220301T012345_{name}_20m.{suffix}", value + 7, gsd=20.0, size=20, driver=driver
            )
    write(images / f"R20m/T54TWN_20220301T012345_SCL_20m.{suffix}", 4, gsd=20.0, size=20, dtype=np.uint8, driver=driver)
    write(images.parent / f"QI_DATA/MSK_DETFOO_B02.{suffix}", 1, dtype=np.uint8, driver=driver)
    if metadata is not None:
        (folder / "MTD_MSIL2A.xml").write_text(metadata)
    return folder


def landsat(folder, *, start="LC08_L2SP_107030_20180911_20200831_02_T1", bands=LANDSAT_DN):
    for name, value in bands.items():
        write(folder / f"{start}_SR_{name}.TIF", value, gsd=30.0)
    write(folder / f"{start}_QA_PIXEL.TIF", 21824, gsd=30.0)
    return folder


def epoch_of(folder, name):
    return Epoch("post", name, (local_item(folder, sensor(name)).to_dict(transform_hrefs=False),))


def read(folder, name, *, gsd=10.0):
    epoch = epoch_of(folder, name)
    geobox = GeoBox((20, 20), Affine(gsd, 0, LEFT, 0, -gsd, TOP), "EPSG:32654")
    return epoch, read_epoch(epoch, geobox)[0].compute()


@pytest.mark.parametrize(("driver", "suffix"), [("GTiff", "tif"), ("JP2OpenJPEG", "jp2")])
def test_sentinel_folder_reads_through_to_reflectance(tmp_path, driver, suffix):
    epoch, scene = read(sentinel(tmp_path / SAFE, driver=driver, suffix=suffix), "sentinel2-l2a")
    assert epoch.bands == ("blue", "green", "red", "nir", "swir1", "swir2")
    assert (scene["scl"] == 4).all()
    expected = [0.05, 0.07, 0.09, 0.30, 0.2007, 0.1507]  # finest resolution, offset of baseline 04.00 in the name
    assert [float(scene[band][3, 3]) for band in epoch.bands] == pytest.approx(expected, abs=1e-6)
    assert epoch.times_utc == (datetime(2022, 3, 1, 1, 23, 45, tzinfo=UTC),)


@pytest.mark.parametrize(
    ("name", "metadata", "blue"),
    [
        (SAFE.replace("N0400", "N0301"), None, 0.15),
        (SAFE.replace("N0400", "N0301"), METADATA.format(baseline="05.09", offsets=OFFSETS), 0.05),
        ("scene", METADATA.format(baseline="05.09", offsets=""), 0.05),
        ("scene", METADATA.format(baseline="02.14", offsets=""), 0.15),
        ("scene", METADATA.format(baseline="05.09", offsets=OFFSETS.replace("-1000", "-500")), 0.10),
        ("scene", None, 0.15),
    ],
    ids=["name", "metadata-over-name", "baseline", "old-baseline", "stated-offset", "unknown"],
)
def test_sentinel_folder_offset_of_metadata_or_name(tmp_path, name, metadata, blue):
    _, scene = read(sentinel(tmp_path / name, metadata=metadata), "sentinel2-l2a")
    assert float(scene["blue"][3, 3]) == pytest.approx(blue, abs=1e-6)


def test_sentinel_folder_offset_is_part_of_the_fingerprint(tmp_path):
    prints = {
        epoch_of(sentinel(tmp_path / f"{i}", metadata=METADATA.format(baseline="05.09", offsets=text)), "sentinel2-l2a")
        .fingerprint()
        for i, text in enumerate((OFFSETS, OFFSETS.replace("-1000", "-500")))
    }  # fmt: skip
    assert len(prints) == 2


def test_sentinel_folder_refuses_metadata_with_a_document_type(tmp_path):
    bomb = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><a>&b;</a>'
    with pytest.raises(InputError, match="declares a document type"):
        epoch_of(sentinel(tmp_path / "s", metadata=bomb), "sentinel2-l2a")


def test_sentinel_folder_refuses_metadata_that_is_broken(tmp_path):
    with pytest.raises(InputError, match=r"MTD_MSIL2A.xml: cannot be read"):
        epoch_of(sentinel(tmp_path / "s", metadata="<a>"), "sentinel2-l2a")


def test_sentinel_folder_refuses_level_1c(tmp_path):
    (sentinel(tmp_path / "s") / "MTD_MSIL1C.xml").write_text("<a/>")
    with pytest.raises(InputError, match="is a level 1C product"):
        epoch_of(tmp_path / "s", "sentinel2-l2a")


@pytest.mark.parametrize(
    ("start", "bands"),
    [
        ("LC08_L2SP_107030_20180911_20200831_02_T1", LANDSAT_DN),
        ("LE07_L2SP_107030_20180911_20200831_02_T1",
         dict(zip(("B1", "B2", "B3", "B4", "B5", "B7"), LANDSAT_DN.values(), strict=True))),
    ],
    ids=["oli", "etm"],
)  # fmt: skip
def test_landsat_folder_reads_through_to_reflectance(tmp_path, start, bands):
    epoch, scene = read(landsat(tmp_path / "s", start=start, bands=bands), "landsat-c2-l2", gsd=30.0)
    assert int(scene["qa_pixel"][0, 0]) == 21824
    expected = [dn * 2.75e-5 - 0.2 for dn in LANDSAT_DN.values()]
    assert [float(scene[band][3, 3]) for band in epoch.bands] == pytest.approx(expected, abs=1e-6)
    assert epoch.times_utc == (datetime(2018, 9, 11, tzinfo=UTC),)


def test_landsat_folder_takes_the_time_of_its_metadata(tmp_path):
    folder = landsat(tmp_path / "s")
    (folder / "LC08_L2SP_107030_20180911_20200831_02_T1_MTL.txt").write_text('SCENE_CENTER_TIME = "01:15:02.1234567Z"')
    assert epoch_of(folder, "landsat-c2-l2").times_utc == (datetime(2018, 9, 11, 1, 15, 2, tzinfo=UTC),)


def test_folder_with_two_scenes_is_refused(tmp_path):
    landsat(landsat(tmp_path / "s"), start="LC08_L2SP_107030_20180927_20200831_02_T1")
    with pytest.raises(InputError, match="holds several scenes"):
        epoch_of(tmp_path / "s", "landsat-c2-l2")


def test_folder_without_a_band_says_what_is_missing(tmp_path):
    folder = landsat(tmp_path / "s", bands={k: v for k, v in LANDSAT_DN.items() if k != "B5"})
    with pytest.raises(InputError, match=r"band\(s\) nir missing among its 6 files"):
        epoch_of(folder, "landsat-c2-l2")


def test_folder_of_a_sensor_that_comes_as_a_file(tmp_path):
    with pytest.raises(InputError, match="is a folder; sensor rgb8 expects a raster file"):
        local_item(tmp_path, sensor("rgb8"))


def test_check_inputs_of_folders_looks_into_each_band_file(tmp_path):
    folder = sentinel(tmp_path / SAFE)
    config = {"name": "e", "block_px": 256, "sensor": "sentinel2-l2a", "out": str(tmp_path), "root": str(tmp_path)}
    inputs = check_inputs(RunConfig(**config, post=(str(folder),)))
    assert inputs.grid.gsd_m == 10.0
    assert not [told for told in inputs.warnings if "baseline" in told]
    write(next(folder.rglob("*_B08_10m.tif")), 30_000)
    with pytest.raises(InputError, match=r"B08_10m.tif: half of its values are above 12000"):
        check_inputs(RunConfig(**config, post=(str(folder),)))


def test_vrt_of_band_files_is_read_and_its_content_counts(tmp_path):
    data = np.stack([np.full((20, 20), value, np.uint16) for value in (1500, 1700, 1900, 4000)])
    profile = {"driver": "GTiff", "count": 4, "height": 20, "width": 20, "dtype": "uint16", "crs": "EPSG:32654"}
    prints, recorded = [], []
    for change in (0, 1):
        with rasterio.open(tmp_path / "a.tif", "w", **profile, transform=Affine(10, 0, LEFT, 0, -10, TOP)) as out:
            out.write(data + np.uint16(change))
        if not change:
            copy(tmp_path / "a.tif", tmp_path / "a.vrt", driver="VRT")
        epoch, scene = read(tmp_path / "a.vrt", "sentinel2-l2a")
        prints.append(epoch.fingerprint())
        recorded.append(epoch.inputs()[0]["sha256"])
    assert float(scene["nir"][0, 0]) == pytest.approx(0.4001)
    assert prints[0] != prints[1]
    assert recorded[0] != recorded[1]
