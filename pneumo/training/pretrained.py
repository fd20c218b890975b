"""Pretrained weights: ImageNet's from Keras, or those of a file."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.error import HTTPError

import h5py
import numpy as np

from pneumo.runtime.cache_entries import limit
from pneumo.runtime.errors import UserError
from pneumo.runtime.tensorflow_import import import_tensorflow
from pneumo.training.backbones import BACKBONES
from pneumo.training.config import RunConfig

if TYPE_CHECKING:
    import keras


# Keras has ImageNet's weights of every network for this size; their shapes do not depend on it
IMAGENET_INPUT_SHAPE = (224, 224, 3)

# A layer's name and the shapes of its weights
LayerShapes = tuple[str, list[tuple[int, ...]]]


def prepare_to_fit(config: RunConfig) -> None:
    """Import TensorFlow, and detect errors that need it before a run is created.

    Raises:
        UserError: The weights do not fit the backbone or cannot be loaded, or the environment sets
            an invalid limit of the cache.
    """
    import_tensorflow()
    load_pretrained_weights(config)
    limit()


def load_pretrained_weights(config: RunConfig) -> list[np.ndarray] | None:
    """Load the pretrained weights of a config.

    Returns:
        The weights in Keras' order; None for `none`.

    Raises:
        UserError: A file does not fit the backbone, or ImageNet's weights do not exist or cannot be
            downloaded.
    """
    if config.weights == "none":
        return None
    return _load(config.backbone, config.alpha, config.weights)


@lru_cache(maxsize=1)  # all trials of a study share the weights
def _load(name: str, alpha: float, weights: str) -> list[np.ndarray]:
    backbone = BACKBONES[name]
    if weights == "imagenet":
        with _translate_download_errors(name):
            return backbone.build(
                alpha, weights=weights, input_shape=IMAGENET_INPUT_SHAPE
            ).get_weights()
    network = backbone.build(alpha, input_shape=IMAGENET_INPUT_SHAPE)
    if difference := _first_difference(network, Path(weights)):
        width = f" with alpha {alpha}" if backbone.scalable else ""
        raise UserError(f"{weights} does not fit {name}{width}: {difference}")
    try:
        network.load_weights(weights)
    except Exception as error:  # untrusted files make a parser raise nearly anything
        raise UserError(
            f"{weights} cannot be read to its end as weights of {name} ({error}). Download it "
            "again."
        ) from None
    return network.get_weights()


@contextmanager
def _translate_download_errors(name: str) -> Iterator[None]:
    """Turn the exceptions of Keras about ImageNet's weights into a `UserError`."""
    try:
        yield
    except Exception as error:  # Keras has no exception class for a failed download
        url = re.search(r"URL fetch failure on (\S+):", str(error))
        if url is None:
            raise UserError(f"weights=imagenet is not available for {name}: {error}") from None
        if isinstance(error.__context__, HTTPError):
            error.__context__.close()  # Keras leaves its connection open
        file = url[1].rpartition("/")[2]
        folder = Path(os.environ.get("KERAS_HOME") or "~/.keras") / "models"
        raise UserError(
            f"weights=imagenet requires {file}, which could not be downloaded. Download {url[1]} "
            f"elsewhere and copy it to {folder}, or pass its path as weights."
        ) from None


def _first_difference(network: "keras.Model", file: Path) -> str | None:
    """Describe where a file in Keras Applications' layout stops fitting, if it does."""
    expected = [
        (layer.name, [tuple(weight.shape) for weight in layer.weights]) for layer in network.layers
    ]
    try:
        stored_layers = _stored_layers(file)
    except Exception:  # untrusted files make a parser raise nearly anything
        return (
            "it is not an HDF5 file in the layout of Keras Applications. Use a file whose name "
            "ends in no_top.h5 or notop.h5."
        )
    with_weights = [layer for layer in expected if layer[1]]
    pairs = zip_longest(with_weights, stored_layers, fillvalue=("nothing", []))
    for (name, shapes), (stored, stored_shapes) in pairs:
        if shapes != stored_shapes:
            return f"where it has {stored} {stored_shapes}, the network has {name} {shapes}"
    return None


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _stored_layers(file: Path) -> list[LayerShapes]:
    """Return the layers with weights in a file; a whole model has them one level deeper."""
    with h5py.File(file) as stored:
        group = stored if "layer_names" in stored.attrs else stored["model_weights"]
        names = [_text(name) for name in group.attrs["layer_names"]]
        layers = [
            (
                name,
                [
                    _weight_shape(group, f"{name}/{_text(weight_name)}")
                    for weight_name in group[name].attrs["weight_names"]
                ],
            )
            for name in names
        ]
    return [layer for layer in layers if layer[1]]


def _weight_shape(group: h5py.Group, path: str) -> tuple[int, ...]:
    """Return the shape of weights.

    Raises:
        ValueError: HDF5 would read them from another file.
    """
    for part in PurePosixPath(path).parts:
        if isinstance(group.get(part, getlink=True), h5py.ExternalLink):
            raise ValueError
        group = group[part]
    if group.external or group.is_virtual:
        raise ValueError
    return group.shape
