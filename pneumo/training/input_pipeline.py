"""Input pipeline of training: batches in another order every epoch."""

import math
from dataclasses import replace
from typing import Protocol

import keras
import numpy as np
import tensorflow as tf
from joblib import cpu_count

from pneumo.data.dataset import Fold, Subset
from pneumo.data.perturb import PerturbationSpecs, perturb_split
from pneumo.training.augment import N_FACTORS, AugmentationConfig, augment, sample_factors
from pneumo.training.backbones import BACKBONES
from pneumo.training.config import RunConfig
from pneumo.training.feature_cache import FeatureCache, View, view_for_epoch

PREFETCHED_BATCHES = 2  # features of a batch may take tens of megabytes


class InputSource(Protocol):
    """Source of the inputs of a fit.

    Attributes:
        depth: Cut of the model at which the inputs enter, as the number of blocks above it.
        train: Training images.
        val: Inputs of the validation images at that cut, one row per image.
        val_labels: Labels of the validation images, 0 or 1: int64, shape (images,).
    """

    depth: int
    train: Subset
    val: np.ndarray
    val_labels: np.ndarray

    def perturb_val(self, specs: PerturbationSpecs) -> np.ndarray:
        """Return `val` for the images that `perturb.perturb_split` returns."""

    def begin_epoch(self, epoch: int) -> None:
        """Start an epoch, from 0: `get_batch` returns its variation of the images from then on."""

    def get_batch(self, positions: tf.Tensor) -> tf.Tensor:
        """Return the inputs of images, by their int64 positions in `train`, shape (n,)."""


class PixelSource:
    """Source of images that are augmented on demand: uint8, shape (n, size, size, 1).

    Args:
        fold: The images.
        config: Config of the run.
        shared: Whether epochs take turns in the views that would be stored. Otherwise every epoch
            has variations of its own.
    """

    def __init__(self, fold: Fold, config: RunConfig, shared: bool) -> None:
        self.depth = BACKBONES[config.backbone].blocks
        self.train, val = fold.train, fold.val
        self.val, self.val_labels = val.images, val.labels
        self._val, self._seed, self._shared = val, config.seed, shared
        self._augmentation = AugmentationConfig.from_config(config)
        self._factors = np.zeros((0, N_FACTORS), np.float32)

    def perturb_val(self, specs: PerturbationSpecs) -> np.ndarray:
        """Implement `InputSource.perturb_val`."""
        return replace(self._val, split=perturb_split(self._val.split, specs)).images

    def begin_epoch(self, epoch: int) -> None:
        """Implement `InputSource.begin_epoch`."""
        if self._shared:
            view = view_for_epoch(self.train.split, epoch, self._augmentation, self._seed)
            self._factors = view.factors
        else:
            seed = (self._seed, epoch, 1)  # the 1 distinguishes it from the seed of the order
            self._factors = sample_factors(len(self.train.split.labels), *seed)

    def get_batch(self, positions: tf.Tensor) -> tf.Tensor:
        """Implement `InputSource.get_batch`."""
        pixels = tf.numpy_function(self._read, [positions], tf.uint8)
        return tf.ensure_shape(pixels, (None, *self.val.shape[1:]))

    def _read(self, positions: np.ndarray) -> np.ndarray:
        rows, split = self.train.indices[positions], self.train.split
        pixels = split.pixels[split.positions[rows]][..., np.newaxis]
        return augment(pixels, self._augmentation, self._factors[rows])


class CachedFeatureSource:
    """Source of cached features of the frozen blocks below a cut: float32, shape (n, …).

    Args:
        fold: The images.
        config: Config of the run.
        features: The cache.
        depth: Number of blocks above the cut.
    """

    def __init__(self, fold: Fold, config: RunConfig, features: FeatureCache, depth: int) -> None:
        self.depth = depth
        self.train, val = fold.train, fold.val
        self.val = val.select(features.get(View(val.split), depth))
        self.val_labels = val.labels
        self._val, self._features, self._seed = val, features, config.seed
        self._augmentation = AugmentationConfig.from_config(config)
        self._current_features = self.val

    def perturb_val(self, specs: PerturbationSpecs) -> np.ndarray:
        """Implement `InputSource.perturb_val`."""
        view = View(perturb_split(self._val.split, specs))
        return self._val.select(self._features.get(view, self.depth))

    def begin_epoch(self, epoch: int) -> None:
        """Implement `InputSource.begin_epoch`; the first epoch that needs a view computes it."""
        view = view_for_epoch(self.train.split, epoch, self._augmentation, self._seed)
        self._current_features = self._features.get(view, self.depth)

    def get_batch(self, positions: tf.Tensor) -> tf.Tensor:
        """Implement `InputSource.get_batch`."""
        features = tf.numpy_function(
            lambda positions: self._current_features[self.train.indices[positions]],
            [positions],
            tf.float32,
        )
        return tf.ensure_shape(features, (None, *self.val.shape[1:]))


class BatchFeeder(keras.callbacks.Callback):
    """Batches of a fit, and the callback that prepares them for each epoch.

    Args:
        source: Source of the inputs.
        config: Config of the run.

    Attributes:
        steps_per_epoch: Batches per epoch.
    """

    def __init__(self, source: InputSource, config: RunConfig) -> None:
        super().__init__()
        self._source, self._config = source, config
        self._order = np.arange(len(source.train.labels))
        self.steps_per_epoch = math.ceil(len(self._order) / config.batch_size)

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Start the epoch in the source, and draw its order of the images."""
        self._source.begin_epoch(epoch)
        rng = np.random.default_rng([self._config.seed, epoch])
        self._order = rng.permutation(len(self._order))

    def batches(self) -> tf.data.Dataset:
        """Return batches of (inputs, labels), each image once per epoch."""
        size, labels = self._config.batch_size, self._source.train.labels

        def read(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            positions = tf.numpy_function(
                lambda step: self._order[step * size : (step + 1) * size], [step], tf.int64
            )
            positions = tf.ensure_shape(positions, (None,))
            return self._source.get_batch(positions), tf.gather(labels, positions)

        # The end of an epoch waits for TensorFlow's autotuning thread, which often sleeps a second
        # or more without being woken
        options = tf.data.Options()
        options.autotune.enabled = False
        steps = tf.data.Dataset.range(self.steps_per_epoch).with_options(options)
        return steps.map(read, cpu_count()).prefetch(PREFETCHED_BATCHES)
