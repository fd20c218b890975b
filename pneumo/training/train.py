"""Training of one model, independent of MLflow and Optuna."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import keras
import numpy as np
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from pneumo.data.dataset import DecodedDataset, Fold, Subset
from pneumo.evaluation.robustness import ROBUST_VERSIONS, VersionLogits, robust_auc
from pneumo.inference.input_gate import InputGate
from pneumo.inference.logits import (
    build_ensemble,
    ensemble_members,
    optimize_for_inference,
    predict_in_batches,
    with_features,
)
from pneumo.training.config import RunConfig, derive_seed
from pneumo.training.fit import EpochCallback, FittedNetwork, fit_network
from pneumo.training.network import blocks

GATE_QUANTILE = 0.999  # of the distances of validation images, which is the limit
# The limit is the distance of one of these images, which rounds differently in another batch size
GATE_TOLERANCE = 1e-3
# Images of a split that are used, because their features take as long as their prediction
MAX_GATE_IMAGES = 2_000


@dataclass(frozen=True)
class TrainingResult:
    """A trained model, and what its networks predict for the images that validate them.

    Logits have the order of `DecodedDataset.validation(config.folds)`. Those of an image are the
    mean over the networks that it validates, none of which was trained on its patient.

    Attributes:
        model: The model, the average of all networks, each with the weights of its best epoch.
        best_epochs: Best epoch of each network, from 1, the first of equals.
        logits: Logits of `ROBUST_VERSIONS` of the images: float64, shape (images,) each.
        perturbed_logits: Logits if `perturb.ALL_PERTURBATIONS` change the images in turn.
        aucs: Validation AUC of each fold and repeat.
        robust_aucs: `robustness.robust_auc` of each fold and repeat.
    """

    model: keras.Model
    best_epochs: tuple[int, ...]
    logits: VersionLogits
    perturbed_logits: np.ndarray
    aucs: tuple[float, ...]
    robust_aucs: tuple[float, ...]

    @property
    def val_logits(self) -> np.ndarray:
        """Return the logits of the unchanged images."""
        return self.logits[None]


def train(
    config: RunConfig,
    images: DecodedDataset,
    callbacks: Sequence[EpochCallback] = (),
    max_unfreeze_depth: int = 0,
) -> TrainingResult:
    """Fit the networks of a config, and keep the weights that are best on validation images.

    There are `ensemble_size` networks for each repeat in each fold. They are fitted one after the
    other, each from its own seed. Epochs are counted from 1 through all networks, as if none of
    them stopped early. Early stopping ends a phase after `patience` epochs without a better
    objective. Both classes weigh the same, whatever their fractions, so the probabilities assume a
    prevalence of 50 %.

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
        UserError: There are too few images for so many folds.
        Exception: Whatever a callback raises.
    """
    networks: list[FittedNetwork] = []
    aucs: list[float] = []
    robust_aucs: list[float] = []
    n_images = len(images.validation(config.folds).labels)
    logits = {version: np.zeros(n_images) for version in ROBUST_VERSIONS}
    perturbed_logits = np.zeros(n_images)

    def fit(fold: Fold) -> FittedNetwork:
        number = len(networks)
        seed = derive_seed(config.seed, number) if number else config.seed
        seeded, earlier_epochs = config.model_copy(update={"seed": seed}), number * config.epochs
        network = fit_network(seeded, fold, callbacks, earlier_epochs, max_unfreeze_depth)
        networks.append(network)
        return network

    for fold in images.folds(config.folds, config.split_by):
        rows, labels = fold.val.indices, fold.val.labels
        for _ in range(config.repeats):
            members = [fit(fold) for _ in range(config.ensemble_size)]
            own_logits, perturbed = _mean_logits(members)
            for version, values in own_logits.items():
                logits[version][rows] += values / config.repeats
            perturbed_logits[rows] += perturbed / config.repeats
            aucs.append(float(roc_auc_score(labels, own_logits[None])))
            robust_aucs.append(robust_auc(labels, own_logits))
    return TrainingResult(
        model=build_ensemble([network.model for network in networks], config.flip_tta == "on"),
        best_epochs=tuple(network.best_epoch for network in networks),
        logits=logits,
        perturbed_logits=perturbed_logits,
        aucs=tuple(aucs),
        robust_aucs=tuple(robust_aucs),
    )


def _mean_logits(members: list[FittedNetwork]) -> tuple[VersionLogits, np.ndarray]:
    """Return the means over members of their logits of each version, and of perturbed images."""
    logits = {
        version: np.mean([member.logits[version] for member in members], axis=0)
        for version in ROBUST_VERSIONS
    }
    return logits, np.mean([member.perturbed_logits for member in members], axis=0)


def fit_input_gate(model: keras.Model, images: DecodedDataset) -> InputGate:
    """Fit a gate to training images, with its limit from validation images.

    The features are those of the last block whose maps are larger than the backbone's last ones.
    Later blocks keep mostly what separates the classes, and detect fewer images. The covariance is
    shrunk (Ledoit and Wolf, Journal of Multivariate Analysis 2004, 88:365), so that it has an
    inverse if there are fewer images than features.

    Args:
        model: Model as `build_ensemble` returns it. Of an ensemble the first member counts.
        images: Its images, of which at most `MAX_GATE_IMAGES` of each split are used.
    """
    backbone = ensemble_members(model)[0].get_layer("backbone")
    *_, last_maps = (layer.output for layer in backbone.layers if len(layer.output.shape) == 4)
    ends = [block[-1] for block in blocks(backbone, model.name)[:-1]]
    *_, end = (end for end in ends if end.output.shape[1] > last_maps.shape[1])
    network = optimize_for_inference(with_features(model, end.name))

    def features(name: str) -> np.ndarray:
        split = images.split(name)
        count = len(split.labels)
        chosen = np.linspace(0, count - 1, min(count, MAX_GATE_IMAGES)).astype(int)
        batches = predict_in_batches(network, Subset(split, chosen).images)
        # In float32 the inverse would lose small eigenvalues
        return np.concatenate([means for _, means in batches], dtype=np.float64)

    fitted = LedoitWolf().fit(features("train"))
    gate = InputGate(
        end.name, fitted.location_.astype(np.float32), fitted.precision_.astype(np.float32), np.inf
    )
    limit = np.quantile(gate.measure_distances(features("val")), GATE_QUANTILE, method="nearest")
    return replace(gate, limit=float(limit) * (1 + GATE_TOLERANCE))
