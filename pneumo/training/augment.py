"""Random augmentation of the training images: one composed affine, contrast and sharpness.

It belongs to the input pipeline and to training alone: no model contains it.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

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

# Raised with every change of what the feature cache stores, so that old features are not used
AUGMENTATION_VERSION = 2

cv2.setNumThreads(1)  # the images of several batches are already changed in parallel


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


def augment(
    images: np.ndarray, augmentation: AugmentationConfig, factors: np.ndarray
) -> np.ndarray:
    """Move, perhaps flip, and change contrast and sharpness of each image by its random factors.

    What comes into view at the borders is the reflected image.

    Args:
        images: uint8, shape (batch, H, W, 1).
        augmentation: Settings; the default ones return the images exactly as they are.
        factors: float32, shape (batch, N_FACTORS), -1 to 1: see `sample_factors`.

    Returns:
        uint8 array of the same shape.
    """
    if not any(augmentation):
        return images
    strength, jitter = augmentation.strength, augmentation.sharpness
    transforms = _affine_transforms(images.shape[1:3], augmentation, factors)
    contrasts = 1 + MAX_CONTRAST * strength * factors[:, 2].astype(float)
    sharpness = factors[:, -1].astype(float)
    weights = jitter * np.where(sharpness > 0, MAX_SHARPENING, 1.0) * sharpness
    augmented = np.empty_like(images)
    for image, transform, contrast, weight, out in zip(
        images, transforms, contrasts, weights, augmented, strict=True
    ):
        moved = cv2.warpAffine(
            image.astype(np.float32),
            transform,
            image.shape[1::-1],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT,
        )
        if jitter:
            moved = _sharpen(moved, weight)
        brightness = (1 - contrast) * cv2.mean(moved)[0]
        cv2.addWeighted(moved, contrast, moved, 0, brightness, dst=out, dtype=cv2.CV_8U)
    return augmented


def _affine_transforms(
    size: tuple[int, int], augmentation: AugmentationConfig, factors: np.ndarray
) -> np.ndarray:
    """Return the transform of each image from places in the view to places in the image.

    Args:
        size: Height and width.
        augmentation: See `augment`.
        factors: See `augment`.

    Returns:
        float64 array of shape (batch, 2, 3).
    """
    zoom, rotation, _, crop_size, x, y, ratio, flip, _ = factors.T.astype(float)
    strength, crop, flips, _ = augmentation
    height, width = size
    side = 1 - crop * (crop_size + 1) / 2  # of the crop, as a fraction
    slack = (1 - side) / 2
    aspect = np.exp(math.log(MAX_ASPECT_RATIO) / 2 * ratio) if crop else 1.0
    scale = side * (1 + MAX_ZOOM * strength * zoom)
    scale_x, scale_y = scale * aspect, scale / aspect
    if flips:
        scale_x = np.where(flip < 0, -1, 1) * scale_x
    angle = MAX_ROTATION * strength * rotation
    cos, sin = np.cos(angle), np.sin(angle)
    linear = np.array([[scale_x * cos, -scale_y * sin], [scale_x * sin, scale_y * cos]])
    # The middle of the view shows this place of the image
    middle = np.array([(width - 1) * (0.5 + slack * x), (height - 1) * (0.5 + slack * y)])
    view_middle = (np.array([width, height]) - 1) / 2
    offset = middle - np.einsum("ijn,j->in", linear, view_middle)
    return np.concatenate([linear, offset[:, np.newaxis]], axis=1).transpose(2, 0, 1)


def _sharpen(image: np.ndarray, weight: float) -> np.ndarray:
    """Return an image plus `weight` times its difference from a blurred version.

    A weight of -1 gives the blurred version, 0 the image itself, and more an unsharp mask. `image`
    is float32, shape (H, W).
    """
    deviation = BLUR_FRACTION * image.shape[1]
    side = 2 * math.ceil(3 * deviation) + 1
    blurred = cv2.GaussianBlur(image, (side, side), deviation, borderType=cv2.BORDER_REFLECT_101)
    return cv2.addWeighted(image, 1 + weight, blurred, -weight, 0)
