"""AUC under class-opposed nuisances: how well a model separates classes if shortcuts are reversed.

A nuisance is a property of the whole image that no diagnosis should depend on, such as its aspect
ratio. In a data set it may be correlated with the label, and then a model that uses it scores well
on validation images of the same data set. Here that correlation is reversed: the images of one
class get one fixed version, and those of the other class the opposite version. The idea is that of
DomainBed's data sets with reversed correlations (Gulrajani and Lopez-Paz, ICLR 2021).

Each version is predicted once. A pairing only chooses the version from which each class takes its
scores.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from pneumo.data.dataset import Split
from pneumo.data.perturb import perturb_split
from pneumo.evaluation.bootstrap import CI_PERCENTILES, bootstrap_auc, resample_patients
from pneumo.evaluation.intervals import auc_interval, format_with_interval

# A perturbation of all images, as `perturb.perturb` takes it, or None for the unchanged images
Version = tuple[str, float] | None

# Logits of images in each of several versions: float arrays of shape (…, images)
VersionLogits = dict[Version, np.ndarray]


class Nuisance(NamedTuple):
    """Property that no diagnosis should depend on, as two opposite versions of all images.

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


# Versions of images that `robust_auc` needs
ROBUST_VERSIONS = versions(ROBUST_NUISANCES)


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
) -> dict[str, dict[str, Any]]:
    """Measure the AUC of a model under both pairings of each nuisance.

    Args:
        predict: Returns the probability for each of some images, as it did for `predictions`.
        split: The images.
        predictions: Predictions for the unchanged images, in their order, columns as in
            `metrics.Evaluation`.

    Returns:
        For each of `NUISANCES` its two `pairings`, the one with the smaller AUC first: the versions
        of `positive` and `negative` images in words, and `auc`. For the first one also the
        `difference` of its AUC from that of the unchanged images. AUC and difference have 95 %
        confidence intervals by patient.
    """
    labels = predictions["label"].to_numpy()
    patients = np.unique(predictions["patient"], return_inverse=True)[1]
    scores = {
        version: predict(perturb_split(split, (version,)).images)
        for version in versions(NUISANCES)
        if version
    }
    scores[None] = predictions["probability"].to_numpy()
    compare = _compare_with_unchanged(predictions)
    found = {}
    for name, nuisance in NUISANCES.items():
        titles = VERSION_TITLES[nuisance.first], VERSION_TITLES[nuisance.second]
        paired = list(opposed_scores(labels, scores, nuisance))
        pairings = [
            {"positive": positive, "negative": negative, **_auc(labels, probabilities, patients)}
            for probabilities, (positive, negative) in zip(
                paired, (titles, titles[::-1]), strict=True
            )
        ]
        if pairings[1]["auc"] < pairings[0]["auc"]:
            pairings, paired = pairings[::-1], paired[::-1]
        found[name] = {"pairings": pairings, **compare(paired[0])}
    return found


def _auc(labels: np.ndarray, probabilities: np.ndarray, patients: np.ndarray) -> dict[str, float]:
    low, high = auc_interval(labels, probabilities, patients)
    return {"auc": float(roc_auc_score(labels, probabilities)), "auc_low": low, "auc_high": high}


def _compare_with_unchanged(unchanged: pd.DataFrame) -> Callable[[np.ndarray], dict[str, float]]:
    """Return a function from other probabilities to the difference of their AUC, with interval.

    All calls share the samples of patients, and their AUCs for the unchanged images.
    """
    counts = resample_patients(unchanged)
    sampled_unchanged = bootstrap_auc(unchanged, counts)
    auc_unchanged = roc_auc_score(unchanged["label"], unchanged["probability"])

    def compare(probabilities: np.ndarray) -> dict[str, float]:
        sampled = bootstrap_auc(unchanged.assign(probability=probabilities), counts)
        low, high = np.percentile(sampled - sampled_unchanged, CI_PERCENTILES)
        difference = roc_auc_score(unchanged["label"], probabilities) - auc_unchanged
        return {
            "difference": float(difference),
            "difference_low": float(low),
            "difference_high": float(high),
        }

    return compare


def describe_reliance(nuisances: Mapping[str, Mapping[str, Any]]) -> str:
    """Describe in a sentence or two what a model relies on.

    Args:
        nuisances: As `measure_nuisances` returns them.

    Returns:
        The nuisances of `relied_nuisances`, each with the smaller AUC of its pairings; or that
        there is none.
    """
    relied = []
    for name in relied_nuisances(nuisances):
        auc = format_with_interval(nuisances[name]["pairings"][0], "auc")
        relied.append(f"{NUISANCES[name].title} (AUC {auc} if reversed)")
    if not relied:
        return (
            f"No property in the table lowers the AUC by more than {RELIANCE} with 95 % confidence."
        )
    return (
        f"The model relies on {', '.join(relied)}. If the property is correlated with the label in "
        "another way in other images, the model may fail there."
    )


def relied_nuisances(nuisances: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the names of the nuisances that a model relies on, the largest difference first.

    Args:
        nuisances: As `measure_nuisances` returns them.
    """
    relied = [name for name, values in nuisances.items() if values["difference_high"] < -RELIANCE]
    return sorted(relied, key=lambda name: nuisances[name]["difference"])
