"""The batches of each epoch."""

import itertools

import numpy as np
import pytest

from pneumo.training.augment import AugmentationConfig
from pneumo.training.config import RunConfig
from pneumo.training.feature_cache import N_VIEWS, view_for_epoch
from pneumo.training.input_pipeline import BatchFeeder, PixelSource

CONFIG = RunConfig(image_size=32, epochs=3, dense_widths=(16,), augment_strength=1.0)


@pytest.fixture(scope="module")
def images(sample):
    return sample.decode(32, 0)


def epochs_of(images, shared=False, count=3, **fields) -> list[list[tuple[np.ndarray, ...]]]:
    """Return the batches of some epochs."""
    config = CONFIG.override(fields)
    feed = BatchFeeder(PixelSource(images.folds(1)[0], config, shared), config)
    data, found = feed.batches(), []
    for epoch in range(count):
        feed.on_epoch_begin(epoch)
        found.append([(x.numpy(), y.numpy()) for x, y in data])
    return found


def test_batches_hold_every_image_once_in_another_order_each_epoch(images):
    split = images.split("train")
    epochs = epochs_of(images, augment_strength=0)
    pixels, labels = zip(*epochs[0], strict=True)
    pixels, labels = np.concatenate(pixels), np.concatenate(labels)
    by_content = {image.tobytes(): label for image, label in zip(pixels, labels, strict=True)}
    assert by_content == {
        image.tobytes(): label for image, label in zip(split.images, split.labels, strict=True)
    }
    assert len(pixels) == len(split.labels)
    assert not np.array_equal(pixels, np.concatenate([x for x, _ in epochs[1]]))


@pytest.mark.parametrize("shared", [False, True])
def test_augmentation_differs_between_epochs_unless_they_share_a_view(images, shared):
    epochs = [
        {image.tobytes() for x, _ in batches for image in x}
        for batches in epochs_of(images, shared, N_VIEWS + 1, augment_strength=1)
    ]
    clean = {image.tobytes() for image in images.split("train").images}
    assert [len(epoch) for epoch in epochs] == [len(clean)] * (N_VIEWS + 1)
    assert not epochs[1] & (epochs[0] | epochs[2] | clean)
    assert not epochs[0] & (epochs[2] | clean)
    assert not epochs[N_VIEWS] & (epochs[1] | epochs[2] | epochs[3] | clean)
    assert (epochs[0] == epochs[N_VIEWS]) == shared
    assert bool(epochs[0] & epochs[N_VIEWS]) == shared


def test_seeds_have_variations_and_orders_of_their_own(images):
    [first, *_], [again, *_], [other, *_] = (epochs_of(images, seed=seed) for seed in (1, 1, 2))
    for (x, _), (same, _), (unlike, _) in zip(first, again, other, strict=True):
        assert np.array_equal(x, same)
        assert not np.array_equal(x, unlike)


def test_runs_share_all_views_in_orders_of_their_own(images):
    split, augmentation = images.split("train"), AugmentationConfig.from_config(CONFIG)
    orders = {
        tuple(
            view_for_epoch(split, epoch, augmentation, seed).number for epoch in range(2 * N_VIEWS)
        )
        for seed in range(100)
    }
    every = list(itertools.permutations(range(1, N_VIEWS + 1)))
    assert {order[:N_VIEWS] for order in orders} <= set(every)
    assert len(orders) > len(every) / 2
    assert all(order[:N_VIEWS] == order[N_VIEWS:] for order in orders)
    plain = view_for_epoch(split, 1, AugmentationConfig(), 0)
    assert (plain.number, plain.augmentation) == (0, AugmentationConfig())


def test_no_epoch_waits_for_autotuning_to_end(images):
    options = (
        BatchFeeder(PixelSource(images.folds(1)[0], CONFIG, False), CONFIG).batches().options()
    )
    assert options.autotune.enabled is False
