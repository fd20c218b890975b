"""Plots of a data set."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from pneumo.reporting.style import CLASS_COLORS, draw_image, styled_figure

N_SAMPLES = 8  # images of each class and split


def plot_samples(files: pd.DataFrame, pixels: np.ndarray, seed: int = 0) -> Figure:
    """Plot some images of each class and split, drawn at random.

    Args:
        files: Columns split, class and path; its index contains positions in `pixels`.
        pixels: Images: uint8 array of shape (n, size, size).
        seed: Seed of the random choice.
    """
    groups = list(files.groupby(["class", "split"], observed=True))
    with styled_figure(1.4 * N_SAMPLES, 1.75 * len(groups)) as figure:
        for part, ((name, split), rows) in zip(
            np.atleast_1d(figure.subfigures(len(groups), 1)), groups, strict=True
        ):
            part.suptitle(f"{name}, {split}", fontsize=11)
            chosen = rows.sample(min(N_SAMPLES, len(rows)), random_state=seed)
            for place, position in enumerate(chosen.index):
                draw_image(part.add_subplot(1, N_SAMPLES, place + 1), pixels[position])
    return figure


def plot_images_per_patient(sizes: pd.Series) -> Figure:
    """Plot how many patients have how many images, by split.

    Args:
        sizes: Number of images of each patient, index (split, patient).
    """
    with styled_figure(5, 3.6) as figure:
        axes = figure.add_subplot()
        for (split, counts), marker in zip(
            sizes.groupby(level="split", observed=True), "os^", strict=False
        ):
            patients = counts.value_counts().sort_index()
            axes.plot(patients.index, patients, marker, ls=":", ms=5, label=split)
        axes.set(xlabel="images per patient", ylabel="patients", yscale="log")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
        axes.set_title("Images per patient")
    return figure


def plot_distributions(files: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Plot histograms of columns for each class.

    Args:
        files: Column class, and the columns to plot.
        titles: Column → its title.
    """
    with styled_figure(4.2 * len(titles), 3.4) as figure:
        for axes, (column, title) in zip(
            np.atleast_1d(figure.subplots(1, len(titles))), titles.items(), strict=True
        ):
            axes.set_title(title)
            values = files[column]
            if values.nunique() == 1:
                axes.text(0.5, 0.5, f"constant:\n{values.iloc[0]:,g}", ha="center")
                axes.set_axis_off()
                continue
            bins = np.linspace(values.min(), values.max(), 41)
            for name, rows in files.groupby("class"):
                shares = np.full(len(rows), 1 / len(rows))
                axes.hist(
                    rows[column], bins, weights=shares, color=CLASS_COLORS[name], alpha=0.5,
                    label=name,
                )  # fmt: skip
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axes.legend(fontsize=9)
    return figure


def plot_boxplots(files: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Plot box plots of columns for each split and class, with whiskers from 5 to 95 %.

    Args:
        files: Columns split and class, and the columns to plot.
        titles: Column → its title.
    """
    groups = list(files.groupby(["split", "class"], observed=True))
    with styled_figure(4.6 * len(titles), 3.6) as figure:
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
                box.set(facecolor=CLASS_COLORS[name], alpha=0.6)
            axes.tick_params(axis="x", labelsize=8)
            axes.grid(visible=False, axis="x")
            axes.set_title(title)
    return figure
