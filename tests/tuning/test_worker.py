"""Trials one after another: pruned, failed, replaced."""

import time

import mlflow
import optuna
import pytest

from pneumo.commands.tune import tune_and_register
from pneumo.experiment import Experiment
from pneumo.reporting.study_report import StudyReport
from pneumo.runtime import signals
from pneumo.runtime.errors import StudyFailedError
from pneumo.tuning import attributes
from pneumo.tuning.limits import StudyLimits
from pneumo.tuning.output.study_page import summarize
from pneumo.tuning.spec import StudySpec
from pneumo.tuning.storage import open_storage
from pneumo.tuning.study import create_study, prepare_resume
from pneumo.tuning.worker import _pruning_callback, run_trials
from tests.support.studies import BASE, EPOCH, TINY, children, files, tags, text

pytestmark = pytest.mark.slow


def test_an_interrupted_worker_starts_no_trial(store, sample, monkeypatch):
    spec = StudySpec(TINY, sample, {})
    with mlflow.start_run() as parent:
        study = create_study(open_storage(), "night", spec, parent.info.run_id)
        StudyLimits(1).save(study)
        monkeypatch.setattr(signals._State, "requested", True)
        with pytest.raises(KeyboardInterrupt):
            run_trials(study, spec)
    assert [trial.state.name for trial in study.trials] == ["WAITING"]


def test_a_trial_of_several_networks_reports_the_mean_so_far():
    trial = optuna.create_study(pruner=optuna.pruners.NopPruner()).ask()
    report = _pruning_callback(trial, BASE.override({"epochs": 3, "objective": "val_robust_auc"}))
    for epoch, score in {1: 0.5, 2: 0.8, 3: 0.7, 4: 0.6, 5: 0.9, 7: 0.1}.items():
        report(epoch, {"val_auc": 0.0, "val_robust_auc": score})
    found = trial.study.trials[0].intermediate_values
    means = {4: (0.8 + 0.6) / 2, 5: (0.8 + 0.9) / 2, 7: (0.8 + 0.9 + 0.1) / 3}
    assert found == pytest.approx({1: 0.5, 2: 0.8, 3: 0.7, **means})


class FromTheSecondTrial(optuna.pruners.BasePruner):
    """Pruner of every trial but the first at its first epoch."""

    def prune(self, study, trial) -> bool:
        return trial.number > 0


def searched(suggest, sample, trials, pruner=None) -> tuple[optuna.Study, str]:
    """Return the trials of a study without its end, below a run of their own."""
    with mlflow.start_run() as run:
        study = optuna.create_study(
            storage=open_storage(),
            direction="maximize",
            pruner=pruner or optuna.pruners.NopPruner(),
        )
        study.set_user_attr("run_id", run.info.run_id)
        StudyLimits(trials).save(study)
        spec = StudySpec(Experiment("tiny", BASE, suggest), sample, {})
        run_trials(study, spec)
    return study, run.info.run_id


def test_a_trial_without_time_is_cut_and_its_hyperparameters_are_tried_again(store, sample):
    with mlflow.start_run() as parent:
        spec = StudySpec(TINY, sample, {"epochs": "5", "image_size": "32"})
        study = create_study(open_storage(), "night", spec, parent.info.run_id)
        StudyLimits(None, end=time.time() + 1).save(study)
        run_trials(study, spec)
        [trial] = study.trials
        assert trial.state.name == "COMPLETE"
        assert trial.last_step == 1
        assert attributes.IS_CUT.read(trial)
        page = StudyReport(summarize(study, spec, "done")).page()
        assert "complete, cut short" in page
        assert "with all of its epochs, for which the\nstudy had no time" in page
        prepare_resume(study, spec)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "WAITING"]
    assert study.trials[1].system_attrs["fixed_params"] == trial.params


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


@pytest.mark.usefixtures("without_training")
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


def test_three_failures_of_the_same_type_stop_a_study(store, sample):
    def suggest(trial, base):
        return base.model_copy(update={"dense_widths": (-1,)})

    with pytest.raises(
        StudyFailedError,
        match=r"3 consecutive trials failed with the same type of error \(ValueError: ",
    ):
        searched(suggest, sample, 2)
    runs = store.search_runs(["0"], "tags.`optuna.state` = 'FAIL'")
    assert [run.info.status for run in runs] == ["FAILED"] * 3


def test_a_study_that_fails_says_how_it_is_continued(store, sample, capsys):
    def suggest(trial, base):
        config = TINY.suggest(trial, base)
        return config.model_copy(update={"dense_widths": (-1,)}) if trial._trial else config

    plan = StudySpec(Experiment("tiny", BASE, suggest), sample, {})
    with pytest.raises(StudyFailedError, match="Fix the cause, and continue the study"):
        tune_and_register(plan, trials=2)
    [study] = store.search_runs(["0"], "tags.`pneumo.kind` = 'study'")
    name = study.data.tags["pneumo.study"]  # which nobody has given
    assert (
        f"\nto resume the study, run the same command with --study {name}\n"
        in capsys.readouterr().out
    )
