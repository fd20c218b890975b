"""The model that MLflow stores: it takes image files and returns probabilities.

MLflow stores a copy of this folder with each model, and runs that copy to serve the model ("models
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
from pneumo.inference.calibration import Calibration, prevalence_shift, shift_probabilities
from pneumo.inference.decode import UnreadableImageError, decode
from pneumo.inference.logits import predict_proba

OUTPUT_COLUMNS = ["probability", "label", "threshold", "error"]


class PneumoniaModel(mlflow.pyfunc.PythonModel):
    """MLflow model that returns `probability`, `label` and `threshold` for each image file.

    `label` is 1 for pneumonia and 0 for normal. If a file cannot be read, `error` gives the reason
    and the other columns are None.
    """

    # Prevalence of `adjust_to_prevalence`, or None
    adjusted_to: float | None = None

    def load_context(self, context: mlflow.pyfunc.PythonModelContext) -> None:
        """Load the files that MLflow has stored as artifacts."""
        self.load_from(*(Path(context.artifacts[name]) for name in ("keras", "settings")))

    def load_from(self, keras_file: Path, settings_file: Path) -> None:
        """Load the Keras file, of which no code is executed, and the settings.

        The settings are:
            threshold: From validation.
            slope, intercept: The calibration, from validation.
            prevalence: Fraction of positive images among these, for which probabilities hold.
            val_uncalibrated: `metrics.calibration_metrics` of validation without calibration.
            resize: See `decode.decode`.
            decoder: Version of the decoder that decoded the training images. Old models lack it.

        Args:
            keras_file: The model in Keras' format.
            settings_file: JSON object of the settings.
        """
        self.keras_model = keras.models.load_model(keras_file, compile=False, safe_mode=True)
        self.settings = json.loads(settings_file.read_text())
        if "temperature" in self.settings:  # of an older model, whose training weighs classes alike
            slope = 1 / self.settings.pop("temperature")
            self.settings |= {"slope": slope, "intercept": 0.0, "prevalence": 0.5}

    @property
    def calibration(self) -> Calibration:
        """Calibration of the network's logits."""
        intercept = self.settings["intercept"] + self._shift
        return Calibration(self.settings["slope"], intercept)

    @property
    def threshold(self) -> float:
        """Probability from which an image is positive."""
        return self.adjust(self.settings["threshold"])

    def adjust_to_prevalence(self, prevalence: float) -> None:
        """Adjust probabilities and threshold to another prevalence; labels stay the same.

        Args:
            prevalence: Fraction of positive images, above 0 and below 1.
        """
        self.adjusted_to = prevalence

    def adjust(self, probability: float) -> float:
        """Return what a probability becomes by `adjust_to_prevalence`; without that the same."""
        return float(shift_probabilities(probability, self._shift)) if self._shift else probability

    @property
    def _shift(self) -> float:
        if self.adjusted_to is None:
            return 0.0
        return prevalence_shift(self.settings["prevalence"], self.adjusted_to)

    @property
    def image_size(self) -> int:
        """Side of the square that the network takes, in pixels."""
        return self.keras_model.input_shape[1]

    def decode(self, file: bytes) -> np.ndarray:
        """Decode an image as the network takes it: uint8, shape (size, size).

        Raises:
            UnreadableImageError: The bytes are not a readable image.
        """
        return decode(file, self.image_size, self.settings["resize"])

    def predict(
        self,
        context: mlflow.pyfunc.PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Predict one row per image file.

        Args:
            context: Not used.
            model_input: Column `image` with one file per row: see `to_file_bytes`.
            params: Not used.

        Returns:
            Columns `OUTPUT_COLUMNS`, with the index of `model_input`.
        """
        batches = map_batches(self._predict_batch, model_input["image"].tolist())
        # A numeric column would turn None into NaN, which JSON does not have
        return pd.DataFrame(
            [row for batch in batches for row in batch],
            columns=OUTPUT_COLUMNS,
            index=model_input.index,
            dtype=object,
        )

    def _predict_batch(self, files: list[Any]) -> list[tuple]:
        decoded = [self._decode_or_error(file) for file in files]
        images = [image for image, error in decoded if error is None]
        probabilities = iter(self._predict_probabilities(images) if images else ())
        return [
            self._to_row(next(probabilities)) if error is None else (None, None, None, error)
            for _, error in decoded
        ]

    def _predict_probabilities(self, images: list[np.ndarray]) -> np.ndarray:
        pixels = np.stack(images)[..., np.newaxis]
        return predict_proba(self.keras_model, pixels, self.calibration)

    def _to_row(self, probability: float) -> tuple[float, int, float, None]:
        threshold = self.threshold
        return float(probability), int(probability >= threshold), threshold, None

    def _decode_or_error(self, value: Any) -> tuple[np.ndarray | None, str | None]:
        try:
            return self.decode(to_file_bytes(value)), None
        except UnreadableImageError as error:
            return None, str(error)


def to_file_bytes(value: Any) -> bytes:
    """Return the bytes of an image file, which may come encoded.

    MLflow itself decodes base64 in JSON requests of the forms `dataframe_split` and
    `dataframe_records`, but not in `inputs` and `instances`. No image file is pure ASCII, so bytes
    and their base64 cannot be confused.

    Args:
        value: The bytes of a file, or their base64 as bytes or text.

    Raises:
        UnreadableImageError: The value is neither bytes nor text.
    """
    if isinstance(value, str):  # text may contain surrogates, which UTF-8 cannot encode
        value = value.encode(errors="replace")
    if not isinstance(value, bytes):
        raise UnreadableImageError(f"not an image file, but {type(value).__name__}")
    if value.isascii():
        with suppress(binascii.Error):  # not base64; the decoder will reject it
            return base64.b64decode(b"".join(value.split()), validate=True)
    return value


mlflow.models.set_model(PneumoniaModel())
