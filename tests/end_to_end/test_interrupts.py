"""A study that is interrupted or killed, as a process of its own: no run stays RUNNING."""

import os
import signal
import subprocess
import time

import optuna
import pytest

from tests.support.commands import mlflow_run, start

LONG = ["study=night", "epochs=1000", "patience=1000", "image_size=32"]


def started_study(store, through_mlflow: bool = False) -> subprocess.Popen:
    """Start a study in a process group of its own; wait until its first trial trains."""
    if through_mlflow:
        process = mlflow_run("tune", *LONG)
    else:
        flags = [word for parameter in LONG for word in f"--{parameter}".split("=")]
        process = start("tune", *flags, start_new_session=True)
    while not store.search_runs(["0"], "metrics.`epoch/val_auc` > 0"):
        time.sleep(0.2)
        assert process.poll() is None, process.stderr.read()
    return process


def runs_of(store) -> list:
    return sorted(store.search_runs(["0"]), key=lambda run: run.info.start_time)


def trials_of(study: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=study, storage=os.environ["PNEUMO_STORAGE"]).trials


@pytest.mark.slow
@pytest.mark.parametrize("through_mlflow", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_nothing_stays_running(store, number, through_mlflow):
    process = started_study(store, through_mlflow)
    os.killpg(process.pid, number)  # as a terminal does
    output, errors = process.communicate(timeout=60)  # training would take minutes
    assert process.returncode != 0
    option = "-P study=night" if through_mlflow else "--study night"
    assert f"to resume the study, run the same command with {option}\n" in output
    assert "pneumo: interrupted" in errors
    if not through_mlflow:
        assert process.returncode == 1
        assert "Traceback" not in errors
    [ended] = trials_of("night")
    assert (ended.state.name, ended.user_attrs["error"]) == ("FAIL", "interrupted")
    study, trial = runs_of(store)
    assert trial.info.status == "KILLED"
    # `mlflow run` gives its own run a status of its own
    assert study.info.status in ({"KILLED", "FAILED"} if through_mlflow else {"KILLED"})
    assert trial.data.tags["optuna.state"] == "FAIL"
    assert not store.list_artifacts(trial.info.run_id)


@pytest.mark.slow
def test_what_a_dead_process_left_running_is_ended_by_the_next(store):
    process = started_study(store)
    process.kill()
    output, _ = process.communicate()
    assert output.startswith("study night\n")
    assert {run.info.status for run in runs_of(store)} == {"RUNNING"}
    flags = ["--study", "night", "--epochs", "1000", "--image_size", "32", "--patience", "1000"]
    process = start("tune", *flags)
    while len(runs_of(store)) < 4 or "dropout" not in runs_of(store)[3].data.params:
        time.sleep(0.2)
        assert process.poll() is None, process.stderr.read()
    study, dead, resume, trial = runs_of(store)
    assert dead.info.status == "FAILED"
    assert dead.data.tags["optuna.state"] == "FAIL"
    assert [trial.state.name for trial in trials_of("night")] == ["FAIL", "RUNNING"]
    assert trial.data.params["dropout"] == dead.data.params["dropout"]  # the baseline again
    process.send_signal(signal.SIGINT)  # while TensorFlow still traces the model
    process.communicate(timeout=60)
    study, dead, resume, trial = runs_of(store)
    statuses = [run.info.status for run in (study, dead, resume, trial)]
    assert statuses == ["KILLED", "FAILED", "KILLED", "KILLED"]
    assert resume.data.tags["pneumo.kind"] == "resume"
