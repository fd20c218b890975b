"""The budget of the cache: the order of eviction, and entries in use."""

import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from pneumo.runtime import cache, cache_entries
from pneumo.runtime.cache_entries import (
    DOWNLOADED,
    GIB,
    RUNS,
    _is_current,
    _sizes,
    available_bytes,
    evict_least_recently_used,
    hold,
    limit,
    make_held,
    release,
    remove_leftovers,
)
from pneumo.runtime.errors import UserError
from pneumo.training import feature_cache
from tests.support.cache import keep, make
from tests.support.paths import ROOT

KEYS = [f"{number:064}" for number in range(10)]


@pytest.fixture
def small_budget(own_cache, monkeypatch) -> Path:
    """Set a budget of 100 units of 1,000 bytes; each entry has some more for its own files."""
    monkeypatch.setattr(cache_entries, "GIB", 1000)
    monkeypatch.setenv("PNEUMO_CACHE_GIB", "100")
    return own_cache


UNIT = 1000
LITTLE = 29_000  # that with an entry's own files is less than 30 units


def test_the_least_recently_used_entry_of_all_kinds_is_evicted_first(small_budget):
    newest = make(f"pixels/{KEYS[1]}", LITTLE, used=4)
    oldest = make(f"features/{KEYS[2]}", LITTLE, used=1)
    middle = make(f"perturbed/{KEYS[3]}", LITTLE, used=3)
    evict_least_recently_used(0)
    assert oldest.is_dir()
    evict_least_recently_used(30 * UNIT)
    assert not oldest.exists()
    assert middle.is_dir()
    evict_least_recently_used(60 * UNIT)
    assert not middle.exists()
    assert newest.is_dir()
    evict_least_recently_used(200 * UNIT)
    assert not newest.exists()
    assert list((small_budget / "pixels").iterdir()) == []


def test_last_use_decides_about_eviction(small_budget):
    first = make(f"pixels/{KEYS[1]}", LITTLE, used=1)
    second = make(f"pixels/{KEYS[2]}", LITTLE, used=2)
    release(keep(f"pixels/{KEYS[1]}"))
    evict_least_recently_used(70 * UNIT)
    assert first.is_dir()
    assert not second.exists()


def test_downloads_are_evicted_last(small_budget):
    archive = make(f"archives/{KEYS[1]}", LITTLE, used=1)
    (archive / DOWNLOADED).touch()
    os.utime(archive, (1, 1))
    downloads = small_budget / "downloads"
    make_held(downloads)
    (downloads / "a.zip.part").write_bytes(bytes(LITTLE))
    release(downloads)
    sample = make("sample-1", LITTLE, used=9)
    evict_least_recently_used(30 * UNIT)
    assert not sample.exists()
    assert archive.is_dir()
    evict_least_recently_used(60 * UNIT)
    assert not archive.exists()
    assert downloads.is_dir()
    evict_least_recently_used(100 * UNIT)
    assert not downloads.exists()


def test_only_own_files_are_removed(small_budget):
    foreign = [
        small_budget / name
        for name in ("downloads", "pixels/holiday", "sample-2", "mine", ".mine.draft", "run-1")
    ]
    for folder in foreign:
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(bytes(100_000))
    evict_least_recently_used(200 * UNIT)
    assert all((folder / "file").is_file() for folder in foreign)


def test_a_needed_entry_may_exceed_the_budget(sample, own_cache, monkeypatch):
    monkeypatch.setenv("PNEUMO_CACHE_GIB", "0")
    other = make(f"pixels/{KEYS[1]}")
    images = sample.decode(32, 0)
    assert images.pixels.shape == (546, 32, 32)
    assert not other.exists()
    assert images.dataset.base.is_dir()


@pytest.mark.parametrize("variable", ["PNEUMO_CACHE_GIB", "PNEUMO_FEATURES"])
@pytest.mark.parametrize("text", ["many", "-1", "1.5"])
def test_an_invalid_budget_is_rejected(own_cache, monkeypatch, variable, text):
    monkeypatch.setenv(variable, text)
    with pytest.raises(
        UserError, match=f"^{variable} must be a non-negative integer.* got '{text}'$"
    ):
        limit()


def test_the_older_variable_counts_if_the_new_one_is_not_set(monkeypatch):
    assert limit() == 20 * GIB
    monkeypatch.setenv("PNEUMO_FEATURES", "3")
    assert limit() == 3 * GIB
    monkeypatch.setenv("PNEUMO_CACHE_GIB", "0")
    assert limit() == 0


def test_the_budget_leaves_half_of_the_free_disk(own_cache, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(cache_entries.shutil, "disk_usage", lambda _: usage(free=3 * GIB))
    assert available_bytes([]) == 1.5 * GIB
    monkeypatch.setenv("PNEUMO_CACHE_GIB", "1")
    assert available_bytes([]) == GIB


def test_entries_of_others_in_use_reduce_the_budget_and_own_entries_do_not(small_budget):
    used, unused = (make(f"features/{KEYS[number]}", LITTLE) for number in (1, 2))
    assert available_bytes([]) == 100 * UNIT
    hold(used)
    size = sum(path.stat().st_size for path in used.iterdir())
    assert available_bytes([]) == 100 * UNIT - size
    assert available_bytes([f"features/{KEYS[1]}"]) == 100 * UNIT
    assert unused.is_dir()


# Holds an entry, or makes a run's folder or a draft, says so, and waits
HOLDER = """
import os, sys
from pathlib import Path
from pneumo.runtime import cache
from pneumo.runtime.cache_entries import cache_path
from pneumo.runtime.cache_entries import run_folder

what, name = sys.argv[1:]
def wait(path):
    print(path, flush=True)
    sys.stdin.readline()

if what == "entry":
    wait(cache.get_or_build(name, lambda draft: (draft / "data").write_bytes(bytes(1000))))
elif what == "run":
    with run_folder() as run:
        cache.get_or_build(f"{run}/{name}", lambda draft: (draft / "data").write_bytes(bytes(1000)))
        wait(cache_path(run))
elif what == "draft":
    cache.get_or_build(name, wait)
"""


@pytest.fixture
def start():
    """Start a process that uses the cache; return it and the folder that it uses."""
    started = []

    def start_one(*arguments: str) -> tuple[subprocess.Popen, Path]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", HOLDER, *arguments],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1], Path(started[-1].stdout.readline().strip())

    yield start_one
    for one in started:
        one.kill()
        one.communicate()


def test_what_a_living_process_uses_stays(small_budget, start):
    holder, entry = start("entry", f"pixels/{KEYS[1]}")
    evict_least_recently_used(200 * UNIT)
    assert entry.is_dir()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    evict_least_recently_used(200 * UNIT)
    assert not entry.exists()


@pytest.mark.parametrize("what", ["run", "draft"])
def test_what_a_killed_process_has_left_is_removed_by_the_next_use(own_cache, start, what):
    name = KEYS[1] if what == "run" else f"features/{KEYS[1]}"
    dead, left = start(what, name)
    _, in_use = start(what, KEYS[2] if what == "run" else f"pixels/{KEYS[2]}")
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    assert left.is_dir()
    _, entry = start("entry", f"pixels/{KEYS[3]}")
    assert not left.exists()
    assert in_use.is_dir()
    assert entry.is_dir()


def test_a_process_finds_no_entry_that_is_being_removed(small_budget, monkeypatch):
    """Another process is about to remove an entry when this one requests it."""
    entry = make(f"pixels/{KEYS[1]}", used=1)
    is_current = _is_current

    def late(descriptor: int, found: Path) -> bool:
        if found == entry and entry.exists():  # its lock file is open
            subprocess.run(["mv", entry, small_budget / "trash"], check=True)
        return is_current(descriptor, found)

    monkeypatch.setattr(cache_entries, "_is_current", late)
    assert not hold(entry)
    monkeypatch.setattr(cache_entries, "_is_current", is_current)
    built = cache.get_or_build(
        f"pixels/{KEYS[1]}", lambda draft: (draft / "data").write_bytes(b"new")
    )
    assert (built / "data").read_bytes() == b"new"


def test_an_entry_is_held_from_its_draft_on(small_budget):
    removed = []

    def build(draft: Path) -> None:
        (draft / "data").write_bytes(b"new")
        remove_leftovers()
        evict_least_recently_used(200 * UNIT)
        removed.append(not draft.is_dir())

    entry = cache.get_or_build(f"pixels/{KEYS[1]}", build)
    evict_least_recently_used(200 * UNIT)
    assert removed == [False]
    assert entry.is_dir()
    release(entry)
    evict_least_recently_used(200 * UNIT)
    assert not entry.exists()


def test_entries_removed_during_the_count_are_skipped(small_budget, monkeypatch):
    stays, goes = (make(f"features/{KEYS[number]}", LITTLE, used=number) for number in (1, 2))
    scan = os.scandir

    def scan_late(folder):
        if str(folder) == str(goes):
            shutil.rmtree(goes)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scan_late)
    sizes = _sizes()
    assert sizes[stays] > LITTLE
    assert sizes.get(goes, 0) == 0
    assert feature_cache.CACHE_DIR == RUNS
