"""How many trials one process and two do in the same time, and how good the best of them is.

python -m tests.benchmarks.workers --data PATH --experiment tune_cnn --epochs 3 --trials 12
"""

import argparse
import os
import subprocess
import sys
import tempfile

import optuna


def study_of(workers: int, options: argparse.Namespace, folder: str) -> optuna.Study:
    """A study that `tune` has made in a folder of its own."""
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
    """Prints a line for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="sample")
    parser.add_argument("--experiment", default="tune")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--weights")
    options = parser.parse_args()
    speeds = []
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            trials = study_of(workers, options, folder).trials
        # Without the start of the processes, some seconds whatever the number of trials
        seconds = max(it.datetime_complete for it in trials) - min(
            it.datetime_start for it in trials
        )
        speeds.append(len(trials) / seconds.total_seconds())
        best = max(it.value for it in trials if it.state.name == "COMPLETE")
        print(
            f"{workers} workers: {len(trials)} trials in {seconds.total_seconds():.0f} s, "
            f"{60 * speeds[-1]:.1f} a minute, best validation AUC {best:.4f}",
            flush=True,
        )
    print(f"ratio {speeds[1] / speeds[0]:.2f}")


if __name__ == "__main__":
    main()
