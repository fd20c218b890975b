"""Validation, cut from train by patient."""

import hashlib

import pandas as pd

from pneumo.data.index import CLASSES
from pneumo.errors import Mistake

VALIDATION_SHARE = 0.2


def cut_validation(rows: pd.DataFrame) -> pd.DataFrame:
    """A copy of an index in which 20 % of the training patients of each class are `val`.

    Test stays as it was published. Who is cut depends on the patients' names alone, never
    on a seed: all runs on the same data share one split and can be compared. A patient with
    images of both classes counts as pneumonia; patients who share a file, byte for byte, count as
    one. Raises `Mistake` if a class has one patient.
    """
    train = rows[rows["split"] == "train"]
    train = train.assign(patient=_who(train))
    label_of_patient = train.groupby("patient")["label"].max()
    chosen: list[str] = []
    for label, patients in label_of_patient.groupby(label_of_patient):
        names = sorted(patients.index, key=lambda name: hashlib.sha256(name.encode()).digest())
        if len(names) < 2:
            raise Mistake(
                f"train/{CLASSES[label]} must hold images of two patients or more, one of them for "
                f"validation: got {len(names)}; add images or check their names"
            )
        chosen += names[: max(1, round(VALIDATION_SHARE * len(names)))]
    is_val = rows.index.isin(train.index[train["patient"].isin(chosen)])
    return rows.assign(split=rows["split"].mask(is_val, "val"))


def _who(rows: pd.DataFrame) -> pd.Series:
    """Of each row the first name of its patient and of those who are tied to that by a file."""
    names = rows["patient"]
    while True:
        tied = names.groupby(rows["sha256"]).transform("min")
        tied = tied.groupby(rows["patient"]).transform("min")
        if tied.equals(names):
            return names
        names = tied
