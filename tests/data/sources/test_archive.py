"""Archives: unpacked once, and rejected if truncated or with paths outside their folder."""

import io
import tarfile
import zipfile

import pytest

from pneumo.data.sources.archive import unpack
from pneumo.runtime.errors import UserError


def tar_with(path, *members: tarfile.TarInfo):
    with tarfile.open(path, "w:gz") as tar:
        good = tarfile.TarInfo("train/NORMAL/a.png")
        good.size = 3
        tar.addfile(good, io.BytesIO(b"abc"))
        for member in members:
            tar.addfile(member)
    return path


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def left_behind(cache) -> list:
    return [path for path in cache.glob("archives/*")]


def test_unpacks_once(tmp_path, own_cache):
    archive = tar_with(tmp_path / "a.tar.gz")
    folder = unpack(archive)
    assert (folder / "train/NORMAL/a.png").read_bytes() == b"abc"
    (folder / "train/NORMAL/a.png").write_bytes(b"kept")
    assert unpack(archive) == folder
    assert (folder / "train/NORMAL/a.png").read_bytes() == b"kept"


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("/etc/evil"),
        tarfile.TarInfo("../evil"),
        tarfile.TarInfo("train/../../evil"),
        tarfile.TarInfo("..\\evil"),
        tarfile.TarInfo("C:/evil"),
        link("soft", "/etc/passwd", tarfile.SYMTYPE),
        link("hard", "train/NORMAL/a.png", tarfile.LNKTYPE),
        link("device", "", tarfile.CHRTYPE),
    ],
    ids=lambda member: member.name,
)
def test_what_leaves_the_archive_is_refused_and_nothing_stays(tmp_path, own_cache, member):
    with pytest.raises(UserError, match="Nothing was unpacked"):
        unpack(tar_with(tmp_path / "evil.tar.gz", member))
    assert left_behind(own_cache) == []


def test_a_zip_with_paths_outside_it_is_rejected(tmp_path, own_cache):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as zipped:
        zipped.writestr("../evil", b"x")
    with pytest.raises(UserError, match="a path outside of the archive"):
        unpack(tmp_path / "evil.zip")
    assert left_behind(own_cache) == []


@pytest.mark.parametrize("name", ["torn.tar.gz", "torn.zip"])
def test_a_truncated_archive_leaves_nothing_and_a_complete_one_works_afterwards(
    tmp_path, own_cache, name
):
    whole = tmp_path / name
    if name.endswith("zip"):
        with zipfile.ZipFile(whole, "w") as zipped:
            zipped.writestr("train/NORMAL/a.png", bytes(10_000))
    else:
        tar_with(whole)
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="could not be unpacked"):
        unpack(whole)
    assert left_behind(own_cache) == []
    whole.write_bytes(content)
    assert (unpack(whole) / "train/NORMAL/a.png").is_file()
