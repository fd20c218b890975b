"""Models that are foreign, broken, or made to run code."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import keras
import mlflow
import numpy as np

from pneumo.inference.decode import DECODER_VERSION
from pneumo.inference.input_gate import InputGate
from tests.bad import Case
from tests.bad.payloads import (
    RAN,
    Spoil,
    beside_its_source,
    first_line,
    function_of_another_module,
    pickled,
    with_lambda,
    without_a_source,
)
from tests.bad.stores import Stored, stores
from tests.support.handmade import looking
from tests.support.removal import remove_runs
from tests.support.stores import files_of


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


def _spoiled(which: str, command: Command, address: str, spoil: Spoil) -> Callable:
    """Make a case from a model (an attribute of `Stored`) and what `spoil` does to it."""

    def make(folder: Path) -> list[str]:
        stored = stores(folder)
        spoil(files_of(folder, getattr(stored, which)))
        (folder / RAN).unlink(missing_ok=True)  # what made the payload may have run it
        return command(stored, address.format(trial=stored.trial, foreign=stored.foreign))

    return make


def _named(command: Command, address: str) -> Callable:
    return lambda folder: command(stores(folder), address)


def other_weights(place: Path) -> None:
    model = looking("left")
    model.set_weights([2 * content for content in model.get_weights()])
    model.save(place / "artifacts" / "model.keras")


def other_threshold(place: Path) -> None:
    settings(place, threshold=0.99)


def settings(place: Path, **changed) -> None:
    file = place / "artifacts" / "settings.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


def another_network(place: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.save(place / "artifacts" / "model.keras")


def torn(place: Path) -> None:
    file = place / "artifacts" / "model.keras"
    file.write_bytes(file.read_bytes()[:-100])


def other_gate(place: Path) -> None:
    """Write a gate for a layer that the network does not have."""
    gate = InputGate("block_1_out", np.zeros(3, np.float32), np.eye(3, dtype=np.float32), 1.0)
    gate.save(place / "artifacts" / "input_gate.npz")


def pickled_gate(place: Path) -> None:
    objects = np.array([print], dtype=object)
    np.savez(place / "artifacts" / "input_gate.npz", layer=objects)


def gone(place: Path) -> None:
    (place / "artifacts" / "settings.json").unlink()


def all_gone(place: Path) -> None:
    shutil.rmtree(place)


def without_its_trial(_: Path) -> None:
    """Remove all runs permanently, as people do to free space."""
    client = mlflow.MlflowClient()
    trials = client.search_runs(["0"], "tags.`pneumo.kind` = 'trial'")
    remove_runs(*(run.info.run_id for run in trials))


CHANGED = r"must be those that were registered, with digest .* Do not use this version"
MISSING = r"must be those that were registered, with digest .*: they are missing. Do not use"
REMOVED = "the run that trained a model must be in .* has been removed. Pass another model, or"
VERSION, TRIAL = "models:/pneumonia/1", "{trial}"
ANOTHERS = "must be created by pneumo: .* was not"
UNUSABLE = "must be a valid pneumo model: .*{}.* Do not use it"

SPOILED = [
    ("version, weights changed", "version", evaluates, VERSION, other_weights, CHANGED),
    ("version, threshold changed", "version", predicts, VERSION, other_threshold, CHANGED),
    ("version, server's code changed", "version", predicts, VERSION, first_line("pyfunc.py"), ""),
    (
        "version, code changed",
        "version",
        rolls_back,
        "pneumonia",
        first_line("code/pneumo/inference/decode.py"),
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
        UNUSABLE.format("model.keras is not a Keras 3 file"),
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
        UNUSABLE.format(r"its shapes are \(None, 4\) \(input\) and \(None, 3\)"),
    ),
    (
        "trial, torn network",
        "trial",
        predicts,
        TRIAL,
        torn,
        UNUSABLE.format("model.keras is not a Keras 3 file"),
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
        lambda folder: settings(folder, threshold="0.5; --"),
        UNUSABLE.format("settings.json does not contain valid settings"),
    ),
    (
        "trial, threshold NaN",
        "trial",
        predicts,
        TRIAL,
        lambda folder: settings(folder, threshold=float("nan")),
        UNUSABLE.format("settings.json does not contain valid settings"),
    ),
    (
        "trial, gate of another model",
        "trial",
        predicts,
        TRIAL,
        other_gate,
        UNUSABLE.format("No such layer: block_1_out"),
    ),
    (
        "trial, gate with a pickle",
        "trial",
        predicts,
        TRIAL,
        pickled_gate,
        UNUSABLE.format("Object arrays cannot be loaded when allow_pickle=False"),
    ),
    (
        "trial, older decoder",
        "trial",
        predicts,
        TRIAL,
        lambda folder: settings(folder, decoder=DECODER_VERSION - 1),
        UNUSABLE.format(
            f"by version {DECODER_VERSION - 1} of the decoder, but the current version"
        ),
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
        "--model: must have .* no control characters",
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
        _spoiled("trial", predicts, TRIAL, first_line("pyfunc.py")),
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
        "model_name: must be a name of at most 60 letters, digits",
    ),
    Case(
        "candidate that is no number of a version",
        lambda folder: [*promotes(stores(folder), "pneumonia"), "--candidate", "9" * 50],
        "version of pneumonia must be one of 1: got 9",
    ),
]
