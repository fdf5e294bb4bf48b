import numpy as np
import pytest

from catalog.schema import InputError
from tasks.inference import (
    Extent,
    Lattice,
    Tone,
    imagery_needed,
    measure_tone,
    predict_block,
    reflect,
    resampling_matrix,
)

SCENE = Extent(100, 40, 400, 360)


def _image(seed=1):
    rng = np.random.default_rng(seed)
    image = rng.uniform(0, 255, (3, 300, 320)).astype(np.float32)
    image[:, 50:60, 20:90] = np.nan
    return image


def _run(core, *, scale, image, predict=None):
    lattice = Lattice(64, scale=scale)
    needed = imagery_needed(core, lattice=lattice, scene=SCENE)
    part = image[:, needed.y0 - 100 : needed.y1 - 100, needed.x0 - 40 : needed.x1 - 40]

    def mean_red(windows):
        return (windows[..., 0] / 255 * windows.mean(axis=(1, 2, 3), keepdims=True)[..., 0] / 255).astype(np.float32)

    return predict_block(
        part, origin=(needed.y0, needed.x0), core=core, scene=SCENE, lattice=lattice, predict=predict or mean_red
    )


@pytest.mark.parametrize("scale", [1.0, 5 / 3, 0.4])
def test_predict_block_is_the_same_for_any_blocks(scale):
    image = _image()
    whole = _run(SCENE, scale=scale, image=image)
    rows, cols = (100, 177, 260, 400), (40, 130, 360)
    for y0, y1 in zip(rows, rows[1:], strict=False):
        for x0, x1 in zip(cols, cols[1:], strict=False):
            part = _run(Extent(y0, x0, y1, x1), scale=scale, image=image)
            inside = (slice(y0 - 100, y1 - 100), slice(x0 - 40, x1 - 40))
            np.testing.assert_array_equal(part.probability, whole.probability[inside])
            np.testing.assert_array_equal(part.disagreement, whole.disagreement[inside])


def test_predict_block_of_a_constant_is_that_constant():
    result = _run(SCENE, scale=1.0, image=_image(), predict=lambda w: np.full(w.shape[:3], 0.3, np.float32))
    np.testing.assert_allclose(result.probability, 0.3, atol=1e-6)
    known = np.isfinite(result.disagreement)
    assert 0.3 < known.mean() < 0.7
    np.testing.assert_allclose(result.disagreement[known], 0.0, atol=1e-6)


def _looks(scene, side, stride):
    """How many windows of the lattice see each pixel of a scene at the network's own pixel size."""
    counts = []
    for start, stop in ((scene.y0, scene.y1), (scene.x0, scene.x1)):
        begins = range((start - side) // stride * stride, stop, stride)
        counts.append(np.array([sum(b <= pixel < b + side for b in begins) for pixel in range(start, stop)]))
    return np.outer(*counts)


def test_disagreement_is_nodata_where_one_window_only_saw_the_pixel():
    rng = np.random.default_rng(2)
    result = _run(
        SCENE, scale=1.0, image=np.full((3, 300, 320), 90, np.float32),
        predict=lambda w: np.broadcast_to(rng.uniform(0.1, 0.9, (len(w), 1, 1)).astype(np.float32), w.shape[:3]),
    )  # fmt: skip
    looks = _looks(SCENE, 64, 48)
    assert set(np.unique(looks)) == {1, 2, 4}
    np.testing.assert_array_equal(np.isnan(result.disagreement), looks == 1)
    assert (result.disagreement[looks > 1] > 0).all()
    assert np.isfinite(result.probability).all()


@pytest.mark.parametrize("scale", [5 / 3, 0.4])
def test_disagreement_is_no_wider_than_a_network_pixel_where_pixels_differ_in_size(scale):
    result = _run(SCENE, scale=scale, image=np.full((3, 300, 320), 90, np.float32))
    rows, columns = (
        np.floor((np.arange(a, b) + 0.5) / scale).astype(int) for a, b in ((SCENE.y0, SCENE.y1), (SCENE.x0, SCENE.x1))
    )
    around = Extent(rows[0] - 1, columns[0] - 1, rows[-1] + 2, columns[-1] + 2)
    looks = _looks(around, 64, 48)[np.ix_(rows - around.y0, columns - around.x0)]
    assert (np.isnan(result.disagreement) != (looks == 1)).mean() < 0.05


def test_predict_block_keeps_the_geometry_of_the_imagery():
    image = np.zeros((3, 300, 320), np.float32)
    image[:, 100:140, 200:260] = 255
    result = _run(SCENE, scale=2.5, image=image, predict=lambda w: (w[..., 0] / 255).astype(np.float32))
    y, x = np.nonzero(result.probability > 0.5)
    assert abs(y.mean() - 119.5) < 0.6
    assert abs(x.mean() - 229.5) < 0.6


def test_predict_block_without_valid_imagery_predicts_nothing():
    result = _run(SCENE, scale=1.0, image=np.full((3, 300, 320), np.nan, np.float32))
    assert result.windows == 0
    assert np.isnan(result.probability).all()


def test_resampling_matrix_averages_areas():
    start, weights = resampling_matrix(2, 3, scale=1.5)
    assert start == 3
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(weights @ np.arange(3, 8), [10 / 3, 14 / 3, 19 / 3], atol=1e-4)


def test_reflect_folds_far_indices_back():
    folded = reflect(np.arange(-50, 50), start=3, stop=9)
    assert folded.min() == 3
    assert folded.max() == 8


REFERENCE = (46.0, 51.0, 50.0)


def test_tone_brings_each_band_s_median_to_the_reference():
    rng = np.random.default_rng(0)
    sample = {
        band: rng.lognormal(middle, 0.4, 5000).astype(np.float32)
        for band, middle in (("red", -2.5), ("green", -2.2), ("blue", -3.0))
    }
    tone = measure_tone(sample, reference=REFERENCE)
    toned = tone.apply(np.stack(list(sample.values()))[:, None])
    np.testing.assert_allclose(np.median(toned, axis=(1, 2)), REFERENCE, rtol=1e-3)


def test_tone_bends_a_scene_of_another_contrast():
    rng = np.random.default_rng(0)
    sample = {band: rng.lognormal(-2.5, 0.9, 5000).astype(np.float32) for band in ("red", "green", "blue")}
    assert 0.4 <= measure_tone(sample, reference=REFERENCE).gamma < 1.0


def test_tone_bends_more_and_more_where_the_contrast_grows():
    ranks = np.random.default_rng(0).normal(size=5000)
    gammas = [
        measure_tone(
            {band: np.exp(spread * ranks - 2.5) for band in ("red", "green", "blue")}, reference=REFERENCE
        ).gamma
        for spread in np.linspace(0.3, 0.7, 81)  # contrasts of 2.0 to 5.1
    ]
    assert gammas[10] == 1.0
    assert gammas[-1] < 0.6
    assert np.all(np.diff(gammas)[5:] <= 0.0)
    assert np.abs(np.diff(gammas)).max() < 0.05  # of 0.46 in all


def test_tone_keeps_nodata():
    tone = Tone((0.2, 0.2, 0.2), REFERENCE, 1.0)
    assert np.isnan(tone.apply(np.full((3, 1, 1), np.nan, np.float32))).all()


def test_tone_of_too_few_pixels_is_an_error():
    empty = {band: np.full(1000, np.nan, np.float32) for band in ("red", "green", "blue")}
    with pytest.raises(InputError, match="only 0 of the sampled pixels"):
        measure_tone(empty, reference=REFERENCE)


def test_tone_of_a_black_band_is_an_error():
    sample = {band: np.full(1000, value, np.float32) for band, value in (("red", 0.1), ("green", 0.1), ("blue", 0.0))}
    with pytest.raises(InputError, match="medians of red, green and blue are 0.1, 0.1, 0"):
        measure_tone(sample, reference=REFERENCE)
