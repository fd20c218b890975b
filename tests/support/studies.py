"""Small real studies, and functions that read their runs."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

import mlflow
import optuna
import pandas as pd
import pytest

from pneumo.commands.tune import tune_and_register
from pneumo.experiment import Experiment, load_experiment
from pneumo.tracking import model_files, results, study_runs
from pneumo.training.config import RunConfig
from pneumo.tuning.launchers import worker_process
from pneumo.tuning.output.study_table import StudyResult
from pneumo.tuning.spec import StudySpec
from tests.support import environment  # noqa: F401
from tests.support.paths import ROOT

BASE = RunConfig(image_size=32, epochs=2, dense_widths=(32,))
SMALL = ["--image_size", "32", "--dense_widths", "32"]  # the flags of a network as small
LIMIT = 300  # seconds that anything may take
TINY = Experiment("tiny", BASE, load_experiment("tune").suggest)

PROCESS = {"pneumo.host", "pneumo.pid", "pneumo.process"}
SUBJECT = {"pneumo.experiment", "pneumo.data", "pneumo.data_digest", "pneumo.synthetic"}
# The tags of a run that has evaluated a model on test
EVALUATED = {
    *("pneumo.model", "pneumo.model_id", "pneumo.split", "pneumo.external"),
    *("pneumo.images_digest", "pneumo.test_looks"),
}
METRICS = {
    *("auc", "average_precision", "accuracy", "balanced_accuracy", "sensitivity", "specificity"),
    *("ppv", "npv", "f1", "mcc", "brier", "log_loss", "ece", "threshold"),
}
INTERVALS = {
    f"{name}_{side}"
    for name in ("auc", "sensitivity", "specificity", "accuracy")
    for side in ("low", "high")
}
EVIDENCE = {
    *("predictions.csv", "metrics.json", "evidence.html", "checklist.html", "checklist.md"),
    *("confusion_matrix.json", "confusion_matrix.png", "roc.png", "precision_recall.png"),
    *("decision_curve.png", "reliability.png", "learning_curves.png", "worst_errors.png"),
}
EPOCH = {"epoch/loss", "epoch/auc", "epoch/val_loss", "epoch/val_auc"}


# Program of a process that runs a command, in tests that read none of its pictures
WITHOUT_PICTURES = """
import os, sys
own = dict(os.environ)
from tests.support.studies import without_pictures  # which removes MLflow's variables
os.environ.update(own)
from pneumo.__main__ import main
with without_pictures():
    sys.exit(main(sys.argv[1:]))
"""


@contextmanager
def without_pictures() -> Iterator[None]:
    """Draw no figures, and register models without an input example, which MLflow would predict.

    Both take most of the time of an evaluation and of a registration.
    """
    figures = {name: b"" for name in EVIDENCE if name.endswith(".png")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pneumo.commands.evaluation.draw_figures", lambda *_: figures)
        patch.setattr("pneumo.reporting.plots.to_png", lambda _: b"")
        patch.setattr("pneumo.tracking.registry.example_file", lambda: None)
        yield


@contextmanager
def without_registration() -> Iterator[None]:
    """Let studies end without a winner: none is registered, none is evaluated on test."""

    def result(study: optuna.Study, spec: StudySpec, name: str, _: int) -> StudyResult:
        metrics = dict.fromkeys(METRICS | INTERVALS, 0.5)
        return StudyResult(study, spec.searched_fields(), None, name, 0, metrics, [])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pneumo.commands.tune._register_winner", result)
        yield


def run_study(sample, **options) -> StudyResult:
    spec = StudySpec(TINY, sample, options.pop("fixed", {}))
    return tune_and_register(spec, **{"trials": 2, "model_name": "pneumonia-sample", **options})


def let_workers_load(monkeypatch, folder: Path, experiment: str) -> None:
    """Make a file available as the experiment `tiny` to workers that this process starts.

    The file may not import `tests`, which removes MLflow's variables from a worker's environment.
    """
    lay_out_project(folder, "tiny", experiment)
    monkeypatch.setattr(worker_process, "PROJECT_ROOT", folder)


def let_workers_run(monkeypatch, folder: Path, code: str) -> None:
    """Make some code the program of `python -m pneumo` in workers that this process starts."""
    (folder / "pneumo").mkdir(parents=True)
    (folder / "pneumo" / "__main__.py").write_text(f"import os, sys, time\n{code}\n")
    monkeypatch.setattr(worker_process, "PROJECT_ROOT", folder)


def lay_out_project(folder: Path, name: str, experiment: str) -> None:
    """Make a folder from which `python -m pneumo` runs, with one more experiment."""
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    (folder / "experiments" / f"{name}.py").write_text(experiment)
    (folder / "pneumo").symlink_to(ROOT / "pneumo")


def tags(run) -> dict[str, str]:
    return {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")}


def children(client, outcome_or_id) -> list:
    """Return the trials' runs, in the order of their numbers."""
    parent = getattr(outcome_or_id, "study", None)
    parent = parent.user_attrs["run_id"] if parent else outcome_or_id
    below = f"tags.`mlflow.parentRunId` = '{parent}' and tags.`pneumo.kind` = 'trial'"
    runs = client.search_runs(["0"], below, max_results=study_runs.MAX_RESULTS)
    return sorted(runs, key=lambda run: int(run.data.tags["optuna.trial_number"]))


def files(client, run_id, folder=None) -> set[str]:
    found = set()
    for item in client.list_artifacts(run_id, folder):
        found |= files(client, run_id, item.path) if item.is_dir else {item.path}
    return found


def text(run_id, path) -> str:
    return mlflow.artifacts.load_text(f"runs:/{run_id}/{path}")


def predictions(run_id, split, *further: str) -> pd.DataFrame:
    """Return the predictions of a run, which must have the usual columns and `further` ones."""
    table = results.read_predictions(run_id, split)
    assert list(table) == ["path", "patient", "subtype", "label", "probability", *further]
    return table


def require_whole(client, name: str) -> list[optuna.trial.FrozenTrial]:
    """Return the trials of an ended study; each must have one run that agrees with it."""
    study = optuna.load_study(study_name=name, storage=os.environ["PNEUMO_STORAGE"])
    # What is queued anew when there are enough trials has not started
    started = [trial for trial in study.trials if trial.state != optuna.trial.TrialState.WAITING]
    parent = study.user_attrs["run_id"]
    runs = runs_by_number(client, parent)
    for trial in started:
        assert list(disagreements(client, trial, runs.pop(trial.number, []))) == []
        assert trial.state.name != "COMPLETE" or loads(trial)
    assert runs == {}  # of no trial
    below = client.search_runs(["0"], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert "RUNNING" not in {run.info.status for run in below}
    return started


def runs_by_number(client, study_run_id: str) -> dict[int, list]:
    """Return the runs of a study's trials, by the numbers of the trials."""
    found = {}
    for run in children(client, study_run_id):
        found.setdefault(int(run.data.tags["optuna.trial_number"]), []).append(run)
    return found


def disagreements(client, trial: optuna.trial.FrozenTrial, runs: list) -> Iterator[str]:
    """Yield the differences between the runs with a trial's number and Optuna."""
    if len(runs) != 1:
        yield f"trial {trial.number} has {len(runs)} runs"
        return
    [run], state = runs, trial.state.name
    if run.data.tags["optuna.state"] != state:
        yield f"trial {trial.number} is {state}, its run {run.data.tags['optuna.state']}"
    status = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": run.info.status}
    if run.info.status != status.get(state):
        yield f"trial {trial.number} is {state}, the status of its run {run.info.status}"
    history = client.get_metric_history(run.info.run_id, "epoch/val_auc")
    epochs = [(point.step, point.value) for point in sorted(history, key=lambda point: point.step)]
    steps = [step for step, _ in epochs]
    if run.data.params.get("folds", "1") == "1" and steps != list(range(1, len(steps) + 1)):
        yield f"the epochs of trial {trial.number} are {epochs}"
    elif state != "FAIL" and reported(epochs, run.data.params) != trial.intermediate_values:
        yield f"the epochs of trial {trial.number} are {epochs}, not {trial.intermediate_values}"


def reported(epochs: list[tuple[int, float]], params: dict[str, str]) -> dict[int, float]:
    """Return what a trial reports to Optuna: the mean over the finished networks and this one."""
    best: dict[int, float] = {}
    series = {}
    for step, score in epochs:
        network = (step - 1) // int(params["epochs"])
        finished = [value for number, value in best.items() if number < network]
        series[step] = fmean([*finished, score])
        best[network] = max(score, best.get(network, score))
    return series


def loads(trial: optuna.trial.FrozenTrial) -> bool:
    """Return whether a complete trial's model can be loaded and used."""
    return model_files.load_model(trial.user_attrs["model_uri"]).settings["threshold"] > 0


def until(true) -> None:
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def at_work(store, count: int = 1) -> list:
    """Return the RUNNING trials with at least one epoch, if there are as many."""
    filters = "tags.`pneumo.kind` = 'trial' and metrics.`epoch/val_auc` > 0"
    found = store.search_runs(["0"], f"attributes.status = 'RUNNING' and {filters}")
    return found if len(found) >= count else []


def counted(trials) -> int:
    return sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in trials)


def run_of(name: str) -> str:
    study = optuna.load_study(study_name=name, storage=os.environ["PNEUMO_STORAGE"])
    return study.user_attrs["run_id"]
