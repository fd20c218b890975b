"""What people see in the terminal: a display and tables there, plain lines in a log."""

import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import BinaryIO, TypeVar

from joblib import cpu_count
from rich import box
from rich.console import Console
from rich.progress import track as rich_track
from rich.table import Table

from pneumo import interrupt
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


def draws() -> bool:
    """Whether lines can be drawn again where they are, as on most terminals."""
    return console.is_terminal and not console.is_dumb_terminal


def track(items: Iterable[T], total: int, what: str, unit: str = "images") -> Iterator[T]:
    """`items`, with a progress bar on a terminal and one line before them elsewhere."""
    if not draws():
        say(f"{what}: {total} {unit}")
    shown = {"console": console, "transient": True, "disable": not draws()}
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
