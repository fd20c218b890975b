"""What a run holds: written, and read back."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mlflow
import pandas as pd
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from pneumo.data.dataset import Dataset, DecodedDataset
from pneumo.data.index import read_table
from pneumo.evaluation.metrics import Evaluation
from pneumo.tracking import tags
from pneumo.tracking.tags import DATA, NOTE, PROMOTED, REASON
from pneumo.training.config import RunConfig


def decode_and_log(dataset: Dataset, config: RunConfig) -> DecodedDataset:
    """The images as `config` asks for them, told to the active run.

    What cannot be read is listed and counted there also if it is too much, and `UserError` raised.
    """
    images = dataset.decode(config.image_size, max_unreadable=1, resize=config.resize)
    log_data(images)
    if unreadable := len(images.unreadable):
        readable = len(dataset.rows) - unreadable
        log_counts({"images": readable, "unreadable": unreadable})
    images.require_readable(config.max_unreadable)
    return images


# Artifacts of a Keras run: its training and validation files, and the test files of its data set
TRAINING_FILES, TEST_FILES = "data/files.csv", "data/test_files.csv"

# The columns of predictions that are numbers; all others of the tables are text
NUMERIC_COLUMNS = {"label": "int64", "probability": "float64"}

INTEGRITY_ERROR_MARK = (
    "/gkpj)"  # how SQLAlchemy's errors end where something is there that may be there once
)

# The input contexts that MLflow's UI knows
DATASET_CONTEXTS = {"train": "training", "val": "validation", "test": "testing"}


def log_data(images: DecodedDataset) -> None:
    """The data as inputs of the active run, one per split, with its counts per class as tags.

    Files that could not be read are listed with their reasons in `data/unreadable.csv`.
    """
    dataset = images.dataset
    for split, counts in images.counts().groupby("split"):
        tags = {
            f"{row['class'].lower()}_{what}": str(row[what])
            for row in counts.to_dict("records")
            for what in ("images", "patients")
        }
        source = CodeDatasetSource({DATA: dataset.name})
        described = MetaDataset(source, name=f"{dataset.name}/{split}", digest=dataset.digest)
        _log_input(described, context=DATASET_CONTEXTS[split], tags=tags)
    if images.unreadable:
        table = pd.DataFrame(images.unreadable.items(), columns=["path", "reason"])
        mlflow.log_text(table.to_csv(index=False), "data/unreadable.csv")


def log_files(images: DecodedDataset) -> None:
    """Log which image files the active Keras run uses, so that they are known elsewhere.

    `data/files.csv` lists the training and validation images, `data/test_files.csv` all test
    images of the data set, if it has any.
    """
    rows = images.dataset.rows
    tables = {TRAINING_FILES: images.used_files()}
    if (is_test := rows["split"] == "test").any():
        tables[TEST_FILES] = rows.loc[is_test, ["sha256"]]
    files = {Path(name).name: table.to_csv(index=False) for name, table in tables.items()}
    write_files("data", {name: text.encode() for name, text in files.items()})


def read_files(run_id: str) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Read the image files that a Keras run has used, every value as text.

    Returns:
        Its training and validation files (columns split, patient, sha256) and the test files of
        its data set (column sha256, no rows if it has none), or None if the run does not have its
        list of files.
    """
    there = {file.path for file in mlflow.MlflowClient().list_artifacts(run_id, "data")}
    if TRAINING_FILES not in there:
        return None
    no_files = pd.DataFrame({"sha256": []}, dtype=str)
    tested = _read_table(run_id, TEST_FILES) if TEST_FILES in there else no_files
    return _read_table(run_id, TRAINING_FILES), tested


def known_files(trial: Run, dataset: Dataset) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Return what `read_files` does; for a run without its list, what the same data set tells."""
    found = read_files(trial.info.run_id)
    if found is None and trial.data.tags[tags.DATA_DIGEST] == dataset.digest:
        # The run is older than such lists or has lost its own
        is_test = dataset.rows["split"] == "test"
        return dataset.rows[~is_test], dataset.rows[is_test]
    return found


def _read_table(run_id: str, path: str) -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        file = mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path=path, dst_path=folder
        )
        return read_table(Path(file))


def _log_input(described: MetaDataset, **how: Any) -> None:
    try:
        mlflow.log_input(described, **how)
    except MlflowException as error:
        if INTEGRITY_ERROR_MARK not in str(error):
            raise
        # Another process has described the same data at that moment: now it is found
        mlflow.log_input(described, **how)


def log_epoch(run_id: str, epoch: int, metrics: Mapping[str, float]) -> None:
    """Log an epoch's metrics under `epoch/`, in one call; `epoch` counts from 1.

    The metric that is logged first is what MLflow's plots of several runs begin with.
    """
    metrics = {"val_auc": metrics["val_auc"], **metrics}
    named = {f"epoch/{name}": value for name, value in metrics.items()}
    mlflow.log_metrics(named, step=epoch, run_id=run_id)


def log_evaluation(
    split: str, evaluation: Evaluation, files: Mapping[str, bytes] = MappingProxyType({})
) -> None:
    """Metrics as `val_…` or `test_…`; predictions, counts and `files` below `val/` or `test/`."""
    mlflow.log_metrics({f"{split}_{name}": value for name, value in evaluation.metrics.items()})
    files = {
        "predictions.csv": evaluation.predictions.to_csv(index=False).encode(),
        "confusion_matrix.json": json.dumps(evaluation.confusion).encode(),
        **files,
    }
    write_files(split, files)


def log_exploration(metrics: Mapping[str, float], files: Mapping[str, bytes]) -> None:
    """What was found in a data set: metrics of the active run, and `files` below `explore/`."""
    mlflow.log_metrics(dict(metrics))
    write_files("explore", files)


def write_files(folder: str, files: Mapping[str, bytes], run_id: str | None = None) -> None:
    """Store files in a folder among the artifacts of a run, by default the active one."""
    with tempfile.TemporaryDirectory() as draft:
        for name, content in files.items():
            (Path(draft) / name).write_bytes(content)
        mlflow.log_artifacts(draft, folder, run_id)


def read_predictions(run_id: str, split: str) -> pd.DataFrame:
    """The predictions of a run, names and numbers as they were: columns as in `Evaluation`."""
    return _read_table(run_id, f"{split}/predictions.csv").astype(NUMERIC_COLUMNS)


def read_metrics(run_id: str, split: str) -> dict[str, Any]:
    """Return all that an evaluation has stored in `metrics.json` of a run."""
    return mlflow.artifacts.load_dict(f"runs:/{run_id}/{split}/metrics.json")


def has_predictions(run_id: str, split: str) -> bool:
    """Return whether the predictions of a run are still among its artifacts."""
    files = mlflow.MlflowClient().list_artifacts(run_id, split)
    return f"{split}/predictions.csv" in {file.path for file in files}


def read_val_threshold(run_id: str) -> float:
    """The threshold that a Keras run has chosen on validation."""
    return mlflow.get_run(run_id).data.metrics["val_threshold"]


def read_epochs(run_id: str) -> pd.DataFrame:
    """The metrics of a Keras run after each epoch: columns as in `log_epoch`, index from 1."""
    client = mlflow.MlflowClient()
    names = [name for name in client.get_run(run_id).data.metrics if name.startswith("epoch/")]
    columns = {
        name.removeprefix("epoch/"): {
            point.step: point.value for point in client.get_metric_history(run_id, name)
        }
        for name in names
    }
    return pd.DataFrame(columns).sort_index()


def log_decision(
    reasons: list[str], figures: Mapping[str, float], champion_vacant: str = ""
) -> None:
    """Log a promotion to the active run.

    Args:
        reasons: Reasons for a refusal; without any the candidate was promoted.
        figures: Metrics of the decision.
        champion_vacant: Why the decision was made without the champion, or ''.
    """
    outcome = f"not promoted: {'; '.join(reasons)}" if reasons else "promoted"
    tags = {PROMOTED: str(not reasons).lower(), NOTE: outcome}
    tags |= {REASON: "; ".join(reasons)} if reasons else {}
    vacant = {"champion_vacant": champion_vacant} if champion_vacant else {}
    mlflow.set_tags(tags | {f"pneumo.{name}": why for name, why in vacant.items()})
    mlflow.log_metrics(dict(figures))
    decision = {"promoted": not reasons, "reasons": reasons, **vacant, **figures}
    mlflow.log_dict(decision, "promotion.json")


def log_counts(counts: Mapping[str, int]) -> None:
    """How many images there were, by what became of them, as metrics of the active run."""
    mlflow.log_metrics(dict(counts))
