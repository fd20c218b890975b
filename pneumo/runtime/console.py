"""What people see in the terminal: a display and tables there, plain lines in a log."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from rich import box
from rich.console import Console
from rich.progress import track as rich_track
from rich.table import Table

from pneumo.runtime import signals

T = TypeVar("T")

_LOG_WIDTH = 160  # columns of a table in a log
console = Console(width=None if Console().is_terminal else _LOG_WIDTH, highlight=False)


def echo(line: str) -> None:
    """One line, never wrapped, with no markup in it."""
    console.print(line, markup=False, soft_wrap=True)


def print_epoch(epoch: int, metrics: Mapping[str, float]) -> None:
    """One line for an epoch of a run that is not part of a study."""
    echo(f"epoch {epoch}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))


def supports_live_display() -> bool:
    """Whether lines can be drawn again where they are, as on most terminals."""
    return console.is_terminal and not console.is_dumb_terminal


def track(items: Iterable[T], total: int, what: str, unit: str = "images") -> Iterator[T]:
    """`items`, with a progress bar on a terminal and one line before them elsewhere."""
    if not supports_live_display():
        echo(f"{what}: {total} {unit}")
    shown = {"console": console, "transient": True, "disable": not supports_live_display()}
    for item in rich_track(items, what, total, **shown):
        signals.raise_if_interrupted()
        yield item


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table with numbers and words as they are given.

    Where it is too wide the names of its columns are broken, and nothing of it is left out.
    """
    rows = list(rows)
    shown = _table(title, columns, rows)
    unbounded = console.options.update_width(10_000)
    if console.measure(shown, options=unbounded).maximum > console.width:
        broken = [name.replace("_", "\n").replace(" ", "\n") for name in columns]
        shown = _table(title, broken, rows)
    console.print(shown)


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    shown.padding, shown.pad_edge = (0, 1, 0, 0), False
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*map(str, row))
    return shown
