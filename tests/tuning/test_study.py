"""Trials of a study: its baseline, its enqueued trials, its search, reproducible by seed."""

import hashlib
import json
import sqlite3

import optuna
import pytest

from pneumo.commands.tune import tune_and_register
from pneumo.data.perturb import ALL_PERTURBATIONS, perturb_split
from pneumo.evaluation.metrics import limit_threshold, youden_threshold
from pneumo.evaluation.robustness import ROBUST_NUISANCES, robust_auc, versions
from pneumo.experiment import Experiment, load_experiment
from pneumo.inference.logits import predict_logits
from pneumo.runtime.errors import UserError
from pneumo.tracking import model_files
from pneumo.tuning.output.study_table import print_study
from pneumo.tuning.spec import StudySpec
from tests.support.studies import (
    BASE,
    EPOCH,
    METRICS,
    TINY,
    children,
    run_study,
    text,
    without_registration,
)
from tests.support.training import without_fits
from tests.support.weights import FILE, SMALL

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_plots")]


@pytest.mark.usefixtures("without_pages")
def test_the_same_seed_repeats_trials_and_metrics(study, client, sample):
    with without_registration():
        run_study(sample, trials=1, name="second")
    second = run_study(sample, name="second")  # now in two parts
    assert study.test_metrics == second.test_metrics
    assert (study.version, second.version) == (1, 2)
    for a, b in zip(children(client, study), children(client, second), strict=True):
        assert a.data.params == b.data.params
        assert a.data.metrics == b.data.metrics
    with without_fits(), without_registration():
        other = run_study(sample, fixed={"seed": "1"})
    assert children(client, other)[0].data.params["seed"] != a.data.params["seed"]
    assert children(client, other)[1].data.params != children(client, study)[1].data.params


@pytest.mark.usefixtures("without_pages", "without_winner")
def test_a_study_of_pretrained_networks(store, sample, weights, tmp_path):
    base = BASE.override({**SMALL, "weights": weights, "unfreeze_depth": 1, "epochs": 3})
    experiment = Experiment("pretrained", base, load_experiment("tune_mobilenet").suggest)
    result = tune_and_register(
        StudySpec(experiment, sample, {"weights": str(weights)}), trials=1, model_name="m"
    )
    [run] = children(store, result)
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert run.data.params["weights"] == f"{FILE}:{sha256[:8]}"
    assert run.data.params["alpha"] == "0.25"
    history = store.get_metric_history(run.info.run_id, "epoch/val_auc")
    assert [point.step for point in history] == [1, 2, 3]  # through both phases
    [trial] = result.study.trials
    assert trial.intermediate_values == {point.step: point.value for point in history}
    # the same file is the same study, wherever it lies
    elsewhere = tmp_path / "elsewhere" / FILE
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(weights.read_bytes())
    spec = StudySpec(experiment, sample, {"weights": str(elsewhere)})
    name = result.study.study_name
    again = tune_and_register(spec, trials=1, model_name="m", name=name).study
    assert again.user_attrs["run_id"] == result.study.user_attrs["run_id"]
    assert len(again.trials) == 1
    elsewhere.write_bytes(b"another")
    elsewhere = elsewhere.rename(tmp_path / FILE)
    spec = StudySpec(experiment, sample, {"weights": str(elsewhere)})
    with pytest.raises(UserError, match=f"was created with fixed .*{FILE}:{sha256[:8]}"):
        tune_and_register(spec, trials=1, model_name="m", name=name)


@pytest.mark.usefixtures("without_pages", "without_training", "without_winner")
def test_fixed_fields_hold_for_all_trials_and_leave_the_search(store, sample, capsys):
    # three widths, where the search has two dimensions for them
    result = run_study(sample, trials=3, fixed={"dropout": "0.1", "dense_widths": "48-24-12"})
    for run in children(store, result):
        assert run.data.params["dropout"] == "0.1"
        assert run.data.params["dense_widths"] == "48-24-12"
    for trial in result.study.trials:
        assert set(trial.params) == {"augment_strength", "unfreeze_depth", "learning_rate"}
    capsys.readouterr()
    print_study(result)
    title, head, *_ = capsys.readouterr().out.splitlines()
    assert title.strip() == f"Study {result.study.study_name}"
    columns = ["trial", "state", "val", "AUC", "augment_strength", "unfreeze_depth"]
    assert head.split() == [*columns, "learning_rate"]


@pytest.mark.usefixtures("without_pages", "without_training", "without_winner")
def test_what_an_experiment_queues_is_tried_first(store, sample):
    twice = {"dropout": 0.25, "unfreeze_depth": 1, "learning_rate": 0.002}
    queueing = Experiment("tiny", BASE, TINY.suggest, enqueued_trials=[twice, twice], prune=False)
    spec = StudySpec(queueing, sample, {"unfreeze_depth": "0"})

    def run() -> optuna.Study:
        return tune_and_register(spec, trials=3, model_name="pneumonia-sample", name="queue").study

    fields = spec.baseline() | {"dropout": 0.25, "learning_rate": 0.002}
    study = run()
    assert [trial.params for trial in study.trials] == [spec.baseline(), fields, fields]
    first, second = (trial.user_attrs["config"]["seed"] for trial in study.trials[1:])
    assert first != second
    stored_study = json.loads(text(study.user_attrs["run_id"], "study.json"))
    assert stored_study["pruner"] == {}
    with sqlite3.connect("optuna.db") as database:  # as if the last had been interrupted
        database.execute("UPDATE trials SET state = 'FAIL' WHERE number = 2")
    again = run().trials
    assert [trial.state.name for trial in again] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert again[3].params == fields


@pytest.mark.usefixtures("without_winner")
def test_the_robust_auc_chooses_the_trial_if_it_is_the_objective(store, sample):
    result = run_study(sample, fixed={"objective": "val_robust_auc"}, name="elsewhere")
    assert result.study.user_attrs["objective"] == "val_robust_auc"
    val = sample.decode(BASE.image_size, 0).split("val")
    for trial, run in zip(result.study.trials, children(store, result), strict=True):
        assert run.data.metrics["val_robust_auc"] == trial.value
        assert set(METRICS) | {"robust_auc"} == {
            name.removeprefix("val_") for name in run.data.metrics if name.startswith("val_")
        }
        assert {name for name in run.data.metrics if name.startswith("epoch/")} == {
            *EPOCH,
            "epoch/val_robust_auc",
        }
        model = model_files.load_model(trial.user_attrs["model_uri"])
        logits = {
            it: predict_logits(
                model.keras_model, perturb_split(val, (it,)).images if it else val.images
            )
            for it in versions(ROBUST_NUISANCES)
        }
        assert robust_auc(val.labels, logits) == pytest.approx(trial.value, abs=1e-6)
    page = text(result.study.user_attrs["run_id"], "study/study.html")
    assert "robust validation AUC" in page
    with pytest.raises(UserError, match="created with objective val_robust_auc: got val_auc"):
        run_study(sample, name="elsewhere")


def test_the_threshold_is_that_of_perturbed_images(study, client, sample):
    trial = study.study.best_trial
    val = sample.decode(BASE.image_size, 0).split("val")
    model = model_files.load_model(trial.user_attrs["model_uri"])
    logits = predict_logits(model.keras_model, perturb_split(val, ALL_PERTURBATIONS).images)
    expected = youden_threshold(val.labels, model.calibration.to_probabilities(logits))
    own = model.calibration.to_probabilities(predict_logits(model.keras_model, val.images))
    expected = limit_threshold(expected, val.labels, own)
    assert model.settings["threshold"] == pytest.approx(expected, abs=1e-6)
    stored = client.get_run(trial.user_attrs["run_id"]).data.metrics["val_threshold"]
    assert stored == model.settings["threshold"]


def test_a_queue_of_what_is_not_suggested_is_refused(sample):
    spec = StudySpec(
        Experiment("odd", BASE, TINY.suggest, enqueued_trials=[{"dropuot": 0.1}]), sample, {}
    )
    with pytest.raises(
        UserError, match="ENQUEUED_TRIALS in experiments/odd.py .* dropout, .*: got 'dropuot'"
    ):
        spec.initial_params()


def test_a_baseline_outside_the_search_space_is_refused(store, sample):
    wide = Experiment("wide", BASE.override({"dense_widths": "32-32-32"}), TINY.suggest)
    with pytest.raises(UserError, match="experiments/wide.py must be able to return BASE.*dense_w"):
        tune_and_register(StudySpec(wide, sample, {}), trials=1, model_name="pneumonia-sample")
