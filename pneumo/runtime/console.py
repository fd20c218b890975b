"""Console output: lines and tables, and a live display if the output is a terminal."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from rich import box
from rich.console import Console
from rich.progress import track as rich_track
from rich.table import Table

from pneumo.runtime import signals

T = TypeVar("T")

_LOG_WIDTH = 160  # characters per line of a table in a log
console = Console(width=None if Console().is_terminal else _LOG_WIDTH, highlight=False)


def echo(line: str) -> None:
    """Print one line, without wrapping and without markup."""
    console.print(line, markup=False, soft_wrap=True)


def print_epoch(epoch: int, metrics: Mapping[str, float]) -> None:
    """Print one line about an epoch of a run that is not part of a study.

    Args:
        epoch: Number of the epoch, from 1.
        metrics: Name → value.
    """
    echo(f"epoch {epoch}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))


def supports_live_display() -> bool:
    """Return whether lines can be redrawn in place, as on most terminals."""
    return console.is_terminal and not console.is_dumb_terminal


def track(items: Iterable[T], total: int, what: str, unit: str = "images") -> Iterator[T]:
    """Yield `items`, with a progress bar on a terminal or one line before them elsewhere.

    Args:
        items: Items to iterate over.
        total: Number of items.
        what: Title of the progress bar.
        unit: Plural noun for the items.

    Yields:
        The items.

    Raises:
        KeyboardInterrupt: A signal has arrived: see `signals.raise_if_interrupted`.
    """
    if not supports_live_display():
        echo(f"{what}: {total} {unit}")
    options = {"console": console, "transient": True, "disable": not supports_live_display()}
    for item in rich_track(items, what, total, **options):
        signals.raise_if_interrupted()
        yield item


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table, with numbers and words as they are.

    If the table is too wide, its column names are split into lines; no content is cut.

    Args:
        title: Title above the table.
        columns: Names of the columns.
        rows: Rows, with one value per column.
    """
    rows = list(rows)
    table = _table(title, columns, rows)
    unbounded = console.options.update_width(10_000)
    if console.measure(table, options=unbounded).maximum > console.width:
        wrapped = [name.replace("_", "\n").replace(" ", "\n") for name in columns]
        table = _table(title, wrapped, rows)
    console.print(table)


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    table.padding, table.pad_edge = (0, 1, 0, 0), False
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    return table
