"""The command `train`, and the model that it registers."""

import mlflow
import numpy as np
import pytest
from scipy.special import expit

from pneumo.data.perturb import ALL_PERTURBATIONS, perturb_split
from pneumo.evaluation.metrics import limit_threshold
from pneumo.inference.logits import ensemble_members, predict_logits
from pneumo.tracking import model_files
from tests.support.commands import run_here


@pytest.mark.slow
def test_train(store):
    flags = "--experiment tune --epochs 2 --image_size 32 --dense_widths none --seed 3"
    code, output, errors = run_here("train", *flags.split(), "--model_name", "mine")
    assert (code, errors) == (0, "")
    assert "registered mine version 1 as @challenger" in output
    command, trial = sorted(store.search_runs(["0"]), key=lambda run: run.info.start_time)
    assert command.data.tags["pneumo.kind"] == "train"
    assert command.data.metrics == {}
    assert command.data.params == {}
    assert trial.data.tags["mlflow.parentRunId"] == command.info.run_id
    assert trial.data.tags["pneumo.kind"] == "trial"
    assert not any(tag.startswith("optuna.") for tag in trial.data.tags)
    assert trial.data.params["seed"] == "3"
    assert trial.data.params["dense_widths"] == "none"
    assert not any(name.startswith("test_") for name in trial.data.metrics)
    assert {command.info.status, trial.info.status} == {"FINISHED"}
    version = store.get_model_version_by_alias("mine", "challenger")
    assert version.run_id == trial.info.run_id


@pytest.mark.slow
def test_the_registered_model_averages_all_members_and_their_flipped_images(store, sample):
    flags = "--ensemble_size 2 --horizontal_flip on --flip_tta on --threshold_rule midpoint"
    flags += " --epochs 2 --image_size 32"
    code, output, errors = run_here("train", *flags.split(), "--model_name", "mine")
    assert (code, errors) == (0, "")
    [trial] = store.search_runs(["0"], "tags.`pneumo.kind` = 'trial'")
    history = store.get_metric_history(trial.info.run_id, "epoch/val_auc")
    assert [point.step for point in history] == [1, 2, 3, 4]
    model = model_files.load_model("models:/mine@challenger")
    members = ensemble_members(model.keras_model)
    assert len(members) == 2

    def logits(images):
        views = (images, images[:, :, ::-1])
        return np.mean(
            [predict_logits(member, view) for member in members for view in views], axis=0
        )

    val = sample.decode(32, 0).split("val")
    changed = logits(perturb_split(val, ALL_PERTURBATIONS).images)
    changed = model.calibration.calibrate(changed)
    means = [changed[val.labels == label].mean() for label in (0, 1)]
    probabilities = model.calibration.to_probabilities(logits(val.images))
    expected = limit_threshold(float(expit(np.mean(means))), val.labels, probabilities)
    assert model.settings["threshold"] == pytest.approx(expected, abs=1e-6)
    assert trial.data.metrics["val_threshold"] == model.settings["threshold"]
    table = mlflow.artifacts.load_text(f"runs:/{trial.info.run_id}/val/predictions.csv")
    found = [float(line.rpartition(",")[2]) for line in table.splitlines()[1:]]
    assert found == pytest.approx(probabilities, abs=1e-6)
