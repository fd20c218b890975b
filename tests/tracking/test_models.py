"""URIs of models, and foreign models."""

import mlflow
import pytest

from pneumo.runtime.errors import UserError
from pneumo.tracking import models

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("models:/pneumonia-sample@champion", "got 'models:/pneumonia-sample@champion'"),
        ("models:/nobody/1", "got 'models:/nobody/1'"),
        ("models:/m-0", "got 'models:/m-0'"),
        ("somewhere", "got 'somewhere'"),
    ],
)
def test_a_model_that_is_not_there(study, address, message):
    with pytest.raises(UserError, match="model must be models:/NAME@ALIAS") as caught:
        models.find_model(address)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_foreign_model_is_rejected(study):
    class Other(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input: list[str]):
            return model_input

    with mlflow.start_run():
        info = mlflow.pyfunc.log_model(name="other", python_model=Other(), pip_requirements=[])
    mlflow.register_model(info.model_uri, "other")
    for address in (info.model_uri, "models:/other/1"):
        with pytest.raises(UserError, match=f"must be created by pneumo: '{address}' was not"):
            models.find_model(address)
