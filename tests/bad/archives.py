"""Archives that are invalid in one way each, and some that only seem invalid."""

import io
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from pneumo.data.sources.sample import make_sample
from tests.bad import Case

IMAGE = "train/NORMAL/IM-0001-0001.png"
NOTHING = "Nothing was unpacked"


def _prepare(archive: Path) -> list[str]:
    return ["prepare", "--data", str(archive), "--image_size", "32"]


def _images() -> list[Path]:
    """Return a few sample images of each class and split."""
    root = make_sample()
    return [file for folder in sorted(root.glob("t*/*")) for file in sorted(folder.iterdir())[:4]]


def _tar(*members: tarfile.TarInfo, content: bytes = b"") -> Callable[[Path], list[str]]:
    """Make a tar of an image and of members that claim to be as large as `content`."""

    def make(folder: Path) -> list[str]:
        archive = folder / "xrays.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo(IMAGE))
            for member in members:
                member.size = len(content) if member.isreg() else 0
                tar.addfile(member, io.BytesIO(content))
        return _prepare(archive)

    return make


def _special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def _zip(*names: str | zipfile.ZipInfo, content: bytes = b"x") -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        archive = folder / "xrays.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name in (IMAGE, *names):
                zipped.writestr(name, content)
        return _prepare(archive)

    return make


def _link_in_zip() -> zipfile.ZipInfo:
    member = zipfile.ZipInfo("train/NORMAL/link.png")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


def _changed(change: Callable[[bytes], bytes], name: str = "xrays.zip") -> Callable:
    """Make a good zip and change its bytes."""

    def make(folder: Path) -> list[str]:
        _whole(name)(folder)
        archive = folder / name
        archive.write_bytes(change(archive.read_bytes()))
        return _prepare(archive)

    return make


def _whole(name: str, rename: Callable[[str], str] = str) -> Callable[[Path], list[str]]:
    """Make a good archive of a few images; `rename` returns the name of each."""

    def make(folder: Path) -> list[str]:
        base, archive = make_sample(), folder / name
        if ".zip" in name.lower():
            with zipfile.ZipFile(archive, "w") as zipped:
                for file in _images():
                    zipped.write(file, rename(file.relative_to(base).as_posix()))
        else:
            with tarfile.open(archive, "w:gz") as tar:
                for file in _images():
                    tar.add(file, rename(file.relative_to(base).as_posix()))
        return _prepare(archive)

    return make


def _protected(content: bytes) -> bytes:
    """Mark each member as encrypted, by the flag's bit in both of its headers."""
    content = bytearray(content)
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(signature)
        while at >= 0:
            content[at + place] |= 1
            at = content.find(signature, at + 4)
    return bytes(content)


def _bomb_of_tar(folder: Path) -> list[str]:
    """Make 300 MB of zeros in 0.3 MB, which are never unpacked at once."""
    member = tarfile.TarInfo("train/NORMAL/zeros.png")
    member.size = 18 * 2**24
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    archive = folder / "bomb.tar.gz"
    with archive.open("wb") as file:
        file.write(squeeze.compress(member.tobuf()))
        for _ in range(member.size >> 24):
            file.write(squeeze.compress(bytes(2**24)))
        file.write(squeeze.compress(bytes(1024)) + squeeze.flush())
    return _prepare(archive)


def _bomb_of_zip(folder: Path) -> list[str]:
    archive = folder / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        for number in range(3):
            with zipped.open(f"train/NORMAL/{number}.png", "w") as file:
                for _ in range(6):
                    file.write(bytes(2**24))
    return _prepare(archive)


def _renamed(folder: Path) -> list[str]:
    _whole("a.tar.gz")(folder)
    return _prepare((folder / "a.tar.gz").rename(folder / "a.zip"))


def _empty(folder: Path) -> list[str]:
    zipfile.ZipFile(folder / "empty.zip", "w").close()
    return _prepare(folder / "empty.zip")


def _nested(folder: Path) -> list[str]:
    _whole("inner.tar.gz")(folder)
    archive = folder / "outer.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.write(folder / "inner.tar.gz", "inner.tar.gz")
    return _prepare(archive)


CASES = [
    Case("tar, absolute path", _tar(tarfile.TarInfo("/etc/evil")), f"outside of.*{NOTHING}"),
    Case("tar, ..", _tar(tarfile.TarInfo("../evil")), f"outside of.*{NOTHING}"),
    Case("tar, .. within", _tar(tarfile.TarInfo("train/../../evil")), f"outside of.*{NOTHING}"),
    Case("tar, .. with backslashes", _tar(tarfile.TarInfo("..\\evil")), f"outside of.*{NOTHING}"),
    Case("tar, drive letter", _tar(tarfile.TarInfo("C:/evil")), f"outside of.*{NOTHING}"),
    Case("tar, link out", _tar(_special("soft", tarfile.SYMTYPE, "/etc/passwd")), "a link or"),
    Case("tar, hard link", _tar(_special("hard", tarfile.LNKTYPE, IMAGE)), "a link or device"),
    Case("tar, device", _tar(_special("device", tarfile.CHRTYPE)), "a link or device"),
    Case("tar, pipe", _tar(_special("pipe", tarfile.FIFOTYPE)), "a link or device"),
    Case(
        "tar, two names but for case", _tar(tarfile.TarInfo(IMAGE.upper())), "the same file on some"
    ),
    Case("tar, one name twice", _tar(tarfile.TarInfo(IMAGE)), "the same file on some file systems"),
    Case(
        "tar, two ways to write é", _tar(tarfile.TarInfo("e\u0301"), tarfile.TarInfo("\xe9")), "one"
    ),
    Case("tar, name of no UTF-8", _tar(tarfile.TarInfo("a\udcff.png")), "names in UTF-8"),
    Case("tar, name of two lines", _tar(tarfile.TarInfo("a\nb.png")), r"'a\\nb.png', a name that"),
    Case(
        "tar, a file as a folder", _tar(tarfile.TarInfo(f"{IMAGE}/a.png")), "could not be unpacked"
    ),
    Case("tar, name of 300 letters", _tar(tarfile.TarInfo("a" * 300)), "File name too long"),
    Case("tar, bomb", _bomb_of_tar, "100 times its size.*Do not trust"),
    Case("zip, absolute path", _zip("/etc/evil"), f"outside of.*{NOTHING}"),
    Case("zip, ..", _zip("../evil"), f"outside of.*{NOTHING}"),
    Case("zip, link", _zip(_link_in_zip()), "a link or device"),
    Case("zip, two names but for case", _zip(IMAGE.upper()), "the same file on some file systems"),
    Case("zip, bomb", _bomb_of_zip, "100 times its size.*Do not trust"),
    Case("zip, password", _changed(_protected), "protected by a password"),
    Case(
        "zip, cut off",
        _changed(lambda content: content[: len(content) // 2]),
        "could not be unpacked",
    ),
    Case(
        "zip, a byte wrong",
        _changed(lambda content: content[:300] + b"\0\1\2" + content[303:]),
        "CRC-32",
    ),
    Case("zip, empty file", _changed(lambda content: b""), "could not be unpacked"),
    Case("zip, nothing in it", _empty, r"empty\.zip must contain the folders"),
    Case("zip, a tar in it", _nested, "another archive, 'inner.tar.gz'.*pass the inner archive"),
    Case(
        "tar, cut off",
        _changed(lambda content: content[: len(content) // 2], "a.tar.gz"),
        "could not be unpacked",
    ),
    Case(
        "tar, not packed",
        _changed(lambda content: b"words" * 500, "a.tar.gz"),
        "could not be unpacked",
    ),
    Case("tar, named zip", _renamed, "not a zip file"),
    Case("tar, spaces and Unicode", _whole("Röntgen 1 ✓.tar.gz"), "Röntgen 1 ✓.tar.gz", False),
    Case("zip, capitals in its ending", _whole("XRAYS.ZIP"), "XRAYS.ZIP", False),
    Case("zip, backslashes", _whole("a.zip", lambda name: name.replace("/", "\\")), "a.zip", False),
    Case("zip, in folders", _whole("a.zip", lambda name: f"ä b/c/{name}"), "0 unreadable", False),
]
