"""Validation split by patient; no image and no patient is in more than one split."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from pneumo.data.index import has_unknown_patient
from pneumo.data.pixels import read_file
from pneumo.data.schema import CLASSES
from pneumo.inference.decode import decode
from pneumo.inference.untrusted import UnreadableImageError
from pneumo.runtime.errors import UserError, quoted

# Column in which all copies of a file must agree → texts for the message if they do not
CONFLICT_RULES = {
    "label": ("in both classes", "one of the labels is wrong"),
    "split": ("in train and in test", "train and test would not be independent"),
}

VALIDATION_FRACTION = 0.2
TEST_FRACTION = 0.2  # of a data set that is published without splits


def raise_on_conflicts(base: Path, rows: pd.DataFrame) -> None:
    """Raise `UserError` if an image has two labels, or an image or patient is in two splits.

    Only readable images count. Their files are decoded only if the index shows a contradiction.

    Args:
        base: The folder from which the paths of the index start.
        rows: The index before its validation split.

    Raises:
        UserError: There is such an image or patient.
    """
    for column, (where, why) in CONFLICT_RULES.items():
        if pairs := list(_conflicting_pairs(base, rows, column)):
            first, second = (quoted(path) for path in pairs[0])
            raise UserError(
                f"no image may be {where}, because {why}: {len(pairs)} {_are(pairs)}, the first as "
                f"{first} and {second}. Remove one file of each pair. The command explore lists "
                "all of them in duplicates.csv."
            )
    where, why = CONFLICT_RULES["split"]
    if patients := list(_patients_on_both_sides(base, rows)):
        name, of_train, of_test = (quoted(text) for text in patients[0])
        raise UserError(
            f"no patient may be {where}, because {why}: {len(patients)} {_are(patients)}, the "
            f"first is '{name}' with {of_train} and {of_test}. If these are different people, list "
            "the right patients in patients.csv or the table. Otherwise remove the images of one "
            "split. The command explore lists all of them in numbers.json."
        )


def _conflicting_pairs(base: Path, rows: pd.DataFrame, column: str) -> Iterator[tuple[str, str]]:
    """Yield the first two paths of each readable image whose copies differ in `column`."""
    values = rows.groupby("sha256")[column].transform("nunique")
    for _, places in rows[values > 1].groupby("sha256", sort=False):
        first, second = places.drop_duplicates(column)["path"]
        if _is_image(base / first):  # otherwise it counts as unreadable
            yield first, second


def shared_patients(rows: pd.DataFrame) -> list[str]:
    """Return the patients with images in more than one split, sorted.

    An image whose name contains no patient shares none: two different images that are both called
    `0001.png` may well show two people.

    Args:
        rows: Rows of an index: columns path, patient and split.
    """
    return sorted(_of_shared_patients(rows)["patient"].unique())


def _of_shared_patients(rows: pd.DataFrame) -> pd.DataFrame:
    known = rows[~has_unknown_patient(rows)]
    return known[known.groupby("patient")["split"].transform("nunique") > 1]


def _patients_on_both_sides(base: Path, rows: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    """Yield each patient in train and in test, with the first readable image in each."""
    for patient, images in _of_shared_patients(rows).groupby("patient"):
        first_images = [
            _first_image(base, images["path"][images["split"] == split])
            for split in ("train", "test")
        ]
        if all(first_images):
            yield patient, *first_images


def _first_image(base: Path, paths: Iterable[str]) -> str:
    """Return the first path whose file can be read as an image, '' if there is none."""
    return next((path for path in paths if _is_image(base / path)), "")


def _is_image(file: Path) -> bool:
    try:
        decode(read_file(file), 8)
    except UnreadableImageError:
        return False
    return True


def _are(items: list) -> str:
    return "is" if len(items) == 1 else "are"


def split_validation(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a copy of an index in which 20 % of the training patients of each class are `val`.

    Test stays as published. The choice depends on the patients' names alone, never on a seed. So
    all runs on the same data share one split and are comparable. A patient with images of both
    classes counts as pneumonia. Patients who share a file, byte for byte, count as one.

    Raises:
        UserError: A class has fewer than two patients in train.
    """
    is_val = _is_chosen(
        rows[rows["split"] == "train"],
        VALIDATION_FRACTION,
        1,
        "train/{name} must contain images of at least two patients, one of them for validation: "
        "got {total}. Add images, or check their file names.",
    )
    is_val = is_val.reindex(rows.index, fill_value=False)
    return rows.assign(split=rows["split"].mask(is_val, "val"))


def split_test(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a copy of an index without splits, with 20 % of the patients of each class in `test`.

    All others are in `train`. The choice depends on the patients' names alone, as in
    `split_validation`.

    Raises:
        UserError: A class has a single patient.
    """
    is_test = _is_chosen(
        rows,
        TEST_FRACTION,
        1,
        "a data set without the column split must have at least two patients of each class: {name} "
        "has one. Add images, or the column split.",
    )
    return rows.assign(split=is_test.map({True: "test", False: "train"}))


def choose_patients(rows: pd.DataFrame, share: float) -> np.ndarray:
    """Return which images show a share of the patients of each class, at least two of them.

    The choice depends on the patients' names alone.

    Args:
        rows: Rows of an index.
        share: Share of the patients, above 0 and below 1.

    Returns:
        bool array of shape (rows,).

    Raises:
        UserError: Fewer than two patients of a class would remain.
    """
    return _is_chosen(
        rows,
        share,
        2,
        "recalibrate must leave at least two patients of each class: of the {total} with {name}, "
        "{count} would be taken. Use a smaller share, or add images.",
    ).to_numpy()


def _is_chosen(rows: pd.DataFrame, share: float, fewest: int, message: str) -> pd.Series:
    """Return which images show a share of the patients of each class: bool, one per row.

    Args:
        rows: Rows of an index.
        share: Share of the patients, above 0 and below 1.
        fewest: Number of patients of each class that are chosen at least, and that remain.
        message: Template of the error if too few would remain: `name` of the class, `total` number
            of its patients, and `count` of those that would be chosen.
    """
    groups = _patient_groups(rows)
    chosen_patients: list[str] = []
    for label, names in _ordered_patients(rows, groups):
        count, total = max(fewest, round(share * len(names))), len(names)
        if total - count < fewest:
            raise UserError(message.format(name=CLASSES[label], total=total, count=count))
        chosen_patients += names[:count]
    return groups.isin(chosen_patients)


def assign_folds(rows: pd.DataFrame, n_folds: int) -> np.ndarray:
    """Return the fold of each training and validation image, for cross-validation.

    The patients of each class are cut into `n_folds` parts of equal size, in the order from which
    `split_validation` takes its own. So with five folds the first one is the validation split.

    Args:
        rows: An index with its validation split.
        n_folds: Number of folds, at least 2.

    Returns:
        int64 array of shape (rows,): 0 to `n_folds` - 1, or -1 for a test image.

    Raises:
        UserError: A class has fewer patients than folds.
    """
    pool = rows[rows["split"] != "test"]
    groups = _patient_groups(pool)
    fold_of_patient: dict[str, int] = {}
    for label, names in _ordered_patients(pool, groups):
        if len(names) < n_folds:
            raise UserError(
                f"folds must be at most the number of patients of each class: got {n_folds}, but "
                f"train/{CLASSES[label]} contains {len(names)} patients. Use fewer folds."
            )
        ends = [round(number * len(names) / n_folds) for number in range(1, n_folds)]
        numbers = np.searchsorted(ends, np.arange(len(names)), side="right")
        fold_of_patient |= dict(zip(names, numbers.tolist(), strict=True))
    folds = groups.map(fold_of_patient)
    return folds.reindex(rows.index, fill_value=-1).to_numpy(np.int64)


def assign_site_folds(rows: pd.DataFrame, n_folds: int) -> np.ndarray:
    """Return the fold of each training and validation image if each fold is one site.

    Args:
        rows: An index with its validation split.
        n_folds: Number of folds, which must be the number of sites.

    Returns:
        int64 array of shape (rows,): 0 to `n_folds` - 1 in the order of the sites' names, or -1 for
        a test image.

    Raises:
        UserError: A site is not known, their number is another one, or a patient was at two sites.
    """
    pool = rows[rows["split"] != "test"]
    sites = sorted(pool["site"].unique())
    names = ", ".join(quoted(site) for site in sites)
    if "" in sites:
        raise UserError(
            f"split_by=site requires a site for each training image: {(pool['site'] == '').sum()} "
            f"of {len(pool)} have none. Add the column site to labels.csv, or use split_by=patient."
        )
    if not 1 < n_folds == len(sites):
        raise UserError(
            f"split_by=site requires folds to be the number of sites, at least 2: got {n_folds}, "
            f"but the training images come from {len(sites)} ({names}). Change folds."
        )
    n_sites = pool["site"].groupby(_patient_groups(pool)).nunique()
    if (n_sites > 1).any():
        raise UserError(
            "split_by=site requires each patient to be at one site, because folds may not share "
            f"patients: {(n_sites > 1).sum()} were at several. Use split_by=patient."
        )
    folds = pool["site"].map({site: number for number, site in enumerate(sites)})
    return folds.reindex(rows.index, fill_value=-1).to_numpy(np.int64)


def _ordered_patients(rows: pd.DataFrame, groups: pd.Series) -> Iterator[tuple[int, list[str]]]:
    """Yield each label with its patient groups, in an order that depends on their names alone.

    `groups`: see `_patient_groups`.
    """
    label_of_group = rows["label"].groupby(groups).max()
    for label, found in label_of_group.groupby(label_of_group):
        names = sorted(found.index, key=lambda name: hashlib.sha256(name.encode()).digest())
        yield int(label), names


def _patient_groups(rows: pd.DataFrame) -> pd.Series:
    """Return the patient group of each row: patients who share a file are in the same group.

    A group is named after its alphabetically first patient.
    """
    names = rows["patient"]
    while True:
        merged = names.groupby(rows["sha256"]).transform("min")
        merged = merged.groupby(rows["patient"]).transform("min")
        if merged.equals(names):
            return names
        names = merged
