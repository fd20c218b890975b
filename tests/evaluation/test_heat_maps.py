"""Heat maps: exact values on small models, and detection of opacities."""

from itertools import product

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

from pneumo.data.dataset import open_dataset
from pneumo.evaluation.heat_maps import MAX_MAP_SIDE, HiResCam
from pneumo.inference.logits import build_ensemble
from pneumo.reporting.plots import overlay_heat_map
from pneumo.training import network
from pneumo.training.backbones import BACKBONES
from pneumo.training.config import RunConfig
from pneumo.training.train import train
from tests.support.features import few_images
from tests.support.paths import SHARED
from tests.support.weights import FILE, SMALL

LAST_MAPS = {"cnn": "conv_2", "mobilenet": "conv_pw_13_relu", "resnet50v2": "post_relu"}


def handmade(size: int, flatten: bool, kernel: np.ndarray) -> keras.Model:
    """Build a backbone of two channels, `image` and 255 − `image`, and a head of one layer."""
    pixels = keras.Input((size, size, 1), dtype="uint8")
    channels = layers.Conv2D(2, 1, name="channels")
    maps = channels(layers.Rescaling(1.0)(pixels))
    features = layers.Flatten()(maps) if flatten else layers.GlobalAveragePooling2D()(maps)
    channels.set_weights([np.array([1.0, -1.0]).reshape(1, 1, 1, 2), np.array([0.0, 255.0])])
    backbone = keras.Model(pixels, features, name="backbone")
    head = keras.Sequential([keras.Input((len(kernel),)), layers.Dense(1)], name="head")
    head.set_weights([kernel.reshape(-1, 1), np.array([-1000.0])])
    return keras.Model(pixels, head(backbone(pixels)))


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1, MAX_MAP_SIDE, MAX_MAP_SIDE, 1), np.uint8)


def test_after_an_average_it_equals_grad_cam(image):
    [found] = HiResCam(handmade(MAX_MAP_SIDE, False, np.array([3.0, -2.0])))(image)
    values = image[0, ..., 0].astype(float)
    expected = np.maximum(3 * values - 2 * (255 - values), 0)
    assert found.dtype == np.float32
    assert found == pytest.approx(expected / expected.max(), abs=1e-6)
    assert found.max() == 1
    assert (found == 0).any()


def test_each_place_counts_separately_after_a_flatten(image):
    kernel = np.random.default_rng(1).normal(size=(MAX_MAP_SIDE, MAX_MAP_SIDE, 2))
    [found] = HiResCam(handmade(MAX_MAP_SIDE, True, kernel.ravel()))(image)
    values = image[0, ..., 0].astype(float)
    expected = np.maximum(kernel[..., 0] * values + kernel[..., 1] * (255 - values), 0)
    assert found == pytest.approx(expected / expected.max(), abs=1e-6)


def test_large_maps_are_summed_up_in_cells():
    image = np.zeros((1, 4 * MAX_MAP_SIDE, 4 * MAX_MAP_SIDE, 1), np.uint8)
    image[0, 8:12, 4:8] = 200  # one whole cell
    [found] = HiResCam(handmade(4 * MAX_MAP_SIDE, False, np.array([1.0, 0.0])))(image)
    peak = np.argwhere(found == found.max())
    assert peak.min(axis=0).tolist() == [9, 5]
    assert peak.max(axis=0).tolist() == [10, 6]


def test_no_evidence_and_no_image(image):
    hires_cam = HiResCam(handmade(MAX_MAP_SIDE, False, np.array([-1.0, 0.0])))
    assert (hires_cam(image) == 0).all()
    assert hires_cam(image[:0]).shape == (0, MAX_MAP_SIDE, MAX_MAP_SIDE)


def test_images_have_maps_of_their_own():
    images = np.random.default_rng(0).integers(
        0, 256, (37, MAX_MAP_SIDE, MAX_MAP_SIDE, 1), np.uint8
    )
    hires_cam = HiResCam(handmade(MAX_MAP_SIDE, False, np.array([1.0, 0.0])))
    together = hires_cam(images)
    assert together.shape == (37, MAX_MAP_SIDE, MAX_MAP_SIDE)
    for place in (0, 15, 16, 36):
        assert together[place] == pytest.approx(hires_cam(images[place : place + 1])[0], abs=1e-6)


def test_an_overlay_without_heat_changes_nothing():
    pixels = np.array([[10, 200]], np.uint8)
    found = overlay_heat_map(pixels, np.array([[0.0, 1.0]]))
    assert found[0, 0].tolist() == [10, 10, 10]
    brightest = 252, 255, 164  # of the colours
    expected = [0.4 * 200 + 0.6 * colour for colour in brightest]
    assert found[0, 1].tolist() == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(("backbone", "maps"), LAST_MAPS.items())
def test_every_backbone_and_no_matter_which_blocks_train(backbone, maps):
    model = network.build_model(RunConfig(backbone=backbone, image_size=64, unfreeze_depth=0))
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 1), np.uint8)
    hires_cam = HiResCam(model)
    [(_, below, _)] = hires_cam._members
    assert below.output.name == model.get_layer("backbone").get_layer(maps).output.name
    found = hires_cam(images)
    assert found.shape == (3, 64, 64)
    assert np.isfinite(found).all()
    assert found.max() == 1
    network.unfreeze(model, BACKBONES[backbone].blocks)
    assert (HiResCam(model)(images) == found).all()


def test_heat_maps_of_an_ensemble_combine_its_members():
    image = np.zeros((1, MAX_MAP_SIDE, MAX_MAP_SIDE, 1), np.uint8)
    image[0, 1, 1], image[0, 5, 5] = 100, 200
    first, second = (
        handmade(MAX_MAP_SIDE, False, np.array(weights)) for weights in ([2.0, 0.0], [-1.0, 0.0])
    )
    [alone] = HiResCam(first)(image)
    [found] = HiResCam(build_ensemble([first, second]))(image)
    assert found == pytest.approx(alone, abs=1e-6)  # half as much, which the scale takes out
    [found] = HiResCam(build_ensemble([first, second, second]))(image)
    assert not found.any()  # as much speaks against it as for it


def test_heat_maps_of_flip_tta_combine_both_images():
    image = np.zeros((1, MAX_MAP_SIDE, MAX_MAP_SIDE, 1), np.uint8)
    image[0, 1, 1], image[0, 5, 5] = 100, 200
    kernel = np.zeros((MAX_MAP_SIDE, MAX_MAP_SIDE, 2))
    kernel[:, : MAX_MAP_SIDE // 2, 0] = 1.0  # the left alone speaks
    model = handmade(MAX_MAP_SIDE, True, kernel.ravel())
    [left], [right] = HiResCam(model)(image), HiResCam(model)(image[:, :, ::-1])
    assert (left[1, 1], left[5, 5], right[5, 2]) == (1, 0, 1)
    [found] = HiResCam(build_ensemble([model], flip_tta=True))(image)
    assert found == pytest.approx(image[0, ..., 0] / 200, abs=1e-6)


RADIUS, SIDE = 14, 96  # pixels


def spotted(rng: np.random.Generator, place: tuple[float, float] | None) -> np.ndarray:
    """Make stripes and noise, and one bright opacity at (x, y) if a place is given."""
    y, x = np.mgrid[:SIDE, :SIDE]
    image = 90 + 20 * np.sin(y / 9 + rng.uniform(0, 6)) + rng.normal(0, 8, (SIDE, SIDE))
    if place:
        image += 100 * np.exp(-((np.hypot(x - place[0], y - place[1]) / RADIUS) ** 2))
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def opacities(tmp_path_factory):
    """Make images with one bright opacity anywhere, and images without."""
    folder, rng = tmp_path_factory.mktemp("opacities"), np.random.default_rng(0)
    for number in range(150):
        for name, file, place in (
            ("NORMAL", f"IM-{number:04}-1.png", None),
            ("PNEUMONIA", f"person{number}_virus_1.png", tuple(rng.uniform(12, 84, 2))),
        ):
            target = folder / "train" / name / file
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(spotted(rng, place)).save(target)
    return open_dataset(str(folder))


def peaks_off(model: keras.Model) -> list[float]:
    """Return the distances of the map's maximum from nine new opacities, in pixels of `SIDE`."""
    rng, size = np.random.default_rng(1), model.input_shape[1]
    places = list(product((24, 48, 72), repeat=2))
    images = [Image.fromarray(spotted(rng, place)).resize((size, size)) for place in places]
    maps = HiResCam(model)(np.stack(images)[..., np.newaxis])
    peaks = [np.argwhere(found == found.max()).mean(axis=0) / size * SIDE for found in maps]
    return [
        np.hypot(x - place[0], y - place[1]) for (y, x), place in zip(peaks, places, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("size", [96, 128])
def test_one_bright_opacity_is_found_by_the_cnn(opacities, size):
    config = RunConfig(
        image_size=size, epochs=20, patience=20, dense_widths=(32,), dropout=0,
        augment_strength=0, learning_rate=3e-3,
    )  # fmt: skip
    model = train(config, opacities.decode(size, 0)).model
    assert np.median(peaks_off(model)) < RADIUS


@pytest.mark.slow
@pytest.mark.parametrize("depth", [0, 4])
def test_one_bright_opacity_is_found_by_a_pretrained_network(opacities, depth):
    path = SHARED / "weights" / FILE
    if not path.exists():
        pytest.skip(f"needs real weights at {path}")
    fields = {"backbone": "mobilenet", "alpha": 0.25, "weights": str(path), "image_size": 224}
    config = RunConfig(
        **fields, unfreeze_depth=depth, epochs=12, patience=12, dense_widths=(), dropout=0,
        augment_strength=0, learning_rate=3e-3,
    )  # fmt: skip
    model = train(config, opacities.decode(224, 0)).model
    assert np.median(peaks_off(model)) < RADIUS + SIDE / 14  # and half a cell of its last maps


@pytest.mark.slow
def test_the_cache_changes_no_map(sample, weights):
    images = few_images(sample)
    config = RunConfig(**SMALL | {"unfreeze_depth": 3, "weights": str(weights)}).override(
        {"epochs": 1, "augment_strength": 0}
    )
    test = images.split("test").images
    found = [
        HiResCam(train(config.override({"feature_cache": cache}), images).model)(test)
        for cache in ("on", "off")
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-4)
    assert found[0].max() == 1
