from dataclasses import replace

import keras
import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from pneumo import models
from pneumo.config import RunConfig
from pneumo.train import TrainingDiverged, batches, class_weights, train

CONFIG = RunConfig(image_size=32, epochs=3, dense_widths=(16,), augment_strength=1.0)


@pytest.fixture(scope="module")
def images(sample):
    return sample.decode(32, 0)


def fit(images, **fields):
    """A result, and what its callbacks were told."""
    told = []
    config = CONFIG.override(fields)
    return train(config, images, [lambda epoch, metrics: told.append((epoch, metrics))]), told


def test_the_weights_kept_are_those_of_the_best_epoch(images):
    result, told = fit(images, learning_rate=0.005, epochs=5, patience=9)
    aucs = [metrics["val_auc"] for _, metrics in told]
    assert [epoch for epoch, _ in told] == [1, 2, 3, 4, 5]
    assert result.best_epoch == 1 + int(np.argmax(aucs))
    assert result.best_epoch < 5  # else there would be nothing to restore
    val = images.split("val")
    assert roc_auc_score(val.labels, result.val_probabilities) == max(aucs)
    # and evaluation sees the images as they are, although training varies them fully
    assert models.probabilities(result.model, val.images) == pytest.approx(
        result.val_probabilities, abs=1e-9
    )
    best = told[result.best_epoch - 1][1]
    assert set(best) == {"loss", "auc", "val_loss", "val_auc"}
    assert best["val_loss"] == pytest.approx(log_loss(val.labels, result.val_probabilities))


def test_patience_ends_the_training(images):
    _, told = fit(images, epochs=40, patience=1, learning_rate=0.01)
    aucs = [metrics["val_auc"] for _, metrics in told]
    assert len(aucs) < 40
    assert aucs[-1] <= max(aucs[:-1])
    assert np.all(np.diff(aucs[:-1]) > 0)


def test_the_same_seed_repeats_and_another_does_not(images):
    first, second, other = (fit(images, epochs=2, seed=seed) for seed in (1, 1, 2))
    assert first[1] == second[1]
    assert np.array_equal(first[0].val_probabilities, second[0].val_probabilities)
    assert not np.array_equal(first[0].val_probabilities, other[0].val_probabilities)


def test_depth_decides_which_weights_move(images):
    keras.utils.set_random_seed(0)
    before = models.build(CONFIG.override({"unfreeze_depth": 1})).get_layer("backbone")
    result, _ = fit(images, unfreeze_depth=1, epochs=1)
    after = result.model.get_layer("backbone")
    moved = [
        old.name
        for old, new in zip(before.weights, after.weights, strict=True)
        if not np.array_equal(old.numpy(), new.numpy())
    ]
    assert len(moved) == 2
    assert np.array_equal(before.layers[1].kernel, after.layers[1].kernel)
    assert not np.array_equal(before.layers[3].kernel, after.layers[3].kernel)


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


def test_a_loss_that_is_no_number_ends_the_training(images):
    keras.config.set_floatx("float16")  # whose numbers end at 65,504
    try:
        with pytest.raises(TrainingDiverged, match="lower learning_rate"):
            fit(images, learning_rate=1, epochs=20, patience=20)
    finally:
        keras.config.set_floatx("float32")


def test_batches_hold_every_image_once_in_another_order_each_epoch(images):
    split = images.split("train")
    data = batches(split, CONFIG.override({"augment_strength": 0}))
    epochs = [[(x.numpy(), y.numpy()) for x, y in data] for _ in range(2)]
    pixels, labels = zip(*epochs[0], strict=True)
    pixels, labels = np.concatenate(pixels), np.concatenate(labels)
    by_content = {image.tobytes(): label for image, label in zip(pixels, labels, strict=True)}
    assert by_content == {
        image.tobytes(): label for image, label in zip(split.images, split.labels, strict=True)
    }
    assert len(pixels) == len(split.labels)
    assert not np.array_equal(pixels, np.concatenate([x for x, _ in epochs[1]]))


def test_augmentation_differs_between_epochs(images):
    split = images.split("train")
    # one image many times over, so that a new order alone makes no difference
    same = replace(split, positions=np.full_like(split.positions, split.positions[0]))
    data = batches(same, CONFIG.override({"augment_strength": 1}))
    epochs = [{image.tobytes() for x, _ in data for image in x.numpy()} for _ in range(2)]
    assert len(epochs[0]) == len(split.positions)
    assert not epochs[0] & epochs[1]
    assert not epochs[0] & {split.images[0].tobytes()}


def test_both_classes_weigh_the_same():
    labels = np.array([0] * 10 + [1] * 30)
    weights = class_weights(labels)
    assert weights == {0: 2.0, 1: 2 / 3}
    assert sum(weights[label] for label in labels) == pytest.approx(40)
