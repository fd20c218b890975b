"""How fast `predict` scores large JPEGs, compared with Keras, and how fast a server answers.

    python -m tests.benchmarks.predict --data ARCHIVE

One model predicts 1,000 JPEGs of 1,300 × 1,000, enlarged from the data's own training images: by
`predict` to its CSV, and by `image_dataset_from_directory` with `keras.Model.predict`, in gray, as
pneumo reads them, and in color, its default. The upper limit decodes all files, and then runs the
network on all images, both in as many threads. Each result is the median of three alternating runs.
Then `predict` runs on 10 and on 10,000 files, to measure its memory, and 1 and 8 clients send
requests of one image to `mlflow models serve`.
"""

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import keras
import mlflow
import numpy as np
import pytest
import requests
from joblib import cpu_count
from keras import layers

from pneumo.commands.options.inputs import find_images
from pneumo.commands.predict import predict_files
from pneumo.data.dataset import Dataset, open_dataset
from pneumo.inference.batches import map_batches
from pneumo.tracking import models, registry, runs
from pneumo.tracking.models import LoadedModel
from pneumo.training.config import RunConfig
from pneumo.tuning import trial
from tests.benchmarks.ingest import SIZE, enlarge
from tests.benchmarks.stub import stub_of
from tests.support.services import model_server
from tests.support.stores import store_in

NAME = "benchmark"
MODEL = f"models:/{NAME}@champion"
SMOKE = "--data sample --backbone cnn --images 8 --many 10 --requests 8 --runs 1"


def register(dataset: Dataset, backbone: str, members: int) -> LoadedModel:
    """Register a model as `train` does, with random weights, which do not affect the speed."""
    alpha = 0.25 if backbone == "mobilenet" else 1
    config = RunConfig(backbone=backbone, image_size=SIZE, alpha=alpha, ensemble_size=members)
    tags = runs.provenance_tags("benchmark", dataset)
    with (
        pytest.MonkeyPatch.context() as patch,
        runs.command_run("train", "predict", tags) as parent,
    ):
        patch.setattr(trial, "train", stub_of(config))
        made = trial.run_trial(config, dataset, parent_id=parent, name="model", tags=tags)
    stored = registry.register(made.run_id, trial.load_with_gate(made.model_uri, dataset, 1), NAME)
    mlflow.MlflowClient().set_registered_model_alias(NAME, "champion", str(stored.version))
    return models.find_model(MODEL)


def ours(stored: LoadedModel, folder: Path) -> float:
    """Return the seconds from the folder to the CSV."""
    with tempfile.TemporaryDirectory() as place, mlflow.start_run():
        out = Path(place) / "out.csv"
        began = time.perf_counter()
        predict_files(stored, find_images(str(folder), out), out)
        return time.perf_counter() - began


def peer(stored: LoadedModel, folder: Path, color_mode: str) -> float:
    """Return the seconds from the folder to the probabilities, as Keras' guides write it."""
    given = keras.Input((SIZE, SIZE, 3 if color_mode == "rgb" else 1))
    pixels = layers.Lambda(lambda pixels: keras.ops.cast(pixels[..., :1], "uint8"))(given)
    model = keras.Model(given, stored.model.keras_model(pixels))
    options = {"color_mode": color_mode, "labels": None, "shuffle": False, "verbose": False}
    began = time.perf_counter()
    batches = keras.utils.image_dataset_from_directory(folder, image_size=(SIZE, SIZE), **options)
    model.predict(batches, verbose=0)
    return time.perf_counter() - began


def limit(stored: LoadedModel, folder: Path) -> float:
    """Return the seconds to decode all files, and to run the network on all images after that."""
    files = list(folder.rglob("*.jpeg"))
    began = time.perf_counter()
    with ThreadPoolExecutor(cpu_count()) as threads:
        images = list(threads.map(lambda file: stored.model.decode(file.read_bytes()), files))
    list(map_batches(stored.model.predict_images, np.stack(images)[..., np.newaxis]))
    return time.perf_counter() - began


def memory(files: int, image: Path, folder: Path) -> float:
    """Return the maximum memory, in MiB, of a process that predicts that many files."""
    many = folder / f"{files}"
    many.mkdir()
    for number in range(files):
        os.link(image, many / f"{number}.jpeg")
    call = ["predict", "--model", MODEL, "--images", str(many), "--out", str(folder / "out.csv")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    (folder / "out.csv").unlink(missing_ok=True)
    code = (
        "import json, resource, sys\nfrom pneumo.__main__ import main\n"
        "assert main(json.loads(sys.argv[1])) == 0\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    command = [sys.executable, "-c", code, json.dumps(call)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.splitlines()[-1]) / 1024


def latencies(address: str, clients: int, image: bytes, count: int) -> np.ndarray:
    """Return the milliseconds of each of `count` requests of one image."""
    body = {"dataframe_records": [{"image": base64.b64encode(image).decode()}]}

    def ask(_: int) -> float:
        began = time.perf_counter()
        requests.post(f"{address}/invocations", json=body, timeout=60).raise_for_status()
        return 1000 * (time.perf_counter() - began)

    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(ask, range(clients)))  # the first ones compile
        return np.array(list(threads.map(ask, range(count))))


def main() -> None:
    """Print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--backbone", default="mobilenet", help="or cnn")
    parser.add_argument("--members", type=int, default=1, help="networks of the model")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--many", type=int, default=10_000, help="files, for the memory")
    parser.add_argument("--requests", type=int, default=200, help="of each number of clients")
    parser.add_argument("--runs", type=int, default=3, help="of each, in turn")
    options = parser.parse_args()
    dataset = open_dataset(options.data)
    with tempfile.TemporaryDirectory() as place, store_in(Path(place)):
        folder = Path(place) / "images"
        enlarge(dataset, folder, options.images)
        stored = register(dataset, options.backbone, options.members)
        sides = {
            "predict": lambda: ours(stored, folder),
            "Keras, grey": lambda: peer(stored, folder, "grayscale"),
            "Keras, colour": lambda: peer(stored, folder, "rgb"),
            "decoder and network alone": lambda: limit(stored, folder),
        }
        runs = [[side() for side in sides.values()] for _ in range(options.runs)]
        image = next(folder.rglob("*.jpeg"))
        sizes = {files: memory(files, image, Path(place)) for files in {10, options.many}}
        content, number = image.read_bytes(), options.requests
        with model_server(Path(sys.executable), MODEL, Path(place)) as server:
            times = {
                clients: latencies(server.address, clients, content, number) for clients in (1, 8)
            }
    seconds = dict(zip(sides, map(median, zip(*runs, strict=True)), strict=True))
    for name, taken in seconds.items():
        ratio = taken / seconds["predict"]
        print(f"{name}: {options.images / taken:.0f} images/s, {ratio:.2f} times predict's time")
    for files, size in sizes.items():
        print(f"{files} files: {size:.0f} MiB at most")
    for clients, taken in times.items():
        p50, p95 = np.percentile(taken, [50, 95])
        print(f"{clients} clients: p50 {p50:.0f} ms, p95 {p95:.0f} ms")


if __name__ == "__main__":
    main()
