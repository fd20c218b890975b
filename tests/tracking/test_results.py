"""Lists of files and predictions in a run, read back unchanged."""

import hashlib
import shutil

import mlflow
import numpy as np
import pandas as pd
import pytest

from pneumo.data.dataset import open_dataset
from pneumo.evaluation import bootstrap
from pneumo.evaluation.intervals import metric_intervals
from pneumo.evaluation.metrics import evaluate_predictions
from pneumo.tracking import results
from tests.support.handmade import SIDE, write_images
from tests.support.studies import files

pytestmark = pytest.mark.slow


def test_a_run_lists_the_files_that_it_uses(store, tmp_path):
    folder = write_images(tmp_path / "halves")
    listed = {
        "train/NORMAL/IM-0-1.png": "007",
        "train/NORMAL/IM-1-1.png": "NA",
        "train/NORMAL/IM-2-1.png": 'a,"b"',
        "train/NORMAL/IM-3-1.png": "1e5",
    }
    table = pd.DataFrame(listed.items(), columns=["path", "patient"])
    table.to_csv(folder / "patients.csv", index=False)
    for split in ("train", "test"):
        (folder / split / "NORMAL" / "torn.png").write_bytes(split.encode())
    data = open_dataset(str(folder), required_splits=("train", "test"))
    with mlflow.start_run() as run:
        results.log_files(data.decode(SIDE, 0.1))
    assert files(store, run.info.run_id) == {"data/files.csv", "data/test_files.csv"}
    expected = [
        (split, patient, hashlib.sha256((folder / path).read_bytes()).hexdigest())
        for path, patient, split in data.rows[["path", "patient", "split"]].itertuples(index=False)
        if split != "test" and "torn" not in path
    ]
    assert len(expected) == 80
    assert {split for split, *_ in expected} == {"train", "val"}
    trained, tested = results.read_files(run.info.run_id)
    assert list(trained) == ["split", "patient", "sha256"]
    assert list(trained.itertuples(index=False, name=None)) == expected
    assert set(listed.values()) < set(trained["patient"])
    of_test = [hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("test/*/*")]
    assert list(tested) == ["sha256"]
    assert sorted(tested["sha256"]) == sorted(of_test)  # readable or not


def test_a_run_without_test_images_lists_none(store, tmp_path):
    folder = write_images(tmp_path / "halves")
    shutil.rmtree(folder / "test")
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.glob("train/*/*"))
    numbered = [f"{number:05d}" for number in range(len(paths))]  # as text, zeros and all
    table = pd.DataFrame({"path": paths, "patient": numbered})
    table.to_csv(folder / "patients.csv", index=False)
    with mlflow.start_run() as run:
        results.log_files(open_dataset(str(folder)).decode(SIDE, 0))
    assert files(store, run.info.run_id) == {"data/files.csv"}
    trained, tested = results.read_files(run.info.run_id)
    assert list(trained["patient"]) == numbered
    assert len(tested) == 0


@pytest.mark.parametrize(
    "names",
    [
        ["007", "07", "7", "7.0", "1e5", "+1", "100000"],
        ["NA", "nan", "null", "None", "True", "8 a", "8", 'a,"b"'],
    ],
    ids=["numbers", "words"],
)
def test_predictions_are_read_as_they_were_written(store, tmp_path, names):
    folder = write_images(tmp_path / "halves")
    listed = {}
    for number, file in enumerate(sorted(folder.glob("test/*/*"))):
        renamed = file.rename(file.with_name(f"{number}.png"))  # a name without a subtype
        listed[renamed.relative_to(folder).as_posix()] = names[number % len(names)]
    table = pd.DataFrame(listed.items(), columns=["path", "patient"])
    table.to_csv(folder / "patients.csv", index=False)
    dataset = open_dataset(str(folder), required_splits=("train", "test"))
    test = dataset.decode(SIDE, 0).split("test")
    found = evaluate_predictions(
        test, np.random.default_rng(0).random(len(test.rows)), 0.5, intervals=True
    )
    with mlflow.start_run() as run:
        results.log_evaluation("test", found)
    read = results.read_predictions(run.info.run_id, "test")
    pd.testing.assert_frame_equal(read, found.predictions, check_exact=True)
    assert dict(zip(read["path"], read["patient"], strict=True)) == listed
    assert set(read["subtype"]) == {""}
    assert bootstrap.is_paired(read, found.predictions)
    bounds = metric_intervals(read, 0.5)
    assert bounds == {name: found.metrics[name] for name in bounds}
