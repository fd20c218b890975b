import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from pneumo import evaluate as module

# Hand-made: four normal, six sick images
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
SCORES = np.array([0.1, 0.2, 0.35, 0.8, 0.15, 0.5, 0.6, 0.7, 0.9, 0.95])


def test_hand_computed():
    scores = module.score(LABELS, SCORES, 0.5)
    # at 0.5: tn 3, fp 1, fn 1, tp 5; of 24 pairs, the sick one is above in 6+5+5+2... = 18
    assert module.confusion(LABELS, SCORES, 0.5) == {"tn": 3, "fp": 1, "fn": 1, "tp": 5}
    pairs = [(sick > normal) for sick in SCORES[4:] for normal in SCORES[:4]]
    expected = {
        "auc": sum(pairs) / 24,
        "accuracy": 8 / 10,
        "sensitivity": 5 / 6,
        "specificity": 3 / 4,
        "balanced_accuracy": (5 / 6 + 3 / 4) / 2,
        "ppv": 5 / 6,
        "npv": 3 / 4,
        "f1": 2 * 5 / (2 * 5 + 1 + 1),
        "mcc": (5 * 3 - 1 * 1) / np.sqrt(6 * 6 * 4 * 4),
        "brier": np.mean((SCORES - LABELS) ** 2),
        "log_loss": -np.mean(np.log(np.where(LABELS == 1, SCORES, 1 - SCORES))),
        # precision at each sick image from the highest score down: 1, 1, 3/4, 4/5, 5/6, 6/9
        "average_precision": (1 + 1 + 3 / 4 + 4 / 5 + 5 / 6 + 6 / 9) / 6,
        "threshold": 0.5,
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert set(scores) == {*expected, "ece"}


def test_calibration_error_by_hand():
    # bin 0.2–0.3: two images, mean probability 0.25, none sick; bin 0.9–1: two, 0.95, one sick
    labels, scores = np.array([0, 0, 1, 0]), np.array([0.2, 0.3 - 1e-9, 0.9, 1.0])
    error = module.expected_calibration_error(labels, scores)
    assert error == pytest.approx((2 * 0.25 + 2 * (0.95 - 0.5)) / 4, abs=1e-6)


def test_a_rate_of_nothing_is_not_a_number():
    scores = module.score(LABELS, SCORES, threshold=2.0)
    assert np.isnan(scores["ppv"])
    assert scores["sensitivity"] == 0
    assert scores["specificity"] == 1


def test_the_threshold_itself_counts_as_positive():
    assert module.confusion(LABELS, SCORES, 0.8) == {"tn": 3, "fp": 1, "fn": 4, "tp": 2}


def test_youdens_threshold():
    threshold = module.youden_threshold(LABELS, SCORES)
    gains = {
        cut: metrics.recall_score(LABELS, SCORES >= cut)
        + metrics.recall_score(LABELS, SCORES >= cut, pos_label=0)
        for cut in SCORES
    }
    assert threshold == max(sorted(gains, reverse=True), key=gains.get) == 0.5


def test_youdens_threshold_of_useless_scores_is_a_number():
    assert module.youden_threshold(LABELS, np.full(10, 0.4)) == 0.4
    assert np.isfinite(module.youden_threshold(LABELS, 1 - SCORES))


def predictions_of(images_per_patient: int, patients: int = 60) -> pd.DataFrame:
    """Patients whose images are all alike, as in one who is photographed many times."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, patients)
    scores = np.clip(labels * 0.3 + rng.uniform(0, 0.7, patients), 0, 1)
    one_each = pd.DataFrame(
        {"patient": [f"p{n}" for n in range(patients)], "label": labels, "probability": scores}
    )
    return pd.concat([one_each] * images_per_patient, ignore_index=True)


def test_more_images_of_the_same_patients_are_no_more_evidence():
    one = module.patient_intervals(predictions_of(1), 0.5, draws=400)
    ten = module.patient_intervals(predictions_of(10), 0.5, draws=400)
    assert ten == pytest.approx(one, abs=1e-9)
    assert set(one) == {
        f"{name}_{side}"
        for name in ("auc", "sensitivity", "specificity", "accuracy")
        for side in ("low", "high")
    }


def test_intervals_hold_the_value_and_repeat():
    predictions = predictions_of(2)
    scores = module.score(predictions["label"], predictions["probability"], 0.5)
    intervals = module.patient_intervals(predictions, 0.5, draws=400)
    for name in ("auc", "sensitivity", "specificity", "accuracy"):
        assert intervals[f"{name}_low"] < scores[name] < intervals[f"{name}_high"]
    assert module.patient_intervals(predictions, 0.5, draws=400) == intervals
