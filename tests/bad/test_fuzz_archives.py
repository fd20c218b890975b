"""Archives of arbitrary names or with arbitrary wrong bytes, with general rules.

PNEUMO_FUZZ multiplies the number of examples.
"""

import gzip
import io
import shutil
import tarfile
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumo.data.sources.archive import unpack
from pneumo.runtime.errors import UserError
from tests.support.fuzzing import NASTY, examples, is_one_line, result

PARTS = st.one_of(
    st.sampled_from(["..", ".", "", "a", "A", "train", "C:", "\\", "..\\", "e\u0301", "é", *NASTY]),
    st.text(st.characters(), max_size=8),
)
NAMES = st.lists(st.lists(PARTS, min_size=1, max_size=4).map("/".join), min_size=1, max_size=4)


def tar_of(names: list[str]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in names:
            with suppress(UnicodeError, ValueError):  # none that tarfile itself could write
                tar.addfile(tarfile.TarInfo(name))
    return file.getvalue()


def zip_of(names: list[str]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        for name in names:
            with suppress(UnicodeError, ValueError):
                zipped.writestr(zipfile.ZipInfo(name), b"content")
    return file.getvalue()


def as_file(kind: str, content: bytes) -> bytes:
    """Return a compressed tar, so that the errors are inside the compression."""
    return gzip.compress(content, 1, mtime=0) if kind == "tar.gz" else content


MADE = {"tar.gz": tar_of, "zip": zip_of}
GOOD = ["train/NORMAL/a.png", "train/PNEUMONIA/b.png", "test/NORMAL/ä.png"]


def unpacked(kind: str, content: bytes, folder: Path) -> None:
    """Unpack an archive: its files are in its folder, or one line gives the reason."""
    archive = folder / f"xrays.{kind}"
    archive.write_bytes(as_file(kind, content))
    found = result(unpack, archive)
    if isinstance(found, UserError):
        assert is_one_line(str(found))
        assert str(found).startswith(str(archive))
    else:
        below = list(found.rglob("*"))
        assert all(path.resolve().is_relative_to(found.resolve()) for path in below)
        assert not any(path.is_symlink() for path in below)
    assert set(folder.iterdir()) <= {archive, folder / "cache"}
    assert not list((folder / "cache").rglob(".*.draft"))
    shutil.rmtree(folder / "cache", ignore_errors=True)  # else each would look through all


@pytest.mark.parametrize("kind", MADE)
@examples(60)
@given(names=NAMES)
def test_unusual_file_names(kind, names, own_cache, tmp_path):
    unpacked(kind, MADE[kind](names), tmp_path)


@pytest.mark.parametrize("kind", MADE)
@examples(100)
@given(
    changes=st.lists(st.tuples(st.integers(0, 2_000), st.binary(max_size=4)), max_size=6),
    length=st.integers(0, 12_000),
)
def test_damaged_files_are_rejected(kind, changes, length, own_cache, tmp_path):
    content = bytearray(MADE[kind](GOOD))
    for place, wrong in changes:
        place %= len(content)
        content[place : place + len(wrong)] = wrong
    unpacked(kind, bytes(content[:length]), tmp_path)
