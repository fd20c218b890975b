"""One Keras run under MLflow, as `train` runs it once and a study many times."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.special import expit

from pneumo.data.dataset import Dataset
from pneumo.evaluation.metrics import (
    calibration_metrics,
    evaluate_predictions,
    fit_temperature,
    midpoint_threshold,
    youden_threshold,
)
from pneumo.inference.decode import DECODER_VERSION
from pneumo.inference.logits import to_probabilities
from pneumo.reporting.plots import confusion_matrix_file
from pneumo.runtime import signals
from pneumo.tracking import model_files, results, runs
from pneumo.training.config import RunConfig
from pneumo.training.fit import EpochCallback
from pneumo.training.train import train

STAGES = ("training", "evaluation", "storing the model")  # of a trial, in this order


@dataclass(frozen=True)
class TrialResult:
    """A finished Keras run.

    Attributes:
        run_id: Id of its MLflow run.
        model_uri: URI of its stored model.
        metrics: Metrics on validation: name → value.
        seconds: Duration of each of its `STAGES`.
    """

    run_id: str
    model_uri: str
    metrics: dict[str, float]
    seconds: dict[str, float]


def run_trial(
    config: RunConfig,
    dataset: Dataset,
    callbacks: Sequence[EpochCallback] = (),
    max_unfreeze_depth: int = 0,
    meanwhile: Callable[[], None] = lambda: None,
    **run: Any,
) -> TrialResult:
    """Train a model, evaluate it on validation and store all of it in a run.

    The temperature comes from validation. The threshold comes from validation images after
    `perturb.ALL_PERTURBATIONS`, because a threshold of the unchanged images does not fit images
    from elsewhere. Training has a thread of its own, so that a signal does not wait for it.

    Args:
        config: Config of the run.
        dataset: The images; only training and validation are used.
        callbacks: See `train`; called in the training's thread.
        max_unfreeze_depth: See `train`.
        meanwhile: Called in the calling thread, twice a second while the model trains.
        **run: See `runs.trial_run`.

    Returns:
        The run, its model and its metrics.

    Raises:
        Exception: Whatever `train` raises, after the run has been ended.
    """
    clock = [time.monotonic()]
    with runs.trial_run(config=config, **run) as run_id:
        images = dataset.decode(config.image_size, config.max_unreadable, config.resize)
        report = [partial(results.log_epoch, run_id), *callbacks]
        result = signals.run_in_thread(
            lambda: train(config, images, report, max_unfreeze_depth), meanwhile
        )
        clock.append(time.monotonic())
        val = images.split("val")
        temperature = fit_temperature(val.labels, result.val_logits)
        probabilities = to_probabilities(result.val_logits, temperature)
        threshold = _threshold(config, val.labels, result.perturbed_logits / temperature)
        evaluation = evaluate_predictions(val, probabilities, threshold)
        evaluation.metrics["robust_auc"] = result.robust_auc
        results.log_evaluation("val", evaluation, confusion_matrix_file("val", evaluation))
        results.log_files(images)
        clock.append(time.monotonic())
        settings = {
            "threshold": threshold,
            "temperature": temperature,
            "val_uncalibrated": calibration_metrics(val.labels, expit(result.val_logits)),
            "resize": config.resize,
            "decoder": DECODER_VERSION,
        }
        model_uri = model_files.log_model(run_id, result.model, settings).model_uri
        clock.append(time.monotonic())
    seconds = dict(zip(STAGES, map(float, np.diff(clock)), strict=True))
    return TrialResult(run_id, model_uri, evaluation.metrics, seconds)


def _threshold(config: RunConfig, labels: np.ndarray, logits: np.ndarray) -> float:
    if config.threshold_rule == "midpoint":
        return midpoint_threshold(labels, logits)
    return youden_threshold(labels, expit(logits))


def run_name(config: RunConfig) -> str:
    """Describe a config in few words, for lists of runs."""
    return (
        f"{config.to_params()['dense_widths']} · drop {config.dropout:.2g} · "
        f"unfreeze {config.unfreeze_depth}"
    )
