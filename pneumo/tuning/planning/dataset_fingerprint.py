"""Fingerprint of a data set: the properties of its images on which a plan depends."""

import time
from pathlib import Path

import numpy as np
import pandas as pd

from pneumo.data.dataset import Dataset
from pneumo.evaluation.dataset.profile import read_file_header
from pneumo.evaluation.dataset.shortcuts import cross_validated_auc, has_enough_patients
from pneumo.inference.batches import map_in_threads
from pneumo.inference.decode import decode
from pneumo.runtime.errors import UserError
from pneumo.tuning.planning.fingerprint import N_FOLDS, DatasetFingerprint

MAX_HEADERS = 1_000  # images whose headers are read; more would not change a choice
N_DECODED = 32  # images that are decoded to measure the speed
DECODING_SIDE = 128  # pixels


def describe_dataset(dataset: Dataset) -> DatasetFingerprint:
    """Collect the properties of a data set, from at most `MAX_HEADERS` of its files.

    Args:
        dataset: The data set.

    Raises:
        UserError: None of these files is readable.
    """
    rows = dataset.rows[dataset.rows["split"] != "test"]
    positions = np.linspace(0, len(rows) - 1, min(len(rows), MAX_HEADERS)).astype(int)
    sampled = rows.iloc[positions]
    files = [dataset.base / path for path in sampled["path"]]
    columns = ["bytes", "width", "height", "colour"]
    headers = pd.DataFrame(map_in_threads(read_file_header, files), columns=columns)
    is_readable = (headers["width"] > 0).to_numpy()
    headers, sampled = headers[is_readable], sampled[is_readable]
    if headers.empty:
        raise UserError(
            f"{dataset.name} must contain readable images: none of {len(files)} is. Run explore, "
            "which lists the reasons."
        )
    headers = headers.drop(columns="colour")
    headers["aspect"] = headers["width"] / headers["height"]
    metadata_auc = None
    if has_enough_patients(sampled["label"], sampled["patient"]):
        values, labels = headers.to_numpy(float), sampled["label"].to_numpy()
        metadata_auc = cross_validated_auc(values, labels, sampled["patient"])["auc"]
    return DatasetFingerprint(
        images=dataset.count_images(),
        patients=rows["patient"].nunique(),
        prevalence=float(rows["label"].mean()),
        duplicates=int(rows["sha256"].duplicated(keep=False).sum()),
        side=float(headers[["width", "height"]].min(axis=1).median()),
        aspect_ratio=float(headers["aspect"].median()),
        metadata_auc=metadata_auc,
        decoding_seconds=_measure_decoding([dataset.base / path for path in sampled["path"]]),
        can_fold=_can_fold(dataset),
    )


def _measure_decoding(files: list[Path]) -> float:
    """Return the seconds per image, with all cores."""
    files = files[:: max(1, len(files) // N_DECODED)]

    def decode_file(file: Path) -> None:
        try:
            decode(file.read_bytes(), DECODING_SIDE)
        except Exception:  # an unreadable file takes time, too
            return

    begin = time.monotonic()
    list(map_in_threads(decode_file, files))
    return (time.monotonic() - begin) / len(files)


def _can_fold(dataset: Dataset) -> bool:
    try:
        dataset.assign_folds(N_FOLDS, "patient")
    except UserError:
        return False
    return True
