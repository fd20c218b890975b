"""Published tables, with small files of the same shape."""

import pytest
from PIL import Image

from pneumo.data import index
from pneumo.data.dataset import open_dataset
from pneumo.runtime.errors import UserError
from tests.support.dicom import radiograph, to_bytes
from tests.support.images import RAMP, file_of

RSNA = """patientId,x,y,width,height,Target
0004cfab-14fd,,,,,0
00313ee0-9eaa,,,,,0
00436515-870c,264.0,152.0,213.0,379.0,1
00436515-870c,562.0,152.0,256.0,453.0,1
00704310-78a8,,,,,1
"""
RSNA_NAMES = ["0004cfab-14fd", "00313ee0-9eaa", "00436515-870c", "00704310-78a8"]

NIH = """Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,\
View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],
00000001_000.png,Cardiomegaly,0,1,058Y,M,PA,2682,2749,0.143,0.143,
00000001_001.png,Cardiomegaly|Pneumonia,1,1,058Y,M,PA,2894,2729,0.143,0.143,
00000002_000.png,No Finding,0,2,414Y,F,AP,2500,2048,0.171,0.171,
00000003_000.png,Hernia,0,3,005Y,F,PA,2582,2991,0.143,0.143,
00000004_000.png,Pneumonia,0,4,7,F,PA,2582,2991,0.143,0.143,
"""


def add(folder, name: str, number: int) -> None:
    pixels = RAMP + number
    is_dicom = name.endswith(".dcm")
    content = to_bytes(radiograph(pixels)) if is_dicom else file_of(Image.fromarray(pixels))
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)


def test_rsna(tmp_path, capsys):
    (tmp_path / "stage_2_train_labels.csv").write_text(RSNA)
    for number, name in enumerate(RSNA_NAMES):
        add(tmp_path, f"stage_2_train_images/{name}.dcm", number)
    rows = index.build_index(index.find_base(tmp_path))
    assert rows["path"].tolist() == [f"stage_2_train_images/{name}.dcm" for name in RSNA_NAMES]
    assert rows["label"].tolist() == [0, 0, 1, 1]
    assert rows["patient"].tolist() == RSNA_NAMES
    said = "RSNA Pneumonia Detection: 4 of its 26,684 images are here"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("name", ["Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv"])
def test_nih(tmp_path, name):
    text = NIH.replace("Patient Gender", "Patient Sex") if "v2020" in name else NIH
    (tmp_path / name).write_text(text)
    for number, stem in enumerate(("00000001_000", "00000001_001", "00000002_000")):
        add(tmp_path, f"images_001/{stem}.png", number)
    add(tmp_path, "images_002/00000004_000.png", 4)
    base = index.find_base(tmp_path)
    positive = index.default_positive(base)
    assert positive == ("Pneumonia",)
    rows = index.build_index(base, positive)
    assert rows["path"].str.rpartition("/")[2].tolist() == [
        *("00000001_000.png", "00000001_001.png", "00000002_000.png", "00000004_000.png"),
    ]
    assert rows["label"].tolist() == [0, 1, 0, 1]
    assert rows["patient"].tolist() == ["1", "1", "2", "4"]
    assert rows["age"].tolist() == ["58", "58", "", "7"]  # the published table has such an age
    assert rows["sex"].tolist() == ["M", "M", "F", "F"]
    assert rows["view"].tolist() == ["PA", "PA", "AP", "PA"]
    assert set(rows["split"]) == {""}
    assert index.build_index(tmp_path, ("Cardiomegaly",))["label"].tolist() == [1, 1, 0, 0]
    (tmp_path / "test_list.txt").write_text("00000002_000.png\n00000004_000.png\n")
    splits = index.build_index(tmp_path, positive)["split"].tolist()
    assert splits == ["train", "train", "test", "test"]
    # A copy of another size deeper in the folder is not taken for the image
    add(tmp_path / "images_001", "small/00000001_000.png", 9)
    assert index.build_index(tmp_path, positive)["path"].tolist() == rows["path"].tolist()
    (tmp_path / "test_list.txt").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="must be a text file with one file name per line"):
        index.build_index(tmp_path, positive)


def test_the_license_is_that_of_the_data_set(tmp_path):
    (tmp_path / "stage_2_train_labels.csv").write_text(
        "patientId,x,y,width,height,Target\n"
        + "".join(f"id{number},,,,,{number % 2}\n" for number in range(12))
    )
    for number in range(12):
        add(tmp_path, f"stage_2_train_images/id{number}.dcm", number)
    dataset = open_dataset(str(tmp_path), required_splits=("train", "test"))
    assert dataset.license == (
        "RSNA Pneumonia Detection, https://www.kaggle.com/c/rsna-pneumonia-detection-challenge: "
        "RSNA, 2018, from images of NIH ChestX-ray14; see the rules of the challenge"
    )
    assert not dataset.has_splits
    assert dataset.rows["split"].value_counts().to_dict() == {"train": 8, "test": 2, "val": 2}


def test_a_folder_with_the_table_alone_is_rejected(tmp_path):
    (tmp_path / "Data_Entry_2017.csv").write_text(NIH)
    with pytest.raises(UserError, match="lists 5 images of NIH ChestX-ray14, but its fold"):
        open_dataset(str(tmp_path))
    (tmp_path / "Data_Entry_2017.csv").write_text("Image,Label\n")
    with pytest.raises(UserError, match="it has no Image Index"):
        open_dataset(str(tmp_path))
