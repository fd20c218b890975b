"""Adjustment of probabilities to another prevalence."""

import json

import numpy as np
import pytest
from scipy.stats import norm

from pneumo.inference.calibration import prevalence_shift, shift_probabilities
from pneumo.inference.logits import predict_logits, predict_proba
from pneumo.inference.pyfunc import PneumoniaModel
from tests.support.handmade import looking


def posterior(scores: np.ndarray, prevalence: float) -> np.ndarray:
    """Return by Bayes' theorem the probability of the class at 1 and not at −1."""
    positive, negative = prevalence * norm.pdf(scores, 1), (1 - prevalence) * norm.pdf(scores, -1)
    return positive / (positive + negative)


@pytest.mark.parametrize(("old", "new"), [(0.74, 0.1), (0.5, 0.5), (0.01, 0.99)])
def test_probabilities_at_another_prevalence_are_those_of_bayes(old, new):
    scores = np.linspace(-4, 4, 9)
    adjusted = shift_probabilities(posterior(scores, old), prevalence_shift(old, new))
    assert adjusted == pytest.approx(posterior(scores, new), rel=1e-9)
    assert shift_probabilities(np.array([0.0, 1.0]), 3).tolist() == [0, 1]


def test_a_model_adjusts_probabilities_and_threshold_alike():
    model = PneumoniaModel()
    model.settings = {"slope": 2.0, "intercept": 0.5, "prevalence": 0.7, "threshold": 0.6}
    logits = np.linspace(-3, 3, 101)
    before = model.calibration.to_probabilities(logits)
    assert (model.threshold, model.adjusted_to) == (0.6, None)
    model.adjust_to_prevalence(0.1)
    after = model.calibration.to_probabilities(logits)
    assert after == pytest.approx(shift_probabilities(before, prevalence_shift(0.7, 0.1)))
    assert model.threshold == pytest.approx(model.adjust(0.6)) != 0.6
    assert np.array_equal(after >= model.threshold, before >= 0.6)


def test_a_model_of_an_earlier_version_keeps_its_temperature(tmp_path):
    looking("left").save(tmp_path / "model.keras")
    settings = {"threshold": 0.4, "temperature": 2.0, "resize": "squash"}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    model = PneumoniaModel()
    model.load_from(tmp_path / "model.keras", tmp_path / "settings.json")
    assert model.calibration == (0.5, 0)
    assert model.settings["prevalence"] == 0.5  # training weighs both classes alike
    size = model.image_size
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 1), np.uint8)
    expected = 1 / (1 + np.exp(-predict_logits(model.keras_model, images) / 2))
    found = predict_proba(model.keras_model, images, model.calibration)
    assert found == pytest.approx(expected, rel=1e-9)
