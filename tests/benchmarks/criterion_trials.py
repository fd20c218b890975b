"""Logits of validation and test of the models of a study's trials, computed once each."""

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from scipy.ndimage import laplace

from pneumo.data import perturb
from pneumo.data.dataset import Dataset, Split
from pneumo.inference.logits import predict_logits
from pneumo.runtime.console import track
from pneumo.tracking import evaluations, models, registry

KEPT = Path("criterion")
CLEAN, TEST, SHARPNESS = "clean", "test", "sharpness"
VERSIONS = {f"{name} {amount:g}": (name, amount) for name, amount in perturb.ALL_PERTURBATIONS}


@dataclass(frozen=True)
class Trial:
    """Output of a model: float64 logits of test and of each version of validation.

    `setting`: its suggestions, which trials with other seeds share; `sharpness` of the images.
    """

    setting: str
    logits: dict[str, np.ndarray]
    sharpness: np.ndarray


def trials_of(study: optuna.Study, dataset: Dataset) -> list[Trial]:
    """Return all complete trials."""
    KEPT.mkdir(exist_ok=True)
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    shown = track(complete, len(complete), f"Asking the models of {study.study_name}")
    return [_asked(study.study_name, trial, dataset) for trial in shown]


def _asked(study: str, trial: FrozenTrial, dataset: Dataset) -> Trial:
    file = KEPT / f"{study}-{trial.number}.npz"
    if not file.exists():
        stored = models.find_model(trial.user_attrs["model_uri"])
        looked_at = dataset.images_digest("test")
        evaluations.record_look(stored.model_id, looked_at)
        looks = evaluations.count_looks(looked_at)
        registry.log_test_evaluations(stored, looks[stored.model_id])
        network = stored.model.keras_model
        images = dataset.decode(network.input_shape[1], 0.01, stored.model.settings["resize"])
        np.savez(file, **_logits(network, images.split("val"), images.split("test")))
    with np.load(file) as found:
        logits = dict(found)
    sharpness = logits.pop(SHARPNESS)
    return Trial(f"{study} {sorted(trial.params.items())}", logits, sharpness)


def _logits(network: keras.Model, val: Split, test: Split) -> dict[str, np.ndarray]:
    def of(images: np.ndarray) -> np.ndarray:
        return predict_logits(network, images)

    found = {CLEAN: of(val.images), TEST: of(test.images)}
    for version, end in VERSIONS.items():
        changed = [perturb.perturb(image[..., 0], *end) for image in val.images]
        found[version] = of(np.stack(changed)[..., np.newaxis])
    edges = laplace(val.images[..., 0].astype(np.float32), axes=(1, 2))
    return {**found, SHARPNESS: edges.var(axis=(1, 2))}


def in_turn(trial: Trial) -> np.ndarray:
    """Perturb images as `perturb.perturb_split` does: each in one version, in turn."""
    table = np.stack([trial.logits[version] for version in VERSIONS])
    places = np.arange(table.shape[1])
    return table[places % len(table), places]
