"""AUC under class-opposed nuisances: how well a model separates classes if shortcuts are reversed.

A nuisance is a property of an image that says nothing about the lungs, such as its aspect ratio. In
a data set it may be correlated with the label, and then a model that uses it scores well on
validation images of the same data set. Here that correlation is reversed: the images of one class
get one fixed version, and those of the other class the opposite version. DomainBed's test sets with
reversed correlations follow the same idea (Gulrajani and Lopez-Paz, ICLR 2021).

Each version is predicted once. A pairing only chooses the version from which each class takes its
scores.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from pneumo.data.dataset import Split
from pneumo.data.perturb import perturb_split
from pneumo.evaluation.comparison import ScoredPredictions
from pneumo.evaluation.intervals import format_with_interval

# A perturbation of all images, as `perturb.perturb` takes it, or None for the unchanged images
Version = tuple[str, float] | None


class Nuisance(NamedTuple):
    """Property of images that is irrelevant for the label, as two opposite versions of all images.

    Attributes:
        title: Words for the property.
        first: One version.
        second: The opposite version.
    """

    title: str
    first: Version
    second: Version


NUISANCES = {
    "geometry": Nuisance("aspect ratio", ("trim_width", 0.15), ("trim_height", 0.15)),
    "spectrum": Nuisance("sharpness", ("sharpen", 1.5), ("blur", 0.01)),
    "gamma": Nuisance("brightness", ("gamma", 0.67), ("gamma", 1.5)),
    "contrast": Nuisance("contrast", ("contrast", 0.7), ("contrast", 1.3)),
    "border": Nuisance("border (occlusion test)", ("black_border", 0.125), None),
    "compression": Nuisance("JPEG compression", ("jpeg", 20), None),
}

VERSION_TITLES: dict[Version, str] = {
    None: "unchanged",
    ("trim_width", 0.15): "15 % cut off on the left and on the right",
    ("trim_height", 0.15): "15 % cut off at the top and at the bottom",
    ("sharpen", 1.5): "sharpened",
    ("blur", 0.01): "blurred",
    ("gamma", 0.67): "brighter",
    ("gamma", 1.5): "darker",
    ("contrast", 0.7): "less contrast",
    ("contrast", 1.3): "more contrast",
    ("black_border", 0.125): "border black",
    ("jpeg", 20): "compressed to JPEG quality 20",
}

# Nuisances that `robust_auc` averages
ROBUST_NUISANCES = ("geometry", "spectrum")

# A model relies on a nuisance if its AUC falls by more than this when the nuisance is reversed
RELIANCE = 0.05


def versions(nuisances: Iterable[str]) -> list[Version]:
    """Return the versions of images that some of `NUISANCES` need, each once, unchanged first."""
    named = [version for name in nuisances for version in NUISANCES[name][1:]]
    return list(dict.fromkeys([None, *named]))


def opposed_scores(
    labels: np.ndarray, logits: Mapping[Version, np.ndarray], nuisance: Nuisance
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of the images in both pairings of the classes with a nuisance's versions.

    Args:
        labels: Integers of shape (images,), 0 or 1.
        logits: Version → a score of each image, shape (images,). It contains both versions.
        nuisance: The nuisance.

    Returns:
        Positive images in the first version and negative ones in the second, and the reverse.
    """
    first, second = logits[nuisance.first], logits[nuisance.second]
    return np.where(labels == 1, first, second), np.where(labels == 1, second, first)


def opposed_auc(
    labels: np.ndarray, logits: Mapping[Version, np.ndarray], nuisance: Nuisance
) -> float:
    """Return the class-opposed AUC of a nuisance: the smaller one of its two pairings.

    Args:
        labels: As in `opposed_scores`, with both classes.
        logits: As in `opposed_scores`.
        nuisance: The nuisance.
    """
    pairings = opposed_scores(labels, logits, nuisance)
    return min(float(roc_auc_score(labels, scores)) for scores in pairings)


def robust_auc(labels: np.ndarray, logits: Mapping[Version, np.ndarray]) -> float:
    """Return the mean of the AUC and of the class-opposed AUC of each of `ROBUST_NUISANCES`.

    Args:
        labels: Integers of shape (images,), 0 or 1, both among them.
        logits: Version → a score of each image, shape (images,), for `versions(ROBUST_NUISANCES)`.
    """
    opposed = [opposed_auc(labels, logits, NUISANCES[name]) for name in ROBUST_NUISANCES]
    return float(np.mean([roc_auc_score(labels, logits[None]), *opposed]))


def measure_nuisances(
    predict: Callable[[np.ndarray], np.ndarray], split: Split, predictions: pd.DataFrame
) -> list[dict[str, Any]]:
    """Measure the AUC of a model under each pairing of each nuisance.

    Args:
        predict: Returns the probability for each of some images, as it did for `predictions`.
        split: The images.
        predictions: Predictions for the unchanged images, in their order, columns as in
            `metrics.Evaluation`.

    Returns:
        For each pairing its `nuisance`, the versions of `positive` and `negative` images in words,
        `auc`, and its `difference` from that of the unchanged images, with 95 % confidence
        intervals by patient.
    """
    labels = predictions["label"].to_numpy()
    scores = {
        version: predict(perturb_split(split, (version,)).images)
        for version in versions(NUISANCES)
        if version
    }
    scores[None] = predictions["probability"].to_numpy()
    found = []
    for name, nuisance in NUISANCES.items():
        titles = VERSION_TITLES[nuisance.first], VERSION_TITLES[nuisance.second]
        pairings = zip(
            opposed_scores(labels, scores, nuisance), (titles, titles[::-1]), strict=True
        )
        for probabilities, (positive, negative) in pairings:
            pairing = {"nuisance": name, "positive": positive, "negative": negative}
            found.append(pairing | _compare_with_unchanged(predictions, probabilities))
    return found


def _compare_with_unchanged(unchanged: pd.DataFrame, probabilities: np.ndarray) -> dict[str, float]:
    changed = ScoredPredictions(unchanged.assign(probability=probabilities), 0.5)
    metrics = changed.metrics_with_intervals()
    compared = changed.compare_with(ScoredPredictions(unchanged, 0.5))
    return {
        **{name: metrics[name] for name in ("auc", "auc_low", "auc_high")},
        "difference": compared.auc_difference,
        "difference_low": compared.low,
        "difference_high": compared.high,
    }


def describe_reliance(pairings: Iterable[Mapping[str, Any]]) -> str:
    """Describe in a sentence or two what a model relies on.

    Args:
        pairings: As `measure_nuisances` returns them.

    Returns:
        The nuisances for which the whole interval of a pairing's difference is below `-RELIANCE`,
        each with the AUC of its worse pairing; or that there is none.
    """
    relied = list(relied_nuisances(pairings))
    if not relied:
        return (
            "No property in the table lowers the AUC by more than "
            f"{RELIANCE} for sure: the model does not rely on any of them."
        )
    return (
        f"The model relies on {', '.join(relied)}. If such a property is correlated with the label "
        "in other images in another way, the model fails there."
    )


def relied_nuisances(pairings: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the nuisances that a model relies on, in words, as `describe_reliance` does."""
    table = pd.DataFrame(pairings)
    worse = table.loc[table.groupby("nuisance", sort=False)["auc"].idxmin()]
    for row in worse.sort_values("difference").to_dict("records"):
        if row["difference_high"] < -RELIANCE:
            yield (
                f"{NUISANCES[row['nuisance']].title} (AUC {format_with_interval(row, 'auc')} "
                "if it is reversed)"
            )
