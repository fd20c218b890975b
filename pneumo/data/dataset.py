"""Data sets: from the name that the user passes to images that are ready for training."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from pneumo.data import index, pixels
from pneumo.data.attributes import PSEUDONYM_PREFIX
from pneumo.data.layouts.published import PUBLISHED_TABLES
from pneumo.data.pixels import pixels_digest
from pneumo.data.schema import CLASSES
from pneumo.data.sources.download import REMOTE_DATASETS, check_image_counts
from pneumo.data.sources.resolve import SAMPLE, resolve_source
from pneumo.data.split import (
    TEST_FRACTION,
    assign_folds,
    assign_site_folds,
    raise_on_conflicts,
    split_test,
    split_validation,
)
from pneumo.inference.untrusted import LATERAL_REASON, is_lateral
from pneumo.runtime import cache
from pneumo.runtime.console import echo
from pneumo.runtime.errors import UserError, quoted


@dataclass(frozen=True)
class Split:
    """Images of one split of a data set, in the order of their paths.

    Attributes:
        rows: Columns `schema.COLUMNS`, one row per readable image.
        pixels: Memory map of all images of the data set: uint8, shape (n, size, size).
        positions: Position of each row in `pixels`: int64, shape (rows,).
        preprocessing: How files became pixels: see `pixels.decode_key` and
            `perturb.describe_preprocessing`.
    """

    rows: pd.DataFrame
    pixels: np.ndarray
    positions: np.ndarray
    preprocessing: str

    @property
    def digest(self) -> str:
        """64 hex digits that identify these pixels in this order, wherever their files are."""
        return pixels_digest(self.rows, self.preprocessing)

    def take(self, is_chosen: np.ndarray) -> "Split":
        """Return some of the images.

        Args:
            is_chosen: bool array of shape (rows,).
        """
        return replace(
            self,
            rows=self.rows[is_chosen].reset_index(drop=True),
            positions=self.positions[is_chosen],
        )

    @property
    def images(self) -> np.ndarray:
        """Copy of the pixels: uint8, shape (rows, size, size, 1)."""
        return self.pixels[self.positions][..., np.newaxis]

    @property
    def labels(self) -> np.ndarray:
        """Labels, 0 normal and 1 pneumonia: int64, shape (rows,)."""
        return self.rows["label"].to_numpy()


@dataclass(frozen=True)
class Subset:
    """Some images of a split. What is computed once for the whole split serves all of its subsets.

    Attributes:
        split: The split.
        indices: Position of each image in the split, increasing: int64, shape (images,).
    """

    split: Split
    indices: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """Labels, 0 normal and 1 pneumonia: int64, shape (images,)."""
        return self.select(self.split.labels)

    @property
    def images(self) -> np.ndarray:
        """Copy of the pixels: uint8, shape (images, size, size, 1)."""
        return self.split.pixels[self.select(self.split.positions)][..., np.newaxis]

    def select(self, values: np.ndarray) -> np.ndarray:
        """Return the rows of this subset from an array with a row for each image of the split."""
        return values if len(self.indices) == len(values) else values[self.indices]


@dataclass(frozen=True)
class Fold:
    """Images for the fit of a network, without a common patient.

    Attributes:
        train: Images that it is trained on.
        val: Images that validate it.
    """

    train: Subset
    val: Subset


@dataclass(frozen=True)
class Dataset:
    """A data set, indexed and split, whose pixels are decoded on demand.

    Attributes:
        source: What the user passed; a path is absolute.
        name: `source` without its folders.
        digest: 16 hex digits that identify the content.
        is_synthetic: Whether it is the synthetic sample.
        root: The folder that the user passed, or of the unpacked archive.
        base: The folder in `root` from which the rows' paths start.
        rows: Columns `schema.COLUMNS`, one row per image, with the splits train, val and test.
        positive: Labels of the data's table that mean pneumonia; none if it has only two.
        has_splits: Whether it was published with splits; otherwise test was split off.
    """

    source: str
    name: str
    digest: str
    is_synthetic: bool
    root: Path
    base: Path
    rows: pd.DataFrame
    positive: tuple[str, ...] = ()
    has_splits: bool = True

    @property
    def arguments(self) -> dict[str, str]:
        """Options by which a command opens this data set."""
        return {
            "data": self.source,
            **({"positive": ",".join(self.positive)} if self.positive else {}),
        }

    @property
    def unknown_patients(self) -> int:
        """Number of images whose file name contains no patient."""
        return int(index.has_unknown_patient(self.rows).sum())

    @property
    def has_pseudonyms(self) -> bool:
        """Whether some patients are known by pseudonyms, which differ between data sets."""
        return bool(self.rows["patient"].str.startswith(PSEUDONYM_PREFIX).any())

    @property
    def license(self) -> str:
        """Owner and license of the data, if known."""
        if self.is_synthetic:
            return "synthetic images made by pneumo, which show no real patients"
        if self.name in REMOTE_DATASETS:
            return REMOTE_DATASETS[self.name].license
        if (file := index.table_of(self.base)) and (source := PUBLISHED_TABLES.get(file.name)):
            return f"{source.title}, {source.url}: {source.license}"
        return "unknown; ask the provider of the data"

    @property
    def file_counts(self) -> dict[str, int]:
        """Numbers of files by kind, from all that were found to identical ones.

        They are those of `index.count_files`, and `duplicates`: images whose file is identical to
        an earlier one, byte for byte.
        """
        copies = int(self.rows["sha256"].duplicated().sum())
        return {**index.count_files(self.root, len(self.rows)), "duplicates": copies}

    def images_digest(self, *splits: str) -> str:
        """Return 16 hex digits that identify the image files of splits, '' if they have none.

        Paths, labels, patients and other splits have no influence.
        """
        files = self.rows["sha256"][self.rows["split"].isin(splits)]
        return index.digest_of(files) if len(files) else ""

    def count_images(self) -> dict[str, int]:
        """Return the number of images of train, val and test, also of unreadable ones."""
        is_in = {name: self.rows["split"] == name for name in ("train", "val", "test")}
        return {name: int(rows.sum()) for name, rows in is_in.items()}

    def assign_folds(self, n_folds: int, split_by: str) -> np.ndarray:
        """Return the fold of each image: see `split.assign_folds` and `split.assign_site_folds`.

        Raises:
            UserError: Patients or sites make no such folds.
        """
        assign = assign_folds if split_by == "patient" else assign_site_folds
        return assign(self.rows, n_folds)

    def decode(self, size: int, max_unreadable: float, resize: str = "squash") -> "DecodedDataset":
        """Decode the images at one size, or load them from the cache.

        Args:
            size: Side of the square images in pixels.
            max_unreadable: Fraction of the images that may be unreadable, 0 to 1.
            resize: See `decode.decode`.

        Returns:
            The decoded images.

        Raises:
            UserError: More images are unreadable than allowed, or the disk cannot read a file.
                Lateral views are left out, and do not count.
        """
        preprocessing = pixels.decode_key(self.rows, size, resize)
        decoded, unreadable = pixels.load_pixels(self.base, self.rows, size, resize)
        is_lateral_view = self.rows["view"].map(is_lateral)
        unreadable |= dict.fromkeys(self.rows["path"][is_lateral_view], LATERAL_REASON)
        images = DecodedDataset(self, decoded, unreadable, preprocessing)
        images.require_readable(max_unreadable)
        return images


@dataclass(frozen=True)
class DecodedDataset:
    """A data set whose images are decoded at one size.

    Attributes:
        dataset: The data set.
        pixels: Memory map of all images: uint8, shape (rows of the data set, size, size).
        unreadable: Path → reason, for the images that could not be decoded.
        preprocessing: How files became pixels: see `pixels.decode_key`.
    """

    dataset: Dataset
    pixels: np.ndarray
    unreadable: dict[str, str]
    preprocessing: str

    def require_readable(self, limit: float) -> None:
        """Raise `UserError` if more than the fraction `limit` of the images is unreadable."""
        broken = {
            path: reason for path, reason in self.unreadable.items() if reason != LATERAL_REASON
        }
        count, total = len(broken), len(self.dataset.rows)
        if count > limit * total:
            path, reason = next(iter(broken.items()))
            raise UserError(
                f"at most the fraction max_unreadable={limit} of the images may be unreadable: "
                f"{count} of {total} are, the first is {path} ({quoted(reason)}). Fix or remove "
                "them (explore lists all of them), or increase max_unreadable."
            )

    def split(self, name: str) -> Split:
        """Return the readable images of `train`, `val` or `test`.

        Raises:
            UserError: A class has no readable image in the split.
        """
        is_chosen = self._readable & (self.dataset.rows["split"] == name).to_numpy()
        self._require_classes(is_chosen, name)
        return self._take(is_chosen)

    def validation(self, n_folds: int) -> Split:
        """Return the images that validate: `val`, or all of `train` and `val` in several folds.

        Args:
            n_folds: Number of folds; 1 means the validation split.
        """
        if n_folds == 1:
            return self.split("val")
        return self._take(self._readable & (self.dataset.rows["split"] != "test").to_numpy())

    def folds(self, n_folds: int, split_by: str = "patient") -> list[Fold]:
        """Return the images of each fold. With one fold, they are the splits `train` and `val`.

        Args:
            n_folds: Number of folds.
            split_by: `patient`, or `site` if each fold is one site.

        Raises:
            UserError: A fold has no readable image of a class, or the sites make no such folds.
        """
        if n_folds == 1 and split_by == "patient":
            train, val = self.split("train"), self.split("val")
            return [Fold(_all_of(train), _all_of(val))]
        numbers = self.dataset.assign_folds(n_folds, split_by)
        pool = self.validation(n_folds)
        for number in range(n_folds):
            self._require_classes(self._readable & (numbers == number), f"fold {number}")
        is_val = numbers[pool.positions] == np.arange(n_folds)[:, np.newaxis]
        return [
            Fold(Subset(pool, np.flatnonzero(~row)), Subset(pool, np.flatnonzero(row)))
            for row in is_val
        ]

    def _require_classes(self, is_chosen: np.ndarray, name: str) -> None:
        for label, class_name in enumerate(CLASSES):
            if not (is_chosen & (self.dataset.rows["label"] == label)).any():
                raise UserError(
                    f"{name} must contain readable images of {class_name}: it has none "
                    f"({len(self.unreadable)} images are unreadable). Fix or replace them."
                )

    def _take(self, is_chosen: np.ndarray) -> Split:
        rows = self.dataset.rows[is_chosen].reset_index(drop=True)
        return Split(rows, self.pixels, np.flatnonzero(is_chosen), self.preprocessing)

    def used_files(self) -> pd.DataFrame:
        """Return the readable training and validation images: columns split, patient, sha256."""
        rows = self.dataset.rows
        is_used = self._readable & (rows["split"] != "test").to_numpy()
        return rows.loc[is_used, ["split", "patient", "sha256"]]

    def counts(self) -> pd.DataFrame:
        """Count readable images and their patients: columns split, class, images, patients."""
        groups = self.dataset.rows[self._readable].groupby(["split", "label"])["patient"]
        counts = groups.agg(images="size", patients="nunique").reset_index()
        names = [CLASSES[label] for label in counts.pop("label")]
        counts.insert(1, "class", names)
        return counts

    def summary(self) -> str:
        """Return a summary of the data in one line."""
        images = self.counts().groupby("split", sort=False)["images"].sum()
        parts = [f"{split} {count}" for split, count in images.items()]
        return (
            f"{self.dataset.name} (digest {self.dataset.digest}): {', '.join(parts)} images, "
            f"{len(self.unreadable)} unreadable, "
            f"{self.dataset.unknown_patients} of unknown patients"
        )

    @property
    def _readable(self) -> np.ndarray:
        return ~self.dataset.rows["path"].isin(self.unreadable).to_numpy()


def _all_of(split: Split) -> Subset:
    return Subset(split, np.arange(len(split.rows)))


def published_splits(split: str) -> tuple[str]:
    """Return the splits of a data set, as it is published, that contain a split."""
    return ("test",) if split == "test" else ("train",)  # validation is split from train


def open_dataset(
    data: str,
    required_splits: tuple[str, ...] = ("train",),
    allow_conflicts: bool = False,
    positive: tuple[str, ...] = (),
) -> Dataset:
    """Open a data set, index it and split it.

    Args:
        data: `sample`, one of `REMOTE_DATASETS`, or the path of a folder, a `.zip` or a `.tar.gz`.
        required_splits: Splits that the data set must have, as it is published: `train`, `test`.
        allow_conflicts: Whether images may contradict each other: see `raise_on_conflicts`.
        positive: Labels of a table that mean pneumonia; none if it has only two.

    Returns:
        The data set; its images are not decoded yet.

    Raises:
        UserError: There is no such data set, a needed split is missing, a split lacks a class, or
            images contradict each other.
    """
    name, root = resolve_source(data)
    is_named = data == SAMPLE or data in REMOTE_DATASETS
    with _name_source_in_errors(root, data):
        base = index.find_base(root)
        positive = positive or index.default_positive(base)
        rows = index.build_index(base, positive)
        if data in REMOTE_DATASETS:
            check_image_counts(rows, REMOTE_DATASETS[data])
        has_splits = (rows["split"] != "").any()
        if not has_splits:
            echo(f"{name} has no column split: {TEST_FRACTION:.0%} of its patients are test")
            rows = split_test(rows)
        for split in sorted({*required_splits, *rows["split"]}):
            _require_both_classes(rows, split, base)
        if not allow_conflicts:
            raise_on_conflicts(base, rows)
    return Dataset(
        source=data if is_named else str(Path(os.path.expanduser(data)).absolute()),
        name=name,
        digest=index.digest(rows),
        is_synthetic=data == SAMPLE,
        root=root,
        base=base,
        rows=split_validation(rows),
        positive=positive,
        has_splits=has_splits,
    )


@contextmanager
def _name_source_in_errors(root: Path, data: str) -> Iterator[None]:
    """Replace the cache folder of an unpacked archive in messages by the archive's name."""
    try:
        yield
    except UserError as error:
        source_name = quoted(data) if cache.is_in_cache(root) else str(root)
        raise UserError(str(error).replace(str(root), source_name)) from None


def _require_both_classes(rows: pd.DataFrame, split: str, base: Path) -> None:
    for label, name in enumerate(CLASSES):
        if not ((rows["split"] == split) & (rows["label"] == label)).any():
            raise UserError(f"{base} must contain images in {split}/{name}: it has none. Add some.")
