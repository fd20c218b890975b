"""Import TensorFlow without its greetings, and as fast as it can be."""

import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from joblib import cpu_count

from pneumo.runtime.machine import visible_gpus


@contextmanager
def stderr_on_failure_only(well: Callable[[], bool]) -> Iterator[None]:
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
def gc_frozen_import(module: str) -> Iterator[None]:
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
        return bool(found) or not visible_gpus()

    with stderr_on_failure_only(finds_what_is_asked_for), gc_frozen_import("tensorflow"):
        import tensorflow
    # Every model compiles its own functions, which TensorFlow takes for a mistake
    tensorflow.get_logger().setLevel("ERROR")
