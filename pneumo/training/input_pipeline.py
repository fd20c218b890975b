"""Input pipeline of training: batches in another order every epoch."""

import math
from typing import Protocol

import keras
import numpy as np
import tensorflow as tf

from pneumo.data.dataset import DecodedDataset, Split
from pneumo.data.perturb import PerturbationSpecs, perturb_split
from pneumo.training.augment import N_FACTORS, AugmentationConfig, augment, sample_factors
from pneumo.training.backbones import BACKBONES
from pneumo.training.config import RunConfig
from pneumo.training.feature_cache import FeatureCache, View, view_for_epoch


class InputSource(Protocol):
    """Source of the inputs of a fit.

    Attributes:
        depth: Cut of the model at which the inputs enter, as the number of blocks above it.
        fitting: Training images.
        val: Inputs of the validation images at that cut, one row per image.
        val_labels: Labels of the validation images, 0 or 1: int64, shape (images,).
    """

    depth: int
    fitting: Split
    val: np.ndarray
    val_labels: np.ndarray

    def perturbed(self, ends: PerturbationSpecs) -> np.ndarray:
        """Return `val` for the images that `perturb.perturb_split` returns."""

    def begin(self, epoch: int) -> None:
        """Start an epoch, from 0: `batch` returns its variation of the images from then on."""

    def batch(self, at: tf.Tensor) -> tf.Tensor:
        """Return the inputs of some images, by their int64 positions in `fitting`, shape (n,)."""


class PixelSource:
    """Source of images that are augmented on demand: uint8, shape (n, size, size, 1).

    Args:
        images: The decoded data set.
        config: Config of the run.
        shared: Whether epochs take turns in the views that would be stored. Otherwise every epoch
            has variations of its own.
    """

    def __init__(self, images: DecodedDataset, config: RunConfig, shared: bool) -> None:
        self.depth = BACKBONES[config.backbone].blocks
        self.fitting, val = images.split("train"), images.split("val")
        self.val, self.val_labels = val.images, val.labels
        self._val, self._seed, self._shared = val, config.seed, shared
        self._variation = AugmentationConfig.of(config)
        self._chances = np.zeros((0, N_FACTORS), np.float32)

    def perturbed(self, ends: PerturbationSpecs) -> np.ndarray:
        """Implement `InputSource.perturbed`."""
        return perturb_split(self._val, ends).images

    def begin(self, epoch: int) -> None:
        """Implement `InputSource.begin`."""
        if self._shared:
            view = view_for_epoch(self.fitting, epoch, self._variation)
            self._chances = view.chances
        else:
            seed = (self._seed, epoch, 1)  # the 1 distinguishes it from the seed of the order
            self._chances = sample_factors(len(self.fitting.labels), *seed)

    def batch(self, at: tf.Tensor) -> tf.Tensor:
        """Implement `InputSource.batch`."""
        pixels, chance = tf.numpy_function(self._read, [at], [tf.uint8, tf.float32])
        pixels = tf.ensure_shape(pixels, (None, *self.val.shape[1:]))
        return augment(pixels, self._variation, tf.ensure_shape(chance, (None, N_FACTORS)))

    def _read(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pixels = self.fitting.pixels[self.fitting.positions[at]]
        return pixels[..., np.newaxis], self._chances[at]


class CachedFeatureSource:
    """Source of cached features of the frozen blocks below a cut: float32, shape (n, …).

    Args:
        images: The decoded data set.
        config: Config of the run.
        features: The cache.
        depth: Number of blocks above the cut.
    """

    def __init__(
        self, images: DecodedDataset, config: RunConfig, features: FeatureCache, depth: int
    ) -> None:
        self.depth = depth
        self.fitting, val = images.split("train"), images.split("val")
        self.val, self.val_labels = features.of(View(val), depth), val.labels
        self._val, self._features, self._variation = val, features, AugmentationConfig.of(config)
        self._now = self.val

    def perturbed(self, ends: PerturbationSpecs) -> np.ndarray:
        """Implement `InputSource.perturbed`."""
        return self._features.of(View(perturb_split(self._val, ends)), self.depth)

    def begin(self, epoch: int) -> None:
        """Implement `InputSource.begin`; the first epoch that needs a view computes it."""
        view = view_for_epoch(self.fitting, epoch, self._variation)
        self._now = self._features.of(view, self.depth)

    def batch(self, at: tf.Tensor) -> tf.Tensor:
        """Implement `InputSource.batch`."""
        given = tf.numpy_function(lambda at: self._now[at], [at], tf.float32)
        return tf.ensure_shape(given, (None, *self.val.shape[1:]))


class BatchFeeder(keras.callbacks.Callback):
    """Batches of a fit, and the callback that prepares them for each epoch.

    Args:
        source: Source of the inputs.
        config: Config of the run.

    Attributes:
        steps: Batches per epoch.
    """

    def __init__(self, source: InputSource, config: RunConfig) -> None:
        super().__init__()
        self._source, self._config = source, config
        self._order = np.arange(len(source.fitting.labels))
        self.steps = math.ceil(len(self._order) / config.batch_size)  # per epoch

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Start the epoch in the source, and draw its order of the images."""
        self._source.begin(epoch)
        chance = np.random.default_rng([self._config.seed, epoch])
        self._order = chance.permutation(len(self._order))

    def batches(self) -> tf.data.Dataset:
        """Return batches of (inputs, labels), each image once per epoch."""
        size, labels = self._config.batch_size, self._source.fitting.labels

        def read(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            at = tf.numpy_function(
                lambda step: self._order[step * size : (step + 1) * size], [step], tf.int64
            )
            at = tf.ensure_shape(at, (None,))
            return self._source.batch(at), tf.gather(labels, at)

        steps = tf.data.Dataset.range(self.steps)
        return steps.map(read, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
