"""What a plan depends on: the images, the machine, and the time."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pneumo.data.dataset import Dataset
from pneumo.evaluation.dataset.shortcuts import cross_validated_auc, has_enough_patients
from pneumo.inference.batches import map_in_threads
from pneumo.inference.decode import decode, read_size
from pneumo.runtime.errors import UserError

SPLITS = ("train", "val", "test")
MAX_HEADERS = 1_000  # images whose headers are read; more would not change a choice
N_DECODED = 32  # images that are decoded to measure the speed
DECODE_SIDE = 128  # pixels
N_FOLDS = 5
# Two workers finish so many times the trials of one (python -m tests.benchmarks.workers)
WORKERS_GAIN = 1.2
# A trial besides its training: evaluation, storing, bookkeeping (the page of a study has them)
TRIAL_SECONDS = 1.0
# Epochs of full training that take as long as a trial of the head alone, with the features of all
# images (47,000 images at 96 px: 61 s)
FROZEN_EPOCHS = 0.5


@dataclass(frozen=True)
class DataFacts:
    """Properties of a data set, without its test labels.

    Attributes:
        images: Split → number of images.
        patients: Number of patients outside test.
        prevalence: Fraction of pneumonia outside test, 0 to 1.
        duplicates: Number of images outside test whose file is identical to another one.
        side: Median of the shorter side in pixels.
        aspect_ratio: Median of width / height.
        metadata_auc: AUC with which size, aspect ratio and bytes of a file predict its label, or
            None if there are too few patients.
        seconds_per_image: Time to decode an image.
        can_fold: Whether each class has enough patients for `N_FOLDS` folds.
    """

    images: dict[str, int]
    patients: int
    prevalence: float
    duplicates: int
    side: float
    aspect_ratio: float
    metadata_auc: float | None
    seconds_per_image: float
    can_fold: bool


def describe_data(dataset: Dataset) -> DataFacts:
    """Collect the properties of a data set, from at most `MAX_HEADERS` of its files.

    Args:
        dataset: The data set.

    Raises:
        UserError: None of these files is readable.
    """
    rows = dataset.rows[dataset.rows["split"] != "test"]
    chosen = rows.iloc[np.linspace(0, len(rows) - 1, min(len(rows), MAX_HEADERS)).astype(int)]
    files = [dataset.base / path for path in chosen["path"]]
    headers = pd.DataFrame(
        map_in_threads(_read_header, files), columns=["width", "height", "bytes"]
    )
    is_readable = (headers["width"] > 0).to_numpy()
    headers, chosen = headers[is_readable], chosen[is_readable]
    if headers.empty:
        raise UserError(f"{dataset.name} must contain readable images: none of {len(files)} is")
    aspect = headers["width"] / headers["height"]
    metadata_auc = None
    if has_enough_patients(chosen["label"], chosen["patient"]):
        values = headers.assign(aspect=aspect).to_numpy(float)
        metadata_auc = cross_validated_auc(values, chosen["label"].to_numpy(), chosen["patient"])
    return DataFacts(
        images={name: int((dataset.rows["split"] == name).sum()) for name in SPLITS},
        patients=rows["patient"].nunique(),
        prevalence=float(rows["label"].mean()),
        duplicates=int(rows["sha256"].duplicated(keep=False).sum()),
        side=float(headers[["width", "height"]].min(axis=1).median()),
        aspect_ratio=float(aspect.median()),
        metadata_auc=metadata_auc and metadata_auc["auc"],
        seconds_per_image=_time_decoding([dataset.base / path for path in chosen["path"]]),
        can_fold=_can_fold(dataset),
    )


def _read_header(file: Path) -> tuple[int, int, int]:
    """Return width, height and bytes, 0 and 0 for the first two if the file is unreadable."""
    try:
        width, height, _ = read_size(file)
    except Exception:  # decoding reports the reason
        width = height = 0
    return width, height, file.stat().st_size


def _time_decoding(files: list[Path]) -> float:
    """Return the seconds per image, with all cores."""
    files = files[:: max(1, len(files) // N_DECODED)]

    def decoded(file: Path) -> None:
        try:
            decode(file.read_bytes(), DECODE_SIDE)
        except Exception:  # an unreadable file takes time, too
            return

    begin = time.monotonic()
    list(map_in_threads(decoded, files))
    return (time.monotonic() - begin) / len(files)


def _can_fold(dataset: Dataset) -> bool:
    try:
        dataset.assign_folds(N_FOLDS, "patient")
    except UserError:
        return False
    return True


@dataclass(frozen=True)
class TrainingSpeed:
    """How long one network trains on this machine.

    Attributes:
        start: Seconds for what does not depend on the number of epochs: building, compiling, the
            last predictions.
        per_image: Seconds for a training image in an epoch, with its share of validation, besides
            what depends on the size.
        per_pixel: Seconds for each pixel of that image.
    """

    start: float
    per_image: float
    per_pixel: float

    def epoch_seconds(self, side: int, n_train: int) -> float:
        """Return the duration of an epoch on `n_train` images of `side` pixels."""
        return n_train * (self.per_image + self.per_pixel * side**2)

    def network_seconds(self, side: int, epochs: float, n_train: int) -> float:
        """Return the duration of a whole training without early stopping."""
        return self.start + epochs * self.epoch_seconds(side, n_train)


@dataclass(frozen=True)
class Facts:
    """What the rules know.

    Attributes:
        data: Properties of the data.
        speed: Speed of the machine, with the backbone of the plan.
        search_seconds: Time for trials.
        workers: Number of processes that search.
        weights_error: Why ImageNet's weights cannot be loaded, or ''.
    """

    data: DataFacts
    speed: TrainingSpeed
    search_seconds: float
    workers: int
    weights_error: str

    def trial_seconds(
        self, side: int, epochs: int, folds: int = 1, unfreeze_depth: int | None = None
    ) -> float:
        """Return the expected duration of the first trial, without decoding, of one worker.

        Args:
            side: Image size in pixels.
            epochs: Number of epochs.
            folds: Number of folds.
            unfreeze_depth: 0 if only the head trains; by default that of the measured speed.
        """
        n_train = self.data.images["train"]
        if folds > 1:
            n_train = (n_train + self.data.images["val"]) * (folds - 1) / folds
        if unfreeze_depth == 0:
            epochs = FROZEN_EPOCHS
        return TRIAL_SECONDS + folds * self.speed.network_seconds(side, epochs, n_train)

    def count_trials(self, side: int, epochs: int, folds: int = 1) -> float:
        """Return the number of trials as long as the baseline that fit the time for trials."""
        decoding = self.data.seconds_per_image * sum(self.data.images.values())
        gain = WORKERS_GAIN if self.workers > 1 else 1
        seconds = max(0.0, self.search_seconds - decoding) * gain
        return seconds / self.trial_seconds(side, epochs, folds)
