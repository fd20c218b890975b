"""How many images that are not upright chest X-rays the input gate of a model rejects.

    python -m tests.benchmarks.input_gate --data ARCHIVE --model URI [--split test]

The gate is fitted as at registration. The 240 images are photographs, text, noise, and changed
validation images. Photographs come with scikit-learn and Matplotlib. With `--split test` the share
of rejected test images is one look at test, although no label is read.
"""

import argparse

import numpy as np
from matplotlib.cbook import get_sample_data
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images

from pneumo.data.dataset import open_dataset
from pneumo.tracking import session
from pneumo.tuning.trial import load_with_gate

SMOKE = "--data sample --model models:/{model}@challenger --images 2"

WORDS = ("impression", "no", "acute", "finding", "heart", "size", "normal", "lungs", "are", "clear")


def to_square(image: Image.Image, size: int) -> np.ndarray:
    return np.asarray(image.convert("L").resize((size, size), Image.Resampling.BILINEAR))


def photographs(rng: np.random.Generator, size: int, count: int) -> list[np.ndarray]:
    """Return random square parts of three photographs, one of them of a person."""
    pictures = [Image.fromarray(picture) for picture in load_sample_images().images]
    with get_sample_data("grace_hopper.jpg") as file:
        pictures.append(Image.open(file).convert("L"))
    parts = []
    for number in range(count):
        picture = pictures[number % len(pictures)]
        side = rng.integers(min(picture.size) // 2, min(picture.size))
        left, top = (rng.integers(0, length - side + 1) for length in picture.size)
        parts.append(to_square(picture.crop((left, top, left + side, top + side)), size))
    return parts


def pages_of_text(rng: np.random.Generator, size: int, count: int) -> list[np.ndarray]:
    """Return pages of black text on white, as a scanner makes them."""
    pages = []
    for _ in range(count):
        page = Image.new("L", (600, 800), 255)
        for line in range(40):
            words = " ".join(rng.choice(WORDS, size=12))
            ImageDraw.Draw(page).text((40, 40 + 18 * line), words, fill=int(rng.integers(0, 60)))
        pages.append(to_square(page, size))
    return pages


def corners(rng: np.random.Generator, images: np.ndarray, fraction: float) -> list[np.ndarray]:
    """Return a corner of each image, with that fraction of its side, enlarged."""
    size = images.shape[1]
    side = round(fraction * size)
    starts = rng.choice([0, size - side], size=(len(images), 2))
    return [
        to_square(Image.fromarray(image[top : top + side, left : left + side]), size)
        for image, (top, left) in zip(images, starts, strict=True)
    ]


def smooth_noise(rng: np.random.Generator, size: int, count: int) -> list[np.ndarray]:
    grids = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)
    return [
        np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC))
        for grid in grids
    ]


def foreign_images(val: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Return images by kind.

    Args:
        val: Validation images: uint8 array of shape (n, size, size).
        count: Images of each kind.
    """
    rng, size = np.random.default_rng(0), val.shape[1]

    def some() -> np.ndarray:
        return val[rng.choice(len(val), count, replace=False)]

    kinds = {
        "photographs": photographs(rng, size, count),
        "text": pages_of_text(rng, size, count),
        "inverted": 255 - some(),
        "rotated by 90°": np.rot90(some(), 1, (1, 2)),
        "rotated by 180°": np.rot90(some(), 2, (1, 2)),
        "corner, 40 % of the side": corners(rng, some(), 0.4),
        "noise": rng.integers(0, 256, (count, size, size), dtype=np.uint8),
        "smooth noise": smooth_noise(rng, size, count),
    }
    return {kind: np.stack([*images]) for kind, images in kinds.items()}


def main() -> None:
    """Print the rejected share of each kind of images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--split", default="val", help="val, or test, which is a look at test")
    parser.add_argument("--images", type=int, default=30, help="of each kind")
    options = parser.parse_args()
    session.configure_mlflow()
    dataset = open_dataset(options.data)
    model = load_with_gate(options.model, dataset, 1)
    images = dataset.decode(model.image_size, 1, model.settings["resize"])

    def are_rejected(pixels: np.ndarray) -> np.ndarray:
        return model.predict_images(pixels)[1] > model.input_gate.limit

    gate, split = model.input_gate, images.split(options.split).images
    print(f"layer {gate.layer}, {len(gate.mean)} features, limit {gate.limit:.1f}")
    kinds = foreign_images(images.split("val").images[..., 0], options.images)
    rejected = {kind: are_rejected(pixels[..., np.newaxis]) for kind, pixels in kinds.items()}
    for kind, found in rejected.items():
        print(f"{kind}: {found.mean():.1%} of {len(found)}")
    every = np.concatenate([*rejected.values()])
    print(f"all of these: {every.mean():.1%} of {len(every)}")
    found = are_rejected(split)
    print(f"unchanged images of {options.split}: {found.mean():.1%} of {len(found)}")


if __name__ == "__main__":
    main()
