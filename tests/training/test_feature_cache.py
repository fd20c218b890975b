"""Stored features: what is kept, under which key, and that training cannot tell the difference."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from pneumo import features, feed, models
from pneumo.augment import Variation, augment, chances
from pneumo.backbones import BACKBONES
from pneumo.config import RunConfig
from pneumo.data import cache, cache_entries, pixels
from pneumo.data.dataset import Images, Split, open_dataset
from pneumo.experiment import Experiment
from pneumo.features import ARRAY, FACTS, Features, Frozen, View
from pneumo.perturb import EACH, perturbed
from pneumo.study import Plan
from pneumo.train import train
from pneumo.tune import tune
from tests.support.paths import ROOT
from tests.support.weights import SMALL


@pytest.fixture(scope="module")
def images(sample) -> Images:
    """Few images, at 32 pixels."""
    rows = sample.rows.groupby(["split", "label"]).head(20).reset_index(drop=True)
    return replace(sample, rows=rows).decode(32, 0)


@pytest.fixture
def config(weights, own_cache) -> RunConfig:
    """Of a small MobileNet with weights of a file, in a cache of its own."""
    return RunConfig(**SMALL, weights=str(weights), epochs=4, patience=9, dense_widths=(16,))


def of(config: RunConfig, deepest: int = 0) -> Features:
    return Features(Frozen(models.backbone(config), config.backbone), config, deepest)


def stored(folder: Path) -> list[tuple[int, float, int]]:
    """Depth, strength and view of all that is stored."""
    found = [json.loads(file.read_text()) for file in folder.rglob(FACTS)]
    return sorted((facts["depth"], facts["strength"], facts["view"]) for facts in found)


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("deepest", [0, 4])
def test_what_is_stored_is_what_the_network_gives(config, images, depth, deepest):
    split, store = images.split("train"), of(config, deepest)
    backbone = models.backbone(config)
    lower = models.between(backbone, "mobilenet", BACKBONES["mobilenet"].blocks, depth)
    varied = augment(split.images, Variation(0.5), chances(len(split.labels), 1)).numpy()
    for view, inputs in ((View(split), split.images), (View(split, Variation(0.5), 1), varied)):
        found = store.of(view, depth)
        assert (found.dtype, found.flags.writeable) == (np.float32, False)
        assert found == pytest.approx(lower.predict(inputs, verbose=0), abs=1e-5)


def test_a_higher_cut_starts_from_a_stored_lower_one(config, images, own_cache):
    split = images.split("val")
    expected = np.array(of(config).of(View(split), 0))
    store = of(config, deepest=2)
    store.of(View(split), 2)
    cache_of_0 = cache.place(store.name(View(split), 0))
    (cache_of_0 / ARRAY).unlink()
    black = replace(split, pixels=np.zeros_like(split.pixels))  # of the same files
    assert np.array_equal(store.of(View(black), 0), expected)


def test_what_is_computed_from_pixels_is_kept_at_the_deepest_cut_too(config, images, own_cache):
    of(config, deepest=3).of(View(images.split("val")), 1)
    assert {depth for depth, _, _ in stored(own_cache)} == {1, 3}


def test_multiply_adds_are_those_of_the_layers_below_a_cut():
    config = RunConfig(**SMALL)
    frozen = Frozen(models.backbone(config), config.backbone)
    # 16 × 16 places: 3 × 3 kernels from 3 to 8 channels, then on each of 8, then 8 to 16 by 1 × 1
    assert frozen.multiply_adds(12) == 16 * 16 * (3 * 3 * 3 * 8 + 3 * 3 * 8 + 8 * 16)
    assert frozen.feature_bytes(12) == 16 * 16 * 16 * 4
    assert frozen.multiply_adds(13) == 0


@pytest.mark.parametrize(
    ("backbone", "alpha", "paying"),
    [("mobilenet", 0.25, 12), ("mobilenet", 1, 12), ("resnet50v2", 1, 16), ("cnn", 1, 1)],
)
def test_only_cuts_that_save_more_than_they_cost_pay(backbone, alpha, paying):
    fields = {"backbone": backbone, "alpha": alpha, "image_size": 64, "unfreeze_depth": 0}
    store = of(RunConfig(**fields), deepest=99)
    depths = range(BACKBONES[backbone].blocks)
    assert [it for it in depths if store.pays(it)] == list(range(paying))
    assert store._deepest == paying - 1


@pytest.mark.parametrize("fields", [{}, {"head_epochs": 0}])
def test_a_cut_that_does_not_pay_is_trained_from_pixels_with_the_same_result(
    config, images, own_cache, monkeypatch, fields
):
    fields |= {"unfreeze_depth": 12, "epochs": 3, "augment_strength": 0.5}
    config = config.override(fields)
    found = train(config, images, deepest=12)
    depths = {depth for depth, _, _ in stored(own_cache)}
    assert depths == ({0, 11} if config.head_epochs else set())
    monkeypatch.setattr(features, "WORTH_A_BYTE", 0)
    expected = train(config, images, deepest=12)
    assert {depth for depth, _, _ in stored(own_cache)} >= {12}
    assert found.best_epochs == expected.best_epochs
    assert found.val_logits == pytest.approx(expected.val_logits, abs=1e-4)
    assert found.perturbed_logits == pytest.approx(expected.perturbed_logits, abs=1e-4)


def test_the_room_for_a_run_is_what_it_will_store(config, images, own_cache, monkeypatch):
    config = config.override({"unfreeze_depth": 1, "epochs": 2, "augment_strength": 0.5})
    asked = []
    monkeypatch.setattr("pneumo.train.room_for", lambda sizes: asked.append(sizes) or 10**12)
    train(config.override({"objective": "val_blurred_auc"}), images, deepest=2)
    [sizes] = asked
    folders = {it.relative_to(own_cache).as_posix(): it for it in own_cache.glob("features/*")}
    assert sizes.keys() >= folders.keys()
    assert len(sizes) - len(folders) <= 5  # views that only other runs need
    for name, folder in folders.items():
        assert sizes[name] == np.load(folder / ARRAY, mmap_mode="r").nbytes


def test_a_run_lets_go_of_its_features_when_it_ends(config, images, own_cache):
    used = []

    def look(*_):
        used.extend(it for it in own_cache.glob("features/*") if it in cache_entries._held)

    train(config.override({"epochs": 1}), images, [look])
    assert used
    assert not any(it in cache_entries._held for it in own_cache.glob("features/*"))


def name(config: RunConfig, split: Split, depth: int = 1, **view) -> str:
    return of(config).name(View(split, **view), depth)


def test_the_key_changes_with_each_ingredient(config, images, sample, monkeypatch):
    split = images.split("train")
    first = {"variation": Variation(0.5), "number": 0}
    names = [name(config, split, **first)]
    names.append(name(config, split, 0, **first))
    names.append(name(config, split, variation=Variation(0.75), number=0))
    names.append(name(config, split, variation=Variation(0.5, 0.5), number=0))
    names.append(name(config, split, variation=Variation(0.5, 0, True), number=0))
    names.append(name(config, split, variation=Variation(0.5), number=1))
    names.append(name(config, images.split("val"), **first))
    names.append(name(config, replace(split, rows=split.rows[::-1]), **first))
    names.append(name(config.override({"image_size": 64}), split, **first))
    names.append(name(config.override({"alpha": 0.5, "weights": "none"}), split, **first))
    names.append(name(config.override({"weights": "none"}), split, **first))
    names.append(name(config.override({"weights": "none", "seed": 1}), split, **first))
    padded = images.dataset.decode(32, 0, "pad").split("train")
    names.append(name(config, padded, **first))
    monkeypatch.setattr(pixels, "DECODER", 99)
    names.append(name(config, images.dataset.decode(32, 0).split("train"), **first))
    monkeypatch.undo()
    monkeypatch.setattr(features, "AUGMENTATION", 99)
    names.append(name(config, split, **first))
    monkeypatch.undo()
    monkeypatch.setitem(BACKBONES, "mobilenet", replace(BACKBONES["mobilenet"], offset=-0.5))
    names.append(name(config, split, **first))
    assert len(set(names)) == len(names) == 16


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
        assert name(config.override(fields), split) == expected
    renamed = split.rows.assign(path="x", label=0, patient="y", subtype="z")
    assert name(config, replace(split, rows=renamed)) == expected


def test_weights_above_the_cut_do_not_count(config, images):
    view, backbone = View(images.split("val")), models.backbone(config)

    def names() -> list[str]:
        store = Features(Frozen(backbone, "mobilenet"), config, 0)
        return [store.name(view, depth) for depth in range(3)]

    before = names()
    layer = backbone.get_layer("conv_pw_12")
    layer.set_weights([2 * weight for weight in layer.get_weights()])
    assert [a == b for a, b in zip(before, names(), strict=True)] == [False, False, True]


@pytest.mark.parametrize("depth", [0, 2])
def test_a_view_is_computed_when_an_epoch_first_needs_it(config, images, own_cache, depth):
    class Pruned(Exception):
        pass

    seen = []

    def look(epoch, metrics):
        seen.append([it for it in stored(own_cache) if it[0] == depth])
        if epoch == 2:
            raise Pruned

    config = config.override({"augment_strength": 0.5, "unfreeze_depth": depth})
    with pytest.raises(Pruned):
        train(config, images, [look])
    # validation, and training as it is; with depth 2 the head's first epoch started from there
    assert seen == [
        [(depth, 0.0, 0), (depth, 0.0, 0)],
        [(depth, 0.0, 0), (depth, 0.0, 0), (depth, 0.5, 1)],
    ]
    train(config, images)  # which comes to its end, and asks for validation perturbed
    there = [it for it in stored(own_cache) if it[0] == depth]
    assert there == [(depth, 0.0, 0), *seen[-1]]


def test_another_run_computes_nothing_again(config, images, own_cache, monkeypatch):
    train(config, images)
    monkeypatch.setattr(Features, "_compute", None)
    train(config.override({"seed": 3, "dropout": 0.1, "dense_widths": "none"}), images)


def test_without_the_cache_nothing_is_stored(config, images, own_cache):
    train(config.override({"feature_cache": "off", "epochs": 1}), images)
    assert stored(own_cache) == []


def test_features_of_random_weights_go_with_their_run(config, images, own_cache):
    seen = []
    config = config.override({"weights": "none", "epochs": 2})
    train(config, images, [lambda *_: seen.append(stored(own_cache))])
    assert [len(it) for it in seen] == [2, 3]
    assert list((own_cache / "features").iterdir()) == []
    assert list((own_cache / "locks").iterdir()) == []


def test_where_nothing_is_frozen_every_epoch_has_its_own_variation(images, own_cache, monkeypatch):
    monkeypatch.setattr(feed, "view_of", None)
    config = RunConfig(image_size=32, epochs=2, unfreeze_depth=2)
    train(config, images)
    assert stored(own_cache) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "depth"),
    [("mobilenet", 0), ("mobilenet", 1), ("mobilenet", 2), ("resnet50v2", 1)],
)
def test_stored_or_not_training_is_the_same(config, images, backbone, depth):
    config = config.override({"unfreeze_depth": depth, "augment_strength": 0})
    if backbone != "mobilenet":
        config = config.override({"backbone": backbone, "alpha": 1, "weights": "none"})
    computed = []
    with pytest.MonkeyPatch.context() as patch:
        compute = Features._compute
        patch.setattr(Features, "_compute", lambda *given: computed.append(compute(*given)))
        on = train(config, images)
    off = train(config.override({"feature_cache": "off"}), images)
    assert computed  # else both would be the same thing
    assert on.best_epochs == off.best_epochs
    assert expit(on.val_logits) == pytest.approx(expit(off.val_logits), abs=1e-3)
    # the whole model, put together again, is what was trained above the cut
    whole = models.probabilities(on.model, images.split("val").images)
    assert whole == pytest.approx(expit(on.val_logits), abs=1e-5)
    whole = models.probabilities(on.model, perturbed(images.split("val"), EACH).images)
    assert whole == pytest.approx(expit(on.perturbed_logits), abs=1e-5)


def test_what_does_not_fit_on_the_disk_trains_the_same_without(
    config, images, own_cache, monkeypatch, capsys
):
    config = config.override({"augment_strength": 0.5, "unfreeze_depth": 1, "epochs": 3})
    expected = train(config, images)
    assert capsys.readouterr().out == ""
    for folder in own_cache.glob("features/*"):
        (folder / ARRAY).unlink()
    monkeypatch.setenv("PNEUMO_CACHE_GIB", "0")
    found = train(config, images)
    assert expit(found.val_logits) == pytest.approx(expit(expected.val_logits), abs=1e-3)
    said = capsys.readouterr().out
    assert "it trains without them, more slowly; raise PNEUMO_CACHE_GIB or free disk" in said


ASK = """
import sys
from pathlib import Path
from collections import namedtuple
from dataclasses import replace
from pneumo import models
from pneumo.config import RunConfig
from pneumo.data.dataset import open_dataset
from pneumo.features import Features, Frozen, View

config = RunConfig(**{config})
compute = Features._compute

def told(*given):
    print("computing", flush=True)
    if {die}:
        import os, signal
        given[3].joinpath("features.npy").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return compute(*given)

Features._compute = told
store = Features(Frozen(models.backbone(config), config.backbone), config, 0)
split = open_dataset("sample").decode(32, 0).split("train")
print("ready", flush=True)
sys.stdin.readline()
print(store.of(View(split), 0).sum(), flush=True)
"""


def asking(config: RunConfig, die: bool = False) -> subprocess.Popen:
    """A process that asks for features once it is told to."""
    text = ASK.replace("{config}", repr(config.model_dump())).replace("{die}", str(die))
    process = subprocess.Popen(
        [sys.executable, "-c", text],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    while process.stdout.readline() != "ready\n":
        assert process.poll() is None
    return process


@pytest.mark.slow
def test_of_two_processes_one_computes_and_the_other_waits(config, own_cache):
    both = [asking(config), asking(config)]
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate()[0].splitlines() for process in both]
    computed = [[it for it in lines if not it.startswith("waiting for")] for lines in outputs]
    assert sorted(len(lines) for lines in computed) == [1, 2]
    assert outputs[0][-1] == outputs[1][-1]


@pytest.mark.slow
def test_a_killed_writer_leaves_nothing_that_is_believed(config, own_cache, sample):
    process = asking(config, die=True)
    assert process.communicate("\n")[0] == "computing\n"
    [draft] = own_cache.glob("features/.*.draft")
    assert (draft / ARRAY).read_bytes() == b"half"
    split = open_dataset("sample").decode(32, 0).split("train")
    found = of(config).of(View(split), 0)
    backbone = models.backbone(config)
    assert found == pytest.approx(backbone.predict(split.images, verbose=0), abs=1e-5)
    assert not draft.exists()


@pytest.mark.slow
def test_a_study_shares_its_deepest_cut(store, sample, weights, own_cache):
    base = RunConfig(**SMALL, weights=str(weights), epochs=1, dense_widths=(8,))

    def suggest(trial, base):
        return base.override({"unfreeze_depth": trial.suggest_int("unfreeze_depth", 0, 5)})

    tune(Plan(Experiment("deep", base, suggest), sample, {}), trials=1, model_name="deep")
    assert {depth for depth, _, _ in stored(own_cache)} == {0, 5}
