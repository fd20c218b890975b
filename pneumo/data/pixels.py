"""Every image decoded once, into a memory-mapped array of grey pixels."""

import errno
import hashlib
import io
import json
import math
import re
import warnings
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError

from pneumo.console import track
from pneumo.data import cache
from pneumo.errors import Mistake
from pneumo.parallel import in_threads

DECODER = 3  # raised with every change of what `decode` returns: old caches are then not used

# Pillow knows more, such as EPS, which it has another program run for it
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

SMALLEST = 8  # pixels of a side, below which nothing can be seen

FEWEST_BITS = 14  # of 16 that are used: detectors give 10 to 12, which would be all but black

QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # as `warnings.filters` has it


class UnreadableImage(ValueError):
    """A file that is no image, or a broken one; the message says why."""


def decode(data: bytes, size: int, resize: str = "squash") -> np.ndarray:
    """An image file's bytes as grey pixels: uint8, shape (size, size), 0 black to 255 white.

    `resize`: `squash` fills the square, whatever the image's aspect ratio; `pad` keeps the ratio,
    the image in the middle of black. Raises `UnreadableImage`.
    """
    try:
        image = open_image(io.BytesIO(data))
        _require_plain(image)
        if image.format == "PNG":  # whose checksums Pillow else passes over
            open_image(io.BytesIO(data)).verify()
        image.draft("L", (size, size))  # JPEG only: decodes fewer pixels, and grey at once
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # Pillow's own conversion clips 16 bits at 255
            image = Image.fromarray(_upper_half(np.asarray(image)))
        to_square = ImageOps.pad if resize == "pad" else Image.Image.resize
        return np.asarray(to_square(image.convert("L"), (size, size), Image.Resampling.BILINEAR))
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(_what_else(data)) from None
    except Image.DecompressionBombError:
        raise UnreadableImage("it has more pixels than any radiograph; scale it down") from None
    except Exception as error:  # a parser fed with strangers' files raises nearly anything
        raise UnreadableImage(str(error) or type(error).__name__) from error


def open_image(file: Path | BinaryIO) -> Image.Image:
    """An image whose pixels are not decoded yet.

    From then on Pillow's warnings are not shown: what they are about is read nevertheless, or
    refused with its reason.
    """
    if QUIET not in warnings.filters:  # `warnings.catch_warnings` is not for threads
        warnings.filterwarnings("ignore", module=QUIET[3].pattern)
    return Image.open(file, formats=FORMATS)


def _require_plain(image: Image.Image) -> None:
    if min(image.size) < SMALLEST:
        width, height = image.size
        raise UnreadableImage(f"{width} × {height} pixels, too few for a radiograph")
    if image.mode in ("I", "F"):  # which Pillow would clip at 255
        raise UnreadableImage("32 bits a pixel, whose white is not known; save it with 8 or 16")
    if image.format == "TIFF" and image.info.get("compression") != "raw":
        # Pillow gives it to a library that writes to standard error what it thinks of it
        raise UnreadableImage("a compressed TIFF; save it uncompressed, or as PNG")


def _upper_half(pixels: np.ndarray) -> np.ndarray:
    """16 bits as 8. Raises `UnreadableImage` where white is not at their end."""
    bits = int(pixels.max()).bit_length()
    if bits < FEWEST_BITS:
        raise UnreadableImage(
            f"16 bits a pixel of which {bits} are used, and white is not known; "
            "stretch the values to 0 to 65535, or save it with 8 bits"
        )
    return (pixels >> 8).astype(np.uint8)


def _what_else(data: bytes) -> str:
    what = "no image format that can be read"
    if not data:
        return f"{what}: the file is empty"
    if data[128:132] == b"DICM":
        return f"{what}: DICOM; convert it to PNG, with dcmj2pnm --write-png or with pydicom"
    return what


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
    in the cache under the files' content, the size and `resize`, wherever the files lie. Raises
    `Mistake` where the disk does not give a file.
    """
    key = digest(rows, made_by(size, resize))
    files = [base / path for path in rows["path"]]
    folder = cache.keep(f"pixels/{key}", lambda draft: _fill(draft, files, size, resize))
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
                return decode(read(file), size, resize)
            except UnreadableImage as error:
                return str(error)

        with closing(in_threads(decoded, files)) as results:
            shown = track(results, len(files), f"Decoding to {size} px")
            for position, image in enumerate(shown):
                if isinstance(image, str):
                    unreadable[position] = image
                else:
                    cache.write_at(file, image.tobytes(), start + position * image.size)
    (folder / "unreadable.json").write_text(json.dumps(unreadable))


def read(file: Path) -> bytes:
    """A file's bytes. Raises `Mistake` where the disk does not give them."""
    try:
        return file.read_bytes()
    except OSError as error:  # no fault of the image: what is kept of it must not say so
        if error.errno == errno.ENOENT and cache.is_ours(file):
            raise cache.deleted() from None
        raise Mistake(
            f"{file} cannot be read from the disk ({error.strerror}): see that it can, or remove it"
        ) from None
