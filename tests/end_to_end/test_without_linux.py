"""All commands without Linux-only functions of Python, as on macOS."""

import csv
import json
import os
import subprocess
import sys

import optuna
import pytest
from PIL import Image

from tests.support.paths import ROOT
from tests.support.studies import LIMIT, SMALL, children, counted, run_of

# Reads `/proc` in each way that Python has, from a file of that name
READING = """
import io, os
from pathlib import Path

WAYS = {
    "open": lambda: open("/proc/self/stat").close(),
    "bytes": lambda: open(b"/proc/self/stat").close(),
    "io": lambda: io.open("/proc/self/stat").close(),
    "os": lambda: os.close(os.open("/proc/self/stat", os.O_RDONLY)),
    "stat": lambda: os.stat("/sys"),
    "readlink": lambda: os.readlink("/proc/self/exe"),
    "listdir": lambda: os.listdir("/proc"),
    "scandir": lambda: os.scandir("/proc").close(),
    "Path": lambda: Path("/proc/self/stat").read_text(),
    "exists": lambda: Path("/proc/self").exists() or 1 / 0,
    "glob": lambda: next(Path("/proc").glob("*"), None) or 1 / 0,
    "here": lambda: os.listdir(),
}

def works(way):
    try:
        WAYS[way]()
    except (FileNotFoundError, ZeroDivisionError):
        return False
    return True

found = [way for way in WAYS if works(way)]
"""

# All entry points in turn, in one process, which need not import TensorFlow anew for each
COMMANDS = """
import json, os, sys
import mlflow, optuna
from pneumo.__main__ import main
from pneumo.tracking import registry

def run(*command):
    codes[" ".join(command)] = main([*command, *options.get(command[0], [])])

codes, options = {}, json.loads(sys.argv[1])
run("explore")
run("prepare", "--image_size", "32")
run("train", "--model_name", "mine")
registry.example_file = lambda: None  # once is enough: MLflow predicts it for seconds
# With a time limit a single worker, too, is a process of its own
run("tune", "--study", "two", "--trials", "1", "--trial_timeout", "300")
run("tune", "--study", "one", "--trials", "1")
one = optuna.load_study(study_name="one", storage=os.environ["PNEUMO_STORAGE"])
one.set_user_attr("goal", one.user_attrs["goal"] | {"trials": 2})
run("worker", "--study", "one")
run("evaluate")
run("promote", "--data", "xrays")
for alias, version in (("previous", 1), ("champion", 2)):
    mlflow.MlflowClient().set_registered_model_alias("pneumonia", alias, version)
run("promote", "--rollback", "true")
run("predict", "--explain", "true")
print(json.dumps(codes))
"""


def without_linux(folder, code: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run Python code in a process without Linux-only functions."""
    paths = (ROOT / "tests" / "support" / "without_linux", ROOT)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "WITHOUT_LINUX": str(folder),
    }
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=2 * LIMIT,
    )


@pytest.mark.parametrize(("file", "found"), [("pneumo/any.py", "here"), ("tests/any.py", "all")])
def test_linux_functions_are_hidden_from_the_project(tmp_path, file, found):
    code = (
        "import json, multiprocessing, os, signal, sys, tempfile, shutil\n"
        f"exec(compile({READING!r}, {str(ROOT / file)!r}, 'exec'))\n"
        "left = [hasattr(os, 'posix_fallocate'), hasattr(os, 'sched_getaffinity'),\n"
        "        hasattr(os, 'O_TMPFILE'), hasattr(signal, 'SIGRTMIN'), hasattr(os, 'pwrite')]\n"
        "tempfile.TemporaryFile().close()\n"
        "print(json.dumps([list(WAYS) if len(found) == len(WAYS) else found, left]))"
    )
    process = without_linux(tmp_path, code)
    ways, left = json.loads(process.stdout)
    assert left == [False, False, False, False, True]
    assert len(ways) == {"here": 1, "all": 12}[found]
    assert "here" in ways
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_every_command_runs_without_what_only_linux_has(store, folder, tmp_path):
    for place in folder.glob("*/*"):  # explore takes long with all of them
        for file in sorted(place.iterdir())[40:]:
            file.unlink()
    images = tmp_path / "images"
    images.mkdir()
    Image.new("L", (32, 32)).save(images / "dark.png")
    out, processes = tmp_path / "out.csv", tmp_path / "processes"
    processes.mkdir()
    data = ["--data", folder.name]
    quick = [*data, "--epochs", "1", *SMALL]
    stored = ["--model", "models:/pneumonia@challenger"]
    options = {
        **dict.fromkeys(("train", "tune"), quick),
        **dict.fromkeys(("explore", "prepare", "worker"), data),
        "evaluate": [*stored, *data],
        "promote": ["--model_name", "pneumonia"],
        "predict": [*stored, "--images", str(images), "--out", str(out)],
    }
    done = without_linux(processes, COMMANDS, json.dumps(options))
    assert done.stderr == ""
    codes = json.loads(done.stdout.splitlines()[-1])
    assert codes.pop("promote --data xrays") in (0, 3)  # an epoch makes no good model
    assert len(codes) == 9
    assert set(codes.values()) == {0}

    assert {run.data.tags["pneumo.kind"] for run in store.search_runs(["0"])} == {
        *("explore", "prepare", "train", "study", "trial", "worker", "evaluate", "promote"),
        "predict",
    }
    assert {run.info.status for run in store.search_runs(["0"])} == {"FINISHED"}
    for name, least in (("one", 2), ("two", 1)):
        study = optuna.load_study(study_name=name, storage=os.environ["PNEUMO_STORAGE"])
        assert counted(study.trials) in (least, least + 1)
        assert counted(study.trials) == len(study.trials) == len(children(store, run_of(name)))
    workers = {run.data.tags["pneumo.pid"] for run in children(store, run_of("two"))}
    assert workers < {path.name for path in processes.iterdir()}
    assert store.get_model_version_by_alias("pneumonia", "champion").version == 1
    [row] = csv.DictReader(out.read_text().splitlines())
    assert row["path"] == str(images / "dark.png")
    assert row["label"] in ("0", "1")
