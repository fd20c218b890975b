"""Logits and probabilities of images, ensembles, and the fastest form of a network."""

import re
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from pneumo.inference.batches import map_in_threads
from pneumo.inference.calibration import UNCALIBRATED, Calibration

# Names of layers in an ensemble. A member's has a number from 1, and its weight if that is not 1
MEMBER_PREFIX, WEIGHT_INFIX, FLIP_LAYER = "member_", "_weight_", "mirror"

INFERENCE_BATCH_SIZE = 32  # images per step: with fewer, small parts take longer

# One batch of a small network does not keep two cores busy. More than two would need more memory,
# also on a GPU
MAX_INFERENCE_BATCHES = 2

Inference = Callable[[np.ndarray], Any]  # from a batch to one tensor, or to a list of them

_compiled: WeakKeyDictionary[keras.Model, Inference] = WeakKeyDictionary()


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


def optimize_for_inference(model: keras.Model) -> keras.Model:
    """Return a copy of a model that computes the same with fewer layers, except for rounding.

    Convolutions also do the batch normalization after them. A gray image is not repeated for a
    convolution of colors. On a CPU a small network takes half the time, because TensorFlow reads
    and writes each activation less often. The copy is for inference mode. It shares inner models
    that have nothing to optimize. Later changes of all other weights do not reach it.

    Args:
        model: A functional model, perhaps of others.

    Returns:
        The copy. A model that has nothing to optimize is returned itself.
    """
    if isinstance(model, keras.Sequential):
        return model
    inner = {layer.name: layer for layer in model.layers if isinstance(layer, keras.Model)}
    parts = {name: optimize_for_inference(layer) for name, layer in inner.items()}
    calls = _find_calls(model)
    norms = {call.layer: call.users[0] for call in calls if _is_normalized(call)}
    repetitions = dict(_find_repetitions(calls))
    if not norms and not repetitions and parts == inner:
        return model
    convolutions = {*norms, *repetitions}
    skipped = {layer.name for layer in (*norms.values(), *repetitions.values())}

    def copy_layer(layer: keras.Layer) -> keras.Layer:
        if layer.name in parts:
            return parts[layer.name]
        config = layer.get_config()
        # Random values would be replaced, and would be drawn from Python's global generator
        config |= {name: "zeros" for name in config if name.endswith("_initializer")}
        return type(layer).from_config(
            config | ({"use_bias": True} if layer in convolutions else {})
        )

    def call_layer(layer: keras.Layer, *inputs: Any, **options: Any) -> Any:
        if layer.name not in skipped:
            return layer(*inputs, **options)
        [tensor, *_] = keras.tree.flatten(inputs)
        return tensor

    result = keras.models.clone_model(model, clone_function=copy_layer, call_function=call_layer)
    optimized = {layer.name: layer for layer in result.layers}
    for layer in model.layers:
        if layer in convolutions:
            weights = _convolution_weights(layer, norms.get(layer), repetitions.get(layer))
            optimized[layer.name].set_weights(weights)
        elif layer.weights and layer.name not in (*parts, *skipped):
            optimized[layer.name].set_weights(layer.get_weights())
    return result


class _Call(NamedTuple):
    """The only call of a layer in a model: its inputs, and the layers that use its output."""

    layer: keras.Layer
    inputs: list[keras.KerasTensor]
    users: list[keras.Layer | None]  # None is the output of the model


def _find_calls(model: keras.Model) -> list[_Call]:
    """Return the calls of a functional model's layers, except of layers that it calls twice."""
    nodes = [node for level in model._nodes_by_depth.values() for node in level]
    counts = Counter(node.operation for node in nodes)
    users: defaultdict[int, list[keras.Layer | None]] = defaultdict(list)
    for tensor in model.outputs:
        users[id(tensor)].append(None)
    for node in nodes:
        for tensor in node.input_tensors:
            users[id(tensor)].append(node.operation if counts[node.operation] == 1 else None)
    return [
        _Call(node.operation, node.input_tensors, users[id(node.output_tensors[0])])
        for node in nodes
        if counts[node.operation] == 1
    ]


def _is_normalized(call: _Call) -> bool:
    """Return whether only a batch normalization of channels uses a convolution's output."""
    layer, _, users = call
    if type(layer) not in (layers.Conv2D, layers.DepthwiseConv2D) or len(users) > 1:
        return False
    return (
        layer.activation is keras.activations.linear
        and isinstance(users[0], layers.BatchNormalization)
        and users[0].axis in (-1, 3)
        and not users[0].renorm
    )


def _find_repetitions(calls: list[_Call]) -> Iterator[tuple[keras.Layer, keras.Layer]]:
    """Yield each convolution of nothing but copies of one tensor, and what concatenates them."""
    users = {call.layer: call.users for call in calls}
    for layer, inputs, using in calls:
        if not isinstance(layer, layers.Concatenate) or layer.axis not in (-1, 3):
            continue
        while len(using) == 1 and isinstance(using[0], layers.ZeroPadding2D):
            using = users[using[0]]
        is_repetition = len(inputs) > 1 and len(set(map(id, inputs))) == 1 == len(using)
        if is_repetition and type(using[0]) is layers.Conv2D and using[0].groups == 1:
            yield using[0], layer


def _convolution_weights(
    convolution: keras.Layer,
    norm: layers.BatchNormalization | None,
    repetition: layers.Concatenate | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the kernel and the bias of a convolution that also does what is skipped."""
    kernel, *biases = convolution.get_weights()
    bias = biases[0] if biases else np.zeros(convolution.output.shape[-1], np.float32)
    if repetition is not None:
        height, width, _, n_filters = kernel.shape
        n_copies = len(repetition.input)
        kernel = kernel.reshape(height, width, n_copies, -1, n_filters).sum(axis=2)
    if norm is None:
        return kernel, bias
    *gamma_and_beta, mean, variance = norm.get_weights()
    gamma = gamma_and_beta.pop(0) if norm.scale else 1.0
    beta = gamma_and_beta.pop() if norm.center else 0.0
    scale = gamma / np.sqrt(variance + norm.epsilon)
    is_depthwise = isinstance(convolution, layers.DepthwiseConv2D)
    kernel = kernel * (scale.reshape(kernel.shape[2:]) if is_depthwise else scale)
    return kernel, beta + (bias - mean) * scale


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
    # float64 keeps probabilities distinct that float32 would round to 1
    batches = predict_in_batches(part, inputs)
    return np.concatenate([logits[:, 0] for logits in batches], dtype=np.float64)


def predict_in_batches(model: keras.Model, inputs: np.ndarray) -> Iterator[Any]:
    """Predict inputs in batches of `INFERENCE_BATCH_SIZE`, `MAX_INFERENCE_BATCHES` at once.

    Keras' own `predict` builds a pipeline at each call. That takes longer than a small model, and
    the end of a pipeline may wait for a second: see `BatchFeeder.batches`.

    Args:
        model: Any model.
        inputs: What it takes, one row per image, of the same shape and dtype in each call.

    Returns:
        Iterator over what the model returns for each batch: an array, or a list of the arrays of
        its outputs.
    """
    if model not in _compiled:
        # A function that refers to the model itself would keep the dictionary's weak key alive
        weak_model = weakref.proxy(model)
        _compiled[model] = compile_inference(weak_model, inputs.shape[1:], inputs.dtype)
    infer = _compiled[model]

    def predict(start: int) -> Any:
        outputs = infer(inputs[start : start + INFERENCE_BATCH_SIZE])
        return keras.tree.map_structure(lambda output: output.numpy(), outputs)

    starts = range(0, len(inputs), INFERENCE_BATCH_SIZE)
    # Not `return`: as a generator this function keeps the model alive until the last batch
    yield from map_in_threads(predict, starts, MAX_INFERENCE_BATCHES)


def compile_inference(model: keras.Model, shape: Sequence[int | None], dtype: Any) -> Inference:
    """Compile a model in inference mode, once for batches of any size.

    Keras' own `predict_on_batch` compiles a second time for a last batch that is smaller.

    Args:
        model: Any model.
        shape: Shape of one row of its inputs.
        dtype: Dtype of its inputs.
    """
    return tf.function(
        lambda batch: model(batch, training=False),
        [tf.TensorSpec((None, *shape), dtype)],
        jit_compile=False,  # XLA makes convolutions several times slower on a CPU
    )
