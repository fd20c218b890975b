"""One study of several machines: its stores are servers, which fail and restart."""

import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import mlflow
import psycopg
import pytest
from mlflow.exceptions import MlflowException

from pneumo.commands.tune import run_search
from pneumo.experiment import Experiment, load_experiment
from pneumo.tracking import study_runs
from pneumo.tracking.runs import trial_run
from pneumo.tuning import worker
from pneumo.tuning.limits import StudyLimits
from pneumo.tuning.spec import StudySpec
from pneumo.tuning.storage import open_storage
from pneumo.tuning.study import (
    attach_to_study,
    create_study,
    is_dead,
    reconcile_runs,
    wait_for_running_trials,
)
from pneumo.tuning.trial import run_trial
from pneumo.tuning.worker import run_trials
from tests.support.commands import start
from tests.support.studies import (
    BASE,
    SMALL,
    SUBJECT,
    TINY,
    WITHOUT_PICTURES,
    at_work,
    children,
    counted,
    let_workers_load,
    require_whole,
    run_of,
    tags,
    text,
    until,
)
from tests.support.terminal import watch

pytestmark = pytest.mark.slow

# Seconds. Other trials take 3, and 20 if both stores go away meanwhile. One that takes longer is
# lost and replaced, as after any fault
TRIAL_TIMEOUT = 30


def test_a_worker_of_another_machine_joins_and_exits(shared, tmp_path, monkeypatch):
    # So long that the signal arrives before the end of a trial
    long = ["--epochs", "75", "--patience", "75", *SMALL]
    command = ["tune", "--trials", "4", "--study", "joined", *long]
    with ThreadPoolExecutor(1) as other:
        driver = other.submit(watch, "-c", WITHOUT_PICTURES, *command)
        until(lambda: at_work(shared))
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        worker = start("worker", "--study", "joined", "--data", "sample", start_new_session=True)
        until(lambda: len({run.data.tags["pneumo.pid"] for run in at_work(shared)}) == 2)
        worker.send_signal(signal.SIGTERM)  # in the middle of a trial
        output, errors = worker.communicate(timeout=60)
        seen = driver.result()
    assert (worker.returncode, errors) == (1, "pneumo: interrupted; finished work is kept\n")
    assert output.startswith("joined study joined: ")
    assert (seen.code, seen.errors) == (0, "")
    assert any(f"process {worker.pid}" in screen for screen in seen.screens)
    trials = require_whole(shared, "joined")
    assert [trial.state.name for trial in trials].count("FAIL") == 1
    assert counted(trials) == 4
    workers = "tags.`pneumo.study` = 'joined' and tags.`pneumo.kind` = 'worker'"
    [joined] = shared.search_runs(["0"], workers)
    assert joined.info.status == "KILLED"
    own = {"pneumo.kind", "pneumo.study", "pneumo.host", "pneumo.pid", "pneumo.process"}
    assert set(tags(joined)) == SUBJECT | own
    assert joined.data.tags["mlflow.parentRunId"] == run_of("joined")


@pytest.mark.usefixtures("without_training")
def test_stale_trials_of_another_machine_are_ended_by_the_next_process(shared, sample, monkeypatch):
    spec = StudySpec(load_experiment("tune"), sample, {"image_size": "32"})
    with mlflow.start_run() as parent:
        study = create_study(open_storage(), "silent", spec, parent.info.run_id)
        StudyLimits(1).save(study)
        worker = start("worker", "--study", "silent", "--data", "sample")
        until(lambda: at_work(shared))
        worker.kill()
        worker.communicate()
        monkeypatch.setattr("pneumo.tuning.storage.GRACE_PERIOD", 1)
        time.sleep(1.5)
        run_trials(*attach_to_study("silent", sample))
    silent, done = require_whole(shared, "silent")
    assert (silent.state.name, done.params) == ("FAIL", silent.params)  # the baseline again
    failed = shared.search_runs(["0"], "tags.`pneumo.study` = 'silent' and status = 'FAILED'")
    assert {run.data.tags["pneumo.kind"] for run in failed} == {"trial", "worker"}


def cut_connection(url: str) -> None:
    """Cut the connection that is about to store the score of a trial."""
    with psycopg.connect(url) as lock, psycopg.connect(url, autocommit=True) as own:
        lock.execute("LOCK TABLE trial_values")  # the score has to wait
        waiting = "FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        until(lambda: own.execute(f"SELECT pid {waiting}").fetchall())
        assert own.execute(f"SELECT pg_terminate_backend(pid) {waiting}").fetchall() == [(True,)]


@pytest.mark.usefixtures("without_training")
def test_a_score_that_was_not_stored_is_sent_again(servers, shared, sample, monkeypatch, capsys):
    with mlflow.start_run() as parent, ThreadPoolExecutor(1) as other:
        spec = StudySpec(TINY, sample, {})
        study = create_study(open_storage(), "cut", spec, parent.info.run_id)
        StudyLimits(2).save(study)
        cutting = []

        def run_and_cut(*arguments, **options):
            done = run_trial(*arguments, **options)
            if not cutting:
                cutting.append(other.submit(cut_connection, servers[0].address))
                until(lambda: locked(servers[0].address))
            return done

        monkeypatch.setattr(worker, "run_trial", run_and_cut)
        run_trials(study, spec)
        cutting[0].result()
    notes = re.findall("^MLflow or Optuna's database failed, .*", capsys.readouterr().out, re.M)
    assert len(notes) == 1
    assert notes[0].startswith("MLflow or Optuna's database failed, and the search continues (")
    assert [trial.state.name for trial in require_whole(shared, "cut")] == ["COMPLETE"] * 2


def locked(url: str) -> bool:
    """Return whether the table of scores is locked."""
    with psycopg.connect(url) as own:
        lock = "SELECT 1 FROM pg_locks WHERE relation = 'trial_values'::regclass"
        return bool(own.execute(f"{lock} AND mode = 'AccessExclusiveLock'").fetchall())


def test_what_ended_a_run_is_not_hidden_by_a_server_that_is_away(
    servers, shared, monkeypatch, capsys
):
    _, server = servers
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    parent = shared.create_run("0").info.run_id
    with pytest.raises(ZeroDivisionError), trial_run(parent, "t", BASE.to_params(), {}, 0):
        server.kill()
        raise ZeroDivisionError
    assert mlflow.active_run() is None
    assert (
        "the status of run t could not be stored (MlflowException: API request"
        in capsys.readouterr().out
    )
    with pytest.raises(MlflowException), trial_run(parent, "t", BASE.to_params(), {}, 1):
        raise AssertionError("never comes here")
    server.start()
    study_runs.reconcile_trial_runs(parent, {0: "FAIL", 1: "FAIL"}, is_dead)
    runs = children(shared, parent)
    assert [run.info.status for run in runs] == ["FAILED"] * 2
    assert [run.data.tags["optuna.state"] for run in runs] == ["FAIL"] * 2


# The second trial diverges, the third hangs in a way that no signal ends
TROUBLED = """
import ctypes
import optuna
from experiments.tune import suggest as usual
from pneumo.training.config import RunConfig

BASE = RunConfig(image_size=32, epochs=25, dense_widths=(32,))

def suggest(trial, base):
    config = usual(trial, base)
    number = trial._trial.number if isinstance(trial._trial, optuna.Trial) else 0
    if number == 1:
        return config.model_copy(update={"learning_rate": 1e30})
    if number == 2:
        ctypes.PyDLL(None).sleep(1000)  # with Python's lock held
    return config
"""


def test_a_study_survives_many_faults(servers, shared, sample, monkeypatch, capsys, tmp_path):
    trials, server = servers
    let_workers_load(monkeypatch, tmp_path / "project", TROUBLED)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")  # tries again sooner
    base = BASE.model_copy(update={"epochs": 25})
    spec = StudySpec(Experiment("tiny", base, TINY.suggest), sample, {})

    def has_diverged() -> bool:  # its traceback is then stored, whatever the server does
        states = {run.data.tags.get("optuna.state") for run in children(shared, parent.info.run_id)}
        return "FAIL" in states

    def stores_fail() -> None:
        for store in (server, trials):
            until(lambda: at_work(shared) and has_diverged())
            store.kill()
            time.sleep(2)
            store.start()

    with mlflow.start_run() as parent:
        study = create_study(open_storage(), "bad", spec, parent.info.run_id)
        StudyLimits(4, trial_timeout=TRIAL_TIMEOUT).save(study)
        with ThreadPoolExecutor(1) as other:
            failing = other.submit(stores_fail)
            run_search(study, spec, 2)
            failing.result()
        wait_for_running_trials(study)
        reconcile_runs(study)
    trials = require_whole(shared, "bad")
    assert 4 <= counted(trials) <= 5
    diverged, hung = children(shared, parent.info.run_id)[1:3]
    assert "TrainingDivergedError" in text(diverged.info.run_id, "traceback.txt")
    where = text(hung.info.run_id, "traceback.txt")
    late = f"trial not finished after {TRIAL_TIMEOUT} s, the limit"
    assert where.startswith(f"{late}. The stack of each thread:\n\n")
    assert " in suggest\n" in where
    assert re.search(rf"^worker \d died \({late}\)$", capsys.readouterr().out, re.M)
