"""Random variations of the training images: one composed affine, one photometric step.

They belong to the input pipeline and to training alone: no model contains them.
"""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pneumo.training.config import RunConfig

# What strength 1 means; a strength s scales each range by s.
MAX_ZOOM = 0.2  # ± share of the side
MAX_ROTATION = math.radians(36)  # ± radians
MAX_CONTRAST = 0.4  # ± share of the distance from the image's mean

# What a crop's sides are to each other, at most. Where images were squashed, how much tells classes
# apart: normal and sick children were X-rayed in other formats
MAX_ASPECT_RATIO = 4 / 3

# What varies an image: zoom, rotation, contrast; a crop's size, place and ratio; mirroring
N_FACTORS = 8

AUGMENTATION_VERSION = (
    1  # raised with every change of what `augment` returns: stored features then expire
)


class AugmentationConfig(NamedTuple):
    """How training images vary, as `RunConfig` has it; by default not at all."""

    strength: float = 0.0
    crop: float = 0.0
    mirror: bool = False

    @classmethod
    def of(cls, config: RunConfig) -> "AugmentationConfig":
        """That of a run."""
        return cls(
            config.augment_strength, config.max_crop_fraction, config.horizontal_flip == "on"
        )


def sample_factors(count: int, *seed: int) -> np.ndarray:
    """What `augment` needs to vary `count` images: float32, shape (count, CHANCES), -1 to 1.

    `seed`: whole numbers from 0 up; the same ones give the same variations.
    """
    chance = np.random.default_rng(seed)
    # Apart, so that a seed gives what it gave where the README's results come from
    strength, others = (chance.uniform(-1, 1, (count, it)) for it in (3, N_FACTORS - 3))
    return np.hstack([strength, others]).astype(np.float32)


def augment(images: tf.Tensor, variation: AugmentationConfig, chance: tf.Tensor) -> tf.Tensor:
    """Each image moved, perhaps mirrored, and changed in contrast, as its row of `chance` says.

    `images`: uint8, shape (batch, H, W, 1); no variation is exactly the identity; `chance`:
    float32, shape (batch, CHANCES), -1 to 1. What comes into view at the borders is the image
    reflected. Returns uint8, of the same shape.
    """
    if not any(variation):
        return images
    zoom, rotation, contrast, size, x, y, ratio, side = tf.unstack(chance, axis=1)
    strength, crop, mirror = variation
    height, width = images.shape[1:3]
    window = 1 - crop * (size + 1) / 2  # side of what is left
    room = (1 - window) / 2
    stretch = tf.exp(math.log(MAX_ASPECT_RATIO) / 2 * ratio) if crop else 1.0
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32),
        transforms=_affine(
            [window * (1 + MAX_ZOOM * strength * zoom) * it for it in (stretch, 1 / stretch)],
            MAX_ROTATION * strength * rotation,
            (width - 1) * (0.5 + room * x),
            (height - 1) * (0.5 + room * y),
            tf.where(side < 0, -1.0, 1.0) if mirror else tf.ones_like(side),
            (height, width),
        ),
        output_shape=(height, width),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )
    mean = tf.reduce_mean(moved, axis=[1, 2, 3], keepdims=True)
    contrast = (1 + MAX_CONTRAST * strength * contrast)[:, tf.newaxis, tf.newaxis, tf.newaxis]
    return tf.cast(tf.round(tf.clip_by_value(mean + (moved - mean) * contrast, 0, 255)), tf.uint8)


def _affine(
    scales: list[tf.Tensor],
    angle: tf.Tensor,
    x: tf.Tensor,
    y: tf.Tensor,
    side: tf.Tensor,
    size: tuple[int, int],
) -> tf.Tensor:
    """The eight numbers of each projective transform: what is seen in the middle lies at (x, y).

    `scales`: across and down; `side`: -1 mirrors left and right, 1 does not.
    """
    cos, sin = tf.cos(angle), tf.sin(angle)
    width, height = side * scales[0], scales[1]
    across, down = (width * cos, -height * sin), (width * sin, height * cos)
    middle_y, middle_x = ((length - 1) / 2 for length in size)
    zero = tf.zeros_like(cos)
    left = x - across[0] * middle_x - across[1] * middle_y
    top = y - down[0] * middle_x - down[1] * middle_y
    return tf.stack([*across, left, *down, top, zero, zero], axis=1)
