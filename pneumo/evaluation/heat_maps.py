"""Heat maps of the evidence for pneumonia that a model sees in an image."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from pneumo.inference.batches import BATCH_SIZE
from pneumo.inference.logits import ensemble_members, member_weight, uses_flip_tta
from pneumo.runtime import signals

# Maximum cells per side, about as many as the last maps of MobileNet have. Single cells of larger
# maps are mostly noise: with 24 x 24 cells of an untrained `cnn`, one of three opacities was missed
MAX_MAP_SIDE = 8


class HiResCam:
    """Heat maps of how much each place of an image contributes to pneumonia, by HiResCAM.

    The last feature maps before any pooling are multiplied by the gradients of the logit, element
    by element, and summed over channels (Draelos and Carin, arXiv:2011.08891, 2020). Grad-CAM
    (Selvaraju et al., ICCV 2017) averages the gradients over places first. Before a global average
    both are the same. The head of the `cnn` distinguishes places, and there Grad-CAM would
    highlight other ones.

    Args:
        model: Model as `network.build_model` or `build_ensemble` returns it, with any depth of
            trainable blocks.
    """

    def __init__(self, model: keras.Model) -> None:
        self._members = [
            (member_weight(member), *_split_at_last_maps(member))
            for member in ensemble_members(model)
        ]
        self._mirrored = uses_flip_tta(model)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Compute the heat maps of images.

        Args:
            images: uint8 array of shape (n, size, size, 1).

        Returns:
            float32 array of shape (n, size, size), 0 to 1 at the strongest evidence for pneumonia.
            A map is 0 throughout if there is none.
        """
        maps = [np.zeros((0, *images.shape[1:3]), np.float32)]
        for start in range(0, len(images), BATCH_SIZE):
            signals.raise_if_interrupted()
            maps.append(self._maps(images[start : start + BATCH_SIZE]))
        return np.concatenate(maps)

    def _maps(self, images: np.ndarray) -> np.ndarray:
        summed = self._total(images)
        if self._mirrored:
            summed += self._total(images[:, :, ::-1])[:, :, ::-1]
        cells = [min(side, MAX_MAP_SIDE) for side in summed.shape[1:3]]
        heat = tf.nn.relu(tf.image.resize(summed, cells, "area"))
        heat = tf.image.resize(heat, images.shape[1:3])[..., 0].numpy()
        maximum = heat.max(axis=(1, 2), keepdims=True)
        return np.divide(heat, maximum, out=np.zeros_like(heat), where=maximum > 0)

    def _total(self, images: np.ndarray) -> tf.Tensor:
        return tf.add_n(
            [weight * _contributions(images, *parts) for weight, *parts in self._members]
        )


def _split_at_last_maps(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Split a model at the last feature maps before any pooling: below and above."""
    network = model.get_layer("backbone")
    maps = next(
        layer.output
        for layer in reversed(network.layers)
        if len(layer.output.shape) == 4 and not isinstance(layer, layers.MaxPooling2D)
    )
    head = model.get_layer("head")
    return keras.Model(network.input, maps), keras.Model(maps, head(network.output))


def _contributions(images: np.ndarray, below: keras.Model, above: keras.Model) -> tf.Tensor:
    """Compute what each place adds to the logits: float32, shape (n, side, side, 1)."""
    maps = below(images, training=False)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        logits = above(maps, training=False)
    return tf.reduce_sum(maps * tape.gradient(logits, maps), axis=-1, keepdims=True)
