"""What people see in the terminal: bars and tables there, plain lines in a log."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self, TypeVar

from joblib import cpu_count
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import track as rich_track
from rich.table import Table

from pneumo.parallel import gpus

T = TypeVar("T")

_LOG_WIDTH = 160  # columns of a table in a log
console = Console(width=None if Console().is_terminal else _LOG_WIDTH, highlight=False)


def say(line: str) -> None:
    """One line, never wrapped, with no markup in it."""
    console.print(line, markup=False, soft_wrap=True)


def say_epoch(epoch: int, metrics: Mapping[str, float]) -> None:
    """One line for an epoch of a run that is not part of a study."""
    say(f"epoch {epoch}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))


def track(items: Iterable[T], total: int, what: str, unit: str = "images") -> Iterator[T]:
    """`items`, with a progress bar on a terminal and one line before them elsewhere."""
    if not console.is_terminal:
        say(f"{what}: {total} {unit}")
    hidden = not console.is_terminal
    yield from rich_track(items, what, total, console=console, transient=True, disable=hidden)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table with numbers and words as they are given."""
    shown = Table(title=title, title_justify="left")
    for column in columns:
        shown.add_column(column, no_wrap=True)
    for row in rows:
        shown.add_row(*map(str, row))
    console.print(shown)


class StudyDisplay:
    """One line for each trial that ends; on a terminal also a bar with the trial at work.

    Of several workers each has a line with its own. `then` is called after each trial.
    """

    def __init__(
        self, trials: int, workers: int = 1, then: Callable[[], None] = lambda: None
    ) -> None:
        self._then = then
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=trials)
        self._workers = [
            self._bar.add_task(f"worker {number}: starting", total=None)
            for number in range(workers if workers > 1 else 0)
        ]

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def epoch(
        self, trial: int, epoch: int, metrics: Mapping[str, float], worker: int | None = None
    ) -> None:
        """Shows how far the trial at work has come, here or in a worker, counted from 0."""
        line = f"trial {trial}, epoch {epoch}: val AUC {metrics['val_auc']:.4f}"
        if worker is None:
            self._bar.update(self._task, description=line)
        else:
            self._bar.update(self._workers[worker], description=f"worker {worker}: {line}")

    def trial(self, line: str, done: int) -> None:
        """Prints the line of a trial that has ended; `done` counts those that count."""
        say(line)
        self._bar.update(self._task, completed=done)
        self._then()

    def note(self, line: str) -> None:
        """Prints any other line."""
        say(line)


# Keeps what it reads until a mark says whether to show it; without one, because the process that
# wrote it has died, it does
_UNLESS_WELL = """
import sys
said, line = [], b""
for line in sys.stdin.buffer:
    if line.endswith((b"\\0\\n", b"\\1\\n")):
        said.append(line[:-2])
        break
    said.append(line)
if not line.endswith(b"\\0\\n"):
    sys.stderr.buffer.writelines(said)
"""


@contextmanager
def quiet_if_well(well: Callable[[], bool]) -> Iterator[None]:
    """What is written to standard error is seen only if this ends badly, or `well` then says so.

    TensorFlow greets with lines about the processor before its own log level applies. Why it ends
    the process, if it does, another process must tell.
    """
    command = [sys.executable, "-ISc", _UNLESS_WELL]
    # A session of its own: an interrupt is for this process
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as other:
        kept = os.dup(2)
        os.dup2(other.stdin.fileno(), 2)
        mark = b"\1\n"
        try:
            yield
            mark = b"\0\n" if well() else mark
        except KeyboardInterrupt:
            mark = b"\0\n"
            raise
        finally:
            os.write(2, mark)
            os.dup2(kept, 2)
            os.close(kept)


def import_tensorflow() -> None:
    """Imports TensorFlow without its greetings, with as many threads as there are cores for it.

    Where a GPU is asked for and not found they are shown: they say why.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for pool in ("INTRA", "INTER"):  # its own count is that of the machine, not of a container
        os.environ.setdefault(f"TF_NUM_{pool}OP_THREADS", str(cpu_count()))

    def finds_what_is_asked_for() -> bool:
        found = tensorflow.config.list_physical_devices("GPU")
        return bool(found) or not gpus()

    with quiet_if_well(finds_what_is_asked_for):
        import tensorflow
    # Every model compiles its own functions, which TensorFlow takes for a mistake
    tensorflow.get_logger().setLevel("ERROR")
