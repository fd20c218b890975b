"""Training of one model, independent of MLflow and Optuna."""

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from pneumo.data.dataset import DecodedDataset
from pneumo.evaluation.robustness import robust_auc
from pneumo.inference.logits import build_ensemble
from pneumo.training.config import RunConfig, derive_seed
from pneumo.training.fit import ROBUST_VERSIONS, EpochCallback, EpochEnd, fit_network


@dataclass(frozen=True)
class TrainingResult:
    """A trained model, each of its members with the weights of its best epoch, the first of equals.

    Attributes:
        model: The model.
        best_epochs: Best epoch of each member, from 1.
        val_logits: Logits of the validation images in their order: float64, shape (images,).
        perturbed_logits: The same if `perturb.ALL_PERTURBATIONS` change the images in turn.
        robust_auc: See `robustness.robust_auc`.
    """

    model: keras.Model
    best_epochs: tuple[int, ...]
    val_logits: np.ndarray
    perturbed_logits: np.ndarray
    robust_auc: float


def train(
    config: RunConfig,
    images: DecodedDataset,
    callbacks: Sequence[EpochCallback] = (),
    max_unfreeze_depth: int = 0,
) -> TrainingResult:
    """Fit the model of a config on `train`, and keep the weights that are best on `val`.

    Members are fitted one after the other, each from its own seed; epochs are counted through all
    of them. Early stopping ends a phase after `patience` epochs without a better objective. Both
    classes weigh the same, whatever their fractions, so the probabilities assume a prevalence of
    50 %.

    Args:
        config: Config of the run.
        images: The decoded data set.
        callbacks: Called after each epoch.
        max_unfreeze_depth: Greatest `unfreeze_depth` of the runs that share cached features with
            this one.

    Returns:
        The trained model with its logits of validation.

    Raises:
        TrainingDivergedError: The loss or a logit is not finite.
        Exception: Whatever a callback raises.
    """
    report = EpochEnd(callbacks)
    members = [
        fit_network(config.model_copy(update={"seed": seed}), images, max_unfreeze_depth, report)
        for seed in _member_seeds(config)
    ]
    logits = {
        version: np.mean([member.logits[version] for member in members], axis=0)
        for version in ROBUST_VERSIONS
    }
    return TrainingResult(
        model=build_ensemble([member.model for member in members], config.flip_tta == "on"),
        best_epochs=tuple(member.best_epoch for member in members),
        val_logits=logits[None],
        perturbed_logits=np.mean([member.perturbed_logits for member in members], axis=0),
        robust_auc=robust_auc(images.split("val").labels, logits),
    )


def _member_seeds(config: RunConfig) -> list[int]:
    """Return the config's own seed, and others derived from it."""
    others = (derive_seed(config.seed, number) for number in range(1, config.ensemble_size))
    return [config.seed, *others]
