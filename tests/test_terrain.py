from __future__ import annotations

from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

from catalog.schema import InputError
from tasks import terrain as tn

GSD_M = 30.0
CHUNKS = ((17, 1, 2, 20, 21), (3, 40, 18))
INSIDE = (slice(1, -1), slice(1, -1))
LOCAL = [name for name, feature in tn.TERRAIN.items() if feature.halo_px is not None]
GLOBAL = [name for name, feature in tn.TERRAIN.items() if feature.halo_px is None]
REFERENCE = dict(np.load(Path(__file__).with_name("data") / "terrain" / "bigtujunga.npz"))


def metres(rows: int = 61, cols: int = 61) -> tuple[np.ndarray, np.ndarray]:
    """Northing and easting of pixel centres about the centre."""
    row, col = np.mgrid[:rows, :cols]
    return (rows // 2 - row) * GSD_M, (col - cols // 2) * GSD_M


def plane(*, slope: float, facing: float) -> np.ndarray:
    north, east = metres()
    downhill = np.cos(np.radians(facing)) * north + np.sin(np.radians(facing)) * east
    return (1000 - np.tan(np.radians(slope)) * downhill).astype(np.float32)


def cone() -> np.ndarray:
    return (2000 - 0.5 * np.hypot(*metres())).astype(np.float32)


def hills(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    north, east = metres()
    relief = 1000 + 80 * np.sin(north / 210) + 60 * np.cos(east / 170 + north / 400)
    return (relief + rng.normal(0, 2, north.shape)).astype(np.float32)


def elevation_of(dem: np.ndarray) -> xr.DataArray:
    return xr.DataArray(dem, dims=("y", "x"), coords={"y": -np.arange(dem.shape[0]) * GSD_M}, name="elevation_m")


def refuse(*args: object, **kwargs: object) -> None:
    raise AssertionError("computed before it was asked")


def compute(name: str, dem: np.ndarray) -> np.ndarray:
    return tn.TERRAIN[name].kernel(dem, gsd_m=GSD_M)


# --- every feature ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tn.TERRAIN)
def test_feature_fits_its_contract(name: str) -> None:
    variable, values = tn.TERRAIN[name].variable, compute(name, hills())
    low, high = variable.valid_range
    assert variable.name == name
    assert variable.dtype == "float32"
    assert variable.source
    assert (values.dtype, values.shape) == (np.float32, (61, 61))
    assert np.isfinite(values).sum() >= 53 * 53
    assert low <= np.nanmin(values) <= np.nanmax(values) <= high


@pytest.mark.parametrize("name", tn.TERRAIN)
def test_feature_leaves_its_input_alone(name: str) -> None:
    dem = hills()
    dem[5, 5] = np.nan
    before = dem.copy()
    compute(name, dem)
    np.testing.assert_array_equal(dem, before)


@pytest.mark.parametrize("name", LOCAL)
def test_feature_is_nan_exactly_where_its_neighbourhood_is_incomplete(name: str) -> None:
    dem, halo = hills(), tn.TERRAIN[name].halo_px
    dem[30, 20] = np.nan
    expected = np.ones(dem.shape, dtype=bool)
    expected[halo:-halo, halo:-halo] = False
    expected[30 - halo : 31 + halo, 20 - halo : 21 + halo] = True
    np.testing.assert_array_equal(np.isnan(compute(name, dem)), expected)


@pytest.mark.parametrize("name", tn.TERRAIN)
@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (7, 7)])
def test_feature_of_nodata_is_nodata(name: str, shape: tuple[int, int]) -> None:
    assert np.isnan(compute(name, np.full(shape, np.nan, dtype=np.float32))).all()


@pytest.mark.parametrize("name", LOCAL)
def test_terrain_chunked_equals_unchunked(name: str) -> None:
    dem = hills()
    dem[18, 3] = dem[40:44, 42] = np.nan
    whole = tn.terrain(elevation_of(dem), gsd_m=GSD_M, names=[name])
    chunked = tn.terrain(elevation_of(da.from_array(dem, chunks=CHUNKS)), gsd_m=GSD_M, names=[name])
    assert chunked[name].data.chunks == CHUNKS
    xr.testing.assert_identical(chunked.compute(scheduler="synchronous"), whole)


def test_terrain_computes_nothing_before_it_is_asked() -> None:
    lazy = elevation_of(da.from_array(hills(), chunks=CHUNKS))
    with dask.config.set(scheduler=refuse):
        features = tn.terrain(lazy, gsd_m=GSD_M)
    assert list(features.data_vars) == LOCAL
    assert all(features[name].dtype == np.float32 for name in LOCAL)


def test_terrain_carries_coordinates_and_attributes() -> None:
    slope = tn.terrain(elevation_of(hills()), gsd_m=GSD_M, names=["slope_deg"])["slope_deg"]
    assert slope.attrs == tn.TERRAIN["slope_deg"].variable.attrs()
    np.testing.assert_array_equal(slope["y"], -np.arange(61) * GSD_M)


def test_terrain_of_less_than_a_neighbourhood_is_nodata() -> None:
    features = tn.terrain(elevation_of(da.ones((2, 3), dtype=np.float32)), gsd_m=GSD_M)
    assert features.isnull().all().to_array().all().compute(scheduler="synchronous")


def test_max_halo_is_the_widest() -> None:
    assert tn.MAX_HALO_PX == max(tn.TERRAIN[name].halo_px for name in LOCAL) == tn.RELIEF_RADIUS_PX


@pytest.mark.parametrize("name", tn.TERRAIN)
def test_feature_writes_nothing_to_the_console(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    compute(name, hills())
    assert capfd.readouterr() == ("", "")


def test_terrain_refuses_a_feature_it_does_not_have() -> None:
    with pytest.raises(InputError, match=r"\['twi'\]; expected some of slope_deg"):
        tn.terrain(elevation_of(hills()), gsd_m=GSD_M, names=["twi"])


@pytest.mark.parametrize("gsd_m", [0.0, -1.0, np.nan])
def test_terrain_refuses_a_pixel_size_that_is_none(gsd_m: float) -> None:
    with pytest.raises(InputError, match="expected one above 0"):
        tn.terrain(elevation_of(hills()), gsd_m=gsd_m)


def test_hydrology_refuses_an_empty_dem() -> None:
    with pytest.raises(InputError, match=r"shape \(0, 4\)"):
        tn.hydrology(np.empty((0, 4), dtype=np.float32), gsd_m=GSD_M)


# --- analytic surfaces -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("facing", [0, 45, 90, 200, 315])
def test_slope_and_aspect_of_a_plane(facing: float) -> None:
    dem = plane(slope=25, facing=facing)
    np.testing.assert_allclose(compute("slope_deg", dem)[INSIDE], 25, atol=1e-3)
    turn = (compute("aspect_deg", dem)[INSIDE] - facing + 180) % 360 - 180
    np.testing.assert_allclose(turn, 0, atol=1e-2)


def test_flat_ground_has_no_slope_and_faces_nowhere() -> None:
    flat = np.full((9, 9), 700, dtype=np.float32)
    assert (compute("slope_deg", flat)[INSIDE] == 0).all()
    assert np.isnan(compute("aspect_deg", flat)).all()


@pytest.mark.parametrize("name", ["profile_curvature", "plan_curvature", "tpi_m"])
def test_plane_is_neither_convex_nor_concave(name: str) -> None:
    np.testing.assert_allclose(
        compute(name, plane(slope=25, facing=120))[INSIDE], 0, atol=1e-5 if "c" in name else 1e-3
    )


def test_ruggedness_and_ranges_of_a_plane() -> None:
    dem, step = plane(slope=45, facing=90), GSD_M
    np.testing.assert_allclose(compute("tri_m", dem)[INSIDE], step * np.sqrt(6), rtol=1e-5)
    np.testing.assert_allclose(compute("roughness_m", dem)[INSIDE], 2 * step, rtol=1e-5)
    np.testing.assert_allclose(compute("relief_m", dem)[4:-4, 4:-4], 8 * step, rtol=1e-5)


def test_cone_faces_outwards_with_one_slope() -> None:
    north, east = metres()
    far = np.hypot(north, east)[INSIDE] > 10 * GSD_M
    turn = (compute("aspect_deg", cone()) - np.degrees(np.arctan2(east, north)) + 180) % 360 - 180
    np.testing.assert_allclose(turn[INSIDE][far], 0, atol=0.2)
    np.testing.assert_allclose(compute("slope_deg", cone())[INSIDE][far], np.degrees(np.arctan(0.5)), atol=0.15)


def test_cone_is_convex_across_its_slope_and_straight_down_it() -> None:
    distance = np.hypot(*metres())
    far = distance[INSIDE] > 10 * GSD_M
    across = (compute("plan_curvature", cone()) * distance)[INSIDE][far]  # of a cone: gradient / distance
    np.testing.assert_allclose(across, 0.5, rtol=0.02)
    np.testing.assert_allclose(compute("profile_curvature", cone())[INSIDE][far], 0, atol=2e-5)


def test_profile_curvature_is_positive_on_a_slope_that_steepens() -> None:
    _, east = metres()
    dem = (1000 - 1e-4 * (east + 2000) ** 2).astype(np.float32)
    np.testing.assert_allclose(compute("profile_curvature", dem)[INSIDE], 2e-4, atol=1e-6)


def test_curvatures_follow_the_published_equations() -> None:
    dem = hills().astype(np.float64)
    a, b, c, d, e, f, g, h, i = (dem[y : y + 59, x : x + 59] for y in range(3) for x in range(3))
    D, E = ((d + f) / 2 - e) / GSD_M**2, ((b + h) / 2 - e) / GSD_M**2
    F, G, H = (-a + c + g - i) / (4 * GSD_M**2), (f - d) / (2 * GSD_M), (b - h) / (2 * GSD_M)
    profile = -2 * (D * G**2 + E * H**2 + F * G * H) / (G**2 + H**2)
    plan = -2 * (D * H**2 + E * G**2 - F * G * H) / (G**2 + H**2)
    np.testing.assert_allclose(compute("profile_curvature", hills())[INSIDE], profile, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(compute("plan_curvature", hills())[INSIDE], plan, rtol=1e-4, atol=1e-6)


def test_ridge_stands_above_its_neighbours() -> None:
    assert compute("tpi_m", cone())[30, 30] == pytest.approx(0.5 * GSD_M * (4 + 4 * np.sqrt(2)) / 8, rel=1e-4)


# --- drainage --------------------------------------------------------------------------------------------------------


def test_flow_gathers_down_a_plane() -> None:
    area = compute("flow_accumulation_m2", plane(slope=10, facing=90))
    np.testing.assert_allclose(area[30, 1:-1], np.arange(1, 60) * GSD_M**2, rtol=1e-6)


def test_flow_leaves_a_filled_pit() -> None:
    pitted = plane(slope=10, facing=90)
    pitted[30, 30] -= 50
    assert compute("flow_accumulation_m2", pitted)[25:36, 50].sum() >= 11 * 50 * GSD_M**2 - 1


def test_flow_keeps_nodata_and_goes_round_it() -> None:
    dem = plane(slope=10, facing=90)
    dem[30, 30] = np.nan
    area = compute("flow_accumulation_m2", dem)
    assert np.isnan(area).sum() == 1
    assert area[25:36, 50].sum() == pytest.approx((11 * 50 - 1) * GSD_M**2, rel=1e-4)


def test_twi_of_a_plane_is_the_log_of_area_over_gradient() -> None:
    gradient, cells = np.tan(np.radians(10)), np.arange(1, 60)
    wetness = compute("twi", plane(slope=10, facing=90))[30, 1:-1]
    np.testing.assert_allclose(wetness, np.log(cells * GSD_M / gradient), rtol=1e-4)


def test_twi_of_a_flat_is_finite() -> None:
    assert np.isfinite(compute("twi", np.full((9, 9), 5, dtype=np.float32))[INSIDE]).all()


def test_hydrology_of_a_small_dem_keeps_its_pixels() -> None:
    drained = tn.hydrology(hills(), gsd_m=GSD_M)
    assert drained.factor == 1
    np.testing.assert_array_equal(drained.twi, compute("twi", hills()))


def test_hydrology_coarsens_to_the_bound() -> None:
    drained = tn.hydrology(hills(), gsd_m=GSD_M, max_cells=500)
    assert drained.factor == 3
    assert drained.twi.shape == drained.flow_accumulation_m2.shape == (21, 21)
    assert drained.flow_accumulation_m2.min() == (3 * GSD_M) ** 2


def test_block_mean_takes_the_pixels_that_have_an_elevation() -> None:
    dem = np.arange(15, dtype=np.float32).reshape(3, 5)
    dem[0, 0] = dem[2, 4] = np.nan
    expected = [[(1 + 5 + 6) / 3, 5, 6.5], [10.5, 12.5, np.nan]]
    np.testing.assert_allclose(tn._block_mean(dem, 2), expected, rtol=1e-6)


# --- frozen references -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["slope_deg", "tpi_m", "tri_m", "roughness_m"])
def test_feature_equals_gdaldem(name: str) -> None:
    np.testing.assert_allclose(compute(name, REFERENCE["dem"]), REFERENCE[name], rtol=1e-5, atol=1e-4)


def test_aspect_equals_gdaldem() -> None:
    turn = (compute("aspect_deg", REFERENCE["dem"]) - REFERENCE["aspect_deg"] + 180) % 360 - 180
    np.testing.assert_allclose(turn[INSIDE], 0, atol=1e-3)


@pytest.mark.parametrize(("name", "richdem", "factor"), [("profile", "profile", -0.01), ("plan", "planform", 0.01)])
def test_curvature_equals_richdem_but_for_sign_and_unit(name: str, richdem: str, factor: float) -> None:
    expected = factor * REFERENCE[f"richdem_{richdem}_curvature"][INSIDE]
    np.testing.assert_allclose(compute(f"{name}_curvature", REFERENCE["dem"])[INSIDE], expected, rtol=1e-5, atol=1e-8)


def test_flow_accumulation_equals_richdem() -> None:
    expected = REFERENCE["richdem_flow_cells"] * GSD_M**2
    np.testing.assert_allclose(compute("flow_accumulation_m2", REFERENCE["dem"]), expected, rtol=1e-5)
