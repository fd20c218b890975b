"""What is kept: verified by checksums, within a budget, never taken from a process that uses it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from pneumo import features, models, perturb, process
from pneumo.config import RunConfig
from pneumo.data import cache, cache_entries, checksums, pixels
from pneumo.data.cache_entries import GIB, hold, make_room, release, room_for
from pneumo.errors import Mistake
from pneumo.features import Features, Frozen, View
from tests.support.paths import ROOT
from tests.support.weights import SMALL


@dataclass
class Kind:
    """One kind of what is kept: its file, how to get its values, and how often it was built."""

    file: str
    values: Callable[[], np.ndarray]
    builds: list[Path]


@pytest.fixture(params=["pixels", "perturbed", "features"])
def kind(request, sample, weights, own_cache, monkeypatch) -> Kind:
    rows = sample.rows.groupby(["split", "label"]).head(20).reset_index(drop=True)
    few, builds = replace(sample, rows=rows), []
    split = few.decode(32, 0).split("val")
    if request.param == "pixels":
        shutil.rmtree(own_cache)
        module, build = pixels, "_fill"
        found = Kind("pixels.npy", lambda: few.decode(32, 0).pixels, builds)
    elif request.param == "perturbed":
        module, build = cache, "require_space"  # which each build asks once
        found = Kind("pixels.npy", lambda: perturb.perturbed(split, perturb.EACH).pixels, builds)
    else:
        config = RunConfig(**SMALL, weights=str(weights))
        store = Features(Frozen(models.backbone(config), config.backbone), config, 0)
        module, build = Features, "_compute"
        found = Kind("features.npy", lambda: store.of(View(split), 0), builds)
    original = getattr(module, build)

    def counted(*given):
        builds.append(given)
        return original(*given)

    monkeypatch.setattr(module, build, counted)
    found.group = own_cache / request.param
    return found


def entry_of(kind: Kind) -> Path:
    [entry] = [it for it in kind.group.iterdir() if not it.name.startswith(".")]
    return entry


def zero_half(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        opened.write(bytes(file.stat().st_size // 2))


def zero_half_unseen(file: Path) -> None:
    state = file.stat()
    zero_half(file)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


def boot_again(monkeypatch, boot_id: str = "another") -> None:
    monkeypatch.setattr(process, "_boot_id", lambda: boot_id)


def truncate(file: Path) -> None:
    os.truncate(file, 1000)


def break_checksums(file: Path) -> None:
    (file.parent / checksums.CHECKSUMS).write_text("{")


def forget_checksums(file: Path) -> None:
    """As a version has left it that wrote none."""
    for name in (checksums.CHECKSUMS, checksums.VERIFIED):
        (file.parent / name).unlink()


def add_file(file: Path) -> None:
    (file.parent / "stray").touch()


@pytest.mark.parametrize("damage", [zero_half, truncate, Path.unlink, add_file])
def test_what_was_changed_is_built_again_once(kind, damage):
    expected = np.array(kind.values())
    assert expected.any()
    for _ in range(2):
        assert np.array_equal(kind.values(), expected)
    assert len(kind.builds) == 1
    damage(entry_of(kind) / kind.file)
    for _ in range(2):
        assert np.array_equal(kind.values(), expected)
    assert len(kind.builds) == 2


@pytest.mark.parametrize("damage", [zero_half_unseen, break_checksums, forget_checksums])
def test_bytes_that_a_loss_of_power_took_are_found_after_the_boot(kind, damage, monkeypatch):
    expected = np.array(kind.values())
    damage(entry_of(kind) / kind.file)
    boot_again(monkeypatch)
    for _ in range(2):
        assert np.array_equal(kind.values(), expected)
    assert len(kind.builds) == 2


@pytest.fixture
def read(monkeypatch) -> list[Path]:
    """The files whose checksums are computed from now on."""
    found, checksum = [], checksums._checksum
    monkeypatch.setattr(checksums, "_checksum", lambda file: found.append(file) or checksum(file))
    return found


def forget_process(monkeypatch) -> None:
    """From now on this process knows no more than one that has just started."""
    monkeypatch.setattr(checksums, "_verified", {})


def make(name: str, size: int = 1000, used: int | None = None) -> Path:
    """An entry that no process uses, in the cache under that name."""
    entry = cache.keep(name, lambda draft: (draft / "data").write_bytes(os.urandom(size)))
    release(entry)
    if used is not None:
        os.utime(entry, (used, used))
    return entry


def keep(name: str) -> Path:
    return cache.keep(name, pytest.fail)


def test_an_entry_is_read_once_per_boot(own_cache, monkeypatch, read):
    file = make("pixels/1") / "data"
    assert read.count(file.parent.parent / file) == 0
    read.clear()
    forget_process(monkeypatch)
    keep("pixels/1")
    assert read == []  # it was sealed in this boot
    for boot_id in ("second", "third"):
        boot_again(monkeypatch, boot_id)
        for _ in range(3):
            forget_process(monkeypatch)
            keep("pixels/1")
        assert read == [file]
        marker = json.loads((file.parent / checksums.VERIFIED).read_text())
        state = file.stat()
        files = {"data": [state.st_size, state.st_mtime_ns]}
        assert marker == {"boot_id": boot_id, "files": files}
        read.clear()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"boot_id": "other", "files": {}}', None])
def test_a_marker_that_is_broken_or_missing_means_reading_again(own_cache, monkeypatch, read, text):
    entry = make("pixels/1")
    marker = entry / checksums.VERIFIED
    expected = marker.read_text()
    marker.unlink() if text is None else marker.write_text(text)
    read.clear()
    forget_process(monkeypatch)
    keep("pixels/1")
    assert read == [entry / "data"]
    assert marker.read_text() == expected


def test_a_file_that_was_touched_is_read_again_and_stays(own_cache, read):
    entry = make("pixels/1")
    content = (entry / "data").read_bytes()
    read.clear()
    os.utime(entry / "data", ns=(1, 1))
    for _ in range(2):
        keep("pixels/1")
    assert read == [entry / "data"]
    assert (entry / "data").read_bytes() == content


def test_without_an_id_of_the_boot_each_process_reads_once(own_cache, monkeypatch, read):
    boot_again(monkeypatch, "")
    entry = make("pixels/1")
    for _ in range(2):
        read.clear()
        forget_process(monkeypatch)
        for _ in range(2):
            keep("pixels/1")
        assert read == [entry / "data"]


@pytest.fixture
def remount(tmp_path, monkeypatch) -> Callable[[str], None]:
    """Makes the disk of the cache read-only (`ro`) or writable (`rw`)."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.call(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]):
        pytest.skip("needs to be root, to make a small disk")
    monkeypatch.setenv("PNEUMO_CACHE", str(disk))
    yield lambda mode: subprocess.run(["mount", "-o", f"remount,{mode}", disk], check=True)
    for entry in list(cache_entries._held):
        release(entry)
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("has_lock_file", [True, False])
def test_a_read_only_cache_is_verified_by_each_process(remount, monkeypatch, read, has_lock_file):
    entry = make("pixels/1")
    if not has_lock_file:
        (entry / cache_entries.IN_USE).unlink()
    read.clear()
    remount("ro")
    boot_again(monkeypatch)
    for _ in range(2):
        forget_process(monkeypatch)
        for _ in range(2):
            keep("pixels/1")
    assert read == [entry / "data"] * 2
    cache_entries.remove_leftovers()
    assert entry.is_dir()


def test_no_file_of_a_build_is_ours_and_all_of_a_folder_count(own_cache):
    def build(draft: Path) -> None:
        (draft / "below").mkdir()
        (draft / "below" / "file").write_bytes(b"abc")

    entry = cache.keep("pixels/1", build)
    found = json.loads((entry / checksums.CHECKSUMS).read_text())
    assert found == {"below/file": [3, 0x352441C2]}  # CRC-32 of abc
    assert {it.name for it in entry.iterdir()} == {
        *("below", cache_entries.IN_USE, checksums.CHECKSUMS, checksums.VERIFIED)
    }


KEYS = [f"{number:064}" for number in range(10)]


@pytest.fixture
def small_budget(own_cache, monkeypatch) -> Path:
    """A budget of 100 units of 1,000 bytes, each entry having a little more for its own files."""
    monkeypatch.setattr(cache_entries, "GIB", 1000)
    monkeypatch.setenv("PNEUMO_CACHE_GIB", "100")
    return own_cache


UNIT = 1000
LITTLE = 29_000  # that with an entry's own files is less than 30 units


def test_the_least_recently_used_of_all_kinds_makes_room_first(small_budget):
    newest = make(f"pixels/{KEYS[1]}", LITTLE, used=4)
    oldest = make(f"features/{KEYS[2]}", LITTLE, used=1)
    middle = make(f"perturbed/{KEYS[3]}", LITTLE, used=3)
    make_room(0)
    assert oldest.is_dir()
    make_room(30 * UNIT)
    assert not oldest.exists()
    assert middle.is_dir()
    make_room(60 * UNIT)
    assert not middle.exists()
    assert newest.is_dir()
    make_room(200 * UNIT)
    assert not newest.exists()
    assert list((small_budget / "pixels").iterdir()) == []


def test_use_is_what_counts(small_budget):
    first = make(f"pixels/{KEYS[1]}", LITTLE, used=1)
    second = make(f"pixels/{KEYS[2]}", LITTLE, used=2)
    release(keep(f"pixels/{KEYS[1]}"))
    make_room(70 * UNIT)
    assert first.is_dir()
    assert not second.exists()


def test_what_only_a_download_brings_back_goes_last(small_budget):
    archive = make(f"archives/{KEYS[1]}", LITTLE, used=1)
    (archive / cache_entries.DOWNLOADED).touch()
    os.utime(archive, (1, 1))
    downloads = small_budget / "downloads"
    cache_entries.make_held(downloads)
    (downloads / "a.zip.part").write_bytes(bytes(LITTLE))
    release(downloads)
    sample = make("sample-1", LITTLE, used=9)
    make_room(30 * UNIT)
    assert not sample.exists()
    assert archive.is_dir()
    make_room(60 * UNIT)
    assert not archive.exists()
    assert downloads.is_dir()
    make_room(100 * UNIT)
    assert not downloads.exists()


def test_nothing_but_what_is_surely_ours_is_removed(small_budget):
    foreign = [
        small_budget / name
        for name in ("downloads", "pixels/holiday", "sample-2", "mine", ".mine.draft", "run-1")
    ]
    for folder in foreign:
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(bytes(100_000))
    make_room(200 * UNIT)
    assert all((folder / "file").is_file() for folder in foreign)


def test_what_must_be_made_is_made_beyond_the_budget(sample, own_cache, monkeypatch):
    monkeypatch.setenv("PNEUMO_CACHE_GIB", "0")
    other = make(f"pixels/{KEYS[1]}")
    images = sample.decode(32, 0)
    assert images.pixels.shape == (546, 32, 32)
    assert not other.exists()
    assert images.dataset.base.is_dir()


@pytest.mark.parametrize("variable", ["PNEUMO_CACHE_GIB", "PNEUMO_FEATURES"])
@pytest.mark.parametrize("text", ["many", "-1", "1.5"])
def test_a_budget_that_is_no_number_is_refused(own_cache, monkeypatch, variable, text):
    monkeypatch.setenv(variable, text)
    with pytest.raises(Mistake, match=f"^{variable} must be a whole number.* got '{text}'$"):
        cache_entries.limit()


def test_the_older_variable_counts_if_the_new_one_is_not_set(monkeypatch):
    assert cache_entries.limit() == 20 * GIB
    monkeypatch.setenv("PNEUMO_FEATURES", "3")
    assert cache_entries.limit() == 3 * GIB
    monkeypatch.setenv("PNEUMO_CACHE_GIB", "0")
    assert cache_entries.limit() == 0


def test_the_budget_leaves_half_of_the_free_disk(own_cache, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(cache_entries.shutil, "disk_usage", lambda _: usage(free=3 * GIB))
    assert room_for([]) == 1.5 * GIB
    monkeypatch.setenv("PNEUMO_CACHE_GIB", "1")
    assert room_for([]) == GIB


def test_what_others_use_is_no_room_and_what_is_ones_own_is(small_budget):
    used, unused = (make(f"features/{KEYS[it]}", LITTLE) for it in (1, 2))
    assert room_for([]) == 100 * UNIT
    hold(used)
    size = sum(it.stat().st_size for it in used.iterdir())
    assert room_for([]) == 100 * UNIT - size
    assert room_for([f"features/{KEYS[1]}"]) == 100 * UNIT
    assert unused.is_dir()


# Holds an entry, or makes a run's folder or a draft, says so, and waits
HOLDER = """
import os, sys
from pathlib import Path
from pneumo.data import cache, cache_entries

what, name = sys.argv[1:]
def wait(path):
    print(path, flush=True)
    sys.stdin.readline()

if what == "entry":
    wait(cache.keep(name, lambda draft: (draft / "data").write_bytes(bytes(1000))))
elif what == "run":
    with cache_entries.run_folder() as run:
        cache.keep(f"{run}/{name}", lambda draft: (draft / "data").write_bytes(bytes(1000)))
        wait(cache.place(run))
elif what == "draft":
    cache.keep(name, wait)
"""


@pytest.fixture
def start():
    """Starts a process that uses the cache; gives it and the folder that it uses."""
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
    make_room(200 * UNIT)
    assert entry.is_dir()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    make_room(200 * UNIT)
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
    """Another process is about to remove an entry when this one asks for it."""
    entry = make(f"pixels/{KEYS[1]}", used=1)
    is_current = cache_entries._is_current

    def late(descriptor: int, found: Path) -> bool:
        if found == entry and entry.exists():  # its lock file is open
            subprocess.run(["mv", entry, small_budget / "trash"], check=True)
        return is_current(descriptor, found)

    monkeypatch.setattr(cache_entries, "_is_current", late)
    assert not hold(entry)
    monkeypatch.setattr(cache_entries, "_is_current", is_current)
    built = cache.keep(f"pixels/{KEYS[1]}", lambda draft: (draft / "data").write_bytes(b"new"))
    assert (built / "data").read_bytes() == b"new"


def test_an_entry_is_held_from_its_draft_on(small_budget):
    removed = []

    def build(draft: Path) -> None:
        (draft / "data").write_bytes(b"new")
        cache_entries.remove_leftovers()
        make_room(200 * UNIT)
        removed.append(not draft.is_dir())

    entry = cache.keep(f"pixels/{KEYS[1]}", build)
    make_room(200 * UNIT)
    assert removed == [False]
    assert entry.is_dir()
    release(entry)
    make_room(200 * UNIT)
    assert not entry.exists()


def test_what_has_gone_while_it_is_counted_is_passed_over(small_budget, monkeypatch):
    stays, goes = (make(f"features/{KEYS[it]}", LITTLE, used=it) for it in (1, 2))
    scan = os.scandir

    def scan_late(folder):
        if str(folder) == str(goes):
            shutil.rmtree(goes)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scan_late)
    sizes = cache_entries._sizes()
    assert sizes[stays] > LITTLE
    assert sizes.get(goes, 0) == 0
    assert features.FOLDER == cache_entries.RUNS
