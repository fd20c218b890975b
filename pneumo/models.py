"""The table of backbones, the dense head, and which blocks train."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
from keras import layers

from pneumo.config import RunConfig


@dataclass(frozen=True)
class Backbone:
    """From grey pixels to a vector of features.

    `build(size)` gives a model from float32 pixels 0–255, shape (batch, size, size, 1), to
    features, shape (batch, n), with its own preprocessing inside, of stock layers only;
    `block_end` matches the name of the layer that ends a block.
    """

    build: Callable[[int], keras.Model]
    block_end: str


def _cnn(size: int) -> keras.Model:
    """The small CNN of the published project, on one grey channel instead of three."""
    return keras.Sequential(
        [
            keras.Input((size, size, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(16, 3, strides=2, padding="same", activation="relu", name="conv_1"),
            layers.MaxPooling2D(2, strides=2, name="block_1_out"),
            layers.Conv2D(16, 3, strides=2, padding="same", activation="relu", name="conv_2"),
            layers.MaxPooling2D((3, 2), strides=2, name="block_2_out"),
            layers.Flatten(),
        ],
        name="backbone",
    )


BACKBONES = {"cnn": Backbone(_cnn, r"block_\d+_out")}


def build(config: RunConfig) -> keras.Model:
    """The model that `config` describes, not yet compiled, its frozen blocks frozen.

    Takes uint8 pixels 0–255, shape (batch, size, size, 1); gives one logit, float32, shape
    (batch, 1), above 0 for pneumonia. Weights come from Keras' global seed.
    """
    backbone = BACKBONES[config.backbone].build(config.image_size)
    freeze(backbone, config)
    pixels = keras.Input((config.image_size, config.image_size, 1), dtype="uint8", name="pixels")
    # training=False: the statistics of batch normalisation never move
    features = backbone(layers.Rescaling(1.0)(pixels), training=False)
    return keras.Model(pixels, _head(features, config), name=config.backbone)


def _head(features: keras.KerasTensor, config: RunConfig) -> keras.KerasTensor:
    """Dense layers, each followed by dropout; without any, dropout on the features."""
    for width in config.dense_widths:
        features = layers.Dense(width, activation="relu")(features)
        features = layers.Dropout(config.dropout)(features)
    if not config.dense_widths:
        features = layers.Dropout(config.dropout)(features)
    return layers.Dense(1, name="logit")(features)


def blocks(backbone: keras.Model, block_end: str) -> list[list[keras.Layer]]:
    """The layers of each block, from the input up; what follows the last end is the top block's."""
    found: list[list[keras.Layer]] = [[]]
    for layer in backbone.layers:
        found[-1].append(layer)
        if re.fullmatch(block_end, layer.name):
            found.append([])
    *whole, rest = found
    whole[-1] += rest
    return whole


def freeze(backbone: keras.Model, config: RunConfig) -> None:
    """Lets the `unfreeze_depth` topmost blocks train and no other; 0 freezes all of them."""
    all_blocks = blocks(backbone, BACKBONES[config.backbone].block_end)
    frozen = len(all_blocks) - config.unfreeze_depth
    for position, block in enumerate(all_blocks):
        for layer in block:
            layer.trainable = position >= frozen


def probabilities(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """The probability of pneumonia for each image: float64, shape (n,), 0 to 1.

    `images`: uint8, shape (n, size, size, 1). Raises `TypeError` for any other dtype:
    Keras would cast pixels that were divided by 255 to a black image without a word.
    """
    if images.dtype != np.uint8:
        raise TypeError(f"images must be uint8 pixels 0 to 255: got {images.dtype}")
    logits = model.predict(images, batch_size=128, verbose=0)[:, 0].astype(np.float64)
    # A probability of float64 keeps apart what float32 would round to 1
    return 1 / (1 + np.exp(-logits))
