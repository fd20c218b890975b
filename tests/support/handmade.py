"""Images whose halves are bright for pneumonia, and models of one half."""

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

from pneumo.data.dataset import Dataset
from pneumo.evaluation.metrics import calibration_metrics, evaluate_predictions
from pneumo.inference.decode import DECODER_VERSION
from pneumo.inference.logits import predict_proba
from pneumo.tracking import model_files, models, registry, results, runs
from pneumo.training.config import RunConfig

SIDE, NOISE = 32, 20.0
# How far apart the classes are in each half, in standard deviations of the noise
SEPARATION = {"left": 3.5, "right": 2.2}
PATIENTS = {"train": 40, "test": 100}  # of each class


def write_images(folder: Path) -> Path:
    """Write a data set of one image per patient; the right half predicts the label less well."""
    rng = np.random.default_rng(0)
    for split, count in PATIENTS.items():
        for number in range(count):
            number += 1000 * (split == "test")
            for sick, file in enumerate((f"IM-{number}-1.png", f"person{number}_virus_1.png")):
                place = folder / split / ("NORMAL", "PNEUMONIA")[sick] / file
                place.parent.mkdir(parents=True, exist_ok=True)
                halves = [
                    128 + NOISE * (rng.normal() + separation * (sick - 0.5))
                    for separation in SEPARATION.values()
                ]
                row = np.repeat(np.clip(halves, 0, 255).astype(np.uint8), SIDE // 2)
                Image.fromarray(np.tile(row, (SIDE, 1))).save(place)
    return folder


def looking(half: str) -> keras.Model:
    """Build a calibrated model of the mean of one half."""
    slope = SEPARATION[half] / NOISE
    kernel = np.zeros((SIDE, SIDE))
    kernel[:, slice(SIDE // 2) if half == "left" else slice(SIDE // 2, None)] = 2 / SIDE**2
    pixels = keras.Input((SIDE, SIDE, 1), dtype="uint8")
    features = layers.Flatten()(layers.Rescaling(1.0)(pixels))
    backbone = keras.Model(pixels, features, name="backbone")
    head = keras.Sequential([keras.Input((SIDE**2,)), layers.Dense(1)], name="head")
    head.set_weights([slope * kernel.reshape(-1, 1), np.array([-128 * slope])])
    return keras.Model(pixels, head(backbone(pixels)))


def run_of(half: str, dataset: Dataset, threshold: float = 0.3, **tags: str) -> tuple[str, str]:
    """Log a Keras run of such a model as `train` does; return its id and the model's URI."""
    model, images = looking(half), dataset.decode(SIDE, 0)
    val = images.split("val")
    probabilities = predict_proba(model, val.images)
    settings = {
        "threshold": threshold,
        "slope": 1.0,
        "intercept": 0.0,
        "prevalence": 0.5,
        "val_uncalibrated": calibration_metrics(val.labels, probabilities),
        "resize": "squash",
        "decoder": DECODER_VERSION,
    }
    tags = runs.provenance_tags("handmade", dataset) | tags
    with runs.command_run("train", "handmade", tags) as parent:
        config = RunConfig(image_size=SIDE)
        with runs.trial_run(parent, half, config.to_params(), tags) as run_id:
            results.log_epoch(run_id, 1, dict.fromkeys(("loss", "auc", "val_loss", "val_auc"), 0.5))
            evaluation = evaluate_predictions(val, probabilities, threshold)
            results.log_evaluation("val", evaluation)
            results.log_files(images)
            uri = model_files.log_model(run_id, model, settings).model_uri
    return run_id, uri


def register(made: tuple[str, str], name: str) -> models.LoadedModel:
    """Register the result of `run_of` as the next version of `name` and its challenger."""
    run_id, uri = made
    with pytest.MonkeyPatch.context() as patch:  # without the example MLflow predicts nothing
        patch.setattr(registry, "example_file", lambda: None)
        return registry.register(run_id, model_files.load_model(uri), name)
