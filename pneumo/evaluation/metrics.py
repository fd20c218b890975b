"""Metrics of predictions, from labels and probabilities alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn import metrics

from pneumo.data.dataset import Split
from pneumo.evaluation import bootstrap
from pneumo.evaluation.intervals import (
    coefficient_interval,
    format_with_interval,
    metric_intervals,
)
from pneumo.inference.calibration import Calibration

REFERENCE_SENSITIVITY = 0.95  # specificities are compared at it, whatever the threshold
# A slope beyond these means that validation is too small to fit one
SLOPE_BOUNDS = (0.1, 10.0)
PROBABILITY_BOUNDS = (1e-12, 1 - 1e-12)  # beyond these the logit may be infinite
MAX_LOSS = 0.02  # of balanced accuracy on validation, which a threshold of changed images may cost
N_BINS = 10  # of probabilities, for the expected calibration error and the reliability diagram
N_DRAWS = 200  # of labels, for the mean error of true probabilities
N_BLOCKS = 50  # of samples of patients, because all do not fit into memory at once
HEADLINE_METRICS = ("auc", "sensitivity", "specificity", "accuracy")  # these have intervals


def metric_title(name: str) -> str:
    """Return the name in a sentence of a metric in `HEADLINE_METRICS`."""
    return "AUC" if name == "auc" else name


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of one model on one split.

    Attributes:
        predictions: Columns path, patient, subtype, label, probability, one row per image.
        metrics: Name → value, the threshold among them.
        confusion: Counts tn, fp, fn, tp.
    """

    predictions: pd.DataFrame
    metrics: dict[str, float]
    confusion: dict[str, int]


def evaluate_predictions(
    split: Split, probabilities: np.ndarray, threshold: float, intervals: bool = False
) -> Evaluation:
    """Compute the metrics of predictions for a split.

    Args:
        split: The split.
        probabilities: Floats of shape (rows,), in the order of the split's rows, 0 to 1.
        threshold: Probability ≥ threshold is positive.
        intervals: Whether to add 95 % confidence intervals by patient.

    Returns:
        The predictions with their metrics.
    """
    predictions = split.rows[["path", "patient", "subtype", "label"]].assign(
        probability=probabilities
    )
    values = compute_metrics(split.labels, probabilities, threshold)
    if intervals:
        values |= metric_intervals(predictions, threshold)
    return Evaluation(predictions, values, confusion_counts(split.labels, probabilities, threshold))


def confusion_counts(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float
) -> dict[str, int]:
    """Count true and false negatives and positives.

    Args:
        labels: Integers of shape (images,), 0 or 1.
        probabilities: Floats of shape (images,), 0 to 1.
        threshold: Probability ≥ threshold is positive.

    Returns:
        The counts tn, fp, fn, tp.
    """
    table = metrics.confusion_matrix(labels, probabilities >= threshold, labels=[0, 1])
    return dict(zip(("tn", "fp", "fn", "tp"), map(int, table.ravel()), strict=True))


def compute_metrics(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float
) -> dict[str, float]:
    """Compute the metrics of one split, without intervals.

    Args:
        labels: Integers of shape (images,), 0 or 1, both among them.
        probabilities: Floats of shape (images,), 0 to 1.
        threshold: Probability ≥ threshold is positive.

    Returns:
        Name → value. A rate whose denominator is 0 is NaN.
    """
    counts = confusion_counts(labels, probabilities, threshold)
    tn, fp, fn, tp = (counts[key] for key in ("tn", "fp", "fn", "tp"))
    sensitivity, specificity = _rate(tp, tp + fn), _rate(tn, tn + fp)
    return {
        "auc": float(metrics.roc_auc_score(labels, probabilities)),
        "average_precision": float(metrics.average_precision_score(labels, probabilities)),
        "accuracy": _rate(tp + tn, tp + tn + fp + fn),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": _rate(tp, tp + fp),
        "npv": _rate(tn, tn + fn),
        "f1": _rate(2 * tp, 2 * tp + fp + fn),
        "mcc": float(metrics.matthews_corrcoef(labels, probabilities >= threshold)),
        "brier": float(metrics.brier_score_loss(labels, probabilities)),
        "log_loss": float(metrics.log_loss(labels, probabilities)),
        "ece": expected_calibration_error(labels, probabilities),
        "threshold": float(threshold),
    }


def _rate(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def expected_calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, bins: int = N_BINS
) -> float:
    """Compute the expected calibration error (ECE), 0 to 1, of which 0 is best.

    It is the mean of |frequency of pneumonia − mean probability| over equal intervals of the
    probability, weighted by the fraction of images in each (Naeini et al., AAAI 2015).

    Args:
        labels: Integers of shape (images,), 0 or 1.
        probabilities: Floats of shape (images,), 0 to 1.
        bins: Number of intervals.
    """
    gaps = np.bincount(
        bin_numbers(probabilities, bins), weights=labels - probabilities, minlength=bins
    )
    return float(np.abs(gaps).sum() / len(labels))


def bin_numbers(probabilities: np.ndarray, bins: int) -> np.ndarray:
    """Return the number of the interval that each probability is in, of `bins` equal ones."""
    return np.minimum((probabilities * bins).astype(int), bins - 1)


def youden_threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the threshold with the greatest sensitivity + specificity (Youden, Cancer 1950).

    It is in the middle of its plateau: see `_operating_points`. Of several equally good plateaus
    the highest counts.

    Args:
        labels: int array of shape (images,), 0 or 1, both among them.
        probabilities: float array of shape (images,), 0 to 1.
    """
    fpr, tpr, thresholds = _operating_points(labels, probabilities)
    return float(thresholds[np.argmax(tpr - fpr)])


def midpoint_threshold(labels: np.ndarray, logits: np.ndarray) -> float:
    """Return the probability that is midway between the mean logits of both classes.

    Youden's threshold would be there if the logits of both classes were normal with equal spread
    (Fisher, 1936). This one depends on all images, not only on the few between the classes. So it
    is not moved to the middle of a plateau.

    Args:
        labels: int array of shape (images,), 0 or 1, both among them.
        logits: float array of shape (images,).
    """
    return float(expit((logits[labels == 0].mean() + logits[labels == 1].mean()) / 2))


def limit_threshold(threshold: float, labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the nearest threshold that gives up at most `MAX_LOSS` of balanced accuracy.

    A threshold that was chosen on changed images may fit the images themselves badly.

    Args:
        threshold: Threshold that was chosen in another way.
        labels: int array of shape (images,), 0 or 1, both among them.
        probabilities: float array of shape (images,), 0 to 1.

    Returns:
        `threshold` itself if its balanced accuracy is at most `MAX_LOSS` below that of
        `youden_threshold`, or else the nearest one of the middles of plateaus where it is.
    """
    fpr, tpr, thresholds = _operating_points(labels, probabilities)
    balanced = (1 + tpr - fpr) / 2
    minimum = balanced.max() - MAX_LOSS
    if compute_metrics(labels, probabilities, threshold)["balanced_accuracy"] >= minimum:
        return threshold
    allowed = thresholds[balanced >= minimum]
    return float(allowed[np.argmin(np.abs(allowed - threshold))])


def threshold_at_sensitivity(
    sensitivity: float, labels: np.ndarray, probabilities: np.ndarray
) -> float:
    """Return the threshold with the greatest specificity that reaches a sensitivity.

    It is in the middle of the highest plateau that finds enough of the positive images: see
    `_operating_points`.

    Args:
        sensitivity: Least sensitivity, 0 to 1.
        labels: int array of shape (images,), 0 or 1, both among them.
        probabilities: float array of shape (images,), 0 to 1.
    """
    _, tpr, thresholds = _operating_points(labels, probabilities)
    return float(thresholds[np.argmax(tpr >= sensitivity)])


def threshold_of_net_benefit(
    threshold_probability: float,
    prevalence: float | None,
    labels: np.ndarray,
    probabilities: np.ndarray,
) -> float:
    """Return the threshold with the greatest net benefit for given costs of both errors.

    The net benefit is that of Vickers and Elkin (Medical Decision Making 2006, 26:565), see
    `bootstrap.decision_curve`. The model's probabilities need not be calibrated for this. The
    threshold is in the middle of its plateau: see `_operating_points`. Of several equally good
    plateaus the highest counts.

    Args:
        threshold_probability: Probability above which a patient should be treated, above 0 and
            below 1. At 0.2, one found case is worth four false alarms.
        prevalence: Prevalence at which the net benefit counts, or None for that of the images.
        labels: int array of shape (images,), 0 or 1, both among them.
        probabilities: float array of shape (images,), 0 to 1.
    """
    fpr, tpr, thresholds = _operating_points(labels, probabilities)
    positive = labels.mean() if prevalence is None else prevalence
    weight = threshold_probability / (1 - threshold_probability)
    benefit = tpr * positive - fpr * (1 - positive) * weight
    return float(thresholds[np.argmax(benefit.round(12))])  # so that rounding breaks no ties


def specificity_at_sensitivity(
    sensitivity: float, labels: np.ndarray, probabilities: np.ndarray
) -> float:
    """Return the greatest specificity among all thresholds that reach a sensitivity.

    Args:
        sensitivity: Least sensitivity, 0 to 1.
        labels: int array of shape (images,), 0 or 1, both among them.
        probabilities: float array of shape (images,), 0 to 1.
    """
    fpr, tpr, _ = _operating_points(labels, probabilities)
    return float(1 - fpr[tpr >= sensitivity].min())


def _operating_points(
    labels: np.ndarray, probabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rates at each distinct choice of a threshold, the highest threshold first.

    All thresholds above one probability and up to the next greater one call the same images
    positive: they form a plateau. Its middle is the threshold with the greatest distance to the
    scores on both sides, by which scores of other images may differ. An end of the plateau would be
    the score of one image. The lowest plateau, on which all images are positive, starts at 0, the
    least possible probability. The threshold above all scores, which no model should have, is not
    included.

    The middle is computed in the dtype of the probabilities. Two adjacent numbers of that dtype
    have no middle, and the upper one is taken: positive is probability ≥ threshold.

    Returns:
        False positive rate, sensitivity and threshold, each of shape (distinct probabilities,).
    """
    # The first point of the curve belongs to an infinite threshold
    fpr, tpr, _ = metrics.roc_curve(labels, probabilities, drop_intermediate=False)
    upper = np.unique(probabilities)[::-1]  # the thresholds of `roc_curve` are always float64
    lower = np.append(upper[1:], upper.dtype.type(0))
    middle = lower + (upper - lower) / 2
    return fpr[1:], tpr[1:], np.where(middle > lower, middle, upper)


def fit_calibration(labels: np.ndarray, logits: np.ndarray) -> Calibration:
    """Fit a line of the logits that minimizes their log loss (Platt scaling).

    Training weighs both classes alike, so the logits assume a prevalence of 50 %. The intercept
    moves them to that of these images. The slope is positive, so the order of the images stays.

    The labels are those of Platt (1999): (n + 1) / (n + 2) for the n positive images, and
    1 / (m + 2) for the m negative ones. So the fit is finite if the classes are separated
    perfectly.

    Args:
        labels: int array of shape (images,), 0 or 1, both among them.
        logits: float array of shape (images,).

    Returns:
        The line. Its slope is from 0.1 to 10, and at one of these bounds if the classes are
        separated perfectly by tiny logits, or not at all.
    """
    n_positive, n_negative = np.count_nonzero(labels == 1), np.count_nonzero(labels == 0)
    targets = np.where(labels == 1, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))
    return _minimize_log_loss(targets, logits, SLOPE_BOUNDS)


def _minimize_log_loss(
    targets: np.ndarray, logits: np.ndarray, slope_bounds: tuple[float | None, float | None]
) -> Calibration:
    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        calibrated = Calibration(*line).calibrate(logits)
        residuals = expit(calibrated) - targets
        gradient = np.array([residuals @ logits, residuals.sum()]) / len(logits)
        return float((np.logaddexp(0, calibrated) - targets * calibrated).mean()), gradient

    found = minimize(
        loss,
        np.array([1.0, 0.0]),
        jac=True,
        bounds=[slope_bounds, (None, None)],
        method="L-BFGS-B",
        options={"ftol": 0, "gtol": 1e-10},
    )
    return Calibration(*map(float, found.x))


def measure_calibration(predictions: pd.DataFrame) -> dict[str, float]:
    """Measure how well probabilities agree with the labels, with 95 % intervals by patient.

    The slope is that of a logistic regression of the labels on the logits of the probabilities: 1
    is best, and less means overconfident. The intercept is that of the same regression with a slope
    of 1: 0 is best, and more means that the probabilities are too low (Van Calster et al., BMC
    Medicine 2019, 17:230). The expected calibration error is above 0 even if all probabilities are
    true: `ece_if_true` is its mean for labels that are drawn from them.

    Args:
        predictions: Columns as in `Evaluation`, with both classes.

    Returns:
        `slope`, `intercept` and `ece`, each with `_low` and `_high`, and `ece_if_true`. The slope
        is NaN, with its bounds, if a threshold separates the classes.
    """
    labels, probabilities = (predictions[name].to_numpy() for name in ("label", "probability"))
    logits = logit(np.clip(probabilities, *PROBABILITY_BOUNDS))
    patients = pd.factorize(predictions["patient"])[0]
    both = np.stack([logits, np.ones(len(logits))])

    def measure(name: str, slope_bounds: tuple, features: np.ndarray) -> dict[str, float]:
        line = _minimize_log_loss(labels, logits, slope_bounds)
        fitted, value = line.to_probabilities(logits), getattr(line, name)
        low, high = coefficient_interval(
            value, features, fitted * (1 - fitted), labels - fitted, patients
        )
        return {name: value, f"{name}_low": low, f"{name}_high": high}

    is_separated = metrics.roc_auc_score(labels, probabilities) in (0, 1)
    found = (
        dict.fromkeys(("slope", "slope_low", "slope_high"), math.nan)
        if is_separated
        else measure("slope", (None, None), both)
    )
    found |= measure("intercept", (1, 1), both[1:])
    return found | _measure_error(predictions)


def describe_miscalibration(calibration: Mapping[str, float]) -> str:
    """Return a sentence if the interval of the calibration intercept excludes 0, otherwise ''.

    Args:
        calibration: As `measure_calibration` returns it.
    """
    if calibration["intercept_low"] <= 0 <= calibration["intercept_high"]:
        return ""
    direction = "low" if calibration["intercept"] > 0 else "high"
    intercept = format_with_interval(calibration, "intercept")
    return (
        f"The probabilities are too {direction} for these images: calibration intercept "
        f"{intercept}, 0 would be best."
    )


def _measure_error(predictions: pd.DataFrame) -> dict[str, float]:
    labels, probabilities = (predictions[name].to_numpy() for name in ("label", "probability"))
    in_bin = np.eye(N_BINS)[bin_numbers(probabilities, N_BINS)]
    gaps = (labels - probabilities)[:, np.newaxis] * in_bin
    errors = [
        np.abs(counts @ gaps).sum(axis=1) / counts.sum(axis=1)
        for counts in np.array_split(bootstrap.resample_patients(predictions), N_BLOCKS)
    ]
    low, high = np.percentile(np.concatenate(errors), bootstrap.CI_PERCENTILES)
    rng = np.random.default_rng(0)
    drawn = [
        np.abs(((rng.random(len(labels)) < probabilities) - probabilities) @ in_bin).sum()
        for _ in range(N_DRAWS)
    ]
    return {
        "ece": expected_calibration_error(labels, probabilities),
        "ece_low": float(low),
        "ece_high": float(high),
        "ece_if_true": float(np.mean(drawn) / len(labels)),
    }


def calibration_metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Compute log loss, Brier score and expected calibration error.

    Args:
        labels: Integers of shape (images,), 0 or 1, both among them.
        probabilities: Floats of shape (images,), 0 to 1.

    Returns:
        `log_loss`, `brier`, `ece`.
    """
    values = compute_metrics(labels, probabilities, 0.5)
    return {name: values[name] for name in ("log_loss", "brier", "ece")}


def detailed_metrics(evaluation: Evaluation, logits: np.ndarray) -> dict[str, Any]:
    """Compute all metrics of one model on one split beyond `Evaluation.metrics`.

    Args:
        evaluation: The evaluation.
        logits: float array of shape (images,), in the order of the predictions, before calibration.
    """
    predictions = evaluation.predictions
    labels = predictions["label"].to_numpy()
    probabilities = predictions["probability"].to_numpy()
    return {
        "images": len(labels),
        "patients": predictions["patient"].nunique(),
        "at_threshold": evaluation.metrics,
        "at_0.5": compute_metrics(labels, probabilities, 0.5) | metric_intervals(predictions, 0.5),
        "specificity_at_95_sensitivity": specificity_at_sensitivity(
            REFERENCE_SENSITIVITY, labels, probabilities
        ),
        "prevalence": float(labels.mean()),
        "calibration": measure_calibration(predictions),
        "uncalibrated": calibration_metrics(labels, expit(logits)),
    }
