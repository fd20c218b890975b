"""A study that is started again: what must be the same, and what is not repeated."""

import json
import re
import tempfile
from pathlib import Path

import optuna
import pytest
from mlflow.exceptions import MlflowException

from pneumo.commands import tune
from pneumo.commands.tune import tune_and_register
from pneumo.experiment import Experiment, load_experiment
from pneumo.runtime.errors import StudyFailedError, UserError
from pneumo.tracking import session, tags
from pneumo.training.config import RunConfig
from pneumo.tuning.limits import StudyLimits
from pneumo.tuning.output.study_table import StudyResult, print_study
from pneumo.tuning.spec import StudySpec
from pneumo.tuning.storage import how_to_continue, open_storage
from pneumo.tuning.study import attach_to_study, warn_of_other_commit
from tests.support.commands import run_here
from tests.support.stores import copy_study
from tests.support.studies import BASE, TINY, text

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_plots")]

OTHER_COMMIT = (
    "warning: study night was created at commit aaaaaaaa, but this process runs bbbbbbbb. "
    "Their trials may not be comparable."
)


@pytest.fixture(scope="module")
def finished(finished, tmp_path_factory):
    """Copy the study for this file alone, because copies of a store share the runs' artifacts."""
    outcome, original = finished
    folder = tmp_path_factory.mktemp("resumed")
    copy_study(original, folder)
    return outcome, folder


def again(sample, result: StudyResult, experiment: Experiment = TINY, **options) -> StudyResult:
    """Resume the study with as many trials as it has, so that none starts."""
    spec = StudySpec(experiment, sample, {})
    return tune_and_register(spec, **{"trials": 2, "name": result.study.study_name, **options})


def stored(result: StudyResult) -> optuna.Study:
    """Load the study from this test's store; the fixture's object writes to the original one."""
    return optuna.load_study(study_name=result.study.study_name, storage=open_storage())


def runs(client) -> set[str]:
    return {run.info.run_id for run in client.search_runs(["0"])}


def test_trials_that_still_wait_at_the_end(study, sample, capsys):
    for dropout in (0.1, 0.2):
        stored(study).enqueue_trial({"dropout": dropout})
    capsys.readouterr()
    print_study(again(sample, study))
    output = capsys.readouterr().out
    assert "could not be written" not in output
    assert (
        "\n2 enqueued trials did not start. To run them, resume the study with more --trials.\n"
        in output
    )
    assert "WAITING" not in output
    assert output.count(" COMPLETE ") == 2
    states = [trial.state.name for trial in stored(study).trials]
    assert states == ["COMPLETE", "COMPLETE", "WAITING", "WAITING"]


def test_a_study_that_mlflow_alone_knows_is_refused(study, client, sample, tmp_path):
    name, before = study.study.study_name, runs(client)
    Path("optuna.db").unlink()
    with pytest.raises(UserError) as raised:
        again(sample, study)
    assert str(raised.value) == (
        f"study '{name}' must be in both stores: MLflow at sqlite:///{tmp_path}/mlflow.db has it "
        f"(run {study.study.user_attrs['run_id']}), but Optuna's database at "
        f"sqlite:///{tmp_path}/optuna.db does not. Set PNEUMO_STORAGE to the database in which it "
        "was created, or use another name."
    )
    assert runs(client) == before
    assert optuna.get_all_study_names(open_storage()) == []


def test_a_study_that_another_process_creates_meanwhile_is_refused(study, sample, monkeypatch):
    monkeypatch.setattr(optuna, "get_all_study_names", lambda _: [])  # it was not there yet
    monkeypatch.setattr(tune, "check_name_is_new", lambda _: None)
    with pytest.raises(UserError, match="another process has created study .* join it with"):
        again(sample, study)


def test_a_study_whose_run_was_deleted_is_refused(study, client, sample):
    run_id = study.study.user_attrs["run_id"]
    client.delete_run(run_id)
    with pytest.raises(UserError, match=f"'mlflow runs restore --run-id {run_id}', or use anoth"):
        again(sample, study)


def test_a_study_that_tune_has_not_created_is_refused(store, sample):
    optuna.create_study(storage=open_storage(), study_name="raw")
    with pytest.raises(UserError, match="study 'raw' is not ready, or tune has not created it"):
        attach_to_study("raw", sample)


def test_an_interrupt_without_a_store_says_how_to_continue(study, sample, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    def fail(_):
        raise MlflowException("away")

    monkeypatch.setattr(tune, "run_search", interrupt)
    monkeypatch.setattr(tune, "reconcile_runs", fail)
    with pytest.raises(KeyboardInterrupt):
        again(sample, study, trials=3)
    name = study.study.study_name
    assert f"to resume the study, {how_to_continue(name)}\n" in capsys.readouterr().out


def test_the_alias_of_the_winner_is_the_present_one(study, client, capsys):
    for forget, ending in (
        (lambda: None, " as @challenger"),
        (lambda: client.delete_registered_model_alias(study.model_name, "challenger"), ""),
        (lambda: client.delete_registered_model(study.model_name), ""),
    ):
        forget()
        print_study(study)
        assert f"registered: {study.model_name} version 1{ending}\n" in capsys.readouterr().out


def test_how_to_continue(monkeypatch, tmp_path):
    monkeypatch.delenv("PNEUMO_STORAGE", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for folder, setting in (
        ("project", ""),
        ("temporary/clone", "PNEUMO_STORAGE=sqlite:///{} and "),
    ):
        place = tmp_path / folder
        place.mkdir(parents=True)
        monkeypatch.chdir(place)
        expected = "run the same command with " + setting.format(place / "optuna.db")
        monkeypatch.setattr(session, "IS_PROJECT_RUN", False)
        assert how_to_continue("a night") == f"{expected}--study 'a night'"
        monkeypatch.setattr(session, "IS_PROJECT_RUN", True)
        assert how_to_continue("a night") == f"{expected}-P study='a night'"
    monkeypatch.setenv("PNEUMO_STORAGE", f"sqlite:///{tmp_path}/kept.db")
    assert how_to_continue("night") == "run the same command with -P study=night"


def other_range(trial, base: RunConfig) -> RunConfig:
    return base.override({**_others(trial), "dropout": trial.suggest_float("dropout", 0.1, 0.8)})


def other_scale(trial, base: RunConfig) -> RunConfig:
    dropout = trial.suggest_float("dropout", 0.1, 0.8, log=True)
    return base.override({**_others(trial), "dropout": dropout})


def other_kind(trial, base: RunConfig) -> RunConfig:
    dropout = trial.suggest_categorical("dropout", [0.25, 0.5])
    return base.override({**_others(trial), "dropout": dropout})


def fewer(trial, base: RunConfig) -> RunConfig:
    return base.override(_others(trial))


def _others(trial) -> dict:
    return {
        "dense_widths": [
            trial.suggest_int(f"dense_widths_{number}", 0, 128, step=32) for number in (1, 2)
        ],
        "augment_strength": trial.suggest_float("augment_strength", 0.0, 1.0, step=0.25),
        "unfreeze_depth": trial.suggest_int("unfreeze_depth", 0, 2),
        "learning_rate": trial.suggest_float("learning_rate", 3e-4, 1e-2, log=True),
    }


@pytest.mark.parametrize(
    ("experiment", "fact"),
    [
        (
            Experiment("tiny", BASE.override({"patience": 2}), TINY.suggest),
            "patience of BASE 3: got 2",
        ),
        (
            Experiment("tiny", BASE, other_scale),
            "search space dropout FloatDistribution(high=0.6, log=False, low=0.0, step=None): "
            "got FloatDistribution(high=0.8, log=True, low=0.1, step=None)",
        ),
        (
            Experiment("tiny", BASE, other_kind),
            "search space dropout FloatDistribution(high=0.6, log=False, low=0.0, step=None): "
            "got CategoricalDistribution(choices=(0.25, 0.5))",
        ),
        (
            Experiment("tiny", BASE, fewer),
            "search space ['augment_strength', 'dense_widths_1', 'dense_widths_2', 'dropout', "
            "'learning_rate', 'unfreeze_depth']: got ['augment_strength', 'dense_widths_1', "
            "'dense_widths_2', 'learning_rate', 'unfreeze_depth']",
        ),
    ],
)
def test_another_base_or_search_space_is_refused(study, sample, experiment, fact):
    base = experiment.base
    if experiment.suggest in (other_scale, other_kind):  # whose range must hold the baseline
        assert base == BASE
    with pytest.raises(UserError) as raised:
        again(sample, study, experiment)
    assert str(raised.value) == (
        f"study '{study.study.study_name}' was created with {fact}. "
        "Use the original value, or another study name."
    )


@pytest.mark.usefixtures("without_training", "without_winner")
def test_other_ranges_are_accepted_and_listed(own_study, sample):
    assert "range before" not in text(own_study.study.user_attrs["run_id"], "study/study.html")
    found = again(sample, own_study, Experiment("tiny", BASE, other_range), trials=3)
    assert len(found.study.trials) == 3
    page = text(found.study.user_attrs["run_id"], "study/study.html")
    [row] = re.findall(r"range before</th></tr>\n(.*)\n</table>", page)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
    assert cells == ["dropout", "2", "0.1 to 0.8", "0.0 to 0.6"]


def test_a_finished_study_gets_a_version_of_another_name(study, client, sample):
    first = client.get_model_version("pneumonia-sample", "1")
    study_run = study.study.user_attrs["run_id"]
    found = again(sample, study, model_name="lungs")
    assert (found.model_name, found.version) == ("lungs", 1)
    assert found.test_metrics == study.test_metrics
    assert found.findings == study.findings
    version = client.get_model_version_by_alias("lungs", "challenger")
    assert (version.source, version.run_id) == (first.source, first.run_id)
    copied_tags = {"pneumo.model_digest", "pneumo.evaluation_run", "test_auc", "val_auc"}
    copied_tags.add("pneumo.test_evaluations")
    assert {name: version.tags[name] for name in copied_tags} == {
        name: first.tags[name] for name in copied_tags
    }
    assert len(client.get_metric_history(study_run, "test_auc")) == 1
    listed = json.loads(
        client.get_logged_model(version.source.removeprefix("models:/")).tags[
            "mlflow.modelVersions"
        ]
    )
    assert [(version["name"], version["version"]) for version in listed] == [
        ("pneumonia-sample", 1),
        ("lungs", 1),
    ]
    # a command that names no model means the one that the study has by now
    assert again(sample, study).model_name == "lungs"
    assert len(client.search_model_versions()) == 2


def fail(*_: object, **__: object) -> None:
    raise MlflowException("the server is away")


def as_if_not_yet_registered(result: StudyResult, client) -> None:
    """Undo the registration of a study's winner."""
    client.delete_registered_model("pneumonia-sample")
    client.set_tag(result.study.user_attrs["run_id"], tags.MODEL_ID, "")
    stored(result).set_user_attr("winner", {})


@pytest.mark.parametrize(
    "place",
    [
        "tracking.registry.update_description",
        "commands.tune.evaluate_model",
        "tracking.results.log_evaluation",
    ],
)
def test_a_failure_before_the_end_of_the_test_evaluation(study, client, sample, monkeypatch, place):
    as_if_not_yet_registered(study, client)
    with (
        monkeypatch.context() as patch,
        pytest.raises(StudyFailedError, match="the server is away"),
    ):
        patch.setattr(f"pneumo.{place}", fail)
        again(sample, study)
    found = again(sample, study)
    assert found.version == 1
    assert found.test_metrics == study.test_metrics
    assert len(client.search_model_versions("name = 'pneumonia-sample'")) == 1
    assert client.get_model_version_by_alias("pneumonia-sample", "challenger").version == 1


def test_a_failure_after_the_test_evaluation(study, client, sample, monkeypatch):
    set_user_attr = optuna.Study.set_user_attr

    def fail_with_metrics(self, key, value) -> None:
        if key == "winner" and "test_metrics" in value:
            fail()
        set_user_attr(self, key, value)

    as_if_not_yet_registered(study, client)
    run_id = study.study.user_attrs["run_id"]
    before = len(client.get_metric_history(run_id, "test_auc"))
    with (
        monkeypatch.context() as patch,
        pytest.raises(StudyFailedError, match="the server is away"),
    ):
        patch.setattr(optuna.Study, "set_user_attr", fail_with_metrics)
        again(sample, study)
    # A second evaluation would be a TypeError
    monkeypatch.setattr("pneumo.commands.tune.evaluate_model", None)
    found = again(sample, study)
    assert (found.version, found.test_metrics) == (1, study.test_metrics)
    assert found.findings == study.findings
    assert len(client.get_metric_history(run_id, "test_auc")) == before + 1


@pytest.mark.parametrize(
    ("begun", "here", "warned"),
    [("a" * 40, "b" * 40, True), ("a" * 40, "a" * 40, False), ("a" * 40, "", False)],
)
def test_a_worker_of_another_commit_is_warned(store, sample, capsys, begun, here, warned):
    ids = []
    for commit in (begun, here):
        run = store.create_run("0", tags={"mlflow.source.git.commit": commit} if commit else {})
        ids.append(run.info.run_id)
    study = optuna.create_study(storage=open_storage(), study_name="night")
    study.set_user_attr("run_id", ids[0])
    capsys.readouterr()
    warn_of_other_commit(study, ids[1])
    assert capsys.readouterr().out == (f"{OTHER_COMMIT}\n" if warned else "")


@pytest.mark.usefixtures("without_pages", "without_training", "without_winner")
def test_each_command_of_another_commit_prints_one_warning(store, sample, monkeypatch, capsys):
    def come_from(commit: str) -> None:
        tags = {"mlflow.source.git.commit": commit}
        monkeypatch.setenv("MLFLOW_RUN_CONTEXT", json.dumps(tags))

    quick = {"epochs": "1", "image_size": "32", "dense_widths": "32"}
    plan = StudySpec(load_experiment("tune"), sample, quick)
    come_from("a" * 40)
    begun = tune_and_register(plan, trials=1, model_name="m", name="night")
    assert OTHER_COMMIT not in capsys.readouterr().out
    come_from("b" * 40)
    tune_and_register(plan, trials=1, model_name="m", name="night")
    assert capsys.readouterr().out.count(OTHER_COMMIT) == 1
    StudyLimits(3).save(begun.study)
    code, output, _ = run_here("worker", "--study", "night", "--data", "sample")
    assert (code, output.count(OTHER_COMMIT)) == (0, 1)
    assert len(begun.study.trials) == 3
