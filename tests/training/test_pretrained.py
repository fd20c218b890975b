"""Pretrained weights: files that fit and files that do not, and downloads of Keras."""

import h5py
import keras
import numpy as np
import pytest

from pneumo.runtime.errors import UserError
from pneumo.training import pretrained
from pneumo.training.config import RunConfig
from pneumo.training.network import build_model
from tests.support.http_server import serving
from tests.support.paths import SHARED
from tests.support.weights import FILE, SMALL, network, write


@pytest.fixture(autouse=True)
def forgotten():
    """Clear what an earlier test has loaded."""
    pretrained._load.cache_clear()


def same(weights, others) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(weights, others, strict=True))


@pytest.mark.slow
def test_a_file_gives_the_backbone_its_weights_and_not_the_head(weights):
    config = RunConfig(**SMALL, weights=str(weights))
    first, second = build_model(config), build_model(config)
    assert same(first.get_layer("backbone").get_weights(), network().get_weights())
    # the second comes after the weights are known, and must not be another for that
    assert same(first.get_weights(), second.get_weights())
    plain = build_model(config.override({"weights": "none"}))
    assert same(plain.layers[-1].get_weights(), first.layers[-1].get_weights())


@pytest.mark.slow
def test_a_whole_model_of_keras_2_holds_them_one_level_deeper(tmp_path):
    with h5py.File(tmp_path / "model.h5", "w") as file:
        write(network(), file.create_group("model_weights"))
    config = RunConfig(**SMALL, weights=str(tmp_path / "model.h5"))
    assert same(pretrained.load_pretrained_weights(config), network().get_weights())


def test_the_real_weights():
    path = SHARED / "weights" / FILE
    if not path.exists():
        pytest.skip(f"needs the real weights at {path}")
    config = RunConfig(**SMALL, weights=str(path))
    expected = keras.applications.MobileNet(
        alpha=0.25, include_top=False, weights=str(path), input_shape=(224, 224, 3)
    )
    assert same(pretrained.load_pretrained_weights(config), expected.get_weights())
    assert config.to_params()["weights"] == f"{FILE}:dbdb03ee"


def test_other_shapes_are_refused_with_the_first_layer_that_differs(weights):
    config = RunConfig(**{**SMALL, "alpha": 0.5}, weights=str(weights))
    with pytest.raises(UserError) as mistake:
        pretrained.load_pretrained_weights(config)
    assert str(mistake.value) == (
        f"{weights} does not fit mobilenet with alpha 0.5: where it has conv1 [(3, 3, 3, 8)], "
        "the network has conv1 [(3, 3, 3, 16)]"
    )


def test_layers_too_many_are_refused(tmp_path):
    whole = keras.Sequential([*network(pooling="avg").layers, keras.layers.Dense(3, name="top")])
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        write(whole, file)
    config = RunConfig(**SMALL, weights=str(tmp_path / "whole.h5"))
    with pytest.raises(
        UserError, match=r"it has top \[\(256, 3\), \(3,\)\], the network has nothing"
    ):
        pretrained.load_pretrained_weights(config)


def test_layers_too_few_are_refused(weights):
    config = RunConfig(backbone="resnet50v2", weights=str(weights))
    with pytest.raises(UserError, match=r"does not fit resnet50v2: where it has conv1 \["):
        pretrained.load_pretrained_weights(config)


def test_what_is_no_file_of_weights_is_refused(tmp_path):
    (tmp_path / "words.h5").write_text("words")
    network().save_weights(tmp_path / "keras3.weights.h5")
    for name in ("words.h5", "keras3.weights.h5"):
        config = RunConfig(**SMALL, weights=str(tmp_path / name))
        with pytest.raises(
            UserError, match="it is not an HDF5 file in the layout of Keras Applications"
        ):
            pretrained.load_pretrained_weights(config)


@pytest.fixture
def keras_home(tmp_path, monkeypatch):
    """Make an empty folder for downloads of Keras."""
    monkeypatch.setattr(keras.src.backend.config, "_KERAS_DIR", str(tmp_path))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    return tmp_path


def keras_loads_from(address: str, monkeypatch) -> None:
    monkeypatch.setattr(keras.src.applications.mobilenet, "BASE_WEIGHT_PATH", f"{address}/")


@pytest.mark.slow
def test_imagenets_weights_are_downloaded_by_keras_once(weights, keras_home, monkeypatch):
    config = RunConfig(**SMALL, weights="imagenet")
    with serving({f"/{FILE}": weights.read_bytes()}) as server:
        keras_loads_from(server.address, monkeypatch)
        assert same(pretrained.load_pretrained_weights(config), network().get_weights())
        pretrained._load.cache_clear()
        assert same(pretrained.load_pretrained_weights(config), network().get_weights())
    assert server.requests == [(f"/{FILE}", None)]
    assert config.to_params()["weights"] == "imagenet"


def test_offline_the_error_names_the_file_and_its_folder(weights, keras_home, monkeypatch):
    with serving({}) as server:
        keras_loads_from(server.address, monkeypatch)
        with pytest.raises(UserError) as mistake:
            pretrained.load_pretrained_weights(RunConfig(**SMALL, weights="imagenet"))
    assert str(mistake.value) == (
        f"weights=imagenet requires {FILE}, which could not be downloaded. Download "
        f"{server.address}/{FILE} elsewhere and copy it to {keras_home}/models, or pass its path "
        "as weights."
    )
    http_error = mistake.value.__context__.__context__
    assert http_error.code == 404
    assert http_error.closed  # Keras leaves the connection open
    # and doing what it says is enough
    (keras_home / "models" / FILE).write_bytes(weights.read_bytes())
    assert same(
        pretrained.load_pretrained_weights(RunConfig(**SMALL, weights="imagenet")),
        network().get_weights(),
    )


def test_imagenet_has_weights_of_some_widths_only():
    with pytest.raises(UserError, match="is not available for mobilenet: .*alpha can be one of"):
        pretrained.load_pretrained_weights(
            RunConfig(backbone="mobilenet", alpha=0.3, weights="imagenet")
        )
