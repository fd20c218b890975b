"""Synthetic chest radiographs, so that everything runs before real data is available.

They roughly look like X-rays and carry a sign of pneumonia that must be learned, with overlap
between the classes. They contain no information about patients.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from pneumo.runtime import cache

VERSION = 1  # raised with every change of the images
SIDE = 96  # pixels

# split → number of patients for each name prefix of the real data set
PATIENTS = {
    "train": {"IM": 60, "NORMAL2-IM": 40, "bacteria": 90, "virus": 60},
    "test": {"IM": 20, "NORMAL2-IM": 20, "bacteria": 30, "virus": 20},
}


def make_sample() -> Path:
    """Return the folder of the sample: 546 PNG files of 340 patients, always the same bytes."""
    # The files need no checksums, for the reason in `archive.unpack`
    return cache.get_or_build(f"sample-{VERSION}", _write, verify=False)


def example_file() -> bytes:
    """Return a PNG file of a synthetic radiograph with pneumonia, an input without private data."""
    return _png(_radiograph(np.random.default_rng(0), "bacteria"))


def _write(folder: Path) -> None:
    rng = np.random.default_rng(20180222)
    for split, kinds in PATIENTS.items():
        for kind, patients in kinds.items():
            first = 101 if split == "train" else 1  # no patient is in both splits
            for name in _names(rng, kind, range(first, first + patients)):
                file = folder / split / ("NORMAL" if "IM" in kind else "PNEUMONIA") / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(_png(_radiograph(rng, kind)))


def _names(rng: np.random.Generator, kind: str, patients: range) -> Iterator[str]:
    """Yield file names as in the real data set: one to three images per patient."""
    image = 1
    for number in patients:
        for view in range(1, 1 + int(rng.choice([1, 2, 3], p=[0.55, 0.3, 0.15]))):
            if "IM" in kind:
                yield f"{kind}-{number:04d}-{view:04d}.png"
            else:
                yield f"person{number}_{kind}_{image}.png"
            image += 1


def _radiograph(rng: np.random.Generator, kind: str) -> np.ndarray:
    """Draw one image, uint8, shape (SIDE, SIDE): bright bone and tissue, dark lungs."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    x = x * rng.uniform(0.9, 1.15) + rng.uniform(-0.08, 0.08)
    y = y * rng.uniform(0.9, 1.15) + rng.uniform(-0.08, 0.08)
    lungs = sum(_blob(x, y, side * 0.42, 0.0, 0.26, 0.55, sharpness=4) for side in (-1, 1))
    tissue = 0.75 - 0.35 * np.hypot(x, y) + 0.18 * np.exp(-((x / 0.09) ** 2))
    heart = 0.25 * _blob(x, y, 0.15, 0.25, 0.25, 0.25)
    ribs = 0.07 * np.sin(22 * (y + 0.5 * x**2) + rng.uniform(0, 6.3))
    signs = _opacities(rng, x, y, kind)
    image = tissue - 0.5 * lungs + heart + (ribs + signs) * lungs
    image = rng.uniform(0.9, 1.1) * image + rng.uniform(-0.05, 0.05)
    image += rng.normal(0, 0.03, image.shape)
    return np.clip(image * 255, 0, 255).astype(np.uint8)


def _opacities(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, kind: str
) -> np.ndarray | float:
    """Draw opacities of the lungs: one dense focus (bacteria) or many faint ones (virus).

    Normal lungs have faint patches too, and some pneumonia is fainter than those.
    """
    count, strength, radius = {
        "bacteria": (1, rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.4)),
        "virus": (8, rng.uniform(0.1, 0.35), 0.15),
    }.get(kind, (2, rng.uniform(0.0, 0.2), 0.15))
    opacities = 0.0
    for _ in range(count):
        centre = rng.choice([-1, 1]) * rng.uniform(0.25, 0.55), rng.uniform(-0.4, 0.45)
        opacities = opacities + strength * _blob(x, y, *centre, radius, radius)
    return opacities


def _blob(
    x: np.ndarray,
    y: np.ndarray,
    x0: float,
    y0: float,
    width: float,
    height: float,
    sharpness: int = 2,
) -> np.ndarray:
    """Draw a hill of height 1 at (x0, y0); a greater sharpness makes its rim steeper."""
    return np.exp(-(np.hypot((x - x0) / width, (y - y0) / height) ** sharpness))


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()
