"""Cluster bootstrap over patients: differences between models, and confidence bands of curves.

Images of one patient are alike. Resampled one by one they would make every interval too narrow, so
patients are resampled, each with all of its images. Intervals of single metrics, and of differences
of sensitivity, are computed in `intervals`: they are valid near 1 as well.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from pneumo.evaluation.intervals import (
    auc_interval,
    independent_difference_interval,
    paired_difference_interval,
)

N_RESAMPLES = 1000  # leaves about 0.2 points of error in a 95 % bound
CI_PERCENTILES = (2.5, 97.5)  # percentiles that enclose 95 %
CURVE_GRID = np.linspace(0, 1, 101)  # x values at which curves are evaluated
DECISION_THRESHOLDS = np.arange(1, 100) / 100  # of a decision curve
BLOCK_SIZE = 20  # samples computed at once: about 40 MB for 26,000 images


def resample_patients(
    predictions: pd.DataFrame, draws: int = N_RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Draw samples of as many patients as there are, with replacement.

    A sample that lacks one of the classes, in one of the folds, has no AUC and is left out.

    Args:
        predictions: Columns patient and label (0 or 1), and fold if there are several.
        draws: Number of samples.
        seed: Seed of the samples.

    Returns:
        How often each image is in each sample: int32 array of shape (samples, images).
    """
    positive = predictions["label"].to_numpy() == 1
    patients, patient_of = np.unique(predictions["patient"], return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = np.empty((draws, len(predictions)), np.int32)
    for sample in counts:
        # Several times as fast as `rng.multinomial` for thousands of patients
        chosen = rng.integers(len(patients), size=len(patients))
        sample[:] = np.bincount(chosen, minlength=len(patients))[patient_of]
    has_both = np.ones(draws, bool)
    for rows in _rows_of_folds(predictions):
        for of_class in (positive[rows], ~positive[rows]):
            has_both &= counts[:, rows] @ of_class > 0
    return counts if has_both.all() else counts[has_both]


def _rows_of_folds(predictions: pd.DataFrame) -> list[slice | np.ndarray]:
    """Return the positions of the images of each fold."""
    if "fold" not in predictions:
        return [slice(None)]
    return list(predictions.groupby("fold").indices.values())


def bootstrap_auc(predictions: pd.DataFrame, counts: np.ndarray) -> np.ndarray:
    """Compute the area under the ROC curve of each sample, or its mean over folds.

    A pair of a positive and a negative image is in order if the positive one has the higher
    probability. The area is the fraction of pairs in order; equal probabilities count one half. One
    sort serves all samples.

    Args:
        predictions: Columns label (0 or 1) and probability, and fold if there are several.
        counts: Integers of shape (samples, images), as `resample_patients` returns them, with both
            classes in each sample.

    Returns:
        float64 array of shape (samples,).
    """
    if "fold" in predictions:
        parts = [
            bootstrap_auc(predictions.iloc[rows].drop(columns="fold"), counts[:, rows])
            for rows in _rows_of_folds(predictions)
        ]
        return np.mean(parts, axis=0)
    labels, values = predictions["label"].to_numpy(), predictions["probability"].to_numpy()
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    negative = negative[np.argsort(values[negative])]
    ranks = [
        np.searchsorted(values[negative], values[positive], side) for side in ("left", "right")
    ]

    def of_block(block: np.ndarray) -> np.ndarray:
        image_counts = block.T.astype(np.int64)  # samples of an image adjacent in memory
        n_negatives_below = np.zeros(
            (len(negative) + 1, len(block)), np.int64
        )  # negatives below each rank
        np.cumsum(image_counts[negative], axis=0, out=n_negatives_below[1:])
        positive_counts = image_counts[positive]
        doubled = sum(
            np.einsum("is,is->s", positive_counts, n_negatives_below[rank]) for rank in ranks
        )
        return doubled / (2 * positive_counts.sum(axis=0) * n_negatives_below[-1])

    return _in_blocks(of_block, counts)


def roc_band(predictions: pd.DataFrame, counts: np.ndarray) -> np.ndarray:
    """Compute the 95 % confidence band of sensitivity at each false positive rate in `CURVE_GRID`.

    Its bounds are percentiles of the samples, point by point. Unlike an interval of `intervals` it
    has no width if no sample has an error.

    Args:
        predictions: Columns label (0 or 1) and probability.
        counts: As in `bootstrap_auc`.

    Returns:
        Lower and upper bounds: float64 array of shape (2, points).
    """

    def of_block(block: np.ndarray) -> np.ndarray:
        sample_counts = _counts_above(predictions, block)
        positive, negative = (np.pad(column, ((0, 0), (1, 0))) for column in sample_counts)
        curves = zip(negative / negative[:, -1:], positive / positive[:, -1:], strict=True)
        return np.stack([np.interp(CURVE_GRID, x, y) for x, y in curves])

    return np.percentile(_in_blocks(of_block, counts), CI_PERCENTILES, axis=0)


def precision_band(predictions: pd.DataFrame, counts: np.ndarray) -> np.ndarray:
    """Compute the 95 % confidence band of precision at each sensitivity in `CURVE_GRID`.

    Args:
        predictions: Columns label (0 or 1) and probability.
        counts: As in `bootstrap_auc`.

    Returns:
        Lower and upper bounds, as in `roc_band`: float64 array of shape (2, points).
    """

    def of_block(block: np.ndarray) -> np.ndarray:
        positive, negative = _counts_above(predictions, block)
        sensitivity = positive / positive[:, -1:]
        places = np.stack([np.searchsorted(array, CURVE_GRID) for array in sensitivity])
        positive, negative = (
            np.take_along_axis(array, places, axis=1) for array in (positive, negative)
        )
        n_predicted_positive = positive + negative
        return np.divide(
            positive,
            n_predicted_positive,
            out=np.ones(n_predicted_positive.shape),
            where=n_predicted_positive > 0,
        )

    return np.percentile(_in_blocks(of_block, counts), CI_PERCENTILES, axis=0)


def decision_curve(
    predictions: pd.DataFrame, counts: np.ndarray, prevalence: float | None = None
) -> pd.DataFrame:
    """Compute the net benefit of a model at each of `DECISION_THRESHOLDS` (Vickers and Elkin 2006).

    It is (true positives − false positives · t / (1 − t)) / images for an image that counts as
    positive from probability t, and t says how many false alarms one found case is worth. The
    alternatives are to call all images positive, or none, whose net benefit is 0.

    Args:
        predictions: Columns label (0 or 1) and probability.
        counts: As in `bootstrap_auc`.
        prevalence: Prevalence to which the images are weighted, above 0 and below 1. By default
            their own counts.

    Returns:
        A row for each threshold: `threshold`, `model`, its 95 % band `low` and `high`, `all`, and
        `gain_low`, the lower bound of the difference from the better alternative. Bounds are
        percentiles of the samples, point by point.
    """
    labels, values = predictions["label"].to_numpy(), predictions["probability"].to_numpy()
    share = labels.mean()
    weights = np.ones(len(labels))
    if prevalence is not None:
        weights = np.where(labels == 1, prevalence / share, (1 - prevalence) / (1 - share))
    odds = DECISION_THRESHOLDS / (1 - DECISION_THRESHOLDS)
    gains = np.where(labels[:, np.newaxis] == 1, 1, -odds)
    called = values[:, np.newaxis] >= DECISION_THRESHOLDS

    def of_block(block: np.ndarray) -> np.ndarray:
        weighted = block * weights
        both = np.stack([weighted @ (called * gains), weighted @ gains], axis=1)
        return both / weighted.sum(axis=1)[:, np.newaxis, np.newaxis]

    [[model, of_all]] = of_block(np.ones((1, len(labels))))
    sampled = _in_blocks(of_block, counts)
    low, high = np.percentile(sampled[:, 0], CI_PERCENTILES, axis=0)
    excess = sampled[:, 0] - np.maximum(sampled[:, 1], 0)
    return pd.DataFrame(
        {
            "threshold": DECISION_THRESHOLDS,
            "model": model,
            "low": low,
            "high": high,
            "all": of_all,
            "gain_low": np.percentile(excess, CI_PERCENTILES[0], axis=0),
        }
    )


def describe_benefit(curve: pd.DataFrame) -> str:
    """Describe in a sentence where a model helps, from `decision_curve`."""
    useful = curve.loc[curve["gain_low"] > 0, "threshold"].to_numpy()
    rule = "a greater net benefit than calling all images or none positive"
    if not len(useful):
        return f"At no threshold has the model {rule} (95 % confidence)."
    ends = np.flatnonzero(np.diff(useful, prepend=-1, append=2) > 0.015)
    ranges = [
        f"{useful[first]:.0%} to {useful[end - 1]:.0%}"
        for first, end in zip(ends[:-1], ends[1:], strict=True)
    ]
    return (
        f"At thresholds of {' and '.join(ranges)} the model has {rule} (95 % confidence, each "
        "threshold by itself)."
    )


def _in_blocks(function: Callable[[np.ndarray], np.ndarray], counts: np.ndarray) -> np.ndarray:
    """Apply a function to blocks of samples, because all samples at once would need gigabytes."""
    return np.concatenate(
        [
            function(counts[start : start + BLOCK_SIZE])
            for start in range(0, len(counts), BLOCK_SIZE)
        ]
    )


def _counts_above(predictions: pd.DataFrame, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count positive and negative images at or above each distinct probability, highest first."""
    labels, values = predictions["label"].to_numpy(), predictions["probability"].to_numpy()
    order = np.argsort(-values, kind="stable")
    last_of_equals = np.flatnonzero(np.diff(values[order], append=-np.inf))
    counts, labels = counts[:, order], labels[order].astype(counts.dtype)
    positive, every = (
        np.cumsum(weighted, axis=1, dtype=counts.dtype)[:, last_of_equals]
        for weighted in (counts * labels, counts)
    )
    return positive, every - positive


@dataclass(frozen=True)
class Comparison:
    """Differences of a second model from a first one on the same images.

    Attributes:
        auc_difference: AUC of the second minus AUC of the first.
        low: Lower bound of its 95 % confidence interval: see `_auc_difference_interval`.
        high: Upper bound.
        only_first_correct: Number of images that only the first model classifies correctly.
        only_second_correct: Number of images that only the second model classifies correctly.
        sensitivity_difference: Sensitivity of the second minus that of the first, each at its own
            threshold.
        sensitivity_low: Lower bound of its 95 % interval: see `paired_difference_interval`.
        sensitivity_high: Upper bound.
    """

    auc_difference: float
    low: float
    high: float
    only_first_correct: int
    only_second_correct: int
    sensitivity_difference: float
    sensitivity_low: float
    sensitivity_high: float


def is_paired(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    """Return whether two tables of predictions are for the same images, patients and labels.

    Args:
        first: Columns path, patient and label, in any order of the rows.
        second: The same columns.
    """
    columns = ["path", "patient", "label"]
    first, second = (
        table[columns].sort_values("path", ignore_index=True) for table in (first, second)
    )
    return first.equals(second)


def compare_models(
    first: pd.DataFrame,
    second: pd.DataFrame,
    thresholds: tuple[float, float],
    draws: int = N_RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two models' predictions for the same images, each at its own threshold.

    Args:
        first: Predictions of the first model: columns path, patient, label (0 or 1) and
            probability, in any order of the rows.
        second: Predictions of the second model.
        thresholds: Threshold of the first and of the second model; probability ≥ threshold is
            positive.
        draws: Number of samples of patients.
        seed: Seed of the samples.

    Returns:
        The differences, second − first.

    Raises:
        ValueError: The predictions are not for the same images, labels and patients.
    """
    first, second = _align(first, first), _align(second, first)
    low, high = _auc_difference_interval(first, second, resample_patients(first, draws, seed))
    original = np.ones((1, len(first)), int)
    is_correct = [
        (table["probability"] >= threshold) == (table["label"] == 1)
        for table, threshold in zip((first, second), thresholds, strict=True)
    ]
    first_only, second_only = (
        int((is_correct[0] & ~is_correct[1]).sum()),
        int((is_correct[1] & ~is_correct[0]).sum()),
    )
    positive = first["label"] == 1
    images, *hits = (
        table.groupby(first["patient"]).sum().to_numpy()
        for table in (positive, positive & is_correct[0], positive & is_correct[1])
    )
    return Comparison(
        float((bootstrap_auc(second, original) - bootstrap_auc(first, original))[0]),
        low,
        high,
        first_only,
        second_only,
        float((hits[1].sum() - hits[0].sum()) / images.sum()),
        *paired_difference_interval(*hits, images),
    )


def _auc_difference_interval(
    first: pd.DataFrame, second: pd.DataFrame, counts: np.ndarray
) -> tuple[float, float]:
    """Bound the difference in AUC of two models, second − first, by samples of patients.

    If both models separate the classes, the difference is 0 in all samples, which shows nothing
    about other images. Then the intervals of both AUCs are combined as if they were independent.
    With a single patient in a class the bounds are −1 and 1. Between models that rank all images
    alike, the difference is 0 for any images.

    Args:
        first: Predictions of the first model, sorted by path.
        second: Predictions of the second model, sorted by path.
        counts: See `bootstrap_auc`.
    """
    ranks = [rankdata(table["probability"]) for table in (first, second)]
    if np.array_equal(*ranks):
        return 0.0, 0.0
    if first.groupby("label")["patient"].nunique().min() < 2:
        return -1.0, 1.0
    differences = bootstrap_auc(second, counts) - bootstrap_auc(first, counts)
    if np.ptp(differences) > 0:
        low, high = np.percentile(differences, CI_PERCENTILES)
        return float(low), float(high)
    labels, patients = first["label"].to_numpy(), pd.factorize(first["patient"])[0]
    aucs = (
        (float(roc_auc_score(labels, own)), *auc_interval(labels, own, patients)) for own in ranks
    )
    return independent_difference_interval(*aucs)


@dataclass(frozen=True)
class Improvement:
    """Improvement of the best of several trials over the baseline, in AUC.

    Attributes:
        difference: AUC of the best trial minus AUC of the baseline.
        low: One-sided lower confidence bound of the true difference, at `CI_PERCENTILES[1]`
            percent.
        trials: Number of trials from which the best one was chosen.
    """

    difference: float
    low: float
    trials: int


def bound_improvement(
    baseline: pd.DataFrame,
    best: pd.DataFrame,
    others: Iterable[pd.DataFrame],
    draws: int = N_RESAMPLES,
    seed: int = 0,
) -> Improvement:
    """Bound the improvement of the best of several trials, corrected for the choice of the best.

    Let d_j be the AUC of trial j minus that of the baseline, and d*_j the same in a sample of
    patients. The bound is d_best minus the 97.5 % quantile, over samples, of the maximum over
    trials of d*_j − d_j. All models are scored on the same samples. This is the "reality check"
    of White (Econometrica 2000) in the form of a confidence bound, the first step of Romano and
    Wolf (Econometrica 2005). The interval of `compare_models` is valid for one comparison that was
    planned before the data were seen. For the best of many trials it is too optimistic.

    The bounds d_j minus that quantile are valid for all trials at once. So the bound of `best` is
    also valid if `best` was chosen by another score than AUC.

    Args:
        baseline: Predictions of the baseline, columns as in `compare_models`.
        best: Predictions of the trial that was chosen.
        others: Predictions of the other trials that could have been chosen, without the baseline.
            They are read one at a time, so that no more than one is in memory.
        draws: Number of samples of patients.
        seed: Seed of the samples.

    Returns:
        The difference and its lower bound.

    Raises:
        ValueError: Two of the predictions are not for the same images, labels and patients.
    """
    baseline = _align(baseline, baseline)
    original = np.ones((1, len(baseline)), int)  # the original images, before the samples
    counts = np.vstack([original, resample_patients(baseline, draws, seed)])
    baseline_aucs = bootstrap_auc(baseline, counts)

    def compare_trial(trial: pd.DataFrame) -> tuple[float, np.ndarray]:
        differences = bootstrap_auc(_align(trial, baseline), counts) - baseline_aucs
        return differences[0], differences[1:] - differences[0]

    difference, largest = compare_trial(best)
    trials = 1
    for _, excess in map(compare_trial, others):
        np.maximum(largest, excess, out=largest)
        trials += 1
    low = difference - np.percentile(largest, CI_PERCENTILES[1])
    return Improvement(float(difference), float(low), trials)


def _align(predictions: pd.DataFrame, like: pd.DataFrame) -> pd.DataFrame:
    """Sort predictions by path. Raise `ValueError` if their images are not those of `like`."""
    if not is_paired(predictions, like):
        raise ValueError("both predictions must be for the same images, patients and labels")
    return predictions.sort_values("path", ignore_index=True)
