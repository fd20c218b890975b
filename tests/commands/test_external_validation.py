"""A model on another hospital's data: comparison with its own test images, and recalibration."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from pneumo.data.dataset import open_dataset
from pneumo.data.sources.sample import _radiograph
from pneumo.data.split import choose_patients
from pneumo.tracking import models, results
from tests.support.commands import run_here
from tests.support.studies import tags, text

pytestmark = pytest.mark.usefixtures("without_plots")

MODEL = "models:/pneumonia-sample/1"
N_PATIENTS = 60  # of each class, with two images


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """Make darker images of other patients, with a table of what is known of them."""
    folder = tmp_path_factory.mktemp("hospital")
    rng = np.random.default_rng(7)
    rows = []
    for number in range(4 * N_PATIENTS):
        is_sick, patient = number % 4 < 2, number // 2
        pixels = _radiograph(rng, "virus" if is_sick else "IM")
        name = f"{number:03}.png"
        Image.fromarray((pixels * 0.8).astype(np.uint8)).save(folder / name)
        rows.append(
            {
                "path": name,
                "label": int(is_sick),
                "patient": f"x{patient}",
                "split": "test",
                "sex": "MF"[patient % 3 == 0],
                "age": str(patient % 20),
                "site": "North" if patient % 6 < 4 else "South",
            }
        )
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def evaluated(store) -> tuple:
    """Return the newest run of an evaluation and its numbers."""
    run = store.search_runs(["0"], "tags.`pneumo.kind` = 'evaluate'", max_results=1)[0]
    return run, json.loads(text(run.info.run_id, "test/metrics.json"))


@pytest.mark.slow
def test_external_validation(study, client, hospital):
    command = ["evaluate", "--data", str(hospital), "--model", MODEL]
    code, output, errors = run_here(*command, "--recalibrate", "0.3")
    assert (code, errors) == (0, "")
    run, numbers = evaluated(client)
    dataset = open_dataset(str(hospital), required_splits=("test",))
    is_chosen = choose_patients(dataset.rows, 0.3)
    chosen = dataset.rows[is_chosen]
    # What is evaluated are the others, as the model itself predicts them
    predictions = results.read_predictions(run.info.run_id, "test")
    assert predictions["path"].tolist() == dataset.rows["path"][~is_chosen].tolist()
    assert numbers["images"] == len(predictions) == 240 - numbers["recalibration"]["images"]
    assert numbers["recalibration"]["images"] == len(chosen) == 72
    assert numbers["recalibration"]["patients"] == chosen["patient"].nunique() == 36
    after = numbers["recalibration"]
    assert after["at_threshold"]["auc"] == pytest.approx(numbers["at_threshold"]["auc"])
    assert after["at_threshold"]["log_loss"] <= numbers["at_threshold"]["log_loss"]
    # No decision may be based on a part of the images
    assert tags(run)["pneumo.external"] == "true"
    assert tags(run)["pneumo.model_id"] == ""
    assert tags(run)["pneumo.recalibration"] == "0.3"
    # The comparison is with the study's own evaluation on test
    internal = numbers["internal"]
    loaded = models.find_model(MODEL)
    own = results.read_metrics(study.study.user_attrs["run_id"], "test")
    assert internal["at_threshold"] == own["at_threshold"]
    assert internal["calibration"] == own["calibration"]
    auc = internal["comparison"]["auc"]
    assert auc["internal"] == own["at_threshold"]["auc"]
    assert auc["external"] == numbers["at_threshold"]["auc"]
    assert auc["difference"] == pytest.approx(auc["external"] - auc["internal"])
    assert loaded.model_id
    [transfer] = [text for text in numbers["findings"] if "than on the test images of its" in text]
    assert f"note: {transfer}" in output
    assert "fitted again on 72 images of 36 patients of these data" in output
    assert set(numbers["groups"]) == {"age", "sex", "site"}
    assert list(numbers["groups"]["age"]) == [
        *("under 1", "1 to 5", "6 to 12", "13 to 17", "18 to 64")
    ]
    counts = numbers["groups"]["site"]
    assert sum(group["images"] for group in counts.values()) == len(predictions)
    page = text(run.info.run_id, "test/evidence.html")
    for title in ("External validation", "Calibration on other data", "Groups of patients and"):
        assert f"<h2>{title}" in page
    assert transfer in page


@pytest.mark.slow
def test_the_comparison_is_at_the_same_threshold(study, client, hospital):
    own = ["evaluate", "--data", "sample", "--model", MODEL]
    other = ["evaluate", "--data", str(hospital), "--model", MODEL]
    assert run_here(*own, "--sensitivity", "0.99")[0] == 0
    assert run_here(*other)[0] == 0
    internal = evaluated(client)[1]["internal"]["at_threshold"]
    plain = results.read_metrics(study.study.user_attrs["run_id"], "test")["at_threshold"]
    assert internal["threshold"] == plain["threshold"]
    assert internal["sensitivity"] == plain["sensitivity"]
    assert run_here(*other, "--sensitivity", "0.99")[0] == 0
    numbers = evaluated(client)[1]
    assert numbers["internal"]["at_threshold"]["threshold"] == numbers["at_threshold"]["threshold"]
    assert numbers["at_threshold"]["threshold"] != plain["threshold"]


@pytest.mark.slow
def test_without_recalibration_all_images_count(study, client, hospital):
    code, output, _ = run_here("evaluate", "--data", str(hospital), "--model", MODEL)
    assert code == 0
    run, numbers = evaluated(client)
    assert numbers["images"] == 240
    assert numbers["recalibration"] is None
    assert numbers["internal"]["comparison"]["auc"]["external"] == numbers["at_threshold"]["auc"]
    assert tags(run)["pneumo.model_id"] == models.find_model(MODEL).model_id
    page = text(run.info.run_id, "test/evidence.html")
    assert "<code>recalibrate=0.3</code> of <code>evaluate</code> fits" in page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--data", "sample"],
            "recalibrate requires external data: pneumonia-sample version 1",
        ),
        (
            ["--prevalence", "0.1"],
            "so it excludes prevalence and preprocessing_skew. Pass only",
        ),
    ],
)
def test_recalibration_on_own_data_or_twice_is_refused(study, client, hospital, flags, message):
    data = [] if "--data" in flags else ["--data", str(hospital)]
    command = ["evaluate", "--model", MODEL, *data, *flags, "--recalibrate", "0.3"]
    code, _, errors = run_here(*command)
    assert code == 2
    assert message in errors
    assert errors.count("\n") == 1
    runs = client.search_runs(["0"], "tags.`pneumo.kind` = 'evaluate'")
    assert all("pneumo.test_looks" not in run.data.tags for run in runs)  # no look was taken
