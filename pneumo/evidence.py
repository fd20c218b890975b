"""The evidence for one model on one split: its numbers, its pictures, and a page for people."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from mlflow.entities import Run
from scipy.special import expit

from pneumo import figures, overlap, pages, registry, tag_names, tracking
from pneumo.data.dataset import Dataset, Images
from pneumo.evaluation import metrics, shortcuts
from pneumo.evaluation.heat_maps import HiResCam
from pneumo.evaluation.intervals import number, with_interval
from pneumo.evaluation.metrics import Evaluation, metric_title
from pneumo.evaluation.overlap import Overlap, find_overlap
from pneumo.inference.logits import predict_logits, predict_probabilities, to_probabilities
from pneumo.runtime.console import say, table

# What the page calls the metrics, in its order
NAMES = {
    "auc": "area under the ROC curve (AUC)",
    "sensitivity": "sensitivity: pneumonia that is found",
    "specificity": "specificity: normal images that are called so",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "ppv": "positive predictive value (PPV)",
    "npv": "negative predictive value (NPV)",
    "f1": "F1",
    "mcc": "Matthews correlation coefficient",
    "average_precision": "average precision",
    "brier": "Brier score, 0 is best",
    "log_loss": "log loss, 0 is best",
    "ece": "expected calibration error, 0 is best",
    "threshold": "threshold",
}

# Number of looks by all models at the same test images that calls for a warning: the best of four
# equally good models is expected to look better than it is by one standard error
MANY_LOOKS = 4

THRESHOLD_RULES = {"youden": "Youden's", "midpoint": "midway between the classes"}

CAPTIONS = {
    "roc.png": "ROC curve; the band holds 95 % of samples of patients",
    "precision_recall.png": "Precision and recall; the band as beside it",
    "confusion_matrix.png": "Counts, and shares of each row",
    "reliability.png": "Calibration, before and after temperature scaling",
    "learning_curves.png": "Training of the kept model",
    "worst_errors.png": "The worst errors; below each, in colour, what speaks for pneumonia to the "
    "model, by HiResCAM: brightest where it does most, each image by itself",
}


@dataclass(frozen=True)
class Evidence:
    """A model held against one split: what is stored as metrics, and what is found in words."""

    evaluation: Evaluation
    numbers: dict[str, Any]
    findings: list[str]


def images_for(stored: registry.Stored, dataset: Dataset) -> Images:
    """A data set's images as the model takes them. Raises `Mistake` as `Dataset.decode`."""
    allowed = float(stored.trial.data.params["max_unreadable"])
    return dataset.decode(stored.model.image_size, allowed, stored.model.settings["resize"])


@contextmanager
def evaluation_run(stored: registry.Stored, dataset: Dataset) -> Iterator[tuple[str, Images]]:
    """A run of kind `evaluate`; yields its id, and the images as the model takes them."""
    images = images_for(stored, dataset)
    tags = tracking.subject_tags(stored.trial.data.tags[tag_names.EXPERIMENT], dataset)
    with tracking.command_run("evaluate", stored.title, tags) as run_id:
        tracking.log_data(images)
        yield run_id, images


def examine(
    stored: registry.Stored, images: Images, split_name: str, sensitivity: float | None = None
) -> Evidence:
    """Holds a model against a split, and logs all that follows to the active run.

    The threshold is the model's own; with a `sensitivity`, 0 to 1, that of
    `metrics.threshold_for` on the validation images of the model's own run. On `test` it counts as
    one more look.
    """
    files = tracking.known_files(stored.trial, images.dataset)
    seen = find_overlap(files, images.dataset, split_name)
    external = seen is not None and seen.external
    with tracking.evaluating(stored.title, stored.model_id, split_name, external) as run_id:
        found = _examine(stored, images, split_name, sensitivity, seen)
    own_data = stored.trial.data.tags[tag_names.DATA_DIGEST] == images.dataset.digest
    if stored.version and split_name == "test" and sensitivity is None and own_data:
        registry.tell_of_test(stored, run_id, found.evaluation.metrics)
    return found


def _examine(
    stored: registry.Stored,
    images: Images,
    split_name: str,
    sensitivity: float | None,
    seen: Overlap | None,
) -> Evidence:
    split, trial, settings = images.split(split_name), stored.trial, stored.model.settings
    looks = _count_look(stored, images.dataset, split_name, seen)
    val = tracking.read_predictions(trial.info.run_id, "val")
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
    findings = numbers["findings"] = list(_findings(numbers, images, trial, split_name, seen))
    epochs = tracking.read_epochs(trial.info.run_id)
    hires_cam = HiResCam(stored.model.keras_model)
    pictures = _pictures(evaluation, pixels, logits, epochs, hires_cam)
    page = _page(stored, images, split_name, evaluation, numbers, findings, pictures)
    files = {
        "metrics.json": json.dumps(_json(numbers), indent=1).encode(),
        "evidence.html": page.encode(),
        **figures.confusion_matrix_file(split_name, evaluation),
        **pictures,
    }
    tracking.log_evaluation(split_name, evaluation, files)
    return Evidence(evaluation, numbers, findings)


def read(run: Run, split_name: str) -> tuple[dict[str, float], list[str]]:
    """Return the metrics and the findings of an evaluation that a run has logged."""
    numbers = tracking.read_metrics(run.info.run_id, split_name)
    # JSON has no NaN
    metrics = {name: math.nan if it is None else it for name, it in numbers["at_threshold"].items()}
    return metrics, numbers["findings"]


def _count_look(
    stored: registry.Stored, dataset: Dataset, split: str, seen: Overlap | None
) -> Counter[str]:
    """Record a look at test before anything is computed, and count all looks at these images."""
    digest = dataset.images_digest("test")
    if split == "test":
        tracking.record_look(stored.model_id, digest)
    looks = tracking.count_looks(digest)
    if seen and seen.is_own_test:
        registry.log_test_evaluations(stored, looks[stored.model_id])
    return looks


def _findings(
    numbers: Mapping[str, Any], images: Images, trial: Run, split: str, seen: Overlap | None
) -> Iterator[str]:
    """What a reader must not miss, the gravest first."""
    if images.dataset.synthetic:
        yield "The images are synthetic: nothing here says anything about patients."
    elif trial.data.tags[tag_names.SYNTHETIC] == "true":
        yield "The model was trained on synthetic images: it knows nothing about patients."
    if why := overlap.explain(seen):
        yield f"{why[0].upper()}{why[1:]}."
    yield from failures(numbers, split)
    if shortcuts.tells(numbers["shortcuts"]["centre"]):
        yield shortcuts.in_words(numbers["shortcuts"])["centre"]
    if seen and seen.external:
        yield "External data: other images than those that the model was made with."
    if images.dataset.unknown_patients:
        yield (
            f"{images.dataset.unknown_patients} images are of unknown patients, each counted as a "
            "separate patient: the intervals may be too narrow, and other images of the same "
            "patients in training are not recognized."
        )
    if images.unreadable:
        yield f"{len(images.unreadable)} images could not be read and are not counted."
    own, every = numbers["test_evaluations"], numbers["test_evaluations_of_all_models"]
    if own > 1 or every >= MANY_LOOKS:
        yield (
            f"Looks at test: this model {own}, all models {every}. What is chosen by looking at "
            "test is no longer tested by it."
        )


def failures(numbers: Mapping[str, Any], split: str) -> Iterator[str]:
    """Where the figures themselves say that something is wrong."""
    here, val = numbers["at_threshold"], numbers["validation"]
    if sorted((here["sensitivity"], here["specificity"])) == [0, 1]:
        called = "PNEUMONIA" if here["sensitivity"] else "NORMAL"
        yield (
            f"The model calls every image {called}. Most often that means that pixels reach it "
            "in another way than they did in training."
        )
    everyone = max(numbers["accuracy_of_all_pneumonia"], 1 - numbers["accuracy_of_all_pneumonia"])
    if here["accuracy_low"] <= everyone:
        yield (
            f"Accuracy {here['accuracy']:.1%} is not surely better than giving every image the "
            f"same answer, which is right for {everyone:.1%}."
        )
    if split != "val" and (fallen := _fallen(here, val)):
        yield (
            f"Worse on {split} than validation promised: {', '.join(fallen)}. "
            "These images differ from those that the model was chosen with."
        )


def _fallen(here: Mapping[str, float], val: Mapping[str, float]) -> list[str]:
    """Each headline figure that validation put above its interval, in words."""
    return [
        f"{metric_title(name)} {with_interval(here, name)} after {val[name]:.3f}"
        for name in metrics.HEADLINE
        if val[name] > here[f"{name}_high"]
    ]


def _pictures(
    evaluation: Evaluation,
    pixels: np.ndarray,
    logits: np.ndarray,
    epochs: pd.DataFrame,
    heat_maps: Callable[[np.ndarray], np.ndarray],
) -> dict[str, bytes]:
    """Return the figures as PNG files.

    Args:
        evaluation: The model on a split.
        pixels: Its images, uint8, shape (n, size, size, 1).
        logits: Their logits before the temperature.
        epochs: As `tracking.read_epochs` returns them.
        heat_maps: See `figures.worst_errors`.
    """
    predictions, threshold = evaluation.predictions, evaluation.metrics["threshold"]
    labels, probabilities = (predictions[it].to_numpy() for it in ("label", "probability"))
    drawn = {
        "roc.png": figures.roc(predictions, threshold),
        "precision_recall.png": figures.precision_recall(predictions, threshold),
        "reliability.png": figures.reliability(labels, probabilities, expit(logits)),
        "learning_curves.png": figures.learning_curves(epochs),
        "worst_errors.png": figures.worst_errors(predictions, pixels, threshold, heat_maps),
    }
    return {name: figures.png(figure) for name, figure in drawn.items()}


def _page(
    stored: registry.Stored,
    images: Images,
    split: str,
    evaluation: Evaluation,
    numbers: Mapping[str, Any],
    findings: list[str],
    pictures: Mapping[str, bytes],
) -> str:
    matrix = figures.png(figures.confusion_matrix(evaluation.confusion, "confusion matrix"))
    return pages.render(
        "evidence.html",
        images,
        {**pictures, "confusion_matrix.png": matrix},
        model=stored.title,
        split=split,
        day=date.today().isoformat(),
        findings=findings,
        headline={
            metric_title(name): with_interval(numbers["at_threshold"], name)
            for name in metrics.HEADLINE
        },
        metrics=list(_metric_rows(numbers)),
        numbers=numbers,
        val_uncalibrated=numbers["validation"]["uncalibrated"],
        subgroups=list(_subgroup_rows(numbers["subgroups"])),
        shortcuts=shortcuts.in_words(numbers["shortcuts"]),
        counts=images.counts().to_dict("records"),
        selection=_selection(stored.trial),
        params=stored.trial.data.params,
        captions=CAPTIONS,
    )


def _metric_rows(numbers: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Name, validation, this split with its interval, this split at 0.5."""
    for name, title in NAMES.items():
        values = [numbers["at_threshold"], numbers["at_0.5"]]
        yield (
            title,
            number(numbers["validation"][name]),
            *(with_interval(it, name) for it in values),
        )


def _subgroup_rows(subgroups: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, ...]]:
    for name, values in subgroups.items():
        rate = "sensitivity" if "sensitivity" in values else "specificity"
        counts = f"{values['images']}", f"{values['patients']}"
        yield name, *counts, rate, with_interval(values, rate), with_interval(values, "auc")


def _selection(trial: Run) -> str:
    tags, params = trial.data.tags, trial.data.params
    members = params.get("members", "1")
    rule = THRESHOLD_RULES[params.get("threshold_rule", "youden")]
    chosen = (
        f"Within its run, the epoch with the greatest {params['objective']}"
        f"{'' if members == '1' else f' of each of its {members} members'}; the temperature comes "
        f"from validation, too, and the threshold ({rule}) from its images changed as if they came "
        "from elsewhere."
    )
    if tag_names.STUDY not in tags:
        return (
            f"One run of experiment {tags[tag_names.EXPERIMENT]}, chosen among no others. {chosen}"
        )
    states = tracking.count_states(trial)
    trials = ", ".join(f"{count} {state.lower()}" for state, count in sorted(states.items()))
    return (
        f"Trial {tags[tag_names.TRIAL_NUMBER]} of study {tags[tag_names.STUDY]} "
        f"(trials: {trials}), the one with the greatest {trial.data.params['objective']}. {chosen}"
    )


def _json(value: Any) -> Any:
    """`value` with None for what is no number, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def show(stored: registry.Stored, split: str, found: Evidence) -> None:
    """The numbers as a table, and what must not be missed."""
    rows = [row[:3] for row in _metric_rows(found.numbers)]
    table(f"{stored.title} on {split}", ("", "validation", split), rows)
    for finding in found.findings:
        say(f"note: {finding}")
