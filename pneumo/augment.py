"""Random variations of the training images, as patients and as machines differ.

They belong to the input pipeline and to training alone: no model contains them.
"""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pneumo.config import RunConfig

# What strength 1 means; a strength s scales each range by s.
ZOOM = 0.2  # ± share of the side
ROTATION = math.radians(36)  # ± radians
CONTRAST = 0.4  # ± share of the distance from the image's mean
DETAIL = 1.0  # ± share of what a blur takes away
GAMMA = math.log(1.65)  # ± logarithm of the exponent of grey values

BLUR = 0.01  # standard deviation of that blur, of the side

# What `augment` needs to vary an image: zoom, rotation, contrast, detail, gamma
CHANCES = 5

AUGMENTATION = 1  # raised with every change of what `augment` returns: stored features then expire


class Strengths(NamedTuple):
    """How much images vary, 0 (not at all) to 1.

    `augment`: as patients lie, and in contrast; `acquisition`: as machines differ, in sharpness and
    gamma.
    """

    augment: float = 0.0
    acquisition: float = 0.0

    @classmethod
    def of(cls, config: RunConfig) -> "Strengths":
        """Those of a run."""
        return cls(config.augment_strength, config.acquisition_strength)


def chances(count: int, *seed: int) -> np.ndarray:
    """What `augment` needs to vary `count` images: float32, shape (count, CHANCES), -1 to 1.

    `seed`: whole numbers from 0 up; the same ones give the same variations.
    """
    chance = np.random.default_rng(seed)
    # Apart, so that a seed moves images as it did where the README's results come from
    moves, acquisitions = chance.uniform(-1, 1, (count, 3)), chance.uniform(-1, 1, (count, 2))
    return np.hstack([moves, acquisitions]).astype(np.float32)


def augment(images: tf.Tensor, strengths: Strengths, chance: tf.Tensor) -> tf.Tensor:
    """Each image varied as its own row of `chance` says.

    `images`: uint8, shape (batch, H, W, 1); strengths of 0 are exactly the identity; `chance`:
    float32, shape (batch, CHANCES), -1 to 1. What comes into view at the borders is the image
    reflected. Returns uint8, of the same shape.
    """
    if not any(strengths):
        return images
    zoom, rotation, contrast, detail, gamma = tf.unstack(chance, axis=1)
    varied = tf.cast(images, tf.float32)
    if strengths.augment:
        varied = _moved(varied, strengths.augment * zoom, strengths.augment * rotation)
        varied = _contrasted(varied, strengths.augment * contrast)
    if strengths.acquisition:
        varied += _each(strengths.acquisition * DETAIL * detail) * (varied - _blurred(varied))
        exponent = tf.exp(strengths.acquisition * GAMMA * gamma)
        varied = 255 * tf.pow(tf.clip_by_value(varied / 255, 0, 1), _each(exponent))
    return tf.cast(tf.round(tf.clip_by_value(varied, 0, 255)), tf.uint8)


def _each(values: tf.Tensor) -> tf.Tensor:
    """One number for each image, against its pixels."""
    return values[:, tf.newaxis, tf.newaxis, tf.newaxis]


def _moved(images: tf.Tensor, zoom: tf.Tensor, rotation: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=_affine(1 + ZOOM * zoom, ROTATION * rotation, *images.shape[1:3]),
        output_shape=images.shape[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )


def _contrasted(images: tf.Tensor, contrast: tf.Tensor) -> tf.Tensor:
    mean = tf.reduce_mean(images, axis=[1, 2, 3], keepdims=True)
    return mean + (images - mean) * _each(1 + CONTRAST * contrast)


def _blurred(images: tf.Tensor) -> tf.Tensor:
    """By a Gaussian; the borders reflect."""
    reach = math.ceil(3 * BLUR * images.shape[1])  # beyond, nothing of it is left
    places = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (places / (BLUR * images.shape[1])) ** 2)
    kernel = tf.constant(kernel / kernel.sum(), tf.float32)
    padded = tf.pad(images, [[0, 0], [reach, reach], [reach, reach], [0, 0]], "SYMMETRIC")
    down = tf.nn.conv2d(padded, tf.reshape(kernel, (-1, 1, 1, 1)), 1, "VALID")
    return tf.nn.conv2d(down, tf.reshape(kernel, (1, -1, 1, 1)), 1, "VALID")


def _affine(scale: tf.Tensor, angle: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """The eight numbers of each projective transform: rotation and scale about the centre."""
    cos, sin = scale * tf.cos(angle), scale * tf.sin(angle)
    x, y = (width - 1) / 2, (height - 1) / 2
    zero = tf.zeros_like(cos)
    rows = [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y, zero, zero]
    return tf.stack(rows, axis=1)
