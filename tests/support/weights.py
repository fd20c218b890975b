"""A small backbone with weights of its own, in a file in the layout of Keras Applications."""

import h5py
import keras
import numpy as np

SMALL = {"backbone": "mobilenet", "alpha": 0.25, "image_size": 32, "unfreeze_depth": 0}
FILE = "mobilenet_2_5_224_tf_no_top.h5"  # as Keras names it


def network(alpha: float = 0.25, **options) -> keras.Model:
    """Build random weights with the statistics of noise, so that the network can learn."""
    keras.utils.set_random_seed(7)
    model = keras.applications.MobileNet(
        alpha=alpha, weights=None, include_top=False, input_shape=(224, 224, 3), **options
    )
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # the statistics of one batch, not of the last hundred
    model(np.random.default_rng(0).uniform(-1, 1, (4, 224, 224, 3)), training=True)
    return model


def write(model: keras.Model, group: h5py.Group) -> None:
    """Write weights in the layout of Keras Applications."""
    group.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
    for layer in model.layers:
        below = group.create_group(layer.name)
        below.attrs["weight_names"] = [weight.path.encode() for weight in layer.weights]
        for weight in layer.weights:
            below[weight.path] = weight.numpy()
