"""A study that is resumed with more trials."""

import re
import sqlite3

import mlflow
import pytest

from pneumo.evaluation.metrics import compute_metrics
from pneumo.runtime.errors import UserError
from tests.support.stores import store_in
from tests.support.studies import BASE, PROCESS, SUBJECT, children, predictions, run_study, tags

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_plots", "without_pages")]


def test_three_and_two_trials_equal_five_in_one_go(store, sample):
    # the fifth trial is the first one that the four before it may prune
    whole = run_study(sample, trials=5, name="whole")
    for trials in (3, 5):
        parted = run_study(sample, trials=trials, name="parted")
    assert parted.test_metrics == whole.test_metrics
    first, second = children(store, parted), children(store, whole)
    assert [run.data.params for run in first] == [run.data.params for run in second]
    assert [run.data.metrics for run in first] == [run.data.metrics for run in second]
    assert len({str(run.data.params) for run in first}) == 5


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


def test_test_is_evaluated_again_only_for_another_winner(store, sample):
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
    again = compute_metrics(
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
def test_a_study_is_resumed_with_its_original_settings(finished, sample, fixed, fact):
    outcome, folder = finished
    with store_in(folder), pytest.raises(UserError, match=re.escape(f"was created with {fact}")):
        run_study(sample, name=outcome.study.study_name, fixed=fixed)


def test_a_study_is_continued_in_the_store_of_its_runs(finished, sample, tmp_path):
    outcome, folder = finished
    with store_in(folder):
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/other.db")
        with pytest.raises(UserError) as raised:
            run_study(sample, name=outcome.study.study_name)
    assert str(raised.value) == (
        f"study '{outcome.study.study_name}' must be in both stores: Optuna's database at "
        f"sqlite:///{folder}/optuna.db has it, but MLflow at sqlite:///{tmp_path}/other.db does "
        f"not (run {outcome.study.user_attrs['run_id']}). Set MLFLOW_TRACKING_URI to the store "
        "in which it was created, or use another study name."
    )


def test_a_lost_baseline_is_enqueued_again(store, sample):
    study_id = run_study(sample, trials=1, name="night").study.user_attrs["run_id"]
    # as if trial 0 had been interrupted
    with sqlite3.connect("optuna.db") as database:
        database.execute("UPDATE trials SET state = 'FAIL'")
    outcome = run_study(sample, trials=1, name="night")
    assert [trial.state.name for trial in outcome.study.trials] == ["FAIL", "COMPLETE"]
    params = [run.data.params for run in children(store, study_id)]
    assert BASE.override({**params[1], "seed": 0}) == BASE
