"""The command `evaluate`: metrics, plots and the evidence page for one model on one split."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from mlflow.entities import Run

from pneumo.commands.options.arguments import EvaluateOptions
from pneumo.commands.options.inputs import Inputs
from pneumo.data.dataset import Dataset, DecodedDataset, Split
from pneumo.evaluation import bootstrap, metrics
from pneumo.evaluation.comparison import ScoredPredictions
from pneumo.evaluation.intervals import format_with_interval
from pneumo.evaluation.metrics import Evaluation, evaluate_predictions
from pneumo.evaluation.overlap import Overlap, find_overlap
from pneumo.evaluation.robustness import measure_nuisances
from pneumo.reporting.checklist.files import render_checklist
from pneumo.reporting.evaluation_report import (
    draw_figures,
    list_findings,
    metric_findings,
    metric_rows,
    render_page,
)
from pneumo.reporting.plots import confusion_matrix_file
from pneumo.runtime.console import echo, print_table
from pneumo.runtime.errors import UserError
from pneumo.runtime.tensorflow_import import import_tensorflow
from pneumo.tracking import evaluations, models, registry, results, runs, session, tags
from pneumo.tracking.models import LoadedModel
from pneumo.tracking.tags import EXPERIMENT, PARENT, SKEW
from pneumo.training.config import complete_fields

SKEW_METRICS = ("accuracy", "sensitivity", "specificity", "auc")


def evaluate(options: EvaluateOptions, inputs: Inputs) -> int:
    """Evaluate one model on one split, and return the exit code."""
    import_tensorflow()
    session.connect()
    loaded_model = models.find_model(options.model)
    _require_independent_split(loaded_model, inputs.dataset, options.split)
    if options.prevalence:
        loaded_model.model.adjust_to_prevalence(options.prevalence)
    with evaluation_run(loaded_model, inputs.dataset, options.split) as (run_id, images):
        result = evaluate_model(loaded_model, images, options.split, options.sensitivity)
    print_evaluation(loaded_model, options.split, result)
    if options.preprocessing_skew:
        evaluate_with_skew(loaded_model, images, options.split, result, run_id)
    echo(session.view_hint(run_id))
    return 0


def _require_independent_split(loaded_model: LoadedModel, dataset: Dataset, split: str) -> None:
    """Raise `UserError` for the validation split of a model that was trained in several folds."""
    trial = loaded_model.trial
    is_own_data = trial.data.tags[tags.DATA_DIGEST] == dataset.digest
    n_folds = complete_fields(trial.data.params)["folds"]
    if split == "val" and is_own_data and n_folds != "1":
        raise UserError(
            f"split must not be val for {loaded_model.title}: it was trained in {n_folds} folds, "
            "and most of its networks were trained on these images. What the others predict for "
            f"them is in val/predictions.csv of its run {trial.info.run_id}."
        )


@dataclass(frozen=True)
class EvaluationResult:
    """An evaluation of one model on one split.

    Attributes:
        evaluation: The evaluation.
        numbers: Content of `metrics.json`.
    """

    evaluation: Evaluation
    numbers: dict[str, Any]

    @property
    def findings(self) -> list[str]:
        """Return what a reader must know about the evaluation, in sentences."""
        return self.numbers["findings"]


def images_for(loaded_model: LoadedModel, dataset: Dataset) -> DecodedDataset:
    """Decode a data set's images as a model takes them.

    Args:
        loaded_model: The model.
        dataset: The data set.

    Raises:
        UserError: More files are unreadable than the model's run permits: see `Dataset.decode`.
    """
    max_unreadable = float(loaded_model.trial.data.params["max_unreadable"])
    return dataset.decode(
        loaded_model.model.image_size, max_unreadable, loaded_model.model.settings["resize"]
    )


@contextmanager
def evaluation_run(
    loaded_model: LoadedModel, dataset: Dataset, split: str
) -> Iterator[tuple[str, DecodedDataset]]:
    """Open a run of kind `evaluate`.

    Args:
        loaded_model: The model.
        dataset: The data set.
        split: The split that is evaluated: `test`, `val` or `train`.

    Yields:
        Id of the run, and the images as the model takes them.
    """
    images = images_for(loaded_model, dataset)
    tags = runs.provenance_tags(loaded_model.trial.data.tags[EXPERIMENT], dataset)
    with runs.command_run("evaluate", loaded_model.title, tags) as run_id:
        results.log_data(images, split)
        yield run_id, images


def evaluate_model(
    loaded_model: LoadedModel,
    images: DecodedDataset,
    split_name: str,
    sensitivity: float | None = None,
) -> EvaluationResult:
    """Evaluate a model on a split, and log all results to the active run.

    An evaluation on `test` counts as one more look.

    Args:
        loaded_model: The model.
        images: The images as the model takes them.
        split_name: `test`, `val` or `train`.
        sensitivity: If set, in (0, 1], the threshold is that of `metrics.threshold_at_sensitivity`
            on the validation images of the model's own run. By default it is the model's own.
    """
    files = results.known_files(loaded_model.trial, images.dataset)
    overlap = find_overlap(files, images.dataset, split_name)
    is_external = overlap is not None and overlap.is_external
    adjusted_to = loaded_model.model.adjusted_to
    with evaluations.tag_evaluation(
        loaded_model.title, loaded_model.model_id, split_name, is_external, adjusted_to
    ) as run_id:
        result = _evaluate(loaded_model, images, split_name, sensitivity, overlap)
    is_own_data = loaded_model.trial.data.tags[tags.DATA_DIGEST] == images.dataset.digest
    is_own = _is_own(loaded_model, sensitivity)
    if loaded_model.version and split_name == "test" and is_own and is_own_data:
        registry.record_test_metrics(loaded_model, run_id, result.evaluation.metrics)
    return result


def _evaluate(
    loaded_model: LoadedModel,
    images: DecodedDataset,
    split_name: str,
    sensitivity: float | None,
    overlap: Overlap | None,
) -> EvaluationResult:
    """Compute everything of an evaluation, and log it to the active run."""
    from pneumo.evaluation.heat_maps import HiResCam  # imports TensorFlow
    from pneumo.inference.logits import predict_logits, predict_proba

    looks = _count_look(loaded_model, images.dataset, split_name, overlap)
    split, model = images.split(split_name), loaded_model.model.keras_model
    pixels = split.images
    logits = predict_logits(model, pixels)
    calibration = loaded_model.model.calibration
    probabilities = calibration.to_probabilities(logits)
    evaluation, numbers = _score(loaded_model, split, logits, probabilities, sensitivity)
    numbers["test_evaluations"] = looks[loaded_model.model_id]
    numbers["test_evaluations_of_all_models"] = looks.total()
    numbers["overlap"] = overlap.counts() if overlap else None
    predict = partial(predict_proba, model, calibration=calibration)
    numbers["nuisances"] = measure_nuisances(predict, split, evaluation.predictions)
    findings = list_findings(numbers, images, loaded_model.trial, split_name, overlap)
    numbers["findings"] = list(findings)
    curve = bootstrap.decision_curve(
        evaluation.predictions,
        bootstrap.resample_patients(evaluation.predictions),
        loaded_model.model.adjusted_to,
    )
    numbers["net_benefit"] = curve.to_dict("list")
    numbers["benefit"] = bootstrap.describe_benefit(curve)
    epochs = results.read_epochs(loaded_model.trial.info.run_id)
    pictures = draw_figures(evaluation, curve, pixels, logits, epochs, HiResCam(model))
    page = render_page(loaded_model, images, split_name, evaluation, numbers, pictures)
    files = {
        "metrics.json": json.dumps(_json(numbers), indent=1).encode(),
        "evidence.html": page.encode(),
        **render_checklist(loaded_model, images, split_name, evaluation, numbers),
        **confusion_matrix_file(split_name, evaluation),
        **pictures,
    }
    model_id = loaded_model.model_id if _is_own(loaded_model, sensitivity) else None
    data = results.describe_data(images.dataset, (split_name,))
    results.log_evaluation(split_name, evaluation, files, model_id, data)
    return EvaluationResult(evaluation, numbers)


def _is_own(loaded_model: LoadedModel, sensitivity: float | None) -> bool:
    """Return whether metrics are the model's own: at its threshold and its prevalence."""
    return sensitivity is None and loaded_model.model.adjusted_to is None


def _score(
    loaded_model: LoadedModel,
    split: Split,
    logits: np.ndarray,
    probabilities: np.ndarray,
    sensitivity: float | None,
) -> tuple[Evaluation, dict[str, Any]]:
    """Return an evaluation, and the other numbers of `metrics.json`."""
    model = loaded_model.model
    val = results.read_predictions(loaded_model.trial.info.run_id, "val")
    val_data = val["label"].to_numpy(), val["probability"].to_numpy()
    threshold = model.settings["threshold"]
    if sensitivity is not None:
        threshold = metrics.threshold_at_sensitivity(sensitivity, *val_data)
    evaluation = metrics.evaluate_predictions(
        split, probabilities, model.adjust(threshold), intervals=True
    )
    numbers = metrics.detailed_metrics(evaluation, logits)
    numbers["platt"] = {
        **{name: model.settings[name] for name in ("slope", "intercept", "prevalence")},
        "adjusted_to": model.adjusted_to,
    }
    numbers["validation"] = ScoredPredictions(val, threshold).metrics()
    numbers["validation"]["uncalibrated"] = model.settings["val_uncalibrated"]
    return evaluation, numbers


def read_evaluation(run: Run, split_name: str) -> tuple[dict[str, float], list[str]]:
    """Read an evaluation that a run has logged.

    Args:
        run: The run.
        split_name: `test`, `val` or `train`.

    Returns:
        The metrics by name, and the findings.
    """
    numbers = results.read_metrics(run.info.run_id, split_name)
    # JSON has no NaN
    metrics = {
        name: math.nan if value is None else value
        for name, value in numbers["at_threshold"].items()
    }
    return metrics, numbers["findings"]


def _count_look(
    loaded_model: LoadedModel, dataset: Dataset, split: str, overlap: Overlap | None
) -> Counter[str]:
    """Record a look at test before any computation, and count all looks at these images."""
    digest = dataset.images_digest("test")
    if split == "test":
        evaluations.record_look(loaded_model.model_id, digest)
    looks = evaluations.count_looks(digest)
    if overlap and overlap.is_own_test:
        registry.log_test_evaluations(loaded_model, looks[loaded_model.model_id])
    return looks


def _json(value: Any) -> Any:
    """Replace each NaN in `value` by None, because JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def print_evaluation(loaded_model: LoadedModel, split: str, result: EvaluationResult) -> None:
    """Print the metrics as a table, and the findings below it.

    Args:
        loaded_model: The model.
        split: `test`, `val` or `train`.
        result: The evaluation.
    """
    rows = [row[:3] for row in metric_rows(result.numbers)]
    print_table(f"{loaded_model.title} on {split}", ("", "validation", split), rows)
    for finding in result.findings:
        echo(f"note: {finding}")


def evaluate_with_skew(
    loaded_model: LoadedModel,
    images: DecodedDataset,
    split: str,
    unskewed: EvaluationResult,
    parent_id: str,
) -> None:
    """Evaluate a model on pixels / 255, and print that next to its evaluation without the skew.

    The evaluation has a run of its own with the tag `pneumo.preprocessing_skew`. That run names no
    model, so no decision is based on it.

    Args:
        loaded_model: The model.
        images: The images as the model takes them.
        split: `test`, `val` or `train`. On `test` this counts as one more look.
        unskewed: The evaluation without the skew, on the same split.
        parent_id: Id of the run of that evaluation.
    """
    from pneumo.evaluation.preprocessing_skew import predict_with_skew  # imports TensorFlow

    tags = runs.provenance_tags(loaded_model.trial.data.tags[EXPERIMENT], images.dataset)
    tags |= {SKEW: "pixels / 255", PARENT: parent_id}
    with runs.command_run("evaluate", f"{loaded_model.title}, with skew", tags):
        if split == "test":
            evaluations.record_look(loaded_model.model_id, images.dataset.images_digest("test"))
        data, threshold = images.split(split), unskewed.evaluation.metrics["threshold"]
        probabilities = predict_with_skew(loaded_model.model, data.images)
        skewed = evaluate_predictions(data, probabilities, threshold, intervals=True)
        # Without the model's id, because the metrics of skewed images are not the model's
        results.log_evaluation(split, skewed, confusion_matrix_file(split, skewed))
    _print_skew(split, {"without skew": unskewed.evaluation, "with skew": skewed})
    for finding in metric_findings({**unskewed.numbers, "at_threshold": skewed.metrics}, split):
        echo(f"note (with preprocessing skew): {finding}")


def _print_skew(split: str, evaluations: dict[str, Evaluation]) -> None:
    rows = [
        (
            name,
            *(format_with_interval(evaluation.metrics, metric) for metric in SKEW_METRICS),
            str(evaluation.confusion),
        )
        for name, evaluation in evaluations.items()
    ]
    print_table(f"Effect of preprocessing skew on {split}", ("", *SKEW_METRICS, "counts"), rows)
