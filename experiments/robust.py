"""Which score from training data alone ranks models as the official test does?

Command:
    mlflow run . -e tune -P experiment=robust -P trials=61 -P study=robust -P data=PATH, then, in
    the folder with its stores, python -m tests.benchmarks.robust --data PATH --study robust

Expected:
    Written down before any of these models was evaluated on test. Among the trials with a
    validation AUC of 0.98 or more, the rank correlation of val_robust_auc with the AUC on test is
    greater than that of val_auc, with the lower bound of the difference above 0. In studies of 20
    trials, the choice by val_robust_auc loses at most half as much AUC on test.

Result:
    Not run yet.

Interpretation:
    The 60 settings are random points of the search space of experiments/best.py, and random
    sharpness: one network each, six epochs, fresh augmentation.
"""

import numpy as np
from optuna import Trial

from pneumo.training.config import RunConfig

BASE = RunConfig(
    backbone="mobilenet",
    alpha=0.25,
    weights="imagenet",
    image_size=96,
    dropout=0.25,
    dense_widths=(),
    augment_strength=0.5,
    max_crop_fraction=0.4,
    horizontal_flip="on",
    flip_tta="on",
    unfreeze_depth=13,
    learning_rate=1e-3,
    lr_schedule="cosine",
    head_epochs=0,
    fine_tune_lr_factor=1.0,
    epochs=6,
    patience=6,
    objective="val_robust_auc",
    threshold_rule="midpoint",
    feature_cache="off",
)

SETTINGS = 60
PRUNE = False


def _setting(number: int) -> dict[str, float | str]:
    """Return a random point of the space below."""
    rng = np.random.default_rng(number)
    return {
        "dropout": round(rng.uniform(0, 0.5), 2),
        "dense_widths_1": 32 * int(rng.integers(3)),
        "augment_strength": 0.25 * int(rng.integers(4)),
        "max_crop_fraction": 0.2 * int(rng.integers(4)),
        "horizontal_flip": str(rng.choice(["off", "on"])),
        "sharpness_jitter": 0.5 * int(rng.integers(3)),
        "unfreeze_depth": int(rng.integers(4, 14)),
        "learning_rate": float(10 ** rng.uniform(np.log10(3e-4), np.log10(2.5e-3))),
    }


ENQUEUED_TRIALS = [_setting(number) for number in range(SETTINGS)]


def suggest(trial: Trial, base: RunConfig) -> RunConfig:
    flip = trial.suggest_categorical("horizontal_flip", ["off", "on"])
    return base.override(
        {
            "dropout": trial.suggest_float("dropout", 0.0, 0.5),
            "dense_widths": (trial.suggest_int("dense_widths_1", 0, 64, step=32),),
            "augment_strength": trial.suggest_float("augment_strength", 0.0, 0.75, step=0.25),
            "max_crop_fraction": trial.suggest_float("max_crop_fraction", 0.0, 0.6, step=0.2),
            "horizontal_flip": flip,
            "flip_tta": flip,
            "sharpness_jitter": trial.suggest_float("sharpness_jitter", 0.0, 1.0, step=0.5),
            "unfreeze_depth": trial.suggest_int("unfreeze_depth", 4, 13),
            "learning_rate": trial.suggest_float("learning_rate", 3e-4, 2.5e-3, log=True),
        }
    )
