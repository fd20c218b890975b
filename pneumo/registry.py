"""Models in MLflow's registry."""

import re
from dataclasses import dataclass

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.models import get_model_info

from pneumo import tracking
from pneumo.data.sample import example_file
from pneumo.errors import Mistake

CHALLENGER = "challenger"
TEST_EVALUATIONS = "pneumo.test_evaluations"  # tag: how often a model has been held against test

VERSION = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<number>\d+))")


@dataclass(frozen=True)
class Stored:
    """A model in MLflow, loaded.

    `trial`: the Keras run that made it; `model_id`: MLflow's own; `name` and `version`: in the
    registry, '' and 0 where it is not registered; `model`: a `serve.PneumoniaModel` with its
    `keras_model` and `settings`.
    """

    trial: Run
    model_id: str
    name: str
    version: int
    model: mlflow.pyfunc.PythonModel

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"{self.name} version {self.version}" if self.version else f"model {self.model_id}"


def load(model_uri: str) -> mlflow.pyfunc.PythonModel:
    """The stored model as a `serve.PneumoniaModel`, with its `keras_model` and `settings`."""
    return mlflow.pyfunc.load_model(model_uri).unwrap_python_model()


def find(model_uri: str) -> Stored:
    """The model at `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `models:/m-…`.

    Raises `Mistake` where there is none, or another's.
    """
    try:
        name, version = _version(model_uri)
        exact = f"models:/{name}/{version}" if version else model_uri  # an alias may move
        info = get_model_info(exact)
        trial, model = mlflow.get_run(info.run_id), load(exact)
    except (MlflowException, OSError) as error:
        raise Mistake(
            f"model must be models:/NAME@ALIAS, models:/NAME/VERSION or models:/m-… in "
            f"{tracking.store()}: got '{model_uri}' ({error})".replace("\n", " ")
        ) from None
    if not hasattr(model, "settings"):
        raise Mistake(f"model must be one that pneumo made: '{model_uri}' is another's")
    return Stored(trial, info.model_id, name, version, model)


def _version(model_uri: str) -> tuple[str, int]:
    match = VERSION.fullmatch(model_uri)
    if not match:
        return "", 0
    if match["number"]:
        return match["name"], int(match["number"])
    found = mlflow.MlflowClient().get_model_version_by_alias(match["name"], match["alias"])
    return match["name"], int(found.version)


def test_evaluations(stored: Stored) -> int:
    """How often a model has been held against test."""
    client = mlflow.MlflowClient()
    if stored.version:
        tags = client.get_model_version(stored.name, str(stored.version)).tags
    else:
        tags = client.get_logged_model(stored.model_id).tags
    return int(tags.get(TEST_EVALUATIONS, 0))


def count_test_evaluation(stored: Stored) -> int:
    """Counts that a model is held against test once more; returns how often it now has been."""
    client, count = mlflow.MlflowClient(), test_evaluations(stored) + 1
    if stored.version:
        version = str(stored.version)
        client.set_model_version_tag(stored.name, version, TEST_EVALUATIONS, str(count))
    else:
        client.set_logged_model_tags(stored.model_id, {TEST_EVALUATIONS: str(count)})
    return count


def register(run_id: str, model: mlflow.pyfunc.PythonModel, model_name: str) -> Stored:
    """Makes `model` the newest version of `model_name` and its `challenger`.

    It is logged once more on `run_id`, its own trial, now with an input example, which costs
    seconds and so is not spent on models that are never registered.
    """
    info = tracking.log_model(run_id, model.keras_model, model.settings, example_file())
    version = int(mlflow.register_model(info.model_uri, model_name).version)
    mlflow.MlflowClient().set_registered_model_alias(model_name, CHALLENGER, str(version))
    return Stored(mlflow.get_run(run_id), info.model_id, model_name, version, model)
