"""Occlusion test: whether a model needs the lungs, from images with a black center or border."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pandas as pd

from pneumo.evaluation.comparison import ScoredPredictions
from pneumo.evaluation.intervals import format_with_interval

BORDER_FRACTION = 1 / 8  # of the side: markers, collimation and shoulders, but little lung


def occlude_regions(images: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield copies of images with their `center` or their `border` black.

    Args:
        images: uint8 array of shape (n, size, size, 1).

    Yields:
        Name of the black region, and the copies: uint8, of the same shape.
    """
    width = round(BORDER_FRACTION * images.shape[1])
    center = np.zeros(images.shape[1:3], bool)
    center[width:-width, width:-width] = True
    for name, black in (("centre", center), ("border", ~center)):
        yield name, np.where(black[..., np.newaxis], np.uint8(0), images)


def occlusion_auc(
    predict: Callable[[np.ndarray], np.ndarray], images: np.ndarray, predictions: pd.DataFrame
) -> dict[str, dict[str, float]]:
    """Measure the AUC without the `centre` and without the `border` of the images.

    Args:
        predict: Returns a probability, or any other score, for each of some images.
        images: uint8 array of shape (n, size, size, 1).
        predictions: Predictions for the unchanged images, in their order, columns as in
            `metrics.Evaluation`.

    Returns:
        Black region → `auc`, and its `difference` from that of the unchanged images, with 95 %
        confidence intervals by patient.
    """
    return {
        name: _compare_with_whole(predictions, predict(black))
        for name, black in occlude_regions(images)
    }


def _compare_with_whole(whole: pd.DataFrame, probabilities: np.ndarray) -> dict[str, float]:
    part = ScoredPredictions(whole.assign(probability=probabilities), 0.5)
    metrics = part.metrics_with_intervals()
    compared = part.compare_with(ScoredPredictions(whole, 0.5))
    return {
        **{name: metrics[name] for name in ("auc", "auc_low", "auc_high")},
        "difference": compared.auc_difference,
        "difference_low": compared.low,
        "difference_high": compared.high,
    }


def differs_from_chance(values: Mapping[str, float]) -> bool:
    """Return whether the 95 % confidence interval of an AUC excludes 0.5."""
    return not values["auc_low"] <= 0.5 <= values["auc_high"]


def describe_occlusion(results: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Describe the two results of `occlusion_auc` in words."""
    center, border = results["centre"], results["border"]
    meaning = (
        "The border alone separates the classes, although it shows little of the lungs. "
        "Look for markers, collimation, or a different positioning of the children"
        if differs_from_chance(center)
        else "Without the center the model cannot separate the classes, as expected"
    )
    border_use = (
        "The model relies on the border"
        if border["difference_high"] < 0
        else "The model hardly uses the border, as expected"
    )
    return {
        "centre": (
            f"With a black center the AUC is {format_with_interval(center, 'auc')}. {meaning}."
        ),
        "border": (
            f"With a black border it is {format_with_interval(border, 'auc')}. The difference from "
            f"the whole image is {border['difference']:+.3f} ({border['difference_low']:+.3f} "
            f"to {border['difference_high']:+.3f}). {border_use}."
        ),
    }
