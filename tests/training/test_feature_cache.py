"""Cached features: their values, their keys, and the process that computes them."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from pneumo.data.dataset import DecodedDataset, Split
from pneumo.runtime import cache
from pneumo.runtime.cache_entries import cache_path
from pneumo.training import feature_cache, network
from pneumo.training.augment import AugmentationConfig, augment, sample_factors
from pneumo.training.backbones import BACKBONES
from pneumo.training.config import RunConfig
from pneumo.training.feature_cache import ARRAY_FILE, FeatureCache, FeatureExtractor, View
from tests.support.features import features_of, few_images, small_config, stored
from tests.support.paths import ROOT
from tests.support.weights import SMALL

DEPTHS = [0, 1, 3]


@pytest.fixture(scope="module")
def images(sample) -> DecodedDataset:
    """Return few images, at 32 pixels."""
    return few_images(sample)


@pytest.fixture
def config(weights, own_cache) -> RunConfig:
    """Return the config of a small MobileNet with weights of a file, in a cache of its own."""
    return small_config(weights)


@pytest.fixture(scope="module")
def outputs(images, weights) -> dict[tuple[int, bool], np.ndarray]:
    """Return features of the training images by Keras alone, by depth and whether they vary."""
    backbone = network.build_backbone(small_config(weights))
    cuts = network.cut_tensors(backbone, "mobilenet")
    lower = keras.Model(backbone.input, [cuts[depth] for depth in DEPTHS])
    split = images.split("train")
    varied = augment(split.images, AugmentationConfig(0.5), sample_factors(len(split.labels), 1))
    return {
        (depth, vary): features
        for vary, inputs in ((False, split.images), (True, varied))
        for depth, features in zip(DEPTHS, lower.predict(inputs, verbose=0), strict=True)
    }


@pytest.mark.slow
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("max_unfreeze_depth", [0, 4])
def test_what_is_stored_is_what_the_network_gives(
    config, images, outputs, depth, max_unfreeze_depth
):
    split, store = images.split("train"), features_of(config, max_unfreeze_depth)
    for vary, view in ((False, View(split)), (True, View(split, AugmentationConfig(0.5), 1))):
        found = store.get(view, depth)
        assert (found.dtype, found.flags.writeable) == (np.float32, False)
        assert found == pytest.approx(outputs[depth, vary], abs=1e-5)


@pytest.mark.slow
def test_a_higher_cut_starts_from_a_stored_lower_one(config, images, own_cache):
    split = images.split("val")
    expected = np.array(features_of(config).get(View(split), 0))
    store = features_of(config, max_unfreeze_depth=2)
    store.get(View(split), 2)
    cache_of_0 = cache_path(store.name(View(split), 0))
    (cache_of_0 / ARRAY_FILE).unlink()
    black = replace(split, pixels=np.zeros_like(split.pixels))  # of the same files
    assert np.array_equal(store.get(View(black), 0), expected)


@pytest.mark.slow
def test_what_is_computed_from_pixels_is_kept_at_the_deepest_cut_too(config, images, own_cache):
    features_of(config, max_unfreeze_depth=3).get(View(images.split("val")), 1)
    assert {depth for depth, _, _ in stored(own_cache)} == {1, 3}


def test_multiply_adds_are_those_of_the_layers_below_a_cut():
    config = RunConfig(**SMALL)
    frozen = FeatureExtractor(network.build_backbone(config), config.backbone)
    # 16 × 16 places: 3 × 3 kernels from 3 to 8 channels, then on each of 8, then 8 to 16 by 1 × 1
    assert frozen.multiply_adds(12) == 16 * 16 * (3 * 3 * 3 * 8 + 3 * 3 * 8 + 8 * 16)
    assert frozen.feature_bytes(12) == 16 * 16 * 16 * 4
    assert frozen.multiply_adds(13) == 0


@pytest.mark.parametrize(
    ("backbone", "alpha", "paying"),
    [("mobilenet", 0.25, 12), ("mobilenet", 1, 12), ("resnet50v2", 1, 16), ("cnn", 1, 1)],
)
def test_only_cuts_that_save_more_than_they_cost_are_stored(backbone, alpha, paying):
    fields = {"backbone": backbone, "alpha": alpha, "image_size": 64, "unfreeze_depth": 0}
    store = features_of(RunConfig(**fields), max_unfreeze_depth=99)
    depths = range(BACKBONES[backbone].blocks)
    assert [depth for depth in depths if store.is_worth_storing(depth)] == list(range(paying))
    assert store._max_unfreeze_depth == paying - 1


def name(config: RunConfig, split: Split, depth: int = 1, **view) -> str:
    return features_of(config).name(View(split, **view), depth)


@pytest.mark.slow
def test_the_key_changes_with_each_ingredient(config, images, sample, monkeypatch):
    split = images.split("train")
    first = {"augmentation": AugmentationConfig(0.5), "number": 0}
    names = [name(config, split, **first)]
    names.append(name(config, split, 0, **first))
    names.append(name(config, split, augmentation=AugmentationConfig(0.75), number=0))
    names.append(name(config, split, augmentation=AugmentationConfig(0.5, 0.5), number=0))
    names.append(name(config, split, augmentation=AugmentationConfig(0.5, 0, True), number=0))
    names.append(name(config, split, augmentation=AugmentationConfig(0.5, 0, True, 1), number=0))
    names.append(name(config, split, augmentation=AugmentationConfig(0.5), number=1))
    names.append(name(config, images.split("val"), **first))
    names.append(name(config, replace(split, rows=split.rows[::-1]), **first))
    names.append(name(config.override({"image_size": 64}), split, **first))
    names.append(name(config.override({"alpha": 0.5, "weights": "none"}), split, **first))
    names.append(name(config.override({"weights": "none"}), split, **first))
    names.append(name(config.override({"weights": "none", "seed": 1}), split, **first))
    padded = images.dataset.decode(32, 0, "pad").split("train")
    names.append(name(config, padded, **first))
    monkeypatch.setattr("pneumo.data.pixels.DECODER_VERSION", 99)
    names.append(name(config, images.dataset.decode(32, 0).split("train"), **first))
    monkeypatch.undo()
    monkeypatch.setattr(feature_cache, "AUGMENTATION_VERSION", 99)
    names.append(name(config, split, **first))
    monkeypatch.undo()
    monkeypatch.setitem(BACKBONES, "mobilenet", replace(BACKBONES["mobilenet"], offset=-0.5))
    names.append(name(config, split, **first))
    assert len(set(names)) == len(names) == 17


@pytest.mark.slow
def test_the_key_changes_with_nothing_else(config, images, tmp_path, weights):
    split = images.split("train")
    expected = name(config, split)
    moved = tmp_path / "other.h5"
    moved.write_bytes(weights.read_bytes())
    for fields in (
        {"dropout": 0.1, "dense_widths": (8, 4), "learning_rate": 0.1, "seed": 9},
        {"batch_size": 7, "epochs": 99, "patience": 1, "max_unreadable": 0.5},
        {"augment_strength": 1.0, "unfreeze_depth": 2, "head_epochs": 0},
        {"weights": str(moved)},
    ):
        other = config.override(fields)
        extractor = FeatureExtractor(network.build_backbone(other), other.backbone)
        assert FeatureCache(extractor, other, 0).name(View(split), 1) == expected
    renamed = split.rows.assign(path="x", label=0, patient="y", subtype="z")
    assert name(config, replace(split, rows=renamed)) == expected


def test_weights_above_the_cut_do_not_count(config, images):
    view, backbone = View(images.split("val")), network.build_backbone(config)

    def names() -> list[str]:
        store = FeatureCache(FeatureExtractor(backbone, "mobilenet"), config, 0)
        return [store.name(view, depth) for depth in range(3)]

    before = names()
    layer = backbone.get_layer("conv_pw_12")
    layer.set_weights([2 * weight for weight in layer.get_weights()])
    assert [a == b for a, b in zip(before, names(), strict=True)] == [False, False, True]


ASK = """
import os, signal, sys
from pneumo.data.dataset import open_dataset
from pneumo.training import network
from pneumo.training.config import RunConfig
from pneumo.training.feature_cache import FeatureCache, FeatureExtractor, View

config = RunConfig(**{config})
compute = FeatureCache._compute

def compute_when_told(*given):
    given[3].joinpath("features.npy").write_bytes(b"half")
    print("computing", flush=True)
    if sys.stdin.readline() == "die\\n":
        os.kill(os.getpid(), signal.SIGKILL)
    compute(*given)

FeatureCache._compute = compute_when_told
store = FeatureCache(FeatureExtractor(network.build_backbone(config), config.backbone), config, 0)
images = open_dataset("sample").decode(32, 0)
while name := sys.stdin.readline().strip():
    print(store.get(View(images.split(name)), 0).sum(), flush=True)
"""


class Other:
    """A process that computes the features of the split that it is told."""

    def __init__(self, config: RunConfig) -> None:
        code = ASK.replace("{config}", repr(config.model_dump()))
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdin=pipe, stdout=pipe, text=True
        )

    def tell(self, line: str) -> None:
        print(line, file=self.process.stdin, flush=True)

    def say(self) -> str:
        """Return the next line that it prints."""
        return self.process.stdout.readline().strip()


@pytest.mark.slow
def test_one_of_two_processes_computes_and_the_other_waits(config, own_cache, sample, monkeypatch):
    """If the one is killed, the other does not use what it has left."""
    other, images, store = Other(config), sample.decode(32, 0), features_of(config)
    compute, computed, said = FeatureCache._compute, [], []

    def note(*given) -> None:
        computed.append(given)
        compute(*given)

    def ask(split: str, answer: str) -> tuple[np.ndarray, Path]:
        """Ask for features that the other process computes; answer it when this one waits."""

        def wait(line: str) -> None:
            said.append(line)
            other.tell(answer)

        monkeypatch.setattr(cache, "echo", wait)
        other.tell(split)
        assert other.say() == "computing"
        [draft] = own_cache.glob("features/.*.draft")
        assert (draft / ARRAY_FILE).read_bytes() == b"half"
        return store.get(View(images.split(split)), 0), draft

    monkeypatch.setattr(cache, "SILENT_WAIT_SECONDS", 0.1)
    monkeypatch.setattr(FeatureCache, "_compute", note)
    found, draft = ask("val", "go on")
    assert (other.say(), len(computed)) == (str(found.sum()), 0)
    assert not draft.exists()
    found, draft = ask("train", "die")
    assert (other.process.wait(), len(computed)) == (-signal.SIGKILL, 1)
    assert said == ["waiting for another process that holds the cache lock 'features'"] * 2
    backbone = network.build_backbone(config)
    expected = backbone.predict(images.split("train").images, verbose=0)
    assert found == pytest.approx(expected, abs=1e-5)
    cache.remove_leftovers()  # as the next process does
    assert not draft.exists()
    other.process.communicate()
