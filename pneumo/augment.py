"""Random variations of the training images: one composed affine, one photometric step.

They belong to the input pipeline and to training alone: no model contains them.
"""

import math

import tensorflow as tf

# What strength 1 means; a strength s scales each range by s.
ZOOM = 0.2  # ± share of the side
ROTATION = math.radians(36)  # ± radians
CONTRAST = 0.4  # ± share of the distance from the image's mean


def augment(images: tf.Tensor, strength: float, seed: tf.Tensor) -> tf.Tensor:
    """Each image zoomed, rotated and changed in contrast, by chance and on its own.

    `images`: uint8, shape (batch, H, W, 1); `strength`: 0 to 1, where 0 is exactly the
    identity; `seed`: integer, shape (2,): the same seed gives the same images. What comes
    into view at the borders is the image reflected. Returns uint8, of the same shape.
    """
    if strength == 0:
        return images
    count, height, width = (tf.shape(images)[axis] for axis in range(3))
    chance = tf.random.stateless_uniform([3, count], seed, -strength, strength)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32),
        transforms=_affine(1 + ZOOM * chance[0], ROTATION * chance[1], height, width),
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )
    mean = tf.reduce_mean(moved, axis=[1, 2, 3], keepdims=True)
    contrast = (1 + CONTRAST * chance[2])[:, tf.newaxis, tf.newaxis, tf.newaxis]
    return tf.cast(tf.round(tf.clip_by_value(mean + (moved - mean) * contrast, 0, 255)), tf.uint8)


def _affine(scale: tf.Tensor, angle: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """The eight numbers of each projective transform: rotation and scale about the centre."""
    cos, sin = scale * tf.cos(angle), scale * tf.sin(angle)
    x, y = (tf.cast(side - 1, tf.float32) / 2 for side in (width, height))
    zero = tf.zeros_like(cos)
    rows = [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y, zero, zero]
    return tf.stack(rows, axis=1)
