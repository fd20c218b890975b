"""Logits of validation and test of the models of a study's trials, computed once each."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from scipy.ndimage import laplace

from pneumo.data import perturb
from pneumo.data.dataset import Dataset, DecodedDataset, Split
from pneumo.evaluation.robustness import Version
from pneumo.inference.logits import predict_logits
from pneumo.runtime.console import track
from pneumo.tracking import evaluations, models, registry

KEPT = Path("criterion")
CLEAN, TEST, SHARPNESS = "clean", "test", "sharpness"


def version_name(version: Version) -> str:
    """Return the name under which the logits of a version of validation are stored."""
    return f"{version[0]} {version[1]:g}" if version else CLEAN


VERSIONS = {version_name(version): version for version in perturb.ALL_PERTURBATIONS}


@dataclass(frozen=True)
class Trial:
    """Output of a model: float64 logits of test and of each version of validation.

    `setting`: its suggestions, which trials with other seeds share; `sharpness` of the images;
    `metrics` of its run.
    """

    number: int
    params: dict[str, Any]
    setting: str
    logits: dict[str, np.ndarray]
    sharpness: np.ndarray
    metrics: dict[str, float]


def trials_of(
    study: optuna.Study, dataset: Dataset, needed: Mapping[str, Version] = VERSIONS
) -> list[Trial]:
    """Return all complete trials with their logits of test and of the needed versions, by name."""
    KEPT.mkdir(exist_ok=True)
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    shown = track(complete, len(complete), f"Asking the models of {study.study_name}")
    return [_asked(study.study_name, trial, dataset, needed) for trial in shown]


def _asked(
    study: str, trial: FrozenTrial, dataset: Dataset, needed: Mapping[str, Version]
) -> Trial:
    file = KEPT / f"{study}-{trial.number}.npz"
    known: dict[str, np.ndarray] = {}
    if file.exists():
        with np.load(file) as found:
            known = dict(found)
    missing = {name: it for name, it in {CLEAN: None, **needed}.items() if name not in known}
    if missing:
        stored = models.find_model(trial.user_attrs["model_uri"])
        network = stored.model.keras_model
        images = dataset.decode(network.input_shape[1], 0.01, stored.model.settings["resize"])
        val = images.split("val")
        if not known:
            known = {TEST: _look_at_test(stored, images), SHARPNESS: _sharpness(val)}
        known |= {name: _logits(network, val, version) for name, version in missing.items()}
        np.savez(file, **known)
    sharpness = known.pop(SHARPNESS)
    metrics = mlflow.get_run(trial.user_attrs["run_id"]).data.metrics
    setting = f"{study} {sorted(trial.params.items())}"
    return Trial(trial.number, trial.params, setting, known, sharpness, metrics)


def _look_at_test(stored: models.LoadedModel, images: DecodedDataset) -> np.ndarray:
    looked_at = images.dataset.images_digest("test")
    evaluations.record_look(stored.model_id, looked_at)
    looks = evaluations.count_looks(looked_at)
    registry.log_test_evaluations(stored, looks[stored.model_id])
    return predict_logits(stored.model.keras_model, images.split("test").images)


def _logits(network: keras.Model, val: Split, version: Version) -> np.ndarray:
    if version is None:
        return predict_logits(network, val.images)
    changed = [perturb.perturb(image[..., 0], *version) for image in val.images]
    return predict_logits(network, np.stack(changed)[..., np.newaxis])


def _sharpness(val: Split) -> np.ndarray:
    return laplace(val.images[..., 0].astype(np.float32), axes=(1, 2)).var(axis=(1, 2))


def in_turn(trial: Trial) -> np.ndarray:
    """Perturb images as `perturb.perturb_split` does: each in one version, in turn."""
    table = np.stack([trial.logits[version] for version in VERSIONS])
    places = np.arange(table.shape[1])
    return table[places % len(table), places]
