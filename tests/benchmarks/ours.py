"""The study of `study` run by pneumo, with Optuna, MLflow and the registry, test at its end."""

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pytest

from pneumo.commands.tune import tune_and_register
from pneumo.data.dataset import open_dataset
from pneumo.experiment import Experiment
from pneumo.tracking import session
from pneumo.training.config import RunConfig
from pneumo.tuning import spec, worker
from tests.benchmarks.study_space import (
    DROPOUT,
    RATE,
    STRENGTH,
    WIDTHS,
    arguments,
    config_of,
)
from tests.support.memory import anonymous_memory


def suggest(trial: optuna.Trial, base: RunConfig) -> RunConfig:
    """Suggest the five hyperparameters."""
    widths = [
        trial.suggest_int(f"dense_widths_{position + 1}", low, high, step=step)
        for position, (low, high, step) in enumerate(WIDTHS)
    ]
    return base.override(
        {
            "dropout": trial.suggest_float("dropout", *DROPOUT),
            "dense_widths": widths,
            "augment_strength": trial.suggest_float(
                "augment_strength", *STRENGTH[:2], step=STRENGTH[2]
            ),
            "unfreeze_depth": trial.suggest_int("unfreeze_depth", 0, base.unfreeze_depth),
            "learning_rate": trial.suggest_float("learning_rate", *RATE, log=True),
        }
    )


def search() -> dict[str, Any]:
    """Run one study, and return its results."""
    began = time.time()
    options = arguments().parse_args()
    base = config_of(options)
    memory = []
    run_trial = worker.run_trial

    def watched(*given: object, **named: object) -> object:
        try:
            return run_trial(*given, **named)
        finally:
            memory.append(round(anonymous_memory()))

    session.configure_mlflow()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "run_trial", watched)
        past_the_last = options.epochs + 1  # no trial is pruned
        patch.setitem(spec.MEDIAN_PRUNER_OPTIONS, "n_warmup_steps", past_the_last)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.create_experiment("benchmark", f"{folder}/artifacts")
        mlflow.set_experiment("benchmark")
        os.environ["PNEUMO_STORAGE"] = f"sqlite:///{folder}/optuna.db"
        study_spec = spec.StudySpec(
            Experiment("benchmark", base, suggest),
            open_dataset(str(Path(options.folder) / "ours"), required_splits=("train", "test")),
            fixed={},
        )
        result = tune_and_register(study_spec, trials=options.trials, model_name="benchmark")
    ended = time.time()
    images = study_spec.dataset.decode(base.image_size, base.max_unreadable)
    counts = images.counts().groupby("split")["images"].sum()
    trials = [
        {
            "depth": trial.params["unfreeze_depth"],
            "strength": trial.params["augment_strength"],
            "epochs": len(trial.intermediate_values),
        }
        for trial in result.study.get_trials()
    ]
    starts = [trial.datetime_start.timestamp() for trial in result.study.get_trials()]
    ends = [trial.datetime_complete.timestamp() for trial in result.study.get_trials()]
    in_trials = sum(ends) - sum(starts)
    return {
        "val_auc": result.study.best_value,
        "test_auc": result.test_metrics["auc"],
        "trials": trials,
        "images": {split: int(count) for split, count in counts.items()},
        "fresh": options.fresh,
        "memory": memory,
        "spent": {
            "stores and data": starts[0] - began,
            "trials": in_trials,
            "between trials": ends[-1] - starts[0] - in_trials,
            "winner": ended - ends[-1],
        },
    }


if __name__ == "__main__":
    print(json.dumps(search()))
