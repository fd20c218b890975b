"""A fit: its phases, the epoch whose weights are kept, and its memory."""

import gc
from dataclasses import replace

import keras
import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import log_loss, roc_auc_score

from pneumo.data.perturb import ALL_PERTURBATIONS, perturb_split
from pneumo.evaluation.robustness import ROBUST_NUISANCES, robust_auc, versions
from pneumo.inference.logits import ensemble_members, predict_logits, predict_proba
from pneumo.training import network
from pneumo.training.config import RunConfig, derive_seed
from pneumo.training.fit import Phase, TrainingDivergedError, _cosine, class_weights, phases
from pneumo.training.train import train
from tests.support.weights import SMALL

pytestmark = pytest.mark.slow

CONFIG = RunConfig(image_size=32, epochs=3, dense_widths=(16,), augment_strength=1.0)


@pytest.fixture(scope="module")
def images(sample):
    return sample.decode(32, 0)


def fit(images, **fields):
    """Fit a model; return the result, and the arguments of its callbacks."""
    epochs = []
    config = CONFIG.override(fields)
    return train(config, images, [lambda epoch, metrics: epochs.append((epoch, metrics))]), epochs


def test_the_weights_kept_are_those_of_the_best_epoch(images):
    result, epochs = fit(images, learning_rate=0.01, epochs=5, patience=9)
    aucs = [metrics["val_auc"] for _, metrics in epochs]
    assert [epoch for epoch, _ in epochs] == [1, 2, 3, 4, 5]
    assert result.best_epochs == (1 + int(np.argmax(aucs)),)
    assert result.best_epochs[0] < 5  # else there would be nothing to restore
    val = images.split("val")
    assert roc_auc_score(val.labels, result.val_logits) == max(aucs)
    # and evaluation sees the images as they are, although training varies them fully
    assert predict_proba(result.model, val.images) == pytest.approx(
        expit(result.val_logits), abs=1e-9
    )
    changed = perturb_split(val, ALL_PERTURBATIONS).images
    assert predict_proba(result.model, changed) == pytest.approx(
        expit(result.perturbed_logits), abs=1e-9
    )
    best = epochs[result.best_epochs[0] - 1][1]
    assert set(best) == {"loss", "auc", "val_loss", "val_auc"}
    assert best["val_loss"] == pytest.approx(balanced_loss(val.labels, result.val_logits))


def balanced_loss(labels, logits) -> float:
    """Return the mean of the mean losses of both classes."""
    of_class = [logits[labels == label] for label in (0, 1)]
    return np.mean(
        [
            log_loss(np.full(len(logits), n), expit(logits), labels=[0, 1])
            for n, logits in enumerate(of_class)
        ]
    )


def test_training_and_validation_losses_are_comparable(images):
    """A fit that hardly changes has one loss throughout, that of the labels."""
    result, epochs = fit(images, epochs=1, learning_rate=1e-12, dropout=0, augment_strength=0)
    for name in ("train", "val"):
        part = images.split(name)
        logits = predict_logits(result.model, part.images)
        expected = balanced_loss(part.labels, logits)
        loss = epochs[0][1]["loss" if name == "train" else "val_loss"]
        assert loss == pytest.approx(expected, abs=1e-5)
        plain = log_loss(part.labels, expit(logits))
        assert abs(plain - expected) > 1e-3  # the classes differ in size and in loss


def test_the_robust_auc_may_choose_the_epoch(images):
    result, epochs = fit(
        images, learning_rate=0.01, epochs=5, patience=9, objective="val_robust_auc"
    )
    aucs = [metrics["val_robust_auc"] for _, metrics in epochs]
    assert aucs != [metrics["val_auc"] for _, metrics in epochs]
    assert result.best_epochs == (1 + int(np.argmax(aucs)),)
    assert result.robust_aucs == (max(aucs),)
    assert robust_auc_of(result.model, images) == pytest.approx(max(aucs), abs=1e-6)


def robust_auc_of(model: keras.Model, images) -> float:
    """The robust AUC of a model, from perturbed images."""
    val = images.split("val")
    versions_of_val = {
        it: perturb_split(val, (it,)).images if it else val.images
        for it in versions(ROBUST_NUISANCES)
    }
    logits = {it: predict_logits(model, pixels) for it, pixels in versions_of_val.items()}
    return robust_auc(val.labels, logits)


def test_the_robust_auc_is_known_whatever_the_objective(images):
    result, epochs = fit(images, epochs=2)
    assert set(epochs[0][1]) == {"loss", "auc", "val_loss", "val_auc"}
    assert result.robust_aucs == pytest.approx((robust_auc_of(result.model, images),), abs=1e-6)


def test_members_are_fitted_one_by_one_and_averaged(images, tmp_path):
    fields = {
        "ensemble_size": 2,
        "learning_rate": 0.01,
        "epochs": 3,
        "objective": "val_robust_auc",
    }
    result, epochs = fit(images, **fields)
    seeds = [CONFIG.seed, derive_seed(CONFIG.seed, 1)]
    alone = [fit(images, **fields | {"ensemble_size": 1, "seed": seed}) for seed in seeds]
    assert result.best_epochs == tuple(result.best_epochs[0] for result, _ in alone)
    assert epochs == list(enumerate((metrics for _, its in alone for _, metrics in its), start=1))
    assert [epoch for epoch, _ in epochs] == [1, 2, 3, 4, 5, 6]
    for said in ("val_logits", "perturbed_logits"):
        first, second = (getattr(result, said) for result, _ in alone)
        assert not np.array_equal(first, second)
        assert np.array_equal(getattr(result, said), (first + second) / 2)
    val = images.split("val")
    result.model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert predict_logits(loaded, val.images) == pytest.approx(result.val_logits, abs=1e-5)
    assert result.robust_aucs == pytest.approx((robust_auc_of(loaded, images),), abs=1e-6)


def test_a_flip_tta_model_is_evaluated_as_it_is_used(images, tmp_path):
    result, epochs = fit(
        images, horizontal_flip="on", flip_tta="on", learning_rate=0.01, objective="val_robust_auc"
    )
    result.model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    val = images.split("val")
    mirrored = val.images[:, :, ::-1]
    found = predict_logits(loaded, val.images)
    assert found == pytest.approx(result.val_logits, abs=1e-5)
    assert found == pytest.approx(predict_logits(loaded, mirrored), abs=1e-5)
    [member] = ensemble_members(loaded)
    one, other = (predict_logits(member, pixels) for pixels in (val.images, mirrored))
    assert not np.allclose(one, other)
    assert found == pytest.approx((one + other) / 2, abs=1e-5)
    changed = predict_logits(loaded, perturb_split(val, ALL_PERTURBATIONS).images)
    assert changed == pytest.approx(result.perturbed_logits, abs=1e-5)
    assert result.robust_aucs == pytest.approx((robust_auc_of(loaded, images),), abs=1e-6)


def test_a_cosine_ends_each_phase_at_rest(images, weights, monkeypatch):
    rates = []

    class Noting(keras.callbacks.EarlyStopping):
        def on_epoch_end(self, epoch, logs):
            super().on_epoch_end(epoch, logs)
            rates.append(float(self.model.optimizer.learning_rate))

    monkeypatch.setattr(keras.callbacks, "EarlyStopping", Noting)
    config = small(weights, epochs=4, head_epochs=2, learning_rate=0.01, fine_tune_lr_factor=0.1)
    train(config.override({"lr_schedule": "cosine"}), images)
    assert rates[1::2] == pytest.approx([0, 0], abs=1e-7)
    assert 0.005 < rates[0] < 0.006
    assert rates[2] == pytest.approx(rates[0] / 10)


def test_a_cosine_rises_before_it_falls():
    rate = _cosine(0.01, 100)
    found = [float(rate(step)) for step in (0, 5, 10, 55, 100)]
    assert found == pytest.approx([0, 0.005, 0.01, 0.005, 0], abs=1e-8)
    assert float(_cosine(0.01, 9)(0)) == pytest.approx(0.01)  # too short to rise


def test_early_stopping_ends_the_training(images):
    _, epochs = fit(images, epochs=40, patience=1, learning_rate=0.01)
    aucs = [metrics["val_auc"] for _, metrics in epochs]
    assert len(aucs) < 40
    assert aucs[-1] <= max(aucs[:-1])
    assert np.all(np.diff(aucs[:-1]) > 0)


def test_the_same_seed_repeats_and_another_does_not(images):
    first, second, other = (fit(images, epochs=2, seed=seed) for seed in (1, 1, 2))
    assert first[1] == second[1]
    assert np.array_equal(first[0].val_logits, second[0].val_logits)
    assert not np.array_equal(first[0].val_logits, other[0].val_logits)


def moved(before: keras.Model, after: keras.Model) -> list[str]:
    """Return the paths of the weights that differ."""
    pairs = zip(before.weights, after.weights, strict=True)
    return [old.path for old, new in pairs if not np.array_equal(old.numpy(), new.numpy())]


def test_depth_decides_which_weights_change(images):
    keras.utils.set_random_seed(0)
    before = network.build_model(CONFIG.override({"unfreeze_depth": 1})).get_layer("backbone")
    result, _ = fit(images, unfreeze_depth=1, epochs=1)
    after = result.model.get_layer("backbone")
    assert moved(before, after) == ["conv_2/kernel", "conv_2/bias"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [Phase(0, 0.01, 1), Phase(3, 0.001, 6)]),
        ({"head_epochs": 4}, [Phase(0, 0.01, 4), Phase(3, 0.001, 6)]),
        ({"head_epochs": 9}, [Phase(0, 0.01, 5), Phase(3, 0.001, 6)]),
        ({"head_epochs": 0}, [Phase(3, 0.001, 6)]),
        ({"epochs": 1}, [Phase(3, 0.001, 1)]),
        ({"fine_tune_lr_factor": 0.5}, [Phase(0, 0.01, 1), Phase(3, 0.005, 6)]),
        ({"unfreeze_depth": 0}, [Phase(0, 0.01, 6)]),
        ({"weights": "none"}, [Phase(3, 0.01, 6)]),
    ],
)
def test_what_trains_when(fields, expected):
    pretrained = {"weights": "imagenet", "unfreeze_depth": 3, "learning_rate": 0.01, "epochs": 6}
    found = phases(RunConfig(**SMALL).override(pretrained | fields))
    assert found == [
        replace(phase, learning_rate=pytest.approx(phase.learning_rate)) for phase in expected
    ]


def small(weights, **fields) -> RunConfig:
    return RunConfig(**SMALL, weights=str(weights)).override({"unfreeze_depth": 2} | fields)


def test_two_phases_have_one_rising_epoch(images, weights):
    epochs = []
    # patience ends the head's phase early; the other gets what it left
    config = small(weights, epochs=9, head_epochs=6, patience=1, learning_rate=0.01)
    train(config, images, [lambda epoch, metrics: epochs.append((epoch, metrics["val_auc"]))])
    numbers, aucs = zip(*epochs, strict=True)
    assert numbers == tuple(range(1, len(epochs) + 1))
    falls = [epoch + 2 for epoch in np.flatnonzero(np.diff(aucs) <= 0)]
    assert falls[0] < 6
    assert len(epochs) > falls[0]


def test_fine_tuning_changes_the_unfrozen_blocks_but_no_statistics(images, weights):
    config = small(weights, epochs=1)  # one epoch has no phase of the head alone
    before = network.build_model(config).get_layer("backbone")
    result = train(config, images)
    paths = moved(before, result.model.get_layer("backbone"))
    names = [f"conv_{kind}_{block}" for block in (12, 13) for kind in ("dw", "pw")]
    expected = {f"{name}{layer}" for name in names for layer in ("", "_bn")}
    assert {path.partition("/")[0] for path in paths} == expected
    assert not any("moving" in path for path in paths)


def test_from_scratch_the_statistics_of_the_unfrozen_blocks_change(images):
    config = RunConfig(**SMALL).override({"unfreeze_depth": 1, "epochs": 1})
    before = network.build_model(config).get_layer("backbone")
    paths = moved(before, train(config, images).model.get_layer("backbone"))
    statistics = {path for path in paths if "moving" in path}
    kinds = ("moving_mean", "moving_variance")
    assert statistics == {f"conv_{layer}_13_bn/{kind}" for layer in ("dw", "pw") for kind in kinds}


def test_the_best_epoch_may_lie_in_the_first_phase(images, weights):
    epochs = []
    config = small(weights, epochs=4, head_epochs=3, learning_rate=0.01, fine_tune_lr_factor=1)
    result = train(config, images, [lambda _, metrics: epochs.append(metrics["val_auc"])])
    assert result.best_epochs == (1 + int(np.argmax(epochs)),)
    assert result.best_epochs[0] <= 3
    backbone = network.build_model(config).get_layer("backbone")
    assert moved(backbone, result.model.get_layer("backbone")) == []
    # Stored features were computed in other batches, so the last digits of float32 differ
    assert predict_proba(result.model, images.split("val").images) == pytest.approx(
        expit(result.val_logits), abs=1e-6
    )


@pytest.mark.parametrize("last", [1, 2, 4])
def test_a_callback_may_end_the_training_in_each_phase(images, weights, last):
    seen = []

    def stop(epoch, metrics):
        seen.append(metrics["val_auc"])
        return epoch == last

    config = small(weights, epochs=6, head_epochs=3, learning_rate=0.01)
    result = train(config, images, [stop])
    assert len(seen) == last
    assert result.best_epochs == (1 + int(np.argmax(seen)),)
    assert roc_auc_score(images.split("val").labels, result.val_logits) == max(seen)


def test_what_a_callback_raises_reaches_the_caller(images):
    class Enough(Exception):
        pass

    seen = []

    def stop(epoch, metrics):
        seen.append(epoch)
        if epoch == 2:
            raise Enough

    with pytest.raises(Enough):
        train(CONFIG.override({"epochs": 5}), images, [stop])
    assert seen == [1, 2]


def test_a_nan_loss_ends_the_training(images):
    keras.config.set_floatx("float16")  # whose numbers end at 65,504
    try:
        with pytest.raises(TrainingDivergedError, match="lower learning_rate"):
            fit(images, learning_rate=1, epochs=20, patience=20)
    finally:
        keras.config.set_floatx("float32")
        keras.utils.clear_session()  # else Keras remembers the other


def test_what_a_fit_traced_does_not_stay_in_memory(images):
    def traced():
        keras.utils.clear_session()  # collects garbage, too
        return sum(type(item).__name__ == "FuncGraph" for item in gc.get_objects())

    fit(images, epochs=1)
    before = traced()
    fit(images, epochs=1)
    assert traced() == before


def test_both_classes_weigh_the_same():
    labels = np.array([0] * 10 + [1] * 30)
    weights = class_weights(labels)
    assert weights == {0: 2.0, 1: 2 / 3}
    assert sum(weights[label] for label in labels) == pytest.approx(40)
