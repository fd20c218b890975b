"""Models in MLflow's registry."""

import mlflow

from pneumo import tracking
from pneumo.data.sample import example_file

CHALLENGER = "challenger"


def load(model_uri: str) -> mlflow.pyfunc.PythonModel:
    """The stored model as a `serve.PneumoniaModel`, with its `keras_model` and `settings`."""
    return mlflow.pyfunc.load_model(model_uri).unwrap_python_model()


def register(run_id: str, model: mlflow.pyfunc.PythonModel, model_name: str) -> int:
    """Makes `model` the newest version of `model_name` and its `challenger`; returns the version.

    It is logged once more on `run_id`, its own trial, now with an input example, which costs
    seconds and so is not spent on models that are never registered.
    """
    uri = tracking.log_model(run_id, model.keras_model, model.settings, example_file())
    version = mlflow.register_model(uri, model_name).version
    mlflow.MlflowClient().set_registered_model_alias(model_name, CHALLENGER, version)
    return version
