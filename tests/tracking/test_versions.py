"""Which models of a study are kept and registered."""

import json
from pathlib import Path

import mlflow
import pytest

from pneumo.tracking import model_files, registry
from tests.support.studies import SUBJECT, children, files, run_study, tags

pytestmark = pytest.mark.slow


def test_the_winner_alone_is_registered_as_challenger(study, client):
    best = study.study.best_trial
    version = client.get_model_version_by_alias("pneumonia-sample", "challenger")
    assert version.version == study.version == 1
    assert version.run_id == best.user_attrs["run_id"]
    trial, test = client.get_run(version.run_id), client.get_run(study.study.user_attrs["run_id"])
    expected = {key: tags(trial)[key] for key in {*SUBJECT, "pneumo.study", "optuna.trial_number"}}
    expected |= {
        f"val_{name}": str(trial.data.metrics[f"val_{name}"]) for name in registry.DESCRIBED_METRICS
    }
    expected |= {
        f"test_{name}": str(test.data.metrics[f"test_{name}"])
        for name in registry.DESCRIBED_METRICS
    }
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


@pytest.mark.usefixtures("without_plots", "without_pages", "without_training")
def test_the_models_of_the_best_trials_alone_are_kept(store, sample):
    outcome = run_study(sample, trials=4, name="night", keep_models=2)
    ranked = sorted(outcome.study.trials, key=lambda trial: -trial.value)

    def kept() -> set[str]:
        """Return the remaining models, from MLflow's list and from the disk."""
        listed = {
            model.model_id for model in mlflow.search_logged_models(["0"], output_format="list")
        }
        on_disk = {file.parents[1].name for file in Path.cwd().rglob("artifacts/MLmodel")}
        assert listed == on_disk
        return {f"models:/{model_id}" for model_id in listed}

    version = store.get_model_version("pneumonia-sample", "1")
    best = [trial.user_attrs["model_uri"] for trial in ranked[:2]]
    assert kept() == {version.source, *best}
    for address in kept():
        assert model_files.load_model(address).settings["resize"] == "squash"
    run_study(sample, trials=4, name="night", keep_models=1)
    assert kept() == {version.source, best[0]}
    # a trial keeps its run with all else that it found
    for run in children(store, outcome):
        assert "val/predictions.csv" in files(store, run.info.run_id)


@pytest.mark.usefixtures("without_plots")
def test_registering_again_moves_the_challenger(study, client):
    best = study.study.best_trial
    model = model_files.load_model(best.user_attrs["model_uri"])
    again = registry.register(best.user_attrs["run_id"], model, "pneumonia-sample")
    assert (again.title, again.trial.info.run_id) == (
        "pneumonia-sample version 2",
        best.user_attrs["run_id"],
    )
    version = client.get_model_version_by_alias("pneumonia-sample", "challenger")
    assert version.version == 2
    assert client.get_run(best.user_attrs["run_id"]).info.status == "FINISHED"
