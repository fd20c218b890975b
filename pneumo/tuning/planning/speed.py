"""Speed of this machine: how long training takes, measured in seconds and stored."""

import json
import platform
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf
from joblib import cpu_count

from pneumo.data.dataset import Dataset, DecodedDataset
from pneumo.data.schema import COLUMNS
from pneumo.runtime import cache, signals
from pneumo.runtime.cache_entries import cache_path
from pneumo.runtime.machine import visible_gpus
from pneumo.training.config import RunConfig
from pneumo.training.train import train
from pneumo.tuning.planning.facts import TrainingSpeed

FILE = "speed.json"  # in the cache: machine and network → the fields of `TrainingSpeed`
SIDES = (64, 128)  # pixels
N_TRAIN, N_VAL = 512, 128  # images of noise, validated as a fifth of a data set would be
N_EPOCHS = 3

# Fields of `RunConfig` on which the cost of an image depends
COST_FIELDS = ("backbone", "alpha", "unfreeze_depth", "objective", "batch_size")


def measure_training(config: RunConfig) -> TrainingSpeed:
    """Measure how long a config trains on this machine, or read the stored measurement.

    Networks are trained on noise, at two sizes. Features are not cached, so that the result holds
    for any augmentation.

    Args:
        config: Config of a run; its image size and number of epochs have no influence.
    """
    with cache.lock(FILE):
        file = cache_path(FILE)
        known = _read(file.read_text()) if file.exists() else {}
        key = _key(config)
        if key not in known:
            measured = signals.run_in_thread(lambda: _measure(config))
            known[key] = asdict(measured)
            file.write_text(json.dumps(known))
        return TrainingSpeed(**known[key])


def _read(text: str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError:  # a process was killed while it wrote the file
        return {}


def _key(config: RunConfig) -> str:
    fields = [f"{name} {getattr(config, name)}" for name in COST_FIELDS]
    devices = [f"{cpu_count()} cores", *visible_gpus()]
    return ", ".join([platform.node(), *devices, f"TensorFlow {tf.__version__}", *fields])


def _measure(config: RunConfig) -> TrainingSpeed:
    (start, small), (_, large) = (_time_training(config, side) for side in SIDES)
    areas = [side**2 for side in SIDES]
    per_pixel = max(0.0, (large - small) / (areas[1] - areas[0]))
    return TrainingSpeed(
        start,
        per_image=max(0.0, small - per_pixel * areas[0]) / N_TRAIN,
        per_pixel=per_pixel / N_TRAIN,
    )


def _time_training(config: RunConfig, side: int) -> tuple[float, float]:
    """Return the seconds of a training besides its epochs, and those of an epoch."""
    changes = {"image_size": side, "epochs": N_EPOCHS, "head_epochs": 0, "feature_cache": "off"}
    changes |= {"folds": 1, "split_by": "patient", "repeats": 1, "ensemble_size": 1}
    begin = time.monotonic()
    ends: list[float] = []
    train(
        config.model_copy(update=changes | {"patience": N_EPOCHS}),
        _noise(side),
        [lambda *_: ends.append(time.monotonic())],
    )
    epoch = float(np.diff(ends).min())  # the first epoch includes tracing
    return time.monotonic() - begin - N_EPOCHS * epoch, epoch


def _noise(side: int) -> DecodedDataset:
    count = N_TRAIN + N_VAL
    names = [f"{number}" for number in range(count)]
    rows = pd.DataFrame("", index=range(count), columns=list(COLUMNS))
    rows["path"], rows["patient"], rows["sha256"] = names, names, names
    rows["label"] = np.arange(count) % 2
    rows["split"] = np.where(np.arange(count) < N_TRAIN, "train", "val")
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side), np.uint8)
    dataset = Dataset("noise", "noise", "", True, cache_path(""), cache_path(""), rows)
    return DecodedDataset(dataset, pixels, {}, f"noise of {side} px")
