from itertools import pairwise

import pandas as pd
import pytest

from pneumo.data import index
from pneumo.data.split import cut_validation
from pneumo.errors import Mistake


def rows_of(patients: dict[str, tuple[int, int]], split: str = "train") -> pd.DataFrame:
    """An index of patients: name → label and number of images."""
    rows = [
        (f"{split}/{label}/{name}-{image}", label, "", name, split, f"{label}{name}-{image}")
        for name, (label, images) in patients.items()
        for image in range(images)
    ]
    return pd.DataFrame(rows, columns=index.COLUMNS)


def test_no_patient_is_on_both_sides(sample):
    assert sample.rows.groupby("patient")["split"].nunique().max() == 1


def test_a_fifth_of_the_patients_of_each_class_validates(sample):
    patients = sample.rows.groupby(["label", "split"])["patient"].nunique()
    assert patients.to_dict() == {
        (0, "train"): 80,
        (0, "val"): 20,
        (0, "test"): 40,
        (1, "train"): 120,
        (1, "val"): 30,
        (1, "test"): 50,
    }


def test_test_stays_as_it_was(sample):
    before = index.build_index(sample.base)
    assert sample.rows["split"].replace("val", "train").equals(before["split"])


def test_the_cut_follows_from_the_patients_alone():
    rows = rows_of({f"p{number}": (number % 2, 1 + number % 3) for number in range(50)})
    cut = cut_validation(rows)
    shuffled = cut_validation(rows.sample(frac=1, random_state=1)).sort_index()
    assert shuffled["split"].equals(cut["split"])


def test_a_patient_with_images_of_both_classes_is_on_one_side():
    sick = {f"p{number}": (1, 2) for number in range(10)}
    healthy = {f"p{number}": (0, 2) for number in range(5, 20)}
    cut = cut_validation(pd.concat([rows_of(sick), rows_of(healthy)], ignore_index=True))
    assert cut.groupby("patient")["split"].nunique().max() == 1


def test_patients_who_share_a_file_are_on_one_side():
    rows = rows_of({f"p{number:02}": (number % 2, 2) for number in range(40)})
    parted = cut_validation(rows).drop_duplicates("patient").set_index("patient")["split"]
    chain = [*parted[parted == "train"].index[:2], *parted[parted == "val"].index[:2]]
    assert set(parted[chain]) == {"train", "val"}
    for one, other in pairwise(chain):  # the second image of each is the first of the next
        first, second = (rows[rows["patient"] == name].index for name in (other, one))
        rows.loc[first[0], "sha256"] = rows.loc[second[1], "sha256"]
    cut = cut_validation(rows).set_index("patient")["split"]
    assert len(set(cut[chain])) == 1
    assert set(cut) == {"train", "val"}


def test_one_patient_cannot_be_cut():
    rows = rows_of({"a": (0, 5), "b": (1, 1), "c": (1, 1)})
    with pytest.raises(Mistake, match="train/NORMAL must hold images of two patients or more"):
        cut_validation(rows)
