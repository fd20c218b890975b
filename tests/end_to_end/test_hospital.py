"""Radiographs as a hospital has them: DICOM files that name their patients."""

import io
import itertools
import json

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom.datadict import DicomDictionary

from pneumo.data.dataset import Dataset, open_dataset
from tests.support.commands import run_here
from tests.support.dicom import LOSSLESS, compressed, radiograph
from tests.support.files import contents_of
from tests.support.studies import SMALL

N_IMAGES = {"train": 60, "test": 40}  # of each class

MARK, DAY = "ZQXJKWV", "19470308"
# A value of each kind of attribute that can name or date a person
PERSONAL = {
    **{kind: f"{MARK}^Anna" for kind in ("PN",)},
    **{kind: f"{MARK} text" for kind in ("LO", "SH", "ST", "LT", "UT", "UC")},
    **{"DA": DAY, "DT": f"{DAY}101112", "UR": f"http://{MARK}.example", "AE": MARK},
}
# What is read to be shown, or decides how pixels are decoded
READ = {"InstitutionName", "Manufacturer", "ManufacturerModelName"}
TECHNICAL = {"LUTExplanation", "ModalityLUTType", "WindowCenterWidthExplanation"}

ALL_PERSONAL = {
    keyword: PERSONAL[kind]
    for tag, (kind, multiplicity, _, retired, keyword) in DicomDictionary.items()
    if kind in PERSONAL and multiplicity == "1" and keyword and not retired
    if tag >> 16 > 2 and keyword not in READ | TECHNICAL
}


def variants():
    """Yield for ever: a photometric interpretation, a transfer syntax, bits, and a window."""
    windows = [
        lambda bits: {},
        lambda bits: {"WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits},
    ]
    yield from itertools.cycle(
        itertools.product((True, False), LOSSLESS, (8, 12, 16), windows),
    )


def to_dicom(pixels: np.ndarray, variant, **attributes) -> bytes:
    inverted, syntax, bits, window = variant
    stored = pixels if bits == 8 else pixels.astype(np.uint16) << (bits - 8)
    if inverted:
        stored = (2**bits - 1 - stored.astype(int)).astype(stored.dtype)
    interpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset = radiograph(
        stored, bits, PhotometricInterpretation=interpretation, **window(bits), **attributes
    )
    return compressed(dataset, syntax)


@pytest.fixture(scope="module")
def hospital(real_archive, tmp_path_factory):
    """Write real images as PNG files and as DICOM files; return both folders."""
    source = open_dataset(str(real_archive))
    folders = [tmp_path_factory.mktemp(name) for name in ("png", "dicom")]
    rows = source.rows.assign(split=source.rows["split"].replace("val", "train"))
    chosen = pd.concat(
        group.head(N_IMAGES[split]) for (split, _), group in rows.groupby(["split", "label"])
    )
    kinds = variants()
    for number, row in enumerate(chosen.itertuples()):
        pixels = np.asarray(Image.open(source.base / row.path).convert("L"))
        place = row.path.rpartition("/")[0]
        for folder in folders:
            (folder / place).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folders[0] / place / f"{number:04}.png")
        attributes = {
            **ALL_PERSONAL,
            "PatientID": f"{MARK}-{row.patient}",
            "PatientAge": f"{number % 12:03}Y",
            "PatientSex": "MF"[number % 2],
            "InstitutionName": f"Hospital {number % 3}",
            "Manufacturer": "ACME",
            "ViewPosition": "AP",
        }
        data = to_dicom(pixels, next(kinds), **attributes)
        (folders[1] / place / f"{number:04}.dcm").write_bytes(data)
    return folders


def pixels_of(dataset: Dataset) -> np.ndarray:
    return np.array(dataset.decode(96, max_unreadable=0).pixels).astype(int)


@pytest.mark.slow
def test_pixels_are_those_of_the_same_images_as_png(hospital):
    as_png, as_dicom = (open_dataset(str(folder)) for folder in hospital)
    assert len(as_dicom.rows) == 200
    assert [path[:-4] for path in as_png.rows["path"]] == [
        path[:-4] for path in as_dicom.rows["path"]
    ]
    difference = np.abs(pixels_of(as_png) - pixels_of(as_dicom))
    assert difference.max() <= 1
    assert difference.mean() < 0.6
    assert set(as_dicom.rows["site"]) == {"Hospital 0", "Hospital 1", "Hospital 2"}
    assert set(as_dicom.rows["view"]) == {"AP"}
    assert as_dicom.unknown_patients == 0
    assert open_dataset(str(hospital[1])).rows.equals(as_dicom.rows)


@pytest.mark.slow
@pytest.mark.usefixtures("without_plots")
def test_no_personal_attribute_is_written_anywhere(
    hospital, store, tmp_path, own_cache, monkeypatch
):
    broken = hospital[1] / "train" / "NORMAL" / "9999.dcm"
    broken.write_bytes(next(hospital[1].glob("train/NORMAL/*.dcm")).read_bytes()[:-2000])
    (hospital[1] / "train" / "NORMAL" / "9998.dcm").write_bytes(
        to_dicom(np.zeros((64, 64), np.uint8), next(variants()), ViewPosition="LL", **ALL_PERSONAL)
    )
    rows = (0x0028).to_bytes(2, "little") + (0x0010).to_bytes(2, "little") + b"US\x02\0"
    name = f"{MARK}^Anna.".encode()
    damaged = to_dicom(np.zeros((64, 64), np.uint8), (False, "explicit", 8, lambda bits: {}))
    text = rows[:4] + b"LO" + len(name).to_bytes(2, "little") + name
    assert damaged.count(rows) == 1
    place = damaged.index(rows)
    (hospital[1] / "train" / "NORMAL" / "9997.dcm").write_bytes(
        damaged[:place] + text + damaged[place + len(rows) + 2 :]
    )
    data = ["--data", str(hospital[1])]
    output = ""
    for command in (
        ["explore", *data],
        ["prepare", *data, "--max_unreadable", "0"],
        ["tune", *data, "--trials", "1", "--epochs", "1", *SMALL],
        ["evaluate", *data, "--model", "models:/pneumonia/1"],
        ["predict", "--images", str(hospital[1] / "test"), "--out", str(tmp_path / "out.csv")]
        + ["--model", "models:/pneumonia/1"],
    ):
        code, *said = run_here(*command)
        output += "".join(said)
        assert code == (2 if command[0] == "prepare" else 0), said
    assert "2 of 203 are, the first is train/NORMAL/9997.dcm (broken DICOM file" in output
    assert "note: 1 of these are lateral views, which are left out everywhere." in output
    written = {"output": output.encode()} | dict(contents_of(tmp_path))
    names = " ".join(written)
    [numbers] = [json.loads(content) for name, content in written.items() if "numbers.json" in name]
    assert list(numbers["attributes"]) == ["site"]
    assert set(numbers["attributes"]["site"]["groups"]) == {f"Hospital {n}" for n in range(3)}
    assert "predictions.csv" in names
    assert "files.csv" in names
    assert "optuna.db" in names
    assert "pixels.npy" in names
    secrets = MARK.encode(), DAY.encode()
    assert [
        name for name, content in written.items() if any(secret in content for secret in secrets)
    ] == []
    table = pd.read_csv(tmp_path / "out.csv")
    assert table["probability"].notna().all()
    assert len(table) == 80


@pytest.mark.slow
def test_a_stored_model_answers_dicom_files(study, real_archive):
    model = mlflow.pyfunc.load_model("models:/pneumonia-sample/1")
    source = open_dataset(str(real_archive))
    pixels = np.asarray(Image.open(source.base / source.rows["path"][0]).convert("L"))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    given = [file.getvalue(), *(to_dicom(pixels, variant) for variant in unique_variants())]
    answer = model.predict(pd.DataFrame({"image": given}), params={"out_of_range": "ignore"})
    assert answer["error"].isna().all()
    assert len(answer) == 73
    assert answer["probability"].astype(float).to_numpy() == pytest.approx(
        answer["probability"][0], abs=0.01
    )


def unique_variants():
    return itertools.islice(variants(), 2 * len(LOSSLESS) * 3 * 2)
