"""Fast import of TensorFlow without its start-up messages."""

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
def stderr_on_failure_only(succeeded: Callable[[], bool]) -> Iterator[None]:
    """Hide what the block writes to standard error, unless the block fails.

    TensorFlow writes lines about the processor before its own log level applies. Everything written
    is shown if the block raises an `Exception` or `succeeded()` is false after it. It is also shown
    if the process dies in the block: TensorFlow aborts on a processor that it does not support.
    """
    saved_stderr, show = os.dup(2), False
    with tempfile.TemporaryFile() as output, _copied_if_process_dies(output):
        os.dup2(output.fileno(), 2)
        try:
            yield
            show = not succeeded()
        except Exception:
            show = True
            raise
        finally:
            os.dup2(saved_stderr, 2)
            os.close(saved_stderr)
            if show:
                output.seek(0)
                os.write(2, output.read())


# Program of the process that outlives this one: its first read returns when this one has ended
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
    """Let another process copy a file to standard error if this process dies in the block.

    After an abort this process could not do that. The other process starts in the background, and
    adds 1 to 5 ms to a command.
    """
    read_end, write_end = os.pipe()
    command = [sys.executable, "-IS", "-c", _COPY_AT_END, str(file.fileno())]
    # In a session of its own, the other process gets no signal that is meant for this one
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
    """Disable garbage collection during the first import of a large module.

    Later collections ignore the module's objects, too (`gc.freeze`). On two cores, a process that
    imports TensorFlow takes 2.6 s from start to end instead of 3.9 s. The measured command is
    time python -c "import tensorflow", and with gc.disable() before it and gc.freeze() after it.
    """
    if module in sys.modules:  # garbage that exists by now must not be frozen
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def import_tensorflow() -> None:
    """Import TensorFlow without its start-up messages, with one thread per available core.

    The messages are shown if TensorFlow does not find an existing GPU, because they explain why.
    TensorFlow allocates GPU memory as needed, so that several processes can share a GPU.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    for pool in ("INTRA", "INTER"):  # TensorFlow counts the machine's cores, not the container's
        os.environ.setdefault(f"TF_NUM_{pool}OP_THREADS", str(cpu_count()))

    def gpus_found_if_visible() -> bool:
        devices = tensorflow.config.list_physical_devices("GPU")
        return bool(devices) or not visible_gpus()

    with stderr_on_failure_only(gpus_found_if_visible), gc_frozen_import("tensorflow"):
        import tensorflow
    # Every model compiles its own functions, about which TensorFlow would warn
    tensorflow.get_logger().setLevel("ERROR")
