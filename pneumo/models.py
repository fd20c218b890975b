"""From a config to a Keras model: backbone, pretrained weights, dense head, what trains."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
from keras import layers

from pneumo import interrupt
from pneumo.backbones import BACKBONES
from pneumo.config import RunConfig
from pneumo.errors import Mistake

# A layer's name and the shapes of its weights
LayerShapes = tuple[str, list[tuple[int, ...]]]


def build(config: RunConfig) -> keras.Model:
    """The model that `config` describes, not yet compiled, its frozen blocks frozen.

    Takes uint8 pixels 0–255, shape (batch, size, size, 1); gives one logit, float32, shape
    (batch, 1), above 0 for pneumonia. Its random weights follow from the config's seed, which
    becomes that of all of Keras. Raises `Mistake` for weights that `pretrained` refuses.
    """
    weights = pretrained(config)  # before the seed, since it draws random numbers
    keras.utils.set_random_seed(config.seed)
    network = backbone(config)
    if weights is not None:
        network.set_weights(weights)
    pixels = keras.Input((config.image_size, config.image_size, 1), dtype="uint8", name="pixels")
    # training=False: the statistics of batch normalisation never move
    features = network(layers.Rescaling(1.0)(pixels), training=False)
    model = keras.Model(pixels, _head(features, config), name=config.backbone)
    unfreeze(model, config.unfreeze_depth)
    return model


def backbone(config: RunConfig) -> keras.Model:
    """The backbone of `config` with its own preprocessing, its weights random.

    Takes float32 pixels 0–255, shape (batch, size, size, 1); gives features, shape (batch, n).
    """
    facts = BACKBONES[config.backbone]
    pixels = keras.Input((config.image_size, config.image_size, 1))
    if facts.application is None:
        features = _cnn(layers.Rescaling(facts.scale, facts.offset)(pixels))
    else:
        colours = layers.Concatenate()([pixels] * 3)
        colours = layers.Rescaling(facts.scale, facts.offset)(colours)
        network = _application(
            config.backbone, config.alpha, weights=None, pooling="avg", input_tensor=colours
        )
        [features] = network.outputs
    return keras.Model(pixels, features, name="backbone")


def _cnn(pixels: keras.KerasTensor) -> keras.KerasTensor:
    """The small CNN of the published project, on one grey channel instead of three."""
    x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu", name="conv_1")(pixels)
    x = layers.MaxPooling2D(2, strides=2, name="block_1_out")(x)
    x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu", name="conv_2")(x)
    x = layers.MaxPooling2D((3, 2), strides=2, name="block_2_out")(x)
    return layers.Flatten()(x)


def _application(name: str, alpha: float, **options: Any) -> keras.Model:
    facts = BACKBONES[name]
    if facts.scalable:
        options["alpha"] = alpha
    return getattr(keras.applications, facts.application)(include_top=False, **options)


def pretrained(config: RunConfig) -> list[np.ndarray] | None:
    """The pretrained weights that `config` asks for, in Keras' order; None for `none`.

    Raises `Mistake` for a file that does not fit the backbone, and for ImageNet's weights where
    there are none or they cannot be downloaded.
    """
    if config.weights == "none":
        return None
    return _load_pretrained(config.backbone, config.alpha, config.weights)


@lru_cache(maxsize=1)  # the trials of a study share them
def _load_pretrained(name: str, alpha: float, weights: str) -> list[np.ndarray]:
    shape = (224, 224, 3)  # what ImageNet's were trained at; weights do not depend on it
    if weights == "imagenet":
        with _explained_download(name):
            return _application(name, alpha, weights=weights, input_shape=shape).get_weights()
    network = _application(name, alpha, weights=None, input_shape=shape)
    if difference := _first_difference(network, Path(weights)):
        width = f" with alpha {alpha}" if BACKBONES[name].scalable else ""
        raise Mistake(f"{weights} does not fit {name}{width}: {difference}")
    network.load_weights(weights)
    return network.get_weights()


@contextmanager
def _explained_download(name: str) -> Iterator[None]:
    """Makes a `Mistake` of what Keras raises where it cannot get ImageNet's weights."""
    try:
        yield
    except Exception as error:  # for a failed download Keras has no class of its own
        url = re.search(r"URL fetch failure on (\S+):", str(error))
        if url is None:
            raise Mistake(f"weights=imagenet cannot be had for {name}: {error}") from None
        file = url[1].rpartition("/")[2]
        folder = Path(os.environ.get("KERAS_HOME") or "~/.keras") / "models"
        raise Mistake(
            f"weights=imagenet needs {file}, which could not be downloaded; get {url[1]} "
            f"elsewhere and put it into {folder}, or give its path as weights"
        ) from None


def _first_difference(network: keras.Model, file: Path) -> str | None:
    """Where a weights file in the layout of Keras Applications stops fitting, in words."""
    expected = [(it.name, [tuple(w.shape) for w in it.weights]) for it in network.layers]
    try:
        found = _stored_layers(file)
    except (OSError, KeyError):
        return (
            "it is no HDF5 file in the layout of Keras Applications, whose names end in no_top.h5 "
            "or notop.h5; get such a file"
        )
    with_weights = [layer for layer in expected if layer[1]]
    for (name, shapes), (stored, stored_shapes) in zip_longest(
        with_weights, found, fillvalue=("nothing", [])
    ):
        if shapes != stored_shapes:
            return f"where it has {stored} {stored_shapes}, the network has {name} {shapes}"
    return None


def _stored_layers(file: Path) -> list[LayerShapes]:
    """The layers with weights in a file; a whole model holds them one level deeper."""
    with h5py.File(file) as stored:
        group = stored if "layer_names" in stored.attrs else stored["model_weights"]
        names = [it.decode() if isinstance(it, bytes) else it for it in group.attrs["layer_names"]]
        found = [
            (name, [group[name][weight].shape for weight in group[name].attrs["weight_names"]])
            for name in names
        ]
    return [layer for layer in found if layer[1]]


def _head(features: keras.KerasTensor, config: RunConfig) -> keras.KerasTensor:
    """Dense layers, each followed by dropout; without any, dropout on the features."""
    for width in config.dense_widths:
        features = layers.Dense(width, activation="relu")(features)
        features = layers.Dropout(config.dropout)(features)
    if not config.dense_widths:
        features = layers.Dropout(config.dropout)(features)
    return layers.Dense(1, name="logit")(features)


def blocks(network: keras.Model, name: str) -> list[list[keras.Layer]]:
    """The layers of each block of backbone `name`, from the input up.

    What follows the last block's end belongs to that block. An end counts only where the graph
    is one tensor wide, so that it can be cut there. Raises `ValueError` where that gives another
    number of blocks than the table states.
    """
    facts, narrow = BACKBONES[name], _narrow(network)
    found: list[list[keras.Layer]] = [[]]
    for layer in network.layers:
        found[-1].append(layer)
        if re.fullmatch(facts.block_end, layer.name) and layer.name in narrow:
            found.append([])
    rest = found.pop()
    if len(found) != facts.blocks:
        raise ValueError(
            f"{name} must have {facts.blocks} blocks, as the table of backbones says: "
            f"'{facts.block_end}' gives {len(found)}; mend the one or the other"
        )
    found[-1] += rest
    return found


def _narrow(network: keras.Model) -> set[str]:
    """The layers past which nothing reaches that comes from before them."""
    made_at: dict[int, int] = {}
    needed_until = [0] * len(network.layers)
    for position, layer in enumerate(network.layers):
        for tensor in keras.tree.flatten(layer.input):
            if id(tensor) in made_at:  # the input layer's input is its own output
                needed_until[made_at[id(tensor)]] = position
        made_at[id(layer.output)] = position
    reach = 0  # how far into the graph the layers before this one are needed
    found = set()
    for position, layer in enumerate(network.layers):
        if reach <= position:
            found.add(layer.name)
        reach = max(reach, needed_until[position])
    return found


def unfreeze(model: keras.Model, depth: int) -> None:
    """Lets the `depth` topmost blocks of a model's backbone train and no other; 0: the head alone.

    `model`: as `build` gives it. Takes effect with the next `compile`.
    """
    all_blocks = blocks(model.get_layer("backbone"), model.name)
    for position, block in enumerate(all_blocks):
        for layer in block:
            layer.trainable = position >= len(all_blocks) - depth


class _LetInterruptIn(keras.callbacks.Callback):
    def on_predict_batch_end(self, batch: int, logs: dict[str, Any]) -> None:
        interrupt.check()


def probabilities(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """The probability of pneumonia for each image: float64, shape (n,), 0 to 1.

    `images`: uint8, shape (n, size, size, 1). Raises `TypeError` for any other dtype:
    Keras would cast pixels that were divided by 255 to a black image without a word.
    """
    if images.dtype != np.uint8:
        raise TypeError(f"images must be uint8 pixels 0 to 255: got {images.dtype}")
    logits = model.predict(images, batch_size=32, verbose=0, callbacks=[_LetInterruptIn()])
    logits = logits[:, 0].astype(np.float64)
    # A probability of float64 keeps apart what float32 would round to 1
    return 1 / (1 + np.exp(-logits))
