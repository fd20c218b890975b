"""From what the user named to images that are ready to train on."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pneumo.data import archive, index, pixels
from pneumo.data.download import REMOTE_DATASETS, check_image_counts, fetch
from pneumo.data.pixels import pixels_digest
from pneumo.data.sample import make_sample
from pneumo.data.split import raise_on_conflicts, split_validation
from pneumo.runtime import cache
from pneumo.runtime.errors import UserError, quoted

SAMPLE = "sample"

ACCEPTED_SOURCES = ", ".join([SAMPLE, *REMOTE_DATASETS, "a folder, a .zip or a .tar.gz"])


@dataclass(frozen=True)
class Split:
    """The images of one part of a data set, in the order of their paths.

    `rows` are the columns of `index.COLUMNS`, one row per readable image; `positions` are
    their places in `pixels`, the memory map of all images (uint8, shape (n, size, size)).
    `decode_key` says how files became pixels.
    """

    rows: pd.DataFrame
    pixels: np.ndarray
    positions: np.ndarray
    made_by: str

    @property
    def digest(self) -> str:
        """64 hex digits that name these pixels in this order, wherever their files lie."""
        return pixels_digest(self.rows, self.made_by)

    @property
    def images(self) -> np.ndarray:
        """A copy of the pixels: uint8, shape (rows, size, size, 1)."""
        return self.pixels[self.positions][..., np.newaxis]

    @property
    def labels(self) -> np.ndarray:
        """0 normal, 1 pneumonia: int64, shape (rows,)."""
        return self.rows["label"].to_numpy()


@dataclass(frozen=True)
class Dataset:
    """A data set, indexed and split, whose pixels are decoded when first asked for.

    `source` is what the user gave, a path made absolute, and `name` that without its folders;
    `digest` names its content;
    `root` is the folder that was given or unpacked; `base`, in it, the one that the rows' paths
    start from.
    """

    source: str
    name: str
    digest: str
    synthetic: bool
    root: Path
    base: Path
    rows: pd.DataFrame

    @property
    def unknown_patients(self) -> int:
        """Images whose file name tells no patient."""
        return int(index.has_unknown_patient(self.rows).sum())

    @property
    def licence(self) -> str:
        """Whose data it is and what may be done with it, where that is known."""
        if self.synthetic:
            return "made by pneumo; they show nobody"
        if self.name in REMOTE_DATASETS:
            return REMOTE_DATASETS[self.name].licence
        return "not known here: ask whoever gave the data"

    @property
    def census(self) -> dict[str, int]:
        """What became of the files, from all that were found to those that differ.

        As `index.count_files` tells it; `duplicates`: images whose file is the same as an earlier
        one's, byte for byte.
        """
        copies = int(self.rows["sha256"].duplicated().sum())
        return {**index.count_files(self.root), "duplicates": copies}

    def images_digest(self, split: str) -> str:
        """Return 16 hex digits that identify the image files of a split, '' if it has none.

        Paths, labels, patients and the other splits make no difference.
        """
        files = self.rows["sha256"][self.rows["split"] == split]
        return _digest_of(files) if len(files) else ""

    def decode(self, size: int, max_unreadable: float, resize: str = "squash") -> "DecodedDataset":
        """The images at `size` × `size` pixels, from the cache where they are there.

        `resize`: see `decode.decode`. Raises `UserError` where more than the share
        `max_unreadable` cannot be read.
        """
        made_by = pixels.decode_key(size, resize)
        decoded, unreadable = pixels.load_pixels(self.base, self.rows, size, resize)
        images = DecodedDataset(self, decoded, unreadable, made_by)
        images.require_readable(max_unreadable)
        return images


@dataclass(frozen=True)
class DecodedDataset:
    """A data set at one size. `unreadable` gives path → reason of what had to be left out."""

    dataset: Dataset
    pixels: np.ndarray
    unreadable: dict[str, str]
    made_by: str

    def require_readable(self, share: float) -> None:
        """Raises `UserError` where more than this share of the images cannot be read."""
        count, total = len(self.unreadable), len(self.dataset.rows)
        if count > share * total:
            path, why = next(iter(self.unreadable.items()))
            raise UserError(
                f"{count} of {total} images cannot be read, more than the share "
                f"max_unreadable={share}; the first is {path} ({quoted(why)}): "
                "mend or remove them (explore lists them all), or allow more"
            )

    def split(self, name: str) -> Split:
        """The readable images of `train`, `val` or `test`.

        Raises `UserError` where there are none of a class.
        """
        rows = self.dataset.rows
        chosen = self._readable & (rows["split"] == name).to_numpy()
        for label, class_name in enumerate(index.CLASSES):
            if not (chosen & (rows["label"] == label)).any():
                raise UserError(
                    f"{name} must hold images of {class_name} that can be read, and has none "
                    f"({len(self.unreadable)} cannot be read); mend or replace them"
                )
        positions = np.flatnonzero(chosen)
        return Split(rows[chosen].reset_index(drop=True), self.pixels, positions, self.made_by)

    def used_files(self) -> pd.DataFrame:
        """Return the readable training and validation images: columns split, patient, sha256."""
        rows = self.dataset.rows
        used = self._readable & (rows["split"] != "test").to_numpy()
        return rows.loc[used, ["split", "patient", "sha256"]]

    def counts(self) -> pd.DataFrame:
        """Readable images and their patients: columns split, class, images, patients."""
        groups = self.dataset.rows[self._readable].groupby(["split", "label"])["patient"]
        counts = groups.agg(images="size", patients="nunique").reset_index()
        names = [index.CLASSES[label] for label in counts.pop("label")]
        counts.insert(1, "class", names)
        return counts

    def summary(self) -> str:
        """The data in one line."""
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


def _digest_of(files: Iterable[str]) -> str:
    """Return 16 hex digits that identify a set of files, given as their sha256, in any order."""
    return hashlib.sha256("\n".join(sorted(set(files))).encode()).hexdigest()[:16]


def published_splits(split: str) -> tuple[str]:
    """Return the parts of a data set, as it is published, that hold a split."""
    return ("test",) if split == "test" else ("train",)  # validation is cut from train


def open_dataset(
    data: str, needs: tuple[str, ...] = ("train",), in_conflict: bool = False
) -> Dataset:
    """Open a data set: `sample`, one of `REMOTE_DATASETS`, a folder, a `.zip` or a `.tar.gz`.

    Raises `UserError` where there is none, where a split in `needs` is not there, where a split
    lacks a class, or, unless it may be `in_conflict`, where images contradict each other.
    """
    name, root = _resolve(data)
    with _name_source_in_errors(root, data):
        base = index.find_split_root(root)
        rows = index.build_index(base)
        if data in REMOTE_DATASETS:
            check_image_counts(rows, REMOTE_DATASETS[data])
        for split in sorted({*needs, *rows["split"]}):
            _require_both_classes(rows, split, base)
        if not in_conflict:
            raise_on_conflicts(base, rows)
    return Dataset(
        source=data if data == name else str(Path(os.path.expanduser(data)).absolute()),
        name=name,
        digest=index.digest(rows),
        synthetic=data == SAMPLE,
        root=root,
        base=base,
        rows=split_validation(rows),
    )


def _resolve(data: str) -> tuple[str, Path]:
    if data == SAMPLE:
        return data, make_sample()
    if data in REMOTE_DATASETS:
        return data, fetch(data)
    path = Path(os.path.expanduser(data))
    if os.path.isdir(path):  # which, unlike Path.is_dir, takes any text
        return path.resolve().name, path
    if not os.path.isfile(path):
        raise UserError(
            f"data must be {ACCEPTED_SOURCES}: there is no '{quoted(data)}' here; "
            "check the path (in a project run from a Git address it must be absolute)"
        )
    if not path.name.lower().endswith(archive.ARCHIVE_SUFFIXES):
        raise UserError(f"data must be {ACCEPTED_SOURCES}: got the file '{quoted(data)}'")
    return path.name, archive.unpack(path)


@contextmanager
def _name_source_in_errors(root: Path, data: str) -> Iterator[None]:
    """What was unpacked is called by its archive: nobody knows the cache's folders."""
    try:
        yield
    except UserError as mistake:
        called = quoted(data) if cache.is_in_cache(root) else str(root)
        raise UserError(str(mistake).replace(str(root), called)) from None


def _require_both_classes(rows: pd.DataFrame, split: str, base: Path) -> None:
    for label, name in enumerate(index.CLASSES):
        if not ((rows["split"] == split) & (rows["label"] == label)).any():
            raise UserError(f"{base} must hold images in {split}/{name}, and has none; add them")
