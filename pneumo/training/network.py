"""Keras models from a config: backbone, dense head, the blocks that train, and how they train."""

import re
from collections.abc import Sequence
from functools import partial

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from keras.optimizers.schedules import LearningRateSchedule
from sklearn.metrics import roc_auc_score

from pneumo.inference.logits import optimize_for_inference
from pneumo.training.backbones import BACKBONES
from pneumo.training.config import RunConfig
from pneumo.training.pretrained import load_pretrained_weights

# A step of a small trained part takes no longer than Python between two steps
STEPS_PER_EXECUTION = 8


def build_model(config: RunConfig) -> keras.Model:
    """Build the model that `config` describes, not compiled, with its frozen blocks frozen.

    The random weights depend on the config's seed, which becomes Keras' global seed.

    Returns:
        Model from uint8 pixels 0–255, shape (batch, size, size, 1), to one logit, float32, shape
        (batch, 1), above 0 for pneumonia.

    Raises:
        UserError: `load_pretrained_weights` rejects the weights.
    """
    network = build_backbone(config)
    pixels = keras.Input((config.image_size, config.image_size, 1), dtype="uint8", name="pixels")
    head = _head(network.output_shape[1], config)
    model = keras.Model(pixels, head(network(pixels)), name=config.backbone)
    unfreeze(model, config.unfreeze_depth)
    return model


def build_backbone(config: RunConfig) -> keras.Model:
    """Build a backbone with its preprocessing and its weights; seed as `build_model` does.

    Returns:
        Model from uint8 pixels 0–255, shape (batch, size, size, 1), to features, shape (batch, n).
    """
    weights = load_pretrained_weights(config)  # before the seed: it draws random numbers
    keras.utils.set_random_seed(config.seed)
    backbone = BACKBONES[config.backbone]
    pixels = keras.Input((config.image_size, config.image_size, 1), dtype="uint8")
    if backbone.application is None:
        features = _cnn(layers.Rescaling(backbone.scale, backbone.offset)(pixels))
    else:
        gray = layers.Rescaling(backbone.scale, backbone.offset)(pixels)
        rgb = layers.Concatenate()([gray] * 3)
        network = backbone.build(config.alpha, pooling="avg", input_tensor=rgb)
        [features] = network.outputs
    model = keras.Model(pixels, features, name="backbone")
    if weights is not None:
        model.set_weights(weights)
    return model


def _cnn(pixels: keras.KerasTensor) -> keras.KerasTensor:
    """Build the small CNN of the published project, on one gray channel instead of three."""
    x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu", name="conv_1")(pixels)
    x = layers.MaxPooling2D(2, strides=2, name="block_1_out")(x)
    x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu", name="conv_2")(x)
    x = layers.MaxPooling2D((3, 2), strides=2, name="block_2_out")(x)
    return layers.Flatten()(x)


def _head(features: int, config: RunConfig) -> keras.Model:
    """Build dense layers, each followed by dropout; without any, dropout on the features."""
    head = keras.Sequential([keras.Input((features,))], name="head")
    for width in config.dense_widths:
        head.add(layers.Dense(width, activation="relu"))
        head.add(layers.Dropout(config.dropout))
    if not config.dense_widths:
        head.add(layers.Dropout(config.dropout))
    head.add(layers.Dense(1, name="logit"))
    return head


class TrainablePart(keras.Model):
    """Part of a model above a cut, as it is trained. It shares the layers that train.

    Args:
        model: Model as `build_model` returns it.
        depth: Cut of the inputs, as in `submodel_between`.
        unfreeze_depth: Number of blocks that train. Those below them, up to the cut, get the form
            of `optimize_for_inference`.
        freeze_batch_norm: Whether the backbone runs in inference mode, and only the head in
            training mode, so that batch normalization statistics never change. `training=False` in
            the model's own graph would not suffice: Keras 3 passes the `training=True` of `fit` on
            to every layer of a graph.
    """

    def __init__(
        self, model: keras.Model, depth: int, unfreeze_depth: int, freeze_batch_norm: bool
    ) -> None:
        super().__init__()
        cuts = partial(submodel_between, model.get_layer("backbone"), model.name)
        self.frozen_blocks = None
        if depth > unfreeze_depth:
            self.frozen_blocks = optimize_for_inference(cuts(depth, unfreeze_depth))
            self.frozen_blocks.trainable = False
        self.unfrozen_blocks = cuts(unfreeze_depth, 0) if unfreeze_depth else None
        self.head = model.get_layer("head")
        self._freeze_batch_norm = freeze_batch_norm

    def call(self, inputs: keras.KerasTensor, training: bool | None = None) -> keras.KerasTensor:
        """Return the logits: float32, shape (batch, 1)."""
        if self.frozen_blocks is not None:
            inputs = self.frozen_blocks(inputs, training=False)
        if self.unfrozen_blocks is not None:
            inputs = self.unfrozen_blocks(
                inputs, training=False if self._freeze_batch_norm else training
            )
        return self.head(inputs, training=training)


def compile_for_training(
    part: TrainablePart, learning_rate: float | LearningRateSchedule, n_images: int
) -> None:
    """Compile a part with the loss, the optimizer and the metric `auc`.

    Args:
        part: The part.
        learning_rate: Learning rate of Adam, or its schedule.
        n_images: Images of an epoch.
    """
    part.compile(
        optimizer=FusedAdam(learning_rate),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[EpochAuc(n_images)],
        jit_compile=False,  # XLA makes convolutions several times slower on a CPU
        steps_per_execution=STEPS_PER_EXECUTION,
    )
    # Otherwise Adam creates its variables inside the compiled step, and TensorFlow never frees them
    part.optimizer.build(part.trainable_variables)


class FusedAdam(keras.optimizers.Adam):
    """Adam by TensorFlow's own operation, one for each variable, on one device.

    Keras' Adam adds a dozen operations for each variable to the graph of a step, which then
    compiles for longer. Keras also sums gradients over the replicas of a model, even a single one,
    by a function whose gradient TensorFlow registers permanently, and with it the graph of each
    step. The formula is the same; results differ by rounding.
    """

    def _backend_update_step(
        self,
        grads: Sequence[tf.Tensor],
        trainable_variables: Sequence[keras.Variable],
        learning_rate: tf.Tensor | keras.Variable,
    ) -> None:
        dtype = keras.config.floatx()
        rate, step = tf.cast(learning_rate, dtype), tf.cast(self.iterations + 1, dtype)
        beta1_power, beta2_power = self.beta_1**step, self.beta_2**step
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            index = self._get_variable_index(variable)
            tf.raw_ops.ResourceApplyAdam(
                var=variable.value.handle,
                m=self._momentums[index].value.handle,
                v=self._velocities[index].value.handle,
                beta1_power=beta1_power,
                beta2_power=beta2_power,
                lr=rate,
                beta1=self.beta_1,
                beta2=self.beta_2,
                epsilon=self.epsilon,
                grad=gradient,
            )


class EpochAuc(keras.metrics.Metric):
    """Exact AUC of the logits that the images of an epoch got when they were trained on.

    Keras' own AUC approximates with 200 thresholds, and adds many operations to the graph of each
    step. Here a step stores its logits, and scikit-learn computes the AUC once at the end.

    Args:
        n_images: Images of an epoch.
    """

    def __init__(self, n_images: int) -> None:
        super().__init__(name="auc")
        self._rows = self.add_variable((n_images, 2), "zeros", name="labels_and_logits")
        self._count = self.add_variable((), "zeros", dtype="int32", name="count")

    def update_state(
        self, labels: tf.Tensor, logits: tf.Tensor, sample_weight: tf.Tensor | None = None
    ) -> None:
        """Store a batch: labels of shape (batch,), logits of shape (batch, 1); no weights."""
        rows = tf.concat([tf.cast(tf.reshape(labels, (-1, 1)), logits.dtype), logits], axis=1)
        count = tf.shape(rows)[0]
        places = self._count + tf.range(count)
        self._rows.value.scatter_update(tf.IndexedSlices(rows, places))
        self._count.assign_add(count)

    def result(self) -> float | tf.Tensor:
        """Return the AUC, or NaN if a logit is not finite; inside a compiled step always NaN."""
        if not tf.executing_eagerly():  # Keras returns all metrics of each step, which nobody reads
            return tf.constant(np.nan)
        labels, logits = self._rows.numpy()[: int(self._count)].T
        return roc_auc_score(labels, logits) if np.isfinite(logits).all() else np.nan


def submodel_between(network: keras.Model, name: str, lower: int, upper: int) -> keras.Model:
    """Return the part of a backbone between two cuts; it shares the backbone's layers.

    The number of blocks above a cut names it. 0 is the output of the backbone, and the number of
    all blocks is the pixels.

    Args:
        network: Backbone as `build_backbone` returns it.
        name: Its key in `BACKBONES`.
        lower: Cut of the inputs.
        upper: Cut of the outputs, less than `lower`.
    """
    tensors = cut_tensors(network, name)
    return keras.Model(tensors[lower], tensors[upper])


def cut_tensors(network: keras.Model, name: str) -> list[keras.KerasTensor]:
    """Return the tensors at which a backbone can be cut.

    Args:
        network: Backbone as `build_backbone` returns it.
        name: Its key in `BACKBONES`.

    Returns:
        One tensor per number of blocks above it: the first is the output, the last the pixels.
    """
    ends = [block[-1].output for block in reversed(blocks(network, name))]
    return [*ends, network.input]


def blocks(network: keras.Model, name: str) -> list[list[keras.Layer]]:
    """Return the layers of each block of a backbone, from the input up.

    What follows the last block's end belongs to that block. An end counts only if the graph is one
    tensor wide, so that it can be cut there.

    Args:
        network: Backbone as `build_backbone` returns it.
        name: Its key in `BACKBONES`.

    Raises:
        ValueError: The table states another number of blocks.
    """
    backbone, cut_layers = BACKBONES[name], _single_tensor_layers(network)
    all_blocks: list[list[keras.Layer]] = [[]]
    for layer in network.layers:
        all_blocks[-1].append(layer)
        if re.fullmatch(backbone.block_end, layer.name) and layer.name in cut_layers:
            all_blocks.append([])
    rest = all_blocks.pop()
    if len(all_blocks) != backbone.blocks:
        raise ValueError(
            f"{name} must have {backbone.blocks} blocks according to BACKBONES: "
            f"'{backbone.block_end}' matches {len(all_blocks)}. Correct one of the two."
        )
    all_blocks[-1] += rest
    return all_blocks


def _single_tensor_layers(network: keras.Model) -> set[str]:
    """Return the names of the layers at which the graph is one tensor wide."""
    made_at: dict[int, int] = {}
    needed_until = [0] * len(network.layers)
    for position, layer in enumerate(network.layers):
        for tensor in keras.tree.flatten(layer.input):
            if id(tensor) in made_at:  # the input layer's input is its own output
                needed_until[made_at[id(tensor)]] = position
        made_at[id(layer.output)] = position
    last_needed = 0  # how far into the graph the layers before this one are needed
    names = set()
    for position, layer in enumerate(network.layers):
        if last_needed <= position:
            names.add(layer.name)
        last_needed = max(last_needed, needed_until[position])
    return names


def unfreeze(model: keras.Model, depth: int) -> None:
    """Make the topmost blocks of a model's backbone trainable, and no others.

    The change takes effect with the next `compile`.

    Args:
        model: Model as `build_model` returns it.
        depth: Number of blocks that train; 0 trains the head alone.
    """
    all_blocks = blocks(model.get_layer("backbone"), model.name)
    for position, block in enumerate(all_blocks):
        for layer in block:
            layer.trainable = position >= len(all_blocks) - depth
