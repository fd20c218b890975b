"""How fast large JPEGs are decoded, and how soon a second start begins to fit.

    python -m tests.benchmarks.ingest --data ARCHIVE --weights FILE

1,000 JPEGs of 1,300 × 1,000, enlarged from the data's own training images, are hashed, indexed and
decoded into the pixel cache. For comparison, Keras' `image_dataset_from_directory` makes one pass
over the same files, in gray, as pneumo reads them, and in color, its default. The upper limit is
the JPEG decoder alone, in as many threads, at the smallest scale from which an image can be resized
to that of training. Each result is the median of three alternating runs. Then `tune` of
`tune_mobilenet` on the data as they are starts twice, each time as a process of its own, until its
first fit begins.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import keras
from joblib import cpu_count
from PIL import Image

from pneumo.data.dataset import Dataset, open_dataset
from pneumo.data.schema import CLASSES
from tests.support.paths import ROOT
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
    """Return the seconds in which the JPEG decoder returns images of at least the size needed."""

    def read(file: Path) -> None:
        with Image.open(file) as image:
            image.draft("L", (SIZE, SIZE))
            image.load()

    files = list(folder.rglob("*.jpeg"))
    began = time.perf_counter()
    with ThreadPoolExecutor(cpu_count()) as threads:
        list(threads.map(read, files))
    return time.perf_counter() - began


# Prints the time at which the first fit begins
START = """
import sys, time
from unittest.mock import patch
from pneumo.runtime.tensorflow_import import import_tensorflow
import_tensorflow()
import keras
from pneumo.__main__ import main

class Started(BaseException):
    pass

def fit(*_, **__):
    raise Started(time.time())

with patch.object(keras.Model, "fit", fit):
    try:
        main(sys.argv[1:])
    except Started as started:
        print(started.args[0])
"""


def start(data: str, weights: str) -> float:
    """Return the seconds from the start of a process of `tune` to its first fit."""
    study = ["--experiment", "tune_mobilenet", "--weights", weights, "--trials", "1"]
    command = [sys.executable, "-c", START, "tune", "--data", data, *study]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = time.time()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1]) - began


def main() -> None:
    """Print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--weights", default="none", help="of MobileNet 0.25 (default: random)")
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
        first, second = (start(options.data, options.weights) for _ in range(2))
    seconds = dict(zip(sides, map(median, zip(*runs, strict=True)), strict=True))
    for name, taken in seconds.items():
        ratio = taken / seconds["pneumo"]
        print(f"{name}: {options.images / taken:.0f} images/s, {ratio:.2f} times pneumo's time")
    print(f"from the start of a process to its fit: {first:.1f} s at first, {second:.1f} s then")


if __name__ == "__main__":
    main()
