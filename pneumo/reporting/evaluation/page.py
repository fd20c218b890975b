"""Report on one model and one split: findings, plots and an HTML page."""

from collections.abc import Callable, Iterator, Mapping
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
from mlflow.entities import Run
from scipy.special import expit

from pneumo.data.dataset import DecodedDataset
from pneumo.data.schema import CLASSES
from pneumo.evaluation import metrics
from pneumo.evaluation.intervals import format_number, format_with_interval
from pneumo.evaluation.metrics import Evaluation, metric_title
from pneumo.evaluation.robustness import NUISANCES, describe_reliance
from pneumo.reporting import plots
from pneumo.reporting.evaluation import rows
from pneumo.reporting.html_report import INTENDED_USE, OUT_OF_SCOPE, render_template
from pneumo.reporting.style import to_png
from pneumo.tracking import models, study_runs
from pneumo.tracking.tags import EXPERIMENT, STUDY
from pneumo.training.config import complete_fields

# Titles of the metrics, in the order of the page
METRIC_TITLES = {
    "auc": "area under the ROC curve (AUC)",
    "sensitivity": "sensitivity (recall of PNEUMONIA)",
    "specificity": "specificity (recall of NORMAL)",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "ppv": "positive predictive value (PPV)",
    "npv": "negative predictive value (NPV)",
    "f1": "F1 score",
    "mcc": "Matthews correlation coefficient",
    "average_precision": "average precision",
    "brier": "Brier score, 0 is best",
    "log_loss": "log loss, 0 is best",
    "ece": "expected calibration error, 0 is best",
    "threshold": "threshold",
}

THRESHOLD_RULES = {"youden": "Youden's index", "midpoint": "midpoint between the classes"}

CAPTIONS = {
    "roc.png": "ROC curve with a 95 % bootstrap band by patient",
    "precision_recall.png": "Precision-recall curve with a 95 % bootstrap band by patient",
    "confusion_matrix.png": "Confusion matrix: counts, and fractions of each row",
    "decision_curve.png": "Decision curve: net benefit, with a 95 % bootstrap band by patient",
    "reliability.png": "Reliability diagram, before and after calibration",
    "learning_curves.png": "Learning curves of the stored model",
    "worst_errors.png": "The worst errors, and below each its heat map (HiResCAM), which is "
    "brightest where the image increases the logit the most",
}


def draw_figures(
    evaluation: Evaluation,
    curve: pd.DataFrame,
    pixels: np.ndarray,
    logits: np.ndarray,
    epochs: pd.DataFrame,
    heat_maps: Callable[[np.ndarray], np.ndarray],
) -> dict[str, bytes]:
    """Draw the plots of an evaluation.

    Args:
        evaluation: The evaluation of the model on a split.
        curve: As `bootstrap.decision_curve` returns it.
        pixels: Images of the split: uint8 array of shape (n, size, size, 1).
        logits: Their logits before calibration.
        epochs: As `results.read_epochs` returns them.
        heat_maps: See `plots.plot_worst_errors`.

    Returns:
        Name → PNG file.
    """
    predictions, threshold = evaluation.predictions, evaluation.metrics["threshold"]
    labels, probabilities = (predictions[column].to_numpy() for column in ("label", "probability"))
    figures = {
        "roc.png": plots.plot_roc(predictions, threshold),
        "precision_recall.png": plots.plot_precision_recall(predictions, threshold),
        "decision_curve.png": plots.plot_decision_curve(curve, threshold),
        "reliability.png": plots.plot_reliability(labels, probabilities, expit(logits)),
        "learning_curves.png": plots.plot_learning_curves(epochs),
        "worst_errors.png": plots.plot_worst_errors(predictions, pixels, threshold, heat_maps),
    }
    return {name: to_png(figure) for name, figure in figures.items()}


def render_page(
    loaded_model: models.LoadedModel,
    images: DecodedDataset,
    split: str,
    evaluation: Evaluation,
    numbers: Mapping[str, Any],
    pictures: Mapping[str, bytes],
) -> str:
    """Render the HTML page on a model and a split.

    Args:
        loaded_model: The model.
        images: The data set of the split, as the model takes its images.
        split: `test`, `val` or `train`.
        evaluation: The evaluation of the model on the split.
        numbers: As they are stored in `metrics.json`.
        pictures: As `draw_figures` returns them.
    """
    is_external = bool(numbers["internal"] or numbers["recalibration"])
    matrix = to_png(plots.plot_confusion_matrix(evaluation.confusion, "confusion matrix"))
    return render_template(
        "evidence.html",
        images,
        {**pictures, "confusion_matrix.png": matrix},
        model=loaded_model.title,
        split=split,
        day=date.today().isoformat(),
        findings=numbers["findings"],
        headline={
            metric_title(name): format_with_interval(numbers["at_threshold"], name)
            for name in metrics.HEADLINE_METRICS
        },
        metrics=list(metric_rows(numbers)),
        numbers=numbers,
        calibration=list(_calibration_rows(numbers["calibration"])),
        val_uncalibrated=numbers["validation"]["uncalibrated"],
        subgroups=list(_subgroup_rows(numbers["subgroups"])),
        groups=list(rows.group_rows(numbers["groups"])),
        external=list(rows.external_rows(numbers["internal"])) if numbers["internal"] else [],
        recalibration=list(rows.recalibration_rows(numbers)) if is_external else [],
        nuisances=list(_nuisance_rows(numbers["nuisances"])),
        reliance=describe_reliance(numbers["nuisances"]),
        counts=_count(images, split, evaluation),
        selection=describe_selection(loaded_model.trial),
        params=loaded_model.trial.data.params,
        captions=CAPTIONS,
        intended_use=INTENDED_USE,
        out_of_scope=OUT_OF_SCOPE,
    )


def _count(images: DecodedDataset, split: str, evaluation: Evaluation) -> list[dict[str, Any]]:
    """Count images and patients of each split; of the evaluated one only those that count."""
    counts = images.counts().set_index(["split", "class"])
    patients = evaluation.predictions.groupby("label")["patient"]
    for label, values in patients.agg(images="size", patients="nunique").iterrows():
        counts.loc[(split, CLASSES[label])] = values
    return counts.reset_index().to_dict("records")


def metric_rows(numbers: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield a row of text for each metric.

    Args:
        numbers: As they are stored in `metrics.json`.

    Yields:
        Title, value on validation, value on this split with its interval, and the same at
        threshold 0.5.
    """
    for name, title in METRIC_TITLES.items():
        values = [numbers["at_threshold"], numbers["at_0.5"]]
        yield (
            title,
            format_number(numbers["validation"][name]),
            *(format_with_interval(at_threshold, name) for at_threshold in values),
        )


def _subgroup_rows(subgroups: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, ...]]:
    for name, values in subgroups.items():
        rate = "sensitivity" if "sensitivity" in values else "specificity"
        counts = f"{values['images']}", f"{values['patients']}"
        yield (
            name,
            *counts,
            rate,
            format_with_interval(values, rate),
            format_with_interval(values, "auc"),
        )


def _calibration_rows(calibration: Mapping[str, float]) -> Iterator[tuple[str, ...]]:
    """Yield title, value with interval, best value and meaning of each measure."""
    by_chance = format_number(calibration["ece_if_true"])
    for name, title, best, meaning in (
        ("slope", "calibration slope", "1", "less: the probabilities are too extreme"),
        ("intercept", "calibration intercept", "0", "above 0: the probabilities are too low"),
        ("ece", "expected calibration error", "0", f"{by_chance} if all probabilities were true"),
    ):
        yield title, format_with_interval(calibration, name), best, meaning


def _nuisance_rows(nuisances: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Yield two rows for each nuisance; the difference is that of the first."""
    for name, values in nuisances.items():
        low, high = values["difference_low"], values["difference_high"]
        differences = f"{values['difference']:+.3f} ({low:+.3f} to {high:+.3f})", ""
        for pairing, difference in zip(values["pairings"], differences, strict=True):
            yield (
                NUISANCES[name].title,
                pairing["positive"],
                pairing["negative"],
                format_with_interval(pairing, "auc"),
                difference,
            )


def describe_selection(trial: Run) -> str:
    """Describe how the model of a Keras run was selected."""
    tags, params = trial.data.tags, complete_fields(trial.data.params)
    members = params.get("ensemble_size", "1")
    rule = THRESHOLD_RULES[params.get("threshold_rule", "youden")]
    choice = (
        f"Within its run, the epoch with the highest {params['objective']} was selected"
        f"{'' if members == '1' else f' for each of the {members} ensemble members'}. The "
        f"calibration was fitted on validation images. The threshold ({rule}) was chosen on "
        "perturbed validation images."
    )
    if (folds := params["folds"]) != "1":
        choice += (
            f" Validation is cross-validation in {folds} folds"
            f"{', each of one site' if params['split_by'] == 'site' else ''}: each image is "
            "predicted by networks that were not trained on its patient, and is calibrated within "
            "its fold. The stored model averages the networks of all folds. No image is left to "
            "validate that average, so its own metrics and calibration on new images may differ."
        )
    if STUDY not in tags:
        return f"A single run of experiment {tags[EXPERIMENT]}, without a search. {choice}"
    states = study_runs.count_trial_states(trial)
    trials = ", ".join(f"{count} {state.lower()}" for state, count in sorted(states.items()))
    return (
        f"{study_runs.describe_source(tags)} (trials: {trials}), selected by the highest "
        f"{params['objective']}. {choice}"
    )
