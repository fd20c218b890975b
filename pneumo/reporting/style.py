"""One style for all plots."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# A plain Figure has no window and is in no global list, so nothing has to be closed.

# Okabe and Ito's colors, which color-blind readers can distinguish; also for the two classes
BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#767676"
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
CLASS_COLORS = {"NORMAL": BLUE, "PNEUMONIA": ORANGE}


@contextmanager
def styled_figure(width: float, height: float) -> Iterator[Figure]:
    """Create a figure and apply the common style inside the block.

    Args:
        width: Width in inches.
        height: Height in inches.

    Yields:
        The figure.
    """
    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def to_png(figure: Figure) -> bytes:
    """Return a figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file)
    return file.getvalue()


def draw_image(axes: Axes, pixels: np.ndarray, title: str = "") -> None:
    """Draw a gray image without axes.

    Args:
        axes: Where to draw it.
        pixels: uint8 array of shape (H, W).
        title: Title above the image.
    """
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
    axes.set_axis_off()
    axes.set_title(title, fontsize=9, parse_math=False)  # file names may contain $


def set_unit_square(axes: Axes, across: str, up: str) -> None:
    """Set the range of both axes to 0 to 1, and set their labels.

    Args:
        axes: The axes.
        across: Label of the x axis.
        up: Label of the y axis.
    """
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=across, ylabel=up)
