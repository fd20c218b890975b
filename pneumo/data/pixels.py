"""Every image decoded once, into a memory-mapped array of grey pixels."""

import errno
import hashlib
import json
import math
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd

from pneumo.inference.batches import map_in_threads
from pneumo.inference.decode import DECODER_VERSION, UnreadableImageError, decode
from pneumo.runtime import cache
from pneumo.runtime.console import track
from pneumo.runtime.errors import UserError


def decode_key(size: int, resize: str) -> str:
    """What, beside the files, decides the pixels."""
    return f"{DECODER_VERSION} {size} {resize}"


def pixels_digest(rows: pd.DataFrame, made_by: str) -> str:
    """64 hex digits that name the pixels of an index's images, in its order."""
    return hashlib.sha256("\n".join([made_by, *rows["sha256"]]).encode()).hexdigest()


def load_pixels(
    base: Path, rows: pd.DataFrame, size: int, resize: str
) -> tuple[np.ndarray, dict[str, str]]:
    """The pixels of an index's images, and why some are missing.

    Returns a read-only memory map, uint8, shape (rows, size, size), in the order of `rows`,
    and path → reason for the unreadable files, whose places in the map hold nothing. Kept
    in the cache under the files' content, the size and `resize`, wherever the files lie. Raises
    `UserError` where the disk does not give a file.
    """
    key = pixels_digest(rows, decode_key(size, resize))
    files = [base / path for path in rows["path"]]
    folder = cache.get_or_build(f"pixels/{key}", lambda draft: _fill(draft, files, size, resize))
    reasons = json.loads((folder / "unreadable.json").read_text())
    unreadable = {rows["path"].iloc[int(position)]: why for position, why in reasons.items()}
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
        file.truncate(start + math.prod(shape))  # images that cannot be read keep their places

        def decoded(file: Path) -> np.ndarray | str:
            try:
                return decode(read_file(file), size, resize)
            except UnreadableImageError as error:
                return str(error)

        with closing(map_in_threads(decoded, files)) as results:
            shown = track(results, len(files), f"Decoding to {size} px")
            for position, image in enumerate(shown):
                if isinstance(image, str):
                    unreadable[position] = image
                else:
                    cache.write_at(file, image.tobytes(), start + position * image.size)
    (folder / "unreadable.json").write_text(json.dumps(unreadable))


def read_file(file: Path) -> bytes:
    """A file's bytes. Raises `UserError` where the disk does not give them."""
    try:
        return file.read_bytes()
    except OSError as error:  # no fault of the image: what is kept of it must not say so
        if error.errno == errno.ENOENT and cache.is_in_cache(file):
            raise cache.cache_deleted_error() from None
        raise UserError(
            f"{file} cannot be read from the disk ({error.strerror}): see that it can, or remove it"
        ) from None
