"""Plots of a model's performance."""

from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn import metrics

from pneumo.evaluation import bootstrap
from pneumo.evaluation.metrics import N_BINS, Evaluation, bin_numbers
from pneumo.reporting.style import (
    BLUE,
    GRAY,
    ORANGE,
    draw_image,
    set_unit_square,
    styled_figure,
    to_png,
)

N_WORST = 5  # errors of each kind in the gallery
MAX_OPACITY = 0.6  # opacity of the color where the heat map is 1


def plot_confusion_matrix(confusion: Mapping[str, int], title: str) -> Figure:
    """Plot the four counts, each with its fraction of the row, which also sets the shade.

    Args:
        confusion: Counts tn, fp, fn and tp.
        title: Title of the plot.
    """
    rows = [
        ("NORMAL", confusion["tn"], confusion["fp"]),
        ("PNEUMONIA", confusion["fn"], confusion["tp"]),
    ]
    fractions = [[count / max(1, sum(counts)) for count in counts] for _, *counts in rows]
    with styled_figure(5, 4.5) as figure:
        axes = figure.add_subplot()
        axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
        for row, (_, *counts) in enumerate(rows):
            for column, count in enumerate(counts):
                fraction = fractions[row][column]
                axes.text(
                    column,
                    row,
                    f"{count:,}\n{fraction:.1%}",
                    ha="center",
                    va="center",
                    fontsize=15,
                    color="white" if fraction > 0.5 else "black",
                )
        names = [name for name, *_ in rows]
        axes.set_xticks([0, 1], names)
        axes.set_yticks([0, 1], names, rotation=90, va="center")
        axes.grid(visible=False)
        axes.set(xlabel="predicted", ylabel="actual", title=title)
    return figure


def confusion_matrix_file(split: str, evaluation: Evaluation) -> dict[str, bytes]:
    """Draw `plot_confusion_matrix` of an evaluation, as a file to be stored with it.

    Args:
        split: Name of the split, for the title.
        evaluation: The evaluation.

    Returns:
        File name → PNG file.
    """
    title = (
        f"{split}: AUC {evaluation.metrics['auc']:.3f}, "
        f"threshold {evaluation.metrics['threshold']:.3f}"
    )
    return {"confusion_matrix.png": to_png(plot_confusion_matrix(evaluation.confusion, title))}


def plot_roc(predictions: pd.DataFrame, threshold: float) -> Figure:
    """Plot the ROC curve with its 95 % band by patient, and the threshold's point on it.

    Args:
        predictions: Columns patient, label (0 or 1) and probability.
        threshold: Probability from which an image is positive.
    """
    labels, values = predictions["label"], predictions["probability"]
    fpr, tpr, _ = metrics.roc_curve(labels, values)
    low, high = bootstrap.roc_band(predictions, bootstrap.resample_patients(predictions))
    with styled_figure(5, 4.8) as figure:
        axes = figure.add_subplot()
        axes.fill_between(
            bootstrap.CURVE_GRID, low, high, color=BLUE, alpha=0.2, lw=0, label="95 % band"
        )
        axes.plot(fpr, tpr, color=BLUE, label="model")
        axes.plot([0, 1], [0, 1], ":", color=GRAY, label="chance")
        called = values >= threshold
        at = called[labels == 0].mean(), called[labels == 1].mean()
        axes.plot(*at, "o", color=ORANGE, label=f"threshold {threshold:.3f}", clip_on=False)
        set_unit_square(axes, "1 − specificity", "sensitivity")
        axes.legend(loc="lower right")
        axes.set_title(f"ROC curve, AUC {metrics.roc_auc_score(labels, values):.3f}")
    return figure


def plot_precision_recall(predictions: pd.DataFrame, threshold: float) -> Figure:
    """Plot precision against recall with its 95 % band by patient, and the threshold's point.

    Args:
        predictions: Columns patient, label (0 or 1) and probability.
        threshold: Probability from which an image is positive.
    """
    labels, values = predictions["label"], predictions["probability"]
    precision, recall, _ = metrics.precision_recall_curve(labels, values)
    low, high = bootstrap.precision_band(predictions, bootstrap.resample_patients(predictions))
    with styled_figure(5, 4.8) as figure:
        axes = figure.add_subplot()
        axes.fill_between(
            bootstrap.CURVE_GRID, low, high, color=BLUE, alpha=0.2, lw=0, label="95 % band"
        )
        axes.plot(recall, precision, color=BLUE, drawstyle="steps-post", label="model")
        axes.axhline(labels.mean(), ls=":", color=GRAY, label="all predicted PNEUMONIA")
        called = values >= threshold
        if called.any():
            at = called[labels == 1].mean(), labels[called].mean()
            axes.plot(*at, "o", color=ORANGE, label=f"threshold {threshold:.3f}", clip_on=False)
        set_unit_square(axes, "sensitivity (recall)", "positive predictive value (precision)")
        axes.legend(loc="lower left")
        area = metrics.average_precision_score(labels, values)
        axes.set_title(f"Precision-recall curve, average precision {area:.3f}")
    return figure


def plot_decision_curve(curve: pd.DataFrame, threshold: float) -> Figure:
    """Plot the net benefit of the model, of calling all images positive, and of calling none.

    Args:
        curve: As `bootstrap.decision_curve` returns it.
        threshold: Probability from which an image is positive.
    """
    at = curve["threshold"]
    top = max(curve["high"].max(), curve["all"].max())
    with styled_figure(5, 4.8) as figure:
        axes = figure.add_subplot()
        axes.fill_between(
            at, curve["low"], curve["high"], color=BLUE, alpha=0.2, lw=0, label="95 % band"
        )
        axes.plot(at, curve["model"], color=BLUE, label="model")
        axes.plot(at, curve["all"], "--", color=ORANGE, label="all called PNEUMONIA")
        axes.axhline(0, ls=":", color=GRAY, label="none called PNEUMONIA")
        axes.axvline(threshold, color=GRAY, lw=1, label=f"threshold {threshold:.3f}")
        axes.set(xlim=(0, 1), ylim=(-0.1 * top, 1.05 * top))
        axes.set(xlabel="threshold probability", ylabel="net benefit")
        axes.legend(loc="lower left")
        axes.set_title("Decision curve")
    return figure


def plot_reliability(
    labels: np.ndarray, probabilities: np.ndarray, uncalibrated: np.ndarray
) -> Figure:
    """Plot the fraction with pneumonia against the predicted probability, above a histogram.

    Args:
        labels: Integers 0 or 1, of shape (n,).
        probabilities: Probabilities that the model returns, of shape (n,).
        uncalibrated: Probabilities before calibration, of shape (n,).
    """
    with styled_figure(5, 5.6) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        above.plot([0, 1], [0, 1], ":", color=GRAY, label="perfect calibration")
        for values, color, style, name in [
            (uncalibrated, ORANGE, "s--", "before calibration"),
            (probabilities, BLUE, "o-", "after calibration"),
        ]:
            above.plot(*_calibration_curve(labels, values), style, color=color, label=name, ms=5)
        set_unit_square(above, "", "fraction with pneumonia")
        above.legend(loc="upper left")
        above.set_title("Reliability diagram")
        below.hist(
            [probabilities[labels == 0], probabilities[labels == 1]],
            bins=np.linspace(0, 1, N_BINS + 1),
            color=[BLUE, ORANGE],
            label=["NORMAL", "PNEUMONIA"],
        )
        below.set(xlabel="predicted probability of pneumonia", ylabel="images")
        below.legend(fontsize=9, loc="upper center")
    return figure


def _calibration_curve(labels: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean probability and fraction of positives in each non-empty tenth."""
    bin_of = bin_numbers(values, N_BINS)
    counts = np.bincount(bin_of, minlength=N_BINS)
    non_empty = counts > 0
    means = [
        np.bincount(bin_of, weights=weights, minlength=N_BINS)[non_empty]
        for weights in (values, labels)
    ]
    return means[0] / counts[non_empty], means[1] / counts[non_empty]


def plot_learning_curves(epochs: pd.DataFrame) -> Figure:
    """Plot loss and AUC of each epoch, with a line for each network.

    In both losses the classes have equal weight. Those of training are means over the batches of an
    epoch, with augmentation and dropout.

    Args:
        epochs: Columns loss, auc, val_loss, val_auc and network, index epoch from 1.
    """
    with styled_figure(9, 3.6) as figure:
        for axes, name, title in zip(
            figure.subplots(1, 2),
            ("loss", "auc"),
            ("Loss, with equal weight of both classes", "AUC"),
            strict=True,
        ):
            for number, part in epochs.groupby("network"):
                training, validation = ("training", "validation") if number == 0 else (None, None)
                axes.plot(part.index, part[name], "s--", color=ORANGE, ms=4, label=training)
                axes.plot(part.index, part[f"val_{name}"], "o-", color=BLUE, ms=4, label=validation)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set(xlabel="epoch", title=title)
            axes.legend()
    return figure


def plot_worst_errors(
    predictions: pd.DataFrame,
    images: np.ndarray,
    threshold: float,
    heat_maps: Callable[[np.ndarray], np.ndarray],
) -> Figure:
    """Plot the errors of both kinds of which the model is most certain, with heat maps.

    Args:
        predictions: Columns path, label (0 or 1) and probability, index from 0.
        images: uint8 array of shape (rows, size, size, 1), in the order of `predictions`.
        threshold: Probability from which an image is positive.
        heat_maps: A `heat_maps.HiResCam` of one model. It is called with the images shown alone.
    """
    values, labels = predictions["probability"], predictions["label"]
    missed = predictions[(labels == 1) & (values < threshold)].sort_values("probability")
    alarms = predictions[(labels == 0) & (values >= threshold)].sort_values("probability")[::-1]
    kinds = [
        (f"PNEUMONIA predicted as NORMAL: {len(missed)}", missed),
        (f"NORMAL predicted as PNEUMONIA: {len(alarms)}", alarms),
    ]
    heights = [4.8 if len(rows) else 0.5 for _, rows in kinds]  # inches
    with styled_figure(2 * N_WORST, sum(heights)) as figure:
        parts = figure.subfigures(2, 1, height_ratios=heights)
        for part, (title, rows) in zip(parts, kinds, strict=True):
            note = f", the {N_WORST} farthest from the threshold" if len(rows) > N_WORST else ""
            part.suptitle(title + note, fontsize=12)
            worst = rows[:N_WORST]
            maps = heat_maps(images[worst.index])
            for place, (row, heat) in enumerate(zip(worst.itertuples(), maps, strict=True), 1):
                pixels = images[row.Index, ..., 0]
                draw_image(part.add_subplot(2, N_WORST, place), pixels, _short_title(row))
                draw_image(
                    part.add_subplot(2, N_WORST, N_WORST + place), overlay_heat_map(pixels, heat)
                )
    return figure


def _short_title(row: Any) -> str:
    name = PurePosixPath(row.path).stem
    short_name = name if len(name) <= 24 else f"{name[:11]}…{name[-12:]}"
    return f"{short_name}\nprobability {row.probability:.3f}"


def overlay_heat_map(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Draw a heat map over an image, dark red to bright yellow.

    Args:
        pixels: Gray image: uint8 array of shape (H, W).
        heat: Numbers from 0 to 1, of shape (H, W). Where the heat is 0 the image does not change.

    Returns:
        uint8 array of shape (H, W, 3).
    """
    gray = np.repeat(pixels[..., np.newaxis] / 255, 3, axis=-1)
    color = matplotlib.colormaps["inferno"](heat)[..., :3]
    opacity = MAX_OPACITY * heat[..., np.newaxis]
    return np.round(255 * ((1 - opacity) * gray + opacity * color)).astype(np.uint8)
