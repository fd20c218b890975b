"""Where an image speaks for pneumonia, as a model sees it."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from pneumo.inference.batches import BATCH_SIZE
from pneumo.inference.logits import ensemble_members, uses_flip_tta
from pneumo.runtime import signals

# Cells of a side at most, about as many as the last maps of MobileNet have. What single places of
# larger ones say is mostly noise: by 24 x 24 of an untrained `cnn` one opacity of three was missed
MAX_MAP_SIDE = 8


class HiResCam:
    """Computes how much each place of an image counts for pneumonia to a model, by HiResCAM.

    The last feature maps, before anything pools them, are multiplied by the gradients of the logit
    element by element, and summed over channels (Draelos and Carin, arXiv:2011.08891, 2020).
    Grad-CAM (Selvaraju et al., ICCV 2017) averages the gradients over places first. Behind a global
    average that is the same; behind the `cnn`, whose head knows where each feature was, it would
    highlight other places.

    Args:
        model: As `network.build_model` returns it, whatever blocks of it train.
    """

    def __init__(self, model: keras.Model) -> None:
        self._members = [_split_at_last_maps(member) for member in ensemble_members(model)]
        self._mirrored = uses_flip_tta(model)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """The heat maps: float32, shape (n, size, size), 0 to 1 where an image speaks the most.

        `images`: uint8, shape (n, size, size, 1). All of a map is 0 where nothing speaks for
        pneumonia.
        """
        found = [np.zeros((0, *images.shape[1:3]), np.float32)]
        for start in range(0, len(images), BATCH_SIZE):
            signals.raise_if_interrupted()
            found.append(self._maps(images[start : start + BATCH_SIZE]))
        return np.concatenate(found)

    def _maps(self, images: np.ndarray) -> np.ndarray:
        spoken = self._spoken(images)
        if self._mirrored:
            spoken += self._spoken(images[:, :, ::-1])[:, :, ::-1]
        cells = [min(side, MAX_MAP_SIDE) for side in spoken.shape[1:3]]
        heat = tf.nn.relu(tf.image.resize(spoken, cells, "area"))
        heat = tf.image.resize(heat, images.shape[1:3])[..., 0].numpy()
        most = heat.max(axis=(1, 2), keepdims=True)
        return np.divide(heat, most, out=np.zeros_like(heat), where=most > 0)

    def _spoken(self, images: np.ndarray) -> tf.Tensor:
        return tf.add_n([_contributions(images, *member) for member in self._members])


def _split_at_last_maps(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """The parts of a model below and above the last maps that nothing has pooled."""
    network = model.get_layer("backbone")
    maps = next(
        layer.output
        for layer in reversed(network.layers)
        if len(layer.output.shape) == 4 and not isinstance(layer, layers.MaxPooling2D)
    )
    head = model.get_layer("head")
    return keras.Model(network.input, maps), keras.Model(maps, head(network.output))


def _contributions(images: np.ndarray, below: keras.Model, above: keras.Model) -> tf.Tensor:
    """What each place adds to the logits: float32, shape (n, side, side, 1)."""
    maps = below(images, training=False)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        logits = above(maps, training=False)
    return tf.reduce_sum(maps * tape.gradient(logits, maps), axis=-1, keepdims=True)
