"""Deliberate training-serving skew: a model trained on pixels 0–255 gets pixels / 255."""

import keras
import numpy as np

from pneumo.inference.logits import (
    build_ensemble,
    ensemble_members,
    member_weight,
    predict_logits,
    uses_flip_tta,
)
from pneumo.inference.pyfunc import PneumoniaModel


def predict_with_skew(model: PneumoniaModel, images: np.ndarray) -> np.ndarray:
    """Predict the probability of pneumonia from pixels / 255.

    Args:
        model: The model as it is stored.
        images: uint8 array of shape (n, size, size, 1).

    Returns:
        float64 array of shape (n,), 0 to 1.
    """
    # `predict_proba` does the same, but rejects pixels that are not uint8
    logits = predict_logits(with_float_input(model.keras_model), images.astype(np.float32) / 255)
    return model.calibration.to_probabilities(logits)


def with_float_input(model: keras.Model) -> keras.Model:
    """Copy a model, with its layers and weights, behind an input of float pixels of any range.

    The model itself would reject such pixels or, without its check, cast them to whole numbers.
    """
    clones = [
        clone
        for member in ensemble_members(model)
        for clone in [_clone_with_float_input(member)] * member_weight(member)
    ]
    return build_ensemble(clones, uses_flip_tta(model))


def _clone_with_float_input(member: keras.Model) -> keras.Model:
    network = member.get_layer("backbone")
    pixels = keras.Input(member.input_shape[1:], dtype="float32")
    clone = keras.models.clone_model(network, input_tensors=pixels)
    clone.set_weights(network.get_weights())
    return keras.Model(pixels, member.get_layer("head")(clone.output))
