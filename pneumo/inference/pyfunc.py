"""The model that MLflow stores: it takes image files and returns probabilities.

MLflow stores a copy of this folder with each model, and runs that copy to serve the model ("models
from code": no pickle). So nothing here imports another part of pneumo, or a library that is not in
`model_files.SERVING_REQUIREMENTS`.
"""

import base64
import binascii
import json
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from keras.models import load_model
from mlflow.exceptions import MlflowException

from pneumo.inference.batches import map_batches
from pneumo.inference.calibration import Calibration, prevalence_shift, shift_probabilities
from pneumo.inference.decode import decode
from pneumo.inference.input_gate import InputGate
from pneumo.inference.logits import (
    optimize_for_inference,
    predict_in_batches,
    predict_logits,
    with_features,
)
from pneumo.inference.untrusted import UnreadableImageError

# What to do with an image that is far from the training images: predict it and give the error too,
# give only the error, or predict it
OUT_OF_RANGE_MODES = ("warn", "refuse", "ignore")

OUTPUT_COLUMNS = ["probability", "label", "threshold", "error"]


class PneumoniaModel(mlflow.pyfunc.PythonModel):
    """MLflow model that returns `probability`, `label` and `threshold` for each image file.

    `label` is 1 for pneumonia and 0 for normal. If a file cannot be read, `error` gives the reason
    and the other columns are None. If an image is far from the training images, `error` says so.

    Attributes:
        keras_model: The network.
        settings: See `load_from`.
        input_gate: What detects images far from the training images. A model that was never
            registered, or was by an older version of pneumo, has none.
        adjusted_to: Prevalence of `adjust_to_prevalence`, or None.
    """

    input_gate: InputGate | None = None
    adjusted_to: float | None = None

    def load_context(self, context: mlflow.pyfunc.PythonModelContext) -> None:
        """Load the files that MLflow has stored as artifacts."""
        self.load_from(**{name: Path(file) for name, file in context.artifacts.items()})

    def load_from(self, keras: Path, settings: Path, input_gate: Path | None = None) -> None:
        """Load the Keras file and the gate, of which no code is executed, and the settings.

        The settings are:
            threshold: From validation.
            slope, intercept: The calibration, from validation.
            prevalence: Fraction of positive images among these, for which probabilities hold.
            val_uncalibrated: `metrics.calibration_metrics` of validation without calibration.
            resize: See `decode.decode`.
            decoder: Version of the decoder that decoded the training images. Old models lack it.

        Args:
            keras: The model in Keras' format.
            settings: JSON object of the settings.
            input_gate: The file of the gate, if the model has one.
        """
        self.keras_model = load_model(keras, compile=False, safe_mode=True)
        self.settings = json.loads(settings.read_text())
        if input_gate is None:
            self.input_gate = None
            self._network = optimize_for_inference(self.keras_model)
        else:
            self.use_gate(InputGate.load(input_gate))
        if "temperature" in self.settings:  # of an older model, whose training weighs classes alike
            slope = 1 / self.settings.pop("temperature")
            self.settings |= {"slope": slope, "intercept": 0.0, "prevalence": 0.5}

    def use_gate(self, input_gate: InputGate) -> None:
        """Detect images that are far from the training images.

        Raises:
            ValueError: The network has no such layer, or another number of features.
        """
        network = with_features(self.keras_model, input_gate.layer)
        n_features = network.output_shape[1][-1]
        if n_features != len(input_gate.mean):
            raise ValueError(
                f"the input gate must have {n_features} features: it has {len(input_gate.mean)}"
            )
        self.input_gate = input_gate
        self._network = optimize_for_inference(network)

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
            params: `out_of_range` is one of `OUT_OF_RANGE_MODES`, by default the first.

        Returns:
            Columns `OUTPUT_COLUMNS`, with the index of `model_input`.

        Raises:
            MlflowException: `out_of_range` is something else.
        """
        mode = (params or {}).get("out_of_range", OUT_OF_RANGE_MODES[0])
        if mode not in OUT_OF_RANGE_MODES:
            raise MlflowException.invalid_parameter_value(
                f"out_of_range must be one of {', '.join(OUT_OF_RANGE_MODES)}: got {mode!r}"
            )
        step = partial(self._predict_batch, mode)
        batches = map_batches(step, model_input["image"].tolist())
        # A numeric column would turn None into NaN, which JSON does not have
        return pd.DataFrame(
            [row for batch in batches for row in batch],
            columns=OUTPUT_COLUMNS,
            index=model_input.index,
            dtype=object,
        )

    def predict_images(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Predict decoded images.

        Args:
            pixels: uint8 array of shape (n, size, size, 1).

        Returns:
            Logits before calibration, float64, shape (n,), and distances from the training images,
            shape (n,), or None if the model has no `input_gate`.
        """
        if self.input_gate is None:
            return predict_logits(self._network, pixels), None
        batches = predict_in_batches(self._network, pixels)
        logits, features = map(np.concatenate, zip(*batches, strict=True))
        distances = self.input_gate.measure_distances(features)
        return logits[:, 0].astype(np.float64), distances

    def _predict_batch(self, mode: str, files: list[Any]) -> list[tuple]:
        decoded = [self._decode_or_error(file) for file in files]
        images = [image for image, error in decoded if error is None]
        rows = iter(self._predict_rows(mode, np.stack(images)[..., np.newaxis]) if images else ())
        return [next(rows) if error is None else (None, None, None, error) for _, error in decoded]

    def _predict_rows(self, mode: str, pixels: np.ndarray) -> Iterator[tuple]:
        logits, distances = self.predict_images(pixels)
        threshold = self.threshold
        for number, probability in enumerate(self.calibration.to_probabilities(logits)):
            error = None
            if distances is not None and mode != "ignore":
                error = self.input_gate.describe(distances[number])
            if error and mode == "refuse":
                yield None, None, None, error
            else:
                yield float(probability), int(probability >= threshold), threshold, error

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
