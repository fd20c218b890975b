"""What people see in the terminal: a display and tables there, plain lines in a log."""

import gc
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import BinaryIO, Self, TypeVar

from joblib import cpu_count
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import track as rich_track
from rich.progress_bar import ProgressBar
from rich.table import Column, Table

from pneumo import interrupt
from pneumo.config import SCORES
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


def say_to(tell: Callable[[str], None]) -> None:
    """From now on `tell` gets each line that this process would print.

    A worker's own would break into what its driver draws on the same terminal.
    """
    global console
    lines = _Lines(tell)
    console = Console(file=lines, width=_LOG_WIDTH, force_terminal=False, highlight=False)


class _Lines(io.StringIO):
    """A file that passes on the lines that are written to it, each written at once."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._tell = tell

    def write(self, text: str) -> int:
        """As `io.TextIOBase.write`."""
        for line in text.splitlines():
            self._tell(line)
        return len(text)


def _draws() -> bool:
    """Whether lines can be drawn again where they are, as on most terminals."""
    return console.is_terminal and not console.is_dumb_terminal


def track(items: Iterable[T], total: int, what: str, unit: str = "images") -> Iterator[T]:
    """`items`, with a progress bar on a terminal and one line before them elsewhere."""
    if not _draws():
        say(f"{what}: {total} {unit}")
    shown = {"console": console, "transient": True, "disable": not _draws()}
    for item in rich_track(items, what, total, **shown):
        interrupt.check()
        yield item


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
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


class StudyDisplay:
    """How far a study has come: drawn in one place on a terminal, a line for each trial elsewhere.

    `done` and `best`, the best trial's number and score, are what it begins with; after
    `deadline`, seconds since 1970, no trial starts. How long it will take is told from the trials
    that end while it is shown. On a terminal only those that failed get a line of their own.
    `then` is called after each trial. `objective`: the metric of an epoch that is shown.
    """

    def __init__(
        self,
        trials: int,
        workers: int = 1,
        done: int = 0,
        best: tuple[int, float] | None = None,
        deadline: float | None = None,
        then: Callable[[], None] = lambda: None,
        objective: str = "val_auc",
    ) -> None:
        self._then = then
        self._objective = objective
        self._trials, self._done, self._best, self._deadline = trials, done, best, deadline
        names = [f"worker {number}" for number in range(workers)] if workers > 1 else ["now"]
        self._work = {name: (name, "", "starting") for name in names}
        self._workers = workers
        self._took: list[float] = []  # seconds of each trial that has ended since it is shown
        self._last = 0.0  # when one has
        self._live = Live(
            get_renderable=self._drawing,
            console=console,
            refresh_per_second=2,
            redirect_stderr=sys.stderr.isatty(),
        )

    def __enter__(self) -> Self:
        if _draws():
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._work.clear()  # what stays on the terminal is what has been reached
        self._live.stop()

    def epoch(
        self, trial: int, epoch: int, metrics: Mapping[str, float], worker: int | None = None
    ) -> None:
        """Shows how far the trial at work has come, here or in a worker, counted from 0."""
        score = self._scored(metrics[self._objective])
        self._row(worker, score, f"trial {trial}, epoch {epoch}")

    def trial(
        self,
        line: str,
        done: int,
        best: tuple[int, float] | None,
        took: float | None,
        worker: int | None = None,
    ) -> None:
        """As `work.Display.trial`, here or in a worker."""
        if took is None or not _draws():
            say(line)
        self._row(worker, "", "starting")
        # Of several workers the one that has counted first may be heard last
        self._done = max(self._done, done)
        self._best = max(filter(None, (self._best, best)), key=_score, default=None)
        if took is not None:
            self._took.append(took)
            self._last = time.monotonic()
        self._then()

    def note(self, line: str) -> None:
        """Prints any other line."""
        say(line)

    def leave(self, worker: int) -> None:
        """Shows that a worker has ended."""
        self._row(worker, "", "ended")

    def _row(self, worker: int | None, score: str, what: str) -> None:
        name = "now" if worker is None or "now" in self._work else f"worker {worker}"
        self._work[name] = name, score, what

    def _drawing(self) -> Group:
        above = Table.grid(Column(), Column(no_wrap=True), padding=(0, 2))
        # As wide whatever is said beside it, for which there is room in 80 columns
        bar = ProgressBar(self._trials, self._done, width=min(30, max(4, console.width - 48)))
        above.add_row(bar, f"{self._done} of {self._trials} trials{self._left()}")
        columns = (Column(min_width=width, no_wrap=True) for width in (0, len(self._scored(0)), 0))
        below = Table.grid(*columns, padding=(0, 2))
        for row in self._rows():
            below.add_row(*row)
        return Group(above, below)

    def _rows(self) -> Iterator[tuple[str, str, str]]:
        if self._best:
            number, score = self._best
            yield "best", self._scored(score), f"trial {number}"
        else:
            yield "best", "none yet", ""
        yield from list(self._work.values())

    def _scored(self, value: float) -> str:
        return f"{SCORES[self._objective]} {value:.4f}"

    def _left(self) -> str:
        """How long the rest takes, if what has been seen goes on; '' where that is not known."""
        nothing_is_at_work = not self._work
        if not self._took or self._done >= self._trials or nothing_is_at_work:
            return ""
        each = sum(self._took) / len(self._took) / self._workers
        seconds = each * (self._trials - self._done) - (time.monotonic() - self._last)
        if self._deadline:
            seconds = min(seconds, self._deadline - time.time())
        return f", {_about(seconds)} left"


def _score(best: tuple[int, float]) -> float:
    return best[1]


def _about(seconds: float) -> str:
    """A time in so few words that it does not change all the time."""
    hours, minutes = divmod(round(max(0, seconds) / 60), 60)
    if hours:
        return f"about {hours} h {minutes} min"
    return f"about {minutes} min" if minutes else "less than a minute"


@contextmanager
def quiet_if_well(well: Callable[[], bool]) -> Iterator[None]:
    """Hide what is written to standard error, unless the block fails.

    TensorFlow writes lines about the processor before its own log level applies. Everything
    written is shown if the block raises an `Exception`, if the process dies in it, as TensorFlow's
    check of the processor ends it, or if `well()` is false after it.
    """
    kept, shown = os.dup(2), False
    with tempfile.TemporaryFile() as said, _copied_if_process_dies(said):
        os.dup2(said.fileno(), 2)
        try:
            yield
            shown = not well()
        except Exception:
            shown = True
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            if shown:
                said.seek(0)
                os.write(2, said.read())


# The program of a process that outlives this one: the first read returns when this one has ended
_COPY_AT_END = """
import os, sys
os.read(0, 1)
file = int(sys.argv[1])
os.lseek(file, 0, os.SEEK_SET)
while text := os.read(file, 65536):
    os.write(2, text)
"""


@contextmanager
def _copied_if_process_dies(file: BinaryIO) -> Iterator[None]:
    """Have another process copy a file to standard error if this process dies in the block.

    Nothing in this process could do that after an abort. The other process starts while this one
    goes on, and adds 1 to 5 ms to a command.
    """
    read_end, write_end = os.pipe()
    command = [sys.executable, "-IS", "-c", _COPY_AT_END, str(file.fileno())]
    # In a session of its own the other process gets no signal that is meant for this one
    process = subprocess.Popen(
        command, stdin=read_end, pass_fds=[file.fileno()], start_new_session=True
    )
    os.close(read_end)
    try:
        yield
    finally:
        process.kill()
        process.wait()
        os.close(write_end)


@contextmanager
def uncollected(module: str) -> Iterator[None]:
    """For the first import of a large module: no collection, now or later, goes through it.

    Those of TensorFlow take 2.6 s from start to end instead of 3.9 s on two cores: time python -c
    "import tensorflow", and with gc.disable() before it and gc.freeze() after it.
    """
    if module in sys.modules:  # what is garbage by now must not stay
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def import_tensorflow() -> None:
    """Import TensorFlow without its greetings, with as many threads as there are cores for it.

    The greetings are shown if a GPU is there and TensorFlow does not find it: they say why. Of a
    GPU's memory TensorFlow takes what it needs, not all at once, so that processes can share it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    for pool in ("INTRA", "INTER"):  # its own count is that of the machine, not of a container
        os.environ.setdefault(f"TF_NUM_{pool}OP_THREADS", str(cpu_count()))

    def finds_what_is_asked_for() -> bool:
        found = tensorflow.config.list_physical_devices("GPU")
        return bool(found) or not gpus()

    with quiet_if_well(finds_what_is_asked_for), uncollected("tensorflow"):
        import tensorflow
    # Every model compiles its own functions, which TensorFlow takes for a mistake
    tensorflow.get_logger().setLevel("ERROR")
