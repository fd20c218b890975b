"""A stand-in for training, for tests of what is around it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pneumo.data.dataset import DecodedDataset
from pneumo.evaluation.robustness import ROBUST_VERSIONS
from pneumo.training import network
from pneumo.training.config import RunConfig
from pneumo.training.fit import EpochCallback
from pneumo.training.train import TrainingResult


@contextmanager
def without_fits(separation: float | None = None) -> Iterator[None]:
    """Use `train_nothing` in place of `train` in the trials of this process."""
    with pytest.MonkeyPatch.context() as patch:
        stub = partial(train_nothing, separation=separation)
        patch.setattr("pneumo.tuning.trial.train", stub)
        yield


def train_nothing(
    config: RunConfig,
    images: DecodedDataset,
    callbacks: Sequence[EpochCallback] = (),
    max_unfreeze_depth: int = 0,
    separation: float | None = None,
) -> TrainingResult:
    """Return an untrained network, with scores that the config alone decides.

    It must be the config of one network. The callbacks get a score that rises up to the last epoch.

    Args:
        config: See `train`.
        images: See `train`.
        callbacks: See `train`.
        max_unfreeze_depth: Not used.
        separation: How far apart the logits of the classes are, in standard deviations. By default
            it follows from the dropout, which most search spaces have.
    """
    labels = images.split("val").labels
    noise = np.random.default_rng(config.seed).normal(size=len(labels))
    logits = (4 * config.dropout if separation is None else separation) * labels + noise
    auc = float(roc_auc_score(labels, logits))
    names = "loss", "auc", "val_loss", "val_auc", config.objective
    for epoch in range(1, config.epochs + 1):
        metrics = dict.fromkeys(names, auc * epoch / config.epochs)
        if True in [callback(epoch, metrics) for callback in callbacks]:
            break
    versions = dict.fromkeys(ROBUST_VERSIONS, logits)
    model = network.build_model(config)
    return TrainingResult(model, (epoch,), versions, logits, (auc,), (auc,))
