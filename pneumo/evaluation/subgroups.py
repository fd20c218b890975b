"""Performance in groups of patients and images, with what their size can show."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from scipy.stats import norm

from pneumo.data.schema import ATTRIBUTES, CLASSES
from pneumo.evaluation.intervals import (
    CI_SUFFIXES,
    format_with_interval,
    independent_difference_interval,
    metric_intervals,
)
from pneumo.evaluation.metrics import compute_metrics

# First year of each band of ages → its name, in years
AGE_BANDS = {
    0: "under 1",
    1: "1 to 5",
    6: "6 to 12",
    13: "13 to 17",
    18: "18 to 64",
    65: "65 and above",
}

MIN_PATIENTS = 2  # of each class in a group; with fewer an AUC has no interval
MAX_GROUPS = 10  # of an attribute, the largest ones
POWER = 0.8  # with which the detectable difference is found

Groups = dict[str, dict[str, dict[str, float]]]  # attribute → group → name → value


def subtype_metrics(predictions: pd.DataFrame, threshold: float) -> dict[str, dict[str, float]]:
    """Compute metrics of each subtype that file names contain, such as `PNEUMONIA/virus`.

    Args:
        predictions: Columns as in `Evaluation`.
        threshold: Probability ≥ threshold is positive.

    Returns:
        Subtype → `images`, `patients`, `sensitivity` or `specificity` within it, and `auc` against
        all images of the other class. The metrics have 95 % confidence intervals by patient.
    """
    subtypes = {}
    named = predictions[predictions["subtype"] != ""]
    for (label, subtype), rows in named.groupby(["label", "subtype"]):
        others = predictions[predictions["label"] != label]
        both = pd.concat([rows, others])
        values = compute_metrics(
            both["label"].to_numpy(), both["probability"].to_numpy(), threshold
        )
        values |= metric_intervals(both, threshold)
        rate = "sensitivity" if label else "specificity"
        subtypes[f"{CLASSES[label]}/{subtype}"] = {
            "images": len(rows),
            "patients": rows["patient"].nunique(),
            **{
                f"{metric}{suffix}": values[f"{metric}{suffix}"]
                for metric in (rate, "auc")
                for suffix in CI_SUFFIXES
            },
        }
    return subtypes


def group_metrics(rows: pd.DataFrame, predictions: pd.DataFrame, threshold: float) -> Groups:
    """Compute metrics within groups of equal attributes, and compare each with all other groups.

    Groups of one attribute count as independent, although a patient may be in two of them, such as
    two views. That makes the intervals of the differences wider, not narrower.

    Args:
        rows: Rows of the index with the columns `ATTRIBUTES`, one per prediction.
        predictions: Columns as in `metrics.Evaluation`, in the same order.
        threshold: Probability ≥ threshold is positive.

    Returns:
        Attribute → group → `images`, `patients` and `positive` (images with pneumonia). If the
        group has at least `MIN_PATIENTS` of each class also `auc`, `sensitivity` and `specificity`
        with their 95 % intervals by patient, and, if that is so of all others together,
        `difference`, the AUC minus that of the others, with its interval, and `detectable`. That is
        the smallest true difference that an interval would exclude 0 for with a probability of
        about `POWER`. An attribute with fewer than two known groups is left out.
    """
    found: Groups = {}
    for attribute in ATTRIBUTES:
        groups = rows[attribute].map(age_band) if attribute == "age" else rows[attribute]
        groups = groups.reset_index(drop=True)
        known = predictions.reset_index(drop=True)[groups != ""]
        groups = groups[groups != ""]
        if groups.nunique() < 2:
            continue
        names = groups.value_counts().index[:MAX_GROUPS]
        order = [name for name in AGE_BANDS.values() if name in names] or sorted(names)
        found[attribute] = {
            name: _compare(known[groups == name], known[groups != name], threshold)
            for name in order
        }
    return found


def age_band(age: str) -> str:
    """Return the name of the band of an age in years, as text; '' if the age is ''."""
    return AGE_BANDS[max(first for first in AGE_BANDS if first <= float(age))] if age else ""


def _compare(group: pd.DataFrame, others: pd.DataFrame, threshold: float) -> dict[str, float]:
    counts = {
        "images": len(group),
        "patients": group["patient"].nunique(),
        "positive": int(group["label"].sum()),
    }
    if not _is_large(group):
        return counts
    values = _metrics(group, threshold)
    counts |= {
        f"{name}{suffix}": values[f"{name}{suffix}"]
        for name in ("auc", "sensitivity", "specificity")
        for suffix in CI_SUFFIXES
    }
    if not _is_large(others):
        return counts
    pair = [
        tuple(of_group[f"auc{suffix}"] for suffix in CI_SUFFIXES)
        for of_group in (_metrics(others, threshold), values)
    ]
    low, high = independent_difference_interval(*pair)
    return counts | {
        "difference": pair[1][0] - pair[0][0],
        "difference_low": low,
        "difference_high": high,
        "detectable": _detectable_difference(low, high),
    }


def _is_large(group: pd.DataFrame) -> bool:
    patients = group.groupby("label")["patient"].nunique()
    return len(patients) == len(CLASSES) and patients.min() >= MIN_PATIENTS


def _metrics(group: pd.DataFrame, threshold: float) -> dict[str, float]:
    labels, probabilities = (group[name].to_numpy() for name in ("label", "probability"))
    return compute_metrics(labels, probabilities, threshold) | metric_intervals(group, threshold)


def _detectable_difference(low: float, high: float) -> float:
    """Return the difference that is found with `POWER`, from a 95 % interval of the same width."""
    standard_error = (high - low) / (2 * norm.ppf(0.975))
    return float((norm.ppf(0.975) + norm.ppf(POWER)) * standard_error)


def describe_groups(groups: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[str]:
    """Yield a sentence for each group whose AUC is lower than that of all others."""
    compared = [
        (attribute, name, values)
        for attribute, of_attribute in groups.items()
        for name, values in of_attribute.items()
        if "difference" in values
    ]
    for attribute, name, values in compared:
        if values["difference_high"] < 0:
            yield (
                f"AUC is lower in the group {attribute} = {name}: "
                f"{format_with_interval(values, 'auc')}, difference from all others "
                f"{format_with_interval(values, 'difference')}. Of the {len(compared)} groups that "
                "were compared, one in 40 looks lower by chance."
            )
