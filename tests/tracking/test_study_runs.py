"""Runs of a study and its trials in MLflow, read back."""

import json
import os
import socket

import optuna
import pytest
from optuna.distributions import json_to_distribution

from pneumo.evaluation.metrics import compute_metrics
from pneumo.tracking import results
from pneumo.training.config import RunConfig
from pneumo.tuning.storage import open_storage
from tests.support.studies import (
    BASE,
    EPOCH,
    EVALUATED,
    EVIDENCE,
    INTERVALS,
    METRICS,
    PROCESS,
    SUBJECT,
    children,
    files,
    predictions,
    tags,
    text,
)

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
    for split in ("train", "val", "test"):
        assert inputs[f"sample/{split}"].dataset.digest == sample.images_digest(split)
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
        val_metrics = {f"val_{it}" for it in METRICS | {"robust_auc"}}
        assert set(run.data.metrics) == EPOCH | val_metrics | {"best_epoch"}
        scores = client.get_metric_history(run.info.run_id, "epoch/val_auc")
        best = max(scores, key=lambda point: point.value)
        assert run.data.metrics["best_epoch"] == best.step
        contexts = {given.dataset.name: given.tags[0].value for given in run.inputs.dataset_inputs}
        assert contexts == {"sample/train": "training", "sample/val": "validation"}
        for name in EPOCH:
            history = client.get_metric_history(run.info.run_id, name)
            assert [point.step for point in history] == [1, 2]
        assert files(client, run.info.run_id) == {
            "val/confusion_matrix.png",
            "val/confusion_matrix.json",
            "val/predictions.csv",
            "val/logits.npz",
            "data/files.csv",
            "data/test_files.csv",
        }
        trained, tested = results.read_files(run.info.run_id)
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
        again = compute_metrics(
            table["label"].to_numpy(), table["probability"].to_numpy(), threshold
        )
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
        "goal": {
            **{"trials": 2, "deadline": None, "keep_models": None, "trial_timeout": None},
            **{"begin": 0.0, "end": None, "reserve": 0.0, "epoch_seconds": 0.0},
        },
        "experiment": "tiny",
        "fixed": {},
        "epochs": 2,
        "seed": 0,
        "objective": "val_auc",
        "data_digest": study.study.user_attrs["data_digest"],
        "run_id": study.study.user_attrs["run_id"],
        "base": BASE.to_params(),
        "search_space": facts["search_space"],
        "model_name": "pneumonia-sample",
    }
    space = {key: json_to_distribution(text) for key, text in facts["search_space"].items()}
    assert space == loaded.trials[0].distributions
    for trial, run in zip(loaded.trials, children(client, study), strict=True):
        assert trial.state.name == tags(run)["optuna.state"]
        assert trial.value == run.data.metrics["val_auc"]
        assert trial.user_attrs["run_id"] == run.info.run_id
        assert trial.user_attrs["config"] == run.data.params
        history = client.get_metric_history(run.info.run_id, "epoch/val_auc")
        assert trial.intermediate_values == {point.step: point.value for point in history}
        assert trial.value == max(trial.intermediate_values.values())
