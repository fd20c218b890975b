"""How good a set of predictions is: numbers alone, from labels and probabilities."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn import metrics

from pneumo.data.dataset import Split
from pneumo.data.index import CLASSES
from pneumo.evaluation.intervals import CI_SUFFIXES, metric_intervals

REFERENCE_SENSITIVITY = 0.95  # at which specificities are compared, whatever the threshold
TEMPERATURE_BOUNDS = (
    0.1,
    10.0,
)  # a temperature beyond says that validation is too small to fit one
HEADLINE_METRICS = ("auc", "sensitivity", "specificity", "accuracy")  # those with intervals


def metric_title(name: str) -> str:
    """Return what a sentence calls a metric in `HEADLINE_METRICS`."""
    return "AUC" if name == "auc" else name


@dataclass(frozen=True)
class Evaluation:
    """One model on one split.

    `predictions`: columns path, patient, subtype, label, probability, one row per image;
    `metrics`: name → value, the threshold among them; `confusion_counts`: tn, fp, fn, tp.
    """

    predictions: pd.DataFrame
    metrics: dict[str, float]
    confusion: dict[str, int]


def evaluate_predictions(
    split: Split, probabilities: np.ndarray, threshold: float, intervals: bool = False
) -> Evaluation:
    """The predictions for `split` and all that follows from them at `threshold`.

    `probabilities`: float, shape (rows,), in the order of the rows; `intervals` adds 95 %
    intervals by patient.
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
    """Counts of true and false negatives and positives; positive is probability ≥ threshold."""
    table = metrics.confusion_matrix(labels, probabilities >= threshold, labels=[0, 1])
    return dict(zip(("tn", "fp", "fn", "tp"), map(int, table.ravel()), strict=True))


def compute_metrics(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float
) -> dict[str, float]:
    """Return the metrics of one split by name, without intervals. A rate of no images is NaN."""
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
    labels: np.ndarray, probabilities: np.ndarray, bins: int = 10
) -> float:
    """How far probabilities are from frequencies, on average over images: 0 to 1, 0 is best.

    Over `bins` equal intervals of the probability, the mean of |frequency of pneumonia −
    mean probability|, weighted by the share of images (Naeini et al., AAAI 2015).
    """
    bin_of = np.minimum((probabilities * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_of, weights=labels - probabilities, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def youden_threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the threshold with the greatest sensitivity + specificity (Youden, Cancer 1950).

    It lies in the middle of its plateau, see `_operating_points`. Of several equally good plateaus
    the highest counts.

    Args:
        labels: int array of shape (images,), 0 or 1, both among them.
        probabilities: float array of shape (images,), 0 to 1.
    """
    false_positives, found, thresholds = _operating_points(labels, probabilities)
    return float(thresholds[np.argmax(found - false_positives)])


def midpoint_threshold(labels: np.ndarray, logits: np.ndarray) -> float:
    """The probability midway between the classes: of the mean of their mean logits.

    That is where Youden's would be if the logits of both were normal and equally spread (Fisher,
    1936). It depends on all images, not on the few where the classes meet, so it is not moved to
    the middle of a plateau between two of them.
    """
    return float(expit((logits[labels == 0].mean() + logits[labels == 1].mean()) / 2))


def threshold_at_sensitivity(
    sensitivity: float, labels: np.ndarray, probabilities: np.ndarray
) -> float:
    """Return the threshold of the greatest specificity with at least that sensitivity, 0 to 1.

    It lies in the middle of the highest plateau that finds enough of the positive images, see
    `_operating_points`.
    """
    _, found, thresholds = _operating_points(labels, probabilities)
    return float(thresholds[np.argmax(found >= sensitivity)])


def specificity_at_sensitivity(
    sensitivity: float, labels: np.ndarray, probabilities: np.ndarray
) -> float:
    """Return the greatest specificity of all thresholds with at least that sensitivity."""
    false_positives, found, _ = _operating_points(labels, probabilities)
    return float(1 - false_positives[found >= sensitivity].min())


def _operating_points(
    labels: np.ndarray, probabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what each distinct choice of a threshold gives, the highest threshold first.

    All thresholds above one probability and up to the next greater one call the same images
    positive: they form a plateau. Its middle is the threshold that the scores of other images can
    miss by the most on both sides; an end of the plateau would be the score of one image. The
    lowest plateau, on which all images are positive, starts at 0, the least probability there is.
    The threshold above all scores, which no model should have, is not among them.

    The middle is computed in the dtype of the probabilities. Between two adjacent numbers of that
    dtype there is none, and the upper of them is taken: positive is probability ≥ threshold.

    Returns:
        False positive rate, sensitivity and threshold, each of shape (distinct probabilities,).
    """
    # The first point of the curve is that of infinity
    false_positives, found, _ = metrics.roc_curve(labels, probabilities, drop_intermediate=False)
    upper = np.unique(probabilities)[::-1]  # those of `roc_curve` are float64 in any case
    lower = np.append(upper[1:], upper.dtype.type(0))
    middle = lower + (upper - lower) / 2
    return false_positives[1:], found[1:], np.where(middle > lower, middle, upper)


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """What to divide logits by so that their log loss is least (Guo et al., ICML 2017).

    1 changes nothing, above 1 the model was too sure of itself. One positive number for all
    images: their order stays. Between 0.1 and 10, the ends for classes that are told apart
    perfectly or not at all.
    """
    margins = np.where(labels == 1, logits, -logits)

    def loss(log_temperature: float) -> float:
        return np.logaddexp(0, -margins / np.exp(log_temperature)).mean()

    best = minimize_scalar(loss, bounds=np.log(TEMPERATURE_BOUNDS), options={"xatol": 1e-9})
    return float(np.exp(best.x)) if best.fun < loss(0) else 1.0


def calibration_metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """How far probabilities can be taken at their word."""
    values = compute_metrics(labels, probabilities, 0.5)
    return {name: values[name] for name in ("log_loss", "brier", "ece")}


def subgroup_metrics(predictions: pd.DataFrame, threshold: float) -> dict[str, dict[str, float]]:
    """For each kind of image that the file names tell, as `PNEUMONIA/virus`: how it fares.

    `images`, `patients`, `sensitivity` or `specificity` within it, and `auc` against all of the
    other class; each with its 95 % interval by patient.
    """
    found = {}
    named = predictions[predictions["subtype"] != ""]
    for (label, subtype), rows in named.groupby(["label", "subtype"]):
        others = predictions[predictions["label"] != label]
        both = pd.concat([rows, others])
        values = compute_metrics(
            both["label"].to_numpy(), both["probability"].to_numpy(), threshold
        )
        values |= metric_intervals(both, threshold)
        rate = "sensitivity" if label else "specificity"
        found[f"{CLASSES[label]}/{subtype}"] = {
            "images": len(rows),
            "patients": rows["patient"].nunique(),
            **{f"{it}{end}": values[f"{it}{end}"] for it in (rate, "auc") for end in CI_SUFFIXES},
        }
    return found


def detailed_metrics(
    evaluation: Evaluation, logits: np.ndarray, temperature: float
) -> dict[str, Any]:
    """All that is said of one model on one split beyond `Evaluation.metrics`.

    `logits`: of its images, in its order, before the temperature.
    """
    predictions, threshold = evaluation.predictions, evaluation.metrics["threshold"]
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
        "accuracy_of_all_pneumonia": float(labels.mean()),
        "temperature": temperature,
        "uncalibrated": calibration_metrics(labels, expit(logits)),
        "subgroups": subgroup_metrics(predictions, threshold),
    }
