"""The validation split by patient, and that no patient is in two splits."""

import shutil
from itertools import pairwise

import pandas as pd
import pytest
from PIL import Image

from pneumo.data import index
from pneumo.data.dataset import open_dataset
from pneumo.data.schema import CLASSES, COLUMNS
from pneumo.data.split import split_validation
from pneumo.runtime.errors import UserError


def rows_of(patients: dict[str, tuple[int, int]], split: str = "train") -> pd.DataFrame:
    """Make an index of patients: name → label and number of images."""
    rows = [
        (f"{split}/{label}/{name}-{image}", label, "", name, split, f"{label}{name}-{image}")
        for name, (label, images) in patients.items()
        for image in range(images)
    ]
    return pd.DataFrame(rows, columns=COLUMNS[:6])


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
    cut = split_validation(rows)
    shuffled = split_validation(rows.sample(frac=1, random_state=1)).sort_index()
    assert shuffled["split"].equals(cut["split"])


def test_a_patient_with_images_of_both_classes_is_on_one_side():
    sick = {f"p{number}": (1, 2) for number in range(10)}
    healthy = {f"p{number}": (0, 2) for number in range(5, 20)}
    cut = split_validation(pd.concat([rows_of(sick), rows_of(healthy)], ignore_index=True))
    assert cut.groupby("patient")["split"].nunique().max() == 1


def test_the_choice_is_that_of_earlier_studies():
    """Else a study that is continued would train on what it was validated with."""
    rows = rows_of({f"p{number:02}": (number % 2, 1) for number in range(40)})
    patients = rows["patient"][split_validation(rows)["split"] == "val"]
    assert list(patients) == ["p08", "p11", "p16", "p17", "p28", "p33", "p37", "p38"]


def test_of_two_patients_one_validates_and_one_of_both_classes_counts_as_pneumonia():
    sick, healthy = {"a": (1, 3), "b": (1, 1)}, {"b": (0, 2), "c": (0, 1), "d": (0, 1)}
    cut = split_validation(pd.concat([rows_of(sick), rows_of(healthy)], ignore_index=True))
    chosen = set(cut["patient"][cut["split"] == "val"])
    assert [len(chosen & {"a", "b"}), len(chosen & {"c", "d"})] == [1, 1]


def test_patients_who_share_a_file_are_on_one_side():
    rows = rows_of({f"p{number:02}": (number % 2, 2) for number in range(40)})
    parted = split_validation(rows).drop_duplicates("patient").set_index("patient")["split"]
    chain = [*parted[parted == "train"].index[:2], *parted[parted == "val"].index[:2]]
    assert set(parted[chain]) == {"train", "val"}
    for one, other in pairwise(chain):  # the second image of each is the first of the next
        first, second = (rows[rows["patient"] == name].index for name in (other, one))
        rows.loc[first[0], "sha256"] = rows.loc[second[1], "sha256"]
    cut = split_validation(rows).set_index("patient")["split"]
    assert len(set(cut[chain])) == 1
    assert set(cut) == {"train", "val"}


def test_of_patients_who_share_a_file_all_validate_or_none():
    rows = rows_of({f"p{number:02}": (number % 2, 1) for number in range(40)})
    pairs = [number - 2 * (number % 4 > 1) for number in range(40)]  # 0 and 2, 1 and 3, 4 and 6
    cut = split_validation(rows.assign(sha256=[str(pair) for pair in pairs]))
    assert cut.groupby("sha256")["split"].nunique().max() == 1
    assert cut["split"].value_counts().to_dict() == {"train": 32, "val": 8}


def test_one_patient_cannot_be_cut():
    rows = rows_of({"a": (0, 5), "b": (1, 1), "c": (1, 1)})
    with pytest.raises(
        UserError, match="train/NORMAL must contain images of at least two patients"
    ):
        split_validation(rows)


def add_image(folder, path: str) -> None:
    """Write a random image, which differs from all others."""
    Image.effect_noise((16, 16), 50).save(folder / path)


def test_a_patient_in_train_and_in_test_is_refused_until_patients_csv_says_otherwise(folder):
    add_image(folder, "train/NORMAL/IM-0001-0099.png")
    add_image(folder, "train/PNEUMONIA/scan.png")
    expected = (
        "no patient may be in train and in test, because train and test would not be independent: "
        "{}, the first is '{}' with train/NORMAL/IM-0001-0099.png and {}. If these are different "
        "people, list the right patients in patients.csv or the table. Otherwise remove the "
        "images of one split. The command explore lists all of them in numbers.json."
    )
    with pytest.raises(UserError) as raised:
        open_dataset(str(folder))
    assert str(raised.value) == expected.format("1 is", "IM-0001", "test/NORMAL/IM-0001-0001.png")
    listed = {
        "train/NORMAL/IM-0001-0099.png": "007",
        "test/NORMAL/IM-0002-0001.png": "07",
        "train/PNEUMONIA/scan.png": "NA",
    }

    def refusal() -> str:
        pd.Series(listed, name="patient").to_csv(folder / "patients.csv", index_label="path")
        with pytest.raises(UserError) as raised:
            open_dataset(str(folder))
        return str(raised.value)

    listed["test/NORMAL/IM-0003-0001.png"] = "007"
    assert refusal() == expected.format("1 is", "007", "test/NORMAL/IM-0003-0001.png")
    listed["test/PNEUMONIA/person10_virus_15.png"] = "NA"
    assert refusal() == expected.format("2 are", "007", "test/NORMAL/IM-0003-0001.png")
    listed["test/NORMAL/IM-0003-0001.png"] = "7"
    listed["test/PNEUMONIA/person10_virus_15.png"] = "nan"
    pd.Series(listed, name="patient").to_csv(folder / "patients.csv", index_label="path")
    rows = open_dataset(str(folder)).rows
    assert set(rows["patient"][rows["path"].isin(listed)]) == {"007", "07", "7", "NA", "nan"}


def test_only_images_that_can_be_read_make_a_patient_one_of_both_splits(folder):
    name = "IM-0001-0099.png"
    (folder / "train" / "NORMAL" / name).write_bytes(b"no image")
    open_dataset(str(folder))
    for file in (folder / "test" / "NORMAL").glob("IM-0001-*"):
        file.write_bytes(file.name.encode())
    add_image(folder, f"train/NORMAL/{name}")
    open_dataset(str(folder))
    add_image(folder, f"test/NORMAL/{name}")
    with pytest.raises(UserError) as raised:
        open_dataset(str(folder))
    assert (
        f"1 is, the first is 'IM-0001' with train/NORMAL/{name} and test/NORMAL/{name}. If"
        in str(raised.value)
    )


def test_images_with_the_same_name_without_a_patient_are_different_patients(folder):
    paths = [f"{split}/{name}/0001.png" for split in ("train", "test") for name in CLASSES]
    for path in paths:
        add_image(folder, path)
    dataset = open_dataset(str(folder))
    assert dataset.unknown_patients == 4
    assert set(dataset.rows["patient"][dataset.rows["path"].isin(paths)]) == {"0001.png"}
    # On one side of the validation cut they stay together: there it costs nothing
    trained = dataset.rows[dataset.rows["path"].isin(paths[:2])]
    assert trained["split"].nunique() == 1


def test_a_copy_is_called_a_copy_and_not_a_patient(folder):
    shutil.copy(folder / "test/NORMAL/IM-0001-0001.png", folder / "train/NORMAL/IM-0001-0099.png")
    with pytest.raises(UserError, match="no image may be in train and in test, .* duplicates.csv"):
        open_dataset(str(folder))
