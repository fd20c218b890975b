"""Evaluations as MLflow runs: which model on which split, and how often test images were used."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
from mlflow.entities import Run, ViewType

from pneumo.tracking import tags
from pneumo.tracking.runs import log_model_inputs
from pneumo.tracking.study_runs import MAX_RESULTS
from pneumo.tracking.tags import EXTERNAL, MODEL, MODEL_ID, PREVALENCE, RECALIBRATION, SPLIT


@contextmanager
def tag_evaluation(
    model: str,
    model_id: str,
    split: str,
    is_external: bool,
    adjusted_to: float | None = None,
    recalibration_share: float | None = None,
) -> Iterator[str]:
    """Tag the active run as the evaluation of a model on a split, and log the model as its input.

    MLflow's id of the model is tagged only at the end of the block, when everything is logged. A
    study's run may show the evaluation of an earlier winner until then. Without the id it is never
    mistaken for the evaluation of the next winner.

    Args:
        model: Name and version of the model.
        model_id: MLflow's id of the model.
        split: Name of the split.
        is_external: Whether the images are those of another data set.
        adjusted_to: Prevalence to which the probabilities are adjusted, or None. An adjusted
            evaluation never gets MLflow's id of the model, so no decision uses it.
        recalibration_share: Share of the patients on whom the model is calibrated again, or None.
            Then only the others are evaluated, and no decision uses that either.

    Yields:
        Id of the active run.
    """
    tags = {
        MODEL: model,
        SPLIT: split,
        EXTERNAL: str(is_external).lower(),
    }
    if adjusted_to is not None:
        tags[PREVALENCE] = str(adjusted_to)
    if recalibration_share is not None:
        tags[RECALIBRATION] = str(recalibration_share)
    mlflow.set_tags({**tags, MODEL_ID: ""})
    log_model_inputs(model_id)
    yield mlflow.active_run().info.run_id
    if adjusted_to is None and recalibration_share is None:
        mlflow.set_tag(MODEL_ID, model_id)


def record_look(model_id: str, images_digest: str) -> None:
    """Record on the active run that a model is about to be evaluated on test images.

    A study's run may evaluate a second winner, which replaces the tags and artifacts of the first.
    Both looks remain counted.

    Args:
        model_id: MLflow's id of the model.
        images_digest: See `Dataset.images_digest`.
    """
    looks = _looks_of(mlflow.get_run(mlflow.active_run().info.run_id))
    looks[model_id] += 1
    mlflow.set_tags({tags.IMAGES_DIGEST: images_digest, tags.LOOKS: json.dumps(looks)})


def count_looks(images_digest: str) -> Counter[str]:
    """Count the evaluations on test images, by MLflow's id of the model.

    All experiments count. Deleted runs count too, because deleting a run does not undo a look at
    its results.
    """
    client = mlflow.MlflowClient()
    experiments = client.search_experiments(ViewType.ALL, max_results=MAX_RESULTS)
    runs = client.search_runs(
        [experiment.experiment_id for experiment in experiments],
        f"tags.`{tags.IMAGES_DIGEST}` = '{images_digest}'",
        ViewType.ALL,
        max_results=MAX_RESULTS,
    )
    return sum(map(_looks_of, runs), Counter())


def _looks_of(run: Run) -> Counter[str]:
    return Counter(json.loads(run.data.tags.get(tags.LOOKS, "{}")))


def evaluated_model(run: Run) -> str:
    """Return MLflow's id of the model that a run has evaluated, or '' if it has evaluated none."""
    return run.data.tags.get(tags.MODEL_ID, "")


def find_evaluation(model_id: str, data_digest: str, split: str) -> str | None:
    """Find the latest run that has evaluated a model on a split of some data.

    Args:
        model_id: MLflow's id of the model.
        data_digest: Digest of the data set.
        split: Name of the split.

    Returns:
        Id of the run, or None if there is none.
    """
    required = {
        tags.MODEL_ID: model_id,
        tags.DATA_DIGEST: data_digest,
        tags.SPLIT: split,
    }
    runs = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=" and ".join(f"tags.`{key}` = '{value}'" for key, value in required.items()),
        max_results=1,
        order_by=["attributes.start_time DESC"],
        output_format="list",
    )
    return runs[0].info.run_id if runs else None


def find_predictions(model_id: str, data_digest: str, split: str) -> str | None:
    """Return the run of `find_evaluation`, or None if its predictions are no longer there."""
    run_id = find_evaluation(model_id, data_digest, split)
    files = mlflow.MlflowClient().list_artifacts(run_id, split) if run_id else []
    return run_id if f"{split}/predictions.csv" in {file.path for file in files} else None


def evaluated_threshold(run_id: str, split: str) -> float:
    """Return the threshold that the evaluation of a run on a split has used."""
    return mlflow.get_run(run_id).data.metrics[f"{split}_threshold"]
