import numpy as np
import pytest

from models.calibration import calibration_error, fit_calibration


def _sample(scale, bias, n=200_000):
    rng = np.random.default_rng(0)
    margin = rng.normal(-2, 3, n)
    return margin, rng.random(n) < 1 / (1 + np.exp(-(scale * margin + bias)))


def test_fit_calibration_recovers_scale_and_bias():
    fitted = fit_calibration(*_sample(0.6, -1.2))
    assert fitted.scale == pytest.approx(0.6, abs=0.02)
    assert fitted.bias == pytest.approx(-1.2, abs=0.03)


def test_fit_calibration_of_large_and_misleading_margins_converges():
    rng = np.random.default_rng(0)
    margin = rng.normal(-300, 200, 20_000)
    landslide = rng.random(20_000) < 1 / (1 + np.exp(0.01 * margin + 3.0))
    fitted = fit_calibration(margin, landslide)
    assert fitted.scale == pytest.approx(-0.01, abs=0.0005)
    assert fitted.bias == pytest.approx(-3.0, abs=0.1)


def test_calibrated_probabilities_match_frequencies():
    margin, landslide = _sample(0.6, -1.2)
    raw = 1 / (1 + np.exp(-margin))
    fitted = fit_calibration(margin, landslide)
    assert calibration_error(fitted.probability(margin), landslide) < 0.01 < calibration_error(raw, landslide)


def test_calibration_error_of_a_known_table():
    probability = np.array([0.1, 0.1, 0.9, 0.9])
    landslide = np.array([False, False, True, False])
    assert calibration_error(probability, landslide) == pytest.approx((0.2 + 0.8) / 4)


def test_fit_calibration_of_one_class_is_an_error():
    with pytest.raises(ValueError, match="one class"):
        fit_calibration(np.zeros(5), np.zeros(5, bool))
