"""How fast large JPEGs are decoded, and how soon a second start begins to fit.

    python -m tests.benchmarks.ingest --data ARCHIVE

1,000 JPEGs of 1,300 × 1,000, enlarged from the data's own training images, are hashed, indexed and
decoded into the pixel cache. For comparison, Keras' `image_dataset_from_directory` makes one pass
over the same files, in gray, as pneumo reads them, and in color, its default. The upper limit is
the JPEG decoder alone at an eighth of the size, which still has to read every bit of a file. Each
result is the median of three alternating runs.
"""

import argparse
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import keras
from joblib import cpu_count
from PIL import Image

from pneumo import __main__
from pneumo.data.dataset import Dataset, open_dataset
from pneumo.data.schema import CLASSES
from tests.support.stores import store_in

LARGE, SIZE = (1300, 1000), 224
SMOKE = "--data sample --images 20"


def enlarge(dataset: Dataset, folder: Path, count: int) -> None:
    """Write `count` files to read, half of them of each class."""
    rows = dataset.rows[dataset.rows["split"] != "test"]
    chosen = rows.groupby("label").head(count // len(CLASSES))

    def write(path: str, label: int) -> None:
        target = folder / "train" / CLASSES[label] / f"{Path(path).stem}.jpeg"
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(dataset.base / path) as image:
            image.convert("L").resize(LARGE, Image.Resampling.BICUBIC).save(target, quality=90)

    with ThreadPoolExecutor() as threads:
        list(threads.map(write, chosen["path"], chosen["label"]))


def ours(folder: Path) -> float:
    """Return the seconds from the folder to the pixels, with an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PNEUMO_CACHE"] = cache
        began = time.perf_counter()
        open_dataset(str(folder)).decode(SIZE, 0)
        return time.perf_counter() - began


def peer(folder: Path, color_mode: str) -> float:
    """Return the seconds of one pass."""
    began = time.perf_counter()
    batches = keras.utils.image_dataset_from_directory(
        folder / "train", image_size=(SIZE, SIZE), color_mode=color_mode, verbose=False
    )
    for _ in batches:
        pass
    return time.perf_counter() - began


def decoder(folder: Path) -> float:
    """Return the seconds to decode the smallest images that the JPEG decoder makes."""

    def read(file: Path) -> None:
        with Image.open(file) as image:
            image.draft("L", (LARGE[0] // 8, LARGE[1] // 8))
            image.load()

    files = list(folder.rglob("*.jpeg"))
    began = time.perf_counter()
    with ThreadPoolExecutor(cpu_count()) as threads:
        list(threads.map(read, files))
    return time.perf_counter() - began


class Started(Exception):
    """Exception that shows that the fit has begun."""


def start(folder: Path, experiment: str, *fields: str) -> float:
    """Return the seconds from the command to the start of its fit, without imports."""
    began = time.perf_counter()

    def fit(*_: object, **__: object) -> None:
        raise Started

    kept, keras.Model.fit = keras.Model.fit, fit
    try:
        __main__.main(["train", "--data", str(folder), "--experiment", experiment, *fields])
    except Started:
        return time.perf_counter() - began
    finally:
        keras.Model.fit = kept
    raise RuntimeError("the fit has not begun")


def main() -> None:
    """Print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    dataset = open_dataset(options.data)
    with tempfile.TemporaryDirectory() as place, store_in(Path(place)):
        folder = Path(place) / "images"
        enlarge(dataset, folder, options.images)
        sides = {
            "pneumo": lambda: ours(folder),
            "image_dataset_from_directory, grey": lambda: peer(folder, "grayscale"),
            "image_dataset_from_directory, colour": lambda: peer(folder, "rgb"),
            "the JPEG decoder alone": lambda: decoder(folder),
        }
        runs = [[side() for side in sides.values()] for _ in range(3)]
        os.environ["PNEUMO_CACHE"] = f"{place}/cache"
        first, second = (start(folder, "cnn", "--image_size", str(SIZE)) for _ in range(2))
    seconds = dict(zip(sides, map(median, zip(*runs, strict=True)), strict=True))
    for name, taken in seconds.items():
        ratio = taken / seconds["pneumo"]
        print(f"{name}: {options.images / taken:.0f} images/s, {ratio:.2f} times pneumo's time")
    print(f"from the command to the start of fit: {first:.2f} s at first, {second:.2f} s then")


if __name__ == "__main__":
    main()
