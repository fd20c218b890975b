"""What a model trains on, in another order every epoch."""

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
    """Where the inputs of a fit come from.

    `depth`: the cut of the model where they go in, by the blocks above it; `fitting`: the images
    that they are of; `val`, `val_labels`: validation, as it looks at that cut.
    """

    depth: int
    fitting: Split
    val: np.ndarray
    val_labels: np.ndarray

    def perturbed(self, ends: PerturbationSpecs) -> np.ndarray:
        """Return `val` of the images that `perturb.perturb_split` changes."""

    def begin(self, epoch: int) -> None:
        """Makes the variation of an epoch, from 0, the one that `batch` gives."""

    def batch(self, at: tf.Tensor) -> tf.Tensor:
        """The inputs of some images, by their places in `fitting`."""


class PixelSource:
    """Images varied as they are needed: uint8, shape (n, size, size, 1).

    `shared`: they take turns in the views that would be stored; otherwise every epoch has
    variations of its own.
    """

    def __init__(self, images: DecodedDataset, config: RunConfig, shared: bool) -> None:
        self.depth = BACKBONES[config.backbone].blocks
        self.fitting, val = images.split("train"), images.split("val")
        self.val, self.val_labels = val.images, val.labels
        self._val, self._seed, self._shared = val, config.seed, shared
        self._variation = AugmentationConfig.of(config)
        self._chances = np.zeros((0, N_FACTORS), np.float32)

    def perturbed(self, ends: PerturbationSpecs) -> np.ndarray:
        """As `InputSource.perturbed`."""
        return perturb_split(self._val, ends).images

    def begin(self, epoch: int) -> None:
        """As `InputSource.begin`."""
        if self._shared:
            view = view_for_epoch(self.fitting, epoch, self._variation)
            self._chances = view.chances
        else:
            seed = (self._seed, epoch, 1)  # without the 1 it would be that of the order
            self._chances = sample_factors(len(self.fitting.labels), *seed)

    def batch(self, at: tf.Tensor) -> tf.Tensor:
        """As `InputSource.batch`."""
        pixels, chance = tf.numpy_function(self._read, [at], [tf.uint8, tf.float32])
        pixels = tf.ensure_shape(pixels, (None, *self.val.shape[1:]))
        return augment(pixels, self._variation, tf.ensure_shape(chance, (None, N_FACTORS)))

    def _read(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pixels = self.fitting.pixels[self.fitting.positions[at]]
        return pixels[..., np.newaxis], self._chances[at]


class CachedFeatureSource:
    """What the frozen blocks below a cut give, from the disk: float32, shape (n, …)."""

    def __init__(
        self, images: DecodedDataset, config: RunConfig, features: FeatureCache, depth: int
    ) -> None:
        self.depth = depth
        self.fitting, val = images.split("train"), images.split("val")
        self.val, self.val_labels = features.of(View(val), depth), val.labels
        self._val, self._features, self._variation = val, features, AugmentationConfig.of(config)
        self._now = self.val

    def perturbed(self, ends: PerturbationSpecs) -> np.ndarray:
        """As `InputSource.perturbed`."""
        return self._features.of(View(perturb_split(self._val, ends)), self.depth)

    def begin(self, epoch: int) -> None:
        """As `InputSource.begin`; computes the view if this is the first epoch that needs it."""
        view = view_for_epoch(self.fitting, epoch, self._variation)
        self._now = self._features.of(view, self.depth)

    def batch(self, at: tf.Tensor) -> tf.Tensor:
        """As `InputSource.batch`."""
        given = tf.numpy_function(lambda at: self._now[at], [at], tf.float32)
        return tf.ensure_shape(given, (None, *self.val.shape[1:]))


class BatchFeeder(keras.callbacks.Callback):
    """The batches of a fit; as its callback it learns which epoch they are for."""

    def __init__(self, source: InputSource, config: RunConfig) -> None:
        super().__init__()
        self._source, self._config = source, config
        self._order = np.arange(len(source.fitting.labels))
        self.steps = math.ceil(len(self._order) / config.batch_size)  # of an epoch

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """As `keras.callbacks.Callback.on_epoch_begin`."""
        self._source.begin(epoch)
        chance = np.random.default_rng([self._config.seed, epoch])
        self._order = chance.permutation(len(self._order))

    def batches(self) -> tf.data.Dataset:
        """Batches of (inputs, labels), each image once an epoch."""
        size, labels = self._config.batch_size, self._source.fitting.labels

        def read(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            at = tf.numpy_function(
                lambda step: self._order[step * size : (step + 1) * size], [step], tf.int64
            )
            at = tf.ensure_shape(at, (None,))
            return self._source.batch(at), tf.gather(labels, at)

        steps = tf.data.Dataset.range(self.steps)
        return steps.map(read, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
