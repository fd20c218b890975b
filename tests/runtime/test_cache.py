"""A cache that is deleted, locked or full during use."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pneumo.data import pixels
from pneumo.runtime import cache
from pneumo.runtime.checksums import CHECKSUMS
from pneumo.runtime.errors import UserError
from tests.support.paths import ROOT


@pytest.mark.parametrize("build", [lambda _: None, lambda folder: folder.mkdir(parents=True)])
def test_a_cache_deleted_during_use_is_a_user_error(own_cache, build):
    """The build may continue in a new folder of the same name, as for files of an archive."""

    def build_and_delete(folder: Path) -> None:
        (folder / "a").touch()
        shutil.rmtree(own_cache)
        build(folder)

    with pytest.raises(UserError, match="was deleted while it was in use. Run the same command"):
        cache.get_or_build("things/1", build_and_delete)
    kept = cache.get_or_build("things/1", lambda folder: (folder / "a").touch())
    assert [path.name for path in kept.parent.iterdir()] == ["1"]


def test_a_source_deleted_from_the_cache_is_a_user_error(own_cache):
    source = cache.get_or_build("source", lambda folder: (folder / "a").touch())
    shutil.rmtree(source)
    with pytest.raises(UserError, match="was deleted while it was in use. Run the same command"):
        cache.get_or_build("things/1", lambda _: (source / "a").read_bytes())


def test_a_missing_file_outside_the_cache_is_not_an_error_of_the_cache(own_cache, tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        cache.get_or_build("things/1", lambda _: (tmp_path / "missing").read_bytes())


def test_a_wait_for_another_process_says_so(own_cache, monkeypatch, capsys):
    monkeypatch.setattr(cache, "SILENT_WAIT_SECONDS", 0.05)
    code = (
        "import time\nfrom pneumo.runtime import cache\n"
        "with cache.lock('pixels/0123'):\n print(flush=True)\n time.sleep(0.5)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as other:
        other.stdout.readline()  # it holds the lock
        with cache.lock("pixels/0123"):
            assert other.wait(10) == 0
    line = "waiting for another process that holds the cache lock 'pixels'\n"
    assert capsys.readouterr().out == line


def test_a_write_that_is_cut_short_goes_on(tmp_path, monkeypatch):
    """As on a disk that is almost full."""
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda to, data, offset: pwrite(to, data[:3], offset))
    with (tmp_path / "file").open("wb") as file:
        cache.write_at(file, b"0123456789", 2)
    assert (tmp_path / "file").read_bytes() == b"\0\0" + b"0123456789"


def test_an_entry_has_its_name_when_all_of_it_is_on_the_disk(own_cache, monkeypatch):
    flushed, before = set(), set()
    fsync, publish = os.fsync, cache.publish

    def flush(descriptor: int) -> None:
        flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def publish_late(draft: Path, folder: Path) -> None:
        before.update(flushed)
        publish(draft, folder)

    def build(draft: Path) -> None:
        (draft / "below").mkdir()
        for name in ("file", "below/file"):
            (draft / name).write_bytes(b"abc")

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(cache, "publish", publish_late)
    entry = cache.get_or_build("things/1", build)
    for name in ("file", "below/file", CHECKSUMS, "below", "."):
        assert (entry / name).stat().st_ino in before, name
    assert entry.parent.stat().st_ino in flushed


@pytest.fixture
def small_disk(tmp_path, monkeypatch) -> Path:
    """Mount a disk of 1 MiB for the cache."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.call(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]):
        pytest.skip("needs to be root, to make a small disk")
    monkeypatch.setenv("PNEUMO_CACHE", str(disk))
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)  # a map of pixels may be open


@pytest.mark.parametrize("is_full", ["from the start", "meanwhile"])
def test_a_full_disk_is_reported_in_one_line(small_disk, tmp_path, sample, monkeypatch, is_full):
    files = [sample.base / path for path in sample.rows["path"]]
    written = []
    write_at = cache.write_at
    monkeypatch.setattr(cache, "write_at", lambda *it: written.append(write_at(*it)))
    if is_full == "meanwhile":
        plenty = shutil.disk_usage(tmp_path)._replace(free=1 << 40)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: plenty)
    with pytest.raises(UserError) as raised:
        pixels.load_pixels(sample.base, sample.rows, 64, "squash")
    assert str(raised.value) == (
        f"the cache needs more disk space than is free at {small_disk} (No space left on device "
        "for pixels). Free some space, or set PNEUMO_CACHE to a folder on a larger disk."
    )
    assert len(files) * 64 * 64 > 1 << 20
    assert bool(written) == (is_full == "meanwhile")
    assert [path for path in small_disk.rglob("*") if path.is_file()] == [
        small_disk / "locks" / next((small_disk / "locks").iterdir()).name
    ]
    read, _ = pixels.load_pixels(sample.base, sample.rows, 16, "squash")  # what fits does
    assert read.shape == (len(files), 16, 16)
