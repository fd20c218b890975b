"""Safe unpacking of `.zip` and `.tar.gz` archives."""

import hashlib
import stat
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from pneumo.runtime import cache
from pneumo.runtime.cache_entries import evict_least_recently_used
from pneumo.runtime.errors import UserError, is_printable_text, quoted

ARCHIVE_SUFFIXES = (".zip", ".tar.gz", ".tgz")
# Of files that an archive may contain instead of images
NESTED_SUFFIXES = (*ARCHIVE_SUFFIXES, ".tar", ".7z", ".rar", ".gz")

# A larger archive is a zip bomb, because images hardly shrink
MIN_BOMB_BYTES = 2**28  # bytes that any archive may have when unpacked
MAX_COMPRESSION_RATIO = 100  # unpacked size / archive size of larger ones
MAX_FILES = 1_000_000

CHUNK = 2**20  # bytes
ENCRYPTED = 0x1  # bit in the flags of a zip member

# Name in the archive, and a function that opens the member
Member = tuple[str, Callable[[], IO[bytes]]]


def name_of(sha256: str) -> str:
    """Return the name in the cache of an unpacked archive, from the archive's SHA-256."""
    return f"archives/{sha256}"


def unpack(archive: Path) -> Path:
    """Unpack an archive into the cache, once per content, and return the folder.

    Raises:
        UserError: The file is not a readable archive, or it is a zip bomb. Or it contains anything
            but plain files below its own top, each with a name that is unique on every disk.
            Nothing of such an archive stays on disk.
    """
    try:
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        # The files need no checksums: the index reads and hashes all of them at each start, and
        # the cache keys of decoded pixels contain these hashes
        return cache.get_or_build(
            name_of(digest), lambda folder: _extract(archive, folder), verify=False
        )
    except UserError:
        raise
    except Exception as error:  # untrusted files make a parser raise nearly anything
        raise UserError(
            f"{archive} could not be unpacked ({_reason(error)}). Download the archive again, or "
            "unpack it yourself and pass the folder."
        ) from None


def _reason(error: Exception) -> str:
    """Return the first line of an error, without the cache path that a system error names."""
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0].rstrip(":")
    return reason or type(error).__name__


def _extract(archive: Path, folder: Path) -> None:
    evict_least_recently_used(archive.stat().st_size)  # images hardly shrink
    members = _zip(archive) if archive.suffix.lower() == ".zip" else _tar(archive)
    names: dict[str, str] = {}  # case-folded name → name, for disks that ignore case
    remaining = max(MIN_BOMB_BYTES, MAX_COMPRESSION_RATIO * archive.stat().st_size)
    for name, open_member in members:
        path = _safe_path(name, archive)
        _require_unique(path.as_posix(), names, archive)
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_member() as source, target.open("xb") as file:
            remaining -= _copy(source, file, remaining, archive)
    if names and all(name.endswith(NESTED_SUFFIXES) for name in names):
        raise UserError(
            f"{archive} contains only another archive, '{min(names.values())}'. Unpack it, and "
            "pass the inner archive."
        )


def _copy(source: IO[bytes], file: IO[bytes], max_bytes: int, archive: Path) -> int:
    """Copy a member of at most `max_bytes` bytes, and return its size in bytes."""
    copied = 0
    while chunk := source.read(CHUNK):
        copied += len(chunk)
        if copied > max_bytes:
            raise UserError(
                f"{archive} would unpack to more than {MAX_COMPRESSION_RATIO} times its size, "
                "which images never do. Nothing was unpacked. Do not trust this file."
            )
        file.write(chunk)
    return copied


def _safe_path(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in (*path.parts, "")[0]:
        raise UserError(
            f"{archive} contains '{quoted(name)}', a path outside of the archive. "
            "Nothing was unpacked. Do not trust this file."
        )
    if not is_printable_text(name):
        raise UserError(
            f"{archive} contains '{quoted(name)}', a name that is not printable text. Nothing was "
            "unpacked. Create the archive again with file names in UTF-8."
        )
    return path


def _require_unique(path: str, names: dict[str, str], archive: Path) -> None:
    key = unicodedata.normalize("NFC", path).casefold()
    if key in names:
        raise UserError(
            f"{archive} contains '{quoted(names[key])}' and '{quoted(path)}', which are the same "
            "file on some file systems. Nothing was unpacked. Rename one of them."
        )
    if len(names) == MAX_FILES:
        raise UserError(
            f"{archive} contains more than {MAX_FILES:,} files. Nothing was unpacked. Unpack it "
            "yourself and pass the folder."
        )
    names[key] = path


def _tar(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isdir():
                continue
            if not member.isfile():
                raise _special_file_error(member.name, archive)
            yield member.name, partial(tar.extractfile, member)


def _zip(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as zipped:
        for member in zipped.infolist():
            if member.flag_bits & ENCRYPTED:
                raise UserError(
                    f"{archive} is protected by a password. Nothing was unpacked. Unpack it "
                    "yourself and pass the folder."
                )
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _special_file_error(member.filename, archive)
            if not member.is_dir():
                yield member.filename, partial(zipped.open, member)


def _special_file_error(name: str, archive: Path) -> UserError:
    return UserError(
        f"{archive} contains '{quoted(name)}', a link or device. Nothing was unpacked. "
        "Create the archive again from regular files only."
    )
