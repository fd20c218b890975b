"""Models and weights that are another's, broken, or made to run something."""

import atexit
import importlib.util
import json
import marshal
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import h5py
import keras
import mlflow

from pneumo.data.dataset import open_dataset
from tests.bad import Case
from tests.support.handmade import SIDE, looking, register, run_of, write_images
from tests.support.stores import copy_stores, files_of, remove_runs, store_in
from tests.support.weights import network, write

RAN = "it-ran"  # the file that a payload leaves in the working directory


@dataclass(frozen=True)
class Stored:
    """What the stores of a case hold.

    `trial`: address of the model of a run; `version`, `foreign`: ids of a registered one, and of
    another project's, registered as `pneumonia` and `other`; `images`: a data set.
    """

    trial: str
    version: str
    foreign: str
    images: str


class Anothers(mlflow.pyfunc.PythonModel):
    """Stored as a pickle."""

    def predict(self, context, model_input: list[str]):
        return model_input


@lru_cache(maxsize=1)
def _original() -> tuple[Stored, Path]:
    """Stores that are made once, and their folder."""
    folder = Path(tempfile.mkdtemp(prefix="models"))
    atexit.register(shutil.rmtree, folder)
    images = str(write_images(folder / "images"))
    with store_in(folder) as client:
        made = run_of("left", open_dataset(images, needs=("train", "test")))
        registered = register(made, "pneumonia")
        for alias in ("champion", "previous"):
            client.set_registered_model_alias("pneumonia", alias, "1")
        with mlflow.start_run():
            other = mlflow.pyfunc.log_model(
                name="other", python_model=Anothers(), pip_requirements=[]
            )
        client.create_registered_model("other")
        client.create_model_version("other", other.model_uri)
    return Stored(made[1], registered.model_id, other.model_id, images), folder


def stores(folder: Path) -> Stored:
    """A copy of them as the stores in a folder, which are the current ones."""
    uri = mlflow.get_tracking_uri()
    stored, original = _original()
    mlflow.set_tracking_uri(uri)
    copy_stores(original, folder)
    return stored


def evaluates(stored: Stored, model: str) -> list[str]:
    return ["evaluate", "--model", model, "--data", stored.images]


def predicts(stored: Stored, model: str) -> list[str]:
    image = next(Path(stored.images).rglob("*.png"))
    return ["predict", "--model", model, "--images", str(image), "--out", "out.csv"]


def promotes(stored: Stored, model: str) -> list[str]:
    return ["promote", "--model_name", model, "--data", stored.images, "--candidate", "1"]


def rolls_back(stored: Stored, model: str) -> list[str]:
    return ["promote", "--model_name", model, "--rollback", "true"]


Command = Callable[[Stored, str], list[str]]
Spoil = Callable[[Path], None]  # takes the folder of a model's files


def _spoiled(which: str, command: Command, address: str, spoil: Spoil) -> Callable:
    """Makes a case of what `spoil` does to one of the models, an attribute of `Stored`."""

    def make(folder: Path) -> list[str]:
        stored = stores(folder)
        spoil(files_of(folder, getattr(stored, which)))
        (folder / RAN).unlink(missing_ok=True)  # what made the payload may have run it
        return command(stored, address.format(trial=stored.trial, foreign=stored.foreign))

    return make


def _named(command: Command, address: str) -> Callable:
    return lambda folder: command(stores(folder), address)


PAYLOAD = f"open({RAN!r}, 'w').close()\n"


class Payload:
    def __reduce__(self):
        return exec, (PAYLOAD,)


def other_weights(place: Path) -> None:
    model = looking("left")
    model.set_weights([2 * it for it in model.get_weights()])
    model.save(place / "artifacts" / "model.keras")


def other_threshold(place: Path) -> None:
    settings(place, threshold=0.99)


def settings(place: Path, **changed) -> None:
    file = place / "artifacts" / "settings.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


def first_line(file: str) -> Spoil:
    """Code that runs when the file is imported."""

    def spoil(place: Path) -> None:
        code = place / file
        code.write_text(PAYLOAD + code.read_text())

    return spoil


def _bytecode(flags: int, source: Path | None = None) -> bytes:
    """A `.pyc` with the payload. `flags`: 0 names the source's age, 1 an unchecked hash."""
    state = source and source.stat()
    age = [int(state.st_mtime), state.st_size] if state else [0, 0]
    header = importlib.util.MAGIC_NUMBER + flags.to_bytes(4, "little")
    header += b"".join(it.to_bytes(4, "little") for it in age)
    rest = source.read_text() if source else ""  # so that it does what its source does
    return header + marshal.dumps(compile(PAYLOAD + rest, "payload", "exec"))


def beside_its_source(flags: int) -> Spoil:
    def spoil(place: Path) -> None:
        source = place / "serve.py"
        cached = Path(importlib.util.cache_from_source(str(source)))
        cached.parent.mkdir(exist_ok=True)
        cached.write_bytes(_bytecode(flags, source))

    return spoil


def without_a_source(place: Path) -> None:
    (place / "code" / "colorsys.pyc").write_bytes(_bytecode(0))


def pickled(file: str) -> Spoil:
    return lambda place: (place / file).write_bytes(pickle.dumps(Payload()))


def with_lambda(place: Path) -> None:
    pixels = keras.Input((SIDE, SIDE, 1), dtype="uint8")
    ran = keras.layers.Lambda(lambda x: [open("it-ran", "w").close(), x][1], name="backbone")
    outputs = keras.layers.Dense(1, name="head")(keras.layers.Flatten()(ran(pixels)))
    keras.Model(pixels, outputs).save(place / "artifacts" / "model.keras")


def function_of_another_module(place: Path) -> None:
    file = place / "artifacts" / "model.keras"
    with zipfile.ZipFile(file) as whole:
        members = {name: whole.read(name) for name in whole.namelist()}
    config = json.loads(members["config.json"])
    config["config"]["layers"][1] |= {"module": "os", "class_name": "mkdir", "config": RAN}
    with zipfile.ZipFile(file, "w") as whole:
        for name, content in (members | {"config.json": json.dumps(config)}).items():
            whole.writestr(name, content)


def another_network(place: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.save(place / "artifacts" / "model.keras")


def torn(place: Path) -> None:
    file = place / "artifacts" / "model.keras"
    file.write_bytes(file.read_bytes()[:-100])


def gone(place: Path) -> None:
    (place / "artifacts" / "settings.json").unlink()


def all_gone(place: Path) -> None:
    shutil.rmtree(place)


def without_its_trial(_: Path) -> None:
    """Remove all runs for good, as people do who need the room."""
    client = mlflow.MlflowClient()
    trials = client.search_runs(["0"], "tags.`pneumo.kind` = 'trial'")
    remove_runs(*(run.info.run_id for run in trials))


CHANGED = r"must be those that were registered, digest .* do not use this version"
MISSING = r"must be those that were registered, digest .*: they are missing; do not use this"
REMOVED = "the run that trained a model must be in .*, has been removed; train or tune again, or"
VERSION, TRIAL = "models:/pneumonia/1", "{trial}"
ANOTHERS = "must be one that pneumo made: .* is another's"
UNUSABLE = "must be one as pneumo makes them: .*{}.*; do not use it"

SPOILED = [
    ("version, weights changed", "version", evaluates, VERSION, other_weights, CHANGED),
    ("version, threshold changed", "version", predicts, VERSION, other_threshold, CHANGED),
    ("version, server's code changed", "version", predicts, VERSION, first_line("serve.py"), ""),
    (
        "version, code changed",
        "version",
        rolls_back,
        "pneumonia",
        first_line("code/pneumo/train.py"),
        "",
    ),
    ("version, sourceless bytecode", "version", evaluates, VERSION, without_a_source, CHANGED),
    ("version, unchecked bytecode", "version", predicts, VERSION, beside_its_source(1), CHANGED),
    ("version, files missing", "version", evaluates, VERSION, all_gone, MISSING),
    ("previous, files missing", "version", rolls_back, "pneumonia", all_gone, MISSING),
    ("version, run removed", "version", predicts, VERSION, without_its_trial, REMOVED),
    ("trial, run removed", "trial", predicts, TRIAL, without_its_trial, REMOVED),
    (
        "trial, pickle for a network",
        "trial",
        evaluates,
        TRIAL,
        pickled("artifacts/model.keras"),
        UNUSABLE.format("model.keras is no file of Keras 3"),
    ),
    (
        "trial, Lambda layer",
        "trial",
        predicts,
        TRIAL,
        with_lambda,
        UNUSABLE.format("cannot be loaded safely .*`Lambda` layer"),
    ),
    (
        "trial, function of os",
        "trial",
        predicts,
        TRIAL,
        function_of_another_module,
        UNUSABLE.format("cannot be loaded safely"),
    ),
    (
        "trial, another network",
        "trial",
        evaluates,
        TRIAL,
        another_network,
        UNUSABLE.format(r"it takes \(None, 4\) and gives \(None, 3\)"),
    ),
    (
        "trial, torn network",
        "trial",
        predicts,
        TRIAL,
        torn,
        UNUSABLE.format("model.keras is no file of Keras 3"),
    ),
    (
        "trial, no settings",
        "trial",
        predicts,
        TRIAL,
        gone,
        UNUSABLE.format("it has no settings.json"),
    ),
    (
        "trial, threshold as text",
        "trial",
        predicts,
        TRIAL,
        lambda it: settings(it, threshold="0.5; --"),
        UNUSABLE.format("settings.json holds other than its settings"),
    ),
    (
        "trial, threshold NaN",
        "trial",
        predicts,
        TRIAL,
        lambda it: settings(it, threshold=float("nan")),
        UNUSABLE.format("settings.json holds other than its settings"),
    ),
    (
        "another's pickle",
        "foreign",
        predicts,
        "models:/{foreign}",
        pickled("python_model.pkl"),
        ANOTHERS,
    ),
    (
        "another's version",
        "foreign",
        evaluates,
        "models:/other/1",
        pickled("python_model.pkl"),
        ANOTHERS,
    ),
    ("another's candidate", "foreign", promotes, "other", pickled("python_model.pkl"), ANOTHERS),
]

RULE = "must be models:/NAME@ALIAS, models:/NAME/VERSION or models:/m-… in "
ADDRESSES = {
    "file": ("/etc/passwd", RULE),
    "lines": (
        "models:/pneumonia\n\x1b[2Jpneumo: all is well\r\n@champion",
        "--model: must be .* no control characters",
    ),
}
MORE_ADDRESSES = [
    "models:/",
    "models:/../../../etc/passwd",
    "models:/pneumonia/1/../../..",
    "models:/o'neill\" or 1=1; --/1",
    f"models:/pneumonia/{'9' * 3000}",
    "models:/pneumonia/latest",
    "runs:/0/model",
    "http://127.0.0.1:1/model",
]


@lru_cache(maxsize=1)
def _weights() -> bytes:
    """A whole file that fits."""
    with tempfile.TemporaryDirectory() as folder:
        with h5py.File(f"{folder}/weights.h5", "w") as file:
            write(network(), file)
        return Path(folder, "weights.h5").read_bytes()


def of_another_width(file: Path) -> None:
    with h5py.File(file, "w") as stored:
        write(network(alpha=0.5), stored)


def cut_off(file: Path) -> None:
    file.write_bytes(_weights()[: len(_weights()) // 2])


def table(file: Path) -> None:
    with h5py.File(file, "w") as stored:
        stored["patients"] = [1, 2, 3]


def odd_layers(file: Path) -> None:
    with h5py.File(file, "w") as stored:
        stored.attrs["layer_names"] = 7


def from_elsewhere(file: Path) -> None:
    """Weights that HDF5 would read from another file of the disk."""
    file.with_name("secret.h5").write_bytes(_weights())
    file.write_bytes(_weights())
    with h5py.File(file, "r+") as stored:
        del stored["conv1"]
        stored["conv1"] = h5py.ExternalLink("secret.h5", "/conv1")


NO_WEIGHTS = "does not fit mobilenet with alpha 0.25: it is no HDF5 file in the layout of Keras"
WEIGHTS = [
    ("of another width", "w.h5", of_another_width, "does not fit mobilenet .*: where it has conv1"),
    ("text", "w.h5", lambda file: file.write_text("words"), NO_WEIGHTS),
    ("pickle", "w.pkl", lambda file: file.write_bytes(pickle.dumps(Payload())), NO_WEIGHTS),
    ("torn", "w.h5", cut_off, NO_WEIGHTS),
    ("a table", "w.h5", table, NO_WEIGHTS),
    ("layers that are a number", "w.h5", odd_layers, NO_WEIGHTS),
    ("of another file", "w.h5", from_elsewhere, NO_WEIGHTS),
    ("by another name", "w.dat", lambda file: file.write_bytes(_weights()), "get it again"),
]


def _with_weights(name: str, make: Callable[[Path], None]) -> Callable:
    def arguments(folder: Path) -> list[str]:
        make(folder / name)
        network = ["--experiment", "tune_mobilenet", "--alpha", "0.25"]
        return ["train", *network, "--weights", name, "--image_size", "32"]

    return arguments


CASES: list[Case] = [
    *(
        Case(name, _spoiled(which, command, address, spoil), says or CHANGED)
        for name, which, command, address, spoil, says in SPOILED
    ),
    Case(
        "version, aged bytecode that is never used",
        _spoiled("version", predicts, VERSION, beside_its_source(0)),
        "1 images",
        refused=False,
    ),
    Case(
        "trial, code that is never used",
        _spoiled("trial", predicts, TRIAL, first_line("serve.py")),
        "1 images",
        refused=False,
    ),
    *(
        Case(f"address, {name}", _named(predicts, address), says)
        for name, (address, says) in ADDRESSES.items()
    ),
    Case(
        "name with quotes",
        _named(promotes, "o'neill\" or 1=1; --"),
        "model_name: must be a name of letters, digits",
    ),
    Case(
        "candidate that is no number of a version",
        lambda folder: [*promotes(stores(folder), "pneumonia"), "--candidate", "9" * 50],
        "pneumonia has the versions 1: got 9",
    ),
    *(
        Case(f"weights, {name}", _with_weights(file, make), says)
        for name, file, make, says in WEIGHTS
    ),
]
