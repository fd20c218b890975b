"""Decoded images in the cache: each is decoded once, into a memory-mapped array of gray pixels."""

import errno
import hashlib
import json
import math
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd

from pneumo.data.schema import DICOM, FORMAT
from pneumo.inference.batches import map_in_threads
from pneumo.inference.decode import DECODER_VERSION, decode
from pneumo.inference.untrusted import UnreadableImageError
from pneumo.runtime import cache
from pneumo.runtime.console import track
from pneumo.runtime.errors import UserError


def decode_key(rows: pd.DataFrame, size: int, resize: str) -> str:
    """Return everything except the files that decides the pixels.

    Args:
        rows: The index.
        size: Side of the square images in pixels.
        resize: See `decode.decode`.
    """
    # Earlier versions could not read DICOM files, and their caches say so
    formats = f" {DICOM}" if (rows[FORMAT] == DICOM).any() else ""
    return f"{DECODER_VERSION} {size} {resize}{formats}"


def pixels_digest(rows: pd.DataFrame, preprocessing: str) -> str:
    """Return 64 hex digits that identify the pixels of an index's images, in its order.

    Args:
        rows: The index, of which the column sha256 counts.
        preprocessing: How files become pixels: see `decode_key`.
    """
    return hashlib.sha256("\n".join([preprocessing, *rows["sha256"]]).encode()).hexdigest()


def load_pixels(
    base: Path, rows: pd.DataFrame, size: int, resize: str
) -> tuple[np.ndarray, dict[str, str]]:
    """Decode an index's images, or load their pixels from the cache.

    The cache key is made of the files' content, `size` and `resize`, not of the files' paths.

    Args:
        base: Folder from which the paths start.
        rows: The index.
        size: Side of the square images in pixels.
        resize: See `decode.decode`.

    Returns:
        A read-only memory map, uint8, shape (rows, size, size), in the order of `rows`. And path →
        reason for the unreadable files, whose places in the map have no meaning.

    Raises:
        UserError: The disk cannot read a file, or there is not enough memory to decode it.
    """
    key = pixels_digest(rows, decode_key(rows, size, resize))
    files = [base / path for path in rows["path"]]
    folder = cache.get_or_build(f"pixels/{key}", lambda draft: _fill(draft, files, size, resize))
    reasons = json.loads((folder / "unreadable.json").read_text())
    unreadable = {rows["path"].iloc[int(position)]: reason for position, reason in reasons.items()}
    return np.load(folder / "pixels.npy", mmap_mode="r"), unreadable


def _fill(folder: Path, files: list[Path], size: int, resize: str) -> None:
    """Decode files into `pixels.npy`; `unreadable.json` has position → reason for the others."""
    shape, unreadable = (len(files), size, size), {}
    cache.require_space(folder, math.prod(shape))
    with (folder / "pixels.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        start = file.tell()
        file.truncate(start + math.prod(shape))  # unreadable images keep their places

        def decoded(file: Path) -> np.ndarray | str:
            try:
                return decode(read_file(file), size, resize)
            except UnreadableImageError as error:
                # Not a fault of the image, so it must not be cached as unreadable
                if isinstance(error.__cause__, MemoryError):
                    raise UserError(
                        f"{file} needs more memory than is free. Close other programs, or remove "
                        "the file."
                    ) from None
                return str(error)

        with closing(map_in_threads(decoded, files)) as results:
            images = track(results, len(files), f"Decoding to {size} px")
            for position, image in enumerate(images):
                if isinstance(image, str):
                    unreadable[position] = image
                else:
                    cache.write_at(file, image.tobytes(), start + position * image.size)
    (folder / "unreadable.json").write_text(json.dumps(unreadable))


def read_file(file: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        UserError: The disk cannot read the file.
    """
    try:
        return file.read_bytes()
    except OSError as error:  # not a fault of the image, so it must not be cached as unreadable
        if error.errno == errno.ENOENT and cache.is_in_cache(file):
            raise cache.cache_deleted_error() from None
        raise UserError(
            f"{file} cannot be read from the disk ({error.strerror}). Check its permissions and "
            "the disk, or remove it."
        ) from None
