"""Cost of the page of a study, by the number of its trials.

    python -m tests.benchmarks.page

A small real study of the sample, to which trials are added that did not run.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial

from pneumo.data.dataset import open_dataset
from pneumo.reporting.study_report import PAGE
from pneumo.reporting.study_summary import RUNNING
from pneumo.tracking import session, study_runs
from pneumo.tuning.output.study_page import StudyPage
from pneumo.tuning.spec import StudySpec
from tests.support.stores import store_in
from tests.support.studies import TINY, run_study

EPOCHS = 10
SMOKE = "--trials 4"


def add(study: optuna.Study, count: int) -> None:
    """Add trials with values of their own, every third of them pruned."""
    rng, like = np.random.default_rng(count), study.best_trial
    for _ in range(count):
        curve = np.sort(rng.uniform(0.8, 1, EPOCHS))
        pruned = {"state": TrialState.PRUNED} if rng.random() < 1 / 3 else {"value": curve[-1]}
        study.add_trial(
            create_trial(
                params=like.params | {"dropout": rng.uniform(0, 0.5)},
                distributions=like.distributions,
                intermediate_values=dict(enumerate(map(float, curve), 1)),
                user_attrs=like.user_attrs,
                **pruned,
            )
        )


def main() -> None:
    """Print a line for each number of trials."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, nargs="+", default=[10, 100, 1000])
    options = parser.parse_args()
    sample = open_dataset("sample", required_splits=("train", "test"))
    with tempfile.TemporaryDirectory() as folder, store_in(Path(folder)):
        name = run_study(sample).study.study_name
        study = optuna.load_study(study_name=name, storage=os.environ["PNEUMO_STORAGE"])
        run_id = study.user_attrs["run_id"]
        with study_runs.resume_run(run_id):
            page = StudyPage(study, StudySpec(TINY, sample, {}))
            for trials in options.trials:
                add(study, trials - len(study.trials))
                began = time.monotonic()
                page.write(RUNNING)
                took = time.monotonic() - began
                size = Path(session.artifact_location(run_id, PAGE)).stat().st_size
                print(f"{trials} trials: {took:.1f} s, {size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
