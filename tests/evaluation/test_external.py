"""Comparison with the own test images, and recalibration on other data."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from pneumo.data.dataset import Split
from pneumo.data.split import choose_patients
from pneumo.evaluation import metrics
from pneumo.evaluation.external import compare_with_internal, describe_transfer, recalibrate
from pneumo.evaluation.metrics import HEADLINE_METRICS
from pneumo.runtime.errors import UserError

NAMES = ("auc", "sensitivity", "specificity", "accuracy")


def numbers(value: float, margin: float) -> dict:
    """Return metrics with their intervals, with the same value for all."""
    bounds = {"": value, "_low": value - margin, "_high": value + margin}
    return {f"{name}{end}": bounds[end] for name in NAMES for end in bounds}


def test_differences_are_of_independent_patients():
    found = compare_with_internal(numbers(0.95, 0.03), numbers(0.85, 0.04))
    assert set(found) == set(HEADLINE_METRICS)
    width = math.hypot(0.03, 0.04)
    for values in found.values():
        assert values == pytest.approx(
            {
                **{"internal": 0.95, "internal_low": 0.92, "internal_high": 0.98},
                **{"external": 0.85, "external_low": 0.81, "external_high": 0.89},
                "difference": -0.1,
                "difference_low": -0.1 - width,
                "difference_high": -0.1 + width,
            }
        )


@pytest.mark.parametrize(
    ("value", "margin", "verdict"),
    [
        (0.95, 0.02, "The model transfers to these images: its AUC is not more than 0.05 lower"),
        (0.93, 0.01, "The model transfers to these images: its AUC is not more than 0.05 lower"),
        (0.60, 0.05, "The model does not transfer to these images: its AUC is lower than on"),
        (0.93, 0.10, "These images do not show whether the model transfers: its AUC may be lower"),
    ],
)
def test_verdicts(value, margin, verdict):
    sentence = describe_transfer(compare_with_internal(numbers(0.95, 0.02), numbers(value, margin)))
    assert sentence.startswith(verdict)
    assert f"(AUC {value:.3f} (" in sentence
    assert ") here, 0.950 (0.930–0.970) there, difference " in sentence


def shifted(count: int = 4_000) -> tuple[Split, np.ndarray]:
    """Return images of other patients, and logits that are too high and too extreme for them."""
    rng = np.random.default_rng(0)
    true_logits = rng.normal(-1, 2, count)
    labels = (rng.random(count) < expit(true_logits)).astype(int)
    rows = pd.DataFrame(
        {
            "path": [f"{number}.png" for number in range(count)],
            "label": labels,
            "subtype": "",
            "patient": [f"p{number // 2}" for number in range(count)],
            "split": "test",
            "sha256": [str(number) for number in range(count)],
        }
    )
    pixels = np.zeros((count, 1, 1), np.uint8)
    return Split(rows, pixels, np.arange(count), ""), 3 * true_logits + 4


def test_recalibration_finds_the_true_line_again():
    split, logits = shifted()
    is_chosen = choose_patients(split.rows, 0.3)
    found = recalibrate(split, logits, is_chosen)
    assert found["images"] == is_chosen.sum()
    assert found["patients"] == split.rows["patient"][is_chosen].nunique()
    assert found["slope"] == pytest.approx(1 / 3, abs=0.05)
    assert found["intercept"] == pytest.approx(-4 / 3, abs=0.15)
    before = metrics.evaluate_predictions(split.take(~is_chosen), expit(logits[~is_chosen]), 0.5)
    assert found["at_threshold"]["auc"] == pytest.approx(before.metrics["auc"])
    assert found["at_threshold"]["log_loss"] < before.metrics["log_loss"] / 2
    assert found["calibration"]["slope_low"] < 1 < found["calibration"]["slope_high"]
    assert found["calibration"]["intercept_low"] < 0 < found["calibration"]["intercept_high"]
    assert 0.2 < found["at_threshold"]["threshold"] < 0.7
    assert "greater net benefit" in found["benefit"]


def test_a_share_of_the_patients_of_each_class_is_chosen():
    split, _ = shifted(1_000)
    rows = split.rows
    is_chosen = choose_patients(rows, 0.3)
    assert set(rows["patient"][is_chosen]) & set(rows["patient"][~is_chosen]) == set()
    is_sick = rows.groupby("patient")["label"].transform("max") == 1
    for of_class in (is_sick, ~is_sick):
        share = (
            rows["patient"][of_class & is_chosen].nunique() / rows["patient"][of_class].nunique()
        )
        assert share == pytest.approx(0.3, abs=0.01)
    order = np.random.default_rng(0).permutation(len(rows))
    again = choose_patients(rows.iloc[order], 0.3)
    assert np.array_equal(again, is_chosen[order])


def test_two_patients_of_each_class_must_remain():
    rows = pd.DataFrame(
        {
            "patient": list("abcdefg"),
            "label": [1, 1, 1, 0, 0, 0, 0],
            "sha256": list("1234567"),
        }
    )
    message = "of the 3 with PNEUMONIA, 2 would be taken. Use a smaller share"
    with pytest.raises(UserError, match=message):
        choose_patients(rows, 0.3)


def test_a_part_of_a_split_keeps_its_pixels():
    split, _ = shifted(10)
    pixels = np.arange(10, dtype=np.uint8)[:, np.newaxis, np.newaxis]
    split = Split(split.rows, pixels, np.arange(10)[::-1], "")
    is_chosen = np.arange(10) % 3 == 0
    part = split.take(is_chosen)
    assert part.rows["path"].tolist() == ["0.png", "3.png", "6.png", "9.png"]
    assert part.images.ravel().tolist() == [9, 6, 3, 0]
    assert part.labels.tolist() == split.labels[is_chosen].tolist()
