"""Training in several folds, with repeats."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from pneumo.data.perturb import ALL_PERTURBATIONS, perturb_split
from pneumo.evaluation.robustness import ROBUST_VERSIONS, robust_auc
from pneumo.inference.logits import ensemble_members, predict_logits
from pneumo.training import train as training
from pneumo.training.config import RunConfig, derive_seed
from pneumo.training.feature_cache import N_VIEWS, FeatureCache
from pneumo.training.fit import FittedNetwork
from pneumo.training.train import train
from tests.support.features import few_images, small_config

CNN = RunConfig(image_size=32, epochs=2, patience=2, dense_widths=(8,), unfreeze_depth=2)


@pytest.fixture(scope="module")
def images(sample):
    return few_images(sample)


def test_no_network_predicts_an_image_of_a_patient_that_it_has_memorized(images, monkeypatch):
    """A model that knows the label of each of its patients, and nothing else, knows nothing."""
    pool, seeds = images.validation(3), []

    def memorize(config, fold, *_) -> FittedNetwork:
        patients = pool.rows["patient"]
        known = patients[fold.train.indices].tolist()
        assert fold.val.split.digest == pool.digest
        in_doubt = patients[fold.val.indices].isin(known)
        logits = np.where(in_doubt, 20.0 * fold.val.labels - 10, 0.0)
        seeds.append(config.seed)
        return FittedNetwork(None, 1, dict.fromkeys(ROBUST_VERSIONS, logits), logits)

    monkeypatch.setattr(training, "fit_network", memorize)
    monkeypatch.setattr(training, "build_ensemble", lambda networks, flip_tta: networks)
    config = CNN.override({"folds": 3, "repeats": 2, "ensemble_size": 2, "seed": 7})
    result = train(config, images)
    assert result.val_logits.tolist() == [0] * len(pool.rows)
    assert result.perturbed_logits.tolist() == [0] * len(pool.rows)
    assert result.aucs == result.robust_aucs == (0.5,) * 6
    assert seeds == [7, *(derive_seed(7, number) for number in range(1, 12))]
    assert len(result.model) == len(result.best_epochs) == 12


@pytest.mark.slow
def test_scores_and_logits_are_those_of_each_folds_own_networks(images):
    config = CNN.override({"folds": 2, "repeats": 2})
    epochs = []
    result = train(config, images, [lambda *epoch: epochs.append(epoch)])
    networks, pool = ensemble_members(result.model), images.validation(2)
    assert len(networks) == len(result.best_epochs) == len(result.aucs) == 4
    for number, fold in enumerate(images.folds(2)):
        own = networks[2 * number : 2 * number + 2]
        logits = np.array([predict_logits(network, fold.val.images) for network in own])
        assert result.val_logits[fold.val.indices] == pytest.approx(logits.mean(axis=0), abs=1e-5)
        aucs = [roc_auc_score(fold.val.labels, each) for each in logits]
        assert result.aucs[2 * number : 2 * number + 2] == pytest.approx(aucs, abs=1e-6)
        changed = perturb_split(pool, ALL_PERTURBATIONS).images[fold.val.indices]
        perturbed = np.mean([predict_logits(network, changed) for network in own], axis=0)
        assert result.perturbed_logits[fold.val.indices] == pytest.approx(perturbed, abs=1e-5)
        for network, found in zip(own, result.robust_aucs[2 * number :], strict=False):
            logits = {
                version: predict_logits(
                    network,
                    perturb_split(pool, (version,)).images[fold.val.indices]
                    if version
                    else fold.val.images,
                )
                for version in ROBUST_VERSIONS
            }
            assert found == pytest.approx(robust_auc(fold.val.labels, logits), abs=1e-6)
    # The ensemble averages all of them
    whole = predict_logits(result.model, pool.images)
    expected = np.mean([predict_logits(network, pool.images) for network in networks], axis=0)
    assert whole == pytest.approx(expected, abs=1e-5)
    assert [number for number, _ in epochs] == list(range(1, 9))
    aucs = np.array([metrics["val_auc"] for _, metrics in epochs]).reshape(4, 2)
    assert result.aucs == pytest.approx(aucs.max(axis=1))


def test_a_network_that_stops_early_leaves_a_gap_in_the_epochs(images):
    config = CNN.override({"folds": 2, "epochs": 9, "patience": 1, "learning_rate": 1e-6})
    epochs = []
    result = train(config, images, [lambda epoch, _: epochs.append(epoch)])
    first, second = ([it for it in epochs if it // 10 == number] for number in (0, 1))
    assert len(first) < 9
    assert first == list(range(1, len(first) + 1))
    assert second == list(range(10, 10 + len(second)))
    assert max(result.best_epochs) <= 9


@pytest.mark.slow
def test_the_features_of_all_folds_are_computed_once(images, weights, own_cache, monkeypatch):
    epochs = N_VIEWS
    config = small_config(weights)
    config = config.override({"epochs": epochs, "augment_strength": 0.5, "folds": 3})
    compute, computed, fits = FeatureCache._compute, [], []

    def count(self, view, depth, draft) -> None:
        computed.append(self.name(view, depth))
        compute(self, view, depth, draft)

    monkeypatch.setattr(FeatureCache, "_compute", count)
    train(config, images, [lambda epoch, _: fits.append((epoch, len(computed)))])
    assert len(computed) == len(set(computed))
    # after fold 0, which has seen all views, only the five versions of validation
    assert fits[-1] == (3 * epochs, fits[epochs - 1][1] + 5)


@pytest.mark.slow
def test_stored_or_not_training_in_folds_is_the_same(images, weights, own_cache):
    config = small_config(weights).override({"epochs": 2, "augment_strength": 0, "folds": 2})
    on, off = (train(config.override({"feature_cache": cache}), images) for cache in ("on", "off"))
    assert list((own_cache / "features").iterdir())
    assert on.best_epochs == off.best_epochs
    assert expit(on.val_logits) == pytest.approx(expit(off.val_logits), abs=1e-3)
    assert on.aucs == pytest.approx(off.aucs, abs=1e-3)
