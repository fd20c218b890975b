"""Training from cached features: when they are stored, and that the results are the same."""

import numpy as np
import pytest
from scipy.special import expit

from pneumo.commands.tune import tune_and_register
from pneumo.data.dataset import DecodedDataset
from pneumo.data.perturb import ALL_PERTURBATIONS, perturb_split
from pneumo.experiment import Experiment
from pneumo.inference.logits import predict_proba
from pneumo.runtime.cache_entries import _held
from pneumo.training import feature_cache, input_pipeline
from pneumo.training.augment import AugmentationConfig
from pneumo.training.config import RunConfig
from pneumo.training.feature_cache import ARRAY_FILE, FeatureCache, view_for_epoch
from pneumo.training.train import train
from pneumo.tuning.spec import StudySpec
from tests.support.features import features_of, few_images, small_config, stored
from tests.support.weights import SMALL

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(sample) -> DecodedDataset:
    """Return few images, at 32 pixels."""
    return few_images(sample)


@pytest.fixture
def config(weights, own_cache) -> RunConfig:
    """Return the config of a small MobileNet with weights of a file, in a cache of its own."""
    return small_config(weights)


@pytest.mark.parametrize("fields", [{}, {"head_epochs": 0}])
def test_a_cut_not_worth_storing_is_trained_from_pixels_with_the_same_result(
    config, images, own_cache, monkeypatch, fields
):
    fields |= {"unfreeze_depth": 2, "epochs": 3, "augment_strength": 0.5}
    config = config.override(fields)
    # So that the cut below one block is worth it, and that below two blocks is not
    extractor = features_of(config)._extractor
    paid = [extractor.multiply_adds(it) / extractor.feature_bytes(it) for it in (1, 2)]
    monkeypatch.setattr(feature_cache, "WORTH_A_BYTE", np.mean(paid))
    found = train(config, images, max_unfreeze_depth=2)
    depths = {depth for depth, _, _ in stored(own_cache)}
    assert depths == ({0, 1} if config.head_epochs else set())
    monkeypatch.setattr(feature_cache, "WORTH_A_BYTE", 0)
    expected = train(config, images, max_unfreeze_depth=2)
    assert {depth for depth, _, _ in stored(own_cache)} >= {2}
    assert found.best_epochs == expected.best_epochs
    assert found.val_logits == pytest.approx(expected.val_logits, abs=1e-4)
    assert found.perturbed_logits == pytest.approx(expected.perturbed_logits, abs=1e-4)


def test_the_budget_for_a_run_is_what_it_will_store(config, images, own_cache, monkeypatch):
    config = config.override({"unfreeze_depth": 1, "epochs": 2, "augment_strength": 0.5})
    requested, target = [], "pneumo.training.fit.available_bytes"
    monkeypatch.setattr(target, lambda sizes: requested.append(sizes) or 10**12)
    train(config.override({"objective": "val_robust_auc"}), images, max_unfreeze_depth=2)
    [sizes] = requested
    folders = {
        path.relative_to(own_cache).as_posix(): path for path in own_cache.glob("features/*")
    }
    assert sizes.keys() >= folders.keys()
    # Each phase needs one training view, and the head no validation that is perturbed in turn
    assert len(sizes) - len(folders) == 3
    for name, folder in folders.items():
        assert sizes[name] == np.load(folder / ARRAY_FILE, mmap_mode="r").nbytes


@pytest.mark.parametrize("depth", [0, 2])
def test_a_view_is_computed_when_an_epoch_first_needs_it(config, images, own_cache, depth):
    class Pruned(Exception):
        pass

    seen = []

    def look(epoch, metrics):
        seen.append([entry for entry in stored(own_cache) if entry[0] == depth])
        if epoch == 2:
            raise Pruned

    config = config.override({"augment_strength": 0.5, "unfreeze_depth": depth})
    with pytest.raises(Pruned):
        train(config, images, [look])
    numbers = [
        view_for_epoch(
            images.split("train"), epoch, AugmentationConfig.from_config(config), config.seed
        ).number
        for epoch in range(config.epochs)
    ]
    views = [(depth, 0.5, number) for number in numbers]
    # with depth 2 the features of the head's first epoch started from there
    assert seen == [
        sorted([(depth, 0.0, 0), *views[:epochs]])  # validation, and a view for each epoch
        for epochs in (1, 2)
    ]
    train(config, images)  # a whole run needs validation perturbed in turn, and in 4 versions
    there = [entry for entry in stored(own_cache) if entry[0] == depth]
    assert there == sorted([(depth, 0.0, 0)] * 6 + views)


def test_a_run_releases_its_features_when_it_ends_and_another_computes_nothing_again(
    config, images, own_cache, monkeypatch
):
    used = []

    def look(*_):
        used.extend(path for path in own_cache.glob("features/*") if path in _held)

    train(config, images, [look])
    assert used
    assert not any(path in _held for path in own_cache.glob("features/*"))
    monkeypatch.setattr(FeatureCache, "_compute", None)
    train(config.override({"seed": 3, "dropout": 0.1, "dense_widths": "none"}), images)


def test_features_of_random_weights_go_with_their_run(config, images, own_cache):
    seen = []
    config = config.override({"weights": "none", "epochs": 2})
    train(config, images, [lambda *_: seen.append(stored(own_cache))])
    assert [len(entries) for entries in seen] == [2, 3]
    assert list((own_cache / "features").iterdir()) == []
    assert list((own_cache / "locks").iterdir()) == []


def test_where_nothing_is_frozen_every_epoch_has_its_own_variation(images, own_cache, monkeypatch):
    monkeypatch.setattr(input_pipeline, "view_for_epoch", None)
    config = RunConfig(image_size=32, epochs=2, unfreeze_depth=2)
    train(config, images)
    assert stored(own_cache) == []


@pytest.mark.parametrize(
    ("backbone", "depth"),
    [("mobilenet", 0), ("mobilenet", 2), ("resnet50v2", 1)],
)
def test_stored_or_not_training_is_the_same(config, images, own_cache, backbone, depth):
    config = config.override({"unfreeze_depth": depth, "augment_strength": 0})
    if backbone != "mobilenet":
        config = config.override({"backbone": backbone, "alpha": 1, "weights": "none"})
    off = train(config.override({"feature_cache": "off"}), images)
    assert stored(own_cache) == []
    computed = []
    with pytest.MonkeyPatch.context() as patch:
        compute = FeatureCache._compute
        patch.setattr(FeatureCache, "_compute", lambda *given: computed.append(compute(*given)))
        on = train(config, images)
    assert computed  # else both would be the same thing
    assert on.best_epochs == off.best_epochs
    assert expit(on.val_logits) == pytest.approx(expit(off.val_logits), abs=1e-3)
    # the whole model, put together again, is what was trained above the cut
    whole = predict_proba(on.model, images.split("val").images)
    assert whole == pytest.approx(expit(on.val_logits), abs=1e-5)
    whole = predict_proba(on.model, perturb_split(images.split("val"), ALL_PERTURBATIONS).images)
    assert whole == pytest.approx(expit(on.perturbed_logits), abs=1e-5)


def test_what_does_not_fit_on_the_disk_trains_the_same_without(
    config, images, own_cache, monkeypatch, capsys
):
    config = config.override({"augment_strength": 0.5, "unfreeze_depth": 1, "epochs": 3})
    expected = train(config, images)
    whole = predict_proba(expected.model, images.split("val").images)
    assert whole == pytest.approx(expit(expected.val_logits), abs=1e-5)
    assert capsys.readouterr().out == ""
    for folder in own_cache.glob("features/*"):
        (folder / ARRAY_FILE).unlink()
    monkeypatch.setenv("PNEUMO_CACHE_GIB", "0")
    found = train(config, images)
    assert found.best_epochs == expected.best_epochs
    assert expit(found.val_logits) == pytest.approx(expit(expected.val_logits), abs=1e-3)
    said = capsys.readouterr().out
    assert "The run trains without the feature cache, more slowly." in said


def test_a_study_shares_its_deepest_cut(
    store, sample, weights, own_cache, without_plots, without_pages, monkeypatch
):
    base = RunConfig(**SMALL, weights=str(weights), epochs=1, dense_widths=(8,))

    def suggest(trial, base):
        return base.override({"unfreeze_depth": trial.suggest_int("unfreeze_depth", 0, 5)})

    monkeypatch.setattr("pneumo.commands.tune._register_winner", lambda *_: None)
    tune_and_register(
        StudySpec(Experiment("deep", base, suggest), sample, {}), trials=1, model_name="deep"
    )
    assert {depth for depth, _, _ in stored(own_cache)} == {0, 5}
