"""Files of a stored model, written and loaded without running any stored code."""

import hashlib
import importlib.util
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

from pneumo.inference.decode import DECODER_VERSION
from pneumo.runtime.errors import UserError

if TYPE_CHECKING:
    import keras

    from pneumo.inference.input_gate import InputGate
    from pneumo.inference.pyfunc import PneumoniaModel

# A stored model contains this part of the package only. It requires these packages when it is
# served, at the versions with which it was made
INFERENCE = Path(__file__).parent.parent / "inference"
SERVING_REQUIREMENTS = (
    "mlflow",
    "tensorflow",
    "keras",
    "numpy",
    "scipy",
    "pandas",
    "pillow",
    "pydicom",
    "imagecodecs",
    "pyjpegls",
    "joblib",
)

# The `__init__.py` of the copy. MLflow puts the copy first on the path. A process may load a model
# before it imports an installed pneumo. Without this line it would find only the copy
COPY_INIT = '__path__ = __import__("pkgutil").extend_path(__path__, __name__)\n'

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("binary", "image")]),
    params=ParamSchema([ParamSpec("out_of_range", "string", "warn")]),
    outputs=Schema(
        [
            ColSpec("double", "probability", required=False),
            ColSpec("long", "label", required=False),
            ColSpec("double", "threshold", required=False),
            ColSpec("string", "error", required=False),
        ]
    ),
)

# Files of a stored model below `artifacts/`
MODEL_FILES = {"keras": "model.keras", "settings": "settings.json"}
GATE_FILE = "input_gate.npz"  # only registered models have it

# Version of the decoder of models whose settings do not name one
UNNOTED_DECODER_VERSION = 3


def load_model(model_uri: str) -> "PneumoniaModel":
    """Load a stored model, with its `keras_model` and `settings`.

    Raises:
        UserError: The files are incomplete, invalid or not safe to load: see `load_files`.
    """
    with download_model(model_uri) as folder:
        return load_files(folder, model_uri)


@contextmanager
def download_model(model_uri: str) -> Iterator[Path]:
    """Yield a private copy of a stored model's files, which no process changes after checks."""
    with tempfile.TemporaryDirectory(prefix="pneumo-") as folder:
        mlflow.artifacts.download_artifacts(model_uri, dst_path=folder)
        yield Path(folder)


def load_files(folder: Path, model_uri: str) -> "PneumoniaModel":
    """Load the model in a folder as this package runs it.

    Unlike `mlflow.pyfunc.load_model`, this never reads the stored code, pickles or bytecode, so it
    runs none of them.

    Args:
        folder: Folder with the files, as MLflow downloads them.
        model_uri: URI of the model, for the error message.

    Raises:
        UserError: A file is missing, is not safe to load, or is not as pneumo makes it.
    """
    from pneumo.inference.pyfunc import PneumoniaModel

    files = {name: folder / "artifacts" / file for name, file in MODEL_FILES.items()}
    if missing := [file.name for file in files.values() if not file.is_file()]:
        raise _invalid_model_error(model_uri, f"it has no {missing[0]}")
    if not zipfile.is_zipfile(files["keras"]):  # else Keras reports a missing file
        raise _invalid_model_error(model_uri, f"{files['keras'].name} is not a Keras 3 file")
    model = PneumoniaModel()
    try:
        gate_file = folder / "artifacts" / GATE_FILE
        model.load_from(**files, input_gate=gate_file if gate_file.is_file() else None)
        problem = next(_model_problems(model), None)
    except Exception as error:  # on untrusted files a parser raises nearly anything
        reason = str(error).strip().partition(". ")[0] or type(error).__name__
        raise _invalid_model_error(
            model_uri, f"its files cannot be loaded safely ({reason[:300]})"
        ) from None
    if problem:
        raise _invalid_model_error(model_uri, problem)
    return model


def _model_problems(model: "PneumoniaModel") -> Iterator[str]:
    """Yield a description of each deviation of a model from what pneumo makes."""
    from pneumo.inference.logits import ensemble_members  # here, since TensorFlow is slow to import

    network, size = model.keras_model, model.image_size
    shapes = *network.input_shape, *network.output_shape
    if type(size) is not int or shapes != (None, size, size, 1, None, 1):
        yield f"its shapes are {network.input_shape} (input) and {network.output_shape} (output)"
    parts = [{layer.name for layer in member.layers} for member in ensemble_members(network)]
    if not all({"backbone", "head"} <= names for names in parts):
        yield "it has no layers 'backbone' and 'head'"
    if not _are_settings(model.settings):
        yield f"its {MODEL_FILES['settings']} does not contain valid settings"
    if (decoder := model.settings.get("decoder", UNNOTED_DECODER_VERSION)) != DECODER_VERSION:
        yield (
            f"its training images were decoded by version {decoder} of the decoder, but the "
            f"current version is {DECODER_VERSION}"
        )


def _are_settings(settings: Any) -> bool:
    names = "threshold", "slope", "intercept", "prevalence"
    return (
        all(type(settings[name]) in (int, float) and isfinite(settings[name]) for name in names)
        and settings["threshold"] >= 0
        and settings["slope"] > 0
        and 0 < settings["prevalence"] < 1
        and settings["resize"] in ("squash", "pad")
        and isinstance(settings["val_uncalibrated"], dict)
    )


def _invalid_model_error(model_uri: str, why: str) -> UserError:
    return UserError(
        f"model must be a valid pneumo model: '{model_uri}' is not, because {why}. "
        "Do not use it. Use another model, or train a new one."
    )


def model_digest(folder: Path) -> str:
    """Return 16 hex digits that identify a stored model's files: weights, settings and code."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        # MLflow adds a file about the version to what it downloads
        if file.is_file() and file.name != "registered_model_meta" and not _is_bytecode_cache(file):
            digest.update(file.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _is_bytecode_cache(file: Path) -> bool:
    """Return whether a file is bytecode that Python writes when it serves a model.

    Such bytecode is in `__pycache__`, names the age of its source, and its source is next to that
    folder. Python would run any other bytecode without checking a source.
    """
    if file.suffix != ".pyc" or file.parent.name != "__pycache__":
        return False
    try:
        source = Path(importlib.util.source_from_cache(str(file)))
    except ValueError:  # its name is not one that Python uses
        return False
    with file.open("rb") as bytecode:
        kind = bytecode.read(8)[4:]
    return source.is_file() and kind == bytes(4)


def log_model(
    run_id: str,
    model: "keras.Model",
    settings: Mapping[str, Any],
    input_gate: "InputGate | None" = None,
    example: bytes | None = None,
) -> ModelInfo:
    """Store a model as `model` of a run, which may have ended.

    Args:
        run_id: Id of the run.
        model: The Keras model.
        settings: See `pyfunc.PneumoniaModel.load_from`.
        input_gate: See `pyfunc.PneumoniaModel`.
        example: Bytes of an image file. With these MLflow loads the stored model and runs it.

    Returns:
        Where MLflow has stored the model.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / file for name, file in MODEL_FILES.items()}
        model.save(files["keras"])
        files["settings"].write_text(json.dumps(settings))
        if input_gate:
            files["input_gate"] = Path(folder) / GATE_FILE
            input_gate.save(files["input_gate"])
        # The flavor's own log_model works on the active run only
        return Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            name="model",
            run_id=run_id,
            python_model=str(INFERENCE / "pyfunc.py"),
            artifacts={name: str(file) for name, file in files.items()},
            code_paths=[str(_copy_inference(Path(folder)))],
            signature=SIGNATURE,
            input_example=None if example is None else pd.DataFrame({"image": [example]}),
            pip_requirements=[
                f"{package}=={importlib.metadata.version(package)}"
                for package in SERVING_REQUIREMENTS
            ],
        )


def _copy_inference(folder: Path) -> Path:
    """Create a package `pneumo` with `inference` alone in a folder, and return its path."""
    package = folder / "pneumo"
    shutil.copytree(
        INFERENCE, package / INFERENCE.name, ignore=shutil.ignore_patterns("__pycache__")
    )
    (package / "__init__.py").write_text(COPY_INIT)
    return package


def is_stored(model_uri: str) -> bool:
    """Return whether MLflow has a model at `models:/m-…`, which it does not if it was deleted."""
    try:
        mlflow.MlflowClient().get_logged_model(model_uri.removeprefix("models:/"))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def delete_model(model_uri: str) -> None:
    """Delete a model at `models:/m-…` with its files; do nothing if it is deleted already."""
    client, model_id = mlflow.MlflowClient(), model_uri.removeprefix("models:/")
    try:
        model = client.get_logged_model(model_id)
    except MlflowException:
        return
    get_artifact_repository(model.artifact_location).delete_artifacts()
    client.delete_logged_model(model_id)
