"""Every image decoded once, into a memory-mapped array of grey pixels."""

import hashlib
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import cpu_count
from PIL import Image, ImageOps, UnidentifiedImageError

from pneumo.console import track
from pneumo.data import cache

DECODER = 1  # raised with every change of what `decode` returns: old caches are then not used


class UnreadableImage(ValueError):
    """A file that is no image, or a broken one; the message says why."""


def decode(data: bytes, size: int, resize: str = "squash") -> np.ndarray:
    """An image file's bytes as grey pixels: uint8, shape (size, size), 0 black to 255 white.

    `resize`: `squash` fills the square, whatever the image's aspect ratio; `pad` keeps the ratio,
    the image in the middle of black. Raises `UnreadableImage`.
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.draft("L", (size, size))  # JPEG only: decodes fewer pixels, and grey at once
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # Pillow's own conversion clips 16 bits at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        to_square = ImageOps.pad if resize == "pad" else Image.Image.resize
        return np.asarray(to_square(image.convert("L"), (size, size), Image.Resampling.BILINEAR))
    except UnidentifiedImageError:
        raise UnreadableImage("no image format that can be read") from None
    except Exception as error:  # a parser fed with strangers' files raises nearly anything
        raise UnreadableImage(str(error) or type(error).__name__) from error


def made_by(size: int, resize: str) -> str:
    """What, beside the files, decides the pixels."""
    return f"{DECODER} {size} {resize}"


def digest(rows: pd.DataFrame, made_by: str) -> str:
    """64 hex digits that name the pixels of an index's images, in its order."""
    return hashlib.sha256("\n".join([made_by, *rows["sha256"]]).encode()).hexdigest()


def load(
    base: Path, rows: pd.DataFrame, size: int, resize: str
) -> tuple[np.ndarray, dict[str, str]]:
    """The pixels of an index's images, and why some are missing.

    Returns a read-only memory map, uint8, shape (rows, size, size), in the order of `rows`,
    and path → reason for the unreadable files, whose places in the map hold nothing. Kept
    in the cache under the files' content, the size and `resize`, wherever the files lie.
    """
    key = digest(rows, made_by(size, resize))
    files = [base / path for path in rows["path"]]
    folder = cache.keep(f"pixels/{key}", lambda draft: _fill(draft, files, size, resize))
    reasons = json.loads((folder / "unreadable.json").read_text())
    unreadable = {rows["path"].iloc[int(position)]: why for position, why in reasons.items()}
    return np.load(folder / "pixels.npy", mmap_mode="r"), unreadable


def _fill(folder: Path, files: list[Path], size: int, resize: str) -> None:
    file = folder / "pixels.npy"
    shape = len(files), size, size
    pixels = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    with file.open("r+b") as whole:  # on a full disk, writing to a map would kill the process
        os.posix_fallocate(whole.fileno(), 0, file.stat().st_size)

    def fill(position: int) -> str | None:
        try:
            pixels[position] = decode(files[position].read_bytes(), size, resize)
        except UnreadableImage as error:
            return str(error)
        return None

    with ThreadPoolExecutor(cpu_count()) as threads:
        results = threads.map(fill, range(len(files)))
        reasons = list(track(results, len(files), f"Decoding to {size} px"))
    pixels.flush()
    unreadable = {position: why for position, why in enumerate(reasons) if why}
    (folder / "unreadable.json").write_text(json.dumps(unreadable))
