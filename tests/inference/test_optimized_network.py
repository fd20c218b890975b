"""Networks with fewer layers that compute the same."""

import keras
import numpy as np
import pytest
from keras import layers

from pneumo.inference.logits import build_ensemble, optimize_for_inference, with_features
from pneumo.training.config import RunConfig
from pneumo.training.network import TrainablePart, build_model

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), np.uint8)


def randomize(model: keras.Model) -> keras.Model:
    """Give each batch normalization random values, with which the images remain distinct."""
    rng = np.random.default_rng(0)
    ranges = {
        "gamma": (1, 2),
        "beta": (-0.5, 0.5),
        "moving_mean": (-0.1, 0.1),
        "moving_variance": (0.01, 0.05),
    }
    for layer in layers_of(model):
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights(
                [rng.uniform(*ranges[weight.name], weight.shape) for weight in layer.weights]
            )
    return model


def layers_of(model: keras.Model) -> list[keras.Layer]:
    """Return the layers of a model and its parts."""
    return list(model._flatten_layers(include_self=False))


def norms(model: keras.Model) -> list[str]:
    """Return the names of the batch normalizations in a model and its parts."""
    found = [layer for layer in layers_of(model) if isinstance(layer, layers.BatchNormalization)]
    return [layer.name for layer in found]


def answers(model: keras.Model, images: np.ndarray = IMAGES) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(images, training=False))


# ResNet normalizes sums, which cannot be folded, once in each block and at the end
@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "left"), [("mobilenet", 0), ("resnet50v2", 17)])
def test_a_network_computes_the_same_with_fewer_layers(backbone, left):
    config = RunConfig(backbone=backbone, image_size=32, unfreeze_depth=0, weights="none")
    model = randomize(build_model(config))
    folded = optimize_for_inference(model)
    assert len(norms(folded)) == left < len(norms(model))
    before = answers(folded)
    assert np.ptp(before) > 0.1
    assert before == pytest.approx(answers(model), rel=1e-3, abs=1e-4)
    backbone = model.get_layer("backbone")
    backbone.set_weights([0 * weight for weight in backbone.get_weights()])
    assert np.array_equal(answers(folded), before)


@pytest.mark.slow
def test_both_members_of_an_ensemble_are_folded():
    config = RunConfig(backbone="mobilenet", image_size=32, unfreeze_depth=0, weights="none")
    members = [randomize(build_model(config.override({"seed": seed}))) for seed in (0, 1)]
    model = build_ensemble(members, flip_tta=True)
    folded = optimize_for_inference(model)
    assert norms(folded) == []
    assert answers(folded) == pytest.approx(answers(model), rel=1e-3, abs=1e-4)


def test_a_model_without_anything_to_optimize_is_returned_itself():
    model = build_model(RunConfig(image_size=32))
    assert optimize_for_inference(model) is model


@pytest.mark.parametrize(
    ("channels", "options", "is_optimized"),
    [
        (1, {}, True),
        (2, {"use_bias": False, "activation": "relu"}, True),
        (2, {"groups": 2}, False),
    ],
)
def test_a_repeated_tensor_is_convolved_once(channels, options, is_optimized):
    pixels = keras.Input((8, 8, channels))
    repeated = layers.ZeroPadding2D(1)(layers.Concatenate()([pixels] * 2))
    model = keras.Model(pixels, layers.Conv2D(4, 3, **options)(repeated))
    images = np.random.default_rng(1).normal(size=(2, 8, 8, channels)).astype(np.float32)
    optimized = optimize_for_inference(model)
    names = {type(layer).__name__ for layer in optimized.layers}
    assert ("Concatenate" not in names) == is_optimized
    assert answers(optimized, images) == pytest.approx(answers(model, images), abs=1e-5)


def test_different_tensors_and_other_users_are_left_as_they_are():
    pixels = keras.Input((8, 8, 1))
    different = layers.Concatenate()([pixels, layers.ReLU()(pixels)])
    same = layers.Concatenate()([pixels, pixels])
    outputs = [layers.Conv2D(4, 3)(tensor) for tensor in (different, same, same)]
    model = keras.Model(pixels, layers.Add()(outputs))
    assert optimize_for_inference(model) is model


@pytest.mark.parametrize(
    ("layer", "options", "norm", "is_folded"),
    [
        ("Conv2D", {"filters": 4, "use_bias": False}, {}, True),
        ("Conv2D", {"filters": 4}, {"scale": False}, True),
        ("Conv2D", {"filters": 4, "strides": 2, "padding": "same"}, {"center": False}, True),
        ("DepthwiseConv2D", {"depth_multiplier": 2}, {"epsilon": 0.1}, True),
        ("Conv2D", {"filters": 4, "activation": "relu"}, {}, False),
        ("Conv2D", {"filters": 6}, {"axis": 1}, False),
        ("SeparableConv2D", {"filters": 4}, {}, False),
    ],
)
def test_what_is_folded(layer, options, norm, is_folded):
    pixels = keras.Input((8, 8, 3))
    convolved = getattr(layers, layer)(kernel_size=3, **options)(pixels)
    outputs = layers.BatchNormalization(**norm)(convolved)
    model = randomize(keras.Model(pixels, layers.ReLU()(outputs)))
    images = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)
    folded = optimize_for_inference(model)
    assert (norms(folded) == []) == is_folded
    assert answers(folded, images) == pytest.approx(answers(model, images), rel=1e-4, abs=1e-5)


def test_a_convolution_that_is_also_used_elsewhere_is_not_folded():
    pixels = keras.Input((8, 8, 3))
    convolved = layers.Conv2D(4, 3)(pixels)
    outputs = layers.Add()([layers.BatchNormalization()(convolved), convolved])
    assert norms(optimize_for_inference(keras.Model(pixels, outputs))) != []


def unusual_model(kind: str) -> keras.Model:
    """Return a model whose convolution cannot be folded into what follows."""
    pixels = keras.Input((8, 8, 3))
    convolution, norm = layers.Conv2D(3, 3, padding="same"), layers.BatchNormalization()
    convolved = convolution(pixels)
    match kind:
        case "its output is also the model's":
            return keras.Model(pixels, [norm(convolved), convolved])
        case "an inner model uses it too":
            part = keras.Input((8, 8, 3))
            inner = keras.Model(part, layers.ReLU()(part))
            return keras.Model(pixels, layers.Add()([norm(convolved), inner(convolved)]))
        case "it is called twice":
            return keras.Model(pixels, norm(convolution(convolved)))
        case "the normalization is called twice":
            return keras.Model(pixels, norm(norm(convolved)))
    return keras.Sequential([pixels, convolution, norm])


@pytest.mark.parametrize(
    "kind",
    [
        "its output is also the model's",
        "an inner model uses it too",
        "it is called twice",
        "the normalization is called twice",
        "sequential",
    ],
)
def test_unusual_models_are_returned_themselves(kind):
    model = unusual_model(kind)
    assert optimize_for_inference(model) is model


@pytest.mark.slow
def test_a_stored_ensemble_with_a_gate_is_optimized(tmp_path):
    config = RunConfig(backbone="mobilenet", image_size=32, unfreeze_depth=0, weights="none")
    members = [randomize(build_model(config.override({"seed": seed}))) for seed in (0, 1)]
    build_ensemble(members, flip_tta=True).save(tmp_path / "model.keras")
    stored = keras.models.load_model(tmp_path / "model.keras", compile=False)
    model = with_features(stored, "conv_pw_5_relu")
    optimized = optimize_for_inference(model)
    assert norms(optimized) == []
    names = {type(layer).__name__ for layer in layers_of(optimized)}
    assert "Concatenate" not in names
    for found, expected in zip(optimized(IMAGES), model(IMAGES), strict=True):
        assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-4)


@pytest.mark.slow
def test_frozen_blocks_in_training_are_optimized():
    config = RunConfig(backbone="mobilenet", image_size=32, unfreeze_depth=2, weights="none")
    model = randomize(build_model(config))
    part = TrainablePart(model, 13, 2, freeze_batch_norm=True)
    assert norms(part.frozen_blocks) == []
    assert part.frozen_blocks.trainable_weights == []
    assert part(IMAGES).numpy() == pytest.approx(answers(model), rel=1e-3, abs=1e-4)
    assert len(part.trainable_weights) == len(model.trainable_weights)
