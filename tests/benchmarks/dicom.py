"""How fast DICOM files fill the pixel cache, compared with pydicom's `pixel_array` alone.

    python -m tests.benchmarks.dicom --data ARCHIVE

Radiographs of 1,300 × 1,000 pixels and 12 bits, enlarged from the data's own training images, are
hashed, indexed, decoded and shrunk into the pixel cache, for each transfer syntax. The comparison
reads the same files and decodes their pixels, and does nothing else, in as many threads. Each
result is the median of three alternating runs.
"""

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import pydicom
from joblib import cpu_count
from PIL import Image

from pneumo.data.dataset import Dataset, open_dataset
from pneumo.data.schema import CLASSES
from tests.benchmarks.ingest import LARGE, ours
from tests.support.dicom import LOSSLESS, compressed, radiograph
from tests.support.stores import store_in

SMOKE = "--data sample --images 4 --runs 1"


def write_radiographs(dataset: Dataset, folder: Path, count: int, syntax: str) -> None:
    """Write `count` files, half of them of each class."""
    rows = dataset.rows[dataset.rows["split"] != "test"]
    for path, label in rows.groupby("label").head(count // 2)[["path", "label"]].to_numpy():
        target = folder / "train" / CLASSES[label] / f"{Path(path).stem}.dcm"
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(dataset.base / path) as image:
            large = image.convert("L").resize(LARGE, Image.Resampling.BICUBIC)
        pixels = np.asarray(large).astype(np.uint16) << 4
        target.write_bytes(compressed(radiograph(pixels, 12), syntax))


def decoder(folder: Path) -> float:
    """Return the seconds that `pixel_array` takes for all files."""

    def read(file: Path) -> None:
        _ = pydicom.dcmread(file).pixel_array

    files = list(folder.rglob("*.dcm"))
    began = time.perf_counter()
    with ThreadPoolExecutor(cpu_count()) as threads:
        list(threads.map(read, files))
    return time.perf_counter() - began


def main() -> None:
    """Print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--runs", type=int, default=3, help="of each, in turn")
    options = parser.parse_args()
    dataset = open_dataset(options.data)
    for syntax in LOSSLESS:
        with tempfile.TemporaryDirectory() as place, store_in(Path(place)):
            folder = Path(place) / "images"
            write_radiographs(dataset, folder, options.images, syntax)
            runs = [(ours(folder), decoder(folder)) for _ in range(options.runs)]
        pneumo, alone = map(median, zip(*runs, strict=True))
        print(
            f"{syntax}: pneumo {options.images / pneumo:.0f} images/s, pixel_array alone "
            f"{options.images / alone:.0f}, {alone / pneumo:.0%} of its speed"
        )


if __name__ == "__main__":
    main()
