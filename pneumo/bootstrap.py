"""How sure a number is: patients drawn again and again, each with all of its images.

Images of one patient are alike. Drawn one by one they would make every interval too narrow.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

DRAWS = 1000  # leave about 0.2 points of error in a 95 % bound
LEVELS = (2.5, 97.5)  # percentiles that enclose 95 %
GRID = np.linspace(0, 1, 101)  # where curves of different draws are compared


def draw_patients(predictions: pd.DataFrame, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each image is in each of `draws` samples: int64, shape (samples, images).

    As many patients as there are, drawn with replacement. A sample that lacks one of the classes
    says nothing of AUC and is left out.
    """
    labels = predictions["label"].to_numpy()
    patients, patient_of = np.unique(predictions["patient"], return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(patients), np.full(len(patients), 1 / len(patients)), size=draws)
    drawn = counts.T[patient_of]  # of each image all samples side by side, as `auc` reads them
    both = drawn[labels == 0].any(axis=0) & drawn[labels == 1].any(axis=0)
    return np.compress(both, drawn, axis=1).T


def intervals(
    predictions: pd.DataFrame, threshold: float, draws: int = DRAWS, seed: int = 0
) -> dict[str, float]:
    """95 % intervals by patient: `auc_low`, `auc_high`, and so on as in `rates`.

    `predictions`: columns patient, label and probability, both classes among them.
    """
    drawn = draw_patients(predictions, draws, seed)
    bounds = {}
    for name, values in rates(predictions, threshold, drawn).items():
        low, high = np.percentile(values, LEVELS)
        bounds |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return bounds


def rates(predictions: pd.DataFrame, threshold: float, drawn: np.ndarray) -> dict[str, np.ndarray]:
    """AUC, sensitivity, specificity and accuracy of each sample: float64, shape (samples,)."""
    labels = predictions["label"].to_numpy()
    right = (predictions["probability"].to_numpy() >= threshold) == labels
    sick, normal = labels == 1, labels == 0
    return {
        "auc": auc(predictions, drawn),
        "sensitivity": drawn[:, sick] @ right[sick] / drawn[:, sick].sum(axis=1),
        "specificity": drawn[:, normal] @ right[normal] / drawn[:, normal].sum(axis=1),
        "accuracy": drawn @ right / drawn.sum(axis=1),
    }


def auc(predictions: pd.DataFrame, drawn: np.ndarray) -> np.ndarray:
    """The area under the ROC curve of each sample: float64, shape (samples,).

    It is the share of pairs of a sick and a normal image of which the sick one has the higher
    probability; equal probabilities count one half. One sort serves all samples.
    """
    labels, values = predictions["label"].to_numpy(), predictions["probability"].to_numpy()
    sick, normal = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    normal = normal[np.argsort(values[normal])]
    n_lower = np.zeros((len(normal) + 1, len(drawn)), np.int64)  # normal images below each place
    np.cumsum(drawn.T[normal], axis=0, out=n_lower[1:])
    of_sick = drawn.T[sick]
    twice = sum(
        np.einsum("is,is->s", of_sick, n_lower[np.searchsorted(values[normal], values[sick], side)])
        for side in ("left", "right")
    )
    return twice / (2 * of_sick.sum(axis=0) * n_lower[-1])


def roc_band(predictions: pd.DataFrame, drawn: np.ndarray) -> np.ndarray:
    """The 95 % band of sensitivity at each false positive rate in `GRID`: shape (2, points)."""
    curves = zip(*_curve(predictions, drawn), strict=True)
    return np.percentile([np.interp(GRID, x, y) for x, y in curves], LEVELS, axis=0)


def precision_band(predictions: pd.DataFrame, drawn: np.ndarray) -> np.ndarray:
    """The 95 % band of precision at each sensitivity in `GRID`: shape (2, points)."""
    sick, normal = _found(predictions, drawn)
    called = sick + normal
    precision = np.divide(sick, called, out=np.ones(sick.shape), where=called > 0)
    sensitivity = sick / sick[:, -1:]
    found = [
        values[np.searchsorted(reached, GRID)]
        for values, reached in zip(precision, sensitivity, strict=True)
    ]
    return np.percentile(found, LEVELS, axis=0)


def _curve(predictions: pd.DataFrame, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False positive rate and sensitivity of each sample, from no image called sick to all."""
    sick, normal = (np.pad(counts, ((0, 0), (1, 0))) for counts in _found(predictions, drawn))
    return normal / normal[:, -1:], sick / sick[:, -1:]


def _found(predictions: pd.DataFrame, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sick and normal images of each sample at or above each probability, the highest first."""
    labels, values = predictions["label"].to_numpy(), predictions["probability"].to_numpy()
    order = np.argsort(-values, kind="stable")
    last_of_equals = np.flatnonzero(np.diff(values[order], append=-np.inf))
    sick = np.cumsum(drawn[:, order] * labels[order], axis=1)[:, last_of_equals]
    return sick, np.cumsum(drawn[:, order], axis=1)[:, last_of_equals] - sick


@dataclass(frozen=True)
class Comparison:
    """The differences of a second model from a first one on the same images.

    Attributes:
        auc_difference: AUC of the second minus AUC of the first.
        low: Lower bound of its 95 % interval, from samples of patients that both models share.
        high: Upper bound.
        first_only: Number of images that the first model alone classifies correctly.
        second_only: Number of images that the second model alone classifies correctly.
        sensitivity_difference: Sensitivity of the second minus that of the first, each at its own
            threshold.
        sensitivity_low: Lower bound of its 95 % interval, from the same samples.
        sensitivity_high: Upper bound.
    """

    auc_difference: float
    low: float
    high: float
    first_only: int
    second_only: int
    sensitivity_difference: float
    sensitivity_low: float
    sensitivity_high: float


def is_paired(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    """Return whether two tables of predictions are for the same images, patients and labels."""
    columns = ["path", "patient", "label"]
    first, second = (it[columns].sort_values("path", ignore_index=True) for it in (first, second))
    return first.equals(second)


def compare(
    first: pd.DataFrame,
    second: pd.DataFrame,
    thresholds: tuple[float, float],
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """Two models' predictions for the same images, in any order, each at its own threshold.

    Raises `ValueError` where the images, their labels or patients are not the same.
    """
    first, second = _align(first, first), _align(second, first)
    drawn = draw_patients(first, draws, seed)
    low, high = np.percentile(auc(second, drawn) - auc(first, drawn), LEVELS)
    once = np.ones((1, len(first)), int)
    right = [
        (it["probability"] >= threshold) == (it["label"] == 1)
        for it, threshold in zip((first, second), thresholds, strict=True)
    ]
    first_only, second_only = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    sick = (first["label"] == 1).to_numpy()
    gained = (right[1].astype(int) - right[0].astype(int)).to_numpy()[sick]
    gains = drawn[:, sick] @ gained / drawn[:, sick].sum(axis=1)
    return Comparison(
        float((auc(second, once) - auc(first, once))[0]),
        float(low),
        float(high),
        first_only,
        second_only,
        float(gained.mean()),
        *map(float, np.percentile(gains, LEVELS)),
    )


@dataclass(frozen=True)
class Improvement:
    """The improvement of the best of several trials over the baseline, in AUC.

    Attributes:
        difference: AUC of the best trial minus AUC of the baseline.
        low: One-sided lower confidence bound of the true difference, at `LEVELS[1]` percent.
        trials: Number of trials among which the choice is accounted for.
    """

    difference: float
    low: float
    trials: int


def improvement(
    baseline: pd.DataFrame,
    best: pd.DataFrame,
    others: Iterable[pd.DataFrame],
    draws: int = DRAWS,
    seed: int = 0,
) -> Improvement:
    """Bound the improvement of the best of several trials, accounting for the choice of the best.

    With d_j the AUC of trial j minus that of the baseline, and d*_j the same in a sample of
    patients, the bound is d_best minus the 97.5 % quantile, over samples, of the maximum over
    trials of d*_j − d_j. All models are scored on the same samples. This is the "reality check"
    of White (Econometrica 2000) in the form of a confidence bound, the first step of Romano and
    Wolf (Econometrica 2005). The interval of `compare` is that of one comparison that was planned
    before the data were seen. For the best of many trials it is too optimistic.

    The bounds d_j minus that quantile hold for all trials at once. So the one of `best` also holds
    if `best` was chosen by another score than AUC.

    Args:
        baseline: Predictions of the baseline, columns as in `compare`.
        best: Predictions of the trial that was chosen.
        others: Predictions of the trials that could have been chosen instead, without the
            baseline. They are read one at a time, so that no more than one is in memory.
        draws: Number of samples of patients.
        seed: Seed of the samples.

    Returns:
        The difference and its lower bound.

    Raises:
        ValueError: Two of the predictions are not for the same images, labels and patients.
    """
    baseline = _align(baseline, baseline)
    once = np.ones((1, len(baseline)), int)  # the images as they are, before the samples
    drawn = np.vstack([once, draw_patients(baseline, draws, seed)])
    of_baseline = auc(baseline, drawn)

    def compare_trial(trial: pd.DataFrame) -> tuple[float, np.ndarray]:
        differences = auc(_align(trial, baseline), drawn) - of_baseline
        return differences[0], differences[1:] - differences[0]

    difference, largest = compare_trial(best)
    trials = 1
    for _, excess in map(compare_trial, others):
        np.maximum(largest, excess, out=largest)
        trials += 1
    low = difference - np.percentile(largest, LEVELS[1])
    return Improvement(float(difference), float(low), trials)


def _align(predictions: pd.DataFrame, like: pd.DataFrame) -> pd.DataFrame:
    """Sort predictions by path. Raise `ValueError` if their images are not those of `like`."""
    if not is_paired(predictions, like):
        raise ValueError("both predictions must be for the same images, patients and labels")
    return predictions.sort_values("path", ignore_index=True)
