"""Logits and probabilities of images, and ensembles of several networks."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import keras
import numpy as np
from keras import layers

from pneumo.inference.calibration import UNCALIBRATED, Calibration

# Names of layers in an ensemble. A member's has a number from 1, and its weight if that is not 1
MEMBER_PREFIX, WEIGHT_INFIX, FLIP_LAYER = "member_", "_weight_", "mirror"

INFERENCE_BATCH_SIZE = 64  # images per step: with fewer, small parts take longer


def build_ensemble(
    members: Sequence[keras.Model], flip_tta: bool = False, name: str | None = None
) -> keras.Model:
    """Build a model whose logit is the mean of its members' logits.

    Args:
        members: Models as `build_model` returns them, of one input size. A model that is listed
            several times runs once, and its weight in the mean is that number.
        flip_tta: Whether to use test-time augmentation: each member also gets the horizontally
            flipped image, and its two logits are averaged.
        name: Name of the ensemble, by default that of the first member.

    Returns:
        The ensemble. A single member without `flip_tta` is returned itself.
    """
    if len(members) == 1 and not flip_tta:
        return members[0]
    counts = Counter(map(id, members))
    distinct = {id(member): member for member in members}.values()
    named_members = [
        keras.Model(
            member.inputs[0], member.outputs[0], name=_member_name(number, counts[id(member)])
        )
        for number, member in enumerate(distinct, start=1)
    ]
    [member_input] = members[0].inputs
    pixels = keras.Input(member_input.shape[1:], dtype=member_input.dtype, name="pixels")
    views = [pixels]
    if flip_tta:
        flipped = keras.ops.flip(pixels, axis=2)
        views.append(keras.Model(pixels, flipped, name=FLIP_LAYER)(pixels))
    logits = [
        logit
        for member in named_members
        for logit in [member(view) for view in views] * member_weight(member)
    ]
    return keras.Model(pixels, layers.Average()(logits), name=name or members[0].name)


def _member_name(number: int, weight: int) -> str:
    return f"{MEMBER_PREFIX}{number}" + (f"{WEIGHT_INFIX}{weight}" if weight > 1 else "")


def member_weight(member: keras.Model) -> int:
    """Return the weight of one of `ensemble_members` in the mean of their logits, at least 1."""
    weight = re.search(rf"{WEIGHT_INFIX}(\d+)$", member.name)
    return int(weight[1]) if weight else 1


def ensemble_members(model: keras.Model) -> list[keras.Model]:
    """Return the members of an ensemble; any other model is returned as its only member."""
    members = [layer for layer in model.layers if layer.name.startswith(MEMBER_PREFIX)]
    return members or [model]


def with_features(model: keras.Model, layer: str) -> keras.Model:
    """Return a model that also returns features of the images; it shares the model's weights.

    For a single network the features cost nothing, because its logit needs them. For an ensemble
    the first member's backbone runs once more.

    Args:
        model: Model as `build_ensemble` returns it.
        layer: Name of a layer in the backbone of its first member.

    Returns:
        Model from pixels to the logit, shape (batch, 1), and to the means of the layer's channels,
        shape (batch, channels).
    """
    member = ensemble_members(model)[0]
    backbone = member.get_layer("backbone")
    means = layers.GlobalAveragePooling2D(name="input_gate_features")(
        backbone.get_layer(layer).output
    )
    [pixels] = model.inputs
    if member is model:
        outputs, features = keras.Model(backbone.inputs, [*backbone.outputs, means])(pixels)
        logit = model.get_layer("head")(outputs)
    else:
        [logit] = model.outputs
        features = keras.Model(backbone.inputs, means)(pixels)
    return keras.Model(pixels, [logit, features])


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Return a copy of a model whose convolutions also do the batch normalization after them.

    In inference mode the copy computes the same except for rounding. On a CPU it takes half the
    time, because TensorFlow reads and writes each activation less often. The copy shares inner
    models that have nothing to fold. Later changes of all other weights do not reach it.

    Args:
        model: A functional model, perhaps of others.

    Returns:
        The copy. A model that has nothing to fold is returned itself.
    """
    norms = {conv.name: norm for conv, norm in _foldable_pairs(model)}
    nested = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    parts = {layer.name: fold_batch_norm(layer) for layer in nested}
    if not norms and all(parts[layer.name] is layer for layer in nested):
        return model
    folded = {norm.name for norm in norms.values()}

    def copy(layer: keras.Layer) -> keras.Layer:
        if layer.name in parts:
            return parts[layer.name]
        config = layer.get_config()
        return type(layer).from_config(
            config | {"use_bias": True} if layer.name in norms else config
        )

    def call(layer: keras.Layer, *inputs: keras.KerasTensor, **options: object) -> object:
        return inputs[0] if layer.name in folded else layer(*inputs, **options)

    result = keras.models.clone_model(model, clone_function=copy, call_function=call)
    copies = {layer.name: layer for layer in result.layers}
    for layer in model.layers:
        if layer.name in norms:
            copies[layer.name].set_weights(_fold_weights(layer, norms[layer.name]))
        elif layer.weights and layer.name not in parts and layer.name in copies:
            copies[layer.name].set_weights(layer.get_weights())
    return result


def _foldable_pairs(model: keras.Model) -> Iterator[tuple[keras.Layer, keras.Layer]]:
    """Yield each convolution whose output only a batch normalization uses, with that."""
    users = Counter(
        id(tensor) for layer in model.layers for tensor in keras.tree.flatten(layer.input)
    )
    convolutions = {
        id(layer.output): layer
        for layer in model.layers
        if type(layer) in (layers.Conv2D, layers.DepthwiseConv2D)
        and layer.activation is keras.activations.linear
        and users[id(layer.output)] == 1
    }
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization) and id(layer.input) in convolutions:
            yield convolutions[id(layer.input)], layer


def _fold_weights(
    convolution: keras.Layer, norm: layers.BatchNormalization
) -> tuple[np.ndarray, np.ndarray]:
    """Return the kernel and the bias of a convolution with batch normalization."""
    kernel, *biases = convolution.get_weights()
    *gamma_and_beta, mean, variance = norm.get_weights()
    gamma = gamma_and_beta.pop(0) if norm.scale else 1.0
    beta = gamma_and_beta.pop() if norm.center else 0.0
    scale = gamma / np.sqrt(variance + norm.epsilon)
    bias = beta + (sum(biases) - mean) * scale
    is_depthwise = isinstance(convolution, layers.DepthwiseConv2D)
    return kernel * (scale.reshape(kernel.shape[2:]) if is_depthwise else scale), bias


def uses_flip_tta(model: keras.Model) -> bool:
    """Return whether a model uses test-time augmentation with flipped images."""
    return any(layer.name == FLIP_LAYER for layer in model.layers)


def predict_proba(
    model: keras.Model, images: np.ndarray, calibration: Calibration = UNCALIBRATED
) -> np.ndarray:
    """Predict the probability of pneumonia for each image.

    Args:
        model: Model as `build_ensemble` returns it.
        images: uint8 array of shape (n, size, size, 1).
        calibration: Calibration of the model's logits.

    Returns:
        float64 array of shape (n,), 0 to 1.

    Raises:
        TypeError: The images have another dtype. Keras would cast pixels that were divided by 255
            to a black image without an error.
    """
    if images.dtype != np.uint8:
        raise TypeError(
            f"images must have dtype uint8 and values from 0 to 255: got {images.dtype}"
        )
    return calibration.to_probabilities(predict_logits(model, images))


def predict_logits(part: keras.Model, inputs: np.ndarray) -> np.ndarray:
    """Predict the logit of pneumonia for each input.

    Args:
        part: A model or a `TrainablePart`.
        inputs: What `part` takes, n of them.

    Returns:
        float64 array of shape (n,), above 0 if pneumonia is more likely than not.
    """
    batches = []
    # `predict` would build a pipeline at each call, which takes longer than a small part itself
    for start in range(0, len(inputs), INFERENCE_BATCH_SIZE):
        batches.append(part.predict_on_batch(inputs[start : start + INFERENCE_BATCH_SIZE])[:, 0])
    # float64 keeps probabilities distinct that float32 would round to 1
    return np.concatenate(batches, dtype=np.float64)
