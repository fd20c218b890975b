"""The table of a data set's files: splits, classes, patients and the digest of all."""

import os
import shutil
import tarfile
import zipfile

import pandas as pd
import pytest

from pneumo.commands.options import inputs
from pneumo.data import index
from pneumo.data.dataset import open_dataset
from pneumo.data.schema import COLUMNS
from pneumo.runtime.errors import UserError


@pytest.mark.parametrize(
    ("name", "patient", "subtype"),
    [
        ("person23_bacteria_77.jpeg", "person23_bacteria", "bacteria"),
        ("person23_virus_78.jpeg", "person23_virus", "virus"),
        ("person447_virus_921_1.jpeg", "person447_virus", "virus"),
        ("IM-0115-0001.jpeg", "IM-0115", "IM"),
        ("IM-0011-0001-0002.jpeg", "IM-0011", "IM"),
        ("NORMAL2-IM-0115-0001.jpeg", "NORMAL2-IM-0115", "NORMAL2-IM"),
        ("scan_0001.png", "scan_0001.png", ""),
        ("old_IM-0115-0001.png", "old_IM-0115-0001.png", ""),
    ],
)
def test_patients_are_distinguished_by_four_counters(tmp_path, name, patient, subtype):
    file = tmp_path / "train" / "NORMAL" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    row = index.build_index(tmp_path).iloc[0]
    assert (row["patient"], row["subtype"]) == (patient, subtype)


def test_rows(folder):
    rows = index.build_index(folder)
    assert list(rows.columns) == COLUMNS
    assert rows["path"].is_monotonic_increasing
    assert set(rows["label"]) == {0, 1}
    assert set(rows["split"]) == {"train", "test"}
    assert (rows["label"] == rows["path"].str.contains("/PNEUMONIA/")).all()


def test_kaggles_val_belongs_to_train(folder):
    (folder / "val").mkdir()
    shutil.copytree(folder / "train" / "NORMAL", folder / "val" / "NORMAL")
    rows = index.build_index(folder)
    assert set(rows.loc[rows["path"].str.startswith("val/"), "split"]) == {"train"}


def test_junk_and_the_nested_second_copy_are_no_images(folder):
    expected = index.digest(index.build_index(folder))
    shutil.copytree(folder, folder / "chest_xray")
    shutil.copytree(folder / "train", folder / "__MACOSX" / "train")
    (folder / "train" / "NORMAL" / ".DS_Store").write_bytes(b"junk")
    assert index.digest(index.build_index(folder)) == expected


def test_archive_and_folder_give_the_same_rows_and_digest(folder, tmp_path):
    plain = open_dataset(str(folder))
    with tarfile.open(tmp_path / "xrays.tar.gz", "w:gz") as tar:
        tar.add(folder, "some/where")
    with zipfile.ZipFile(tmp_path / "xrays.zip", "w") as zipped:
        for file in folder.rglob("*.png"):
            zipped.write(file, f"chest_xray/{file.relative_to(folder)}")
    for name in ("xrays.tar.gz", "xrays.zip"):
        packed = open_dataset(str(tmp_path / name))
        assert packed.name == name
        assert packed.digest == plain.digest
        assert packed.rows.equals(plain.rows)


def write_patients(folder, text: str) -> None:
    (folder / "patients.csv").write_text(text)


def test_a_list_of_patients_takes_precedence_over_file_names(folder):
    plain = index.build_index(folder)
    assert index.has_unknown_patient(plain).sum() == 0
    (folder / "train" / "NORMAL" / "a.png").write_bytes(b"1")
    (folder / "train" / "NORMAL" / "b.png").write_bytes(b"2")
    assert index.has_unknown_patient(index.build_index(folder)).sum() == 2
    known = plain["path"][0]
    write_patients(folder, f"path,patient\ntrain/NORMAL/a.png,007\n{known},007\n")
    rows = index.build_index(folder)
    patient = dict(zip(rows["path"], rows["patient"], strict=True))
    assert patient["train/NORMAL/a.png"] == patient[known] == "007"
    assert patient["train/NORMAL/b.png"] == "b.png"
    assert index.has_unknown_patient(rows).sum() == 1
    assert len(rows) == len(plain) + 2  # the list itself is no image


def test_spaces_around_a_patient_do_not_make_another_one(folder):
    first, second = index.build_index(folder)["path"][:2]
    write_patients(folder, f"path,patient\n{first},P7\n{second}, P7 \n")
    assert index.build_index(folder)["patient"].tolist()[:2] == ["P7", "P7"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,patient\n", "must be a CSV .*with the columns path and patient"),
        ("", "must be a CSV .*with the columns path and patient"),
        ("path,patient\nnowhere.png,1\n", "'nowhere.png' is not one"),
        ("path,patient\nX,1\nX,2\n", "must list each image at most once, with a patient"),
        ("path,patient\nX,\n", "must list each image at most once, with a patient"),
        ("path,patient\nX, \n", "must list each image at most once, with a patient"),
        (f"path,patient\nX,{'p' * 256}\n", "at most 255 characters in the column patient"),
    ],
)
def test_an_invalid_list_is_rejected(folder, text, message):
    write_patients(folder, text.replace("X", index.build_index(folder)["path"][0]))
    with pytest.raises(UserError, match=message):
        index.build_index(folder)


def test_the_digest_follows_the_content(folder):
    before = index.digest(index.build_index(folder))
    file = next((folder / "train" / "NORMAL").iterdir())
    content = file.read_bytes()
    file.write_bytes(content + b"\0")
    assert index.digest(index.build_index(folder)) != before
    file.write_bytes(content)
    assert index.digest(index.build_index(folder)) == before
    file.rename(folder / "train" / "PNEUMONIA" / file.name)
    assert index.digest(index.build_index(folder)) != before


def test_the_digest_follows_each_column_but_the_subtype():
    rows = pd.DataFrame([("train/NORMAL/a.png", 0, "", "a", "train", "00")], columns=COLUMNS[:6])
    digests = [index.digest(rows.assign(**{name: "1"})) for name in COLUMNS[:6]]
    assert len(set(digests)) == len(digests) == 6
    assert digests[2] == index.digest(rows)


def test_the_digest_follows_which_views_are_lateral():
    rows = pd.DataFrame([("train/NORMAL/a.png", 0, "", "a", "train", "00")], columns=COLUMNS[:6])
    frontal, lateral = (index.digest(rows.assign(view=view)) for view in ("PA", "LATERAL"))
    assert frontal == index.digest(rows.assign(view="")) == index.digest(rows)
    assert lateral != frontal


def test_the_source_of_a_folder_is_absolute(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    for data in (folder.name, f"./{folder.name}"):
        assert open_dataset(data).source == str(folder)
    assert open_dataset("sample").source == "sample"


def test_a_table_that_cannot_be_read_is_refused(folder, monkeypatch):
    def deny(*_, **__):
        raise PermissionError(13, "Permission denied")

    write_patients(folder, "path,patient\n")
    monkeypatch.setattr(pd, "read_csv", deny)
    with pytest.raises(UserError, match="it cannot be read .*Permission denied"):
        index.build_index(folder)


def test_what_is_no_data_set_is_refused(tmp_path, folder):
    with pytest.raises(UserError, match="must contain the folders"):
        open_dataset(str(tmp_path / "xrays" / "train" / "NORMAL"))
    with pytest.raises(UserError, match="'nowhere.zip' does not exist"):
        open_dataset("nowhere.zip")
    shutil.rmtree(folder / "test" / "NORMAL")
    with pytest.raises(UserError, match="must contain images in test/NORMAL: it has none"):
        open_dataset(str(folder), required_splits=("train", "test"))
    for file in folder.rglob("*.png"):
        file.unlink()
    with pytest.raises(UserError, match="but no images"):
        open_dataset(str(folder))


def test_the_real_data(real_archive):
    dataset = open_dataset(str(real_archive), required_splits=("train", "test"))
    rows = dataset.rows
    official = rows["split"].replace("val", "train")
    assert official.value_counts().to_dict() == {"train": 5216, "test": 312}
    assert rows.groupby(official)["label"].sum().to_dict() == {"train": 3875, "test": 195}
    assert dataset.unknown_patients == 0
    assert rows.groupby("patient")["split"].nunique().max() == 1
    assert rows.groupby("patient").size().max() == 30
    assert (rows.groupby("sha256").size() > 1).sum() == 25
    unpacked = open_dataset(str(dataset.base.parent))
    assert unpacked.digest == dataset.digest
    assert unpacked.rows.equals(rows)


def test_a_file_name_may_be_the_patient_alone(folder):
    (folder / "train" / "NORMAL" / "IM-0115").write_bytes(b"1")
    assert index.has_unknown_patient(index.build_index(folder)).sum() == 0


def test_images_to_predict_have_names_that_a_csv_can_hold(tmp_path):
    (tmp_path / os.fsdecode(b"K\xf6ln.png")).write_bytes(b"1")
    with pytest.raises(UserError, match=r"K\\udcf6ln.png'. Rename them"):
        inputs.find_images(str(tmp_path), tmp_path / "out.csv")


def test_duplicates_and_copies_elsewhere_are_counted(folder):
    shutil.copytree(folder / "test", folder / "chest_xray" / "test")  # as in Kaggle's archive
    first, second, *_ = sorted((folder / "test" / "NORMAL").iterdir())
    second.write_bytes(first.read_bytes())
    dataset = open_dataset(str(folder), required_splits=("test",))
    copies = sum(1 for _ in (folder / "chest_xray").rglob("*.png"))
    assert dataset.file_counts == {
        "found": 546 + copies,
        "junk": 0,
        "elsewhere": copies,
        "images": 546,
        "duplicates": 1,
    }
