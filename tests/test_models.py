import subprocess
import sys

import keras
import numpy as np
import pytest

from pneumo import models
from pneumo.config import BLOCKS, RunConfig

NOISE = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 1), np.uint8)


def build(**fields) -> keras.Model:
    keras.utils.set_random_seed(0)
    return models.build(RunConfig(image_size=64, **fields))


def test_the_table_has_the_backbones_and_blocks_that_the_config_states():
    assert set(models.BACKBONES) == set(BLOCKS)
    for name, backbone in models.BACKBONES.items():
        found = models.blocks(backbone.build(64), backbone.block_end)
        assert len(found) == BLOCKS[name]
        for block in found:
            assert any(isinstance(layer, keras.layers.Conv2D) for layer in block)


@pytest.mark.parametrize(
    ("depth", "trained"), [(0, []), (1, ["conv_2"]), (2, ["conv_1", "conv_2"])]
)
def test_which_layers_train_at_each_depth(depth, trained):
    backbone = build(unfreeze_depth=depth).get_layer("backbone")
    assert [layer.name for layer in backbone.layers if layer.trainable_weights] == trained


@pytest.mark.parametrize(
    ("widths", "shapes"),
    [((), [(192, 1)]), ((32,), [(192, 32), (32, 1)]), ((8, 4), [(192, 8), (8, 4), (4, 1)])],
)
def test_the_head(widths, shapes):
    layers = build(dense_widths=widths, dropout=0.3).layers
    dense = [tuple(layer.kernel.shape) for layer in layers if isinstance(layer, keras.layers.Dense)]
    dropout = [layer.rate for layer in layers if isinstance(layer, keras.layers.Dropout)]
    assert dense == shapes
    assert dropout == [0.3] * max(1, len(widths))


def test_probabilities_are_the_sigmoid_of_the_logit():
    model = build()
    scores = models.probabilities(model, NOISE)
    assert (scores.dtype, scores.shape) == (np.float64, (20,))
    logits = keras.ops.convert_to_numpy(model(NOISE))[:, 0]
    assert scores == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_anything_but_uint8_pixels_is_refused(dtype):
    with pytest.raises(TypeError, match="images must be uint8 pixels 0 to 255"):
        models.probabilities(build(), (NOISE / 255).astype(dtype))


def test_the_file_loads_with_keras_alone(tmp_path):
    model = build()
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "noise.npy", NOISE)
    code = (
        "import keras, numpy as np\n"
        "model = keras.models.load_model('model.keras', safe_mode=True)\n"
        "np.save('logits.npy', model.predict(np.load('noise.npy'), verbose=0))\n"
        "import sys; assert 'pneumo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True)
    expected = model.predict(NOISE, verbose=0)
    assert np.load(tmp_path / "logits.npy") == pytest.approx(expected, abs=1e-6)
