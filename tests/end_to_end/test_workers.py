"""Several processes on one study: their results, and that any of them may end."""

import os
import re
import signal
import subprocess
import sys

import mlflow
import optuna
import pytest

from pneumo.commands.tune import run_search
from pneumo.experiment import load_experiment
from pneumo.runtime.errors import StudyFailedError
from pneumo.runtime.process import ProcessId
from pneumo.tuning.launchers import local
from pneumo.tuning.limits import StudyLimits
from pneumo.tuning.spec import StudySpec
from pneumo.tuning.storage import open_storage
from pneumo.tuning.study import create_study
from tests.support.commands import lives, processes, run_here, start
from tests.support.paths import ROOT
from tests.support.studies import (
    SMALL,
    TINY,
    WITHOUT_PICTURES,
    at_work,
    children,
    counted,
    let_workers_load,
    let_workers_run,
    require_whole,
    run_of,
    until,
)
from tests.support.terminal import watch

pytestmark = pytest.mark.slow

SHORT = ["--epochs", "3", *SMALL]
NIGHT = ["--study", "night", "--workers", "2"]
# With a time limit a single worker, too, is a process of its own
ONE_WORKER = ["--study", "night", "--workers", "1", "--trial_timeout", "300"]


def test_the_driver_needs_no_tensorflow():
    code = (
        "import sys, pneumo.commands.tune, pneumo.commands.evaluate, pneumo.commands.promote\n"
        "print([name for name in ('tensorflow', 'keras') if name in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout == "[]\n", process.stderr


@pytest.mark.parametrize(("cores", "workers", "threads"), [(8, 2, "4"), (2, 3, "1"), (7, 2, "3")])
def test_cores_are_shared_out(monkeypatch, cores, workers, threads):
    monkeypatch.setattr(local, "cpu_count", lambda: cores)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.worker_environment(0, workers) == {
        "LOKY_MAX_CPU_COUNT": threads,
        "OMP_NUM_THREADS": threads,
        "TF_NUM_INTRAOP_THREADS": threads,
        "TF_NUM_INTEROP_THREADS": threads,
    }


def test_gpus_are_shared_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    shown = [local.worker_environment(number, 3)["CUDA_VISIBLE_DEVICES"] for number in range(3)]
    assert shown == ["3", "5", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # as people say that none is wanted
    assert "CUDA_VISIBLE_DEVICES" not in local.worker_environment(0, 3)


@pytest.mark.usefixtures("without_plots", "without_pages")
def test_two_workers(store):
    code, output, errors = run_here("tune", "--trials", "4", *NIGHT, *SHORT)
    assert (code, errors) == (0, "")
    trials = require_whole(store, "night")
    assert 4 <= counted(trials) <= 5
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    lines = [line for line in output.splitlines() if re.match(r"trial +\d", line)]
    assert len(lines) == len(trials)
    runs = children(store, run_of("night"))
    pids = {run.data.tags["pneumo.pid"] for run in runs}
    assert len(pids) == 2
    # the first trial is the baseline, whoever had it
    assert trials[0].params["dropout"] == 0.25
    assert len({tuple(trial.params.values()) for trial in trials}) == len(trials)
    kinds = [run.data.tags["pneumo.kind"] for run in store.search_runs(["0"])]
    assert sorted(kinds) == ["study", *["trial"] * len(trials)]  # a worker has no run of its own
    [study] = store.search_runs(["0"], "tags.`pneumo.kind` = 'study'")
    assert study.info.status == "FINISHED"
    assert "test_auc" in study.data.metrics
    challenger = store.get_model_version_by_alias("pneumonia-sample", "challenger")
    assert int(challenger.version) == 1


def in_second_fold(epochs: int) -> list[int]:
    """Return the processes of the running trials of `night` that have begun their second fold."""
    study = optuna.load_study(study_name="night", storage=open_storage())
    running = study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
    begun = [trial for trial in running if (trial.last_step or 0) > epochs]
    return [ProcessId.from_values(trial.user_attrs["process"]).pid for trial in begun]


def test_a_study_outlives_a_worker_between_folds_and_its_driver(store):
    command = ["tune", "--trials", "3", "--epochs", "6", "--folds", "2", *SMALL]
    process = start(*command, *NIGHT)
    until(lambda: at_work(store, 2))
    until(lambda: in_second_fold(6))
    [victim, *_] = in_second_fold(6)
    first = processes(process.pid)
    assert victim in first
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(set(processes(process.pid)) - {victim}) == 2)  # it is replaced
    workers = processes(process.pid)
    process.kill()
    output, _ = process.communicate()
    assert "died (exit code -9)\nresuming study night: " in output
    until(lambda: not any(map(lives, workers)))
    assert not at_work(store)  # each has ended its trial
    done = counted(optuna.load_study(study_name="night", storage=open_storage()).trials)
    seen = watch("-c", WITHOUT_PICTURES, *command, *ONE_WORKER)
    assert (seen.code, seen.errors) == (0, "")
    begun = next(line for line in seen.screens if ", process " in line)
    assert f"resuming study night: {done} trials are finished" in begun
    assert f" {done} of 3 trials " in begun
    trials = require_whole(store, "night")
    assert 3 <= counted(trials) <= 4
    assert any(trial.params["dropout"] == 0.25 for trial in trials if trial.state.name != "FAIL")
    failed = store.search_runs(["0"], "attributes.status = 'FAILED'")
    assert [(run.data.tags["pneumo.pid"], run.data.tags["optuna.state"]) for run in failed] == [
        (str(victim), "FAIL")
    ]
    [study] = store.search_runs(["0"], "tags.`pneumo.kind` = 'study'")
    assert study.info.status == "FINISHED"


# If only the driver gets the signal, it has to end each worker
@pytest.mark.parametrize(
    ("whom", "number", "count"), [("group", signal.SIGINT, 1), ("driver", signal.SIGTERM, 2)]
)
def test_an_interrupt_ends_all(store, whom, number, count):
    long = ["--epochs", "1000", "--patience", "1000", *SMALL]
    flags = ONE_WORKER if count == 1 else NIGHT
    process = start("tune", *flags, *long, start_new_session=True)
    until(lambda: at_work(store, count))
    workers = processes(process.pid)
    assert len(workers) == count
    (os.killpg if whom == "group" else os.kill)(process.pid, number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "to resume the study, run the same command with --study night" in output
    assert errors == "pneumo: interrupted; finished work is kept\n"
    assert not any(map(lives, workers))
    trials = require_whole(store, "night")
    assert {trial.user_attrs["error"] for trial in trials} == {"interrupted"}
    assert {run.info.status for run in store.search_runs(["0"])} == {"KILLED"}


# An experiment of which each trial fails in the same way
FAILS_ALWAYS = """
import optuna
from experiments.tune import suggest as usual
from pneumo.training.config import RunConfig

BASE = RunConfig(image_size=32, epochs=2, dense_widths=(32,))

def suggest(trial, base):
    if isinstance(trial._trial, optuna.Trial):
        raise ValueError("of this kind")
    return usual(trial, base)
"""


def search_fails(sample, reason: str, workers: int) -> None:
    """Require that a search by worker processes fails for a reason."""
    with mlflow.start_run() as parent:
        spec = StudySpec(TINY, sample, {})
        study = create_study(open_storage(), "night", spec, parent.info.run_id)
        StudyLimits(4, trial_timeout=300).save(study)
        with pytest.raises(StudyFailedError, match=reason):
            run_search(study, spec, workers)


def test_a_study_whose_workers_die_stops(store, sample, tmp_path, monkeypatch):
    let_workers_run(monkeypatch, tmp_path / "project", "os.kill(os.getpid(), 9)")
    search_fails(sample, "3 workers died without finishing a trial. See their output", workers=2)


def test_a_study_whose_trials_fail_stops(store, sample, tmp_path, monkeypatch):
    let_workers_load(monkeypatch, tmp_path / "project", FAILS_ALWAYS)
    reason = r"3 consecutive trials failed with the same type of error \(ValueError: of this kind\)"
    search_fails(sample, reason, workers=1)


def test_a_user_error_in_a_worker_is_reported_as_one(store, tmp_path):
    (tmp_path / "words.h5").write_text("words")
    weights = ["--weights", str(tmp_path / "words.h5")]
    flags = ["--experiment", "tune_mobilenet", "--image_size", "32", *weights]
    code, _, errors = run_here("tune", *NIGHT, *flags)
    assert code == 2
    assert errors.startswith("pneumo: ")
    assert "does not fit mobilenet with alpha 0.25: it is not an HDF5 file" in errors
    assert "RUNNING" not in {run.info.status for run in store.search_runs(["0"])}


def test_workers_that_may_not_join(store, folder, sample):
    spec = StudySpec(load_experiment("tune"), sample, {"image_size": "32"})
    with mlflow.start_run() as parent:
        study = create_study(open_storage(), "night", spec, parent.info.run_id)
        StudyLimits(1).save(study)
        study.add_trial(optuna.trial.create_trial(value=0.5))
    code, _, errors = run_here("worker", "--study", "nacht", "--data", "sample")
    assert code == 2
    place = os.environ["PNEUMO_STORAGE"]
    assert f"must be in Optuna's database at {place}, which has night: got 'nacht'. Set" in errors
    next((folder / "train" / "NORMAL").iterdir()).unlink()
    code, _, errors = run_here("worker", "--study", "night", "--data", str(folder))
    assert code == 2
    assert "study 'night' was created with data_digest" in errors
    code, output, errors = run_here("worker", "--study", "night", "--data", "sample")
    assert (code, errors) == (0, "")
    assert output == "study night needs no more trials: 1 are finished\n"
