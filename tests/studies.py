"""Small real studies, and what reads their runs back."""

import io

import mlflow
import pandas as pd

from pneumo.config import RunConfig
from pneumo.experiment import Experiment, load_experiment
from pneumo.tune import Outcome, Plan, tune

BASE = RunConfig(image_size=32, epochs=2, dense_widths=(32,))
TINY = Experiment("tiny", BASE, load_experiment("tune").suggest)

SUBJECT = {"pneumo.experiment", "pneumo.data", "pneumo.data_digest", "pneumo.synthetic"}
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
    *("predictions.csv", "metrics.json", "evidence.html"),
    *("confusion_matrix.json", "confusion_matrix.png", "roc.png", "precision_recall.png"),
    *("reliability.png", "learning_curves.png", "worst_errors.png"),
}
EPOCH = {"epoch/loss", "epoch/auc", "epoch/val_loss", "epoch/val_auc"}


def run_study(sample, **options) -> Outcome:
    plan = Plan(TINY, sample, options.pop("fixed", {}))
    return tune(plan, **{"trials": 2, "model_name": "pneumonia-sample", **options})


def tags(run) -> dict[str, str]:
    return {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")}


def children(client, outcome_or_id) -> list:
    """The trials' runs, in the order of their numbers."""
    parent = getattr(outcome_or_id, "study", None)
    parent = parent.user_attrs["run_id"] if parent else outcome_or_id
    below = f"tags.`mlflow.parentRunId` = '{parent}' and tags.`pneumo.kind` = 'trial'"
    runs = client.search_runs(["0"], below)
    return sorted(runs, key=lambda run: int(run.data.tags["optuna.trial_number"]))


def files(client, run_id, folder=None) -> set[str]:
    found = set()
    for item in client.list_artifacts(run_id, folder):
        found |= files(client, run_id, item.path) if item.is_dir else {item.path}
    return found


def text(run_id, path) -> str:
    return mlflow.artifacts.load_text(f"runs:/{run_id}/{path}")


def predictions(run_id, split) -> pd.DataFrame:
    table = pd.read_csv(io.StringIO(text(run_id, f"{split}/predictions.csv")))
    assert list(table) == ["path", "patient", "subtype", "label", "probability"]
    return table
