"""`tune` as a command, and its run."""

import subprocess

import pytest

from pneumo.__main__ import main
from tests.support.commands import mlflow_run
from tests.support.paths import ROOT
from tests.support.studies import tags


@pytest.mark.slow
def test_mlflow_run(store):
    parameters = ["trials=2", "epochs=1", "seed=5", "image_size=32", "study=night"]
    process = mlflow_run("tune", *parameters)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    for line in ("Study night", "0 best", "registered: pneumonia-sample version 1", "mlflow ui"):
        assert line in output.replace("1 best", "0 best")
    runs = store.search_runs(["0"])
    [study] = [run for run in runs if run.data.tags["pneumo.kind"] == "study"]
    trials = [run for run in runs if run.data.tags["pneumo.kind"] == "trial"]
    assert len(runs) == 3
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {study.info.run_id}
    # the command's own run, which MLflow made, with the parameters that it gave
    assert study.data.tags["mlflow.project.entryPoint"] == "tune"
    assert study.data.params["trials"] == "2"
    assert study.data.tags["pneumo.study"] == "night"
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.params["image_size"] for run in trials} == {"32"}
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    commits = {run.data.tags["mlflow.source.git.commit"] for run in runs}
    assert commits == {head.stdout.strip()}


@pytest.mark.slow
def test_a_study_that_cannot_begin_says_so_in_its_run(store, folder, capsys):
    for file in list((folder / "train" / "NORMAL").iterdir())[:20]:
        file.write_text("no image")
    assert main(["tune", "--data", str(folder), "--study", "night", "--image_size", "32"]) == 2
    [run] = store.search_runs(["0"])
    assert (run.info.status, run.info.run_name) == ("FAILED", "study night")
    assert tags(run)["pneumo.kind"] == "study"
    said = capsys.readouterr().err.removeprefix("pneumo: ").strip()
    assert tags(run)["pneumo.reason"] == said
    assert "of the images may be unreadable: 20 of 546 are" in said
