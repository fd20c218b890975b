"""Trials of one process and of two in the same time, and the quality of the best.

    python -m tests.benchmarks.workers --data PATH --experiment tune_cnn --epochs 3 --trials 12

Prints trials a minute of the whole command, from its start to its end, and of the search alone,
from the start of the first trial to the end of the last one.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

import optuna

SMOKE = "--epochs 1 --trials 1 --image_size 32 --workers 1 1"


def study_of(workers: int, options: argparse.Namespace, folder: str) -> optuna.Study:
    """Return a study that `tune` has made in a folder of its own."""
    environment = {
        **os.environ,
        "PNEUMO_STORAGE": f"sqlite:///{folder}/optuna.db",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }
    given = {name: value for name, value in vars(options).items() if value}
    flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "pneumo", "tune", "--study", "s", "--workers", str(workers)]
    subprocess.run([*command, *flags], env=environment, check=True, stdout=subprocess.DEVNULL)
    return optuna.load_study(study_name="s", storage=environment["PNEUMO_STORAGE"])


def main() -> None:
    """Print a line for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="sample")
    parser.add_argument("--experiment", default="tune")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--image_size", type=int)
    parser.add_argument("--weights")
    parser.add_argument("--workers", type=int, nargs=2, default=(1, 2), help="that are compared")
    options = parser.parse_args()
    compared = vars(options).pop("workers")
    speeds = []
    for workers in compared:
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            trials = study_of(workers, options, folder).trials
            whole = time.monotonic() - began
        search = max(trial.datetime_complete for trial in trials) - min(
            trial.datetime_start for trial in trials
        )
        speeds.append([60 * len(trials) / seconds for seconds in (whole, search.total_seconds())])
        best = max(trial.value for trial in trials if trial.state.name == "COMPLETE")
        print(
            f"{workers} workers: {len(trials)} trials in {whole:.0f} s, "
            "{:.1f} a minute, {:.1f} of the search alone, ".format(*speeds[-1])
            + f"best validation AUC {best:.4f}",
            flush=True,
        )
    whole, search = (two / one for one, two in zip(*speeds, strict=True))
    print(f"ratio {whole:.2f}, of the search alone {search:.2f}")


if __name__ == "__main__":
    main()
