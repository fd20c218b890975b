"""Work on many images in threads, and its fast end after Ctrl-C."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from math import inf
from pathlib import Path

import numpy as np
import psutil
import pytest
from joblib import cpu_count
from PIL import Image

from pneumo.inference.batches import BATCH_SIZE, MAX_AHEAD, map_batches, map_in_threads
from tests.support.commands import start
from tests.support.paths import ROOT
from tests.support.studies import until

TAKEN = MAX_AHEAD * cpu_count()  # items that are at most taken before the caller has had a result
SOON = 15  # seconds to end after a signal, of which 3 are allowed and the rest is for slow machines


class Calls:
    """A function of a number, which counts its calls and blocks in them while it is held."""

    def __init__(self):
        self.begun, self.go_on = [], threading.Event()

    def __call__(self, number: int) -> int:
        self.begun.append(number)
        self.go_on.wait(timeout=30)
        if number == 13:
            raise TimeoutError("thirteen")
        return number * number


@pytest.fixture
def calls():
    calls = Calls()
    yield calls
    calls.go_on.set()


def test_results_come_in_the_order_of_the_items():
    def wait(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    seconds = [0.2, 0.0, 0.1, 0.0] * 5
    assert list(map_in_threads(wait, iter(seconds))) == seconds
    assert list(map_in_threads(wait, [])) == []


def test_only_so_many_items_are_taken_ahead_of_the_caller(calls):
    calls.go_on.set()
    numbers = iter(range(10_000))
    results = map_in_threads(calls, numbers)
    assert next(results) == 0
    assert next(numbers) == TAKEN + 1  # the generator has taken those before
    assert max(calls.begun) <= TAKEN
    results.close()


@pytest.mark.parametrize(
    ("max_threads", "expected"), [(inf, cpu_count()), (1, 1), (cpu_count() + 1, cpu_count())]
)
def test_so_many_items_are_worked_on_at_once(max_threads, expected):
    names = set()

    def wait(_: int) -> None:
        names.add(threading.current_thread().name)
        time.sleep(0.05)

    list(map_in_threads(wait, range(4 * cpu_count()), max_threads))
    assert len(names) == expected


def test_an_exception_comes_at_its_place_and_ends_the_rest(calls):
    calls.go_on.set()
    results = map_in_threads(calls, range(10_000))
    assert [next(results) for _ in range(13)] == [number * number for number in range(13)]
    with pytest.raises(TimeoutError, match="thirteen"):
        next(results)
    assert max(calls.begun) <= 13 + TAKEN
    assert list(results) == []


def test_what_is_queued_does_not_start_when_the_caller_stops(calls):
    def stop_after_the_first(results):
        with pytest.raises(ZeroDivisionError):
            for _ in results:
                raise ZeroDivisionError

    calls.go_on.set()
    results = map_in_threads(calls, range(10_000))
    next(results)
    calls.go_on.clear()
    until(lambda: len(calls.begun) == len(set(calls.begun)) >= cpu_count())
    stop_after_the_first(results)
    results.close()  # returns although calls are held
    begun = len(calls.begun)
    calls.go_on.set()
    time.sleep(0.5)
    assert len(calls.begun) == begun


def test_batches_hold_the_same_rows_of_all_sequences():
    rows = np.arange(2 * BATCH_SIZE + 3)
    batches = list(map_batches(lambda a, b: (a.tolist(), b), rows, [str(row) for row in rows]))
    assert [len(a) for a, _ in batches] == [BATCH_SIZE, BATCH_SIZE, 3]
    assert [row for a, _ in batches for row in a] == rows.tolist()
    assert all(b == [str(row) for row in a] for a, b in batches)


# Each of these takes minutes
ONE_ITEM = """
import time
from pneumo.inference.batches import map_in_threads
work = map_in_threads(time.sleep, [300])
"""
PROFILE = """
import numpy as np
from pneumo.evaluation.dataset.profile import _pixel_statistics
from pneumo.inference.batches import map_batches

work = map_batches(_pixel_statistics, np.broadcast_to(np.uint8(0), (2000, 3000, 3000)))
"""
INTERRUPTED = """
from pneumo.runtime import signals
signals.install_handlers()
try:
    print("begun", flush=True)
    list(work)
except KeyboardInterrupt:
    print("interrupted", flush=True)
signals.exit_process(1)
"""


def ended_soon(process: subprocess.Popen) -> tuple[str, str]:
    """Send Ctrl-C to a process that has just begun, and return its output and its errors."""
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=SOON)
    finally:
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("work", [ONE_ITEM, PROFILE], ids=["one item", "profile"])
def test_ctrl_c_waits_neither_for_what_is_queued_nor_for_what_runs(work):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", work + INTERRUPTED], cwd=ROOT, **pipes)
    assert process.stdout.readline() == "begun\n"
    assert ended_soon(process) == ("interrupted\n", "")
    assert process.returncode == 1


def write(folder: Path, image: bytes, size: int, count: int) -> Path:
    """Make a data set of different files: the same image, and zeros up to `size` bytes."""
    for split in ("train", "test"):
        for name in ("NORMAL/IM-{}-0001.png", "PNEUMONIA/person{}_virus_1.png"):
            for number in range(count // 4):
                file = folder / split / name.format(number)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(image + f"{split}{name}{number}".encode())
                os.truncate(file, max(size, file.stat().st_size))  # zeros take no space on a disk
    return folder


def black(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (side, side)).save(file, "PNG")
    return file.getvalue()


def reads_from(process: subprocess.Popen, folder: Path) -> bool:
    files = psutil.Process(process.pid).open_files()
    return any(Path(file.path).is_relative_to(folder) for file in files)


@pytest.mark.slow
def test_ctrl_c_while_files_are_hashed(store, tmp_path, own_cache):
    folder = write(tmp_path / "xrays", black(8), 200 << 20, 1600)
    process = start("explore", "--data", str(folder))
    until(lambda: reads_from(process, folder))
    output, errors = ended_soon(process)
    assert (process.returncode, output) == (1, "")
    assert errors == "pneumo: interrupted; finished work is kept\n"
    assert store.search_runs(["0"]) == []


@pytest.mark.slow
def test_ctrl_c_while_images_are_decoded(store, tmp_path, own_cache):
    folder = write(tmp_path / "xrays", black(8000), 0, 400)
    process = start("explore", "--data", str(folder))
    assert process.stdout.readline() == "Decoding to 224 px: 400 images\n"
    output, errors = ended_soon(process)
    assert (process.returncode, output) == (1, "")
    assert errors == "pneumo: interrupted; finished work is kept\n"
    assert [run.info.status for run in store.search_runs(["0"])] == ["KILLED"]
    assert not list((own_cache / "pixels").iterdir())  # not even a part, which could be believed
