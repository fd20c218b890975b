"""AUC under class-opposed nuisances, of models whose shortcut is known."""

from functools import partial

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers

from pneumo.data.perturb import perturb
from pneumo.evaluation import robustness
from pneumo.evaluation.comparison import ScoredPredictions
from pneumo.evaluation.robustness import NUISANCES, VERSION_TITLES, versions
from pneumo.inference.logits import predict_proba

PAIRING = {"positive", "negative", "auc", "auc_low", "auc_high"}
DIFFERENCE = {"difference", "difference_low", "difference_high"}


def test_each_version_occurs_once_and_has_a_title():
    assert versions(robustness.ROBUST_NUISANCES) == [
        None,
        ("trim_width", 0.15),
        ("trim_height", 0.15),
        ("sharpen", 1.5),
        ("blur", 0.01),
    ]
    assert set(versions(NUISANCES)) == set(VERSION_TITLES)
    assert len(versions(NUISANCES)) == len(VERSION_TITLES)


def test_the_opposed_auc_is_the_worse_pairing():
    """By hand: two positive and two negative images."""
    labels = np.array([1, 1, 0, 0])
    nuisance = NUISANCES["geometry"]
    logits = {
        nuisance.first: np.array([3.0, 1.0, 2.0, 0.0]),
        nuisance.second: np.array([2.5, 0.5, 1.0, -1.0]),
    }
    # positives 3, 1 and negatives 1, -1: 3.5 of 4 pairs; positives 2.5, 0.5, negatives 2, 0: 3
    assert robustness.opposed_auc(labels, logits, nuisance) == 3 / 4
    swapped = nuisance._replace(first=nuisance.second, second=nuisance.first)
    assert robustness.opposed_auc(labels, logits, swapped) == 3 / 4
    one, other = robustness.opposed_scores(labels, logits, nuisance)
    assert one.tolist() == [3.0, 1.0, 1.0, -1.0]
    assert other.tolist() == [2.5, 0.5, 2.0, 0.0]


def test_the_robust_auc_is_the_mean_of_three():
    labels = np.array([1, 0, 1, 0])
    good, bad = np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.0, 1.0, 0.0, 1.0])
    logits = dict.fromkeys(versions(robustness.ROBUST_NUISANCES), good)
    assert robustness.robust_auc(labels, logits) == 1
    shifted = {**logits, ("blur", 0.01): good + 10}  # a blurred image always scores higher
    assert robustness.robust_auc(labels, shifted) == pytest.approx((1 + 1 + 0) / 3)
    assert robustness.robust_auc(labels, {**logits, None: bad}) == pytest.approx((0 + 1 + 1) / 3)


SIDE, PATIENTS = 32, 60


def linear_model(weights: np.ndarray) -> keras.Model:
    """A model whose logit is a weighted sum of pixels."""
    pixels = keras.Input((SIDE, SIDE, 1), dtype="uint8")
    logit = layers.Dense(1)
    model = keras.Model(pixels, logit(layers.Flatten()(layers.Rescaling(1.0)(pixels))))
    logit.set_weights([weights.reshape(-1, 1), np.array([-0.1 * 120 * weights.sum() / 0.1])])
    return model


class Images:
    """A split of images whose positive ones are brighter everywhere, or at the border alone."""

    def __init__(self, border_only: bool) -> None:
        rng = np.random.default_rng(0)
        self.labels = np.arange(PATIENTS) % 2
        values = 120 + 20 * (self.labels + rng.normal(0, 0.4, PATIENTS)) - 10
        border = np.ones((SIDE, SIDE), bool)
        border[4:-4, 4:-4] = False
        where = border if border_only else np.ones_like(border)
        pixels = np.where(where, values[:, None, None], 120)
        self.images = np.round(pixels).astype(np.uint8)[..., np.newaxis]
        self.weights = np.where(where, 0.1 / where.sum(), 0.0)


@pytest.fixture
def measure(monkeypatch):
    """Measure the nuisances of a linear model on `Images`, perturbed without a cache."""

    class Changed:
        def __init__(self, images: np.ndarray) -> None:
            self.images = images

    def perturb_split(split, specs):
        [(name, amount)] = specs
        changed = [perturb(image[..., 0], name, amount) for image in split.images]
        return Changed(np.stack(changed)[..., np.newaxis])

    monkeypatch.setattr(robustness, "perturb_split", perturb_split)

    def measured(border_only: bool):
        split = Images(border_only)
        predict = partial(predict_proba, linear_model(split.weights))
        table = pd.DataFrame(
            {
                "path": [f"{number}.png" for number in range(PATIENTS)],
                "patient": [f"person{number}" for number in range(PATIENTS)],
                "label": split.labels,
                "probability": predict(split.images),
            }
        )
        return robustness.measure_nuisances(predict, split, table), split, predict, table

    return measured


def test_both_pairings_of_each_nuisance_are_measured_the_smaller_auc_first(measure):
    found, split, predict, table = measure(border_only=False)
    assert list(found) == list(NUISANCES)
    unchanged = ScoredPredictions(table, 0.5)
    for values in found.values():
        assert set(values) == {"pairings"} | DIFFERENCE
        first, second = values["pairings"]
        assert set(first) == set(second) == PAIRING
        assert first["auc"] <= second["auc"]
        assert (first["positive"], first["negative"]) == (second["negative"], second["positive"])
    versions_of = {
        it: predict(np.stack([perturb(image[..., 0], *it) for image in split.images])[..., None])
        for it in (("gamma", 0.67), ("gamma", 1.5))
    }
    brighter, darker = versions_of.values()
    scores = np.where(split.labels, darker, brighter)  # the pairing that the model gets wrong
    expected = ScoredPredictions(table.assign(probability=scores), 0.5)
    first = found["gamma"]["pairings"][0]
    assert (first["positive"], first["negative"]) == ("darker", "brighter")
    metrics = expected.metrics_with_intervals()
    assert {name: first[name] for name in ("auc", "auc_low", "auc_high")} == pytest.approx(
        {name: metrics[name] for name in ("auc", "auc_low", "auc_high")}
    )
    # as two models are compared, although the samples of patients are shared here
    compared = expected.compare_with(unchanged)
    assert {name: found["gamma"][name] for name in DIFFERENCE} == pytest.approx(
        {
            "difference": compared.auc_difference,
            "difference_low": compared.low,
            "difference_high": compared.high,
        }
    )


def test_a_model_of_the_brightness_is_found_out(measure):
    """Brightness reversed makes each normal image brighter than each pneumonia image."""
    found, *_ = measure(border_only=False)
    assert found["gamma"]["pairings"][0]["auc"] == 0
    words = robustness.describe_reliance(found)
    assert words.startswith("The model relies on ")
    assert "brightness (AUC 0.000 (0.000–" in words
    assert "sharpness" not in words  # a uniform image has none
    assert "aspect ratio" not in words


def test_a_model_of_the_border_is_found_out(measure):
    found, *_ = measure(border_only=True)
    words = robustness.describe_reliance(found)
    assert f"{NUISANCES['border'].title} (AUC " in words


@pytest.mark.parametrize(("high", "relies"), [(-0.06, True), (-0.05, False), (0.01, False)])
def test_reliance_must_be_sure(high, relies):
    pairing = {"positive": "border black", "negative": "unchanged"}
    pairings = [
        {**pairing, "auc": 0.8, "auc_low": 0.7, "auc_high": 0.9},
        {**pairing, "auc": 0.95, "auc_low": 0.9, "auc_high": 0.97},
    ]
    values = {"difference": -0.2, "difference_low": -0.3, "difference_high": high}
    found = {"border": {"pairings": pairings, **values}}
    assert robustness.relied_nuisances(found) == (["border"] if relies else [])
    words = robustness.describe_reliance(found)
    if relies:
        assert words.startswith(
            f"The model relies on {NUISANCES['border'].title} (AUC 0.800 (0.700–0.900) if reversed)"
        )
    else:
        assert words == (
            "No property in the table lowers the AUC by more than 0.05 with 95 % confidence."
        )


def test_the_largest_difference_is_named_first():
    values = {"pairings": [], "difference_low": -0.9, "difference_high": -0.1}
    found = {
        "geometry": {**values, "difference": -0.2},
        "border": {**values, "difference": -0.5},
    }
    assert robustness.relied_nuisances(found) == ["border", "geometry"]
