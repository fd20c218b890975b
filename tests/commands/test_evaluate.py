"""The command `evaluate`, and the artifacts that it stores."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps
from scipy.special import expit, logit
from sklearn import metrics

from pneumo.commands.evaluation import _json, count_out_of_range
from pneumo.data.perturb import perturb_split
from pneumo.evaluation.dataset.overlap import Overlap
from pneumo.evaluation.intervals import format_with_interval, metric_intervals
from pneumo.evaluation.robustness import NUISANCES, describe_reliance, versions
from pneumo.inference.calibration import UNCALIBRATED
from pneumo.inference.logits import predict_proba
from pneumo.reporting.evaluation import findings
from pneumo.reporting.evaluation.page import CAPTIONS
from pneumo.tracking import models
from tests.support.commands import run_here
from tests.support.stores import store_in
from tests.support.studies import (
    EVALUATED,
    EVIDENCE,
    INTERVALS,
    METRICS,
    SUBJECT,
    children,
    files,
    predictions,
    run_study,
    tags,
    text,
    without_pictures,
)

pytestmark = pytest.mark.slow

MODEL = "models:/pneumonia-sample@challenger"


@pytest.fixture(scope="module")
def stores(tmp_path_factory, sample):
    """Run a study of one trial in stores of this module."""
    folder = tmp_path_factory.mktemp("evidence")
    with store_in(folder):
        with without_pictures():
            study = run_study(sample, trials=1)
        yield study, mlflow.MlflowClient()


def evaluated(client, *arguments: str):
    """Run the command once; return its run and its output."""
    before = {run.info.run_id for run in client.search_runs(["0"])}
    code, output, errors = run_here("evaluate", "--model", MODEL, *arguments)
    assert (code, errors) == (0, "")
    [made] = [run for run in client.search_runs(["0"]) if run.info.run_id not in before]
    return made, output


@pytest.fixture(scope="module")
def on_test(stores):
    return evaluated(stores[1], "--data", "sample")


def numbers(made, split="test") -> dict:
    return json.loads(text(made.info.run_id, f"{split}/metrics.json"))


def threshold_metrics(labels, values, threshold) -> dict[str, float]:
    """Compute the metrics with scikit-learn."""
    called = values >= threshold
    return {
        "auc": metrics.roc_auc_score(labels, values),
        "average_precision": metrics.average_precision_score(labels, values),
        "accuracy": metrics.accuracy_score(labels, called),
        "balanced_accuracy": metrics.balanced_accuracy_score(labels, called),
        "sensitivity": metrics.recall_score(labels, called),
        "specificity": metrics.recall_score(labels, called, pos_label=0),
        "ppv": metrics.precision_score(labels, called, zero_division=np.nan),
        "npv": metrics.precision_score(labels, called, pos_label=0, zero_division=np.nan),
        "f1": metrics.f1_score(labels, called),
        "mcc": metrics.matthews_corrcoef(labels, called),
        "brier": metrics.brier_score_loss(labels, values),
        "log_loss": metrics.log_loss(labels, values),
        "threshold": threshold,
    }


def test_what_evaluate_leaves(stores, on_test):
    made, _ = on_test
    assert made.info.status == "FINISHED"
    assert set(tags(made)) == {"pneumo.kind", *SUBJECT, *EVALUATED}
    assert tags(made)["pneumo.kind"] == "evaluate"
    assert tags(made)["pneumo.model"] == "pneumonia-sample version 1"
    assert tags(made)["pneumo.split"] == "test"
    assert tags(made)["pneumo.external"] == "false"
    assert set(made.data.metrics) == {f"test_{name}" for name in METRICS | INTERVALS}
    assert files(stores[1], made.info.run_id) == {f"test/{name}" for name in EVIDENCE}


def test_a_run_of_today_stores_all_that_the_checklist_asks_of_it(on_test):
    made, _ = on_test
    unknown = re.findall(
        r"(\w+(?: \w+)*) \(not known\)", text(made.info.run_id, "test/checklist.md")
    )
    assert set(unknown) <= {"git commit"}  # known only where git is


def test_it_reproduces_the_studys_result(stores, on_test):
    study, client = stores
    winner = client.get_run(study.study.user_attrs["run_id"])
    of_test = {key: value for key, value in winner.data.metrics.items() if key.startswith("test_")}
    assert on_test[0].data.metrics == of_test
    assert predictions(winner.info.run_id, "test").equals(
        predictions(on_test[0].info.run_id, "test")
    )


def test_every_number_follows_from_the_predictions(on_test):
    made, _ = on_test
    found, table = numbers(made), predictions(made.info.run_id, "test")
    table["subtype"] = table["subtype"].fillna("")
    labels, values = table["label"], table["probability"]
    threshold = made.data.metrics["test_threshold"]
    for key, cut in (("at_threshold", threshold), ("at_0.5", 0.5)):
        expected = threshold_metrics(labels, values, cut) | metric_intervals(table, cut)
        expected = {name: None if np.isnan(it) else it for name, it in expected.items()}
        ece = found[key].pop("ece")
        assert found[key] == pytest.approx(expected, abs=1e-9)
        bins = pd.cut(values, np.linspace(0, 1, 11), right=False)
        gaps = (labels - values).groupby(bins, observed=True).sum().abs()
        assert ece == pytest.approx(gaps.sum() / len(values), abs=1e-9)
    false_positives, reached, _ = metrics.roc_curve(labels, values)
    assert found["specificity_at_95_sensitivity"] == pytest.approx(
        max(1 - false_positives[reached >= 0.95]), abs=1e-9
    )
    line = found["platt"]
    raw = expit((logit(values) - line["intercept"]) / line["slope"])
    assert found["uncalibrated"] == pytest.approx(
        {
            "log_loss": metrics.log_loss(labels, raw),
            "brier": metrics.brier_score_loss(labels, raw),
            "ece": found["uncalibrated"]["ece"],
        },
        abs=1e-9,
    )
    assert found["prevalence"] == labels.mean()
    assert (found["images"], found["patients"]) == (len(table), table["patient"].nunique())
    for name, values_there in found["subgroups"].items():
        rows = table[table["subtype"] == name.partition("/")[2]]
        right = (rows["probability"] >= threshold) == rows["label"]
        rate = "sensitivity" if name.startswith("PNEUMONIA") else "specificity"
        assert values_there[rate] == pytest.approx(right.mean(), abs=1e-9)
        assert values_there["images"] == len(rows)


def test_calibration_lowers_the_loss_on_validation(stores, on_test):
    study, client = stores
    found = numbers(on_test[0])
    val = predictions(study.study.best_trial.user_attrs["run_id"], "val")
    line = found["platt"]
    raw = expit((logit(val["probability"]) - line["intercept"]) / line["slope"])
    assert line["prevalence"] == val["label"].mean()
    before = found["validation"]["uncalibrated"]
    assert before["log_loss"] == pytest.approx(metrics.log_loss(val["label"], raw), abs=1e-9)
    assert found["validation"]["log_loss"] < before["log_loss"] - 1e-6
    assert list(np.argsort(raw)) == list(np.argsort(val["probability"]))


@pytest.mark.usefixtures("without_plots")
def test_each_look_at_test_is_counted(stores):
    study, client = stores

    def looks() -> int:
        version = client.get_model_version("pneumonia-sample", "1")
        return int(version.tags["pneumo.test_evaluations"])

    before = looks()
    looked, output = evaluated(client, "--data", "sample")
    assert numbers(looked)["test_evaluations"] == looks() == before + 1
    said = f"test images: {before + 1} of this model, {before + 1} of all models."
    assert said in " ".join(output.split())
    made, output = evaluated(client, "--data", "sample", "--split", "val")
    assert "do not show how it performs on new patients" in " ".join(output.split())
    assert "on new patients" not in text(looked.info.run_id, "test/evidence.html")
    assert numbers(made, "val")["test_evaluations"] == looks() == before + 1
    # on validation the model's own predictions come out again
    best = study.study.best_trial.user_attrs["run_id"]
    assert predictions(made.info.run_id, "val")["probability"].to_numpy() == pytest.approx(
        predictions(best, "val")["probability"].to_numpy(), abs=1e-6
    )
    # a model that is in no registry has a count of its own
    address = study.study.best_trial.user_attrs["model_uri"]
    code, _, errors = run_here("evaluate", "--model", address, "--data", "sample")
    assert code == 0, errors
    model = client.get_logged_model(address.removeprefix("models:/"))
    assert model.tags["pneumo.test_evaluations"] == "1"
    assert looks() == before + 1


@pytest.mark.usefixtures("without_plots")
def test_a_sensitivity_is_kept_on_validation(stores):
    study, client = stores
    made, _ = evaluated(client, "--data", "sample", "--sensitivity", "0.97")
    val = predictions(study.study.best_trial.user_attrs["run_id"], "val")
    values = val["probability"]
    sick = values[val["label"] == 1]
    upper = max(value for value in sick if (sick >= value).mean() >= 0.97)
    lower = values[values < upper].max()
    threshold = made.data.metrics["test_threshold"]
    assert threshold == pytest.approx((upper + lower) / 2, abs=1e-12)
    assert numbers(made)["validation"]["sensitivity"] >= 0.97


@pytest.mark.usefixtures("without_plots")
def test_a_threshold_has_the_greatest_net_benefit_on_validation(stores, on_test):
    study, client = stores
    made, output = evaluated(client, "--data", "sample", "--net_benefit_at", "0.2")
    val = predictions(study.study.best_trial.user_attrs["run_id"], "val")

    def benefit(cut: float) -> float:
        called = val["label"][val["probability"] >= cut]
        return (called == 1).sum() - (called == 0).sum() / 4

    threshold = made.data.metrics["test_threshold"]
    assert benefit(threshold) == max(map(benefit, val["probability"]))
    finding = (
        "The threshold is not the model's own: it has the greatest net benefit at 20.0% on "
        "validation."
    )
    assert numbers(made)["findings"][-1] == finding
    assert finding in " ".join(output.split())
    assert not any("model's own" in finding for finding in numbers(on_test[0])["findings"])


def test_images_far_from_the_training_images_are_counted(stores, on_test, sample):
    loaded = models.find_model(MODEL).model
    images = sample.decode(32, 0).split("test").images
    _, distances = loaded.predict_images(images)
    found = numbers(on_test[0])["input_gate"]
    assert found == {
        "limit": loaded.input_gate.limit,
        "median_distance": pytest.approx(np.median(distances), rel=1e-5),
        "out_of_range": sum(distances > loaded.input_gate.limit),
    }
    page = " ".join(text(on_test[0].info.run_id, "test/evidence.html").split())
    assert f"{found['out_of_range']} of these {len(images)} images are far from" in page
    assert f"their distance exceeds {found['limit']:.1f}, the 99.9 % quantile" in page
    assert f"The median distance is {found['median_distance']:.1f}." in page
    # no image has the median itself
    gate = replace(loaded.input_gate, limit=found["median_distance"])
    assert count_out_of_range(gate, distances)["out_of_range"] == len(images) / 2
    assert count_out_of_range(None, None) is None


@pytest.mark.usefixtures("without_plots")
def test_an_evaluation_at_another_prevalence_decides_nothing(stores, on_test):
    _, client = stores
    version = client.get_model_version("pneumonia-sample", "1")
    made, output = evaluated(client, "--data", "sample", "--prevalence", "0.1")
    found, plain = numbers(made), numbers(on_test[0])
    assert found["platt"] == plain["platt"] | {"adjusted_to": 0.1}
    own = plain["platt"]["prevalence"]
    finding = (
        f"Probabilities and threshold are adjusted from a prevalence of {own:.1%}, for which "
        "the model is calibrated, to 10.0%. The labels do not change. "
        f"Calibration is measured at the prevalence of these images, {found['prevalence']:.1%}."
    )
    assert finding in found["findings"]
    assert finding in " ".join(output.split())
    for name in ("auc", "sensitivity", "specificity"):
        assert found["at_threshold"][name] == pytest.approx(plain["at_threshold"][name])
    assert found["validation"] == plain["validation"]
    assert found["calibration"]["intercept"] > plain["calibration"]["intercept"] + 1
    assert found["calibration"]["intercept_low"] > 0
    assert not any("probabilities are too low" in finding for finding in found["findings"])
    assert tags(made)["pneumo.prevalence"] == "0.1"
    assert tags(made)["pneumo.model_id"] == ""
    after = client.get_model_version("pneumonia-sample", "1")
    changed = {key for key in after.tags if after.tags[key] != version.tags.get(key)}
    assert changed == {"pneumo.test_evaluations"}
    model_id = version.source.removeprefix("models:/")
    shown = {m.value for m in client.get_logged_model(model_id).metrics if m.key == "test_brier"}
    assert shown == {plain["at_threshold"]["brier"]}


@pytest.mark.usefixtures("without_plots")
def test_a_cohort_of_other_images_is_external(stores, sample, tmp_path):
    study, client = stores
    for path in sample.rows["path"][sample.rows["split"] == "test"]:
        target = tmp_path / "cohort" / path.replace("person", "child")  # a name without patient
        target.parent.mkdir(parents=True, exist_ok=True)
        ImageOps.mirror(Image.open(sample.base / path)).save(target)
    (target.parent / "torn.png").write_bytes(b"no image")
    (target.parent / ".DS_Store").write_bytes(b"")
    made, output = evaluated(client, "--data", str(tmp_path / "cohort"))
    assert tags(made)["pneumo.external"] == "true"
    assert tags(made)["pneumo.patients"] == "unknown"
    assert tags(made)["pneumo.synthetic"] == "false"
    page = text(made.info.run_id, "test/evidence.html")
    for line in (
        "External data: none of these images or patients was used to develop the model.",
        "The model was trained on synthetic images",
        "1 images are unreadable",
        "images have no known patient",
    ):
        assert line in output
        assert line in page
    assert "PNEUMONIA/torn.png</code>: not a supported image format" in page
    assert set(numbers(made)["subgroups"]) == {"NORMAL/IM", "NORMAL/NORMAL2-IM"}


class _Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.cells: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.cells.append(data.strip())


def test_the_page_is_self_contained_and_has_the_findings(stores, on_test):
    made, output = on_test
    page, found = text(made.info.run_id, "test/evidence.html"), numbers(made)
    read = _Page(page)
    assert len(read.links) == len(CAPTIONS) == 7
    assert all(link.startswith("data:image/png;base64,") for link in read.links)
    assert "url(" not in page
    here = found["at_threshold"]
    for name in ("auc", "sensitivity", "specificity", "accuracy"):
        shown = f"{here[name]:.3f} ({here[f'{name}_low']:.3f}–{here[f'{name}_high']:.3f})"
        assert read.cells.count(shown) >= 2  # at the top and in the table
    assert f"{found['validation']['auc']:.3f}" in read.cells
    assert "The images are synthetic. These results say nothing about real patients." in read.cells
    assert "License: synthetic images made by pneumo, which show no real patients." in page
    assert re.search(r"Trial 0 of study tiny-\w{8} \(trials: 1 complete\)", page)
    for field in stores[1].get_run(stores[0].study.best_trial.user_attrs["run_id"]).data.params:
        assert f"<code>{field}=" in page
    [found_files] = re.findall(r"<td>found</td><td class=\"n\">(\d+)</td>", page)
    assert found_files == "546"
    assert "threshold" in output
    assert describe_reliance(found["nuisances"]) in read.cells
    assert found["benefit"] in " ".join(page.split())
    place = read.cells.index("calibration slope")
    assert read.cells[place + 1] == format_with_interval(found["calibration"], "slope")
    for name, values in found["nuisances"].items():
        place = read.cells.index(NUISANCES[name].title)
        for pairing in values["pairings"]:
            assert pairing["positive"] in read.cells[place:]


def test_what_is_left_if_nuisances_are_reversed(stores, sample, on_test):
    """Compute the expected values from the stored model and the images, by scikit-learn."""
    model = models.find_model(MODEL).model
    assert model.calibration != UNCALIBRATED  # otherwise all scores would be on one scale anyway
    test = sample.decode(32, 0).split("test")
    scores = {
        version: predict_proba(
            model.keras_model,
            perturb_split(test, (version,)).images if version else test.images,
            model.calibration,
        )
        for version in versions(NUISANCES)
    }
    found = numbers(on_test[0])["nuisances"]
    assert list(found) == list(NUISANCES)
    unchanged = on_test[0].data.metrics["test_auc"]
    for name, (_, *both) in NUISANCES.items():
        aucs = sorted(
            metrics.roc_auc_score(
                test.labels, np.where(test.labels == 1, scores[positive], scores[negative])
            )
            for positive, negative in (both, both[::-1])
        )
        stored = [pairing["auc"] for pairing in found[name]["pairings"]]
        assert stored == pytest.approx(aucs, abs=1e-9)
        assert found[name]["difference"] == pytest.approx(aucs[0] - unchanged, abs=1e-9)


def findings_of(numbers_there, images, trial) -> str:
    seen = Overlap(total=180, images=0, patients=0, own_test=180, is_own_test=True)
    return " ".join(findings.list_findings(numbers_there, images, trial, "test", seen))


def test_the_published_failure_is_reported(stores, sample, on_test):
    """97 % on validation, and on test all images classified as pneumonia."""
    study, client = stores
    here = dict(auc=0.5, accuracy=0.625, sensitivity=1.0, specificity=0.0)
    there = dict(auc=0.99, accuracy=0.974, sensitivity=0.98, specificity=0.96)
    for values in (here, there):
        bounds = {f"{name}_{end}": values[name] for name in values for end in ("low", "high")}
        values |= bounds
    found = {
        **numbers(on_test[0]),
        "at_threshold": here,
        "validation": there,
        "prevalence": 0.625,
    }
    [trial] = children(client, study)
    sentences = findings_of(found, sample.decode(32, 0), trial)
    assert "The model predicts PNEUMONIA for every image." in sentences
    assert "Accuracy 62.5% is not significantly better than 62.5%, " in sentences
    assert "Worse on test than on validation: auc" not in sentences
    assert "AUC 0.500 (0.500–0.500) instead of 0.990" in sentences
    assert "accuracy 0.625 (0.625–0.625) instead of 0.974" in sentences
    assert "sensitivity 1.000" not in sentences
    few = {f"{name}_low": 0.0 for name in ("auc", "accuracy", "sensitivity", "specificity")}
    found["validation"] = there | few  # it could be as low as on test
    assert "Worse on test" not in findings_of(found, sample.decode(32, 0), trial)


def test_json_has_neither_nan_nor_infinity():
    numbers = {"a": math.nan, "b": {"c": -math.inf, "d": 0.5}, "e": ["text"]}
    assert _json(numbers) == {"a": None, "b": {"c": None, "d": 0.5}, "e": ["text"]}
