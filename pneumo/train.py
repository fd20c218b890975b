"""One fit of one model. Knows neither MLflow nor Optuna."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from sklearn.metrics import log_loss, roc_auc_score

from pneumo import interrupt, models
from pneumo.augment import augment
from pneumo.config import RunConfig
from pneumo.data.dataset import Images, Split

# Called after each epoch with its number, from 1, and the metrics `loss`, `auc`, `val_loss`
# and `val_auc`; an exception that it raises ends the training and reaches the caller.
EpochCallback = Callable[[int, Mapping[str, float]], None]


class TrainingDiverged(ArithmeticError):
    """The loss is no number any more."""


@dataclass(frozen=True)
class Result:
    """A trained model with the weights of its best epoch, the first of equals.

    `val_probabilities`: of those weights for the validation images in their order, float64.
    """

    model: keras.Model
    best_epoch: int
    val_probabilities: np.ndarray


@dataclass(frozen=True)
class Phase:
    """A part of a fit: the depth that trains, at which rate, up to which epoch of the whole."""

    unfreeze_depth: int
    learning_rate: float
    until: int


def phases(config: RunConfig) -> list[Phase]:
    """What trains when. Pretrained blocks wait until the head makes sense, then go more slowly.

    The gradients of a random head would undo what they have learned. The last phase has one
    epoch at least: with `epochs` 1, or `head_epochs` 0, it is the only one. Random weights and
    depth 0 have a single phase, at the full rate.
    """
    depth, rate = config.unfreeze_depth, config.learning_rate
    if config.weights == "none" or depth == 0:
        return [Phase(depth, rate, config.epochs)]
    head = Phase(0, rate, min(config.head_epochs, config.epochs - 1))
    whole = Phase(depth, rate * config.fine_tuning_factor, config.epochs)
    return [head, whole] if head.until else [whole]


def train(config: RunConfig, images: Images, callbacks: Sequence[EpochCallback] = ()) -> Result:
    """Fits the model of `config` on `train`, and keeps the weights that do best on `val`.

    A phase ends after `patience` epochs without a better objective. The classes weigh the same,
    whatever their share: probabilities are those of a world with as many normal as sick.
    Raises `TrainingDiverged` when the loss is not finite, and whatever a callback raises.
    """

    def hear(epoch: int, metrics: Mapping[str, float]) -> None:
        for callback in callbacks:
            callback(epoch, metrics)

    return interrupt.in_own_thread(lambda tell: _fit(config, images, tell), hear)


def _fit(config: RunConfig, images: Images, tell: Callable[..., None]) -> Result:
    keras.utils.clear_session()  # what a previous model left behind would stay in memory
    model = models.build(config)
    # The statistics of random weights are those of nothing: MobileNet would not learn with them
    fitted = model if config.weights == "none" else models.FixedStatistics(model)
    fitting = images.split("train")
    data, weights = batches(fitting, config), class_weights(fitting.labels)
    validation = _Validation(images.split("val"))
    ended = []
    for phase in phases(config):
        models.unfreeze(model, phase.unfreeze_depth)
        _compile(fitted, phase.learning_rate)
        stopping = keras.callbacks.EarlyStopping(
            config.objective, mode="max", patience=config.patience, restore_best_weights=True
        )
        fitted.fit(
            data,
            initial_epoch=len(validation.probabilities),
            epochs=phase.until,
            class_weight=weights,
            callbacks=[validation, _Telling(tell), stopping],  # each needs what the last does
            shuffle=False,  # `batches` does it
            verbose=0,
        )
        ended.append(stopping)
    best = max(ended, key=lambda phase: phase.best)  # the first of equals
    fitted.set_weights(best.best_weights)
    return Result(model, best.best_epoch + 1, validation.probabilities[best.best_epoch])


def _compile(model: keras.Model, learning_rate: float) -> None:
    # XLA makes the forward pass of convolutions several times slower on a CPU
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.AUC(from_logits=True, name="auc")],
        jit_compile=False,
    )


def batches(split: Split, config: RunConfig) -> tf.data.Dataset:
    """Augmented batches of (images, labels), in another order and variation every epoch."""
    order = tf.data.Dataset.from_tensor_slices((split.positions, split.labels))
    order = order.shuffle(len(split.labels), seed=config.seed).batch(config.batch_size)
    seeds = tf.data.Dataset.random(config.seed, rerandomize_each_iteration=True).batch(2)

    def read(chosen: tuple[tf.Tensor, tf.Tensor], seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        positions, labels = chosen
        pixels = tf.numpy_function(lambda at: split.pixels[at], [positions], tf.uint8)
        pixels = tf.ensure_shape(pixels, (None, config.image_size, config.image_size))
        return augment(pixels[..., tf.newaxis], config.augment_strength, seed), labels

    return tf.data.Dataset.zip(order, seeds).map(read, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def class_weights(labels: np.ndarray) -> dict[int, float]:
    """The weight of an image of each class, such that both classes weigh the same, mean 1."""
    counts = np.bincount(labels, minlength=2)
    return {label: len(labels) / (2 * count) for label, count in enumerate(counts)}


class _Validation(keras.callbacks.Callback):
    """Adds exact `val_loss` and `val_auc` to an epoch's metrics, and keeps the probabilities.

    Keras' own AUC approximates with 200 thresholds, too coarse where models score 0.99.
    """

    def __init__(self, split: Split) -> None:
        super().__init__()
        self._images, self._labels = split.images, split.labels
        self.probabilities: list[np.ndarray] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        scores = models.probabilities(self.model, self._images)
        if not (np.isfinite(logs["loss"]) and np.isfinite(scores).all()):
            raise TrainingDiverged(
                f"the loss is {logs['loss']} after epoch {epoch + 1}: lower learning_rate"
            )
        logs["val_loss"] = log_loss(self._labels, scores)
        logs["val_auc"] = roc_auc_score(self._labels, scores)
        self.probabilities.append(scores)


class _Telling(keras.callbacks.Callback):
    """Tells of each epoch, and lets the training be abandoned after any batch."""

    def __init__(self, tell: Callable[..., None]) -> None:
        super().__init__()
        self._tell = tell

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        self._tell()

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self._tell(epoch + 1, {name: float(value) for name, value in logs.items()})
