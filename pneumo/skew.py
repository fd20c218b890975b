"""Preprocessing skew on purpose: a model trained on pixels 0-255 is given pixels / 255."""

import numpy as np

from pneumo.data.dataset import Images
from pneumo.evaluation.intervals import with_interval
from pneumo.evaluation.metrics import Evaluation, evaluate
from pneumo.evaluation.preprocessing_skew import as_published
from pneumo.evidence import Evidence
from pneumo.inference.logits import predict_logits, to_probabilities
from pneumo.reporting import evaluation_report
from pneumo.reporting.plots import confusion_matrix_file
from pneumo.runtime.console import say, table
from pneumo.tracking import evaluations, results, runs
from pneumo.tracking.models import Stored
from pneumo.tracking.tags import EXPERIMENT, PARENT, SKEW

SHOWN = ("accuracy", "sensitivity", "specificity", "auc")


def evaluate_with_skew(
    stored: Stored, images: Images, split: str, sound: Evidence, parent_id: str
) -> None:
    """Evaluate a model on pixels / 255, and show that beside its evaluation without the skew.

    The evaluation has a run of its own with the tag `pneumo.preprocessing_skew`. That run names no
    model, so no decision is made on it.

    Args:
        stored: The model.
        images: The images as the model takes them.
        split: `test`, `val` or `train`. On `test` this counts as one more look.
        sound: The evaluation without the skew, on the same split.
        parent_id: Id of the run of that evaluation.
    """
    tags = runs.subject_tags(stored.trial.data.tags[EXPERIMENT], images.dataset)
    tags |= {SKEW: "pixels / 255", PARENT: parent_id}
    with runs.command_run("evaluate", f"{stored.title}, with skew", tags):
        if split == "test":
            evaluations.record_look(stored.model_id, images.dataset.images_digest("test"))
        data, threshold = images.split(split), sound.evaluation.metrics["threshold"]
        # As `predict_probabilities`, but for its check of uint8 pixels, which would refuse them
        twin = as_published(stored.model.keras_model)
        logits = predict_logits(twin, data.images.astype(np.float32) / 255)
        probabilities = to_probabilities(logits, stored.model.settings["temperature"])
        skewed = evaluate(data, probabilities, threshold, intervals=True)
        results.log_evaluation(split, skewed, confusion_matrix_file(split, skewed))
    _show(split, {"without skew": sound.evaluation, "with skew": skewed})
    for finding in evaluation_report.failures(
        {**sound.numbers, "at_threshold": skewed.metrics}, split
    ):
        say(f"note, with skew: {finding}")


def _show(split: str, evaluations: dict[str, Evaluation]) -> None:
    rows = [
        (name, *(with_interval(it.metrics, metric) for metric in SHOWN), str(it.confusion))
        for name, it in evaluations.items()
    ]
    table(f"The same model on {split}", ("", *SHOWN, "counts"), rows)
