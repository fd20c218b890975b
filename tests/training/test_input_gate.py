"""Fit of the gate that detects images far from the training images."""

import keras
import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from pneumo.inference.input_gate import InputGate
from pneumo.inference.logits import (
    build_ensemble,
    ensemble_members,
    predict_logits,
    with_features,
)
from pneumo.inference.pyfunc import PneumoniaModel
from pneumo.training.config import RunConfig
from pneumo.training.network import build_model
from pneumo.training.train import fit_input_gate
from tests.support.features import small_config

LAYERS = {"cnn": "block_1_out", "mobilenet": "conv_pw_11_relu"}


def build(**fields) -> keras.Model:
    return build_model(RunConfig(image_size=32, **fields))


def pooled(model: keras.Model, layer: str, pixels: np.ndarray) -> np.ndarray:
    """The means of each channel, by Keras alone."""
    backbone = model.get_layer("backbone")
    maps = keras.Model(backbone.inputs, backbone.get_layer(layer).output)
    return maps.predict(pixels, verbose=0).mean(axis=(1, 2)).astype(float)


@pytest.mark.parametrize("backbone", ["cnn", "mobilenet"])
def test_the_gate_is_that_of_the_last_block_with_larger_maps(backbone, sample, weights):
    images = sample.decode(32, 0)
    model = build() if backbone == "cnn" else build_model(small_config(weights))
    gate = fit_input_gate(model, images)
    assert gate.layer == LAYERS[backbone]
    train, val = (
        pooled(model, gate.layer, images.split(split).images) for split in ("train", "val")
    )
    expected = LedoitWolf().fit(train)
    assert np.abs(expected.location_).max() > 0.01
    assert gate.mean == pytest.approx(expected.location_, rel=1e-3, abs=1e-5)
    distances = gate.measure_distances(val)
    assert distances == pytest.approx(np.sqrt(expected.mahalanobis(val)), rel=1e-2)
    # among fewer than 500 images the nearest one to the quantile is the maximum, which is in range
    # even if it is rounded up
    assert gate.limit == pytest.approx(1.001 * distances.max(), rel=5e-4)


def test_large_splits_are_thinned_out_to_fewer_images_than_features(sample, monkeypatch):
    images = sample.decode(32, 0)
    model = build()
    monkeypatch.setattr("pneumo.training.train.MAX_GATE_IMAGES", 7)
    gate = fit_input_gate(model, images)
    train, val = (images.split(split).images for split in ("train", "val"))
    places = [round(number * (len(train) - 1) / 6 - 0.499) for number in range(7)]
    some = pooled(model, gate.layer, train[places])
    assert some.shape == (7, 16)
    assert gate.mean == pytest.approx(some.mean(axis=0), rel=1e-4)
    expected = LedoitWolf().fit(some).mahalanobis(pooled(model, gate.layer, val))
    assert gate.measure_distances(pooled(model, gate.layer, val)) == pytest.approx(
        np.sqrt(expected), rel=1e-2
    )


def test_an_ensemble_of_ensembles_has_a_gate(sample):
    images = sample.decode(32, 0)
    networks = [build(seed=seed) for seed in range(3)]
    trial = build_ensemble(networks[:2])
    both = build_ensemble([*ensemble_members(trial), networks[2]], name=trial.name)
    gate, expected = (fit_input_gate(model, images) for model in (both, networks[0]))
    assert both.name == "cnn"
    assert (gate.layer, gate.limit) == (expected.layer, pytest.approx(expected.limit, rel=1e-3))


@pytest.mark.parametrize("flip_tta", [False, True])
@pytest.mark.parametrize("members", [1, 2])
def test_features_come_with_the_same_logit(members, flip_tta, sample):
    networks = [build(seed=seed) for seed in range(members)]
    # the first member is in the ensemble twice
    model = build_ensemble([networks[0], *networks] if members > 1 else networks, flip_tta)
    pixels = sample.decode(32, 0).split("val").images
    logits, features = with_features(model, "block_1_out").predict(pixels, verbose=0)
    assert logits[:, 0] == pytest.approx(predict_logits(model, pixels), abs=1e-6)
    assert features == pytest.approx(pooled(networks[0], "block_1_out", pixels), abs=1e-6)


def test_a_stored_gate_is_the_same(tmp_path):
    gate = InputGate("a layer", np.arange(3, dtype=np.float32), np.eye(3, dtype=np.float32), 2.5)
    gate.save(tmp_path / "gate.npz")
    first = (tmp_path / "gate.npz").read_bytes()
    stored = InputGate.load(tmp_path / "gate.npz")
    assert (stored.layer, stored.limit) == ("a layer", 2.5)
    assert stored.mean.tolist() == [0, 1, 2]
    assert stored.precision.tolist() == np.eye(3).tolist()
    stored.save(tmp_path / "gate.npz")
    assert (tmp_path / "gate.npz").read_bytes() == first  # the digest of a version depends on it
    distances = stored.measure_distances(np.array([[0, 1, 2], [3, 1, 6]]))
    assert distances.tolist() == [0, 5]
    assert stored.describe(2.5) is None
    assert stored.describe(5) == "far from the training images: distance 5.0, limit 2.5"


@pytest.mark.parametrize(
    ("shape", "value", "limit"),
    [((3, 2), 0, 1), ((9,), 0, 1), ((3, 3), np.nan, 1), ((3, 3), 0, -1), ((3, 3), 0, np.nan)],
)
def test_arrays_that_are_not_a_gate_are_refused(shape, value, limit, tmp_path):
    precision = np.full(shape, value, float)
    InputGate("a layer", np.zeros(3), precision, limit).save(tmp_path / "gate.npz")
    with pytest.raises(ValueError, match="not those of an input gate"):
        InputGate.load(tmp_path / "gate.npz")


def test_a_gate_of_another_number_of_features_is_refused():
    model = PneumoniaModel()
    model.keras_model = build()
    gate = InputGate("block_1_out", np.zeros(3), np.eye(3), 1)
    with pytest.raises(ValueError, match="the input gate must have 16 features: it has 3"):
        model.use_gate(gate)
