"""Data sets that are listed in a table `labels.csv`."""

import csv
import re
import tarfile

import pytest
from PIL import Image

from pneumo.commands.options.parser import parse
from pneumo.data import index
from pneumo.data.attributes import pseudonym
from pneumo.data.dataset import open_dataset
from pneumo.runtime.errors import UserError
from pneumo.tracking import runs
from tests.support.dicom import radiograph, to_bytes
from tests.support.images import RAMP, file_of

N = 10  # images of each class


@pytest.fixture
def base(tmp_path):
    """Make images of ten patients of each class, without a table."""
    folder = tmp_path / "hospital"
    (folder / "images").mkdir(parents=True)
    for number in range(2 * N):
        content = file_of(Image.fromarray(RAMP + number))
        (folder / "images" / f"{number:03}.png").write_bytes(content)
    return folder


def rows_of(**columns) -> list[dict[str, str]]:
    """Return a row for each image; a column is a function of the image's number."""
    return [
        {
            "path": f"images/{number:03}.png",
            "label": "PNEUMONIA" if number < N else "NORMAL",
            **{name: value(number) for name, value in columns.items()},
        }
        for number in range(2 * N)
    ]


def write(folder, rows: list[dict[str, str]], name: str = "labels.csv") -> None:
    with (folder / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def column(folder, name: str, positive: tuple[str, ...] = ()) -> list:
    return index.build_index(folder, positive)[name].tolist()


def test_all_columns(base):
    rows = rows_of(
        patient=lambda number: f"p{number // 2}",
        split=lambda number: "test" if number % 10 < 4 else "train",
        subtype=lambda number: "virus" if number < 3 else "",
        age=lambda number: f"{number}Y",
        sex=lambda number: "female" if number % 2 else "M",
        site=lambda number: "A" if number < 5 else "B",
        device=lambda _: "ACME",
        view=lambda _: "PA",
    )
    write(base, rows)
    found = index.build_index(base)
    assert list(found) == [
        *("path", "label", "subtype", "patient", "split", "sha256"),
        *("age", "sex", "site", "device", "view", "format"),
    ]
    assert found["label"].tolist() == [1] * N + [0] * N
    assert found["patient"].tolist() == [row["patient"] for row in rows]
    assert found["split"].tolist() == [row["split"] for row in rows]
    assert found["subtype"].tolist() == ["virus"] * 3 + [""] * 17
    assert found["age"].tolist() == [str(number) for number in range(2 * N)]
    assert found["sex"].tolist() == ["M", "F"] * N
    assert found["site"].tolist() == ["A"] * 5 + ["B"] * 15
    assert set(found["device"]) == {"ACME"}
    assert set(found["view"]) == {"PA"}
    dataset = open_dataset(str(base), required_splits=("train", "test"))
    assert dataset.rows["split"].value_counts().to_dict() == {"train": 8, "test": 8, "val": 4}
    assert dataset.unknown_patients == 0


@pytest.mark.parametrize("values", [("1", "0"), ("pneumonia", "Normal"), ("PNEUMONIA", "0")])
def test_labels_of_two_kinds(base, values):
    write(base, rows_of(label=lambda number: values[number >= N]))
    assert column(base, "label") == [1] * N + [0] * N


def test_labels_are_mapped(base):
    labels = ["Pneumonia|Mass", "Lung_Opacity", "No Finding", "Mass"]
    write(base, rows_of(label=lambda number: labels[number % 4]))
    assert column(base, "label", ("Pneumonia", "Lung_Opacity")) == [1, 1, 0, 0] * 5
    assert column(base, "label", ("Mass",)) == [1, 0, 0, 1] * 5
    with pytest.raises(UserError, match="found 'Lung_Opacity', 'Mass', 'No Finding'. Re"):
        index.build_index(base)
    with pytest.raises(UserError, match="-P positive=Pneumonia; all others then mean normal"):
        index.build_index(base)
    with pytest.raises(UserError, match="positive must name labels of .*: 'Edema' is not one"):
        index.build_index(base, ("Edema", "Mass"))


def test_positive_needs_a_table(folder):
    with pytest.raises(UserError, match="positive requires a table of labels"):
        index.build_index(folder, ("PNEUMONIA",))


def test_without_splits_a_fifth_of_the_patients_is_test(base, capsys):
    write(base, rows_of(patient=lambda number: f"p{number // 2}"))
    dataset = open_dataset(str(base), required_splits=("train", "test"))
    assert "hospital has no column split: 20% of its patients are test" in capsys.readouterr().out
    rows = dataset.rows
    assert rows.groupby("patient")["split"].nunique().max() == 1
    assert rows.groupby(["split", "label"]).size().to_dict() == {
        **{("test", 0): 2, ("test", 1): 2},
        **{("train", 0): 6, ("train", 1): 6},
        **{("val", 0): 2, ("val", 1): 2},
    }
    assert open_dataset(str(base)).rows.equals(rows)


def test_a_list_of_patients_serves_a_table_without_them(base):
    write(base, rows_of())
    write(base, [{"path": "images/000.png", "patient": "p"}], "patients.csv")
    assert column(base, "patient")[:2] == ["p", "001.png"]
    write(base, rows_of(patient=lambda _: "q"))
    with pytest.raises(UserError, match=r"it has patients\.csv and a table with the column"):
        index.build_index(base)


def test_dicom_fills_what_the_table_leaves_open(base):
    for number in (0, 1):
        dataset = radiograph(RAMP, PatientAge="004Y", PatientSex="F", PatientID="secret")
        (base / "images" / f"{number:03}.png").write_bytes(to_bytes(dataset))
    write(base, rows_of(age=lambda number: "" if number else "7"))
    rows = index.build_index(base)
    assert rows["age"].tolist()[:3] == ["7", "4", ""]
    assert rows["sex"].tolist()[:3] == ["F", "F", ""]
    assert rows["patient"][0] == rows["patient"][1]
    assert re.fullmatch("dicom-[0-9a-f]{16}", rows["patient"][0])
    assert not rows.astype(str).map(lambda text: "secret" in text).to_numpy().any()


def test_a_pseudonym_does_not_follow_from_what_runs_list(base):
    for number in range(4):
        dataset = radiograph(RAMP + number, PatientID=f"N{number}", IssuerOfPatientID="A")
        (base / "images" / f"{number:03}.png").write_bytes(to_bytes(dataset))
    write(base, rows_of())
    rows = index.build_index(base)
    salt = index.digest_of(rows["sha256"])
    ids = [f"{issuer}N{number}" for number in range(9) for issuer in ("A\n", "\n", "")]
    guesses = {pseudonym(patient_id, salt) for patient_id in ids}
    assert rows["patient"].str.startswith("dicom-").sum() == 4
    assert not guesses & set(rows["patient"])
    (base / "images" / "005.png").write_bytes(b"changed")
    assert not set(index.build_index(base)["patient"][:4]) & set(rows["patient"])


def test_equal_ids_of_two_issuers_are_two_patients(base):
    for number in range(4):
        dataset = radiograph(RAMP + number, PatientID="1", IssuerOfPatientID="AB"[number % 2])
        (base / "images" / f"{number:03}.png").write_bytes(to_bytes(dataset))
    write(base, rows_of())
    patients = index.build_index(base)["patient"].tolist()
    assert patients[0] == patients[2] != patients[1] == patients[3]


def test_lateral_views_are_left_out_and_do_not_count_as_unreadable(base):
    write(base, rows_of(view=lambda number: "LATERAL" if number % 10 < 2 else "PA"))
    images = open_dataset(str(base)).decode(32, max_unreadable=0)
    assert images.unreadable == {
        f"images/{number:03}.png": "lateral view; only frontal views are supported"
        for number in (0, 1, 10, 11)
    }
    assert sum(images.counts()["images"]) == 16


def test_the_mapping_of_labels_is_a_tag_of_each_run(base):
    write(base, rows_of(label=lambda number: ["Pneumonia", "Mass", "None"][number % 3]))
    dataset = open_dataset(str(base), positive=("Pneumonia", "Mass"))
    assert runs.data_tags(dataset)["pneumo.positive"] == "Pneumonia,Mass"
    assert dataset.arguments == {"data": str(base), "positive": "Pneumonia,Mass"}
    flags = [f"--{name}={value}" for name, value in dataset.arguments.items()]
    _, options = parse(["worker", "--study", "s", *flags])
    assert (options.data, options.positive) == (str(base), dataset.positive)


def test_a_table_in_an_archive(base, tmp_path):
    write(base, rows_of())
    with tarfile.open(tmp_path / "hospital.tar.gz", "w:gz") as tar:
        tar.add(base, "some/where")
    packed = open_dataset(str(tmp_path / "hospital.tar.gz"))
    assert packed.digest == open_dataset(str(base)).digest


def test_a_table_far_below_class_folders_is_no_data_set(folder):
    before = index.find_base(folder)
    (folder / "extra").mkdir()
    (folder / "extra" / "labels.csv").write_text("path,label\n")
    assert index.find_base(folder) == before == folder
