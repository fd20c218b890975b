"""Load of a study of a thousand trials on the stores, and whether MLflow's pages still open.

    python -m tests.benchmarks.thousand

The study has eight workers, PostgreSQL for both stores, MLflow's own server for one of them, and a
stub for the fit. So the benchmark measures the bookkeeping: the trial in Optuna, and its run in
MLflow with metrics, figures and model. Then Chromium, which must be installed, opens the study; the
start of Chromium, with an empty page, is not counted. At the end every trial is compared with its
run, and a sample of the models is loaded.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import mlflow
import numpy as np
import optuna

from pneumo.tracking import session
from tests.support.paths import ROOT
from tests.support.services import mlflow_server, postgresql
from tests.support.studies import disagreements, lay_out_project, loads, runs_by_number

EDGE = 40  # trials at both ends that do not count: workers come and go
BLOCK = 100  # trials at the start, and as many at the end
SAMPLED = 20  # models that are loaded
SMOKE = "--trials 2 --workers 1"
CHROMIUM = [
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    # Waits for the page's requests, however long they take, and for nothing else
    *("--virtual-time-budget=10000", "--window-size=1280,2000", "--dump-dom"),
]


# An experiment whose fits take no time, and give what real ones give
EXPERIMENT = """
from pneumo.training import train
from pneumo.training.config import RunConfig

from tests.benchmarks.stub import stub_of

BASE = RunConfig(image_size=32, epochs=6, dense_widths=(32,), augment_strength=0)
train.train = stub_of(BASE)

def suggest(trial, base):
    return base.override({"dropout": trial.suggest_float("dropout", 0.0, 0.6)})
"""


def bookkeeping(trials: Sequence[optuna.trial.FrozenTrial]) -> tuple[float, float]:
    """Return the seconds between the ends of trials of all workers: first and last trials."""
    ends = np.sort([trial.datetime_complete.timestamp() for trial in trials])
    edge = min(EDGE, len(ends) // 4)
    gaps = np.diff(ends[edge : len(ends) - edge])
    return float(gaps[:BLOCK].mean()), float(gaps[-BLOCK:].mean())


def opening(address: str, words: str) -> float:
    """Return the seconds until a new Chromium shows a page with these words."""
    with tempfile.TemporaryDirectory() as profile:
        began = time.perf_counter()
        command = [*CHROMIUM, f"--user-data-dir={profile}", address]
        page = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
        seconds = time.perf_counter() - began
    assert words in page, f"the page does not show {words}"
    return seconds


def verdict(study: optuna.Study) -> bool:
    """Print how many trials agree with their runs and how many sampled models load.

    Args:
        study: A study of which each trial has ended.

    Returns:
        Whether all trials have one run in the same state, no run is without a trial, and each of
        `SAMPLED` models, drawn at random, loads.
    """
    client, trials = mlflow.MlflowClient(), study.get_trials(deepcopy=False)
    runs = runs_by_number(client, study.user_attrs["run_id"])
    problems = [list(disagreements(client, trial, runs.pop(trial.number, []))) for trial in trials]
    whole = sum(not differences for differences in problems)
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    sampled = random.Random(0).sample(complete, min(SAMPLED, len(complete)))
    loaded = sum(map(_loads, sampled))
    print(
        f"{whole} of {len(trials)} trials have one run in the same state, {len(runs)} runs have "
        f"no trial; {len(sampled)} models sampled, {loaded} load"
    )
    for lines in problems:
        print(*lines, sep="\n", end="\n" * bool(lines))
    return whole == len(trials) and not runs and loaded == len(sampled)


def _loads(trial: optuna.trial.FrozenTrial) -> bool:
    try:
        return loads(trial)
    except Exception as error:  # the verdict is about all of them
        print(f"the model of trial {trial.number} does not load: {error}")
        return False


def main() -> None:
    """Print the results; exit with 1 if the verdict is not good."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=8)
    options = parser.parse_args()
    session.configure_mlflow()
    with (
        tempfile.TemporaryDirectory() as folder,
        postgresql() as storage,
        postgresql() as runs,
        mlflow_server(runs.address, Path(folder), workers=2) as server,
    ):
        os.environ["PNEUMO_STORAGE"] = storage.address
        os.environ["MLFLOW_TRACKING_URI"] = server.address
        mlflow.set_tracking_uri(server.address)
        project = Path(folder) / "project"
        lay_out_project(project, "thousand", EXPERIMENT)
        began = time.perf_counter()
        command = [sys.executable, "-m", "pneumo", "tune", "--experiment", "thousand"]
        command += ["--trials", str(options.trials), "--workers", str(options.workers)]
        path = os.pathsep.join((str(project), str(ROOT)))
        environment = {**os.environ, "PYTHONPATH": path}
        subprocess.run(
            [*command, "--study", "thousand"],
            cwd=project,
            env=environment,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        minutes = (time.perf_counter() - began) / 60
        optimised = optuna.load_study(study_name="thousand", storage=storage.address)
        trials = optimised.get_trials(deepcopy=False)
        states = [trial.state.name for trial in trials]
        first, last = bookkeeping(trials)
        print(f"{len(trials)} trials in {minutes:.1f} min: {sorted(set(states))}")
        print(f"bookkeeping of a trial at the start {first:.2f} s, at the end {last:.2f} s")
        print(f"ratio {last / first:.2f}")
        run = mlflow.get_run(optimised.user_attrs["run_id"])
        place = f"{server.address}/#/experiments/{run.info.experiment_id}/runs"
        blank = opening("about:blank", "<html>")
        table = opening(place, run.info.run_name) - blank
        study = opening(f"{server.address}/{session.ui_path(run)}", run.info.run_name) - blank
        print(f"MLflow's table of runs opens in {table:.1f} s, the study's page in {study:.1f} s")
        whole = verdict(optimised)
    sys.exit(not whole)


if __name__ == "__main__":
    main()
