"""Decoding of image files to gray pixels, the same for the cache, `predict` and served models."""

import io
import re
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Raised with every change of what `decode` returns, so that old caches are not used
DECODER_VERSION = 3

# Pillow reads more formats, such as EPS, for which it starts another program
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

MIN_SIDE = 8  # pixels of a side; nothing can be seen in smaller images

MIN_BITS_USED = 14  # of 16: a detector's 10 to 12 bits would be almost black

# In the form of the entries of `warnings.filters`
PIL_WARNING_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


class UnreadableImageError(ValueError):
    """An error for a file that is not an image or is broken; the message says why."""


def decode(data: bytes, size: int, resize: str = "squash") -> np.ndarray:
    """Decode an image file to square gray pixels.

    Args:
        data: Bytes of the file.
        size: Side of the square in pixels.
        resize: `squash` fills the square, whatever the image's aspect ratio. `pad` keeps the ratio,
            with the image in the middle of black.

    Returns:
        uint8 array of shape (size, size), 0 black to 255 white.

    Raises:
        UnreadableImageError: The file is not a readable image.
    """
    try:
        image = open_image(io.BytesIO(data))
        _check_supported(image)
        if image.format == "PNG":  # Pillow does not verify its checksums otherwise
            open_image(io.BytesIO(data)).verify()
        image.draft("L", (size, size))  # JPEG only: decodes fewer pixels, directly to gray
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # Pillow's own conversion clips 16 bits at 255
            image = Image.fromarray(_to_8_bit(np.asarray(image)))
        to_square = ImageOps.pad if resize == "pad" else Image.Image.resize
        return np.asarray(to_square(image.convert("L"), (size, size), Image.Resampling.BILINEAR))
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:
        raise UnreadableImageError(_unidentified_reason(data)) from None
    except Image.DecompressionBombError:
        raise UnreadableImageError(
            "too many pixels for a radiograph; scale the image down"
        ) from None
    except Exception as error:  # untrusted files make a parser raise nearly anything
        raise UnreadableImageError(str(error) or type(error).__name__) from error


def open_image(file: Path | BinaryIO) -> Image.Image:
    """Open an image without decoding its pixels.

    From then on Pillow's warnings are hidden: the images that cause them are either read
    nevertheless or rejected with a reason.
    """
    if PIL_WARNING_FILTER not in warnings.filters:  # `warnings.catch_warnings` is not thread-safe
        warnings.filterwarnings("ignore", module=PIL_WARNING_FILTER[3].pattern)
    return Image.open(file, formats=FORMATS)


def _check_supported(image: Image.Image) -> None:
    if min(image.size) < MIN_SIDE:
        width, height = image.size
        raise UnreadableImageError(f"{width} × {height} pixels, too few for a radiograph")
    if image.mode in ("I", "F"):  # Pillow would clip these at 255
        raise UnreadableImageError(
            "32 bits per pixel, so white is unknown; save the image with 8 or 16 bits"
        )
    if image.format == "TIFF" and image.info.get("compression") != "raw":
        # Pillow decodes it by a library that writes its own warnings to standard error
        raise UnreadableImageError(
            "compressed TIFF is not supported; save it uncompressed, or as PNG"
        )


def _to_8_bit(pixels: np.ndarray) -> np.ndarray:
    """Convert pixels of 16 bits to 8 bits.

    Raises:
        UnreadableImageError: The values use too few bits, so the value of white is unknown.
    """
    bits = int(pixels.max()).bit_length()
    if bits < MIN_BITS_USED:
        raise UnreadableImageError(
            f"only {bits} of 16 bits per pixel are used, so white is unknown; "
            "scale the values to 0 to 65535, or save it with 8 bits"
        )
    return (pixels >> 8).astype(np.uint8)


def _unidentified_reason(data: bytes) -> str:
    what = "not a supported image format"
    if not data:
        return f"{what}: the file is empty"
    if data[128:132] == b"DICM":
        return f"{what}: DICOM; convert it to PNG with dcmj2pnm --write-png or pydicom"
    return what
