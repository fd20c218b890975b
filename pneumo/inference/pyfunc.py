"""The model that MLflow stores: image files in, probabilities out.

MLflow keeps this folder with each model and runs it in the place that serves the model ("models
from code": no pickle). So nothing here imports another part of pneumo, or a library that is not in
`model_files.SERVING_REQUIREMENTS`.
"""

import base64
import binascii
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pandas as pd

from pneumo.inference.batches import map_batches
from pneumo.inference.decode import UnreadableImageError, decode
from pneumo.inference.logits import predict_proba

OUTPUT_COLUMNS = ["probability", "label", "threshold", "error"]


class PneumoniaModel(mlflow.pyfunc.PythonModel):
    """Answers `probability`, `label` (1 pneumonia, 0 normal) and `threshold` for each image.

    Where a file cannot be read, `error` says why and the others are None.
    """

    def load_context(self, context: mlflow.pyfunc.PythonModelContext) -> None:
        """Loads the files that MLflow has stored as artifacts."""
        self.load_from(*(Path(context.artifacts[name]) for name in ("keras", "settings")))

    def load_from(self, keras_file: Path, settings_file: Path) -> None:
        """Loads the Keras file, of which nothing is run as code, and its `settings`.

        Those are `threshold` and `temperature`, from validation; `val_uncalibrated`, what
        `metrics.calibration_metrics` gives there without the temperature; `resize`, see
        `decode.decode`; `decoder`, the version of the decoder that the training images went
        through. Models made before that was noted have no `decoder`.
        """
        self.keras_model = keras.models.load_model(keras_file, compile=False, safe_mode=True)
        self.settings = json.loads(settings_file.read_text())

    @property
    def image_size(self) -> int:
        """Side of the square that the network takes, in pixels."""
        return self.keras_model.input_shape[1]

    def decode(self, file: bytes) -> np.ndarray:
        """Return an image as the network takes it: uint8, shape (size, size).

        Raises:
            UnreadableImageError: The bytes are no image that can be decoded.
        """
        return decode(file, self.image_size, self.settings["resize"])

    def predict(
        self,
        context: mlflow.pyfunc.PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """`model_input`: one image file a row, in column `image`; see `to_file_bytes`."""
        answers = map_batches(self._answers, model_input["image"].tolist())
        # As numbers, what is None would be NaN, which JSON has no word for
        return pd.DataFrame(
            [row for batch in answers for row in batch],
            columns=OUTPUT_COLUMNS,
            index=model_input.index,
            dtype=object,
        )

    def _answers(self, files: list[Any]) -> list[tuple]:
        decoded = [self._decoded(file) for file in files]
        images = [image for image, error in decoded if error is None]
        scores = iter(self._scores(images) if images else ())
        return [
            self._answer(next(scores)) if error is None else (None, None, None, error)
            for _, error in decoded
        ]

    def _scores(self, images: list[np.ndarray]) -> np.ndarray:
        pixels = np.stack(images)[..., np.newaxis]
        return predict_proba(self.keras_model, pixels, self.settings["temperature"])

    def _answer(self, probability: float) -> tuple[float, int, float, None]:
        threshold = self.settings["threshold"]
        return float(probability), int(probability >= threshold), threshold, None

    def _decoded(self, value: Any) -> tuple[np.ndarray | None, str | None]:
        try:
            return self.decode(to_file_bytes(value)), None
        except UnreadableImageError as error:
            return None, str(error)


def to_file_bytes(value: Any) -> bytes:
    """An image file as its bytes, or as their base64, in bytes or text.

    Of a request in JSON, MLflow decodes base64 itself in the shapes `dataframe_split` and
    `dataframe_records`, and hands it over as it came in `inputs` and `instances`. No image file is
    ASCII throughout, so the two cannot be mistaken. Raises `UnreadableImageError` for anything
    else.
    """
    if isinstance(value, str):  # which may hold what UTF-8 has no bytes for
        value = value.encode(errors="replace")
    if not isinstance(value, bytes):
        raise UnreadableImageError(f"no image file, but {type(value).__name__}")
    if value.isascii():
        with suppress(binascii.Error):  # then it is no image either, as the decoder will say
            return base64.b64decode(b"".join(value.split()), validate=True)
    return value


mlflow.models.set_model(PneumoniaModel())
