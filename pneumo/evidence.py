"""The evidence for one model on one split: its numbers, its pictures, and a page for people."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from mlflow.entities import Run

from pneumo.data.dataset import Dataset, Images
from pneumo.evaluation import metrics, shortcuts
from pneumo.evaluation.heat_maps import HiResCam
from pneumo.evaluation.metrics import Evaluation
from pneumo.evaluation.overlap import Overlap, find_overlap
from pneumo.inference.logits import predict_logits, predict_probabilities, to_probabilities
from pneumo.reporting import plots
from pneumo.reporting.evaluation_report import draw_figures, list_findings, metric_rows, render_page
from pneumo.runtime.console import say, table
from pneumo.tracking import evaluations, models, registry, results, runs, tags
from pneumo.tracking.tags import EXPERIMENT


@dataclass(frozen=True)
class Evidence:
    """A model held against one split: what is stored as metrics, and what is found in words."""

    evaluation: Evaluation
    numbers: dict[str, Any]
    findings: list[str]


def images_for(stored: models.Stored, dataset: Dataset) -> Images:
    """A data set's images as the model takes them. Raises `Mistake` as `Dataset.decode`."""
    allowed = float(stored.trial.data.params["max_unreadable"])
    return dataset.decode(stored.model.image_size, allowed, stored.model.settings["resize"])


@contextmanager
def evaluation_run(stored: models.Stored, dataset: Dataset) -> Iterator[tuple[str, Images]]:
    """A run of kind `evaluate`; yields its id, and the images as the model takes them."""
    images = images_for(stored, dataset)
    tags = runs.subject_tags(stored.trial.data.tags[EXPERIMENT], dataset)
    with runs.command_run("evaluate", stored.title, tags) as run_id:
        results.log_data(images)
        yield run_id, images


def examine(
    stored: models.Stored, images: Images, split_name: str, sensitivity: float | None = None
) -> Evidence:
    """Holds a model against a split, and logs all that follows to the active run.

    The threshold is the model's own; with a `sensitivity`, 0 to 1, that of
    `metrics.threshold_for` on the validation images of the model's own run. On `test` it counts as
    one more look.
    """
    files = results.known_files(stored.trial, images.dataset)
    seen = find_overlap(files, images.dataset, split_name)
    external = seen is not None and seen.external
    with evaluations.evaluating(stored.title, stored.model_id, split_name, external) as run_id:
        found = _examine(stored, images, split_name, sensitivity, seen)
    own_data = stored.trial.data.tags[tags.DATA_DIGEST] == images.dataset.digest
    if stored.version and split_name == "test" and sensitivity is None and own_data:
        registry.tell_of_test(stored, run_id, found.evaluation.metrics)
    return found


def _examine(
    stored: models.Stored,
    images: Images,
    split_name: str,
    sensitivity: float | None,
    seen: Overlap | None,
) -> Evidence:
    split, trial, settings = images.split(split_name), stored.trial, stored.model.settings
    looks = _count_look(stored, images.dataset, split_name, seen)
    val = results.read_predictions(trial.info.run_id, "val")
    of_val = val["label"].to_numpy(), val["probability"].to_numpy()
    threshold = settings["threshold"]
    if sensitivity is not None:
        threshold = metrics.threshold_for(sensitivity, *of_val)
    pixels = split.images
    logits = predict_logits(stored.model.keras_model, pixels)
    probabilities = to_probabilities(logits, settings["temperature"])
    evaluation = metrics.evaluate(split, probabilities, threshold, intervals=True)
    numbers = metrics.details(evaluation, logits, settings["temperature"])
    numbers["validation"] = metrics.score(*of_val, threshold)
    numbers["validation"]["uncalibrated"] = settings["val_uncalibrated"]
    numbers["test_evaluations"] = looks[stored.model_id]
    numbers["test_evaluations_of_all_models"] = looks.total()
    numbers["overlap"] = seen.counts() if seen else None
    predict = partial(predict_probabilities, stored.model.keras_model)
    numbers["shortcuts"] = shortcuts.check(predict, pixels, evaluation.predictions)
    findings = numbers["findings"] = list(list_findings(numbers, images, trial, split_name, seen))
    epochs = results.read_epochs(trial.info.run_id)
    hires_cam = HiResCam(stored.model.keras_model)
    pictures = draw_figures(evaluation, pixels, logits, epochs, hires_cam)
    page = render_page(stored, images, split_name, evaluation, numbers, findings, pictures)
    files = {
        "metrics.json": json.dumps(_json(numbers), indent=1).encode(),
        "evidence.html": page.encode(),
        **plots.confusion_matrix_file(split_name, evaluation),
        **pictures,
    }
    results.log_evaluation(split_name, evaluation, files)
    return Evidence(evaluation, numbers, findings)


def read(run: Run, split_name: str) -> tuple[dict[str, float], list[str]]:
    """Return the metrics and the findings of an evaluation that a run has logged."""
    numbers = results.read_metrics(run.info.run_id, split_name)
    # JSON has no NaN
    metrics = {name: math.nan if it is None else it for name, it in numbers["at_threshold"].items()}
    return metrics, numbers["findings"]


def _count_look(
    stored: models.Stored, dataset: Dataset, split: str, seen: Overlap | None
) -> Counter[str]:
    """Record a look at test before anything is computed, and count all looks at these images."""
    digest = dataset.images_digest("test")
    if split == "test":
        evaluations.record_look(stored.model_id, digest)
    looks = evaluations.count_looks(digest)
    if seen and seen.is_own_test:
        registry.log_test_evaluations(stored, looks[stored.model_id])
    return looks


def _json(value: Any) -> Any:
    """`value` with None for what is no number, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def show(stored: models.Stored, split: str, found: Evidence) -> None:
    """The numbers as a table, and what must not be missed."""
    rows = [row[:3] for row in metric_rows(found.numbers)]
    table(f"{stored.title} on {split}", ("", "validation", split), rows)
    for finding in found.findings:
        say(f"note: {finding}")
