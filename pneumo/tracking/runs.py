"""A run of MLflow: begun, tagged, and ended by what happened."""

import os
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils import name_utils

from pneumo.data.dataset import Dataset
from pneumo.runtime.console import echo
from pneumo.runtime.errors import describe_failure, redact_passwords
from pneumo.runtime.process import ProcessId
from pneumo.tracking import tags
from pneumo.tracking.session import configure_mlflow
from pneumo.tracking.tags import (
    DATA,
    DATA_DIGEST,
    KIND,
    PARENT,
    PATIENTS,
    REASON,
    SYNTHETIC,
    TRIAL_NUMBER,
)
from pneumo.training.config import RunConfig

NOT_FOUND = "RESOURCE_DOES_NOT_EXIST"  # MLflow's error code for what its store does not have


def provenance_tags(experiment: str, dataset: Dataset) -> dict[str, str]:
    """The tags that say which experiment a run belongs to, and which data it saw."""
    return {tags.EXPERIMENT: experiment, **data_tags(dataset)}


def data_tags(dataset: Dataset) -> dict[str, str]:
    """The tags that say which data a run saw."""
    tags = {
        DATA: dataset.name,
        DATA_DIGEST: dataset.digest,
        SYNTHETIC: str(dataset.synthetic).lower(),
    }
    return tags | ({PATIENTS: "unknown"} if dataset.unknown_patients else {})


@contextmanager
def command_run(
    kind: str, about: str, tags: Mapping[str, str], system_metrics: bool = False
) -> Iterator[str]:
    """The command's own run, which `mlflow run` has made or else is made here; yields its id.

    Within another one it is that one's child. FINISHED at its end, KILLED if a person interrupted
    it, FAILED for any other exception, which leaves `traceback.txt` and goes on to the caller.
    It is called by its kind and what it is `about`, where that is known yet. `system_metrics`:
    MLflow also logs how busy the machine is.
    """
    tags = {KIND: kind, **tags}
    run = mlflow.start_run(nested=True, tags=tags, log_system_metrics=system_metrics)
    _hide_token(run)
    if about:
        name_run(run, f"{kind} {about}")
    with ended_by_exception(run) as run_id:
        try:
            yield run_id
        except Exception as error:
            with suppress(MlflowException):
                mlflow.set_tag(REASON, describe_failure(error))
            raise


def end_unused_run(kind: str, reason: str) -> None:
    """End the run that `mlflow run` has made for a command that failed before it used that run.

    A server that does not answer is not waited for.
    """
    os.environ |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    configure_mlflow()
    with suppress(MlflowException):
        run = mlflow.start_run(tags={tags.KIND: kind, tags.REASON: reason})
        _hide_token(run)
        name_run(run, f"{kind}, failed")
        mlflow.end_run("FAILED")


def _hide_token(run: Run) -> None:
    """Takes from a run what lets somebody in where `mlflow run https://TOKEN@HOST/…` made it.

    MLflow keeps that address as it was given; from that of a clone's remote it takes the token.
    """
    source = run.data.tags.get(tags.SOURCE, "")
    public = re.sub(r"(https?://)[^/@]*@", r"\1", source)
    if public != source:
        mlflow.set_tag(tags.SOURCE, public)


def name_run(run: Run, name: str) -> None:
    """Names a run, unless a person has done so: MLflow's own names are as `upset-wolf-12`."""
    predicate, noun, *_ = [*run.info.run_name.split("-"), "", ""]
    made_up = name_utils._GENERATOR_PREDICATES, name_utils._GENERATOR_NOUNS
    if predicate in made_up[0] and noun in made_up[1]:
        mlflow.MlflowClient().update_run(run.info.run_id, name=name)


def find_run(run_id: str) -> Run | None:
    """Return a run, or None if it has been deleted, or removed by `mlflow gc`."""
    try:
        run = mlflow.get_run(run_id)
    except MlflowException as error:
        if error.error_code != NOT_FOUND:
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def run_exists(run_id: str) -> bool:
    """Return whether a run is in this store, deleted or not."""
    try:
        mlflow.get_run(run_id)
    except MlflowException as error:
        if error.error_code != NOT_FOUND:
            raise
        return False
    return True


def process_tags() -> dict[str, str]:
    """Return the tags by which a later process finds out whether this one still runs."""
    process = ProcessId.current()
    return {
        tags.HOST: process.host,
        tags.PID: str(process.pid),
        tags.PROCESS: process.to_json(),
    }


@contextmanager
def trial_run(
    parent_id: str,
    name: str,
    config: RunConfig,
    tags: Mapping[str, str],
    trial_number: int | None = None,
    pruned: type[Exception] | tuple[()] = (),
) -> Iterator[str]:
    """A run of kind `trial`, child of `parent_id`, with the params of `config`; yields its id.

    Ends as `command_run` does, but KILLED too by an exception of type `pruned`. With a
    `trial_number` it is tagged as a study's trial, with its `optuna.state`.
    """
    tags = {**tags, KIND: "trial", **process_tags()}
    if trial_number is not None:
        tags[TRIAL_NUMBER] = str(trial_number)
    # `start_run` would make a child of the active run alone, and in its experiment: a worker's own
    # run is neither the study's nor need it be where that is
    run = mlflow.MlflowClient().create_run(
        mlflow.get_run(parent_id).info.experiment_id,
        tags=resolve_tags({**tags, PARENT: parent_id}),
        run_name=name,
    )
    run = mlflow.start_run(run_id=run.info.run_id, nested=True)
    with ended_by_exception(run, pruned, states=trial_number is not None) as run_id:
        mlflow.log_params(config.as_text())
        yield run_id


@contextmanager
def ended_by_exception(
    run: mlflow.ActiveRun, pruned: type[Exception] | tuple[()] = (), states: bool = False
) -> Iterator[str]:
    """End a run as the block ends, see `command_run` and `trial_run`; yields its id.

    Args:
        run: The active run.
        pruned: Exceptions after which it ends as KILLED.
        states: Whether it gets the tag `optuna.state`.
    """
    try:
        yield run.info.run_id
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            ended = "KILLED", "FAIL"
        else:
            ended = ("KILLED", "PRUNED") if isinstance(error, pruned) else ("FAILED", "FAIL")
        try:
            _end_active_run(*ended, states, trace="FAILED" in ended)
        except MlflowException as unanswered:  # not what ended the run; `settle` ends it later
            echo(
                f"the end of run {run.info.run_name} is not stored ({describe_failure(unanswered)})"
            )
        raise
    else:
        _end_active_run("FINISHED", "COMPLETE", states)


def _end_active_run(status: str, state: str, states: bool, trace: bool = False) -> None:
    try:
        if trace:
            mlflow.log_text(redact_passwords(traceback.format_exc()), "traceback.txt")
        if states:
            mlflow.set_tag(tags.STATE, state)
    finally:
        mlflow.end_run(status)  # the run is no longer the active one, whatever the store says


def commit_of(run: Run) -> str:
    """Return the Git commit that a run's code came from, '' if it is not known."""
    return run.data.tags.get(tags.SOURCE_COMMIT, "")


def commit_tag(run: Run) -> dict[str, str]:
    """The commit that a run's code came from, as a tag; nothing where that is not known."""
    found = commit_of(run)
    return {tags.GIT_COMMIT: found} if found else {}
