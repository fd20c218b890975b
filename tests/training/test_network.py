"""Networks: blocks, depth, head, and the stored file."""

import re
import subprocess
import sys
from functools import lru_cache

import keras
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pneumo.inference.logits import predict_proba
from pneumo.training import network
from pneumo.training.backbones import BACKBONES, Backbone
from pneumo.training.config import RunConfig
from pneumo.training.network import blocks, build_backbone, build_model
from tests.support.paths import ROOT

NOISE = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 1), np.uint8)
FIRST_CONVOLUTION = {"cnn": "conv_1", "mobilenet": "conv1", "resnet50v2": "conv1_conv"}


def build(**fields) -> keras.Model:
    return network.build_model(RunConfig(image_size=64, **fields))


@lru_cache  # no test changes one, or asks for one while it changes BACKBONES
def backbone(name: str) -> keras.Model:
    return build_backbone(RunConfig(image_size=64, backbone=name))


@pytest.mark.parametrize(("name", "count"), [("cnn", 2), ("mobilenet", 13), ("resnet50v2", 16)])
def test_the_blocks_of_each_backbone(name, count):
    network = backbone(name)
    found = blocks(network, name)
    assert len(found) == BACKBONES[name].blocks == count
    assert sum(found, []) == network.layers
    for block in found:
        assert any(isinstance(layer, keras.layers.Conv2D) for layer in block)


def test_every_backbone_is_tested_here():
    assert set(FIRST_CONVOLUTION) == set(BACKBONES)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_network_can_be_cut_at_every_block(name):
    network = backbone(name)
    for block in blocks(network, name)[:-1]:
        keras.Model(block[-1].output, network.output)  # refused where it needs more than that


def test_an_end_that_a_shortcut_goes_around_does_not_count(monkeypatch):
    resnet = backbone("resnet50v2")
    inside = Backbone("ResNet50V2", r"conv\d_block\d_(1_relu|out)", 16)
    monkeypatch.setitem(BACKBONES, "resnet50v2", inside)
    ends = [block[-1].name for block in network.blocks(resnet, "resnet50v2")]
    assert len(ends) == 16
    assert all(name.endswith("_out") for name in ends[:-1])


def test_a_pattern_that_gives_other_blocks_is_refused(monkeypatch):
    mobilenet = backbone("mobilenet")
    monkeypatch.setitem(BACKBONES, "mobilenet", Backbone("MobileNet", "conv_pw_.*_bn", 14))
    with pytest.raises(ValueError, match="must have 14 blocks .*'conv_pw_.*_bn' matches 13"):
        network.blocks(mobilenet, "mobilenet")


def trained(**fields) -> list[str]:
    return trained_layers(build(**fields))


def trained_layers(model: keras.Model) -> list[str]:
    layers = model.get_layer("backbone").layers
    return [layer.name for layer in layers if layer.trainable_weights]


def trained_at(model: keras.Model, depth: int) -> list[str]:
    """Unfreeze so many blocks of a model as `build_model` does, without building it again."""
    network.unfreeze(model, depth)
    return trained_layers(model)


@pytest.mark.parametrize(
    ("depth", "expected"), [(0, []), (1, ["conv_2"]), (2, ["conv_1", "conv_2"])]
)
def test_which_layers_of_the_cnn_train_at_each_depth(depth, expected):
    assert trained(unfreeze_depth=depth) == expected


@pytest.mark.slow
def test_which_layers_of_mobilenet_train_at_each_depth():
    expected, model = [], build(backbone="mobilenet", alpha=0.25, unfreeze_depth=0)
    for depth in range(14):
        if depth:
            block = 14 - depth
            names = [f"conv_{kind}_{block}" for kind in ("dw", "pw")]
            expected = [*(f"{name}{bn}" for name in names for bn in ("", "_bn")), *expected]
        if depth == 13:
            expected = ["conv1", "conv1_bn", *expected]
        assert trained_at(model, depth) == expected


@pytest.mark.slow
def test_which_layers_of_resnet_train_at_each_depth():
    ends = [f"conv{stage}_block{n}" for stage, blocks in zip("2345", (3, 4, 6, 3), strict=True)
            for n in range(1, blocks + 1)]  # fmt: skip
    model = build(backbone="resnet50v2", unfreeze_depth=16)
    all_layers = trained_layers(model)
    for depth in (0, 1, 2, 15):
        open_blocks = (*(f"{end}_" for end in ends[16 - depth :]), *(["post_bn"] * (depth > 0)))
        expected = [name for name in all_layers if name.startswith(open_blocks)]
        assert trained_at(model, depth) == expected
    assert {name.rpartition("_block")[0] for name in all_layers} == {
        *("", "conv2", "conv3", "conv4", "conv5")
    }
    assert [name for name in all_layers if "block" not in name] == ["conv1_conv", "post_bn"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet", "resnet50v2"])
def test_a_pretrained_backbone_gets_what_it_was_trained_on(name):
    """Compare with the application itself, on colors from its own preprocess_input."""
    network = backbone(name)
    family = {"mobilenet": "mobilenet", "resnet50v2": "resnet_v2"}[name]
    plain = getattr(keras.applications, BACKBONES[name].application)(
        include_top=False, weights=None, pooling="avg", input_shape=(64, 64, 3)
    )
    plain.set_weights(network.get_weights())
    colours = np.repeat(NOISE, 3, axis=3).astype(np.float32)
    colours = getattr(keras.applications, family).preprocess_input(colours)
    expected = plain.predict(colours, verbose=0)
    assert network.predict(NOISE, verbose=0) == pytest.approx(expected, abs=1e-5)


def test_alpha_is_the_width():
    wide, narrow = (
        build(backbone="mobilenet", alpha=alpha, unfreeze_depth=0).get_layer("backbone")
        for alpha in (1.0, 0.25)
    )
    assert (wide.output_shape[1], narrow.output_shape[1]) == (1024, 256)


@pytest.mark.parametrize(
    ("widths", "shapes"),
    [((), [(192, 1)]), ((32,), [(192, 32), (32, 1)]), ((8, 4), [(192, 8), (8, 4), (4, 1)])],
)
def test_the_head(widths, shapes):
    layers = build(dense_widths=widths, dropout=0.3).get_layer("head").layers
    dense = [tuple(layer.kernel.shape) for layer in layers if isinstance(layer, keras.layers.Dense)]
    dropout = [layer.rate for layer in layers if isinstance(layer, keras.layers.Dropout)]
    assert dense == shapes
    assert dropout == [0.3] * max(1, len(widths))


def test_the_same_config_gives_the_same_weights():
    one, same, other = (build(seed=seed).get_weights() for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[0], other[0])


def test_probabilities_are_the_sigmoid_of_the_logit():
    model = build()
    scores = predict_proba(model, NOISE)
    assert (scores.dtype, scores.shape) == (np.float64, (20,))
    logits = keras.ops.convert_to_numpy(model(NOISE))[:, 0]
    assert scores == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_anything_but_uint8_pixels_is_refused(dtype):
    with pytest.raises(TypeError, match="images must have dtype uint8"):
        predict_proba(build(), (NOISE / 255).astype(dtype))


@pytest.mark.parametrize("rate", [0.01, keras.optimizers.schedules.CosineDecay(0.01, 5)])
def test_adam_in_one_operation_trains_as_keras_own(rate):
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(40, 3)), rng.integers(0, 2, 40)
    layers = [keras.Input((3,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    start, trained = model.get_weights(), []
    for adam in (network.FusedAdam(rate), keras.optimizers.Adam(rate)):
        model.set_weights(start)
        model.compile(adam, "mse")
        model.fit(inputs, labels, batch_size=8, epochs=2, shuffle=False, verbose=0)
        trained.append(np.concatenate([weight.ravel() for weight in model.get_weights()]))
    assert np.abs(trained[1] - np.concatenate([weight.ravel() for weight in start])).max() > 0.02
    assert trained[0] == pytest.approx(trained[1], abs=1e-6)


def test_the_auc_of_an_epoch_is_exact():
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 2, 1000), rng.normal(8, 0.001, (1000, 1)).astype(np.float32)
    area = network.EpochAuc(1000)
    for epoch in range(2):
        area.reset_state()
        order = rng.permutation(1000 - epoch)
        for batch in np.array_split(order, 7):
            area.update_state(labels[batch], logits[batch])
        assert area.result() == roc_auc_score(labels[order], logits[order])
    area.update_state(labels[:1], np.array([[np.nan]], np.float32))
    assert np.isnan(area.result())


def test_the_metric_of_a_fit_has_a_score_for_each_image():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 50)
    model = build(dropout=0)
    inputs = rng.normal(size=(50, *model.get_layer("head").input_shape[1:]))
    part = network.TrainablePart(model, 0, 0, freeze_batch_norm=True)
    network.compile_for_training(part, 0.0, 50)
    history = part.fit(inputs, labels, batch_size=8, epochs=2, verbose=0).history
    expected = roc_auc_score(labels, part(inputs).numpy().ravel())
    assert history["auc"] == [expected, expected]


@pytest.mark.slow
def test_the_files_load_with_keras_alone(tmp_path):
    models = {name: build(backbone=name) for name in BACKBONES}
    for name, model in models.items():
        model.save(tmp_path / f"{name}.keras")
    np.save(tmp_path / "noise.npy", NOISE)
    code = (
        "import sys, keras, numpy as np\n"
        "for name in sys.argv[1:]:\n"
        "    model = keras.models.load_model(f'{name}.keras', safe_mode=True)\n"
        "    np.save(f'{name}.npy', model.predict(np.load('noise.npy'), verbose=0))\n"
        "assert 'pneumo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-I", "-c", code, *models], cwd=tmp_path, check=True)
    for name, model in models.items():
        scores = 1 / (1 + np.exp(-np.load(tmp_path / f"{name}.npy")[:, 0].astype(np.float64)))
        assert scores == pytest.approx(predict_proba(model, NOISE), abs=1e-6)


@pytest.mark.slow
def test_another_backbone_costs_the_line_that_the_readme_shows(monkeypatch):
    line = re.search(
        r'^"(\w+)": (Backbone\(.*\)),$', (ROOT / "experiments" / "README.md").read_text(), re.M
    )
    monkeypatch.setitem(BACKBONES, line[1], eval(line[2], {"Backbone": Backbone}))
    network = build_backbone(RunConfig(image_size=64, backbone=line[1], weights="none"))
    found = blocks(network, line[1])
    for block in found:
        assert any(isinstance(layer, keras.layers.Conv2D) for layer in block)
    assert trained(backbone=line[1], unfreeze_depth=1)[-2:] == ["top_conv", "top_bn"]
    config = RunConfig(image_size=64, backbone=line[1], unfreeze_depth=0)
    assert predict_proba(build_model(config), NOISE).shape == (20,)
