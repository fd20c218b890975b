"""The commands as a person gives them: processes of their own, and what they leave behind."""

import os
import signal
import subprocess
import sys
import time

import mlflow
import numpy as np
import optuna
import pytest
from PIL import Image
from scipy.special import expit

from pneumo import models, registry
from pneumo.__main__ import main
from pneumo.perturb import EACH, perturbed
from tests.support.commands import mlflow_run, run, start
from tests.support.paths import ROOT

HEAVY = ("tensorflow", "keras", "mlflow", "optuna", "pandas", "numpy")


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom pneumo.__main__ import main\n"
        "try: main(['tune', '--help'])\n"
        "except SystemExit: pass\n"
        f"print('loaded:', [name for name in {HEAVY} if name in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout.endswith("loaded: []\n")
    assert "--dropout VALUE" in process.stdout


@pytest.fixture
def mistakes(folder, tmp_path, monkeypatch):
    """A directory with data that is wrong in several ways."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed, where it is
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.txt").write_text("words")
    (tmp_path / "torn.zip").write_bytes(b"PK\x03\x04")
    for file in (folder / "test" / "NORMAL").iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("tune --data nowhere", "there is no 'nowhere' here"),
        ("tune --data empty", "holds no data set"),
        ("tune --data words.txt", "got the file 'words.txt'"),
        ("tune --data torn.zip", "torn.zip could not be unpacked"),
        ("tune --data xrays", "must hold images in test/NORMAL, and has none; add them"),
        ("explore", "the following arguments are required: --data"),
        ("explore --data empty", "holds no data set"),
        ("prepare --data xrays", "must hold images in test/NORMAL, and has none; add them"),
        (
            "tune --experiment tine",
            "experiment must be one of best, cnn, criterion, ",
        ),
        ("tune --experiment cnn", "a study needs suggest(trial, base) in experiments/cnn.py"),
        ("train --dropout 1.5", "dropout must be share of units dropped in the head, 0 to 0.9"),
        ("train --epochs many", "epochs must be passes over the data at most"),
        ("train --unfreeze_depth 3", "unfreeze_depth must be 0 to 2 with backbone cnn: got 3"),
        ("train --weights nowhere.h5", "or the path of a file of weights: got 'nowhere.h5'"),
        (
            "train --experiment tune_mobilenet --weights words.txt",
            "words.txt does not fit mobilenet with alpha 0.25: it is no HDF5 file",
        ),
        ("tune --trials 0", "--trials: must be a whole number from 1 to 1000000000: got '0'"),
        (
            "tune --keep_models 0",
            "--keep_models: must be a whole number from 1 to 1000000000: got '0'",
        ),
        ("promote", "promote needs data to decide on: give --data, or --rollback true"),
        ("promote --rollback maybe", "--rollback: must be true or false: got 'maybe'"),
        ("promote --data sample --margin 2", "--margin: must be a number from 0 to 1: got '2'"),
        ("promote --data sample --margin much", "must be a number from 0 to 1: got 'much'"),
        (
            "promote --data sample --sensitivity_margin -0.1",
            "--sensitivity_margin: must be a number from 0 to 1: got '-0.1'",
        ),
        ("predict --images words.txt", "the following arguments are required: --out"),
        ("predict --images nowhere --out o.csv", "glob of image files: 'nowhere' names none"),
        ("predict --images xrays --out a/o.csv", "in a folder that is there: got 'a/o.csv'"),
        ("predict --images xrays --out xrays", "out must be a CSV file in a folder that is there"),
        ("predict --images xrays --out o.csv --explain yes", "--explain: must be true or false"),
        ("evaluate", "the following arguments are required: --data"),
        ("evaluate --data nowhere", "there is no 'nowhere' here"),
        ("evaluate --data sample --split tset", "--split: must be test, val or train: got 'tset'"),
        ("evaluate --data sample --sensitivity 95", "--sensitivity: must be a share above 0, up"),
        (
            "tune --launcher ray",
            "launcher=ray needs Ray, which is an extra: free its line",
        ),
        ("tune --launcher sun", "--launcher: must be local or ray: got 'sun'"),
        (
            "tune --timeout soon",
            "--timeout: must be a whole number from 1 to 1000000000: got 'soon'",
        ),
        (
            "tune --dropot 0.4",
            "unrecognized arguments: --dropot 0.4; see python -m pneumo tune --help",
        ),
        ("tine", "invalid choice: 'tine'"),
        ("", "the following arguments are required: command"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(mistakes, capsys, arguments, message):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    assert main(arguments.split()) == 2
    for number, handler in handlers.items():
        signal.signal(number, handler)
    errors = capsys.readouterr().err
    assert errors.startswith("pneumo: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert not os.path.exists("mlflow.db")  # refused before a run was made


@pytest.mark.slow
def test_a_budget_that_is_no_number_is_a_mistake(store, monkeypatch):
    monkeypatch.setenv("PNEUMO_FEATURES", "plenty")
    code, _, errors = run("train")
    assert code == 2
    assert "PNEUMO_FEATURES must be a whole number of GiB" in errors
    assert store.search_runs(["0"]) == []


@pytest.mark.slow
def test_a_mistake_found_late_leaves_no_run_running(store, folder):
    for file in list((folder / "train" / "NORMAL").iterdir())[:20]:
        file.write_bytes(b"no image")
    for command in ("prepare", "train", "tune"):
        code, _, errors = run(command, "--data", str(folder))
        assert code == 2
        assert "20 of 546 images cannot be read" in errors
        assert "Traceback" not in errors
    runs = store.search_runs(["0"])
    assert {run.info.status for run in runs} == {"FAILED"}
    assert "RUNNING" not in {run.info.status for run in runs}


@pytest.mark.slow
def test_prepare(store, folder):
    Image.new("L", (8, 8)).save(folder / "train" / "NORMAL" / "scan.png")
    (folder / "train" / "NORMAL" / "IM-9999-0001.jpeg").write_bytes(b"no image")
    code, output, errors = run("prepare", "--data", str(folder), "--image_size", "32")
    assert (code, errors) == (0, "")
    assert "val 82 images, 1 unreadable, 1 of unknown patients" in output
    [prepared] = store.search_runs(["0"])
    assert prepared.info.status == "FINISHED"
    assert {k: v for k, v in prepared.data.tags.items() if k.startswith("pneumo.")} == {
        "pneumo.kind": "prepare",
        "pneumo.data": "xrays",
        "pneumo.data_digest": prepared.inputs.dataset_inputs[0].dataset.digest,
        "pneumo.synthetic": "false",
        "pneumo.patients": "unknown",
    }
    table = mlflow.artifacts.load_text(f"runs:/{prepared.info.run_id}/data/unreadable.csv")
    assert table == (
        "path,reason\ntrain/NORMAL/IM-9999-0001.jpeg,no image format that can be read\n"
    )


@pytest.mark.slow
def test_train(store):
    flags = "--experiment tune --epochs 2 --image_size 32 --dense_widths none --seed 3"
    code, output, errors = run("train", *flags.split(), "--model_name", "mine")
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
def test_what_is_registered_is_the_mean_of_all_members_and_their_mirror_images(store, sample):
    flags = "--members 2 --mirror on --threshold_rule midpoint --epochs 2 --image_size 32"
    code, output, errors = run("train", *flags.split(), "--model_name", "mine")
    assert (code, errors) == (0, "")
    [trial] = store.search_runs(["0"], "tags.`pneumo.kind` = 'trial'")
    history = store.get_metric_history(trial.info.run_id, "epoch/val_auc")
    assert [point.step for point in history] == [1, 2, 3, 4]
    model = registry.load("models:/mine@challenger")
    members = models.members_of(model.keras_model)
    assert len(members) == 2

    def logits(images):
        views = (images, images[:, :, ::-1])
        return np.mean([models.logits(it, view) for it in members for view in views], axis=0)

    val = sample.decode(32, 0).split("val")
    divisor = model.settings["temperature"]
    changed = logits(perturbed(val, EACH).images) / divisor
    means = [changed[val.labels == label].mean() for label in (0, 1)]
    assert model.settings["threshold"] == pytest.approx(expit(np.mean(means)), abs=1e-6)
    assert trial.data.metrics["val_threshold"] == model.settings["threshold"]
    table = mlflow.artifacts.load_text(f"runs:/{trial.info.run_id}/val/predictions.csv")
    found = [float(line.rpartition(",")[2]) for line in table.splitlines()[1:]]
    assert found == pytest.approx(expit(logits(val.images) / divisor), abs=1e-6)


LONG = ["study=night", "epochs=1000", "patience=1000", "image_size=32"]


def started_study(store, through_mlflow: bool = False) -> subprocess.Popen:
    """A study whose first trial is at work, in a process group of its own."""
    if through_mlflow:
        process = mlflow_run("tune", *LONG)
    else:
        flags = [word for parameter in LONG for word in f"--{parameter}".split("=")]
        process = start("tune", *flags, start_new_session=True)
    while not store.search_runs(["0"], "metrics.`epoch/val_auc` > 0"):
        time.sleep(0.2)
        assert process.poll() is None, process.stderr.read()
    return process


def runs_of(store) -> list:
    return sorted(store.search_runs(["0"]), key=lambda run: run.info.start_time)


def trials_of(study: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=study, storage=os.environ["PNEUMO_STORAGE"]).trials


@pytest.mark.slow
@pytest.mark.parametrize("through_mlflow", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_nothing_stays_running(store, number, through_mlflow):
    process = started_study(store, through_mlflow)
    os.killpg(process.pid, number)  # as a terminal does
    output, errors = process.communicate(timeout=60)  # training would take minutes
    assert process.returncode != 0
    option = "-P study=night" if through_mlflow else "--study night"
    assert f"to continue, give the same command with {option}\n" in output
    assert "pneumo: interrupted" in errors
    if not through_mlflow:
        assert process.returncode == 1
        assert "Traceback" not in errors
    [ended] = trials_of("night")
    assert (ended.state.name, ended.user_attrs["error"]) == ("FAIL", "interrupted")
    study, trial = runs_of(store)
    assert trial.info.status == "KILLED"
    # `mlflow run` gives its own run a status of its own
    assert study.info.status in ({"KILLED", "FAILED"} if through_mlflow else {"KILLED"})
    assert trial.data.tags["optuna.state"] == "FAIL"
    assert not store.list_artifacts(trial.info.run_id)


@pytest.mark.slow
def test_what_a_dead_process_left_running_is_ended_by_the_next(store):
    process = started_study(store)
    process.kill()
    output, _ = process.communicate()
    assert output.startswith("study night\n")
    assert {run.info.status for run in runs_of(store)} == {"RUNNING"}
    flags = ["--study", "night", "--epochs", "1000", "--image_size", "32", "--patience", "1000"]
    process = start("tune", *flags)
    while len(runs_of(store)) < 4 or "dropout" not in runs_of(store)[3].data.params:
        time.sleep(0.2)
        assert process.poll() is None, process.stderr.read()
    study, dead, resume, trial = runs_of(store)
    assert dead.info.status == "FAILED"
    assert dead.data.tags["optuna.state"] == "FAIL"
    assert [it.state.name for it in trials_of("night")] == ["FAIL", "RUNNING"]
    assert trial.data.params["dropout"] == dead.data.params["dropout"]  # the baseline again
    process.send_signal(signal.SIGINT)  # while TensorFlow still traces the model
    process.communicate(timeout=60)
    study, dead, resume, trial = runs_of(store)
    statuses = [run.info.status for run in (study, dead, resume, trial)]
    assert statuses == ["KILLED", "FAILED", "KILLED", "KILLED"]
    assert resume.data.tags["pneumo.kind"] == "resume"


@pytest.mark.slow
def test_mlflow_run(store):
    parameters = ["trials=2", "epochs=1", "seed=5", "image_size=32", "study=night"]
    process = mlflow_run("tune", *parameters)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    for told in ("Study night", "0 best", "registered: pneumonia-sample version 1", "mlflow ui"):
        assert told in output.replace("1 best", "0 best")
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
