"""The first import of TensorFlow: its settings, and its output after a failure."""

import gc
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest

from pneumo.runtime.tensorflow_import import gc_frozen_import, stderr_on_failure_only
from tests.support.paths import ROOT

# In place of TensorFlow: it aborts where the real one finds a processor too old for it
ABORTING = """
import os
os.write(2, f"GPU memory grows: {os.environ['TF_FORCE_GPU_ALLOW_GROWTH']}\\n".encode())
os.write(2, b"no AVX here\\n")
os.abort()
"""


@pytest.mark.slow
def test_an_abort_in_the_import_of_tensorflow_is_shown(tmp_path, monkeypatch):
    (tmp_path / "tensorflow.py").write_text(ABORTING)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "pneumo", "train", "--data", "sample"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == -signal.SIGABRT
    assert process.stderr == "GPU memory grows: true\nno AVX here\n"


@pytest.mark.slow
def test_the_reason_for_a_missing_gpu_is_shown(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "97")
    code = "from pneumo.runtime.tensorflow_import import import_tensorflow; import_tensorflow()"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0
    assert "failed call to cuInit" in process.stderr


def test_gc_is_off_during_the_first_import_and_its_objects_are_frozen():
    frozen = gc.get_freeze_count()
    with gc_frozen_import("gc"):  # that is here, and garbage must not stay
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen
    with pytest.raises(ImportError), gc_frozen_import("one that is not here"):
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen
    gc.unfreeze()


def test_gpu_memory_grows_unless_it_is_disabled(tmp_path):
    """A stub of TensorFlow writes the settings at its import."""
    (tmp_path / "tensorflow.py").write_text(
        "import os\nprint(os.environ['TF_FORCE_GPU_ALLOW_GROWTH'])\nraise ImportError\n"
    )
    code = "from pneumo.runtime.tensorflow_import import import_tensorflow; import_tensorflow()"
    for given, found in (({}, "true"), ({"TF_FORCE_GPU_ALLOW_GROWTH": "false"}, "false")):
        process = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", **given},
            capture_output=True,
            text=True,
        )
        assert process.stdout == f"{found}\n"


NATIVE = """
import os, signal
from pneumo.runtime.tensorflow_import import stderr_on_failure_only
with stderr_on_failure_only(lambda: {well}):
    os.write(2, b"a line\\nand more")
    {then}
os.write(2, b"after it")
"""


@pytest.mark.parametrize(
    ("well", "then", "shown"),
    [
        (True, "pass", "after it"),
        (False, "pass", "a line\nand moreafter it"),
        (True, "raise ValueError('x')", "a line\nand moreTraceback .*ValueError: x\n"),
        (True, "raise KeyboardInterrupt", "Traceback .*KeyboardInterrupt\n"),
        (True, "os.abort()", "a line\nand more"),
        (True, "os.kill(os.getpid(), signal.SIGILL)", "a line\nand more"),
        (True, "os.killpg(0, signal.SIGKILL)", "a line\nand more"),
        (True, "os._exit(3)", "a line\nand more"),
        (True, "os.write(2, 2_000_000 * b'x'); os.abort()", "a line\nand morex{2000000}"),
    ],
)
def test_output_of_native_code_is_shown_after_a_failure(well, then, shown):
    code = NATIVE.format(well=well, then=then)
    command = [sys.executable, "-c", code]
    process = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, start_new_session=True
    )
    assert re.fullmatch(shown, process.stderr, re.DOTALL)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_the_process_that_waits_for_an_abort_ends(error, capfd):
    files, processes = os.listdir("/dev/fd"), psutil.Process().children()
    with suppress(ValueError, KeyboardInterrupt), stderr_on_failure_only(lambda: True):
        os.write(2, b"a line")
        if error:
            raise error
    assert capfd.readouterr().err == ("a line" if error is ValueError else "")
    assert os.listdir("/dev/fd") == files
    assert psutil.Process().children() == processes  # one that has ended would be there, too
