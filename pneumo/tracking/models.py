"""Models in MLflow, found by their URI."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pneumo.runtime.errors import UserError
from pneumo.tracking import runs, session, tags
from pneumo.tracking.model_files import download_model, load_files, model_digest

if TYPE_CHECKING:
    from pneumo.inference.pyfunc import PneumoniaModel


MODEL_URI_PATTERN = re.compile(
    r"models:/((?P<id>m-[0-9a-f]+)|(?P<name>[^/@:]+)(@(?P<alias>[\w.-]+)|/(?P<number>[0-9]{1,9})))"
)


@dataclass(frozen=True)
class LoadedModel:
    """A model in MLflow, loaded.

    Attributes:
        trial: The Keras run that trained it.
        model_id: MLflow's id of the model.
        name: Name of the registered model, or '' if it is not registered.
        version: Number of the version, or 0 if it is not registered.
        model: The model, with its `keras_model` and `settings`.
    """

    trial: Run
    model_id: str
    name: str
    version: int
    model: "PneumoniaModel"

    @property
    def title(self) -> str:
        """Return the model's name for people."""
        return f"{self.name} version {self.version}" if self.version else f"model {self.model_id}"

    @property
    def is_synthetic(self) -> bool:
        """Return whether the model was trained on synthetic images."""
        return self.trial.data.tags[tags.SYNTHETIC] == "true"


class ModelTamperedError(UserError):
    """The error for a version whose files are missing or are not those that were registered."""


class TrialRemovedError(UserError):
    """The error for a model whose training run is no longer in the store."""


def find_model(model_uri: str) -> LoadedModel:
    """Load the model at a URI.

    Args:
        model_uri: `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `models:/m-…`.

    Raises:
        ModelTamperedError: The files of a version have changed since it was registered, or are
            missing. Nothing of them is loaded.
        TrialRemovedError: The run that trained the model has been removed by `mlflow gc`.
        UserError: The model does not exist, was not created by pneumo, or is invalid.
    """
    try:
        exact, version, model_id, run_id = _resolve_uri(model_uri)
        trial = _source_run(run_id, model_uri)
        with download_model(exact) as folder:
            if version:
                _require_unchanged(version, folder)
            model = load_files(folder, model_uri)
    except (MlflowException, OSError) as error:
        raise UserError(f"{_uri_rule(model_uri)} ({error})") from None
    name, number = (version.name, int(version.version)) if version else ("", 0)
    return LoadedModel(trial, model_id, name, number, model)


def _uri_rule(model_uri: str) -> str:
    return (
        "model must be models:/NAME@ALIAS, models:/NAME/VERSION or models:/m-… in "
        f"{session.tracking_address()}: got '{model_uri}'"
    )


def _resolve_uri(model_uri: str) -> tuple[str, ModelVersion | None, str, str]:
    """Return a fixed URI, the version if the model has one, the model's id, and its run's id."""
    match, client = MODEL_URI_PATTERN.fullmatch(model_uri), mlflow.MlflowClient()
    if not match:
        raise UserError(f"{_uri_rule(model_uri)}. The page of a model in MLflow shows its URI.")
    if match["id"]:
        logged_model = client.get_logged_model(match["id"])
        return model_uri, None, logged_model.model_id, logged_model.source_run_id
    if match["number"]:
        version = client.get_model_version(match["name"], match["number"])
    else:  # an alias may move until the files are read
        version = client.get_model_version_by_alias(match["name"], match["alias"])
    if tags.MODEL_DIGEST not in version.tags:
        raise _foreign_model_error(model_uri)
    exact = f"models:/{version.name}/{version.version}"
    return exact, version, logged_model_id(version), version.run_id


def _source_run(run_id: str | None, model_uri: str) -> Run:
    """Return the run that trained a model; raise UserError if pneumo did not create it."""
    try:
        run = mlflow.get_run(run_id) if run_id else None
    except MlflowException as error:
        if error.error_code != runs.NOT_FOUND:
            raise
        raise TrialRemovedError(
            f"the run that trained a model must be in {session.tracking_address()}: run {run_id} "
            f"of '{model_uri}' has been removed. Pass another model, or train a new one."
        ) from None
    if run is None or run.data.tags.get(tags.KIND) not in ("trial", "ensemble"):
        raise _foreign_model_error(model_uri)
    return run


def verify_registered_files(model_name: str, version: int) -> None:
    """Require that a version's files are those that were registered.

    Args:
        model_name: Name of the registered model.
        version: Number of the version.

    Raises:
        ModelTamperedError: The files have changed, or are missing.
        UserError: The files cannot be read.
    """
    model_uri = f"models:/{model_name}/{version}"
    try:
        with download_model(model_uri) as folder:
            _require_unchanged(mlflow.MlflowClient().get_model_version(model_name, version), folder)
    except (MlflowException, OSError) as error:
        raise UserError(
            f"the files of a version must be in {session.tracking_address()}: those of "
            f"'{model_uri}' cannot be read ({error}). Promote another version instead."
        ) from None


def _foreign_model_error(model_uri: str) -> UserError:
    return UserError(
        f"model must be created by pneumo: '{model_uri}' was not. Pass the URI of a model from "
        "train or tune, which the page of the model in MLflow shows."
    )


def _require_unchanged(version: ModelVersion, folder: Path) -> None:
    if tags.MODEL_DIGEST not in version.tags:
        raise _foreign_model_error(f"models:/{version.name}/{version.version}")
    digest, registered = model_digest(folder), version.tags[tags.MODEL_DIGEST]
    if digest != registered:
        state = f"now have digest {digest}" if any(folder.iterdir()) else "are missing"
        raise ModelTamperedError(
            f"the files of {version.name} version {version.version} must be those that were "
            f"registered, with digest {registered}: they {state}. Do not use this version."
        )


def logged_model_id(version: ModelVersion) -> str:
    """Return MLflow's id of the logged model of a version."""
    return version.source.removeprefix("models:/")
