from __future__ import annotations

import dataclasses
import json

import dask
import numpy as np
import pytest
import xarray as xr

from catalog.schema import BANDS, InputError
from tasks import change as ch

RGB = ("blue", "green", "red")
SHAPE = (31, 47)
CHUNKS = {"y": (7, 1, 20, 3), "x": (40, 7)}
SCORED = {name: feature for name, feature in ch.CHANGE.items() if feature.score is not None}


def scene(seed: int, *, bands: tuple[str, ...] = tuple(BANDS), shape: tuple[int, int] = SHAPE) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    ground = np.random.default_rng(9).uniform(0.05, 0.4, (len(BANDS), *shape))
    values = dict(zip(BANDS, (ground + rng.normal(0, 0.01, ground.shape)).astype(np.float32), strict=True))
    coords = {"y": -np.arange(shape[0]) * 3.0, "x": np.arange(shape[1]) * 3.0}
    return xr.Dataset({band: (("y", "x"), values[band]) for band in bands}, coords=coords)


def pixel(**bands: float) -> dict[str, np.ndarray]:
    return {name: np.array([[value]], dtype=np.float32) for name, value in bands.items()}


def compute(name: str, pre: dict[str, np.ndarray], post: dict[str, np.ndarray]) -> float:
    return float(ch.CHANGE[name].kernel(pre, post)[0, 0])


def measured(pre: xr.Dataset, post: xr.Dataset) -> ch.ChangeScaling:
    return ch.measure_scaling({str(name): values.to_numpy() for name, values in ch.change(pre, post).items()})


def refuse(*args: object, **kwargs: object) -> None:
    raise AssertionError("computed before it was asked")


def normal_sample(pixels: int = 20_000, *, seed: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"cva_magnitude": rng.normal(0.05, 0.01, pixels), "dndvi": rng.normal(-0.02, 0.03, pixels)}


# --- every feature ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ch.CHANGE)
def test_feature_fits_its_contract(name: str) -> None:
    feature, values = ch.CHANGE[name], ch.change(scene(0), scene(1))[name]
    low, high = feature.variable.valid_range
    assert feature.variable.name == name
    assert feature.variable.source
    assert set(feature.needs) <= set(BANDS)
    assert (values.dtype, values.shape) == (np.float32, SHAPE)
    assert values.attrs == feature.variable.attrs()
    assert low <= values.min() <= values.max() <= high


@pytest.mark.parametrize("epoch", ["pre", "post"])
@pytest.mark.parametrize("name", [variable.name for variable in ch.variables(BANDS)])
def test_feature_is_nan_where_either_epoch_is(name: str, epoch: str) -> None:
    scenes = {"pre": scene(0), "post": scene(1)}
    scaling = measured(**scenes)
    scenes[epoch] = scenes[epoch].where(scenes[epoch]["x"] != 12.0)
    missing = ch.change(**scenes, scaling=scaling)[name].isnull()
    assert missing.sel(x=12.0).all()
    assert missing.sum() == SHAPE[0]


@pytest.mark.parametrize("name", [variable.name for variable in ch.variables(BANDS)])
def test_change_chunked_equals_unchunked(name: str) -> None:
    pre, post = scene(0), scene(1)
    pre["red"][3:9, 5] = np.nan
    scaling = measured(pre, post)
    chunked = ch.change(pre.chunk(CHUNKS), post.chunk(CHUNKS), scaling=scaling)[name]
    assert chunked.data.chunks == tuple(CHUNKS.values())
    xr.testing.assert_identical(chunked.compute(scheduler="synchronous"), ch.change(pre, post, scaling=scaling)[name])


def test_change_computes_nothing_before_it_is_asked() -> None:
    scaling = measured(scene(0), scene(1))
    with dask.config.set(scheduler=refuse):
        features = ch.change(scene(0).chunk(CHUNKS), scene(1).chunk(CHUNKS), scaling=scaling)
    assert all(values.dtype == np.float32 for values in features.values())


@pytest.mark.parametrize("bands", [RGB, tuple(BANDS), ("nir",), ("red", "nir")])
def test_variables_are_what_change_makes(bands: tuple[str, ...]) -> None:
    pre, post = scene(0, bands=bands), scene(1, bands=bands)
    made = ch.change(pre, post, scaling=measured(pre, post))
    assert list(made.data_vars) == [variable.name for variable in ch.variables(bands)]


def test_change_leaves_its_inputs_alone() -> None:
    pre, post = scene(0), scene(1)
    ch.change(pre, post)
    xr.testing.assert_identical(pre, scene(0))
    xr.testing.assert_identical(post, scene(1))


# --- the pair of epochs ----------------------------------------------------------------------------------------------


def test_change_of_rgb_has_no_ndvi() -> None:
    features = ch.change(scene(0, bands=RGB), scene(1))
    assert "dndvi" not in features
    assert {"cva_magnitude", "cva_direction_deg", "spectral_angle_deg", "greenness_change"} <= set(features)


def test_change_without_scaling_has_no_scores() -> None:
    assert list(ch.change(scene(0), scene(1)).data_vars) == list(ch.CHANGE)


def test_change_takes_only_bands_of_both_epochs() -> None:
    xr.testing.assert_identical(ch.change(scene(0), scene(1, bands=RGB)), ch.change(scene(0, bands=RGB), scene(1)))


def test_change_ignores_variables_that_are_no_bands() -> None:
    pre, post = (scene(seed).assign(quality=(("y", "x"), np.zeros(SHAPE, np.uint8))) for seed in (0, 1))
    xr.testing.assert_identical(ch.change(pre, post), ch.change(scene(0), scene(1)))


def test_change_refuses_epochs_without_a_common_band() -> None:
    with pytest.raises(InputError, match=r"\['nir'\] and post with \['red'\]; expected a band in common"):
        ch.change(scene(0, bands=("nir",)), scene(1, bands=("red",)))


@pytest.mark.parametrize("other", [scene(1, shape=(30, 47)), scene(1).assign_coords(x=np.arange(47) * 3.0 + 1)])
def test_change_refuses_different_grids(other: xr.Dataset) -> None:
    with pytest.raises(InputError, match="align pre to post first"):
        ch.change(scene(0), other)


def test_change_refuses_a_scaling_of_other_features() -> None:
    scaling = measured(scene(0, bands=RGB), scene(1, bands=RGB))
    with pytest.raises(InputError, match="expected dndvi too"):
        ch.change(scene(0), scene(1), scaling=scaling)


# --- analytic pixels -------------------------------------------------------------------------------------------------

FOREST = pixel(blue=0.02, green=0.06, red=0.03, nir=0.40)
SOIL = pixel(blue=0.10, green=0.15, red=0.22, nir=0.28)


@pytest.mark.parametrize("name", [name for name in ch.CHANGE if name != "cva_direction_deg"])
def test_identical_epochs_have_no_change(name: str) -> None:
    assert (ch.change(scene(0), scene(0))[name] == 0).all()


def test_identical_epochs_have_no_direction_of_change() -> None:
    assert ch.change(scene(0), scene(0))["cva_direction_deg"].isnull().all()


def test_dndvi_of_lost_forest() -> None:
    assert compute("dndvi", FOREST, SOIL) == pytest.approx(0.06 / 0.50 - 0.37 / 0.43)


@pytest.mark.parametrize(("name", "sign"), [("dndvi", -1), ("greenness_change", -1), ("brightness_change", 1)])
def test_signed_feature_of_lost_vegetation(name: str, sign: int) -> None:
    feature = ch.CHANGE[name]
    pre, post = ({band: epoch[band] for band in feature.needs} for epoch in (FOREST, SOIL))
    assert np.sign(compute(name, pre, post)) == sign


def test_greenness_change_of_grey_ground_turned_green() -> None:
    grey, green = pixel(red=0.2, green=0.2, blue=0.2), pixel(red=0.1, green=0.2, blue=0.1)
    assert compute("greenness_change", grey, green) == pytest.approx(1 / 2 - 1 / 3)


def test_brightness_change_is_the_mean_over_the_visible() -> None:
    pre, post = pixel(red=0.1, green=0.1, blue=0.1), pixel(red=0.4, green=0.1, blue=0.1)
    assert compute("brightness_change", pre, post) == pytest.approx(0.1)


def test_cva_magnitude_is_euclidean() -> None:
    assert compute("cva_magnitude", pixel(red=0.1, nir=0.5), pixel(red=0.4, nir=0.1)) == pytest.approx(0.5)


@pytest.mark.parametrize(("red", "nir", "expected"), [(0.3, 0.3, 0), (0.3, 0.1, 90), (0.1, 0.1, 180), (0.3, 0.2, 45)])
def test_cva_direction_is_the_angle_from_brightening(red: float, nir: float, expected: float) -> None:
    direction = compute("cva_direction_deg", pixel(red=0.2, nir=0.2), pixel(red=red, nir=nir))
    assert direction == pytest.approx(expected, abs=1e-4)


def test_spectral_angle_of_orthogonal_spectra() -> None:
    assert compute("spectral_angle_deg", pixel(red=0.3, nir=0.0), pixel(red=0.0, nir=0.7)) == pytest.approx(90)


def test_spectral_angle_ignores_illumination() -> None:
    dimmed = {band: values * np.float32(0.37) for band, values in FOREST.items()}
    assert compute("spectral_angle_deg", FOREST, dimmed) == pytest.approx(0, abs=1e-5)


def test_spectral_angle_tells_small_angles() -> None:
    angle = compute("spectral_angle_deg", pixel(red=1.0, nir=0.0), pixel(red=1.0, nir=1e-4))
    assert angle == pytest.approx(np.degrees(1e-4), rel=1e-3)


@pytest.mark.parametrize("name", ["dndvi", "greenness_change", "spectral_angle_deg"])
def test_black_pixel_has_no_colour(name: str) -> None:
    bands = ch.CHANGE[name].needs or RGB
    black, lit = pixel(**dict.fromkeys(bands, 0.0)), pixel(**dict.fromkeys(bands, 0.2))
    assert np.isnan(compute(name, black, lit))


@pytest.mark.parametrize("name", ["dndvi", "greenness_change"])
def test_negative_reflectance_has_no_colour(name: str) -> None:
    bands = ch.CHANGE[name].needs
    lit = pixel(**dict.fromkeys(bands, 0.2))
    assert np.isnan(compute(name, lit | pixel(red=-0.01), lit))


# --- scaling ---------------------------------------------------------------------------------------------------------


def test_scaling_finds_median_and_spread_of_normal_noise() -> None:
    scaling = ch.measure_scaling(normal_sample())
    assert scaling.median == pytest.approx({"cva_magnitude": 0.05, "dndvi": -0.02}, abs=1e-3)
    assert scaling.spread == pytest.approx({"cva_magnitude": 0.01, "dndvi": 0.03}, rel=0.03)


def test_scaling_is_not_moved_by_landslides() -> None:
    clean, sample = ch.measure_scaling(normal_sample()), normal_sample()
    sample["cva_magnitude"][:3000] += 0.3
    sample["dndvi"][:3000] -= 0.5
    scaling = ch.measure_scaling(sample)
    assert scaling.median == pytest.approx(clean.median, abs=1e-3)
    assert scaling.spread == pytest.approx(clean.spread, rel=0.03)


def test_scaling_drops_a_pixel_that_is_odd_in_one_feature_from_all() -> None:
    sample = normal_sample()
    sample["dndvi"][:8000] -= 0.5
    sample["cva_magnitude"][:8000] += 0.01
    assert ch.measure_scaling(sample).median["cva_magnitude"] == pytest.approx(0.05, abs=1e-3)


def test_scaling_ignores_pixels_not_seen_and_features_without_score() -> None:
    sample = normal_sample()
    sample["dndvi"][::7] = np.nan
    scaling = ch.measure_scaling(sample | {"cva_direction_deg": np.full(20_000, np.nan)})
    assert set(scaling.median) == set(scaling.spread) == {"cva_magnitude", "dndvi"}
    assert 0.97 * 20_000 * 6 / 7 < scaling.stable_px < 20_000 * 6 / 7


def test_scaling_survives_json() -> None:
    scaling = ch.measure_scaling(normal_sample())
    assert ch.ChangeScaling(**json.loads(json.dumps(dataclasses.asdict(scaling)))) == scaling


def test_scaling_of_identical_epochs_scores_zero() -> None:
    scaling = measured(scene(0), scene(0))
    assert set(scaling.spread.values()) == {ch.MIN_SPREAD}
    features = ch.change(scene(0), scene(0), scaling=scaling)
    assert all((features[feature.score.name] == 0).all() for feature in SCORED.values())


def test_scaling_refuses_too_few_pixels() -> None:
    with pytest.raises(InputError, match="got 99 stable pixels seen in both epochs; expected 100"):
        ch.measure_scaling(normal_sample(99))


def test_scaling_refuses_a_sample_without_scored_features() -> None:
    with pytest.raises(InputError, match=r"got a sample of \['slope_deg'\]; expected some of dndvi"):
        ch.measure_scaling({"slope_deg": np.zeros(500)})


@pytest.mark.parametrize(("name", "feature"), SCORED.items())
def test_score_is_distance_from_the_median_in_spreads(name: str, feature: ch.ChangeFeature) -> None:
    scaling = ch.ChangeScaling(dict.fromkeys(SCORED, 0.25), dict.fromkeys(SCORED, 0.5), 1000)
    features = ch.change(scene(0), scene(1), scaling=scaling)
    np.testing.assert_allclose(features[feature.score.name], (features[name] - 0.25) / 0.5, rtol=1e-6, atol=1e-7)


def test_change_score_stands_out_on_a_landslide() -> None:
    pre, post = scene(0), scene(1)
    post["red"][10:14, 10:14] += 0.3
    score = ch.change(pre, post, scaling=measured(pre, post))["change_score"]
    assert score[10:14, 10:14].min() > 10
    assert abs(float(score.median())) < 0.2
