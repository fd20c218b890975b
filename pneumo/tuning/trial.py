"""One Keras run under MLflow, as `train` runs it once and a study many times."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.special import expit

from pneumo.data.dataset import Dataset, DecodedDataset
from pneumo.evaluation.metrics import (
    Evaluation,
    calibration_metrics,
    evaluate_predictions,
    fit_calibration,
    limit_threshold,
    midpoint_threshold,
    youden_threshold,
)
from pneumo.inference.decode import DECODER_VERSION
from pneumo.inference.pyfunc import PneumoniaModel
from pneumo.reporting.plots import confusion_matrix_file
from pneumo.runtime import signals
from pneumo.tracking import model_files, results, runs
from pneumo.training.config import RunConfig
from pneumo.training.fit import EpochCallback
from pneumo.training.train import TrainingResult, fit_input_gate, train

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

    The calibration comes from validation. The threshold comes from validation images after
    `perturb.ALL_PERTURBATIONS`, because a threshold of the unchanged images does not fit images
    from elsewhere; `metrics.limit_threshold` bounds what that costs. Training has a thread of its
    own, so that a signal does not wait for it.

    With several folds, each image of training and validation is predicted by the networks of its
    own fold, calibrated on their own. The AUCs are then means over folds and repeats, because
    scores of different networks cannot be pooled without bias (Forman and Scholz 2010).

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
    with runs.trial_run(params=config.to_params(), **run) as run_id:
        images = dataset.decode(config.image_size, config.max_unreadable, config.resize)
        log_inputs(config, images)
        report = [partial(results.log_epoch, run_id), *callbacks]
        result = signals.run_in_thread(
            lambda: train(config, images, report, max_unfreeze_depth), meanwhile
        )
        for number, epoch in enumerate(result.best_epochs):
            results.log_best_epoch(number, number * config.epochs + epoch)
        clock.append(time.monotonic())
        evaluation = log_evaluation(config, images, result)
        clock.append(time.monotonic())
        model_uri = log_model(run_id, config, result, evaluation)
        clock.append(time.monotonic())
    seconds = dict(zip(STAGES, map(float, np.diff(clock)), strict=True))
    return TrialResult(run_id, model_uri, evaluation.metrics, seconds)


def log_inputs(config: RunConfig, images: DecodedDataset) -> None:
    """Log the images that train and validate a config's networks as inputs of the active run.

    With several folds these are the same images.
    """
    parts = [("train", "val")] if config.folds > 1 else [("train",), ("val",)]
    results.log_inputs(images, *parts)


def log_evaluation(config: RunConfig, images: DecodedDataset, result: TrainingResult) -> Evaluation:
    """Evaluate a trained model on the images that validate it, and log that to the active run."""
    evaluation = _evaluate(config, images, result)
    files = confusion_matrix_file("val", evaluation)
    files["logits.npz"] = results.pack_logits(result.logits, result.perturbed_logits)
    results.log_evaluation("val", evaluation, files)
    results.log_files(images)
    return evaluation


def log_model(
    run_id: str, config: RunConfig, result: TrainingResult, evaluation: Evaluation
) -> str:
    """Log a trained model with its settings to a run, and return its URI."""
    labels, logits = evaluation.predictions["label"].to_numpy(), result.val_logits
    settings = {
        "threshold": evaluation.metrics["threshold"],
        **fit_calibration(labels, logits)._asdict(),
        "prevalence": float(labels.mean()),
        "val_uncalibrated": calibration_metrics(labels, expit(logits)),
        "resize": config.resize,
        "decoder": DECODER_VERSION,
    }
    return model_files.log_model(run_id, result.model, settings).model_uri


def load_with_gate(model_uri: str, dataset: Dataset, max_unreadable: float) -> PneumoniaModel:
    """Load a trial's model, and fit the gate that its registered version needs.

    Args:
        model_uri: URI of the model.
        dataset: The images that it was trained on.
        max_unreadable: Maximum fraction of unreadable images.
    """
    model = model_files.load_model(model_uri)
    images = dataset.decode(model.image_size, max_unreadable, model.settings["resize"])
    model.use_gate(fit_input_gate(model.keras_model, images))
    return model


def _evaluate(config: RunConfig, images: DecodedDataset, result: TrainingResult) -> Evaluation:
    """Evaluate the networks on the images that validate them."""
    val = images.validation(config.folds)
    calibrated, perturbed = np.empty((2, len(val.rows)))
    fold_of_image = np.zeros(len(val.rows), np.int64)
    for number, fold in enumerate(images.folds(config.folds, config.split_by)):
        rows = fold.val.indices
        calibration = fit_calibration(fold.val.labels, result.val_logits[rows])
        calibrated[rows] = calibration.calibrate(result.val_logits[rows])
        perturbed[rows] = calibration.calibrate(result.perturbed_logits[rows])
        fold_of_image[rows] = number
    probabilities = expit(calibrated)
    threshold = limit_threshold(
        _threshold(config, val.labels, perturbed), val.labels, probabilities
    )
    evaluation = evaluate_predictions(val, probabilities, threshold)
    evaluation.metrics["robust_auc"] = float(np.mean(result.robust_aucs))
    if config.folds > 1:
        evaluation.predictions["fold"] = fold_of_image
    if len(result.aucs) > 1:
        evaluation.metrics["auc"] = float(np.mean(result.aucs))
        evaluation.metrics["auc_sd"] = float(np.std(result.aucs, ddof=1))
    return evaluation


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
