"""Fixed, slight changes of images, such as other machines or other archives cause.

Metrics on validation images that are changed like this predict metrics on images from elsewhere
better than those on unchanged images do: see `experiments/criterion.py`.
"""

import hashlib
import io
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter

from pneumo.data.dataset import Split
from pneumo.inference.batches import map_batches
from pneumo.runtime import cache

PIXELS_FILE = "pixels.npy"

# Raised with every change of what `perturb_split` returns, so that old caches are not used
PERTURBATION_VERSION = 1

Operation = Callable[[Image.Image, float], Image.Image]
PerturbationSpecs = tuple[tuple[str, float], ...]  # names and amounts, as `perturb` takes them


def _blur(image: Image.Image, amount: float) -> Image.Image:
    return Image.fromarray(gaussian_filter(np.asarray(image), amount * image.width))


def _sharpen(image: Image.Image, amount: float) -> Image.Image:
    radius = image.width / 64
    return image.filter(ImageFilter.UnsharpMask(radius, percent=int(100 * amount), threshold=0))


def _gamma(image: Image.Image, amount: float) -> Image.Image:
    return image.point([round(255 * (value / 255) ** amount) for value in range(256)])


def _contrast(image: Image.Image, amount: float) -> Image.Image:
    mean = np.asarray(image).mean()
    return image.point([round(mean + (value - mean) * amount) for value in range(256)])


def _noise(image: Image.Image, amount: float) -> Image.Image:
    pixels = np.ascontiguousarray(image)
    noise = np.random.default_rng(zlib.crc32(pixels)).normal(0, amount, pixels.shape)
    return Image.fromarray(np.clip(np.round(pixels + noise), 0, 255).astype(np.uint8))


def _resample(image: Image.Image, amount: float) -> Image.Image:
    side = round(amount * image.width)
    small = image.resize((side, side), Image.Resampling.BILINEAR)
    return small.resize(image.size, Image.Resampling.BILINEAR)


def _jpeg(image: Image.Image, amount: float) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(amount))
    return Image.open(file)


def _crop(image: Image.Image, amount: float) -> Image.Image:
    margin = amount * image.width
    box = (margin, margin, image.width - margin, image.height - margin)
    return image.resize(image.size, Image.Resampling.BILINEAR, box=box)


def _trim_width(image: Image.Image, amount: float) -> Image.Image:
    margin = amount * image.width
    box = (margin, 0, image.width - margin, image.height)
    return image.resize(image.size, Image.Resampling.BILINEAR, box=box)


def _trim_height(image: Image.Image, amount: float) -> Image.Image:
    margin = amount * image.height
    box = (0, margin, image.width, image.height - margin)
    return image.resize(image.size, Image.Resampling.BILINEAR, box=box)


def _black_border(image: Image.Image, amount: float) -> Image.Image:
    margin = round(amount * image.width)
    pixels = np.zeros_like(image)
    inside = np.s_[margin : image.height - margin, margin : image.width - margin]
    pixels[inside] = np.asarray(image)[inside]
    return Image.fromarray(pixels)


OPERATIONS: dict[str, Operation] = {
    "blur": _blur,  # standard deviation, as a fraction of the side
    "sharpen": _sharpen,  # weight of the unsharp mask, whose radius is 1/64 of the side
    "gamma": _gamma,  # exponent: below 1 lighter, above 1 darker
    "contrast": _contrast,  # factor of the distance from the image's mean
    "noise": _noise,  # standard deviation, in gray levels of 0 to 255
    "resample": _resample,  # side of the intermediate image, as a fraction of the side
    "jpeg": _jpeg,  # quality of the JPEG file
    "crop": _crop,  # margin removed on each side, as a fraction of the side
    "trim_width": _trim_width,  # margin removed left and right, as a fraction of the width
    "trim_height": _trim_height,  # margin removed above and below, as a fraction of the height
    "black_border": _black_border,  # width of the black border, as a fraction of the side
}

# Least and greatest amount of each perturbation that the images of a split get in turn. If an
# operation works in two directions, the amounts are on both sides of the one that changes nothing
PERTURBATIONS: dict[str, tuple[float, float]] = {
    "blur": (0.005, 0.01),
    "sharpen": (0.5, 1.5),
    "gamma": (0.67, 1.5),
    "contrast": (0.7, 1.3),
    "noise": (4.0, 8.0),
    "resample": (0.7, 0.5),
    "jpeg": (50, 20),
    "crop": (0.03, 0.08),
}
ALL_PERTURBATIONS = tuple((name, amount) for name, ends in PERTURBATIONS.items() for amount in ends)


def perturb(image: np.ndarray, name: str, amount: float) -> np.ndarray:
    """Apply one perturbation to an image; the result is always the same.

    Args:
        image: uint8 array of shape (size, size).
        name: Key of `OPERATIONS`.
        amount: Strength of the perturbation, in the unit noted in `OPERATIONS`.

    Returns:
        uint8 array of shape (size, size).
    """
    return np.asarray(OPERATIONS[name](Image.fromarray(image), amount))


def describe_preprocessing(split: Split, specs: PerturbationSpecs) -> str:
    """Return `Split.preprocessing` of what `perturb_split` returns, without computing it.

    Args:
        split: The split before the perturbation.
        specs: Perturbations, as `perturb_split` takes them.
    """
    return f"{split.preprocessing} perturbed {PERTURBATION_VERSION} {specs}"


def perturb_split(split: Split, specs: PerturbationSpecs) -> Split:
    """Perturb each image of a split by one of several perturbations in turn.

    The result is cached, because all runs on the same data and at the same size need it.

    Args:
        split: The split.
        specs: Names and amounts; image i gets number i modulo their count.

    Returns:
        The split with perturbed pixels.
    """
    preprocessing = describe_preprocessing(split, specs)
    key = hashlib.sha256(f"{split.digest} {preprocessing}".encode()).hexdigest()

    def change(positions: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        pairs = zip(split.pixels[positions], numbers, strict=True)
        return np.stack([perturb(image, *specs[number % len(specs)]) for image, number in pairs])

    def fill(draft: Path) -> None:
        cache.require_space(draft, len(split.positions) * split.pixels[0].nbytes)
        numbers = np.arange(len(split.positions))
        np.save(
            draft / PIXELS_FILE, np.concatenate(list(map_batches(change, split.positions, numbers)))
        )

    pixels = np.load(cache.get_or_build(f"perturbed/{key}", fill) / PIXELS_FILE, mmap_mode="r")
    return replace(
        split, pixels=pixels, positions=np.arange(len(pixels)), preprocessing=preprocessing
    )
