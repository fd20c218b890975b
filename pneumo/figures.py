"""Pictures of the numbers, in one style."""

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from sklearn import metrics

from pneumo.evaluation import bootstrap
from pneumo.evaluation.metrics import Evaluation

# A plain Figure belongs to no window and no global list: nothing to close, nothing leaks.

# Okabe and Ito's colours, which the colour-blind can tell apart; NORMAL and PNEUMONIA, too
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#767676"
STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "figure.dpi": 120,
}
BINS = 10  # of probabilities, in the reliability diagram
WORST = 5  # errors of each kind in the gallery
SAMPLES = 8  # images of each class and split
OPACITY = 0.6  # of the colour where an image speaks for pneumonia the most
CLASS_COLOURS = {"NORMAL": BLUE, "PNEUMONIA": ORANGE}


@contextmanager
def _drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure of that many inches, drawn in the one style."""
    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file)
    return file.getvalue()


def confusion_matrix(confusion: Mapping[str, int], title: str) -> Figure:
    """The four counts, and each as a share of its row: shaded by that share, light to dark."""
    rows = [
        ("NORMAL", confusion["tn"], confusion["fp"]),
        ("PNEUMONIA", confusion["fn"], confusion["tp"]),
    ]
    shares = [[count / max(1, sum(counts)) for count in counts] for _, *counts in rows]
    with _drawing(5, 4.5) as figure:
        axes = figure.add_subplot()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, (_, *counts) in enumerate(rows):
            for column, count in enumerate(counts):
                share = shares[row][column]
                axes.text(
                    column,
                    row,
                    f"{count:,}\n{share:.1%}",
                    ha="center",
                    va="center",
                    fontsize=15,
                    color="white" if share > 0.5 else "black",
                )
        names = [name for name, *_ in rows]
        axes.set_xticks([0, 1], names)
        axes.set_yticks([0, 1], names, rotation=90, va="center")
        axes.grid(visible=False)
        axes.set(xlabel="predicted", ylabel="actual", title=title)
    return figure


def confusion_matrix_file(split: str, evaluation: Evaluation) -> dict[str, bytes]:
    """Return the file `confusion_matrix.png` of an evaluation, to be stored with it."""
    title = (
        f"{split}: AUC {evaluation.metrics['auc']:.3f}, "
        f"threshold {evaluation.metrics['threshold']:.3f}"
    )
    return {"confusion_matrix.png": png(confusion_matrix(evaluation.confusion, title))}


def roc(predictions: pd.DataFrame, threshold: float) -> Figure:
    """The ROC curve with its 95 % band by patient, and where the threshold lies on it."""
    labels, values = predictions["label"], predictions["probability"]
    false_positives, found, _ = metrics.roc_curve(labels, values)
    low, high = bootstrap.roc_band(predictions, bootstrap.draw_patients(predictions))
    with _drawing(5, 4.8) as figure:
        axes = figure.add_subplot()
        axes.fill_between(bootstrap.GRID, low, high, color=BLUE, alpha=0.2, lw=0, label="95 %")
        axes.plot(false_positives, found, color=BLUE, label="model")
        axes.plot([0, 1], [0, 1], ":", color=GREY, label="chance")
        called = values >= threshold
        at = called[labels == 0].mean(), called[labels == 1].mean()
        axes.plot(*at, "o", color=ORANGE, label=f"threshold {threshold:.3f}", clip_on=False)
        _square(axes, "1 − specificity", "sensitivity")
        axes.legend(loc="lower right")
        axes.set_title(f"ROC, area {metrics.roc_auc_score(labels, values):.3f}")
    return figure


def precision_recall(predictions: pd.DataFrame, threshold: float) -> Figure:
    """Precision against sensitivity with its 95 % band by patient, and the threshold on it."""
    labels, values = predictions["label"], predictions["probability"]
    precision, found, _ = metrics.precision_recall_curve(labels, values)
    low, high = bootstrap.precision_band(predictions, bootstrap.draw_patients(predictions))
    with _drawing(5, 4.8) as figure:
        axes = figure.add_subplot()
        axes.fill_between(bootstrap.GRID, low, high, color=BLUE, alpha=0.2, lw=0, label="95 %")
        axes.plot(found, precision, color=BLUE, drawstyle="steps-post", label="model")
        axes.axhline(labels.mean(), ls=":", color=GREY, label="all called pneumonia")
        called = values >= threshold
        if called.any():
            at = called[labels == 1].mean(), labels[called].mean()
            axes.plot(*at, "o", color=ORANGE, label=f"threshold {threshold:.3f}", clip_on=False)
        _square(axes, "sensitivity (recall)", "positive predictive value (precision)")
        axes.legend(loc="lower left")
        area = metrics.average_precision_score(labels, values)
        axes.set_title(f"Precision and recall, average {area:.3f}")
    return figure


def reliability(labels: np.ndarray, probabilities: np.ndarray, uncalibrated: np.ndarray) -> Figure:
    """How often pneumonia is there where the model says how likely it is; how many say so.

    `probabilities`: as the model gives them; `uncalibrated`: before the temperature.
    """
    with _drawing(5, 5.6) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        above.plot([0, 1], [0, 1], ":", color=GREY, label="perfect")
        for values, colour, style, name in [
            (uncalibrated, ORANGE, "s--", "before scaling"),
            (probabilities, BLUE, "o-", "the model"),
        ]:
            above.plot(*_frequencies(labels, values), style, color=colour, label=name, ms=5)
        _square(above, "", "share with pneumonia")
        above.legend(loc="upper left")
        above.set_title("Are the probabilities true?")
        below.hist(
            [probabilities[labels == 0], probabilities[labels == 1]],
            bins=np.linspace(0, 1, BINS + 1),
            color=[BLUE, ORANGE],
            label=["NORMAL", "PNEUMONIA"],
        )
        below.set(xlabel="probability of pneumonia", ylabel="images")
        below.legend(fontsize=9, loc="upper center")
    return figure


def _frequencies(labels: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean probability and share of pneumonia in each tenth of the probabilities that has any."""
    bin_of = np.minimum((values * BINS).astype(int), BINS - 1)
    counts = np.bincount(bin_of, minlength=BINS)
    some = counts > 0
    means = [np.bincount(bin_of, weights=it, minlength=BINS)[some] for it in (values, labels)]
    return means[0] / counts[some], means[1] / counts[some]


def learning_curves(epochs: pd.DataFrame) -> Figure:
    """Plot loss and AUC of each epoch: columns loss, auc, val_loss, val_auc, index epoch from 1.

    In both losses the classes weigh the same. Those of training are means over the batches of an
    epoch, with augmentation and dropout.
    """
    with _drawing(9, 3.6) as figure:
        for axes, name, title in zip(
            figure.subplots(1, 2),
            ("loss", "auc"),
            ("Loss, both classes weighing the same", "AUC"),
            strict=True,
        ):
            axes.plot(epochs.index, epochs[name], "s--", color=ORANGE, ms=4, label="training")
            axes.plot(epochs.index, epochs[f"val_{name}"], "o-", color=BLUE, ms=4, label="val")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set(xlabel="epoch", title=title)
            axes.legend()
    return figure


def worst_errors(
    predictions: pd.DataFrame,
    images: np.ndarray,
    threshold: float,
    heat_maps: Callable[[np.ndarray], np.ndarray],
) -> Figure:
    """The images that the model is wrong about and the surest of, of both kinds, with heat maps.

    `images`: uint8, shape (rows, size, size, 1), in the order of `predictions`; `heat_maps`: an
    `heat_maps.HiResCam` of one model, which is called with the images shown alone.
    """
    values, labels = predictions["probability"], predictions["label"]
    missed = predictions[(labels == 1) & (values < threshold)].sort_values("probability")
    alarms = predictions[(labels == 0) & (values >= threshold)].sort_values("probability")[::-1]
    kinds = [
        (f"PNEUMONIA called NORMAL: {len(missed)}", missed),
        (f"NORMAL called PNEUMONIA: {len(alarms)}", alarms),
    ]
    heights = [4.8 if len(rows) else 0.5 for _, rows in kinds]  # inches
    with _drawing(2 * WORST, sum(heights)) as figure:
        parts = figure.subfigures(2, 1, height_ratios=heights)
        for part, (title, rows) in zip(parts, kinds, strict=True):
            shown = f", the {WORST} furthest from the threshold" if len(rows) > WORST else ""
            part.suptitle(title + shown, fontsize=12)
            worst = rows[:WORST]
            maps = heat_maps(images[worst.index])
            for place, (row, heat) in enumerate(zip(worst.itertuples(), maps, strict=True), 1):
                pixels = images[row.Index, ..., 0]
                _picture(part.add_subplot(2, WORST, place), pixels, _short_title(row))
                _picture(part.add_subplot(2, WORST, WORST + place), overlay(pixels, heat))
    return figure


def _picture(axes: Axes, pixels: np.ndarray, title: str = "") -> None:
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
    axes.set_axis_off()
    axes.set_title(title, fontsize=9)


def _short_title(row: Any) -> str:
    name = PurePosixPath(row.path).stem
    shown = name if len(name) <= 24 else f"{name[:11]}…{name[-12:]}"
    return f"{shown}\nprobability {row.probability:.3f}"


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """An image with its heat map upon it, dark red to bright yellow: uint8, shape (H, W, 3).

    `pixels`: uint8, shape (H, W); `heat`: 0 to 1, shape (H, W); where that is 0 nothing changes.
    """
    grey = np.repeat(pixels[..., np.newaxis] / 255, 3, axis=-1)
    colour = matplotlib.colormaps["inferno"](heat)[..., :3]
    share = OPACITY * heat[..., np.newaxis]
    return np.round(255 * ((1 - share) * grey + share * colour)).astype(np.uint8)


def samples(files: pd.DataFrame, pixels: np.ndarray, seed: int = 0) -> Figure:
    """Some images of each class and split, drawn at random.

    `files`: columns split, class and path, its index the places in `pixels`, uint8, shape (n, size,
    size).
    """
    groups = list(files.groupby(["class", "split"], observed=True))
    with _drawing(1.4 * SAMPLES, 1.75 * len(groups)) as figure:
        for part, ((name, split), rows) in zip(
            np.atleast_1d(figure.subfigures(len(groups), 1)), groups, strict=True
        ):
            part.suptitle(f"{name}, {split}", fontsize=11)
            drawn = rows.sample(min(SAMPLES, len(rows)), random_state=seed)
            for place, position in enumerate(drawn.index):
                _picture(part.add_subplot(1, SAMPLES, place + 1), pixels[position])
    return figure


def images_per_patient(sizes: pd.Series) -> Figure:
    """How many patients have how many images, by split: images of each, index (split, patient)."""
    with _drawing(5, 3.6) as figure:
        axes = figure.add_subplot()
        for (split, counts), marker in zip(
            sizes.groupby(level="split", observed=True), "os^", strict=False
        ):
            patients = counts.value_counts().sort_index()
            axes.plot(patients.index, patients, marker, ls=":", ms=5, label=split)
        axes.set(xlabel="images of a patient", ylabel="patients", yscale="log")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
        axes.set_title("Images per patient")
    return figure


def distributions(files: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """How columns of `files` are spread within each `class`; `titles`: column → what it is."""
    with _drawing(4.2 * len(titles), 3.4) as figure:
        for axes, (column, title) in zip(
            np.atleast_1d(figure.subplots(1, len(titles))), titles.items(), strict=True
        ):
            axes.set_title(title)
            values = files[column]
            if values.nunique() == 1:
                axes.text(0.5, 0.5, f"constant here:\n{values.iloc[0]:,g}", ha="center")
                axes.set_axis_off()
                continue
            bins = np.linspace(values.min(), values.max(), 41)
            for name, rows in files.groupby("class"):
                shares = np.full(len(rows), 1 / len(rows))
                axes.hist(
                    rows[column], bins, weights=shares, color=CLASS_COLOURS[name], alpha=0.5,
                    label=name,
                )  # fmt: skip
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axes.legend(fontsize=9)
    return figure


def spreads(files: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Boxes of columns of `files`, 5 to 95 %, for each `split` and `class`."""
    groups = list(files.groupby(["split", "class"], observed=True))
    with _drawing(4.6 * len(titles), 3.6) as figure:
        for axes, (column, title) in zip(
            np.atleast_1d(figure.subplots(1, len(titles))), titles.items(), strict=True
        ):
            boxes = axes.boxplot(
                [rows[column] for _, rows in groups],
                tick_labels=[f"{split}\n{name}" for (split, name), _ in groups],
                whis=(5, 95),
                showfliers=False,
                patch_artist=True,
                medianprops={"color": "black"},
            )
            for box, ((_, name), _) in zip(boxes["boxes"], groups, strict=True):
                box.set(facecolor=CLASS_COLOURS[name], alpha=0.6)
            axes.tick_params(axis="x", labelsize=8)
            axes.grid(visible=False, axis="x")
            axes.set_title(title)
    return figure


def _square(axes: Axes, across: str, up: str) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=across, ylabel=up)
