"""Speed of this machine: how long training takes, measured in seconds and stored."""

import json
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf
from joblib import cpu_count

from pneumo.data.dataset import Dataset, DecodedDataset
from pneumo.data.schema import COLUMNS
from pneumo.runtime import cache, signals
from pneumo.runtime.cache_entries import OWN_PREFIX, cache_path
from pneumo.runtime.machine import visible_gpus
from pneumo.training.augment import AUGMENTATION_VERSION
from pneumo.training.config import RunConfig
from pneumo.training.train import train
from pneumo.tuning.planning.fingerprint import TrainingSpeed

# In the cache: machine and network → the fields of `TrainingSpeed`, and when it was measured
SPEED_FILE = f"{OWN_PREFIX}speed.json"
MAX_AGE_SECONDS = 7 * 24 * 3_600  # of a measurement, which another program may have disturbed
IMAGE_SIDES = (64, 128)  # pixels
N_IMAGES = 512  # to train on, of noise; a quarter as many validate, as in a data set
N_IMAGES_OF_LARGE_NETWORKS = 64  # in which time for Python does not count
MAX_ALPHA = 0.5  # of a MobileNet that is small
N_EPOCHS = 3

# Fields of `RunConfig` on which the cost of an image depends
COST_FIELDS = (
    *("backbone", "alpha", "unfreeze_depth", "objective", "batch_size"),
    *("augment_strength", "max_crop_fraction", "sharpness_jitter", "horizontal_flip"),
)


def measure_training(config: RunConfig) -> TrainingSpeed:
    """Measure how long a config trains on this machine, or read the stored measurement.

    Networks are trained on noise, at two sizes, without cached features.

    Args:
        config: Config of a run. Only its `COST_FIELDS`, and whether it has pretrained weights, have
            an influence.
    """
    with cache.lock(SPEED_FILE):
        file = cache_path(SPEED_FILE)
        measurements, key = _read(file), _key(config)
        stored = measurements.get(key, {})
        if time.time() - stored.pop("time", 0.0) > MAX_AGE_SECONDS:
            speed = signals.run_in_thread(lambda: _measure(config))
            measurements[key] = {**asdict(speed), "time": time.time()}
            file.write_text(json.dumps(measurements))
            return speed
        return TrainingSpeed(**stored)


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """Read the measurements; there are none if a killed process has written half of the file."""
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _key(config: RunConfig) -> str:
    devices = [f"{cpu_count()} cores", *visible_gpus()]
    fields = [f"{name} {getattr(config, name)}" for name in COST_FIELDS]
    fields.append("from scratch" if config.weights == "none" else "pretrained")
    versions = [f"TensorFlow {tf.__version__}", f"augmentation {AUGMENTATION_VERSION}"]
    return ", ".join([platform.node(), *devices, *versions, *fields])


def _measure(config: RunConfig) -> TrainingSpeed:
    is_small = config.backbone == "cnn" or (
        config.backbone == "mobilenet" and config.alpha <= MAX_ALPHA
    )
    count = N_IMAGES if is_small else N_IMAGES_OF_LARGE_NETWORKS
    measured = [_measure_at(config, side, count) for side in IMAGE_SIDES]
    (start, of_small), (_, of_large) = measured
    areas = [side**2 for side in IMAGE_SIDES]
    per_pixel = max(0.0, (of_large - of_small) / (areas[1] - areas[0]))
    per_image = max(0.0, of_small - per_pixel * areas[0])
    return TrainingSpeed(start, per_image / count, per_pixel / count)


def _measure_at(config: RunConfig, side: int, count: int) -> tuple[float, float]:
    """Return the seconds of training besides its epochs, and those of an epoch."""
    fields = {name: getattr(config, name) for name in (*COST_FIELDS, "weights")}
    begin = time.monotonic()
    ends: list[float] = []
    train(
        RunConfig(
            **fields,
            image_size=side,
            epochs=N_EPOCHS,
            patience=N_EPOCHS,
            head_epochs=0,
            feature_cache="off",
        ),
        _noise(side, count),
        [lambda *_: ends.append(time.monotonic())],
    )
    epoch = float(np.diff(ends).min())  # the first epoch includes tracing
    return time.monotonic() - begin - N_EPOCHS * epoch, epoch


def _noise(side: int, n_train: int) -> DecodedDataset:
    count = n_train + n_train // 4
    names = [f"{number}" for number in range(count)]
    rows = pd.DataFrame("", index=range(count), columns=list(COLUMNS))
    rows["path"], rows["patient"], rows["sha256"] = names, names, names
    rows["label"] = np.arange(count) % 2
    rows["split"] = np.where(np.arange(count) < n_train, "train", "val")
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side), np.uint8)
    dataset = Dataset("noise", "noise", "", True, cache_path(""), cache_path(""), rows)
    return DecodedDataset(dataset, pixels, {}, f"noise of {side} px")
