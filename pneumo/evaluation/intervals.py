"""95 % confidence intervals of proportions and of AUC if patients have several images.

Images of one patient are alike, and hardly any image is classified incorrectly. Intervals for
independent images would be too narrow. So are percentiles of a bootstrap, which have no width if
all images are correct. The methods here are in closed form. `tests.benchmarks.coverage` measures
how often they cover the true value.
"""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import beta, norm, t
from sklearn.metrics import roc_auc_score

CI_SUFFIXES = ("", "_low", "_high")  # of a value and the bounds of its 95 % interval
TAIL_PROBABILITY = 0.025  # probability on each side of an interval

# Intraclass correlations (ICC) between the images of a patient, of being classified correctly or of
# scores. The estimate from few incorrect images varies much and is often too small. An exact
# interval is wide enough with a small minimum. If no image is incorrect, or for AUC, a usual value
# is assumed.
MIN_ICC = 0.05
ASSUMED_ICC = 0.2


def metric_intervals(predictions: pd.DataFrame, threshold: float) -> dict[str, float]:
    """Compute the 95 % confidence intervals of the metrics in `metrics.HEADLINE_METRICS`.

    Args:
        predictions: Columns patient, label (0 or 1, both among them) and probability. With a column
            fold, the interval of AUC is that of `mean_auc_of_folds`.
        threshold: Probability ≥ threshold is positive.

    Returns:
        `auc_low`, `auc_high`, and the same of `sensitivity`, `specificity` and `accuracy`. Each is
        from 0 to 1, and the value itself is between its bounds.
    """
    labels, probabilities = (predictions[name].to_numpy() for name in ("label", "probability"))
    patients = pd.factorize(predictions["patient"])[0]
    is_correct = (probabilities >= threshold) == labels
    positive, all_images = labels == 1, np.ones(len(labels), bool)
    bounds = {
        "auc": mean_auc_of_folds(predictions)[1:]
        if "fold" in predictions
        else auc_interval(labels, probabilities, patients)
    }
    for name, selected in (
        ("sensitivity", positive),
        ("specificity", ~positive),
        ("accuracy", all_images),
    ):
        hits = np.bincount(patients[selected & is_correct], minlength=patients.max() + 1)
        images = np.bincount(patients[selected], minlength=len(hits))
        bounds[name] = proportion_interval(hits, images)
    ends = ("low", "high")
    return {
        f"{name}_{bound_name}": float(bound)
        for name, pair in bounds.items()
        for bound_name, bound in zip(ends, pair, strict=True)
    }


def proportion_interval(hits: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bound the proportion of hits among images, from the counts of each patient.

    The interval is that of Clopper and Pearson (Biometrika 1934) for the number of independent
    images with the same variance. It is adjusted by the degrees of freedom that patients leave
    (Korn and Graubard, Survey Methodology 1998, 24:193). The design effect is that of the ratio
    estimator, and at least 1 + (mean number of images, weighted by images, − 1) · ICC, with
    `MIN_ICC`. If all images are hits or none is, the data show no variance, and `ASSUMED_ICC` takes
    its place.

    Args:
        hits: Integers of shape (..., patients).
        images: Integers of the same shape; patients without images do not count.

    Returns:
        Lower and upper bounds of shape (...). From a single patient they are 0 and 1.
    """
    total, patients = images.sum(-1), (images > 0).sum(-1)
    value = hits.sum(-1) / total
    is_inner = (value > 0) & (value < 1)
    n_clusters = np.maximum(patients, 2)
    deviation = hits - value[..., np.newaxis] * images
    variance = n_clusters / (n_clusters - 1) * (deviation**2).sum(-1) / total**2
    independent = np.where(is_inner, value * (1 - value), 1) / (np.maximum(total, 2) - 1)
    min_effect = _design_effect(images, np.where(is_inner, MIN_ICC, ASSUMED_ICC))
    size = total / np.maximum(variance / independent, min_effect)
    size = size * (_t_quantile(np.maximum(total, 2) - 1) / _t_quantile(n_clusters - 1)) ** 2
    hits_of_size, misses_of_size = value * size, (1 - value) * size
    low = beta.ppf(TAIL_PROBABILITY, np.where(value > 0, hits_of_size, 1), misses_of_size + 1)
    high = beta.ppf(1 - TAIL_PROBABILITY, hits_of_size + 1, np.where(value < 1, misses_of_size, 1))
    low = np.where((patients > 1) & (value > 0), np.minimum(low, value), 0)
    return low, np.where((patients > 1) & (value < 1), np.maximum(high, value), 1)


def paired_difference_interval(
    first: np.ndarray, second: np.ndarray, images: np.ndarray
) -> tuple[float, float]:
    """Bound the difference of two proportions of hits among the same images, second − first.

    The distances from both proportions to the ends of their own intervals are combined as standard
    errors would be, with the correlation of the two (Newcombe, Statistics in Medicine 1998,
    17:2635, method 10). Here the intervals and the correlation are those of patients. Percentiles
    of a bootstrap are too narrow near 1, and have no width if both models find all images.

    Args:
        first: Hits of the first model for each patient, integers of shape (patients,).
        second: Hits of the second model, of the same shape.
        images: Images of each patient, of the same shape.

    Returns:
        Lower and upper bound, from −1 to 1. The correlation counts as 0 if a model has the same
        fraction of hits in all patients.
    """
    values, ends, deviations = [], [], []
    for hits in (first, second):
        values.append(hits.sum() / images.sum())
        ends.append(np.abs(np.array(proportion_interval(hits, images)) - values[-1]))
        deviations.append(hits - values[-1] * images)
    lengths = np.linalg.norm(deviations, axis=1)
    product = lengths.prod()
    correlation = np.clip(np.dot(*deviations) / product, -1, 1) if product else 0.0
    difference, bounds = values[1] - values[0], []
    for of_first, of_second in ((ends[0][1], ends[1][0]), (ends[0][0], ends[1][1])):
        squared = of_first**2 - 2 * correlation * of_first * of_second + of_second**2
        bounds.append(np.sqrt(max(squared, 0)))
    return float(difference - bounds[0]), float(difference + bounds[1])


def independent_difference_interval(
    first: tuple[float, float, float], second: tuple[float, float, float]
) -> tuple[float, float]:
    """Bound the difference second − first of two values from different patients.

    The distances of the bounds from their values are added as independent (MOVER: Zou and Donner,
    Statistics in Medicine 2008, 27:1693).

    Args:
        first: A value, and the lower and upper bound of its 95 % interval.
        second: Another value with its bounds.

    Returns:
        Lower and upper bound.
    """
    (value, low, high), (other, other_low, other_high) = first, second
    difference = other - value
    return (
        difference - math.hypot(other - other_low, high - value),
        difference + math.hypot(other_high - other, value - low),
    )


def mean_auc_of_folds(predictions: pd.DataFrame) -> tuple[float, float, float]:
    """Compute the mean AUC over the folds of cross-validation, with its 95 % interval.

    Scores of different folds come from different networks and are not compared with each other
    (Forman and Scholz 2010). Folds have different patients, so the distances of the bounds from the
    AUCs of the folds are added as independent (MOVER: Zou and Donner, Statistics in Medicine 2008,
    27:1693).

    Args:
        predictions: Columns patient, label (0 or 1, both in each fold), probability and fold.

    Returns:
        The mean, its lower and its upper bound.
    """
    values, below, above = [], [], []
    for _, rows in predictions.groupby("fold"):
        labels, probabilities = (rows[name].to_numpy() for name in ("label", "probability"))
        low, high = auc_interval(labels, probabilities, pd.factorize(rows["patient"])[0])
        values.append(float(roc_auc_score(labels, probabilities)))
        below.append(values[-1] - low)
        above.append(high - values[-1])
    mean, count = float(np.mean(values)), len(values)
    return mean, mean - math.hypot(*below) / count, mean + math.hypot(*above) / count


def auc_interval(
    labels: np.ndarray, probabilities: np.ndarray, patients: np.ndarray
) -> tuple[float, float]:
    """Bound the area under the ROC curve.

    The interval is symmetric for the logit of AUC, with the variance of clustered data
    (Obuchowski, Biometrics 1997, 53:567) and the t distribution of the class with fewer patients.
    The variance is at least that of independent images (DeLong et al., Biometrics 1988) times the
    design effect at `ASSUMED_ICC`.

    Near 1 few pairs are out of order, and the variance is underestimated; at 1 it is 0. So the
    lower bound is never above the one for perfectly separated classes: see `_bound_if_separated`.
    The same is true of the upper bound near 0.

    Args:
        labels: Integers of shape (images,), 0 or 1, both among them.
        probabilities: Floats of shape (images,).
        patients: Integers of shape (images,), from 0; a patient may have images of both classes.

    Returns:
        Lower and upper bound. If a class has a single patient they are 0 and 1.
    """
    scores = [probabilities[labels == label] for label in (0, 1)]
    patients_of = [patients[labels == label] for label in (0, 1)]
    images = [np.bincount(values, minlength=patients.max() + 1) for values in patients_of]
    counts = [np.count_nonzero(values) for values in images]
    if min(counts) < 2:
        return 0.0, 1.0
    # For each image, the fraction of the other class that is ranked correctly against it
    shares = [1 - _fraction_below(scores[1], scores[0]), _fraction_below(scores[0], scores[1])]
    value = shares[1].mean()
    effects = [_design_effect(values, ASSUMED_ICC) for values in images]
    sizes = (len(values) / effect for values, effect in zip(scores, effects, strict=True))
    separated = _bound_if_separated(*sizes)
    if value in (0, 1):
        return (separated, 1.0) if value else (0.0, 1 - separated)
    influence = sum(
        np.sqrt(count / (count - 1))
        * np.bincount(values, share - value, len(images[0]))
        / len(values)
        for values, share, count in zip(patients_of, shares, counts, strict=True)
    )
    min_variance = sum(
        effect * share.var(ddof=1) / len(share)
        for effect, share in zip(effects, shares, strict=True)
    )
    deviation = np.sqrt(max(influence @ influence, min_variance)) / (value * (1 - value))
    margin = _t_quantile(min(counts) - 1) * deviation
    low, high = expit(logit(value) - margin), expit(logit(value) + margin)
    return float(min(low, value, separated)), float(max(high, value, 1 - separated))


def coefficient_interval(
    value: float,
    features: np.ndarray,
    weights: np.ndarray,
    residuals: np.ndarray,
    patients: np.ndarray,
) -> tuple[float, float]:
    """Bound the first coefficient of a logistic regression, from the variance between patients.

    The variance is that of the sandwich estimator for clusters (Liang and Zeger, Biometrika 1986),
    and the interval that of the t distribution.

    Args:
        value: The coefficient.
        features: Floats of shape (coefficients, images), that of `value` first.
        weights: p · (1 − p) of each image's fitted probability p, shape (images,).
        residuals: Label minus fitted probability of each image, shape (images,).
        patients: Integers of shape (images,), from 0.

    Returns:
        Lower and upper bound; infinite if there is a single patient.
    """
    count = patients.max() + 1
    if count < 2:
        return -math.inf, math.inf
    scores = np.stack([np.bincount(patients, row * residuals) for row in features])
    bread = np.linalg.pinv((features * weights) @ features.T)
    variance = (bread @ scores @ scores.T @ bread)[0, 0] * count / (count - 1)
    margin = _t_quantile(count - 1) * np.sqrt(variance)
    return float(value - margin), float(value + margin)


def _fraction_below(scores: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the fraction of `scores` below each value of `values`; equal ones count one half."""
    scores = np.sort(scores)
    twice = np.searchsorted(scores, values, "left") + np.searchsorted(scores, values, "right")
    return twice / (2 * len(scores))


def _bound_if_separated(negatives: float, positives: float) -> float:
    """Return the lower bound of an AUC of 1, from effective numbers of images of both classes.

    It is the AUC from which 1 is `norm.ppf(1 - TAIL_PROBABILITY)` standard deviations away. The
    variance is that of Hanley and McNeil (Radiology 1982) for this AUC. Unlike an estimate from
    separated classes it is not 0 (Newcombe, Statistics in Medicine 2006, 25:559, method 5).
    """
    others = (negatives + positives) / 2 - 1

    def excess(auc: float) -> float:
        pairs = 1 + others * ((1 - auc) / (2 - auc) + auc / (1 + auc))
        return (1 - auc) - norm.ppf(1 - TAIL_PROBABILITY) ** 2 * auc * pairs / (
            negatives * positives
        )

    return float(brentq(excess, 0, 1))


def _design_effect(images: np.ndarray, icc: np.ndarray | float) -> np.ndarray:
    """Return the factor by which a correlation of a patient's images increases a variance."""
    return 1 + ((images**2).sum(-1) / images.sum(-1) - 1) * icc


def _t_quantile(degrees: np.ndarray | int) -> np.ndarray:
    return t.ppf(1 - TAIL_PROBABILITY, degrees)


def format_with_interval(values: Mapping[str, float], name: str) -> str:
    """Return a value as text, with its interval if there is one.

    Args:
        values: Name → value; `name_low` and `name_high` are the interval.
        name: Name of the value.
    """
    value, *bounds = (values[f"{name}{end}"] for end in CI_SUFFIXES if f"{name}{end}" in values)
    if not bounds or math.isnan(value):
        return format_number(value)
    dash = " to " if min(bounds) < 0 else "–"
    return f"{format_number(value)} ({dash.join(map(format_number, bounds))})"


def format_number(value: float) -> str:
    """Return a number with three decimals, or a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.3f}"
