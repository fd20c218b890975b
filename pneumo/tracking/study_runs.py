"""Runs below a study's run, reconciled with Optuna after crashes."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import mlflow
from mlflow.entities import Run, RunStatus, ViewType

from pneumo.runtime.process import ProcessId
from pneumo.tracking import tags
from pneumo.tracking.results import write_files
from pneumo.tracking.runs import end_run_by_outcome
from pneumo.tracking.tags import (
    KIND,
    MEMBERS,
    PARENT,
    PROVENANCE,
    STATE,
    STUDY,
    TRIAL_NUMBER,
)

# Optuna's state of a finished trial → status of its run
RUN_STATUS_BY_STATE = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}

MAX_RESULTS = 50_000  # runs that MLflow returns per request


@contextmanager
def resume_run(run_id: str) -> Iterator[None]:
    """Make a study's run of an earlier process active; end it as `command_run` does."""
    run = mlflow.start_run(run_id=run_id, nested=True, log_system_metrics=True)
    with end_run_by_outcome(run):
        yield


def find_study(name: str) -> str:
    """Return the id of a study's run, or '' if this store has no study of that name."""
    runs = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.`{tags.KIND}` = 'study' and tags.`{tags.STUDY}` = '{name}'",
        max_results=1,
        output_format="list",
    )
    return runs[0].info.run_id if runs else ""


def _process_of(run: Run) -> ProcessId:
    return ProcessId.from_values(json.loads(run.data.tags.get(tags.PROCESS, "[]")))


def reconcile_trial_runs(
    study_run_id: str, ended: Mapping[int, str], is_dead: Callable[[ProcessId], bool]
) -> None:
    """Reconcile the runs below a study's run with the states of Optuna's trials.

    A request that MLflow's client repeats, because the answer got lost, may create two runs of one
    trial. The run with fewer params is then deleted. A failed trial without a run gets one. Runs of
    workers and of resumed studies end as FAILED if their process is dead.

    Args:
        study_run_id: Id of the study's run.
        ended: Number of each finished trial, and its Optuna state.
        is_dead: Called with the process of each worker's run that has not ended.
    """
    client, runs = mlflow.MlflowClient(), defaultdict(list)
    study = client.get_run(study_run_id)
    for run in _child_runs(study, ViewType.ALL):
        tags = run.data.tags
        if number := tags.get(TRIAL_NUMBER):
            runs[int(number)].append(run)
        elif not _is_terminated(run) and is_dead(_process_of(run)):
            client.set_terminated(run.info.run_id, "FAILED")
    for number, state in ended.items():
        trial_runs = [run for run in runs[number] if run.info.lifecycle_stage == "active"]
        if not runs[number] and state == "FAIL":
            trial_runs = [_create_missing_run(study, number)]
        *duplicates, kept = sorted(trial_runs, key=lambda run: len(run.data.params)) or [None]
        for run in duplicates:
            client.delete_run(run.info.run_id)
        if kept and (kept.data.tags.get(STATE), _is_terminated(kept)) != (state, True):
            _end_trial(kept, state)


def _is_terminated(run: Run) -> bool:
    return RunStatus.is_terminated(RunStatus.from_string(run.info.status))


def _create_missing_run(study: Run, number: int) -> Run:
    """Create the run of a trial that ended before it had one."""
    tags = {name: value for name, value in study.data.tags.items() if name in PROVENANCE}
    tags |= {KIND: "trial", TRIAL_NUMBER: str(number), PARENT: study.info.run_id}
    return mlflow.MlflowClient().create_run(
        study.info.experiment_id, tags=tags, run_name=f"trial {number} · lost"
    )


def _end_trial(run: Run, state: str) -> None:
    client = mlflow.MlflowClient()
    client.set_tag(run.info.run_id, tags.STATE, state)
    client.set_terminated(run.info.run_id, RUN_STATUS_BY_STATE[state])


def fail_stale_trial(study_run_id: str, number: int) -> None:
    """Fail the run of a stale trial that is still running in MLflow.

    If no other trial runs on its machine, the runs of that machine's workers end as FAILED, too.

    Args:
        study_run_id: Id of the study's run.
        number: Optuna's number of the trial.
    """
    client = mlflow.MlflowClient()
    running = [run for run in _child_runs(client.get_run(study_run_id)) if not _is_terminated(run)]
    for trial in running:
        if trial.data.tags.get(tags.TRIAL_NUMBER) == str(number):
            _end_trial(trial, "FAIL")
            running.remove(trial)
            machine = _process_of(trial).machine
            others = [run for run in running if _process_of(run).machine == machine]
            if all(run.data.tags[tags.KIND] == "worker" for run in others):
                for run in others:
                    client.set_terminated(run.info.run_id, "FAILED")
            return


def log_hang_traceback(study_run_id: str, number: int, trace: str) -> None:
    """Log where a trial hung as `traceback.txt` of its run.

    Args:
        study_run_id: Id of the study's run.
        number: Optuna's number of the trial.
        trace: The traceback.
    """
    client = mlflow.MlflowClient()
    for run in _child_runs(client.get_run(study_run_id)):
        if run.data.tags.get(tags.TRIAL_NUMBER) == str(number):
            client.log_text(run.info.run_id, trace, "traceback.txt")


def _child_runs(study: Run, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    """Return the runs of a study's trials, workers and resumes.

    A worker's run may be in another MLflow experiment than the study's: the command that starts the
    worker chooses it.
    """
    return mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.`{tags.PARENT}` = '{study.info.run_id}'",
        run_view_type=view,
        max_results=MAX_RESULTS,
        output_format="list",
    )


def trial_runs(study_run_id: str) -> dict[int, Run]:
    """Return the runs of a study's trials, by the trials' numbers."""
    children = _child_runs(mlflow.get_run(study_run_id))
    numbers = ((run.data.tags.get(tags.TRIAL_NUMBER), run) for run in children)
    return {int(number): run for number, run in numbers if number}


def log_study(study_run_id: str, files: Mapping[str, bytes], description: str) -> None:
    """Log the report on a study to its run.

    Args:
        study_run_id: Id of the study's run.
        files: Files below `study/`: name → content.
        description: Description of the run, in Markdown.
    """
    write_files("study", files, study_run_id)
    mlflow.MlflowClient().set_tag(study_run_id, tags.NOTE, description)


def describe_source(tags: Mapping[str, str]) -> str:
    """Name the trials that a model of a study consists of, from its run's or its version's tags."""
    if MEMBERS in tags:
        numbers = ", ".join(map(str, dict.fromkeys(json.loads(tags[MEMBERS]))))
        return f"Ensemble of trials {numbers} of study {tags[STUDY]}"
    return f"Trial {tags[TRIAL_NUMBER]} of study {tags[STUDY]}"


def count_trial_states(trial: Run) -> dict[str, int]:
    """Count the trials in each `optuna.state`, in the study that a trial belongs to."""
    parent = trial.data.tags[tags.PARENT]
    runs = mlflow.MlflowClient().search_runs(
        [trial.info.experiment_id],
        f"tags.`{tags.PARENT}` = '{parent}' and tags.`{tags.KIND}` = 'trial'",
        max_results=MAX_RESULTS,
    )
    return dict(Counter(run.data.tags[tags.STATE] for run in runs if tags.STATE in run.data.tags))
