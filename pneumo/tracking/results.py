"""Results of a run: written to MLflow, and read from it."""

import io
import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Run

from pneumo.data.dataset import Dataset, DecodedDataset
from pneumo.data.layouts.table import read_table
from pneumo.evaluation.metrics import Evaluation
from pneumo.evaluation.robustness import ROBUST_VERSIONS, Version, VersionLogits
from pneumo.tracking import tags
from pneumo.tracking.session import retry_after_conflict
from pneumo.tracking.tags import DATA, NOTE, PROMOTED, REASON
from pneumo.training.config import RunConfig

Splits = tuple[str, ...]  # names of splits

# Artifacts of a Keras run: its training and validation files, and the test files of its data set
TRAINING_FILES, TEST_FILES = "data/files.csv", "data/test_files.csv"

# Artifact of an ensemble's run, with its members
ENSEMBLE_FILE = "ensemble.json"

# Numeric columns of predictions. All other columns of the tables are text
NUMERIC_COLUMNS = {"label": "int64", "probability": "float64"}

# Splits of some data → their context in MLflow's UI
DATASET_CONTEXTS = {
    ("train",): "training",
    ("val",): "validation",
    ("train", "val"): "cross-validation",
    ("test",): "testing",
}


def decode_and_log(dataset: Dataset, config: RunConfig) -> DecodedDataset:
    """Decode the images of a data set for a config, and log them to the active run.

    Unreadable files are listed and counted there even if there are too many.

    Args:
        dataset: The data set.
        config: Config with the size of the images and the limit of unreadable files.

    Raises:
        UserError: More files are unreadable than `config.max_unreadable` permits.
    """
    images = dataset.decode(config.image_size, max_unreadable=1, resize=config.resize)
    log_data(images)
    if unreadable := len(images.unreadable):
        readable = len(dataset.rows) - unreadable
        log_counts({"images": readable, "unreadable": unreadable})
    images.require_readable(config.max_unreadable)
    return images


def log_data(images: DecodedDataset, *splits: str) -> None:
    """Log splits of the data as inputs of the active run, by default all.

    Unreadable files are listed with their reasons in `data/unreadable.csv`.
    """
    splits = splits or tuple(images.counts()["split"].unique())
    log_inputs(images, *((split,) for split in splits))
    if images.unreadable:
        table = pd.DataFrame(images.unreadable.items(), columns=["path", "reason"])
        mlflow.log_text(table.to_csv(index=False), "data/unreadable.csv")


def log_inputs(images: DecodedDataset, *parts: Splits) -> None:
    """Log parts of the data as inputs of the active run, with counts per class as tags.

    Args:
        images: The decoded data set.
        *parts: The splits of each part, one of `DATASET_CONTEXTS`.
    """
    counts = images.counts()
    for splits in parts:
        of_class = counts[counts["split"].isin(splits)].groupby("class")[["images", "patients"]]
        tags = {
            f"{name.lower()}_{unit}": str(count)
            for name, row in of_class.sum().iterrows()
            for unit, count in row.items()
        }
        data, context = describe_data(images.dataset, splits), DATASET_CONTEXTS[splits]
        retry_after_conflict(partial(mlflow.log_input, data, context=context, tags=tags))


def describe_data(dataset: Dataset, splits: Splits) -> MetaDataset:
    """Return splits of a data set as MLflow names them, with the digest of their image files."""
    return MetaDataset(
        CodeDatasetSource({DATA: dataset.name}),
        name=f"{dataset.name}/{'+'.join(splits)}",
        digest=dataset.images_digest(*splits),
    )


def log_files(images: DecodedDataset) -> None:
    """Log which image files the active Keras run uses, so that other machines can know them.

    `data/files.csv` lists the training and validation images. `data/test_files.csv` lists all test
    images of the data set, if it has any.
    """
    rows = images.dataset.rows
    tables = {TRAINING_FILES: images.used_files()}
    if (is_test := rows["split"] == "test").any():
        tables[TEST_FILES] = rows.loc[is_test, ["sha256"]]
    files = {Path(name).name: table.to_csv(index=False) for name, table in tables.items()}
    write_files("data", {name: text.encode() for name, text in files.items()})


def read_files(run_id: str) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Read the list of image files that a Keras run has used, every value as text.

    Returns:
        Its training and validation files (columns split, patient, sha256) and the test files of
        its data set (column sha256, no rows if it has none), or None if the run does not have its
        list of files.
    """
    paths = {file.path for file in mlflow.MlflowClient().list_artifacts(run_id, "data")}
    if TRAINING_FILES not in paths:
        return None
    no_files = pd.DataFrame({"sha256": []}, dtype=str)
    test_table = _read_table(run_id, TEST_FILES) if TEST_FILES in paths else no_files
    return _read_table(run_id, TRAINING_FILES), test_table


def known_files(trial: Run, dataset: Dataset) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Return the image files of a Keras run, from its list or else from the same data set.

    Args:
        trial: The Keras run.
        dataset: The data set to use if the run has no list but was trained on the same data.

    Returns:
        What `read_files` returns, or None if the files are unknown.
    """
    files = read_files(trial.info.run_id)
    if files is None and trial.data.tags[tags.DATA_DIGEST] == dataset.digest:
        # The run is older than such lists, or has lost its list
        is_test = dataset.rows["split"] == "test"
        return dataset.rows[~is_test], dataset.rows[is_test]
    return files


def _read_table(run_id: str, path: str) -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        file = mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path=path, dst_path=folder
        )
        return read_table(Path(file))


def log_epoch(run_id: str, epoch: int, metrics: Mapping[str, float]) -> None:
    """Log an epoch's metrics below `epoch/`, in one call.

    MLflow's plots of several runs begin with the metric that is logged first, here `val_auc`.

    Args:
        run_id: Id of the run.
        epoch: Number of the epoch, from 1.
        metrics: Name → value, with `val_auc`.
    """
    metrics = {"val_auc": metrics["val_auc"], **metrics}
    named = {f"epoch/{name}": value for name, value in metrics.items()}
    mlflow.log_metrics(named, step=epoch, run_id=run_id)


def log_best_epoch(network: int, epoch: int) -> None:
    """Log the epoch whose weights a network of the active run keeps.

    Args:
        network: Number of the network, from 0, which is the step of the metric.
        epoch: Number of the epoch as in `log_epoch`.
    """
    mlflow.log_metric("best_epoch", epoch, step=network)


def log_evaluation(
    split: str,
    evaluation: Evaluation,
    files: Mapping[str, bytes] = MappingProxyType({}),
    model_id: str | None = None,
    data: MetaDataset | None = None,
) -> None:
    """Log an evaluation to the active run.

    Args:
        split: Name of the split, which prefixes the metrics (`val_…`, `test_…`) and names the
            folder of the artifacts.
        evaluation: The evaluation. Its predictions and counts are stored in the folder.
        files: Further files in that folder: name → content.
        model_id: MLflow's id of the model whose page in MLflow shows the metrics. By default it is
            the model that the run logs next.
        data: The images that this page names. MLflow stores it only together with `model_id`.
    """
    named = {f"{split}_{name}": value for name, value in evaluation.metrics.items()}
    mlflow.log_metrics(named, model_id=model_id, dataset=data)
    files = {
        "predictions.csv": evaluation.predictions.to_csv(index=False).encode(),
        "confusion_matrix.json": json.dumps(evaluation.confusion).encode(),
        **files,
    }
    write_files(split, files)


def log_exploration(metrics: Mapping[str, float], files: Mapping[str, bytes]) -> None:
    """Log the statistics of a data set to the active run.

    Args:
        metrics: Name → value.
        files: Files below `explore/`: name → content.
    """
    mlflow.log_metrics(dict(metrics))
    write_files("explore", files)


def write_files(folder: str, files: Mapping[str, bytes], run_id: str | None = None) -> None:
    """Store files in a folder among the artifacts of a run.

    Args:
        folder: Path of the folder among the artifacts.
        files: Name → content.
        run_id: Id of the run, by default the active one.
    """
    with tempfile.TemporaryDirectory() as draft:
        for name, content in files.items():
            (Path(draft) / name).write_bytes(content)
        mlflow.log_artifacts(draft, folder, run_id)


def read_predictions(run_id: str, split: str) -> pd.DataFrame:
    """Read the predictions of a run, with names and numbers as they were.

    Returns:
        Columns as in `Evaluation`.
    """
    return _read_table(run_id, f"{split}/predictions.csv").astype(NUMERIC_COLUMNS)


def pack_logits(logits: VersionLogits, perturbed_logits: np.ndarray) -> bytes:
    """Return the content of `logits.npz`, which `read_logits` reads.

    Args:
        logits: Logits of the images that validate a model, in each version of these images.
        perturbed_logits: Logits of the same images after slight perturbations.
    """
    arrays = {_version_name(version): values for version, values in logits.items()}
    file = io.BytesIO()
    np.savez_compressed(file, **arrays, perturbed=perturbed_logits)
    return file.getvalue()


def read_logits(run_id: str) -> tuple[VersionLogits, np.ndarray]:
    """Read the logits of a Keras run for the images that validate it, as in `pack_logits`.

    Raises:
        MlflowException: The run has none. Earlier versions of pneumo did not log any.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path="val/logits.npz", dst_path=folder
        )
        with np.load(file) as arrays:
            logits = {version: arrays[_version_name(version)] for version in ROBUST_VERSIONS}
            return logits, arrays["perturbed"]


def _version_name(version: Version) -> str:
    return f"{version[0]} {version[1]}" if version else "unchanged"


def read_metrics(run_id: str, split: str) -> dict[str, Any]:
    """Return the content of `metrics.json`, which an evaluation has stored in a run."""
    return mlflow.artifacts.load_dict(f"runs:/{run_id}/{split}/metrics.json")


def read_val_threshold(run_id: str) -> float:
    """Return the threshold that a Keras run has chosen on validation."""
    return mlflow.get_run(run_id).data.metrics["val_threshold"]


def read_epochs(run_id: str) -> pd.DataFrame:
    """Read the metrics of a Keras run after each epoch; those of an ensemble are its members'.

    Returns:
        Columns named as in `log_epoch`, and `network`, the number of the network from 0; index from
        1, and for each member of an ensemble again from 1.
    """
    client = mlflow.MlflowClient()
    data = client.get_run(run_id).data
    if data.tags[tags.KIND] == "ensemble":
        return _read_epochs_of_members(run_id)
    names = [name for name in data.metrics if name.startswith("epoch/")]
    columns = {
        name.removeprefix("epoch/"): {
            point.step: point.value for point in client.get_metric_history(run_id, name)
        }
        for name in names
    }
    table = pd.DataFrame(columns).sort_index()
    return table.assign(network=(table.index - 1) // int(data.params["epochs"]))


def _read_epochs_of_members(run_id: str) -> pd.DataFrame:
    members = mlflow.artifacts.load_dict(f"runs:/{run_id}/{ENSEMBLE_FILE}")["member_runs"]
    tables, n_networks = [], 0
    for table in map(read_epochs, members):
        tables.append(table.assign(network=table["network"] + n_networks))
        n_networks = tables[-1]["network"].max() + 1
    return pd.concat(tables)


def log_decision(
    reasons: list[str], metrics: Mapping[str, float], champion_vacant: str = ""
) -> None:
    """Log a promotion to the active run.

    Args:
        reasons: Reasons for a rejection; if there are none, the candidate was promoted.
        metrics: Metrics of the decision: name → value.
        champion_vacant: Why the decision was made without the champion, or ''.
    """
    outcome = f"not promoted: {'; '.join(reasons)}" if reasons else "promoted"
    tags = {PROMOTED: str(not reasons).lower(), NOTE: outcome}
    tags |= {REASON: "; ".join(reasons)} if reasons else {}
    vacancy = {"champion_vacant": champion_vacant} if champion_vacant else {}
    mlflow.set_tags(tags | {f"pneumo.{name}": reason for name, reason in vacancy.items()})
    mlflow.log_metrics(dict(metrics))
    decision = {"promoted": not reasons, "reasons": reasons, **vacancy, **metrics}
    mlflow.log_dict(decision, "promotion.json")


def log_counts(counts: Mapping[str, int]) -> None:
    """Log the numbers of images, by what became of them, as metrics of the active run."""
    mlflow.log_metrics(dict(counts))
