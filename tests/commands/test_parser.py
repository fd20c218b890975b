"""Errors of a command line, each in one line, and the help."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from pneumo.__main__ import main
from pneumo.commands.options import inputs
from pneumo.commands.options.parser import flags_of, parse
from pneumo.runtime.errors import UserError
from tests.support.commands import run_here
from tests.support.paths import ROOT
from tests.support.studies import tags

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
def invalid_inputs(folder, tmp_path, monkeypatch):
    """Make a directory with data that is invalid in several ways."""
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
        ("tune --data nowhere", "'nowhere' does not exist"),
        ("tune --data empty", "must contain the folders train/NORMAL, "),
        ("tune --data words.txt", "got the file 'words.txt'"),
        ("tune --data torn.zip", "torn.zip could not be unpacked"),
        ("tune --data xrays", "must contain images in test/NORMAL: it has none. Add some."),
        ("explore", "the following arguments are required: --data"),
        ("explore --data empty", "must contain the folders train/NORMAL, "),
        ("prepare --data xrays", "must contain images in test/NORMAL: it has none. Add some."),
        (
            "tune --experiment tine",
            "experiment must be one of auto, best, cnn, criterion, ",
        ),
        (
            "tune --experiment cnn",
            "a study requires a function suggest(trial, base): experiments/cnn.py has none",
        ),
        (
            "train --dropout 1.5",
            "dropout must be the fraction of units dropped in the head, 0 to 0.9",
        ),
        ("train --epochs many", "epochs must be the maximum number of passes"),
        ("train --unfreeze_depth 3", "unfreeze_depth must be 0 to 2 with backbone cnn: got 3"),
        ("train --weights nowhere.h5", "or the path of a weights file: got 'nowhere.h5'"),
        (
            "train --experiment tune_mobilenet --weights words.txt",
            "words.txt does not fit mobilenet with alpha 0.25: it is not an HDF5 file",
        ),
        ("tune --trials 0", "--trials: must be an integer from 1 to 1000000000: got '0'"),
        (
            "tune --keep_models 0",
            "--keep_models: must be an integer from 1 to 1000000000: got '0'",
        ),
        ("promote", "promote requires --data unless --rollback is true"),
        ("promote --rollback maybe", "--rollback: must be true or false: got 'maybe'"),
        ("promote --data sample --margin 2", "--margin: must be a number from 0 to 1: got '2'"),
        ("promote --data sample --margin much", "must be a number from 0 to 1: got 'much'"),
        (
            "promote --data sample --sensitivity_margin -0.1",
            "--sensitivity_margin: must be a number from 0 to 1: got '-0.1'",
        ),
        ("predict --images words.txt", "the following arguments are required: --out"),
        ("predict --images nowhere --out o.csv", "glob of image files: 'nowhere' matches none"),
        ("predict --images xrays --out a/o.csv", "in an existing folder: got 'a/o.csv'"),
        ("predict --images xrays --out xrays", "--out must be a CSV file in an existing folder"),
        ("predict --images xrays --out o.csv --explain yes", "--explain: must be true or false"),
        ("evaluate", "the following arguments are required: --data"),
        ("evaluate --data nowhere", "'nowhere' does not exist"),
        ("evaluate --data sample --split tset", "--split: must be test, val or train: got 'tset'"),
        (
            "evaluate --data sample --sensitivity 95",
            "--sensitivity: must be a fraction above 0, up",
        ),
        (
            "evaluate --data sample --net_benefit_at 1",
            "--net_benefit_at: must be a fraction above 0 and below 1: got '1'",
        ),
        (
            "evaluate --data sample --sensitivity 0.9 --net_benefit_at 0.2",
            "both set the threshold: got 0.9 and 0.2. Pass only one of them.",
        ),
        (
            "tune --launcher ray",
            "launcher=ray requires Ray, which is not installed",
        ),
        ("tune --launcher sun", "--launcher: must be local or ray: got 'sun'"),
        (
            "tune --timeout soon",
            "--timeout: must be an integer from 1 to 1000000000: got 'soon'",
        ),
        (
            "tune --dropot 0.4",
            "unrecognized arguments: --dropot 0.4; see python -m pneumo tune --help",
        ),
        ("tine", "invalid choice: 'tine'"),
        ("", "the following arguments are required: command"),
    ],
)
def test_a_user_error_gets_one_line_and_exit_code_2(invalid_inputs, capsys, arguments, message):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    assert main(arguments.split()) == 2
    for number, handler in handlers.items():
        signal.signal(number, handler)
    errors = capsys.readouterr().err
    assert errors.startswith("pneumo: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert not os.path.exists("mlflow.db")  # refused before a run was made


@pytest.mark.parametrize(
    ("text", "truth"), [("true", True), ("ON", True), ("False", False), ("off", False), ("", False)]
)
def test_a_boolean_is_true_or_false_or_on_or_off_in_any_case(text, truth):
    _, options = parse(["promote", "--rollback", text])
    assert options.rollback is truth


def test_an_empty_value_stands_for_the_default():
    for command in ("tune", "train", "prepare"):
        default = parse([command])
        assert parse([command, *(f"--{flag}=" for flag in flags_of(type(default[1])))]) == default


@pytest.mark.slow
def test_an_invalid_budget_is_a_user_error(store, monkeypatch):
    monkeypatch.setenv("PNEUMO_FEATURES", "plenty")
    code, _, errors = run_here("train")
    assert code == 2
    assert "PNEUMO_FEATURES must be a non-negative integer" in errors
    assert store.search_runs(["0"]) == []


@pytest.mark.slow
def test_a_late_user_error_leaves_no_run_running(store, folder):
    for file in list((folder / "train" / "NORMAL").iterdir())[:20]:
        file.write_bytes(b"no image")
    for command in ("prepare", "train", "tune"):
        code, _, errors = run_here(command, "--data", str(folder))
        assert code == 2
        assert "20 of 546 are, the first is" in errors
        assert "Traceback" not in errors
    runs = store.search_runs(["0"])
    assert {run.info.status for run in runs} == {"FAILED"}
    assert "RUNNING" not in {run.info.status for run in runs}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "kind", "reason"),
    [
        ("tune --data nowhere", 2, "study", "data must be sample, mendeley"),
        ("train --dropout 7", 2, "train", "dropout must be the fraction of units"),
        ("explore --data nowhere --depth 3", 2, "explore", "unrecognized arguments: --depth 3"),
    ],
)
def test_a_command_that_fails_early_says_so_in_its_run(
    store, monkeypatch, arguments, code, kind, reason
):
    run = store.create_run("0", run_name="capable-asp-139")
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    for variable in ("MAX_RETRIES", "TIMEOUT"):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{variable}", "1")
    assert main(arguments.split()) == code
    found = store.get_run(run.info.run_id)
    assert (found.info.status, found.info.run_name) == ("FAILED", f"{kind}, failed")
    assert set(tags(found)) == {"pneumo.kind", "pneumo.reason"}
    assert tags(found)["pneumo.kind"] == kind
    assert tags(found)["pneumo.reason"].startswith(reason)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyboardInterrupt, "interrupted; finished work is kept"),
        (ValueError("from a library"), "ValueError: from a library"),
    ],
)
def test_a_command_that_ends_early_says_why_in_its_run(store, monkeypatch, error, reason):
    def end(*_):
        raise error

    run = store.create_run("0", run_name="capable-asp-139")
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    for variable in ("MAX_RETRIES", "TIMEOUT"):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{variable}", "1")
    monkeypatch.setattr("pneumo.__main__._run", end)
    with suppress(ValueError):
        assert main(["tune"]) == 1
    found = store.get_run(run.info.run_id)
    assert (found.info.status, found.info.run_name) == ("FAILED", "study, failed")
    assert tags(found) == {"pneumo.kind": "study", "pneumo.reason": reason}


def test_a_csv_that_cannot_be_written_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (tmp_path, os.W_OK))
    with pytest.raises(UserError, match="--out must be a file that can be written: got .*o.csv'"):
        inputs._path_of_csv(str(tmp_path / "o.csv"))
