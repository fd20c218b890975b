"""A data set in which one file is not a plain image."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.bad import Case, dicoms
from tests.bad.xrays import prepare, xrays
from tests.support.images import file_of

GREY = Image.fromarray(np.tile(np.arange(96, dtype=np.uint8) * 2, (96, 1)))


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return one chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def claiming(width: int, height: int) -> bytes:
    """Return a small PNG file whose header claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # lying on its side
    return file_of(GREY, "JPEG", exif=exif)


def with_torn_exif() -> bytes:
    return file_of(GREY, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12")


def transparent_palette() -> bytes:
    return file_of(GREY.convert("P"), "PNG", transparency=bytes(range(96)))


def animated() -> bytes:
    frames = [GREY.rotate(angle) for angle in (90, 180)]
    return file_of(GREY, "GIF", save_all=True, append_images=frames)


JPEG = file_of(GREY, "JPEG")
PNG = file_of(GREY, "PNG")

UNREADABLE = {
    "truncated JPEG": (JPEG[:600], "truncated"),
    "JPEG of which the header alone is there": (
        JPEG[:20],
        "not a supported image format|truncated",
    ),
    "PNG with a byte changed": (PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:], "broken|bad|CRC"),
    "empty file": (b"", "the file is empty"),
    "decompression bomb": (claiming(30_000, 30_000), "too many pixels for a radiograph"),
    "file that claims 120 megapixels": (claiming(12_000, 10_000), "truncated|broken"),
    "one pixel": (file_of(Image.new("L", (1, 1)), "PNG"), "1 × 1 pixels, too few"),
    "line of pixels": (file_of(Image.new("L", (9_000, 1)), "PNG"), "9000 × 1 pixels, too few"),
    "12 bits in 16, as of a detector": (
        file_of(Image.fromarray(np.asarray(GREY).astype(np.uint16) * 16), "PNG"),
        "only 12 of 16 bits per pixel are used, .*; scale the values",
    ),
    "floating point TIFF": (file_of(GREY.convert("F"), "TIFF"), "32 bits per pixel"),
    "compressed TIFF": (
        file_of(GREY, "TIFF", compression="tiff_lzw"),
        "compressed TIFF is not supported; save it",
    ),
    **{
        f"DICOM: {what}": rejected
        for what, rejected in dicoms.REJECTED.items()
        if what not in dicoms.LATERAL
    },
    "text": (b"The patient was not there.\n", "not a supported image format"),
    "page of an error": (b"<!DOCTYPE html><title>404</title>", "not a supported image format"),
    "PostScript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "not a supported image format",
    ),
    "JPEG of a comment alone": (b"\xff\xd8\xff\xfe\x00\x06\x1b[2J", "not a supported image format"),
}

READABLE = {
    "PNG that is called .jpeg": PNG,
    "16-bit PNG": file_of(Image.fromarray(np.asarray(GREY).astype(np.uint16) * 256), "PNG"),
    "TIFF": file_of(GREY, "TIFF"),
    "CMYK JPEG": file_of(GREY.convert("CMYK"), "JPEG"),
    "palette with transparency": transparent_palette(),
    "animated GIF": animated(),
    "photograph lying on its side": turned(),
    "torn EXIF": with_torn_exif(),
    **dicoms.READABLE,
    "120 megapixels": file_of(Image.new("1", (12_000, 10_000)), "PNG"),
}


# They are left out, because no classifier of frontal views is for them
LATERAL = {f"DICOM: {what}": dicoms.REJECTED[what] for what in dicoms.LATERAL}


def holding(content: bytes, *flags: str) -> Callable[[Path], list[str]]:
    """Return a function that makes a data set of 53 images, one of them with this content."""

    def make(folder: Path) -> list[str]:
        data = xrays(folder / "xrays")
        (data / "train" / "NORMAL" / "IM-9999-0001.jpeg").write_bytes(content)
        return prepare(data, *flags)

    return make


def refused(what: str) -> Case:
    content, why = UNREADABLE[what]
    says = rf"1 of 53 are, .* is train/NORMAL/IM-9999-0001.jpeg \(.*({why}).*\). Fix or remove"
    return Case(what, holding(content), says)


CASES: list[Case] = [
    *map(refused, UNREADABLE),
    *(Case(name, holding(READABLE[name]), "images, 0 unreadable", False) for name in READABLE),
    *(
        Case(name, holding(content), "images, 1 unreadable", False)
        for name, (content, _) in LATERAL.items()
    ),
    Case(
        "unreadable image that is tolerated",
        holding(b"", "--max_unreadable", "0.1"),
        "images, 1 unreadable",
        refused=False,
    ),
]
