"""The evaluation of one model on one split, as `evaluate`, `promote` and `tune` make it."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from mlflow.entities import Run

from pneumo.commands.options.arguments import EvaluateOptions
from pneumo.data.dataset import Dataset, DecodedDataset, Split
from pneumo.data.split import choose_patients
from pneumo.evaluation import bootstrap, external, metrics, subgroups
from pneumo.evaluation.comparison import ScoredPredictions
from pneumo.evaluation.dataset.overlap import Overlap, find_overlap
from pneumo.evaluation.metrics import Evaluation
from pneumo.evaluation.robustness import measure_nuisances
from pneumo.inference.input_gate import InputGate
from pneumo.reporting.checklist.files import render_checklist
from pneumo.reporting.evaluation.findings import list_findings
from pneumo.reporting.evaluation.page import draw_figures, render_page
from pneumo.reporting.plots import confusion_matrix_file
from pneumo.runtime.errors import UserError
from pneumo.tracking import evaluations, registry, results, runs, tags
from pneumo.tracking.models import LoadedModel
from pneumo.tracking.tags import EXPERIMENT


@dataclass(frozen=True)
class EvaluationResult:
    """An evaluation of one model on one split.

    Attributes:
        evaluation: The evaluation.
        numbers: Content of `metrics.json`.
        overlap: Overlap of the split with the model's images, or None if it is not known.
    """

    evaluation: Evaluation
    numbers: dict[str, Any]
    overlap: Overlap | None

    @property
    def findings(self) -> list[str]:
        """Return what a reader must know about the evaluation, in sentences."""
        return self.numbers["findings"]


class ThresholdRule(NamedTuple):
    """Rule for a threshold that is not the model's own.

    Attributes:
        choose: Function of the labels and probabilities of validation that returns the threshold.
        finding: What a reader of the evaluation must know about it, in a sentence.
    """

    choose: Callable[[np.ndarray, np.ndarray], float]
    finding: str


def threshold_rule(options: EvaluateOptions) -> ThresholdRule | None:
    """Return the rule that the options ask for, or None for the model's own threshold.

    Raises:
        UserError: The options ask for two rules.
    """
    sensitivity, net_benefit_at = options.sensitivity, options.net_benefit_at
    if sensitivity and net_benefit_at:
        raise UserError(
            "sensitivity and net_benefit_at both set the threshold: got "
            f"{sensitivity:g} and {net_benefit_at:g}. Pass only one of them."
        )
    if sensitivity:
        choose, kind = (
            partial(metrics.threshold_at_sensitivity, sensitivity),
            f"reaches a sensitivity of {sensitivity:.1%}",
        )
    elif net_benefit_at:
        choose, kind = (
            partial(metrics.threshold_of_net_benefit, net_benefit_at, options.prevalence),
            f"has the greatest net benefit at {net_benefit_at:.1%}",
        )
    else:
        return None
    return ThresholdRule(choose, f"The threshold is not the model's own: it {kind} on validation.")


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
    rule: ThresholdRule | None = None,
    recalibration_share: float | None = None,
) -> EvaluationResult:
    """Evaluate a model on a split, and log all results to the active run.

    An evaluation on `test` counts as one more look.

    Args:
        loaded_model: The model.
        images: The images as the model takes them.
        split_name: `test`, `val` or `train`.
        rule: Rule that chooses the threshold on the validation images of the model's own run. By
            default the threshold is the model's own.
        recalibration_share: Share of the patients on whom calibration and threshold are fitted
            again. The others are evaluated, before and after.

    Raises:
        UserError: The share is given, but the images are not external or are too few.
    """
    files = results.known_files(loaded_model.trial, images.dataset)
    overlap = find_overlap(files, images.dataset, split_name)
    is_external = overlap is not None and overlap.is_external
    adjusted_to = loaded_model.model.adjusted_to
    is_chosen = None
    if recalibration_share:
        _require_external(loaded_model, is_external)
        is_chosen = choose_patients(images.split(split_name).rows, recalibration_share)
    with evaluations.tag_evaluation(
        loaded_model.title,
        loaded_model.model_id,
        split_name,
        is_external,
        adjusted_to,
        recalibration_share,
    ) as run_id:
        result = _evaluate(loaded_model, images, split_name, rule, overlap, is_chosen)
    is_own_data = loaded_model.trial.data.tags[tags.DATA_DIGEST] == images.dataset.digest
    is_own = _is_own(loaded_model, rule)
    if loaded_model.version and split_name == "test" and is_own and is_own_data:
        registry.record_test_metrics(loaded_model, run_id, result.evaluation.metrics)
    return result


def _require_external(loaded_model: LoadedModel, is_external: bool) -> None:
    if not is_external:
        raise UserError(
            f"recalibrate requires external data: {loaded_model.title} was developed with images "
            "or patients of these. Omit recalibrate, or pass the data of other patients."
        )


def _evaluate(
    loaded_model: LoadedModel,
    images: DecodedDataset,
    split_name: str,
    rule: ThresholdRule | None,
    overlap: Overlap | None,
    is_chosen: np.ndarray | None,
) -> EvaluationResult:
    """Compute everything of an evaluation, and log it to the active run.

    `is_chosen`: see `external.recalibrate`; None without a recalibration.
    """
    from pneumo.evaluation.heat_maps import HiResCam  # imports TensorFlow
    from pneumo.inference.logits import optimize_for_inference, predict_proba

    looks = count_look(loaded_model, images.dataset, split_name, overlap)
    split, model = images.split(split_name), loaded_model.model.keras_model
    logits, distances = loaded_model.model.predict_images(split.images)
    recalibration = None
    if is_chosen is not None:
        recalibration = external.recalibrate(split, logits, is_chosen)
        split, logits = split.take(~is_chosen), logits[~is_chosen]
        distances = None if distances is None else distances[~is_chosen]
    calibration = loaded_model.model.calibration
    probabilities = calibration.to_probabilities(logits)
    evaluation, numbers = _score(loaded_model, split, logits, probabilities, rule)
    numbers["recalibration"] = recalibration
    threshold = numbers["validation"]["threshold"]  # before an adjustment to another prevalence
    numbers["internal"] = _compare_with_own_data(loaded_model, overlap, threshold, evaluation)
    numbers["test_evaluations"] = looks[loaded_model.model_id]
    numbers["test_evaluations_of_all_models"] = looks.total()
    numbers["overlap"] = overlap.counts() if overlap else None
    predict = partial(predict_proba, optimize_for_inference(model), calibration=calibration)
    numbers["input_gate"] = count_out_of_range(loaded_model.model.input_gate, distances)
    numbers["nuisances"] = measure_nuisances(predict, split, evaluation.predictions)
    findings = list_findings(numbers, images, loaded_model.trial, split_name, overlap)
    numbers["findings"] = [*findings, *([rule.finding] if rule else [])]
    curve = bootstrap.decision_curve(
        evaluation.predictions,
        bootstrap.resample_patients(evaluation.predictions),
        loaded_model.model.adjusted_to,
    )
    numbers["net_benefit"] = curve.to_dict("list")
    numbers["benefit"] = bootstrap.describe_benefit(curve)
    epochs = results.read_epochs(loaded_model.trial.info.run_id)
    pictures = draw_figures(evaluation, curve, split.images, logits, epochs, HiResCam(model))
    page = render_page(loaded_model, images, split_name, evaluation, numbers, pictures)
    files = {
        "metrics.json": json.dumps(_json(numbers), indent=1).encode(),
        "evidence.html": page.encode(),
        **render_checklist(loaded_model, images, split_name, evaluation, numbers),
        **confusion_matrix_file(split_name, evaluation),
        **pictures,
    }
    is_own = _is_own(loaded_model, rule) and is_chosen is None
    model_id = loaded_model.model_id if is_own else None
    data = results.describe_data(images.dataset, (split_name,))
    results.log_evaluation(split_name, evaluation, files, model_id, data)
    return EvaluationResult(evaluation, numbers, overlap)


def _compare_with_own_data(
    loaded_model: LoadedModel, overlap: Overlap | None, threshold: float, here: Evaluation
) -> dict[str, Any] | None:
    """Compare an evaluation on external data with the predictions for the own test images.

    Returns:
        `comparison` as `external.compare_with_internal` returns it, and `transfer`, what it means;
        `at_threshold` and `calibration`, the metrics of the own test images at `threshold`. None if
        the data are not external, or the model was not evaluated.
    """
    if overlap is None or not overlap.is_external:
        return None
    own_digest = loaded_model.trial.data.tags[tags.DATA_DIGEST]
    run_id = evaluations.find_predictions(loaded_model.model_id, own_digest, "test")
    if run_id is None:
        return None
    predictions = results.read_predictions(run_id, "test")
    own = ScoredPredictions(predictions, threshold).metrics_with_intervals()
    comparison = external.compare_with_internal(own, here.metrics)
    return {
        "comparison": comparison,
        "transfer": external.describe_transfer(comparison),
        "calibration": metrics.measure_calibration(predictions),
        "at_threshold": own,
    }


def count_out_of_range(
    gate: InputGate | None, distances: np.ndarray | None
) -> dict[str, Any] | None:
    """Count the images that are far from the training images, or return None without a gate."""
    if gate is None:
        return None
    return {
        "limit": gate.limit,
        "median_distance": float(np.median(distances)),
        "out_of_range": sum(gate.describe(distance) is not None for distance in distances),
    }


def _is_own(loaded_model: LoadedModel, rule: ThresholdRule | None) -> bool:
    """Return whether metrics are the model's own: at its threshold and its prevalence."""
    return rule is None and loaded_model.model.adjusted_to is None


def _score(
    loaded_model: LoadedModel,
    split: Split,
    logits: np.ndarray,
    probabilities: np.ndarray,
    rule: ThresholdRule | None,
) -> tuple[Evaluation, dict[str, Any]]:
    """Return an evaluation, and the other numbers of `metrics.json`."""
    model = loaded_model.model
    val = results.read_predictions(loaded_model.trial.info.run_id, "val")
    threshold = model.settings["threshold"]
    if rule is not None:
        threshold = rule.choose(val["label"].to_numpy(), val["probability"].to_numpy())
    evaluation = metrics.evaluate_predictions(
        split, probabilities, model.adjust(threshold), intervals=True
    )
    numbers = metrics.detailed_metrics(evaluation, logits)
    scored = evaluation.predictions, evaluation.metrics["threshold"]
    numbers["subgroups"] = subgroups.subtype_metrics(*scored)
    numbers["groups"] = subgroups.group_metrics(split.rows, *scored)
    numbers["platt"] = {
        **{name: model.settings[name] for name in ("slope", "intercept", "prevalence")},
        "adjusted_to": model.adjusted_to,
    }
    numbers["validation"] = ScoredPredictions(val, threshold).metrics_with_intervals()
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


def count_look(
    loaded_model: LoadedModel, dataset: Dataset, split: str, overlap: Overlap | None
) -> Counter[str]:
    """Record a look at test on the active run before any computation, and count all looks.

    Args:
        loaded_model: The model, which gets the count as a tag if the images are its own test.
        dataset: The data set.
        split: `test`, `val` or `train`; only `test` is a look.
        overlap: Overlap of the split with the model's images, or None if it is not known.

    Returns:
        Number of looks at the test images of the data set, by MLflow's id of the model.
    """
    digest = dataset.images_digest("test")
    if split == "test":
        evaluations.record_look(loaded_model.model_id, digest)
    looks = evaluations.count_looks(digest)
    if overlap and overlap.is_own_test:
        registry.log_test_evaluations(loaded_model, looks[loaded_model.model_id])
    return looks


def _json(value: Any) -> Any:
    """Replace each NaN or infinite number in `value` by None, because JSON has neither."""
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
