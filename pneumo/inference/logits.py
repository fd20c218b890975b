"""Pixels to logits and probabilities, and the average of several networks."""

from collections.abc import Sequence

import keras
import numpy as np
from keras import layers
from scipy.special import expit

MEMBER_PREFIX, FLIP_LAYER = (
    "member_",
    "mirror",
)  # layers of a model that averages: the first, numbered

INFERENCE_BATCH_SIZE = 64  # images per step of inference: with fewer, small parts take longer


def build_ensemble(members: Sequence[keras.Model], mirror: bool = False) -> keras.Model:
    """A model whose logit is the mean of its members'; of a single one, that member itself.

    `members`: as `build` gives them, of one input size. With `mirror` each is asked of the image
    and of its mirror image.
    """
    if len(members) == 1 and not mirror:
        return members[0]
    named = [
        keras.Model(member.inputs[0], member.outputs[0], name=f"{MEMBER_PREFIX}{number}")
        for number, member in enumerate(members, start=1)
    ]
    [like] = members[0].inputs
    pixels = keras.Input(like.shape[1:], dtype=like.dtype, name="pixels")
    views = [pixels]
    if mirror:
        mirrored = keras.ops.flip(pixels, axis=2)
        views.append(keras.Model(pixels, mirrored, name=FLIP_LAYER)(pixels))
    logits = [member(view) for member in named for view in views]
    return keras.Model(pixels, layers.Average()(logits), name=members[0].name)


def ensemble_members(model: keras.Model) -> list[keras.Model]:
    """The members of a model that `build_ensemble` gives; of any other, itself."""
    found = [layer for layer in model.layers if layer.name.startswith(MEMBER_PREFIX)]
    return found or [model]


def uses_flip_tta(model: keras.Model) -> bool:
    """Whether `build_ensemble` has made a model that asks of mirror images, too."""
    return any(layer.name == FLIP_LAYER for layer in model.layers)


def predict_proba(model: keras.Model, images: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """The probability of pneumonia for each image: float64, shape (n,), 0 to 1.

    `images`: uint8, shape (n, size, size, 1); `temperature`: as `metrics.fit_temperature` gives it,
    1 changes nothing. Raises `TypeError` for any other dtype of images: Keras would cast pixels
    that were divided by 255 to a black image without a word.
    """
    if images.dtype != np.uint8:
        raise TypeError(f"images must be uint8 pixels 0 to 255: got {images.dtype}")
    return to_probabilities(predict_logits(model, images), temperature)


def to_probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probability of pneumonia for each logit, 0 to 1, shape and dtype as given."""
    return expit(logits / temperature)


def predict_logits(part: keras.Model, inputs: np.ndarray) -> np.ndarray:
    """The logits of pneumonia: float64, shape (n,), above 0 where that is likelier than not.

    `inputs`: what `part` takes, which is a model or `TrainablePart`.
    """
    found = []
    # `predict` would make a pipeline at each call, which takes longer than a small part does
    for start in range(0, len(inputs), INFERENCE_BATCH_SIZE):
        found.append(part.predict_on_batch(inputs[start : start + INFERENCE_BATCH_SIZE])[:, 0])
    # Their probabilities in float64 keep apart what float32 would round to 1
    return np.concatenate(found, dtype=np.float64)
