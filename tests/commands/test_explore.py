"""The command `explore`, and its findings in data with many errors."""

import io
import json
import shutil
from collections import Counter
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pneumo.commands import explore
from pneumo.data.dataset import Dataset, open_dataset
from pneumo.evaluation.dataset import profile
from pneumo.reporting import data_report
from tests.support.commands import run_here
from tests.support.studies import files, tags, text

ARTIFACTS = {
    *("explore.html", "numbers.json", "files.csv", "duplicates.csv"),
    *("samples.png", "images_per_patient.png", "sizes.png", "looks.png"),
}
CONSTANT = {"pixels": 9216.0, "aspect": 1.0, "colour": "grey"}


def opened(data) -> Dataset:
    return open_dataset(str(data), required_splits=(), allow_conflicts=True)


def described(data) -> pd.DataFrame:
    return profile.profile_files(opened(data).decode(profile.PROFILE_SIZE, 1))


def statistics(data) -> dict:
    images = opened(data).decode(profile.PROFILE_SIZE, 1)
    return profile.compute_statistics(profile.profile_files(images), images.pixels)


@pytest.fixture(scope="module")
def looked(sample) -> pd.DataFrame:
    return described("sample")


@pytest.fixture(scope="module")
def wrong(sample, tmp_path_factory) -> Path:
    """Make the sample with a file of each kind that must be listed; no test changes it."""
    folder = shutil.copytree(sample.base, tmp_path_factory.mktemp("wrong") / "xrays")
    normal, sick = folder / "train" / "NORMAL", folder / "train" / "PNEUMONIA"
    jpeg = io.BytesIO()
    Image.effect_noise((200, 100), 50).save(jpeg, "JPEG")
    (normal / "IM-9001-0001.jpeg").write_bytes(jpeg.getvalue()[:2000])
    (normal / "notes.txt").write_text("notes")
    (sick / "person9002_virus_1.png").write_bytes(b"")
    Image.effect_noise((96, 64), 50).convert("RGB").save(sick / "person9003_virus_1.png")
    for place in (sick, folder / "test" / "PNEUMONIA"):  # no patient is in both
        Image.effect_noise((96, 96), 50).save(place / "scan 7.png")
    shutil.copy(normal / "IM-0101-0001.png", sick / "person9004_bacteria_1.png")
    shutil.copy(normal / "IM-0102-0001.png", folder / "test" / "NORMAL" / "IM-9005-0001.png")
    shutil.copy(normal / "IM-0104-0001.png", folder / "test" / "NORMAL" / "IM-9006-0001.png")
    Image.effect_noise((96, 96), 50).save(folder / "test" / "NORMAL" / "IM-0103-0009.png")
    return folder


@pytest.fixture(scope="module")
def described_wrong(wrong) -> pd.DataFrame:
    return described(wrong)


@pytest.fixture(scope="module")
def numbers(wrong) -> dict:
    """Return the statistics of the wrong data."""
    return statistics(wrong)


@pytest.mark.slow
def test_a_name_without_a_patient_is_not_shared_between_splits(numbers):
    assert (numbers["unknown_patients"], numbers["shared_patients"]) == (3, ["IM-0103"])


def test_each_problem_is_found(described_wrong):
    found = described_wrong
    issues = dict(profile.file_issues(found))
    assert set(issues) == {
        *("train/NORMAL/IM-9001-0001.jpeg", "train/NORMAL/notes.txt"),
        *("train/PNEUMONIA/person9002_virus_1.png", "train/PNEUMONIA/person9003_virus_1.png"),
        *("train/PNEUMONIA/scan 7.png", "test/PNEUMONIA/scan 7.png"),
    }
    assert issues["train/NORMAL/IM-9001-0001.jpeg"].startswith("unreadable: ")
    assert Counter(path for path, _ in profile.file_issues(found))["train/NORMAL/notes.txt"] == 2
    assert (
        issues["train/PNEUMONIA/person9003_virus_1.png"]
        == "stored in color (RGB): decoded as grayscale"
    )
    rows = found.set_index("path")
    errors = rows.loc[rows["error"] != "", "error"]
    assert set(errors.index) == set(list(issues)[:3])
    assert rows.loc[errors.index, ["width", "mean", "sharpness", "aspect"]].isna().all(axis=None)
    assert rows.loc["train/PNEUMONIA/person9003_virus_1.png", "aspect"] == 1.5
    assert set(profile.constant_columns(found)) == set()


@pytest.mark.slow
def test_copies_across_classes_and_splits(described_wrong):
    copies = profile.find_duplicates(described_wrong)
    assert [list(rows["path"]) for _, rows in copies.groupby("group")] == [
        ["test/NORMAL/IM-9005-0001.png", "train/NORMAL/IM-0102-0001.png"],
        ["test/NORMAL/IM-9006-0001.png", "train/NORMAL/IM-0104-0001.png"],
        ["train/NORMAL/IM-0101-0001.png", "train/PNEUMONIA/person9004_bacteria_1.png"],
    ]
    counts = profile.count_duplicates(copies)
    # whether the third group is cut in two by validation follows from the patients' names
    third_is_cut = copies.loc[copies["group"] == 3, "split"].nunique() > 1
    assert counts == {
        "groups": 3,
        "files": 6,
        "across_splits": 2 + third_is_cut,
        "across_classes": 1,
        "across_patients": 3,
    }


def test_existing_entries_are_counted(looked, sample):
    counts = profile.count_images(looked)
    assert list(counts["split"].unique()) == ["train", "val", "test"]
    assert counts["images"].sum() == 546
    assert counts["patients"].sum() == 340  # of no patient are there two kinds
    sizes = profile.images_per_patient(looked)
    assert sizes.sum() == 546
    assert len(sizes) == 340
    assert sizes.max() == 3
    assert profile.constant_columns(looked) == CONSTANT
    assert dict(profile.file_issues(looked)) == {}
    assert profile.count_duplicates(profile.find_duplicates(looked))["groups"] == 0


def test_intensity_and_sharpness(folder):
    grey = np.full((224, 224), 100, np.uint8)
    edge = grey.copy()
    edge[:, 112:] = 140  # the Laplacian is ± 40 along two columns, else 0
    for name, pixels in (("IM-9001-0001.png", grey), ("IM-9002-0001.png", edge)):
        Image.fromarray(pixels).save(folder / "train" / "NORMAL" / name)
    rows = described(folder).set_index("path")
    flat, step = (rows.loc[f"train/NORMAL/IM-900{number}-0001.png"] for number in (1, 2))
    assert (flat["mean"], flat["sharpness"]) == (100, 0)
    assert step["mean"] == 120
    assert step["sharpness"] == pytest.approx(40**2 * 2 / 224)


def known(split: str, label: int, patients: int, **columns) -> pd.DataFrame:
    names = [f"{split}{label}-{number}" for number in range(patients)]
    table = pd.DataFrame({"patient": names, "split": split, "label": label, "error": ""})
    constant = dict.fromkeys(profile.METADATA_TITLES, 1.0)
    return table.assign(**{"class": ("NORMAL", "PNEUMONIA")[label], **constant, **columns})


def sharper(**splits: tuple[float, float]) -> pd.DataFrame:
    """Make a table in which classes differ in sharpness by so many standard deviations."""
    rng = np.random.default_rng(0)
    return pd.concat(
        known(split, label, 200, sharpness=rng.normal(shift, 1, 200))
        for split, shifts in splits.items()
        for label, shift in enumerate(shifts)
    )


@pytest.mark.slow
def test_metadata_leakage():
    leakage = profile.measure_metadata_leakage(sharper(train=(0, 3), test=(0, 3)))
    assert set(leakage) == {"label", "split", "split_normal", "split_pneumonia"}
    # two normal distributions, three standard deviations apart
    assert leakage["label"]["sharpness"] == pytest.approx(0.983, abs=0.01)
    assert leakage["label"]["auc"] == pytest.approx(0.983, abs=0.02)
    assert leakage["label"]["auc_low"] < leakage["label"]["auc"] < leakage["label"]["auc_high"]
    assert leakage["label"]["bytes"] == 0.5
    for name in ("split", "split_normal", "split_pneumonia"):
        assert leakage[name]["auc"] == pytest.approx(0.5, abs=0.08)


@pytest.mark.slow
def test_the_label_is_predicted_on_training_images():
    table = sharper(train=(0, 3), test=(3, 0))
    assert profile.measure_metadata_leakage(table)["label"]["sharpness"] > 0.95
    alone = profile.measure_metadata_leakage(table[table["split"] == "test"])
    assert set(alone) == {"label"}
    assert alone["label"]["sharpness"] < 0.05


def test_no_patient_is_on_both_sides_of_a_fold():
    """Each patient's own number predicts the label, and no other patient's."""
    one = known("train", 0, 30), known("train", 1, 30)
    table = pd.concat([*one] * 10).sort_values("patient")
    codes = np.random.default_rng(0).permutation(60)
    table["bytes"] = codes[pd.factorize(table["patient"])[0]]
    assert profile.measure_metadata_leakage(table)["label"]["auc"] < 0.7


def test_too_few_patients_give_no_result():
    table = pd.concat([known("train", 0, 4), known("train", 1, 50), known("test", 1, 50)])
    assert set(profile.measure_metadata_leakage(table)) == {"split", "split_pneumonia"}


@pytest.mark.slow
def test_required_findings(numbers):
    found = list(data_report.list_findings(numbers))
    for sentence in (
        "groups of identical files are in more than one split, so a model would be tested on",
        "1 patients are in more than one split, for example IM-0103.",
        "1 groups of identical files are labeled both NORMAL and PNEUMONIA, so one of the",
        "3 groups of identical files belong to different patients.",
        "3 files are unreadable. The report lists the reasons.",
        "3 file names contain no patient id",
        "Some images are stored in color (1 PNEUMONIA). All are decoded as grayscale.",
    ):
        assert [text for text in found if sentence in text], sentence
    assert found[0].startswith(("2 groups", "3 groups"))


@pytest.mark.slow
def test_the_run(store, wrong, described_wrong):
    code, output, errors = run_here("explore", "--data", str(wrong))
    assert (code, errors) == (0, "")
    [made] = store.search_runs(["0"])
    assert made.info.status == "FINISHED"
    assert tags(made) == {
        "pneumo.kind": "explore",
        "pneumo.data": "xrays",
        "pneumo.data_digest": opened(wrong).digest,
        "pneumo.synthetic": "false",
        "pneumo.patients": "unknown",
    }
    assert files(store, made.info.run_id, "explore") == {f"explore/{name}" for name in ARTIFACTS}
    stored = json.loads(text(made.info.run_id, "explore/numbers.json"))
    assert profile.to_metrics(stored) == made.data.metrics
    expected = {"images": 553, "unreadable": 3, "coloured": 1, "duplicate_files": 6}
    assert {name: made.data.metrics[name] for name in expected} == expected
    assert made.data.metrics["test_normal_images"] == 68
    listed = pd.read_csv(io.StringIO(text(made.info.run_id, "explore/files.csv")))
    assert len(listed) == 556
    copies = pd.read_csv(io.StringIO(text(made.info.run_id, "explore/duplicates.csv")))
    page = text(made.info.run_id, "explore/explore.html")
    for path in (
        *copies["path"],
        *(path for path, _ in profile.file_issues(described_wrong)),
    ):
        assert f"<code>{path}</code>" in page
    for finding in data_report.list_findings(stored):
        assert f"note: {finding}\n" in output
        assert f"<li>{finding}</li>" in page
    assert page.count('src="data:image/png;base64,') == 4


@pytest.mark.slow
def test_test_images_alone_and_no_image_at_all(store, folder):
    shutil.rmtree(folder / "train")
    code, output, errors = run_here("explore", "--data", str(folder))
    assert code == 0, errors
    [made] = store.search_runs(["0"])
    assert {name for name in made.data.metrics if name.endswith("_auc")} == {"label_auc"}
    for file in folder.rglob("*.png"):
        file.write_bytes(b"")
    code, _, errors = run_here("explore", "--data", str(folder))
    assert code == 2
    assert errors == (
        "pneumo: xrays must contain readable images: none of its 146 files is readable. "
        "Fix or replace them.\n"
    )


@pytest.mark.slow
def test_the_real_archive(store, real_archive, monkeypatch):
    pictures = {name: b"" for name in ARTIFACTS if name.endswith(".png")}
    monkeypatch.setattr(explore, "draw_figures", lambda *_: pictures)
    explore.explore_dataset(open_dataset(str(real_archive), required_splits=()))
    [made] = store.search_runs(["0"])
    found = made.data.metrics
    copies = {key: value for key, value in found.items() if key.startswith("duplicate_")}
    assert copies == {
        "duplicate_groups": 25,
        "duplicate_files": 52,
        "duplicate_across_splits": 0,
        "duplicate_across_classes": 0,
        "duplicate_across_patients": 0,
    }
    parts = {key: value for key, value in found.items() if key.endswith("_patients")}
    assert parts.pop("unknown_patients") == parts.pop("shared_patients") == 0
    assert sum(parts.values()) == found["patients"] == 3865
    assert (found["images"], found["unreadable"], found["max_images_per_patient"]) == (5528, 0, 30)
    numbers = json.loads(text(made.info.run_id, "explore/numbers.json"))
    assert numbers["constant"] == {"pixels": 224.0**2, "aspect": 1.0, "colour": "RGB"}
    page = mlflow.artifacts.load_text(f"runs:/{made.info.run_id}/explore/explore.html")
    assert "Color is constant" in page
    assert page.count("constant: ") == 2  # size and aspect ratio
    assert "None: all files are readable" in page
    # what no model that has seen the lungs should be proud of
    assert found["label_auc_low"] > 0.85
    assert found["split_normal_auc_low"] > 0.5
