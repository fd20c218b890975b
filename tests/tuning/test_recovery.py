"""What a study does about failures and after them, without a trial that trains."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from mlflow.entities import ViewType
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from pneumo.experiment import Experiment, load_experiment
from pneumo.runtime import cache
from pneumo.training.config import RunConfig
from pneumo.tuning import attributes, storage
from pneumo.tuning import study as studies
from pneumo.tuning.limits import INTERRUPTED, FailureCounter, StudyLimits, repeated_failure
from pneumo.tuning.selection import best_trial_of
from pneumo.tuning.spec import StudySpec
from tests.support.stores import closed_connections


@pytest.fixture
def study() -> optuna.Study:
    """An empty study in memory."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction="maximize")


def add(study: optuna.Study, *states: str, **attributes) -> None:
    for state in states:
        value = {"value": 0.5} if state == "COMPLETE" else {}
        study.add_trial(create_trial(state=TrialState[state], user_attrs=attributes, **value))


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.trials]


def test_a_study_ends_with_as_many_trials_as_were_asked_for(study):
    add(study, "FAIL", "COMPLETE", "WAITING")
    assert not StudyLimits(2).is_reached(study)
    add(study, "PRUNED")
    assert StudyLimits(2).is_reached(study)
    assert not StudyLimits(3).is_reached(study)


def test_a_study_ends_when_its_time_is_over(study):
    for seconds, reached in ((-1, True), (1000, False)):
        assert StudyLimits(2, deadline=time.time() + seconds).is_reached(study) == reached


def test_the_third_failure_without_anything_done_between_is_one_too_many():
    done = [5]
    failures = FailureCounter(lambda: done[0])
    assert [failures.add() for _ in range(2)] == [False, False]
    done[0] += 1
    assert [failures.add() for _ in range(4)] == [False, False, True, True]


def test_three_errors_of_a_kind_in_a_row_are_a_repeated_failure(study):
    add(study, "FAIL", "FAIL", error="ValueError: first")
    assert repeated_failure(study) is None
    add(study, "COMPLETE")
    add(study, "FAIL", error="ValueError: second")
    add(study, "FAIL", "RUNNING", error="ValueError: third")
    assert repeated_failure(study) is None
    add(study, "FAIL", error="ValueError: fourth")
    assert repeated_failure(study) == "ValueError: fourth"
    add(study, "FAIL", error="TypeError: fifth")
    assert repeated_failure(study) is None


@pytest.mark.parametrize("attributes", [{"error": INTERRUPTED}, {}])
def test_who_interrupts_a_study_or_kills_it_does_not_make_it_fail(study, attributes):
    add(study, *["FAIL"] * 3, **attributes)
    assert repeated_failure(study) is None


def test_the_models_of_the_best_trials_are_kept(study, own_cache, monkeypatch):
    for uri, value in enumerate((0.5, 0.9, 0.7, 0.9)):
        study.add_trial(create_trial(value=value, user_attrs={"model_uri": uri}))
    add(study, "FAIL")
    deleted = []
    monkeypatch.setattr(studies.model_files, "delete_model", deleted.append)
    assert studies.delete_models_beyond_best(study, 1) == {3, 2, 0}
    assert deleted == [3, 2, 0]  # of two equal ones the first is the best
    deleted.clear()
    assert studies.delete_models_beyond_best(study, 2, deleted={2}) == {2, 0}
    assert deleted == [0]


def test_of_equal_trials_the_first_is_the_best(study):
    for value in (0.5, 0.9, 0.9):
        study.add_trial(create_trial(value=value))
    add(study, "PRUNED", "FAIL")
    assert best_trial_of(study.trials).number == 1
    assert best_trial_of(study.trials[3:]) is None


def test_first_trials_that_were_lost_are_asked_for_again(study, monkeypatch):
    twice = {"dropout": 0.125}
    suggest = load_experiment("tune").suggest
    experiment = Experiment("mine", RunConfig(), suggest, enqueued_trials=[twice, twice, twice])
    spec = StudySpec(experiment, None, {})
    initial = spec.initial_params()
    for suggestions in initial:
        study.enqueue_trial(suggestions)
    study.tell(study.ask(), state=TrialState.FAIL)  # the baseline
    study.tell(study.ask(), state=TrialState.FAIL)
    study.ask()  # still at work, and the last one waits
    monkeypatch.setattr(studies, "reconcile_runs", lambda _: None)
    for _ in range(2):
        studies.prepare_resume(study, spec)
        assert states(study) == ["FAIL", "FAIL", "RUNNING", *["WAITING"] * 3]
    again = [trial.system_attrs["fixed_params"] for trial in study.trials[4:]]
    assert again == [initial[0], initial[1]]


def address(folder: Path) -> str:
    return f"sqlite:///{folder}/lost.db"


@pytest.fixture
def lost_study(tmp_path) -> optuna.Study:
    """A study in SQLite, all of whose initial trials have failed."""
    study = optuna.create_study(storage=address(tmp_path), direction="maximize")
    for suggestions in StudySpec(load_experiment("tune"), None, {}).initial_params():
        study.enqueue_trial(suggestions)
        study.tell(study.ask(), state=TrialState.FAIL)
    return study


def at_once(folder: Path, function: Callable[[optuna.Study], None]) -> None:
    """Call a function in four threads, each with its own connection to the lost study."""
    barrier = threading.Barrier(4)

    def call(_: int) -> None:
        own = optuna.load_study(study_name=None, storage=address(folder))
        barrier.wait()
        function(own)

    with closed_connections(), ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(4)))


@pytest.mark.usefixtures("own_cache")
def test_processes_that_resume_at_once_replace_each_trial_once(lost_study, tmp_path, monkeypatch):
    spec = StudySpec(load_experiment("tune"), None, {})
    monkeypatch.setattr(studies, "reconcile_runs", lambda _: None)
    at_once(tmp_path, lambda study: studies.replace_lost_trials(study, spec))
    count = len(spec.initial_params())
    assert states(lost_study) == ["FAIL"] * count + ["WAITING"] * count


@pytest.mark.usefixtures("own_cache")
def test_processes_that_resume_at_once_create_each_missing_run_once(store, lost_study, tmp_path):
    run_id = store.create_run("0").info.run_id
    attributes.RUN_ID.set(lost_study, run_id)
    at_once(tmp_path, studies.reconcile_runs)
    below = store.search_runs(["0"], f"tags.`mlflow.parentRunId` = '{run_id}'", ViewType.ALL)
    numbers = sorted(int(run.data.tags["optuna.trial_number"]) for run in below)
    assert numbers == list(range(len(lost_study.trials)))


@pytest.mark.usefixtures("own_cache")
def test_a_process_does_not_wait_long_for_one_that_reconciles(lost_study, monkeypatch):
    monkeypatch.setattr(studies, "MAX_RECONCILE_SECONDS", 0)
    with cache.lock(f"reconcile {lost_study.study_name}"):
        studies.reconcile_runs(lost_study)  # has no run, which it would read


def test_a_stale_trial_is_asked_for_again_if_it_was_before(study, monkeypatch):
    failed = []
    monkeypatch.setattr(storage.study_runs, "fail_stale_trial", lambda *it: failed.append(it))
    study.set_user_attr("run_id", "r")
    study.enqueue_trial({"dropout": 0.125})
    study.ask()
    storage._on_stale_trial(study, study.trials[0])
    again, searched = (study.ask().number for _ in range(2))
    assert study.trials[again].system_attrs["fixed_params"] == {"dropout": 0.125}
    storage._on_stale_trial(study, study.trials[searched])
    assert failed == [("r", 0), ("r", searched)]
    assert states(study) == ["RUNNING"] * 3  # none more waits


@pytest.mark.parametrize("error", [StorageInternalError, SQLAlchemyError])
def test_a_heartbeat_that_fails_is_not_the_last(monkeypatch, error):
    beats = []

    def fail(_, trial_id: int) -> None:
        beats.append(trial_id)
        raise error("away")

    monkeypatch.setattr(optuna.storages.RDBStorage, "record_heartbeat", fail)
    database = object.__new__(storage._ResilientStorage)
    for _ in range(2):
        database.record_heartbeat(3)
    assert beats == [3, 3]
