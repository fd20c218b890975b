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


def train(config: RunConfig, images: Images, callbacks: Sequence[EpochCallback] = ()) -> Result:
    """Fits the model of `config` on `train`, and keeps the weights that do best on `val`.

    Stops after `patience` epochs without a better objective. The classes weigh the same,
    whatever their share: probabilities are those of a world with as many normal as sick.
    Raises `TrainingDiverged` when the loss is not finite, and whatever a callback raises.
    """
    keras.utils.clear_session()  # what a previous model left behind would stay in memory
    keras.utils.set_random_seed(config.seed)
    with interrupt.deferred():
        return _fit(_compiled(config), config, images, callbacks)


def _compiled(config: RunConfig) -> keras.Model:
    model = models.build(config)
    # XLA makes the forward pass of convolutions several times slower on a CPU
    model.compile(
        optimizer=keras.optimizers.Adam(config.learning_rate),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.AUC(from_logits=True, name="auc")],
        jit_compile=False,
    )
    return model


def _fit(
    model: keras.Model, config: RunConfig, images: Images, callbacks: Sequence[EpochCallback]
) -> Result:
    fitting = images.split("train")
    validation = _Validation(images.split("val"))
    best = keras.callbacks.EarlyStopping(
        config.objective, mode="max", patience=config.patience, restore_best_weights=True
    )
    model.fit(
        batches(fitting, config),
        epochs=config.epochs,
        class_weight=class_weights(fitting.labels),
        callbacks=[validation, _Report(callbacks), best],  # in this order: each needs the last
        shuffle=False,  # `batches` does it
        verbose=0,
    )
    return Result(model, best.best_epoch + 1, validation.probabilities[best.best_epoch])


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


class _Report(keras.callbacks.Callback):
    """Hands each epoch to the callbacks of `train`, and lets an interrupt in."""

    def __init__(self, callbacks: Sequence[EpochCallback]) -> None:
        super().__init__()
        self._callbacks = callbacks

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        interrupt.check()

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        metrics = {name: float(value) for name, value in logs.items()}
        for callback in self._callbacks:
            callback(epoch + 1, metrics)
