"""Safe import of a `.zip` or `.tar.gz`."""

import hashlib
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from pneumo.data import cache
from pneumo.errors import Mistake

ENDINGS = (".zip", ".tar.gz", ".tgz")

# name inside the archive, its bytes
Member = tuple[str, IO[bytes]]


def unpacked(sha256: str) -> Path:
    """Where the files of the archive with that hash are kept, once they are unpacked."""
    return cache.place(f"archives/{sha256}")


def unpack(archive: Path) -> Path:
    """The folder that holds the archive's files, unpacked once and keyed by its content.

    Raises `Mistake` if the file is no readable archive or holds anything but plain files
    below its own top; nothing of such an archive stays on disk.
    """
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        return cache.keep(f"archives/{digest}", lambda folder: _extract(archive, folder))
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, OSError) as error:
        raise Mistake(
            f"{archive} could not be unpacked ({error}); get the archive again, "
            "or unpack it yourself and give the folder"
        ) from None


def _extract(archive: Path, folder: Path) -> None:
    for name, source in _zip(archive) if archive.suffix == ".zip" else _tar(archive):
        target = folder / _safe(name, archive)
        target.parent.mkdir(parents=True, exist_ok=True)
        with source, target.open("wb") as file:
            shutil.copyfileobj(source, file)


def _safe(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise Mistake(
            f"{archive} holds '{name}', a path that leaves the archive; "
            "nothing was unpacked: do not trust this file"
        )
    return path


def _tar(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isdir():
                continue
            if not member.isfile():
                raise Mistake(
                    f"{archive} holds '{member.name}', a link or device; nothing was unpacked: "
                    "pack plain files only"
                )
            yield member.name, tar.extractfile(member)


def _zip(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as zipped:
        for member in zipped.infolist():
            if not member.is_dir():
                yield member.filename, zipped.open(member)
