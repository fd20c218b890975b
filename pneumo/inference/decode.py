"""Decoding of image files to gray pixels, the same for the cache, `predict` and served models."""

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile

from pneumo.inference.untrusted import UnreadableImageError, hide_warnings

# Raised with every change of the pixels that `decode` returns. Models are loaded only with the
# version that decoded their training images
DECODER_VERSION = 3

# Pillow reads more formats, such as EPS, for which it starts another program
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

MIN_SIDE = 8  # pixels of a side; nothing can be seen in smaller images

MIN_BITS_USED = 15  # of 16: a detector's 10 to 14 bits would be almost black

# At the end of the preamble, which may have any content
DICOM_MARK, DICOM_PREAMBLE = b"DICM", 128  # bytes


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
        image = _open_gray_dicom(data) if is_dicom(data) else _open_gray(data, size)
        to_square = ImageOps.pad if resize == "pad" else Image.Image.resize
        return np.asarray(to_square(image, (size, size), Image.Resampling.BILINEAR))
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


def is_dicom(data: bytes) -> bool:
    """Return whether a file is marked as DICOM in its first bytes."""
    return data[DICOM_PREAMBLE : DICOM_PREAMBLE + len(DICOM_MARK)] == DICOM_MARK


def read_size(file: Path) -> tuple[int, int, str]:
    """Return an image's width and height in pixels, and its mode as Pillow names it.

    Raises:
        Exception: The file is not a readable image.
    """
    with file.open("rb") as stream:
        start = stream.read(DICOM_PREAMBLE + len(DICOM_MARK))
        if is_dicom(start):
            from pneumo.inference.dicom import read_header

            header = read_header(start + stream.read())
            return int(header.Columns), int(header.Rows), "L"
    with _open_image(file) as image:
        return *image.size, image.mode


def _open_image(file: Path | BinaryIO) -> Image.Image:
    """Open an image without decoding its pixels."""
    hide_warnings("PIL")
    return Image.open(file, formats=FORMATS)


def _open_gray_dicom(data: bytes) -> Image.Image:
    from pneumo.inference.dicom import open_dicom

    image = open_dicom(data)
    _check_side(image)
    return image


def _open_gray(data: bytes, size: int) -> Image.Image:
    """Decode an image to gray values of 8 bits, with at least `size` pixels if it has them."""
    image = _open_image(io.BytesIO(data))
    _check_supported(image)
    if image.format == "PNG":  # Pillow does not verify its checksums otherwise
        _open_image(io.BytesIO(data)).verify()
    image.draft("L", (size, size))  # JPEG only: decodes fewer pixels, directly to gray
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips 16 bits at 255
        image = Image.fromarray(_to_8_bit(np.asarray(image)))
    return image.convert("L")


def _check_side(image: Image.Image) -> None:
    if min(image.size) < MIN_SIDE:
        width, height = image.size
        raise UnreadableImageError(f"{width} × {height} pixels, too few for a radiograph")


def _check_supported(image: Image.Image) -> None:
    _check_side(image)
    if image.mode in ("I", "F"):  # Pillow would clip these at 255
        raise UnreadableImageError(
            "32 bits per pixel, so white is unknown; save the image with 8 or 16 bits"
        )
    if image.format == "TIFF" and image.info.get("compression") != "raw":
        # Pillow decodes it by a library that writes its own warnings to standard error
        raise UnreadableImageError(
            "compressed TIFF is not supported; save it uncompressed, or as PNG"
        )
    if image.mode.startswith("I;16") and image.format == "TIFF" and not _is_zero_black(image):
        # Unlike those of 8 bits, Pillow does not invert them
        raise UnreadableImageError("TIFF of 16 bits in which 0 is white; save it with 0 as black")


def _is_zero_black(image: TiffImageFile) -> bool:
    return image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 1


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
    return what if data else f"{what}: the file is empty"
