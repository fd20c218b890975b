"""Studies in Optuna: how they are created, resumed, limited and reconciled with MLflow."""

import time
import warnings
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import Any

import mlflow
import optuna
from filelock import Timeout
from optuna.distributions import (
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.exceptions import DuplicatedStudyError
from optuna.trial import FrozenTrial, TrialState

from pneumo.data.dataset import Dataset
from pneumo.runtime import cache, signals
from pneumo.runtime.console import echo
from pneumo.runtime.errors import UserError
from pneumo.runtime.process import ProcessId
from pneumo.tracking import model_files, results, runs, session, study_runs, tags
from pneumo.training.config import complete_fields, rename_fields
from pneumo.tuning import attributes
from pneumo.tuning.limits import FINISHED_STATES, count_finished_trials
from pneumo.tuning.planning.plan import StudyPlan
from pneumo.tuning.selection import WarmStart, complete_trials, rank_trials
from pneumo.tuning.spec import MEDIAN_PRUNER_OPTIONS, TPE_OPTIONS, StudySpec
from pneumo.tuning.storage import GRACE_PERIOD, open_storage, serves_one_machine, storage_address

MAX_UNCLAIMED_SECONDS = 60  # that a trial may run before a process claims it
MAX_RECONCILE_SECONDS = 60  # that a process waits for another one that reconciles the same study


def load_study(
    storage: optuna.storages.RDBStorage, name: str, spec: StudySpec, like: str = ""
) -> optuna.Study:
    """Load a study that must have the same search as `spec` and its run in this MLflow store.

    Args:
        storage: Optuna's database.
        name: Name of the study.
        spec: The search that the study must have.
        like: Name of the study from which its warm start must come, or '' for any.

    Raises:
        UserError: The study has another search, or its runs are in another store.
    """
    study = _open_existing(storage, name, spec)
    for key, value in spec.identity().items():
        stored_value = study.user_attrs.get(key)
        if isinstance(stored_value, dict):
            complete = complete_fields if key == "base" else rename_fields
            stored_value = complete(stored_value)
        _require_same(name, key, stored_value, value)
    _require_same_search_space(study, spec)
    if like:
        _require_same(name, "like", attributes.WARM_START.get(study, {}).get("study"), like)
    run_id = attributes.RUN_ID.read(study)
    if runs.find_run(run_id):
        return study
    if not runs.run_exists(run_id):
        raise UserError(
            f"study '{name}' must be in both stores: Optuna's database at {storage_address()} has "
            f"it, but MLflow at {session.tracking_address()} does not (run {run_id}). Set "
            "MLFLOW_TRACKING_URI to the store in which it was created, or use another study name."
        )
    raise UserError(
        f"the run of study '{name}' was deleted in MLflow. Restore it with "
        f"'mlflow runs restore --run-id {run_id}', or use another study name."
    )


def _require_same(name: str, key: str, stored_value: Any, value: Any) -> None:
    if stored_value == value:
        return
    if key == "base" and stored_value:  # a message about one field is easier to read
        field = next(field for field in value if stored_value.get(field) != value[field])
        key, stored_value, value = f"{field} of BASE", stored_value.get(field), value[field]
    raise UserError(
        f"study '{name}' was created with {key} {stored_value}: got {value}. "
        "Use the original value, or another study name."
    )


def _require_same_search_space(study: optuna.Study, spec: StudySpec) -> None:
    """Raise `UserError` unless a study's search space differs in ranges at most.

    Optuna accepts changed ranges of numbers. Trials of different choices, scales or hyperparameters
    cannot share a study.
    """
    space = spec.search_space()
    stored_space = {
        suggestion: json_to_distribution(text)
        for suggestion, text in attributes.SEARCH_SPACE.get(study, {}).items()
    }
    _require_same(study.study_name, "search space", sorted(stored_space), sorted(space))
    for suggestion, distribution in space.items():
        try:
            check_distribution_compatibility(stored_space[suggestion], distribution)
        except ValueError:
            key = f"search space {suggestion}"
            _require_same(study.study_name, key, stored_space[suggestion], distribution)


def _open_existing(storage: optuna.storages.RDBStorage, name: str, spec: StudySpec) -> optuna.Study:
    return optuna.load_study(
        storage=storage, study_name=name, sampler=spec.sampler(), pruner=spec.pruner()
    )


def attach_to_study(
    name: str, dataset: Dataset, weights: str = "", patience: float = 0
) -> tuple[optuna.Study, StudySpec]:
    """Load a study that another process has created.

    Args:
        name: Name of the study.
        dataset: Its data.
        weights: See `StudySpec.from_study`.
        patience: See `open_storage`.

    Returns:
        The study and its search.

    Raises:
        UserError: The study does not exist, is not ready, or has other data, weights or another
            MLflow store.
    """
    storage = open_storage(patience)
    if name not in (names := optuna.get_all_study_names(storage)):
        raise UserError(
            f"--study must be in Optuna's database at {storage_address()}, which has "
            f"{', '.join(sorted(names)) or 'none'}: got '{name}'. Set PNEUMO_STORAGE to the "
            "database of the study, or create it with tune."
        )
    existing = optuna.load_study(storage=storage, study_name=name)
    if not attributes.LIMITS.get(existing, {}):  # stored once `create_study` has ended
        raise UserError(
            f"study '{name}' is not ready, or tune has not created it. Try again in a minute, or "
            "name another study."
        )
    spec = StudySpec.from_study(existing, dataset, weights)
    return load_study(storage, name, spec), spec


def check_name_is_new(name: str) -> None:
    """Raise `UserError` if MLflow has a study of that name; call it if Optuna has none."""
    if run_id := study_runs.find_study(name):
        raise UserError(
            f"study '{name}' must be in both stores: MLflow at {session.tracking_address()} has it "
            f"(run {run_id}), but Optuna's database at {storage_address()} does not. Set "
            "PNEUMO_STORAGE to the database in which it was created, or use another name."
        )


def create_study(
    storage: optuna.storages.RDBStorage,
    name: str,
    spec: StudySpec,
    run_id: str,
    warm_start: WarmStart | None = None,
    plan: StudyPlan | None = None,
) -> optuna.Study:
    """Create a study in Optuna, describe it in MLflow, and enqueue its first trials.

    Prints the study's name, where to see it, and a summary of the images. The baseline is the first
    trial: see `StudySpec.initial_params`.

    Args:
        storage: Optuna's database.
        name: Name of the study.
        spec: Search of the study.
        run_id: Id of the study's run, which must be active.
        warm_start: Trials of an earlier study, which are enqueued after the initial trials.
        plan: Plan of a study with a budget.

    Raises:
        UserError: Too many files are unreadable, the first trials are invalid, or another process
            has created the study meanwhile.
    """
    runs.name_run(mlflow.active_run(), f"study {name}")
    echo(f"study {name}")  # at once: a process that dies cannot print it later
    echo(session.view_hint(run_id))
    echo(results.decode_and_log(spec.dataset, spec.base).summary())
    enqueued_params = spec.initial_params() + (warm_start.params if warm_start else [])
    try:
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize",
            sampler=spec.sampler(),
            pruner=spec.pruner(),
        )
    except DuplicatedStudyError:
        raise UserError(
            f"another process has created study '{name}' meanwhile. Run the same command to resume "
            "it, join it with the command worker, or use another name."
        ) from None
    space = {
        name: distribution_to_json(distribution)
        for name, distribution in spec.search_space().items()
    }
    for key, value in {**spec.identity(), "search_space": space, "run_id": run_id}.items():
        study.set_user_attr(key, value)
    if warm_start:
        attributes.WARM_START.set(study, asdict(warm_start))
    if plan:
        attributes.PLAN.set(study, plan.to_dict())
    for suggestions in enqueued_params:
        study.enqueue_trial(suggestions)
    mlflow.set_tag(tags.STUDY, name)
    settings = {
        "sampler": {"name": "TPESampler", **TPE_OPTIONS},
        "pruner": {"name": "MedianPruner", **MEDIAN_PRUNER_OPTIONS}
        if spec.experiment.prune
        else {},
        "base": spec.base.to_params(),
        "baseline": enqueued_params[0],
        "warm_start": attributes.WARM_START.get(study, {}),
        "plan": attributes.PLAN.get(study, {}),
    }
    mlflow.log_dict(spec.identity() | settings, "study.json")
    return study


def warn_of_other_commit(study: optuna.Study, run_id: str) -> None:
    """Print a warning if the run of a worker or a resume comes from another commit than the study.

    The experiment's file and the package may then differ from those with which the study began.

    Args:
        study: The study.
        run_id: Id of the worker's or the resume's run.
    """
    commit = runs.commit_of(mlflow.get_run(attributes.RUN_ID.read(study)))
    own_commit = runs.commit_of(mlflow.get_run(run_id))
    if commit and own_commit and commit != own_commit:
        echo(
            f"warning: study {study.study_name} was created at commit {commit[:8]}, but this "
            f"process runs {own_commit[:8]}. Their trials may not be comparable."
        )


def prepare_resume(study: optuna.Study, spec: StudySpec) -> None:
    """Prepare a study for another process: see `replace_lost_trials`.

    Args:
        study: The study.
        spec: Search of the study.
    """
    replace_lost_trials(study, spec)
    echo(f"resuming study {study.study_name}: {count_finished_trials(study)} trials are finished")


def replace_lost_trials(study: optuna.Study, spec: StudySpec) -> None:
    """Fail the trials of dead processes, and enqueue again each initial trial that was lost or cut.

    Processes that share a cache do this one after another, so each trial is enqueued once.

    Args:
        study: The study.
        spec: Search of the study.
    """
    fail_dead_trials(study)
    reconcile_runs(study)
    unfailed_states = (*FINISHED_STATES, TrialState.WAITING, TrialState.RUNNING)
    with cache.lock(f"replace {study.study_name}"):
        trials = study.get_trials(deepcopy=False, states=unfailed_states)
        known_params = [
            trial.system_attrs.get("fixed_params", trial.params)
            for trial in trials
            if not attributes.IS_CUT.get(trial, False)
        ]
        warm_start = attributes.WARM_START.get(study, {})
        for suggestions in spec.initial_params() + warm_start.get("params", []):
            if suggestions in known_params:
                known_params.remove(suggestions)
            else:
                study.enqueue_trial(suggestions)


def running_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the running trials of all processes."""
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def fail_dead_trials(study: optuna.Study) -> None:
    """Fail, in Optuna, the trials whose process is dead or never claimed them."""
    for trial in filter(_has_no_process, running_trials(study)):
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _has_no_process(trial: FrozenTrial) -> bool:
    if process := attributes.PROCESS.get(trial, None):
        return is_dead(ProcessId.from_values(process))
    return (datetime.now() - trial.datetime_start).total_seconds() > MAX_UNCLAIMED_SECONDS


def is_dead(process: ProcessId) -> bool:
    """Return whether a process that worked on a study has certainly ended.

    SQLite serves one machine, so a process that does not run here has ended. With other databases
    this is known only of processes of this boot of this machine, in this container. The trials of
    all other processes end by their heartbeat.
    """
    if serves_one_machine():
        return not process.is_running()
    own_process = ProcessId.current()
    same_machine = bool(own_process.boot_id) and process.machine == own_process.machine
    return same_machine and not process.is_running()


def reconcile_runs(study: optuna.Study) -> None:
    """Reconcile the runs of a study's finished trials in MLflow with Optuna.

    Processes that share a cache do this one after another, so each missing run is created once. If
    another one does not finish, because the store does not answer, the rest is left to it.
    """
    with suppress(Timeout), cache.lock(f"reconcile {study.study_name}", MAX_RECONCILE_SECONDS):
        trials = study.get_trials(deepcopy=False)
        ended = {trial.number: trial.state.name for trial in trials if trial.state.is_finished()}
        study_runs.reconcile_trial_runs(attributes.RUN_ID.read(study), ended, is_dead)


def wait_for_running_trials(study: optuna.Study) -> None:
    """Wait until no trial is running; fail trials of dead processes and stale trials."""
    announced: set[int] = set()
    while True:
        fail_dead_trials(study)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(study)
        running = running_trials(study)
        if not running:
            return
        for trial in running:
            if trial.number not in announced:
                echo(f"waiting for trial {trial.number}, {_owner(trial)}")
        announced |= {trial.number for trial in running}
        signals.raise_if_interrupted()
        time.sleep(2)


def _owner(trial: FrozenTrial) -> str:
    """Describe the process that runs a trial, and when the trial fails if the process is gone."""
    process = attributes.PROCESS.get(trial, None)
    if not process:
        return f"which no process has claimed; it fails {MAX_UNCLAIMED_SECONDS} s after its start"
    process = ProcessId.from_values(process)
    owner = f"which runs in process {process.pid} on {process.host}"
    if serves_one_machine():
        return owner
    return f"{owner}; it fails after {GRACE_PERIOD} s without a heartbeat"


def delete_models_beyond_best(
    study: optuna.Study, keep: int, deleted: Collection[int] = ()
) -> set[int]:
    """Delete the models of the complete trials that are not among the best.

    Args:
        study: The study.
        keep: Number of the best trials whose models are kept.
        deleted: Numbers of trials whose models are known to be deleted.

    Returns:
        Numbers of all trials whose models are deleted now.
    """
    with cache.lock(f"evict {study.study_name}"):
        beyond = rank_trials(complete_trials(study))[keep:]
        for trial in beyond:
            if trial.number not in deleted:
                model_files.delete_model(attributes.MODEL_URI.read(trial))
    return {trial.number for trial in beyond}
