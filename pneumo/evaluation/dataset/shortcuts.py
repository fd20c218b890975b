"""Shortcuts in a data set: what predicts the label, or the hospital, without the lungs."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from pneumo.evaluation.intervals import format_with_interval, metric_intervals
from pneumo.inference.batches import map_batches

N_FOLDS = 5  # also the least number of patients on each side of a target
ATTRIBUTES = ("site", "device", "view")  # of an index, which a model should not need to know
THUMBNAIL_SIDE = 16  # pixels of the images from which attributes are predicted
MAX_GROUPS = 10  # of an attribute, the largest ones


def has_enough_patients(target: np.ndarray, patients: pd.Series) -> bool:
    """Return whether both sides of a target, 0 and 1, have at least `N_FOLDS` patients."""
    counts = patients.groupby(np.asarray(target)).nunique()
    return counts.reindex([0, 1], fill_value=0).min() >= N_FOLDS


def cross_validated_auc(
    values: np.ndarray, target: np.ndarray, patients: pd.Series
) -> dict[str, float]:
    """Measure how well values predict a target for patients that the classifier has not seen.

    Args:
        values: float array of shape (images, values).
        target: Integers of shape (images,), 0 or 1.
        patients: Patient of each image.

    Returns:
        `auc` of gradient-boosted trees in cross-validation with `N_FOLDS` folds of patients, and
        its 95 % confidence interval by patient: `auc_low`, `auc_high`.
    """
    probabilities = cross_val_predict(
        # Few and small trees suffice for few features. An AUC needs no class weights, with which
        # scikit-learn sorts each feature again for each of its 255 bins
        HistGradientBoostingClassifier(max_iter=30, max_leaf_nodes=8, random_state=0),
        values,
        target,
        groups=patients,
        cv=StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=0),
        method="predict_proba",
    )[:, 1]
    predictions = pd.DataFrame(
        {"patient": patients.to_numpy(), "label": target, "probability": probabilities}
    )
    bounds = metric_intervals(predictions, 0.5)
    return {
        "auc": float(roc_auc_score(target, probabilities)),
        **{name: bounds[name] for name in ("auc_low", "auc_high")},
    }


def measure_attribute_leakage(
    images: pd.DataFrame, pixels: np.ndarray, metadata: list[str]
) -> dict[str, dict[str, Any]]:
    """Measure whether the label follows the site, device or view, and whether images reveal them.

    Args:
        images: Readable images outside test, with the columns of an index and `metadata`, indexed
            by their position in `pixels`.
        pixels: All images, perhaps a memory map: uint8, shape (images, side, side), with a multiple
            of `THUMBNAIL_SIDE` as side.
        metadata: Numeric columns that are known without a look at the lungs.

    Returns:
        Attribute → `groups`, with `images`, `patients` and `prevalence` of each; and, as
        `cross_validated_auc` returns them, how well the attribute alone predicts the label
        (`label`), and how well the metadata and small versions of the images predict the largest
        group (`metadata`, `pixels`). A result is None if one side has too few patients. An
        attribute with fewer than two known groups is left out.
    """
    names = [name for name in ATTRIBUTES if images[name][images[name] != ""].nunique() > 1]
    if not names:
        return {}
    positions = images.index.to_numpy()
    thumbnails = np.concatenate(list(map_batches(lambda rows: _shrink(pixels[rows]), positions)))
    return {
        name: _measure_attribute(images, name, thumbnails, images[metadata].to_numpy())
        for name in names
    }


def _measure_attribute(
    images: pd.DataFrame, attribute: str, thumbnails: np.ndarray, metadata: np.ndarray
) -> dict[str, Any]:
    is_known = (images[attribute] != "").to_numpy()
    known = images[is_known]
    counts = known[attribute].value_counts()
    is_largest = (known[attribute] == counts.index[0]).to_numpy().astype(int)
    is_common = known[attribute].isin(counts.index[:MAX_GROUPS])
    codes = pd.get_dummies(known[attribute].where(is_common, "")).to_numpy(float)
    patients = known["patient"]
    return {
        "groups": {
            name: _count(known[known[attribute] == name]) for name in counts.index[:MAX_GROUPS]
        },
        "label": _auc_or_none(codes, known["label"].to_numpy(), patients),
        "metadata": _auc_or_none(metadata[is_known], is_largest, patients),
        "pixels": _auc_or_none(thumbnails[is_known], is_largest, patients),
    }


def _shrink(pixels: np.ndarray) -> np.ndarray:
    """Return the means of square parts of each image: float32, shape (images, parts)."""
    part = pixels.shape[1] // THUMBNAIL_SIDE
    shape = len(pixels), THUMBNAIL_SIDE, part, THUMBNAIL_SIDE, part
    return pixels.reshape(shape).mean(axis=(2, 4), dtype=np.float32).reshape(len(pixels), -1)


def _count(rows: pd.DataFrame) -> dict[str, float]:
    return {
        "images": len(rows),
        "patients": rows["patient"].nunique(),
        "prevalence": float(rows["label"].mean()),
    }


def _auc_or_none(
    values: np.ndarray, target: np.ndarray, patients: pd.Series
) -> dict[str, float] | None:
    if not has_enough_patients(target, patients):
        return None
    return cross_validated_auc(values, target, patients)


def describe_attribute_leakage(attributes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a sentence for each attribute that the label follows.

    Args:
        attributes: As `measure_attribute_leakage` returns them.
    """
    for name, values in attributes.items():
        label = values["label"]
        if not label or label["auc_low"] <= 0.5:
            continue
        groups = list(values["groups"].values())
        large = [group for group in groups if group["patients"] >= N_FOLDS]
        rates = [group["prevalence"] for group in large or groups]
        yield (
            f"The label follows the {name}: the prevalence of PNEUMONIA is {min(rates):.0%} to "
            f"{max(rates):.0%}, and the {name} alone predicts it with an AUC of "
            f"{format_with_interval(label, 'auc')}. {_consequence(name, values)}"
        )


def _consequence(name: str, values: Mapping[str, Any]) -> str:
    largest, pixels = next(iter(values["groups"])), values["pixels"]
    if pixels is None:
        return f"Whether the images reveal the {name} was not tested, for lack of patients."
    if pixels["auc_low"] <= 0.5:
        return f"The images do not clearly reveal the largest group, {largest}."
    return (
        f"The images reveal the largest group, {largest} (AUC "
        f"{format_with_interval(pixels, 'auc')}), so a model can use the {name} as a shortcut."
    )
