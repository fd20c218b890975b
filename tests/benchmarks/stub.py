"""A stub for training that takes no time, to measure the rest."""

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.metrics import roc_auc_score

from pneumo.data.dataset import DecodedDataset
from pneumo.evaluation.robustness import ROBUST_VERSIONS
from pneumo.inference.logits import build_ensemble
from pneumo.training import network
from pneumo.training.config import RunConfig
from pneumo.training.fit import EpochCallback
from pneumo.training.train import TrainingResult


def stub_of(config: RunConfig) -> Callable[..., TrainingResult]:
    """Return a function to use in place of `train`.

    It calls the callbacks for each epoch, with the same metrics each time, so that no trial is
    pruned. It returns an untrained model, and logits with which it can be registered and evaluated.

    Args:
        config: Config of all trials, except for their dropout.
    """
    seeded = (config.model_copy(update={"seed": seed}) for seed in range(config.ensemble_size))
    model = build_ensemble([network.build_model(it) for it in seeded])

    def train(
        config: RunConfig,
        images: DecodedDataset,
        callbacks: Sequence[EpochCallback] = (),
        max_unfreeze_depth: int = 0,
    ) -> TrainingResult:
        metrics = dict.fromkeys(("loss", "auc", "val_loss", "val_auc"), 0.5)
        for epoch in range(1, config.epochs + 1):
            for callback in callbacks:
                callback(epoch, metrics)
        labels = images.split("val").labels
        logits = 4 * config.dropout * labels + np.random.default_rng(0).normal(size=len(labels))
        auc = float(roc_auc_score(labels, logits))
        versions = dict.fromkeys(ROBUST_VERSIONS, logits)
        return TrainingResult(model, (config.epochs,), versions, logits, (auc,), (auc,))

    return train
