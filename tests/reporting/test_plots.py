"""What plots show."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pneumo.reporting import plots
from pneumo.reporting.style import to_png
from pneumo.tracking import results

pytestmark = pytest.mark.slow


def test_pictures_show_the_errors_furthest_from_the_threshold():
    count = 20
    table = pd.DataFrame(
        {
            "path": [f"test/NORMAL/IM-{number:04d}-$_$1.png" for number in range(count)],
            "label": [0, 1] * (count // 2),
            "probability": np.linspace(0, 1, count),
        }
    )
    pixels = (
        np.zeros((count, 8, 8, 1), np.uint8) + np.arange(count, dtype=np.uint8)[:, None, None, None]
    )
    requested = []

    def heat_maps(images):
        requested.append(images)
        return (images[..., 0] > 10).astype(float)

    figure = plots.plot_worst_errors(table, pixels, 0.5, heat_maps)
    above, below = figure.subfigs
    wrong = [10, 12, 14, 16, 18], [1, 3, 5, 7, 9]
    assert above.get_suptitle() == "PNEUMONIA predicted as NORMAL: 5"
    assert below.get_suptitle() == "NORMAL predicted as PNEUMONIA: 5"
    for part, expected in ((above, wrong[1]), (below, wrong[0][::-1])):
        plain, explained = part.axes[0::2], part.axes[1::2]
        shown = [int(axes.images[0].get_array()[0, 0]) for axes in plain]
        assert shown == expected
        titles = [axes.get_title().split()[0] for axes in plain]
        assert titles == [f"IM-{number:04d}-$_$1" for number in expected]  # no formula
        for number, axes in zip(expected, explained, strict=True):
            heat = np.full((8, 8), float(number > 10))
            picture = plots.overlay_heat_map(pixels[number, ..., 0], heat)
            assert (axes.images[0].get_array() == picture).all()
    assert [len(images) for images in requested] == [5, 5]  # no more than are shown
    Image.open(io.BytesIO(to_png(figure))).verify()
    none = plots.plot_worst_errors(table[table["label"] == 0], pixels, 1.01, heat_maps)
    assert [part.get_suptitle()[-2:] for part in none.subfigs] == [" 0", " 0"]
    Image.open(io.BytesIO(to_png(none))).verify()


def test_learning_curves_are_those_of_the_run(study):
    best = study.study.best_trial
    epochs = results.read_epochs(best.user_attrs["run_id"])
    assert set(epochs) == {"loss", "auc", "val_loss", "val_auc", "network"}
    assert epochs["val_auc"].to_dict() == best.intermediate_values
    figure = plots.plot_learning_curves(epochs)
    assert figure.axes[0].get_title() == "Loss, with equal weight of both classes"
    for axes, name in zip(figure.axes, ("loss", "auc"), strict=True):
        lines = {line.get_label(): line for line in axes.lines}
        assert list(lines["training"].get_ydata()) == list(epochs[name])
        assert list(lines["validation"].get_ydata()) == list(epochs[f"val_{name}"])
    Image.open(io.BytesIO(to_png(figure))).verify()
    # a network that stopped early, and the next one
    several = epochs.set_index(pd.Index([1, 3])).assign(network=[0, 1])
    lines = plots.plot_learning_curves(several).axes[1].lines
    assert [list(line.get_xdata()) for line in lines] == [[1], [1], [3], [3]]
