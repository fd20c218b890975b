"""Every command and every example of all README files, run for real."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import optuna
import pytest
import requests

import experiments
from pneumo import experiment
from pneumo.__main__ import main
from pneumo.commands.options.parser import parse
from pneumo.data.dataset import open_dataset
from pneumo.data.sources.download import RemoteDataset
from pneumo.training.config import RunConfig
from tests.support import handmade
from tests.support.paths import ROOT
from tests.support.services import git_daemon, mlflow_ui
from tests.support.stores import store_in
from tests.support.studies import without_pictures

DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("*/**/README.md"))]
TEXTS = {file: file.read_text() for file in DOCUMENTS}
BLOCKS = [
    block
    for text in TEXTS.values()
    for block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
]
COMMANDS = list(
    dict.fromkeys(
        [
            *(
                line
                for language, block in BLOCKS
                for line in block.splitlines()
                if not language and re.match("mlflow|pip|base64", line)
            ),
            # Those of the tables of results
            *(
                command
                for text in TEXTS.values()
                for command in re.findall(r"^\| `(mlflow run .*?)` \|", text, re.M)
            ),
        ]
    )
)


def example(start: str) -> str:
    """Return the only Python example whose first line begins with this text."""
    [found] = [
        block for language, block in BLOCKS if language == "python" and block.startswith(start)
    ]
    return found


EXPERIMENT, DIMENSION = example('"""Does dropout'), example("    return base.override")
SOURCE, NOTEBOOK = example('"clinic"'), example("from pneumo.data")

# Where those are given that need more than this: file, and what is to be found there
ELSEWHERE = {
    "uv && mlflow run . -e tune": (".ci/run", "README.md"),
    "uv && mlflow run . -e test": (".ci/run", "README.md"),
    "-P workers=2": ("tests/end_to_end/test_workers.py", '"--workers", "2"'),
    "-P launcher=ray": ("tests/end_to_end/test_ray.py", '"--launcher", "ray"'),
    "mlflow models generate-dockerfile": (
        "tests/end_to_end/test_serve.py",
        '"models", "generate-dockerfile"',
    ),
    "mlflow models serve": ("tests/support/services.py", '"models", "serve"'),
    "base64 <": ("tests/end_to_end/test_serve.py", "base64 <"),
}
HERE = {"mlflow ui", "--experiment-name", "GIT_ADDRESS"}  # in tests of their own

SMALL = ["--image_size", "32", "--epochs", "1"]
WITHOUT_IMAGENET = ["--backbone", "mobilenet", "--alpha", "0.25", "--weights", "none"]


def kind(command: str) -> str:
    found = [pattern for pattern in [*ELSEWHERE, *HERE] if pattern in command]
    return found[0] if found else "tour"


def words_of(command: str, folder: Path) -> list[str]:
    """Return a command's entry point and flags as `mlflow run` passes them."""
    words = shlex.split(re.sub(r"PATH(/chest_xray.zip)?\b|…|FOLDER", str(folder), command))
    given = [words[place + 1] for place, word in enumerate(words) if word == "-P"]
    flags = [word for parameter in given for word in f"--{parameter}".split("=", 1)]
    return [words[words.index("-e") + 1], *flags]


def short_of(command: str, folder: Path) -> list[str]:
    """Return the same for few images and one epoch."""
    entry, *flags = words_of(command, folder)
    if entry in ("tune", "train"):
        flags += SMALL
    if entry == "tune":
        flags += ["--trials", "1"]
    if re.search("mobilenet|transfer|experiment=best", command):
        flags += [*WITHOUT_IMAGENET, "--unfreeze_depth", "0"]
    if "budget=" in command:  # with the time for one trial only
        flags += ["--backbone", "cnn", "--folds", "1"]
    values = dict(zip(flags[::2], flags[1::2], strict=True))  # of a flag given twice, the last
    return [entry, *(word for flag in sorted(values.items()) for word in flag)]


# Some commands are the same once they are short; of these the first
TOURS = {
    tuple(short_of(command, Path("images"))): command
    for command in reversed(COMMANDS)
    if kind(command) == "tour"
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Make stores with a study `night`, a model `pneumonia` with all aliases, and another model."""
    folder = tmp_path_factory.mktemp("prepared")
    images = str(handmade.write_images(folder / "images"))
    with store_in(folder), without_pictures():
        dataset = open_dataset(images, required_splits=("train", "test"))
        for half in ("right", "left"):
            made = handmade.run_of(half, dataset)
            handmade.register(made, "pneumonia")
        handmade.register(made, "published_cnn")
        client = mlflow.MlflowClient()
        client.set_registered_model_alias("pneumonia", "champion", "1")
        client.set_registered_model_alias("pneumonia", "previous", "2")
        night = ["--study", "night", "--model_name", "other", "--trials", "1"]
        assert main(["tune", "--data", images, *night, *SMALL]) == 0
    return folder


@pytest.fixture
def place(prepared, tmp_path):
    """Copy the stores to the working directory; return the folder of the images."""
    for database in prepared.glob("*.db"):
        shutil.copy(database, tmp_path)
    with store_in(tmp_path):
        yield prepared / "images"


def test_every_command_is_documented():
    assert {kind(command) for command in COMMANDS} == {*ELSEWHERE, *HERE, "tour"}
    for file, content in ELSEWHERE.values():
        assert content in (ROOT / file).read_text()


@pytest.mark.parametrize("command", [it for it in COMMANDS if "mlflow run" in it])
def test_every_command_has_valid_arguments(command):
    entry, *flags = words_of(command, Path("images"))
    assert parse([entry, *flags])[0] == entry


def test_every_picture_is_there():
    shown = set(re.findall(r"^!\[.+\]\((.*\.png)\)$", TEXTS[ROOT / "README.md"], re.M))
    kept = (ROOT / ".github" / "pictures").iterdir()
    assert shown == {str(picture.relative_to(ROOT)) for picture in kept}


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_link_leads_somewhere(file):
    for address in re.findall(r"\]\((?!https?://)([^)\s]+)\)", TEXTS[file]):
        path, _, heading = address.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), address
        if heading:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.M)
            anchors = {
                re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings
            }
            assert heading in anchors, address


def test_the_readme_is_short():
    text = TEXTS[ROOT / "README.md"]
    assert len(text.splitlines()) <= 250
    assert len(text.split()) <= 1800


@pytest.mark.slow
@pytest.mark.usefixtures("without_plots", "without_pages")
@pytest.mark.parametrize("command", TOURS.values())
def test_the_tour(command, place, capsys):
    client = mlflow.MlflowClient()
    before = {run.info.run_id for run in client.search_runs(["0"])}
    entry, *flags = short_of(command, place)
    assert main([entry, *flags]) == 0, capsys.readouterr().err
    made = [run for run in client.search_runs(["0"]) if run.info.run_id not in before]
    assert {run.info.status for run in made} <= {"FINISHED"}
    kinds = {run.data.tags["pneumo.kind"] for run in made}
    assert entry == "worker" or {"tune": "study"}.get(entry, entry) in kinds
    if entry == "worker":
        assert "study night needs no more trials: 1 are finished" in capsys.readouterr().out


@pytest.mark.slow
def test_the_pages_of_mlflow(place, tmp_path):
    [command] = [command for command in COMMANDS if kind(command) == "mlflow ui"]
    with mlflow_ui(command, tmp_path) as server:
        answer = requests.get(f"{server.address}/version", timeout=30)
    assert answer.text == mlflow.__version__


@pytest.mark.slow
def test_from_a_git_address_under_a_custom_name(place, tmp_path):
    [named] = [command for command in COMMANDS if kind(command) == "--experiment-name"]
    [fetched] = [command for command in COMMANDS if kind(command) == "GIT_ADDRESS"]
    subprocess.run(
        ["git", "clone", "-q", "--bare", ROOT, tmp_path / "all" / "pneumo.git"], check=True
    )
    here = tmp_path / "here"
    here.mkdir()
    with git_daemon(tmp_path / "all") as address:
        command = fetched.replace("https://GIT_ADDRESS", address).replace(
            "/ABSOLUTE/PATH/chest_xray.zip", str(place)
        )
        command += named[named.index(" --experiment-name") :]
        words = shlex.split(command.replace("--env-manager uv", "--env-manager local"))
        words += [
            word
            for setting in ("trials=1", "epochs=1", "image_size=32")
            for word in ("-P", setting)
        ]
        process = given(words, here)
    assert process.returncode == 0, process.stderr[-3000:]
    client = mlflow.MlflowClient(f"sqlite:///{here}/mlflow.db")
    lungs = client.get_experiment_by_name("lungs")
    [study] = client.search_runs([lungs.experiment_id], "tags.`pneumo.kind` = 'study'")
    assert (study.info.status, study.data.tags["pneumo.data"]) == ("FINISHED", "images")
    assert client.list_artifacts(study.info.run_id, "study")
    assert client.get_model_version_by_alias("pneumonia", "challenger").version == 1


def given(words: list[str], folder: Path) -> subprocess.CompletedProcess:
    """Run a command in a folder, with this environment's programs and no tracking server."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": programs}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.usefixtures("without_plots")
def test_the_experiment_and_the_dimension_that_it_shows(place, tmp_path, monkeypatch):
    whole = EXPERIMENT.rpartition("    return")[0] + DIMENSION
    for name, code in (("example", EXPERIMENT), ("wider", whole)):
        assert len(code.splitlines()) < 20
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setattr(experiment, "EXPERIMENTS_DIR", tmp_path)
    monkeypatch.setattr(experiments, "__path__", [*experiments.__path__, str(tmp_path)])
    for name, searched in (("example", {"dropout"}), ("wider", {"dropout", "batch_size"})):
        flags = ["--experiment", name, "--study", name, "--data", str(place), "--trials", "1"]
        assert main(["tune", *flags, *SMALL]) == 0
        study = optuna.load_study(study_name=name, storage=os.environ["PNEUMO_STORAGE"])
        assert set(study.trials[0].params) == searched
        run = mlflow.get_run(study.user_attrs["run_id"])
        assert "Does dropout alone help the small network?" in run.data.tags["mlflow.note.content"]


def test_the_data_set_that_it_shows():
    [(name, source)] = eval(f"{{{SOURCE}}}", {"RemoteDataset": RemoteDataset}).items()
    assert (name, source.images) == ("clinic", {"train": 5232, "test": 624})
    assert len(SOURCE.splitlines()) < 10


@pytest.mark.slow
def test_from_a_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(NOTEBOOK.replace("epochs=3", "epochs=1"), names)
    assert names["result"].model.name
    assert len(names["result"].val_logits) == 82
    assert not list(tmp_path.iterdir())  # neither MLflow nor Optuna was asked
    assert RunConfig(epochs=1).image_size == 128
