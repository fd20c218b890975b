"""Images as files."""

import io

import numpy as np
from PIL import Image

RAMP = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))  # dark left, bright right


def file_of(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()
