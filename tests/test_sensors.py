import json
import re

import pytest

from catalog.config import data_dir
from catalog.schema import BANDS, InputError
from catalog.sensors import SENSORS, reflectance_offset, sensor


def test_sensor_unknown_names_the_known_ones():
    with pytest.raises(InputError, match="`worldview`; expected one of sentinel2-l2a, landsat-c2-l2"):
        sensor("worldview")


@pytest.mark.parametrize("entry", SENSORS.values(), ids=SENSORS)
def test_sensor_has_canonical_bands_in_order(entry):
    assert list(entry.bands) == [band for band in BANDS if band in entry.bands]


@pytest.mark.parametrize("entry", SENSORS.values(), ids=SENSORS)
def test_sensor_requires_only_bands_it_has(entry):
    assert set(entry.required) <= set(entry.bands)


@pytest.mark.parametrize("entry", SENSORS.values(), ids=SENSORS)
def test_sensor_puts_each_band_in_its_own_place(entry):
    places = [source.index for source in entry.bands.values()]
    assert sorted(places) == list(range(1, len(places) + 1))


@pytest.mark.parametrize("entry", SENSORS.values(), ids=SENSORS)
def test_sensor_that_comes_in_folders_names_the_file_of_each_band(entry):
    sources = [*entry.bands.values(), *filter(None, [entry.qa_source])]
    assert all(bool(source.files) == (entry.folder is not None) for source in sources)


@pytest.mark.parametrize("entry", [e for e in SENSORS.values() if e.folder], ids=lambda e: e.name)
def test_sensor_that_comes_in_folders_gives_an_example_of_its_files(entry):
    patterns = [pattern for source in entry.bands.values() for pattern in source.files]
    assert any(re.search(pattern, entry.folder.example, re.IGNORECASE) for pattern in patterns)


@pytest.mark.parametrize(
    ("properties", "asset", "expected"),
    [
        ({"s2:processing_baseline": "02.12"}, {}, 0.0),
        ({"s2:processing_baseline": "04.00"}, {}, -0.1),
        ({"s2:processing_baseline": "N05.09"}, {}, -0.1),
        ({}, {"raster:bands": [{"offset": -0.1}]}, -0.1),
        ({"s2:processing_baseline": "05.09"}, {"raster:bands": [{"offset": 0}]}, -0.1),
        ({}, {"raster:offset": -0.1}, -0.1),
        ({}, {"bands": [{"raster:offset": -0.1}]}, -0.1),
        ({}, {"raster:bands": [{"raster:offset": -0.05}]}, -0.05),
        ({"processing:version": "05.09"}, {}, -0.1),
        ({"processing:version": "N0510"}, {}, -0.1),
        ({"processing:version": "02.14"}, {}, 0.0),
        ({"processing:version": "2.11.0"}, {}, 0.0),
        ({"processing:version": "02.14", "s2:processing_baseline": "05.09"}, {}, -0.1),
        ({"landslidenet:offset": 0.0, "s2:processing_baseline": "05.09"}, {"raster:offset": -0.1}, 0.0),
        ({"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": True}, {}, 0.0),
        ({}, {}, 0.0),
    ],
)
def test_reflectance_offset_follows_the_baseline(properties, asset, expected):
    assert reflectance_offset(SENSORS["sentinel2-l2a"], "red", properties=properties, asset=asset) == expected


def test_reflectance_offset_refuses_a_baseline_without_numbers():
    with pytest.raises(InputError, match="expected two numbers like 04.00"):
        reflectance_offset(SENSORS["sentinel2-l2a"], "red", properties={"s2:processing_baseline": "new"}, asset={})


def test_reflectance_offset_of_landsat_is_constant():
    assert reflectance_offset(SENSORS["landsat-c2-l2"], "nir", properties={}, asset={}) == -0.2


@pytest.mark.real
@pytest.mark.parametrize(
    ("start", "key", "expected"),
    [
        ("expected__S2A_MSIL2A_20190212T192651_N0212", "red", 0.0),
        (
            "expected__S2B_MSIL2A_20220413T150759_N0400",
            "red",
            -0.1,
        ),
        (
            "expected__S2A_MSIL2A_20230625T234621_N0509_R073_T01WCP",
            "red",
            -0.1,
        ),
        ("expected__S2A_T60CWS", "red", -0.1),
        ("S2B_MSIL2A_20190629T212529_R043_T06VVN_20201006T080531", "B04", 0.0),
    ],
)
def test_reflectance_offset_of_items_as_served(start, key, expected):
    path = next((data_dir() / "stac").glob(f"*/{start}*.json"))
    item = json.loads(path.read_text())
    got = reflectance_offset(SENSORS["sentinel2-l2a"], "red", properties=item["properties"], asset=item["assets"][key])
    assert got == expected
