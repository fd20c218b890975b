"""Cache entries are verified by checksums, and built again if they have changed."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from pneumo.data import perturb, pixels
from pneumo.runtime import cache, checksums, process
from pneumo.runtime.cache_entries import IN_USE, _held, release, remove_leftovers
from pneumo.training.config import RunConfig
from pneumo.training.feature_cache import FeatureCache, View
from tests.support.cache import keep, make
from tests.support.features import features_of
from tests.support.weights import SMALL


@dataclass
class Kind:
    """One kind of cache entry: its file, how to get its values, and how often it was built."""

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
        found = Kind(
            "pixels.npy",
            lambda: perturb.perturb_split(split, perturb.ALL_PERTURBATIONS).pixels,
            builds,
        )
    else:
        store = features_of(RunConfig(**SMALL, weights=str(weights)))
        module, build = FeatureCache, "_compute"
        found = Kind("features.npy", lambda: store.get(View(split), 0), builds)
    original = getattr(module, build)

    def counted(*given):
        builds.append(given)
        return original(*given)

    monkeypatch.setattr(module, build, counted)
    found.group = own_cache / request.param
    return found


def entry_of(kind: Kind) -> Path:
    [entry] = [path for path in kind.group.iterdir() if not path.name.startswith(".")]
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
    """Remove checksums, which earlier versions did not write."""
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
def test_bytes_lost_in_a_power_failure_are_detected_after_the_boot(kind, damage, monkeypatch):
    expected = np.array(kind.values())
    damage(entry_of(kind) / kind.file)
    boot_again(monkeypatch)
    for _ in range(2):
        assert np.array_equal(kind.values(), expected)
    assert len(kind.builds) == 2


@pytest.fixture
def read(monkeypatch) -> list[Path]:
    """Collect the files whose checksums are computed from now on."""
    found, checksum = [], checksums._checksum
    monkeypatch.setattr(checksums, "_checksum", lambda file: found.append(file) or checksum(file))
    return found


def forget_process(monkeypatch) -> None:
    """Reset what this process has verified, as in a new process."""
    monkeypatch.setattr(checksums, "_verified", {})


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
    """Make the disk of the cache read-only (`ro`) or writable (`rw`)."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.call(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]):
        pytest.skip("needs to be root, to make a small disk")
    monkeypatch.setenv("PNEUMO_CACHE", str(disk))
    yield lambda mode: subprocess.run(["mount", "-o", f"remount,{mode}", disk], check=True)
    for entry in list(_held):
        release(entry)
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("has_lock_file", [True, False])
def test_a_read_only_cache_is_verified_by_each_process(remount, monkeypatch, read, has_lock_file):
    entry = make("pixels/1")
    if not has_lock_file:
        (entry / IN_USE).unlink()
    read.clear()
    remount("ro")
    boot_again(monkeypatch)
    for _ in range(2):
        forget_process(monkeypatch)
        for _ in range(2):
            keep("pixels/1")
    assert read == [entry / "data"] * 2
    remove_leftovers()
    assert entry.is_dir()


def test_checksums_cover_all_files_of_a_build_and_no_own_ones(own_cache):
    def build(draft: Path) -> None:
        (draft / "below").mkdir()
        (draft / "below" / "file").write_bytes(b"abc")

    entry = cache.get_or_build("pixels/1", build)
    found = json.loads((entry / checksums.CHECKSUMS).read_text())
    assert found == {"below/file": [3, 0x352441C2]}  # CRC-32 of abc
    assert {path.name for path in entry.iterdir()} == {
        *("below", IN_USE, checksums.CHECKSUMS, checksums.VERIFIED)
    }
