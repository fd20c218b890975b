"""Stores to spoil, with a registered model, a run's model and another project's model."""

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import mlflow

from pneumo.data.dataset import open_dataset
from tests.support.handmade import register, run_of, write_images
from tests.support.stores import copy_stores, store_in


@dataclass(frozen=True)
class Stored:
    """Content of the stores of a case.

    `trial`: URI of the model of a run. `version`, `foreign`: ids of a registered model of pneumo
    and of one of another project, registered as `pneumonia` and `other`. `images`: a data set.
    """

    trial: str
    version: str
    foreign: str
    images: str


class Anothers(mlflow.pyfunc.PythonModel):
    """Model of another project, stored as a pickle."""

    def predict(self, context, model_input: list[str]):
        return model_input


@lru_cache(maxsize=1)
def _original() -> tuple[Stored, Path]:
    """Make the stores once, and return their folder."""
    folder = Path(tempfile.mkdtemp(prefix="models"))
    atexit.register(shutil.rmtree, folder)
    images = str(write_images(folder / "images"))
    with store_in(folder) as client:
        made = run_of("left", open_dataset(images, required_splits=("train", "test")))
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
    """Copy the stores into a folder, and make them the current ones."""
    uri = mlflow.get_tracking_uri()
    stored, original = _original()
    mlflow.set_tracking_uri(uri)
    copy_stores(original, folder)
    return stored
