"""Random variations of the training images: one composed affine, one photometric step.

They belong to the input pipeline and to training alone: no model contains them.
"""

import math

import numpy as np
import tensorflow as tf

# What strength 1 means; a strength s scales each range by s.
ZOOM = 0.2  # ± share of the side
ROTATION = math.radians(36)  # ± radians
CONTRAST = 0.4  # ± share of the distance from the image's mean

AUGMENTATION = 1  # raised with every change of what `augment` returns: stored features then expire


def chances(count: int, *seed: int) -> np.ndarray:
    """What `augment` needs to vary `count` images: float32, shape (count, 3), -1 to 1.

    `seed`: whole numbers from 0 up; the same ones give the same variations.
    """
    return np.random.default_rng(seed).uniform(-1, 1, (count, 3)).astype(np.float32)


def augment(images: tf.Tensor, strength: float, chance: tf.Tensor) -> tf.Tensor:
    """Each image zoomed, rotated and changed in contrast, as its own row of `chance` says.

    `images`: uint8, shape (batch, H, W, 1); `strength`: 0 to 1, where 0 is exactly the
    identity; `chance`: float32, shape (batch, 3), -1 to 1, of zoom, rotation and contrast. What
    comes into view at the borders is the image reflected. Returns uint8, of the same shape.
    """
    if strength == 0:
        return images
    zoom, rotation, contrast = tf.unstack(strength * chance, axis=1)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32),
        transforms=_affine(1 + ZOOM * zoom, ROTATION * rotation, *images.shape[1:3]),
        output_shape=images.shape[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )
    mean = tf.reduce_mean(moved, axis=[1, 2, 3], keepdims=True)
    contrast = (1 + CONTRAST * contrast)[:, tf.newaxis, tf.newaxis, tf.newaxis]
    return tf.cast(tf.round(tf.clip_by_value(mean + (moved - mean) * contrast, 0, 255)), tf.uint8)


def _affine(scale: tf.Tensor, angle: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """The eight numbers of each projective transform: rotation and scale about the centre."""
    cos, sin = scale * tf.cos(angle), scale * tf.sin(angle)
    x, y = (width - 1) / 2, (height - 1) / 2
    zero = tf.zeros_like(cos)
    rows = [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y, zero, zero]
    return tf.stack(rows, axis=1)
