"""External validation: whether a model performs on other data as on its own test images."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pneumo.data.dataset import Split
from pneumo.evaluation import bootstrap, metrics
from pneumo.evaluation.intervals import (
    CI_SUFFIXES,
    format_with_interval,
    independent_difference_interval,
)
from pneumo.evaluation.metrics import HEADLINE_METRICS

MAX_LOSS = 0.05  # of AUC with which a model still transfers


def compare_with_internal(
    internal: Mapping[str, float], external: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Compare a model on other data with its evaluation on the test images of its own data.

    Args:
        internal: Metrics of the latter by name, with their intervals.
        external: The same of the former, at the same threshold.

    Returns:
        Name in `HEADLINE_METRICS` → `internal`, `external` and `difference` (external − internal),
        each with `_low` and `_high`. The patients are others, so the values are independent.
    """
    found = {}
    for name in HEADLINE_METRICS:
        pair = [
            tuple(values[f"{name}{suffix}"] for suffix in CI_SUFFIXES)
            for values in (internal, external)
        ]
        difference = pair[1][0] - pair[0][0], *independent_difference_interval(*pair)
        columns = zip(("internal", "external", "difference"), (*pair, difference), strict=True)
        found[name] = {
            f"{column}{suffix}": value
            for column, values in columns
            for suffix, value in zip(CI_SUFFIXES, values, strict=True)
        }
    return found


def describe_transfer(comparison: Mapping[str, Mapping[str, float]]) -> str:
    """Return a sentence on whether a model transfers to other data.

    It transfers if its AUC is certainly not more than `MAX_LOSS` lower, and does not if its AUC is
    certainly lower otherwise.

    Args:
        comparison: As `compare_with_internal` returns it.
    """
    auc = comparison["auc"]
    if auc["difference_low"] > -MAX_LOSS:
        verdict = f"The model transfers to these images: its AUC is not more than {MAX_LOSS} lower"
    elif auc["difference_high"] < 0:
        verdict = "The model does not transfer to these images: its AUC is lower"
    else:
        verdict = "These images do not show whether the model transfers: its AUC may be lower"
    return (
        f"{verdict} than on the test images of its own data (AUC "
        f"{format_with_interval(auc, 'external')} here, {format_with_interval(auc, 'internal')} "
        f"there, difference {format_with_interval(auc, 'difference')})."
    )


def recalibrate(split: Split, logits: np.ndarray, is_chosen: np.ndarray) -> dict[str, Any]:
    """Fit the calibration and the threshold again on some images, and evaluate both on the others.

    Args:
        split: The images.
        logits: Logits before calibration: float array of shape (images,).
        is_chosen: Which images both are fitted on, with both classes: bool, shape (images,).

    Returns:
        `images` and `patients` that were chosen, `slope` and `intercept` of the new calibration;
        `at_threshold`, the metrics of the other images with their intervals; `calibration` as
        `metrics.measure_calibration` returns it, and `benefit` as `bootstrap.describe_benefit`.
    """
    chosen, rest = split.take(is_chosen), split.take(~is_chosen)
    calibration = metrics.fit_calibration(chosen.labels, logits[is_chosen])
    threshold = metrics.youden_threshold(
        chosen.labels, calibration.to_probabilities(logits[is_chosen])
    )
    evaluation = metrics.evaluate_predictions(
        rest, calibration.to_probabilities(logits[~is_chosen]), threshold, intervals=True
    )
    predictions = evaluation.predictions
    curve = bootstrap.decision_curve(predictions, bootstrap.resample_patients(predictions))
    return {
        "images": len(chosen.rows),
        "patients": chosen.rows["patient"].nunique(),
        "slope": calibration.slope,
        "intercept": calibration.intercept,
        "at_threshold": evaluation.metrics,
        "calibration": metrics.measure_calibration(predictions),
        "benefit": bootstrap.describe_benefit(curve),
    }
