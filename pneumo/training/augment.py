"""Random augmentation of the training images: one composed affine, contrast and sharpness.

It belongs to the input pipeline and to training alone: no model contains it.
"""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pneumo.training.config import RunConfig

# Ranges at strength 1; a strength s scales each of them by s.
MAX_ZOOM = 0.2  # ± fraction of the side
MAX_ROTATION = math.radians(36)  # ± radians
MAX_CONTRAST = 0.4  # ± fraction of the distance from the image's mean

# Maximum aspect ratio of a crop. Normal and pneumonia images have different aspect ratios, so the
# amount by which an image was squashed reveals its class. Random ratios hide that
MAX_ASPECT_RATIO = 4 / 3

# Sharpness at a jitter of 1: from the blurred image to an unsharp mask of this weight. The blur has
# this standard deviation, as a fraction of the side
MAX_SHARPENING = 1.5
BLUR_FRACTION = 0.01

# Random factors per image: zoom, rotation, contrast; a crop's size, x, y and aspect ratio; flip;
# sharpness. They are drawn in these groups, because the published results depend on their order
FACTOR_GROUPS = (3, 5, 1)
N_FACTORS = sum(FACTOR_GROUPS)

# Raised with every change of what `augment` returns, so that old cached features are not used
AUGMENTATION_VERSION = 1


class AugmentationConfig(NamedTuple):
    """Settings of the augmentation, by default none.

    Attributes:
        strength: Strength of zoom, rotation and contrast, 0 to 1.
        crop: Fraction of the side that a random crop removes at most, 0 to 0.9.
        mirror: Whether half of the images are flipped horizontally.
        sharpness: Strength of random blur and sharpening, 0 to 1.
    """

    strength: float = 0.0
    crop: float = 0.0
    mirror: bool = False
    sharpness: float = 0.0

    @classmethod
    def from_config(cls, config: RunConfig) -> "AugmentationConfig":
        """Return the settings of a run."""
        return cls(
            strength=config.augment_strength,
            crop=config.max_crop_fraction,
            mirror=config.horizontal_flip == "on",
            sharpness=config.sharpness_jitter,
        )


def sample_factors(count: int, *seed: int) -> np.ndarray:
    """Draw the random factors that `augment` applies to each image.

    Args:
        count: Number of images.
        *seed: Non-negative integers. Equal seeds give equal factors.

    Returns:
        float32 array of shape (count, N_FACTORS), -1 to 1. The columns are zoom, rotation,
        contrast, crop size, crop x, crop y, aspect ratio, flip, sharpness.
    """
    rng = np.random.default_rng(seed)
    groups = [rng.uniform(-1, 1, (count, n_columns)) for n_columns in FACTOR_GROUPS]
    return np.hstack(groups).astype(np.float32)


def augment(images: tf.Tensor, augmentation: AugmentationConfig, factors: tf.Tensor) -> tf.Tensor:
    """Move, perhaps flip, and change contrast and sharpness of each image by its random factors.

    What comes into view at the borders is the reflected image.

    Args:
        images: uint8, shape (batch, H, W, 1).
        augmentation: Settings; the default ones return the images exactly as they are.
        factors: float32, shape (batch, N_FACTORS), -1 to 1: see `sample_factors`.

    Returns:
        uint8 tensor of the same shape.
    """
    if not any(augmentation):
        return images
    zoom, rotation, contrast, size, x, y, ratio, flip, sharpness = tf.unstack(factors, axis=1)
    strength, crop, flips, jitter = augmentation
    height, width = images.shape[1:3]
    crop_size = 1 - crop * (size + 1) / 2  # side of the crop, as a fraction
    slack = (1 - crop_size) / 2
    aspect = tf.exp(math.log(MAX_ASPECT_RATIO) / 2 * ratio) if crop else 1.0
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32),
        transforms=_affine(
            [
                crop_size * (1 + MAX_ZOOM * strength * zoom) * scale
                for scale in (aspect, 1 / aspect)
            ],
            MAX_ROTATION * strength * rotation,
            (width - 1) * (0.5 + slack * x),
            (height - 1) * (0.5 + slack * y),
            tf.where(flip < 0, -1.0, 1.0) if flips else tf.ones_like(flip),
            (height, width),
        ),
        output_shape=(height, width),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )
    if jitter:
        moved = _sharpen(moved, jitter * tf.where(sharpness > 0, MAX_SHARPENING, 1.0) * sharpness)
    mean = tf.reduce_mean(moved, axis=[1, 2, 3], keepdims=True)
    contrast = (1 + MAX_CONTRAST * strength * contrast)[:, tf.newaxis, tf.newaxis, tf.newaxis]
    return tf.cast(tf.round(tf.clip_by_value(mean + (moved - mean) * contrast, 0, 255)), tf.uint8)


def _affine(
    scales: list[tf.Tensor],
    angle: tf.Tensor,
    x: tf.Tensor,
    y: tf.Tensor,
    flip: tf.Tensor,
    size: tuple[int, int],
) -> tf.Tensor:
    """Return the eight numbers of each projective transform, with (x, y) in the middle of the view.

    `scales`: horizontal and vertical; `flip`: -1 flips horizontally, 1 does not; `size`: height and
    width. The result has shape (batch, 8).
    """
    cos, sin = tf.cos(angle), tf.sin(angle)
    width, height = flip * scales[0], scales[1]
    across, down = (width * cos, -height * sin), (width * sin, height * cos)
    middle_y, middle_x = ((length - 1) / 2 for length in size)
    zero = tf.zeros_like(cos)
    left = x - across[0] * middle_x - across[1] * middle_y
    top = y - down[0] * middle_x - down[1] * middle_y
    return tf.stack([*across, left, *down, top, zero, zero], axis=1)


def _sharpen(images: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """Return images plus `weight` times their difference from a blurred version.

    A weight of -1 gives the blurred version, 0 the image itself, and more an unsharp mask. `images`
    has shape (batch, H, W, 1), `weight` shape (batch,).
    """
    deviation = BLUR_FRACTION * images.shape[2]
    radius = math.ceil(3 * deviation)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / deviation) ** 2)
    kernel = tf.constant(kernel / kernel.sum(), tf.float32)
    around = [[0, 0], [radius, radius], [radius, radius], [0, 0]]
    blurred = tf.pad(images, around, "REFLECT")
    for shape in ((-1, 1, 1, 1), (1, -1, 1, 1)):
        blurred = tf.nn.conv2d(blurred, tf.reshape(kernel, shape), 1, "VALID")
    return images + weight[:, tf.newaxis, tf.newaxis, tf.newaxis] * (images - blurred)
