"""A study whose trials are cross-validated."""

import re

import numpy as np
import optuna
import pytest
from sklearn.metrics import roc_auc_score

from pneumo.evaluation.comparison import ScoredPredictions
from pneumo.evaluation.intervals import format_with_interval
from pneumo.evaluation.metrics import fit_calibration
from pneumo.inference.logits import ensemble_members, predict_logits
from pneumo.runtime.errors import UserError
from pneumo.tracking import model_files, results
from pneumo.tuning.storage import open_storage
from tests.support.commands import run_here
from tests.support.studies import (
    METRICS,
    children,
    predictions,
    run_study,
    text,
    without_registration,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_plots")]

DATA = ["--data", "sample"]
FOLDS = {"folds": "2"}


def test_a_study_in_two_folds(store, sample):
    with without_registration():
        run_study(sample, name="folds", trials=1, fixed=FOLDS)
    outcome = run_study(sample, name="folds", fixed=FOLDS)
    assert [trial.state.name for trial in outcome.study.trials] == ["COMPLETE"] * 2
    study, runs = outcome.study, children(store, outcome)
    images = sample.decode(32, 0)
    pool, folds = images.validation(2), images.folds(2)
    for trial, run in zip(study.trials, runs, strict=True):
        assert run.data.params["folds"] == "2"
        metrics = {
            name.removeprefix("val_"): value
            for name, value in run.data.metrics.items()
            if name.startswith("val_")
        }
        assert set(metrics) == METRICS | {"robust_auc", "auc_sd"}
        table = predictions(run.info.run_id, "val", "fold")
        assert table["path"].tolist() == pool.rows["path"].tolist()
        model = model_files.load_model(trial.user_attrs["model_uri"])
        networks = ensemble_members(model.keras_model)
        aucs = []
        for number, (network, fold) in enumerate(zip(networks, folds, strict=True)):
            own = table[table["fold"] == str(number)]
            assert own.index.tolist() == fold.val.indices.tolist()
            logits = predict_logits(network, fold.val.images)
            calibrated = fit_calibration(fold.val.labels, logits).to_probabilities(logits)
            assert own["probability"].to_numpy() == pytest.approx(calibrated, abs=1e-5)
            aucs.append(roc_auc_score(fold.val.labels, logits))
        assert trial.value == metrics["auc"] == pytest.approx(np.mean(aucs))
        assert metrics["auc_sd"] == pytest.approx(np.std(aucs, ddof=1))
        # two epochs in each fold, and the mean with the finished fold
        series = trial.intermediate_values
        assert list(series) == [1, 2, 3, 4]
        assert max(series[1], series[2]) == pytest.approx(aucs[0])
        assert max(series[3], series[4]) == pytest.approx(trial.value)
        epochs = store.get_metric_history(run.info.run_id, "epoch/val_auc")
        assert [point.step for point in epochs] == [1, 2, 3, 4]
        assert results.read_epochs(run.info.run_id)["network"].tolist() == [0, 0, 1, 1]
    page = text(study.user_attrs["run_id"], "study/study.html")
    assert "The score of a trial is the mean over its folds and repeats." in page
    scored = ScoredPredictions(
        results.read_predictions(study.best_trial.user_attrs["run_id"], "val"), 0.5
    ).metrics_with_intervals()
    assert scored["auc"] == pytest.approx(study.best_value)
    assert f"validation AUC {format_with_interval(scored, 'auc')}" in page
    evaluated = results.read_metrics(study.user_attrs["run_id"], "test")["validation"]
    assert evaluated["auc"] == pytest.approx(study.best_value)
    with pytest.raises(UserError, match=re.escape("fixed {'folds': '2'}: got {}")):
        run_study(sample, name="folds")
    model = f"models:/pneumonia-sample/{outcome.version}"
    code, _, errors = run_here("evaluate", "--model", model, "--split", "val", *DATA)
    winner = runs[study.best_trial.number].info.run_id
    assert (code, errors) == (
        2,
        f"pneumo: split must not be val for pneumonia-sample version {outcome.version}: it was "
        "trained in 2 folds, and most of its networks were trained on these images. What the "
        f"others predict for them is in val/predictions.csv of its run {winner}.\n",
    )


@pytest.mark.usefixtures("without_pages", "without_winner")
def test_repeats_on_the_validation_split(store, sample):
    outcome = run_study(sample, trials=1, fixed={"repeats": "2"})
    [run] = children(store, outcome)
    table, val = predictions(run.info.run_id, "val"), sample.decode(32, 0).split("val")
    assert table["path"].tolist() == val.rows["path"].tolist()
    model = model_files.load_model(outcome.study.best_trial.user_attrs["model_uri"])
    aucs = [
        roc_auc_score(val.labels, predict_logits(network, val.images))
        for network in ensemble_members(model.keras_model)
    ]
    assert len(aucs) == 2
    assert run.data.metrics["val_auc"] == pytest.approx(np.mean(aucs))
    assert run.data.metrics["val_auc_sd"] == pytest.approx(np.std(aucs, ddof=1))


@pytest.mark.usefixtures("without_pages", "without_training", "without_winner")
def test_a_study_of_before_folds_goes_on(own_study, sample):
    name = own_study.study.study_name
    stored = optuna.load_study(study_name=name, storage=open_storage())
    base = stored.user_attrs["base"]
    assert {base.pop("folds"), base.pop("repeats")} == {"1"}
    stored.set_user_attr("base", base)
    found = run_study(sample, trials=3, name=name).study
    assert [trial.state.name for trial in found.trials] == ["COMPLETE"] * 3
    with pytest.raises(UserError, match=re.escape("fixed {}: got {'repeats': '2'}")):
        run_study(sample, trials=3, name=name, fixed={"repeats": "2"})
