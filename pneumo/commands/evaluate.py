"""The command `evaluate`: metrics, plots and the evidence page for one model on one split."""

from pneumo.commands.evaluation import (
    EvaluationResult,
    count_look,
    evaluate_model,
    evaluation_run,
    threshold_rule,
)
from pneumo.commands.options.arguments import EvaluateOptions
from pneumo.commands.options.inputs import Inputs
from pneumo.data.dataset import Dataset, DecodedDataset
from pneumo.evaluation.intervals import format_with_interval
from pneumo.evaluation.metrics import Evaluation, evaluate_predictions
from pneumo.reporting.evaluation.findings import metric_findings
from pneumo.reporting.evaluation.page import metric_rows
from pneumo.reporting.plots import confusion_matrix_file
from pneumo.runtime.console import echo, print_table
from pneumo.runtime.errors import UserError
from pneumo.runtime.tensorflow_import import import_tensorflow
from pneumo.tracking import models, results, runs, session, tags
from pneumo.tracking.models import LoadedModel
from pneumo.tracking.tags import EXPERIMENT, PARENT, SKEW
from pneumo.training.config import complete_fields

SKEW_METRICS = ("accuracy", "sensitivity", "specificity", "auc")


def evaluate(options: EvaluateOptions, inputs: Inputs) -> int:
    """Evaluate one model on one split, and return the exit code."""
    rule = threshold_rule(options)
    _require_one_adjustment(options)
    import_tensorflow()
    session.connect()
    loaded_model = models.find_model(options.model)
    _require_independent_split(loaded_model, inputs.dataset, options.split)
    if options.prevalence:
        loaded_model.model.adjust_to_prevalence(options.prevalence)
    with evaluation_run(loaded_model, inputs.dataset, options.split) as (run_id, images):
        result = evaluate_model(loaded_model, images, options.split, rule, options.recalibrate)
    print_evaluation(loaded_model, options.split, result)
    if options.preprocessing_skew:
        evaluate_with_skew(loaded_model, images, options.split, result, run_id)
    echo(session.view_hint(run_id))
    return 0


def _require_one_adjustment(options: EvaluateOptions) -> None:
    if options.recalibrate and (options.prevalence or options.preprocessing_skew):
        raise UserError(
            "recalibrate fits the probabilities to these images, so it excludes prevalence and "
            "preprocessing_skew. Pass only one of them."
        )


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
        count_look(loaded_model, images.dataset, split, unskewed.overlap)
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
