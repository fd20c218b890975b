"""What a reader must know about an evaluation, in sentences."""

from collections.abc import Iterator, Mapping
from typing import Any

from mlflow.entities import Run

from pneumo.data.dataset import DecodedDataset
from pneumo.evaluation import metrics
from pneumo.evaluation.dataset.overlap import Overlap
from pneumo.evaluation.intervals import (
    CI_SUFFIXES,
    format_with_interval,
    independent_difference_interval,
)
from pneumo.evaluation.metrics import metric_title
from pneumo.evaluation.robustness import describe_reliance, relied_nuisances
from pneumo.evaluation.subgroups import describe_groups
from pneumo.inference.untrusted import LATERAL_REASON
from pneumo.tracking import results, tags

# Number of looks by all models at the same test images from which the page warns. The best of four
# equally good models is expected to look better than it is by one standard error
MANY_LOOKS = 4


def list_findings(
    numbers: Mapping[str, Any],
    images: DecodedDataset,
    trial: Run,
    split: str,
    overlap: Overlap | None,
) -> Iterator[str]:
    """Yield what a reader must know about an evaluation, the most severe first.

    Args:
        numbers: As they are stored in `metrics.json`.
        images: The data set of the split.
        trial: The run that trained the model.
        split: `test`, `val` or `train`.
        overlap: Overlap of the split with the model's images, or None if it is not known.
    """
    if images.dataset.is_synthetic:
        yield "The images are synthetic. These results say nothing about real patients."
    elif trial.data.tags[tags.SYNTHETIC] == "true":
        yield "The model was trained on synthetic images. It has learned nothing about patients."
    if reason := explain_overlap(overlap):
        yield f"{reason[0].upper()}{reason[1:]}."
    yield from metric_findings(numbers, split)
    if (prevalence := numbers["platt"]["adjusted_to"]) is not None:
        yield (
            f"Probabilities and threshold are adjusted from a prevalence of "
            f"{numbers['platt']['prevalence']:.1%}, for which the model is calibrated, to "
            f"{prevalence:.1%}. The labels do not change. Calibration is measured at the "
            f"prevalence of these images, {numbers['prevalence']:.1%}."
        )
    elif miscalibration := metrics.describe_miscalibration(numbers["calibration"]):
        yield miscalibration
    if relied_nuisances(numbers["nuisances"]):
        yield describe_reliance(numbers["nuisances"])
    if overlap and overlap.is_external:
        yield from _external_findings(numbers, images)
    yield from describe_groups(numbers["groups"])
    if images.dataset.unknown_patients:
        yield (
            f"{images.dataset.unknown_patients} images have no known patient, and each counts as a "
            "separate patient. The confidence intervals may be too narrow. Images of the same "
            "patients in training are not detected."
        )
    if images.unreadable:
        n_lateral = list(images.unreadable.values()).count(LATERAL_REASON)
        yield (
            f"{len(images.unreadable)} images are unreadable or lateral views ({n_lateral}). They "
            "are not counted."
        )
    own, total = numbers["test_evaluations"], numbers["test_evaluations_of_all_models"]
    if own > 1 or total >= MANY_LOOKS:
        yield (
            f"Evaluations on these test images: {own} of this model, {total} of all models. If "
            "test results influence which model is chosen, they are too optimistic."
        )


def _external_findings(numbers: Mapping[str, Any], images: DecodedDataset) -> Iterator[str]:
    if images.dataset.has_pseudonyms:
        yield (
            "External data: none of these images was used to develop the model. Whether its "
            "patients were is not known, because pseudonyms of DICOM files differ between data "
            "sets."
        )
    else:
        yield "External data: none of these images or patients was used to develop the model."
    if numbers["internal"]:
        yield numbers["internal"]["transfer"]
    else:
        yield (
            "Whether the model transfers is unknown, because it has no evaluation on the test "
            "images of its own data. Run evaluate with those first."
        )
    if recalibration := numbers["recalibration"]:
        yield (
            f"Calibration and threshold were also fitted again on {recalibration['images']} images "
            f"of {recalibration['patients']} patients of these data. All numbers are of the other "
            "patients."
        )


def metric_findings(numbers: Mapping[str, Any], split: str) -> Iterator[str]:
    """Yield a finding for each sign of an error in the metrics themselves.

    Args:
        numbers: As they are stored in `metrics.json`.
        split: `test`, `val` or `train`.
    """
    values, val = numbers["at_threshold"], numbers["validation"]
    if sorted((values["sensitivity"], values["specificity"])) == [0, 1]:
        class_name = "PNEUMONIA" if values["sensitivity"] else "NORMAL"
        yield (
            f"The model predicts {class_name} for every image. The most common cause is "
            "preprocessing that differs from training (training-serving skew)."
        )
    majority = max(numbers["prevalence"], 1 - numbers["prevalence"])
    if values["accuracy_low"] <= majority:
        yield (
            f"Accuracy {values['accuracy']:.1%} is not significantly better than {majority:.1%}, "
            "the accuracy of predicting the same class for every image."
        )
    if split != "val" and (degraded := _degraded_metrics(values, val)):
        yield (
            f"Worse on {split} than on validation: {', '.join(degraded)}. "
            "That is the selection on validation, or these images differ (dataset shift)."
        )


def _degraded_metrics(values: Mapping[str, float], val: Mapping[str, float]) -> list[str]:
    """Describe each headline metric that is lower than on validation with 95 % confidence.

    Validation has other patients, so both intervals count: see `independent_difference_interval`.
    """
    degraded = []
    for name in metrics.HEADLINE_METRICS:
        pair = (tuple(of[f"{name}{end}"] for end in CI_SUFFIXES) for of in (val, values))
        if independent_difference_interval(*pair)[1] < 0:
            degraded.append(
                f"{metric_title(name)} {format_with_interval(values, name)} instead of "
                f"{val[name]:.3f}"
            )
    return degraded


def explain_overlap(overlap: Overlap | None) -> str:
    """Explain why a split does not test a model.

    Args:
        overlap: As `find_overlap` returns it, or None if the model's training images are unknown.

    Returns:
        The reason in words, or '' if the split tests the model.
    """
    if overlap is None:
        return (
            "it is unknown which images the model was trained on, because its run has no "
            f"{results.TRAINING_FILES}; train it again"
        )
    if overlap.images:
        return (
            f"{overlap.images} of the {overlap.total} images are training or validation images of "
            f"the model, and {overlap.patients} show the same patients, so the results do not show "
            "how it performs on new patients"
        )
    if overlap.patients:
        return (
            f"{overlap.patients} of the {overlap.total} images show patients with whom the model "
            "was trained or validated, so the results do not show how it performs on new "
            "patients; if these are different people, give them different ids in patients.csv or "
            "the table"
        )
    return ""
