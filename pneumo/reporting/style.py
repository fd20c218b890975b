"""One style for all figures."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
CLASS_COLOURS = {"NORMAL": BLUE, "PNEUMONIA": ORANGE}


@contextmanager
def styled_figure(width: float, height: float) -> Iterator[Figure]:
    """A figure of that many inches, drawn in the one style."""
    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def to_png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file)
    return file.getvalue()


def draw_image(axes: Axes, pixels: np.ndarray, title: str = "") -> None:
    """Draw a gray image, uint8, shape (H, W), without axes."""
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
    axes.set_axis_off()
    axes.set_title(title, fontsize=9)


def set_unit_square(axes: Axes, across: str, up: str) -> None:
    """Give both axes the range from 0 to 1, and their labels."""
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=across, ylabel=up)
