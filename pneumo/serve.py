"""The model that MLflow stores: image files in, probabilities out.

MLflow keeps this file and the package with the model and runs them in the place that serves
it ("models from code": no pickle), so nothing here may need more than the package's `data`.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pandas as pd

from pneumo.data.pixels import UnreadableImage, decode
from pneumo.models import probabilities

COLUMNS = ["probability", "label", "threshold", "error"]


class PneumoniaModel(mlflow.pyfunc.PythonModel):
    """Answers `probability`, `label` (1 pneumonia, 0 normal) and `threshold` for each image.

    Where a file cannot be read, `error` says why and the others are None.
    """

    def load_context(self, context: mlflow.pyfunc.PythonModelContext) -> None:
        """Loads the Keras file and its `settings`.

        Those are `threshold` and `temperature`, from validation, `val_uncalibrated`, what
        `evaluate.calibration` gives there without it, and `resize`, as in `pixels.decode`.
        """
        self.keras_model = keras.models.load_model(context.artifacts["keras"], compile=False)
        self.settings = json.loads(Path(context.artifacts["settings"]).read_text())

    def predict(
        self,
        context: mlflow.pyfunc.PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """`model_input`: the bytes of one image file a row, in column `image`."""
        decoded = [self._decoded(file) for file in model_input["image"]]
        scores = iter(self._scores([image for image, error in decoded if error is None]))
        rows = [
            self._answer(next(scores)) if error is None else (None, None, None, error)
            for _, error in decoded
        ]
        return pd.DataFrame(rows, columns=COLUMNS, index=model_input.index)

    def _scores(self, images: list[np.ndarray]) -> Iterable[float]:
        if not images:
            return ()
        pixels = np.stack(images)[..., None]
        return probabilities(self.keras_model, pixels, self.settings["temperature"])

    def _answer(self, probability: float) -> tuple[float, int, float, None]:
        threshold = self.settings["threshold"]
        return float(probability), int(probability >= threshold), threshold, None

    def _decoded(self, file: bytes) -> tuple[np.ndarray | None, str | None]:
        try:
            return decode(file, self.keras_model.input_shape[1], self.settings["resize"]), None
        except UnreadableImage as error:
            return None, str(error)


mlflow.models.set_model(PneumoniaModel())
