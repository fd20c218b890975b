"""Metrics, thresholds, calibration and subgroups, by hand and against scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn import metrics
from sklearn.linear_model import LogisticRegression

from pneumo.evaluation.metrics import (
    compute_metrics,
    confusion_counts,
    describe_miscalibration,
    expected_calibration_error,
    fit_calibration,
    limit_threshold,
    measure_calibration,
    midpoint_threshold,
    specificity_at_sensitivity,
    threshold_at_sensitivity,
    threshold_of_net_benefit,
    youden_threshold,
)

# Hand-made: four normal, six sick images
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
SCORES = np.array([0.1, 0.2, 0.35, 0.8, 0.15, 0.5, 0.6, 0.7, 0.9, 0.95])


def test_hand_computed():
    scores = compute_metrics(LABELS, SCORES, 0.5)
    # at 0.5: tn 3, fp 1, fn 1, tp 5; of 24 pairs, the sick one is above in 6+5+5+2... = 18
    assert confusion_counts(LABELS, SCORES, 0.5) == {"tn": 3, "fp": 1, "fn": 1, "tp": 5}
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
    error = expected_calibration_error(labels, scores)
    assert error == pytest.approx((2 * 0.25 + 2 * (0.95 - 0.5)) / 4, abs=1e-6)


def test_a_rate_of_no_images_is_nan():
    scores = compute_metrics(LABELS, SCORES, threshold=2.0)
    assert np.isnan(scores["ppv"])
    assert scores["sensitivity"] == 0
    assert scores["specificity"] == 1


def test_the_threshold_itself_counts_as_positive():
    assert confusion_counts(LABELS, SCORES, 0.8) == {"tn": 3, "fp": 1, "fn": 4, "tp": 2}


def test_youdens_threshold():
    gains = {
        cut: metrics.recall_score(LABELS, SCORES >= cut)
        + metrics.recall_score(LABELS, SCORES >= cut, pos_label=0)
        for cut in SCORES
    }
    assert max(sorted(gains, reverse=True), key=gains.get) == 0.5
    # the next lower score is 0.35
    assert youden_threshold(LABELS, SCORES) == pytest.approx((0.5 + 0.35) / 2, abs=1e-12)


def test_midway_between_the_classes():
    labels, logits = np.array([0, 0, 1, 1, 1]), np.array([-4.0, -2.0, 0.0, 3.0, 9.0])
    assert midpoint_threshold(labels, logits) == pytest.approx(expit(0.5))


def test_youdens_threshold_of_useless_scores_is_a_number():
    assert youden_threshold(LABELS, np.full(10, 0.4)) == 0.2  # midway to 0
    assert youden_threshold(LABELS, np.zeros(10)) == 0
    assert np.isfinite(youden_threshold(LABELS, 1 - SCORES))


@pytest.mark.parametrize("prevalence", [None, 0.6, 0.05])
@pytest.mark.parametrize("probability", [0.1, 0.2, 0.6])
def test_a_threshold_has_the_greatest_net_benefit(probability, prevalence):
    odds = probability / (1 - probability)
    positive = 0.6 if prevalence is None else prevalence

    def benefit(cut: float) -> float:
        tpr, fpr = ((SCORES[LABELS == label] >= cut).mean() for label in (1, 0))
        return tpr * positive - fpr * (1 - positive) * odds

    threshold = threshold_of_net_benefit(probability, prevalence, LABELS, SCORES)
    assert benefit(threshold) == pytest.approx(max(map(benefit, SCORES)), abs=1e-12)


def test_of_equally_good_thresholds_the_highest_counts():
    labels = np.repeat([1, 1, 0, 0], [10, 1, 10, 4])
    scores = np.repeat([0.8, 0.2, 0.8, 0.2], [10, 1, 10, 4])
    # 10 - 10/4 = 11 - 14/4, except for rounding
    assert threshold_of_net_benefit(0.2, None, labels, scores) == pytest.approx(0.5)


def test_net_benefit_weighs_false_alarms_by_prevalence():
    thresholds = [
        threshold_of_net_benefit(0.2, prevalence, LABELS, SCORES) for prevalence in (0.9, 0.01)
    ]
    # all cases are found, with three false alarms; or as many as without a false alarm
    assert thresholds == pytest.approx([(0.1 + 0.15) / 2, (0.8 + 0.9) / 2], abs=1e-12)


def test_a_sensitivity_is_reached_at_the_middle_of_the_highest_plateau_that_does():
    # each: the lowest score that must be called positive, and the next lower one
    for sensitivity, upper, lower in [
        (0.5, 0.7, 0.6),
        (0.51, 0.6, 0.5),
        (0.8, 0.5, 0.35),
        (0.95, 0.15, 0.1),
        (1.0, 0.15, 0.1),
    ]:
        found = threshold_at_sensitivity(sensitivity, LABELS, SCORES)
        assert found == pytest.approx((upper + lower) / 2, abs=1e-12)
    assert threshold_at_sensitivity(1.0, np.array([1, 0]), np.array([0.3, 0.6])) == 0.15


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_threshold_between_adjacent_numbers_calls_the_same_images_positive(dtype):
    labels = np.array([0, 1, 1])
    upper = np.linspace(0.1, 1, 200, dtype=dtype)  # some of their last bits are 0, some are 1
    for value in (*upper, np.nextafter(dtype(0), dtype(1))):
        scores = np.array([np.nextafter(value, dtype(0)), value, 1], dtype)
        for threshold in (
            youden_threshold(labels, scores),
            threshold_at_sensitivity(1.0, labels, scores),
        ):
            for again in (scores, scores.astype(float)):
                assert (again >= threshold).tolist() == [False, True, True]


def test_specificity_at_a_sensitivity_is_the_best_there_is():
    assert specificity_at_sensitivity(0.5, LABELS, SCORES) == 3 / 4
    assert specificity_at_sensitivity(0.95, LABELS, SCORES) == 1 / 4


def test_specificity_at_a_sensitivity_counts_every_point_of_a_straight_curve():
    labels, scores = np.array([0, 1, 0, 1]), np.array([0.9, 0.9, 0.1, 0.1])
    assert specificity_at_sensitivity(0.5, labels, scores) == 0.5
    rng = np.random.default_rng(0)
    for _ in range(200):
        labels, scores = rng.permutation([0, 1] * 6), rng.integers(0, 4, 12) / 4
        for sensitivity in (0.3, 0.5, 0.95):
            reached = [
                value for value in scores if (scores[labels == 1] >= value).mean() >= sensitivity
            ]
            expected = max((scores[labels == 0] < value).mean() for value in reached)
            found = specificity_at_sensitivity(sensitivity, labels, scores)
            assert found == pytest.approx(expected, abs=1e-12)


def test_a_threshold_costs_at_most_two_points_of_balanced_accuracy():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 200)
    scores = expit(rng.normal(3 * labels - 1.5, 1))

    def balanced(threshold: float) -> float:
        return metrics.balanced_accuracy_score(labels, scores >= threshold)

    best = youden_threshold(labels, scores)
    for threshold in (best, best + 0.01):
        assert limit_threshold(threshold, labels, scores) == threshold
    for far in (0.02, 0.95):
        assert balanced(far) < balanced(best) - 0.02
        found = limit_threshold(far, labels, scores)
        assert balanced(found) >= balanced(best) - 0.02
        assert min(far, best) < found < max(far, best)
        closer = np.linspace(found, far, 200)[10:]
        assert all(balanced(value) < balanced(best) - 0.02 for value in closer)


def simulate(slope: float, intercept: float, images: int = 20_000) -> tuple:
    """Return labels, and logits that the line calibrates."""
    rng = np.random.default_rng(0)
    true = rng.normal(0.5, 2, images)
    return (rng.uniform(size=images) < expit(true)).astype(int), (true - intercept) / slope


@pytest.mark.parametrize(("slope", "intercept"), [(0.4, 0.0), (1.0, 1.0), (2.5, -1.0)])
def test_calibration_finds_the_line(slope, intercept):
    labels, logits = simulate(slope, intercept)
    found = fit_calibration(labels, logits)
    assert found == pytest.approx((slope, intercept), rel=0.05, abs=0.05)
    expected = LogisticRegression(C=np.inf).fit(logits[:, None], labels)
    [[by_sklearn]], [intercept_by_sklearn] = expected.coef_, expected.intercept_
    assert found == pytest.approx((by_sklearn, intercept_by_sklearn), rel=2e-3, abs=2e-3)
    probabilities = found.to_probabilities(logits)
    assert probabilities.mean() == pytest.approx(labels.mean(), abs=1e-3)
    assert np.array_equal(np.argsort(logits), np.argsort(probabilities))


def test_calibration_of_perfectly_or_not_separated_classes_is_finite():
    labels = np.array([0, 0, 1, 1])
    slope, intercept = fit_calibration(labels, np.array([-2.0, -1, 1, 2]))
    assert 0.1 < slope < 10
    assert intercept == pytest.approx(0, abs=1e-6)
    assert fit_calibration(labels, np.array([-0.02, -0.01, 0.01, 0.02])).slope == 10
    assert fit_calibration(labels, np.array([2.0, 1, -1, -2])).slope == 0.1


def of_patients(labels: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    patients = np.arange(len(labels)) // 2
    return pd.DataFrame({"patient": patients, "label": labels, "probability": probabilities})


@pytest.mark.parametrize(("slope", "intercept"), [(0.5, 0.0), (1.0, 1.0), (2.0, -0.7)])
def test_slope_and_intercept_of_probabilities_are_found(slope, intercept):
    labels, logits = simulate(slope, intercept, images=4000)
    found = measure_calibration(of_patients(labels, expit(logits)))
    assert found["slope_low"] < slope < found["slope_high"]
    expected = LogisticRegression(C=np.inf).fit(logits[:, None], labels)
    assert found["slope"] == pytest.approx(expected.coef_[0, 0], rel=1e-3)
    shifted = expit(logits + found["intercept"])
    assert shifted.mean() == pytest.approx(labels.mean(), abs=1e-6)
    # The images of a patient are independent here, so the interval is that of maximum likelihood
    fitted = expit(expected.coef_[0, 0] * logits + expected.intercept_[0])
    features = np.stack([logits, np.ones(len(logits))])
    information = np.linalg.inv((features * fitted * (1 - fitted)) @ features.T)
    width = 2 * 1.96 * np.sqrt(information[0, 0])
    assert found["slope_high"] - found["slope_low"] == pytest.approx(width, rel=0.1)
    assert found["ece_low"] < found["ece"] < found["ece_high"]
    assert found["ece_if_true"] < 0.02 < found["ece"]


def test_calibration_of_true_probabilities_and_of_separated_classes():
    labels, logits = simulate(1.0, 0.0, images=4000)
    found = measure_calibration(of_patients(labels, expit(logits)))
    assert found["slope_low"] < 1 < found["slope_high"]
    assert found["intercept_low"] < 0 < found["intercept_high"]
    assert describe_miscalibration(found) == ""
    for shift, direction in ((1, "high"), (-1, "low")):
        off = measure_calibration(of_patients(labels, expit(logits + shift)))
        low, high = off["intercept_low"], off["intercept_high"]
        interval = f"({low:.3f}{' to ' if low < 0 else '–'}{high:.3f})"
        assert describe_miscalibration(off) == (
            f"The probabilities are too {direction} for these images: calibration intercept "
            f"{off['intercept']:.3f} {interval}, 0 would be best."
        )
    assert found["ece"] == pytest.approx(found["ece_if_true"], rel=0.5)
    halves = np.repeat([0, 1], 20)
    separated = measure_calibration(of_patients(halves, np.where(halves, 0.9, 0.1)))
    assert all(np.isnan(separated[name]) for name in ("slope", "slope_low", "slope_high"))
    assert separated["intercept"] == pytest.approx(0, abs=1e-6)
    assert separated["ece"] == pytest.approx(0.1)
