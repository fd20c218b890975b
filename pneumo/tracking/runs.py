"""MLflow runs: how they start, their tags, and their status at the end."""

import os
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial

import mlflow
from mlflow.entities import LoggedModelInput, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils import name_utils

from pneumo.data.dataset import Dataset
from pneumo.runtime.console import echo
from pneumo.runtime.errors import describe_failure, redact_passwords
from pneumo.runtime.process import ProcessId
from pneumo.tracking.session import configure_mlflow, retry_after_conflict
from pneumo.tracking.tags import (
    DATA,
    DATA_DIGEST,
    EXPERIMENT,
    GIT_COMMIT,
    HOST,
    KIND,
    NOTE,
    PARENT,
    PATIENTS,
    PID,
    POSITIVE,
    PROCESS,
    REASON,
    SOURCE,
    SOURCE_COMMIT,
    STATE,
    SYNTHETIC,
    TRIAL_NUMBER,
)

EXPERIMENT_DESCRIPTION = (
    "Runs of pneumo, which trains classifiers of chest X-rays. For research only.\n\n"
    "The tag `pneumo.kind` says what a run is. A `study` searches hyperparameters: below it are "
    "its trials, and `study/study.html` among its artifacts is the report. A run of kind `train` "
    "has one trial. `evaluate` has the metrics of a model on images, and a report, "
    "`evidence.html`. `promote` is a decision about `@champion`.\n\n"
    "To compare trials, select them and press *Compare*. *Models* lists all models with their "
    "metrics on each data set: `val_…` chose them, `test_…` did not."
)

NOT_FOUND = "RESOURCE_DOES_NOT_EXIST"  # MLflow's error code for a missing entity


def provenance_tags(experiment: str, dataset: Dataset) -> dict[str, str]:
    """Return the tags for the experiment and the data of a run.

    Args:
        experiment: Name of the experiment.
        dataset: The data that the run uses.
    """
    return {EXPERIMENT: experiment, **data_tags(dataset)}


def data_tags(dataset: Dataset) -> dict[str, str]:
    """Return the tags for the data of a run."""
    tags = {
        DATA: dataset.name,
        DATA_DIGEST: dataset.digest,
        SYNTHETIC: str(dataset.is_synthetic).lower(),
    }
    if dataset.unknown_patients:
        tags[PATIENTS] = "unknown"
    if dataset.positive:
        tags[POSITIVE] = ",".join(dataset.positive)
    return tags


@contextmanager
def command_run(
    kind: str, about: str, tags: Mapping[str, str], system_metrics: bool = False
) -> Iterator[str]:
    """Open the command's own run, which `mlflow run` has created or this function creates.

    Inside another run it becomes that run's child. It ends as FINISHED, as KILLED if a person
    interrupts it, or as FAILED for any other exception. The exception is stored in `traceback.txt`
    and propagates to the caller.

    Args:
        kind: Kind of the run, which begins its name.
        about: Rest of its name, or '' if it is not known yet.
        tags: Further tags.
        system_metrics: Whether MLflow also logs how busy the machine is.

    Yields:
        Id of the run.
    """
    tags = {KIND: kind, **tags}
    run = mlflow.start_run(nested=True, tags=tags, log_system_metrics=system_metrics)
    _describe_experiment(run.info.experiment_id)
    _hide_token(run)
    if about:
        name_run(run, f"{kind} {about}")
    with end_run_by_outcome(run) as run_id:
        try:
            yield run_id
        except Exception as error:
            with suppress(MlflowException):
                mlflow.set_tag(REASON, describe_failure(error))
            raise


def _describe_experiment(experiment_id: str) -> None:
    """Give an MLflow experiment a description, unless it has one."""
    client = mlflow.MlflowClient()
    if NOTE not in client.get_experiment(experiment_id).tags:
        describe = partial(client.set_experiment_tag, experiment_id, NOTE, EXPERIMENT_DESCRIPTION)
        retry_after_conflict(describe)


def log_model_inputs(*model_ids: str) -> None:
    """Log models as inputs of the active run.

    Args:
        *model_ids: MLflow's ids of the models.
    """
    # `mlflow.log_inputs(models=…)` works on Databricks only
    mlflow.MlflowClient().log_inputs(
        mlflow.active_run().info.run_id,
        models=[LoggedModelInput(model_id=model_id) for model_id in model_ids],
    )


def end_unused_run(kind: str, reason: str) -> None:
    """End the run that `mlflow run` has created for a command that failed before it used the run.

    This function does not wait for a server that does not answer.

    Args:
        kind: Kind of the run.
        reason: Why the command failed.
    """
    os.environ |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    configure_mlflow()
    with suppress(MlflowException):
        run = mlflow.start_run(tags={KIND: kind, REASON: reason})
        _hide_token(run)
        name_run(run, f"{kind}, failed")
        mlflow.end_run("FAILED")


def _hide_token(run: Run) -> None:
    """Remove the token from a run that `mlflow run https://TOKEN@HOST/…` has created.

    MLflow stores that address as it was typed. It removes the token only from the address of a
    clone's remote.
    """
    source = run.data.tags.get(SOURCE, "")
    public = re.sub(r"(https?://)[^/@]*@", r"\1", source)
    if public != source:
        mlflow.set_tag(SOURCE, public)


def name_run(run: Run, name: str) -> None:
    """Name a run, unless a person has named it: MLflow's own names are like `upset-wolf-12`.

    Args:
        run: The run.
        name: Its new name.
    """
    predicate, noun, *_ = [*run.info.run_name.split("-"), "", ""]
    generated = name_utils._GENERATOR_PREDICATES, name_utils._GENERATOR_NOUNS
    if predicate in generated[0] and noun in generated[1]:
        mlflow.MlflowClient().update_run(run.info.run_id, name=name)


def find_run(run_id: str) -> Run | None:
    """Return a run, or None if it has been deleted, or removed by `mlflow gc`."""
    run = _get_run(run_id)
    return run if run and run.info.lifecycle_stage == "active" else None


def run_exists(run_id: str) -> bool:
    """Return whether a run is in this store, deleted or not."""
    return _get_run(run_id) is not None


def _get_run(run_id: str) -> Run | None:
    try:
        return mlflow.get_run(run_id)
    except MlflowException as error:
        if error.error_code != NOT_FOUND:
            raise
        return None


def process_tags() -> dict[str, str]:
    """Return the tags by which a later process finds out whether this one still runs."""
    process = ProcessId.current()
    return {
        HOST: process.host,
        PID: str(process.pid),
        PROCESS: process.to_json(),
    }


@contextmanager
def trial_run(
    parent_id: str,
    name: str,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    trial_number: int | None = None,
    pruned: type[Exception] | tuple[()] = (),
    kind: str = "trial",
) -> Iterator[str]:
    """Open a run below another one, that of a Keras model.

    It ends as `command_run` describes, and also as KILLED by an exception of type `pruned`.

    Args:
        parent_id: Id of the parent run.
        name: Name of the run.
        params: Params of the run.
        tags: Further tags.
        trial_number: Optuna's number of the trial if it is part of a study. The run then gets the
            tags of a study's trial, with its `optuna.state`.
        pruned: Type of the exception of a pruned trial.
        kind: Kind of the run: `trial`, or `ensemble` for a model that consists of several trials'.

    Yields:
        Id of the run.
    """
    tags = {**tags, KIND: kind, **process_tags()}
    if trial_number is not None:
        tags[TRIAL_NUMBER] = str(trial_number)
    # `start_run` can only create a child of the active run, in that run's experiment. In a worker
    # the active run is not the study's, and may be in another experiment
    run = mlflow.MlflowClient().create_run(
        mlflow.get_run(parent_id).info.experiment_id,
        tags=resolve_tags({**tags, PARENT: parent_id}),
        run_name=name,
    )
    run = mlflow.start_run(run_id=run.info.run_id, nested=True)
    with end_run_by_outcome(run, pruned, states=trial_number is not None) as run_id:
        mlflow.log_params(dict(params))
        yield run_id


@contextmanager
def end_run_by_outcome(
    run: mlflow.ActiveRun, pruned: type[Exception] | tuple[()] = (), states: bool = False
) -> Iterator[str]:
    """End a run with the status for how the block ends: see `command_run` and `trial_run`.

    Args:
        run: The active run.
        pruned: Exceptions after which the run ends as KILLED.
        states: Whether the run gets the tag `optuna.state`.

    Yields:
        Id of the run.
    """
    try:
        yield run.info.run_id
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            outcome = "KILLED", "FAIL"
        else:
            outcome = ("KILLED", "PRUNED") if isinstance(error, pruned) else ("FAILED", "FAIL")
        try:
            _end_active_run(*outcome, states, trace="FAILED" in outcome)
        except MlflowException as failure:  # `reconcile_trial_runs` ends it later
            echo(
                f"the status of run {run.info.run_name} could not be stored "
                f"({describe_failure(failure)})"
            )
        raise
    else:
        _end_active_run("FINISHED", "COMPLETE", states)


def _end_active_run(status: str, state: str, states: bool, trace: bool = False) -> None:
    try:
        if trace:
            mlflow.log_text(redact_passwords(traceback.format_exc()), "traceback.txt")
        if states:
            mlflow.set_tag(STATE, state)
    finally:
        mlflow.end_run(status)  # deactivates the run even if the store fails


def commit_of(run: Run) -> str:
    """Return the Git commit of a run's code, or '' if it is not known."""
    return run.data.tags.get(SOURCE_COMMIT, "")


def commit_tag(run: Run) -> dict[str, str]:
    """Return the Git commit of a run's code as a tag, or no tag if it is not known."""
    commit = commit_of(run)
    return {GIT_COMMIT: commit} if commit else {}
