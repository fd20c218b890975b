"""Logits and probabilities of images, and ensembles of several networks."""

from collections.abc import Sequence

import keras
import numpy as np
from keras import layers
from scipy.special import expit

# Names of layers in an ensemble: a member's is the prefix and a number from 1
MEMBER_PREFIX, FLIP_LAYER = "member_", "mirror"

INFERENCE_BATCH_SIZE = 64  # images per step: with fewer, small parts take longer


def build_ensemble(members: Sequence[keras.Model], flip_tta: bool = False) -> keras.Model:
    """Build a model whose logit is the mean of its members' logits.

    Args:
        members: Models as `build_model` returns them, of one input size.
        flip_tta: Whether to use test-time augmentation: each member also gets the horizontally
            flipped image, and its two logits are averaged.

    Returns:
        The ensemble. A single member without `flip_tta` is returned itself.
    """
    if len(members) == 1 and not flip_tta:
        return members[0]
    named_members = [
        keras.Model(member.inputs[0], member.outputs[0], name=f"{MEMBER_PREFIX}{number}")
        for number, member in enumerate(members, start=1)
    ]
    [member_input] = members[0].inputs
    pixels = keras.Input(member_input.shape[1:], dtype=member_input.dtype, name="pixels")
    views = [pixels]
    if flip_tta:
        flipped = keras.ops.flip(pixels, axis=2)
        views.append(keras.Model(pixels, flipped, name=FLIP_LAYER)(pixels))
    logits = [member(view) for member in named_members for view in views]
    return keras.Model(pixels, layers.Average()(logits), name=members[0].name)


def ensemble_members(model: keras.Model) -> list[keras.Model]:
    """Return the members of an ensemble; any other model is returned as its only member."""
    members = [layer for layer in model.layers if layer.name.startswith(MEMBER_PREFIX)]
    return members or [model]


def uses_flip_tta(model: keras.Model) -> bool:
    """Return whether a model uses test-time augmentation with flipped images."""
    return any(layer.name == FLIP_LAYER for layer in model.layers)


def predict_proba(model: keras.Model, images: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Predict the probability of pneumonia for each image.

    Args:
        model: Model as `build_ensemble` returns it.
        images: uint8 array of shape (n, size, size, 1).
        temperature: Divisor of the logits, as `metrics.fit_temperature` returns it. 1 changes
            nothing.

    Returns:
        float64 array of shape (n,), 0 to 1.

    Raises:
        TypeError: The images have another dtype. Keras would cast pixels that were divided by 255
            to a black image without an error.
    """
    if images.dtype != np.uint8:
        raise TypeError(
            f"images must have dtype uint8 and values from 0 to 255: got {images.dtype}"
        )
    return to_probabilities(predict_logits(model, images), temperature)


def to_probabilities(logits: np.ndarray, temperature: float | np.ndarray) -> np.ndarray:
    """Return the probability of pneumonia for each logit.

    Args:
        logits: Float array of any shape.
        temperature: Divisor of the logits, above 0: one, or one for each logit.

    Returns:
        Array of the same shape and dtype, 0 to 1.
    """
    return expit(logits / temperature)


def predict_logits(part: keras.Model, inputs: np.ndarray) -> np.ndarray:
    """Predict the logit of pneumonia for each input.

    Args:
        part: A model or a `TrainablePart`.
        inputs: What `part` takes, n of them.

    Returns:
        float64 array of shape (n,), above 0 if pneumonia is more likely than not.
    """
    batches = []
    # `predict` would build a pipeline at each call, which takes longer than a small part itself
    for start in range(0, len(inputs), INFERENCE_BATCH_SIZE):
        batches.append(part.predict_on_batch(inputs[start : start + INFERENCE_BATCH_SIZE])[:, 0])
    # float64 keeps probabilities distinct that float32 would round to 1
    return np.concatenate(batches, dtype=np.float64)
