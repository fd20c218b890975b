"""Real studies, read back from the stores they wrote."""

import hashlib
import io
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import keras
import mlflow
import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.distributions import json_to_distribution
from PIL import Image
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from pneumo import interrupt, models, registry, tracking
from pneumo.config import RunConfig
from pneumo.data.pixels import decode
from pneumo.errors import Mistake
from pneumo.evaluate import score, youden_threshold
from pneumo.experiment import Experiment, load_experiment
from pneumo.perturb import BLURRED, EACH, perturbed
from pneumo.study import Goal, Plan, StudyStopped, begin, open_storage
from pneumo.tune import show, tune
from pneumo.work import search_trials
from tests.support.stores import store_in
from tests.support.studies import (
    BASE,
    EPOCH,
    EVALUATED,
    EVIDENCE,
    INTERVALS,
    METRICS,
    PROCESS,
    SUBJECT,
    TINY,
    children,
    files,
    predictions,
    run_study,
    tags,
    text,
)
from tests.support.weights import FILE, SMALL

pytestmark = pytest.mark.slow


def test_what_a_study_leaves_in_mlflow(study, client, sample):
    study_run = client.get_run(study.study.user_attrs["run_id"])
    assert study_run.info.status == "FINISHED"
    assert set(tags(study_run)) == {"pneumo.kind", "pneumo.study", *SUBJECT, *EVALUATED}
    assert tags(study_run)["pneumo.kind"] == "study"
    assert tags(study_run)["pneumo.data"] == "sample"
    assert tags(study_run)["pneumo.data_digest"] == sample.digest
    assert tags(study_run)["pneumo.synthetic"] == "true"
    assert study_run.data.params == {}
    metrics = {name for name in study_run.data.metrics if not name.startswith("system/")}
    assert metrics == {f"test_{name}" for name in METRICS | INTERVALS}
    assert files(client, study_run.info.run_id) == {
        "study.json",
        "study/study.html",
        *(f"test/{name}" for name in EVIDENCE),
    }
    inputs = {one.dataset.name: one for one in study_run.inputs.dataset_inputs}
    assert set(inputs) == {"sample/train", "sample/val", "sample/test"}
    assert {one.dataset.digest for one in inputs.values()} == {sample.digest}
    counts = {tag.key: tag.value for tag in inputs["sample/test"].tags}
    test_rows = sample.rows[sample.rows["split"] == "test"]
    assert counts == {
        "mlflow.data.context": "testing",
        "normal_images": str((test_rows["label"] == 0).sum()),
        "normal_patients": "40",
        "pneumonia_images": str((test_rows["label"] == 1).sum()),
        "pneumonia_patients": "50",
    }
    settings = json.loads(text(study_run.info.run_id, "study.json"))
    assert settings["sampler"]["name"] == "TPESampler"
    assert settings["sampler"]["multivariate"] is True
    assert settings["pruner"]["name"] == "MedianPruner"
    assert settings["data_digest"] == sample.digest


def test_what_a_complete_trial_leaves_in_mlflow(study, client, sample):
    runs = children(client, study)
    assert len(client.search_runs(["0"])) == 3
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    for number, run in enumerate(runs):
        trial = {"optuna.trial_number", "optuna.state", *PROCESS}
        assert set(tags(run)) == {"pneumo.kind", "pneumo.study", *SUBJECT, *trial}
        assert tags(run)["pneumo.kind"] == "trial"
        assert tags(run)["optuna.trial_number"] == str(number)
        assert tags(run)["optuna.state"] == "COMPLETE"
        assert tags(run)["pneumo.host"] == socket.gethostname()
        assert tags(run)["pneumo.pid"] == str(os.getpid())
        assert set(run.data.params) == set(RunConfig.model_fields)
        assert set(run.data.metrics) == EPOCH | {f"val_{name}" for name in METRICS}
        for name in EPOCH:
            history = client.get_metric_history(run.info.run_id, name)
            assert [point.step for point in history] == [1, 2]
        assert files(client, run.info.run_id) == {
            "val/confusion_matrix.png",
            "val/confusion_matrix.json",
            "val/predictions.csv",
            "data/files.csv",
            "data/test_files.csv",
        }
        trained, tested = tracking.read_files(run.info.run_id)
        is_test = sample.rows["split"] == "test"
        used = sample.rows.loc[~is_test, ["split", "patient", "sha256"]]
        assert trained.equals(used.reset_index(drop=True))
        assert list(tested["sha256"]) == list(sample.rows["sha256"][is_test])
    assert BASE.override({**runs[0].data.params, "seed": 0}) == BASE  # trial 0 is the baseline


def test_what_is_stored_agrees_with_itself(study, client, sample):
    for run, split in [
        *((run, "val") for run in children(client, study)),
        (client.get_run(study.study.user_attrs["run_id"]), "test"),
    ]:
        table = predictions(run.info.run_id, split)
        rows = sample.rows[sample.rows["split"] == split].reset_index(drop=True)
        assert table[["path", "patient", "subtype", "label"]].equals(
            rows[["path", "patient", "subtype", "label"]]
        )
        metrics = run.data.metrics
        threshold = metrics[f"{split}_threshold"]
        again = score(table["label"].to_numpy(), table["probability"].to_numpy(), threshold)
        assert again == pytest.approx(
            {name: metrics[f"{split}_{name}"] for name in METRICS}, abs=1e-12, nan_ok=True
        )
        counts = json.loads(text(run.info.run_id, f"{split}/confusion_matrix.json"))
        positive = table["probability"] >= threshold
        assert counts == {
            "tn": int((~positive & (table["label"] == 0)).sum()),
            "fp": int((positive & (table["label"] == 0)).sum()),
            "fn": int((~positive & (table["label"] == 1)).sum()),
            "tp": int((positive & (table["label"] == 1)).sum()),
        }


def test_optuna_agrees_with_mlflow(study, client):
    loaded = optuna.load_study(study_name=study.study.study_name, storage=open_storage())
    facts = loaded.user_attrs
    assert facts.pop("winner") == {
        "trial": loaded.best_trial.number,
        "model_name": "pneumonia-sample",
        "version": 1,
        "test_metrics": study.test_metrics,
        "findings": study.findings,
    }
    found = facts.pop("improvement", {})  # of the best over the baseline, if it is another trial
    if loaded.best_trial.number:
        gain = loaded.best_value - loaded.trials[0].value
        assert found == {
            "difference": pytest.approx(gain),
            "low": found["low"],
            "trials": 1,
            "complete": 2,
        }
        assert found["low"] < gain
    assert facts == {
        "goal": {"trials": 2, "deadline": None, "keep_models": None, "trial_timeout": None},
        "experiment": "tiny",
        "fixed": {},
        "epochs": 2,
        "seed": 0,
        "objective": "val_auc",
        "data_digest": study.study.user_attrs["data_digest"],
        "run_id": study.study.user_attrs["run_id"],
        "base": BASE.as_text(),
        "search_space": facts["search_space"],
        "model_name": "pneumonia-sample",
    }
    space = {it: json_to_distribution(text) for it, text in facts["search_space"].items()}
    assert space == loaded.trials[0].distributions
    for trial, run in zip(loaded.trials, children(client, study), strict=True):
        assert trial.state.name == tags(run)["optuna.state"]
        assert trial.value == run.data.metrics["val_auc"]
        assert trial.user_attrs["run_id"] == run.info.run_id
        assert trial.user_attrs["config"] == run.data.params
        history = client.get_metric_history(run.info.run_id, "epoch/val_auc")
        assert trial.intermediate_values == {point.step: point.value for point in history}
        assert trial.value == max(trial.intermediate_values.values())


def test_the_winner_alone_is_registered_as_challenger(study, client):
    best = study.study.best_trial
    version = client.get_model_version_by_alias("pneumonia-sample", "challenger")
    assert version.version == study.version == 1
    assert version.run_id == best.user_attrs["run_id"]
    trial, test = client.get_run(version.run_id), client.get_run(study.study.user_attrs["run_id"])
    expected = {key: tags(trial)[key] for key in {*SUBJECT, "pneumo.study", "optuna.trial_number"}}
    expected |= {f"val_{it}": str(trial.data.metrics[f"val_{it}"]) for it in registry.TOLD}
    expected |= {f"test_{it}": str(test.data.metrics[f"test_{it}"]) for it in registry.TOLD}
    expected |= {"pneumo.evaluation_run": test.info.run_id, "pneumo.test_evaluations": "1"}
    assert set(version.tags) - set(expected) <= {"pneumo.model_digest", "pneumo.git_commit"}
    assert {key: version.tags[key] for key in expected} == expected
    assert f"Trial {best.number} of study {study.study.study_name}" in version.description
    assert len(client.search_model_versions("name = 'pneumonia-sample'")) == 1
    with_example = [
        model.source_run_id
        for model in mlflow.search_logged_models(["0"], output_format="list")
        if mlflow.models.Model.load(model.model_uri).saved_input_example_info
    ]
    assert with_example == [best.user_attrs["run_id"]]


def test_a_version_is_as_mlflow_makes_one(study, client):
    ours = client.get_model_version_by_alias("pneumonia-sample", "challenger")
    model = client.get_logged_model(ours.source.removeprefix("models:/"))
    listed = [{"name": "pneumonia-sample", "version": ours.version}]
    assert json.loads(model.tags["mlflow.modelVersions"]) == listed
    theirs = mlflow.register_model(model.model_uri, "pneumonia-sample")
    for fact in ("source", "run_id", "current_stage", "status"):
        assert getattr(ours, fact) == getattr(theirs, fact)
    model = client.get_logged_model(ours.source.removeprefix("models:/"))
    listed.append({"name": "pneumonia-sample", "version": theirs.version})
    assert json.loads(model.tags["mlflow.modelVersions"]) == listed


def test_reloaded_models_give_the_trained_ones_probabilities(study, client, sample):
    logged = mlflow.search_logged_models(["0"], output_format="list")
    assert {model.name for model in logged} == {"model"}
    assert len(logged) == 3  # one a trial, and the winner's second
    addresses = [model.model_uri for model in logged] + ["models:/pneumonia-sample@challenger"]
    runs = [model.source_run_id for model in logged] + [study.study.best_trial.user_attrs["run_id"]]
    images = sample.decode(32, 0).split("val").images
    for address, run_id in zip(addresses, runs, strict=True):
        table = predictions(run_id, "val")
        expected = pytest.approx(table["probability"].to_numpy(), abs=1e-6)
        folder = mlflow.artifacts.download_artifacts(address)
        alone = keras.models.load_model(f"{folder}/artifacts/model.keras", safe_mode=True)
        settings = json.loads(Path(folder, "artifacts/settings.json").read_text())
        assert settings["temperature"] != 1  # else the next line could not tell
        assert models.probabilities(alone, images, settings["temperature"]) == expected
        served = mlflow.pyfunc.load_model(address)
        data = [(sample.base / path).read_bytes() for path in table["path"]]
        answer = served.predict(pd.DataFrame({"image": data}))
        assert answer["probability"].to_numpy() == expected
        threshold = client.get_run(run_id).data.metrics["val_threshold"]
        assert set(answer["threshold"]) == {threshold}
        clear = np.abs(table["probability"] - threshold) > 1e-6
        assert answer["label"][clear].equals(
            (table["probability"] >= threshold)[clear].astype(int).astype(object).rename("label")
        )
        assert answer["error"].isna().all()


def test_the_stored_model_works_where_the_project_is_not(study, sample, tmp_path):
    folder = mlflow.artifacts.download_artifacts("models:/pneumonia-sample@challenger")
    table = predictions(study.study.best_trial.user_attrs["run_id"], "val")
    code = (
        "import sys, json, mlflow, pandas as pd\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "data = [open(path, 'rb').read() for path in sys.argv[2:]]\n"
        "answer = model.predict(pd.DataFrame({'image': data}))\n"
        "import pneumo; assert pneumo.__file__.startswith(sys.argv[1])\n"
        "print(json.dumps(answer['probability'].tolist()))\n"
    )
    files = [str(sample.base / path) for path in table["path"]]
    process = subprocess.run(
        [sys.executable, "-I", "-c", code, folder, *files],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    served = json.loads(process.stdout)
    assert served == pytest.approx(table["probability"].tolist(), abs=1e-6)


def test_the_served_model_names_what_it_cannot_read(study, sample):
    served = mlflow.pyfunc.load_model("models:/pneumonia-sample@challenger")
    good = (sample.base / sample.rows["path"][0]).read_bytes()
    answer = served.predict(pd.DataFrame({"image": [b"text", good, good[:200]]}))
    assert list(answer) == ["probability", "label", "threshold", "error"]
    assert answer["error"][0] == "no image format that can be read"
    assert answer["probability"].notna().tolist() == [False, True, False]
    assert answer["label"].notna().tolist() == [False, True, False]
    assert answer["error"].notna().tolist() == [True, False, True]


def test_the_same_seed_repeats_trials_and_metrics(store, sample):
    first, second = run_study(sample, trials=3), run_study(sample, trials=3)
    assert first.test_metrics == second.test_metrics
    assert second.version == 2
    for a, b in zip(children(store, first), children(store, second), strict=True):
        assert a.data.params == b.data.params
        assert a.data.metrics == b.data.metrics
    other = run_study(sample, fixed={"seed": "1"})
    assert children(store, other)[0].data.params["seed"] != a.data.params["seed"]
    assert children(store, other)[1].data.params != children(store, first)[1].data.params


def test_a_study_of_pretrained_networks(store, sample, weights, tmp_path):
    base = BASE.override({**SMALL, "weights": weights, "unfreeze_depth": 1, "epochs": 3})
    experiment = Experiment("pretrained", base, load_experiment("tune_mobilenet").suggest)
    outcome = tune(Plan(experiment, sample, {"weights": str(weights)}), trials=1, model_name="m")
    [run] = children(store, outcome)
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert run.data.params["weights"] == f"{FILE}:{sha256[:8]}"
    assert run.data.params["alpha"] == "0.25"
    history = store.get_metric_history(run.info.run_id, "epoch/val_auc")
    assert [point.step for point in history] == [1, 2, 3]  # through both phases
    [trial] = outcome.study.trials
    assert trial.intermediate_values == {point.step: point.value for point in history}
    # the same file is the same study, wherever it lies
    elsewhere = tmp_path / "elsewhere" / FILE
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(weights.read_bytes())
    plan = Plan(experiment, sample, {"weights": str(elsewhere)})
    name = outcome.study.study_name
    assert tune(plan, trials=1, model_name="m", name=name).version == outcome.version
    elsewhere.write_bytes(b"another")
    elsewhere = elsewhere.rename(tmp_path / FILE)
    plan = Plan(experiment, sample, {"weights": str(elsewhere)})
    with pytest.raises(Mistake, match=f"was begun with fixed .*{FILE}:{sha256[:8]}"):
        tune(plan, trials=1, model_name="m", name=name)


def test_how_images_become_square_goes_with_the_model(store, sample):
    outcome = run_study(sample, trials=1, fixed={"resize": "pad"})
    assert children(store, outcome)[0].data.params["resize"] == "pad"
    file = io.BytesIO()
    Image.fromarray(np.full((20, 40), 200, np.uint8)).save(file, format="PNG")
    model = registry.load("models:/pneumonia-sample@challenger")
    assert model.settings["resize"] == "pad"
    answer = model.predict(None, pd.DataFrame({"image": [file.getvalue()]}))
    padded = decode(file.getvalue(), 32, "pad")[None, ..., None]
    temperature = model.settings["temperature"]
    [expected] = models.probabilities(model.keras_model, padded, temperature)
    assert answer["probability"][0] == pytest.approx(expected, abs=1e-6)
    squashed = decode(file.getvalue(), 32, "squash")[None, ..., None]
    [other] = models.probabilities(model.keras_model, squashed, temperature)
    assert abs(other - expected) > 1e-3  # so that the test can tell


def test_fixed_fields_hold_for_all_trials_and_leave_the_search(store, sample, capsys):
    # three widths, where the search has two dimensions for them
    outcome = run_study(sample, trials=3, fixed={"dropout": "0.1", "dense_widths": "48-24-12"})
    for run in children(store, outcome):
        assert run.data.params["dropout"] == "0.1"
        assert run.data.params["dense_widths"] == "48-24-12"
    for trial in outcome.study.trials:
        assert set(trial.params) == {"augment_strength", "unfreeze_depth", "learning_rate"}
    capsys.readouterr()
    show(outcome)
    title, head, *_ = capsys.readouterr().out.splitlines()
    assert title.strip() == f"Study {outcome.study.study_name}"
    columns = ["trial", "state", "val", "AUC", "augment_strength", "unfreeze_depth"]
    assert head.split() == [*columns, "learning_rate"]


def test_who_has_heard_an_interrupt_begins_no_trial(store, sample, monkeypatch):
    plan = Plan(TINY, sample, {})
    with mlflow.start_run() as parent:
        study = begin(open_storage(), "night", plan, parent.info.run_id)
        Goal(1).set(study)
        monkeypatch.setattr(interrupt._State, "asked", True)
        with pytest.raises(KeyboardInterrupt):
            search_trials(study, plan)
    assert [trial.state.name for trial in study.trials] == ["WAITING"]


def test_three_and_three_trials_equal_six_in_one_go(store, sample):
    whole = run_study(sample, trials=6, name="whole")
    for trials in (3, 6):
        parted = run_study(sample, trials=trials, name="parted")
    assert parted.test_metrics == whole.test_metrics
    first, second = children(store, parted), children(store, whole)
    assert [run.data.params for run in first] == [run.data.params for run in second]
    assert [run.data.metrics for run in first] == [run.data.metrics for run in second]
    assert len({str(run.data.params) for run in first}) == 6


def test_a_continued_study_stays_under_its_own_run(store, sample):
    study_id = run_study(sample, trials=1, name="night").study.user_attrs["run_id"]
    continued = run_study(sample, trials=2, name="night")
    assert continued.study.user_attrs["run_id"] == study_id
    below = store.search_runs(["0"], f"tags.`mlflow.parentRunId` = '{study_id}'")
    kinds = [tags(run)["pneumo.kind"] for run in below]
    assert sorted(kinds) == ["resume", "trial", "trial"]
    assert {run.info.status for run in store.search_runs(["0"])} == {"FINISHED"}
    resume = below[kinds.index("resume")]
    assert set(tags(resume)) == {"pneumo.kind", "pneumo.study", *SUBJECT, *PROCESS}
    assert resume.data.metrics == {}
    assert tags(store.get_run(study_id))["pneumo.kind"] == "study"


def test_test_is_touched_again_only_for_another_winner(store, sample):
    first = run_study(sample, trials=1, name="night")
    study_id = first.study.user_attrs["run_id"]
    again = run_study(sample, trials=1, name="night")
    assert (again.version, again.test_metrics) == (first.version, first.test_metrics)
    assert len(store.get_metric_history(study_id, "test_auc")) == 1
    assert len(store.search_model_versions("name = 'pneumonia-sample'")) == 1
    trials = 1
    while (latest := run_study(sample, trials=trials, name="night")).study.best_trial.number == 0:
        trials += 1
    assert latest.version == 2
    assert latest.test_metrics != first.test_metrics
    stored = store.get_run(study_id).data.metrics
    assert {name: stored[f"test_{name}"] for name in latest.test_metrics} == latest.test_metrics
    assert len(store.get_metric_history(study_id, "test_auc")) == 2
    table = predictions(study_id, "test")
    again = score(
        table["label"].to_numpy(), table["probability"].to_numpy(), stored["test_threshold"]
    )
    assert again["auc"] == stored["test_auc"]


@pytest.mark.parametrize(
    ("fixed", "fact"),
    [
        ({"seed": "1"}, "seed 0: got 1"),
        ({"epochs": "3"}, "epochs 2: got 3"),
        ({"dropout": "0.1"}, "fixed {}: got {'dropout': '0.1'}"),
    ],
)
def test_a_study_is_continued_as_it_was_begun(finished, sample, fixed, fact):
    outcome, folder = finished
    with store_in(folder), pytest.raises(Mistake, match=re.escape(f"was begun with {fact}")):
        run_study(sample, name=outcome.study.study_name, fixed=fixed)


def test_a_study_is_continued_in_the_store_of_its_runs(finished, sample, tmp_path):
    outcome, folder = finished
    with store_in(folder):
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/other.db")
        with pytest.raises(Mistake, match="in another MLflow store.*set MLFLOW_TRACKING_URI"):
            run_study(sample, name=outcome.study.study_name)


def test_a_lost_baseline_is_asked_for_again(store, sample):
    study_id = run_study(sample, trials=1, name="night").study.user_attrs["run_id"]
    # as if trial 0 had been interrupted
    with sqlite3.connect("optuna.db") as database:
        database.execute("UPDATE trials SET state = 'FAIL'")
    outcome = run_study(sample, trials=1, name="night")
    assert [trial.state.name for trial in outcome.study.trials] == ["FAIL", "COMPLETE"]
    params = [run.data.params for run in children(store, study_id)]
    assert BASE.override({**params[1], "seed": 0}) == BASE


def test_what_an_experiment_queues_is_tried_first(store, sample):
    twice = {"dropout": 0.25, "unfreeze_depth": 1, "learning_rate": 0.002}
    queueing = Experiment("tiny", BASE, TINY.suggest, queue=[twice, twice], prune=False)
    plan = Plan(queueing, sample, {"unfreeze_depth": "0"})

    def run() -> optuna.Study:
        return tune(plan, trials=3, model_name="pneumonia-sample", name="queue").study

    fields = plan.baseline() | {"dropout": 0.25, "learning_rate": 0.002}
    study = run()
    assert [trial.params for trial in study.trials] == [plan.baseline(), fields, fields]
    first, second = (trial.user_attrs["config"]["seed"] for trial in study.trials[1:])
    assert first != second
    told = json.loads(text(study.user_attrs["run_id"], "study.json"))
    assert told["pruner"] == {}
    with sqlite3.connect("optuna.db") as database:  # as if the last had been interrupted
        database.execute("UPDATE trials SET state = 'FAIL' WHERE number = 2")
    again = run().trials
    assert [trial.state.name for trial in again] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert again[3].params == fields


def test_blurred_images_choose_the_trial_where_asked_to(store, sample):
    outcome = run_study(sample, fixed={"objective": "val_blurred_auc"}, name="elsewhere")
    assert outcome.study.user_attrs["objective"] == "val_blurred_auc"
    val = sample.decode(BASE.image_size, 0).split("val")
    for trial, run in zip(outcome.study.trials, children(store, outcome), strict=True):
        assert run.data.metrics["val_blurred_auc"] == trial.value
        assert set(METRICS) | {"blurred_auc"} == {
            name.removeprefix("val_") for name in run.data.metrics if name.startswith("val_")
        }
        assert {name for name in run.data.metrics if name.startswith("epoch/")} == {
            *EPOCH,
            "epoch/val_blurred_auc",
        }
        model = registry.load(trial.user_attrs["model_uri"])
        logits = models.logits(model.keras_model, perturbed(val, BLURRED).images)
        assert roc_auc_score(val.labels, logits) == pytest.approx(trial.value, abs=1e-6)
    page = text(outcome.study.user_attrs["run_id"], "study/study.html")
    assert "blurred validation AUC" in page
    with pytest.raises(Mistake, match="begun with objective val_blurred_auc: got val_auc"):
        run_study(sample, name="elsewhere")


def test_the_threshold_is_that_of_perturbed_images(study, client, sample):
    trial = study.study.best_trial
    val = sample.decode(BASE.image_size, 0).split("val")
    model = registry.load(trial.user_attrs["model_uri"])
    logits = models.logits(model.keras_model, perturbed(val, EACH).images)
    expected = youden_threshold(val.labels, expit(logits / model.settings["temperature"]))
    assert model.settings["threshold"] == pytest.approx(expected, abs=1e-6)
    stored = client.get_run(trial.user_attrs["run_id"]).data.metrics["val_threshold"]
    assert stored == model.settings["threshold"]


def test_a_queue_of_what_is_not_suggested_is_refused(sample):
    plan = Plan(Experiment("odd", BASE, TINY.suggest, queue=[{"dropuot": 0.1}]), sample, {})
    with pytest.raises(Mistake, match="QUEUE in experiments/odd.py .* dropout, .*: got 'dropuot'"):
        plan.asked()


def test_a_baseline_outside_the_search_space_is_refused(store, sample):
    wide = Experiment("wide", BASE.override({"dense_widths": "32-32-32"}), TINY.suggest)
    with pytest.raises(Mistake, match="experiments/wide.py must be able to give BASE.*dense_w"):
        tune(Plan(wide, sample, {}), trials=1, model_name="pneumonia-sample")


class FromTheSecondTrial(optuna.pruners.BasePruner):
    """Prunes every trial but the first at its first epoch."""

    def prune(self, study, trial) -> bool:
        return trial.number > 0


def searched(suggest, sample, trials, pruner=None) -> tuple[optuna.Study, str]:
    """The trials of a study without its end, below a run of their own."""
    with mlflow.start_run() as run:
        study = optuna.create_study(
            storage=open_storage(),
            direction="maximize",
            pruner=pruner or optuna.pruners.NopPruner(),
        )
        study.set_user_attr("run_id", run.info.run_id)
        Goal(trials).set(study)
        plan = Plan(Experiment("tiny", BASE, suggest), sample, {})
        search_trials(study, plan)
    return study, run.info.run_id


def test_a_pruned_trial(store, sample):
    study, parent = searched(TINY.suggest, sample, 2, FromTheSecondTrial())
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED"]
    complete, pruned = children(store, parent)
    assert (complete.info.status, pruned.info.status) == ("FINISHED", "KILLED")
    assert tags(pruned)["optuna.state"] == "PRUNED"
    assert set(pruned.data.metrics) == EPOCH
    assert files(store, pruned.info.run_id) == set()
    assert not pruned.outputs.model_outputs
    [model] = mlflow.search_logged_models(["0"], output_format="list")
    assert model.source_run_id == complete.info.run_id


def test_a_failed_trial_has_its_traceback_and_is_replaced(store, sample):
    def suggest(trial, base):
        config = TINY.suggest(trial, base)
        if trial._trial.number == 1:  # what no check let through, Keras refuses
            return config.model_copy(update={"dense_widths": (-1,)})
        return config

    study, parent = searched(suggest, sample, 2)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    failed = children(store, parent)[1]
    assert failed.info.status == "FAILED"
    assert tags(failed)["optuna.state"] == "FAIL"
    assert study.trials[1].value is None
    assert study.trials[1].user_attrs["error"].startswith("ValueError: ")
    assert files(store, failed.info.run_id) == {"traceback.txt"}
    assert "ValueError: " in text(failed.info.run_id, "traceback.txt")


def test_three_failures_alike_stop_a_study(store, sample):
    def suggest(trial, base):
        return base.model_copy(update={"dense_widths": (-1,)})

    with pytest.raises(StudyStopped, match=r"3 trials in a row failed alike \(ValueError: "):
        searched(suggest, sample, 2)
    runs = store.search_runs(["0"], "tags.`optuna.state` = 'FAIL'")
    assert [run.info.status for run in runs] == ["FAILED"] * 3


def test_the_models_of_the_best_trials_alone_are_kept(store, sample):
    outcome = run_study(sample, trials=4, name="night", keep_models=2)
    ranked = sorted(outcome.study.trials, key=lambda trial: -trial.value)

    def kept() -> set[str]:
        """The models that are left, as MLflow lists them and as the disk has them."""
        listed = {it.model_id for it in mlflow.search_logged_models(["0"], output_format="list")}
        on_disk = {file.parents[1].name for file in Path.cwd().rglob("artifacts/MLmodel")}
        assert listed == on_disk
        return {f"models:/{model_id}" for model_id in listed}

    version = store.get_model_version("pneumonia-sample", "1")
    best = [trial.user_attrs["model_uri"] for trial in ranked[:2]]
    assert kept() == {version.source, *best}
    for address in kept():
        assert registry.load(address).settings["resize"] == "squash"
    run_study(sample, trials=4, name="night", keep_models=1)
    assert kept() == {version.source, best[0]}
    # a trial keeps its run with all else that it found
    for run in children(store, outcome):
        assert "val/predictions.csv" in files(store, run.info.run_id)


def test_registering_again_moves_the_challenger(store, sample):
    best = run_study(sample, trials=1).study.best_trial
    model = registry.load(best.user_attrs["model_uri"])
    again = registry.register(best.user_attrs["run_id"], model, "pneumonia-sample")
    assert (again.title, again.trial.info.run_id) == (
        "pneumonia-sample version 2",
        best.user_attrs["run_id"],
    )
    version = store.get_model_version_by_alias("pneumonia-sample", "challenger")
    assert version.version == 2
    assert store.get_run(best.user_attrs["run_id"]).info.status == "FINISHED"
