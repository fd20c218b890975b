"""Augmentation of images."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pneumo.training.augment import N_FACTORS, AugmentationConfig, augment, sample_factors


def images(count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 33, 33, 1), np.uint8)


def varied(batch, *augmentation, seed=(1, 2)) -> np.ndarray:
    return augment(batch, AugmentationConfig(*augmentation), sample_factors(len(batch), *seed))


def test_strength_0_is_exactly_the_identity():
    assert np.array_equal(varied(images(), 0, 0, False, 0), images())


def test_uint8_in_and_out_each_image_its_own_way():
    batch = np.repeat(images(1), 4, axis=0)
    result = varied(batch, 0.5)
    assert (result.dtype, result.shape) == (np.uint8, batch.shape)
    assert len({image.tobytes() for image in result}) == 4


def test_the_augmentation_of_an_image_depends_on_its_factors_alone():
    variation = AugmentationConfig(1, 0.5, True, 1)
    whole = varied(images(), *variation)
    chance = sample_factors(4, 1, 2)
    for at in ([2], [3, 0]):
        part = augment(images()[at], variation, chance[at])
        assert np.array_equal(part, whole[at])


def test_factors_of_0_change_nothing():
    neutral = np.zeros((4, N_FACTORS), np.float32)
    assert np.array_equal(augment(images(), AugmentationConfig(1, 0, True, 1), neutral), images())


def test_the_seed_decides():
    assert np.array_equal(varied(images(), 1.0), varied(images(), 1.0))
    assert not np.array_equal(varied(images(), 1.0), varied(images(), 1.0, seed=(1, 3)))


def test_an_even_image_stays_as_it_is():
    even = np.full((8, 33, 33, 1), 120, np.uint8)
    assert np.array_equal(varied(even, 1.0), even)


def test_the_center_stays_and_the_rest_rotates_by_36_degrees_at_most():
    dots = np.zeros((64, 65, 65, 1), np.uint8)
    dots[:, 31:34, 31:34] = 255  # the centre
    dots[:, 31:34, 55:58] = 255  # 24 pixels to its right
    for image in varied(dots, 1.0)[..., 0]:
        rows, columns = np.nonzero(image > 100)
        x, y = columns - 32, rows - 32
        distance = np.hypot(x, y)
        assert distance.min() < 1.5
        outer = distance > 10
        # zoom 0.8 to 1.2 of what is seen; each dot is 3 pixels wide
        assert 24 / 1.2 - 2 <= np.mean(distance[outer]) <= 24 / 0.8 + 2
        assert abs(np.degrees(np.arctan2(y[outer].mean(), x[outer].mean()))) <= 36 + 2


def seen(augmentation: AugmentationConfig, **chance: float) -> np.ndarray:
    """Augment an image whose pixels encode their positions; return columns and rows."""
    place = {"size": 3, "x": 4, "y": 5, "ratio": 6}
    drawn = np.zeros((2, N_FACTORS), np.float32)
    for name, value in chance.items():
        drawn[:, place[name]] = value
    ramp = np.arange(101, dtype=np.uint8)
    columns = np.broadcast_to(2 * ramp, (101, 101))
    batch = np.stack([columns, columns.T])[..., np.newaxis]
    columns, rows = augment(batch, augmentation, drawn)[..., 0] / 2.0
    assert np.ptp(columns, axis=0).max() == np.ptp(rows, axis=1).max() == 0
    return np.stack([columns[0], rows[:, 0]])


@pytest.mark.parametrize(
    ("chance", "columns", "rows"),
    [
        ({"size": -1}, (0, 100), (0, 100)),
        ({"size": 1}, (20, 80), (20, 80)),
        ({"size": 1, "x": -1}, (0, 60), (20, 80)),
        ({"size": 0, "x": 1, "y": 1}, (20, 100), (20, 100)),
        ({"size": 0, "y": -0.5}, (10, 90), (5, 85)),
        ({"size": 1, "ratio": 1}, (50 - 30 * 2 / 3**0.5, 50 + 30 * 2 / 3**0.5), (24.02, 75.98)),
    ],
)
def test_a_crop_lies_within_the_image_where_chance_puts_it(chance, columns, rows):
    found = seen(AugmentationConfig(0, 0.4), **chance)
    assert found[0] == pytest.approx(np.linspace(*columns, 101), abs=0.5)
    assert found[1] == pytest.approx(np.linspace(*rows, 101), abs=0.5)


def test_half_of_the_images_are_flipped_and_not_changed_otherwise():
    batch = np.repeat(images(1), 400, axis=0)
    result = varied(batch, 0, 0, True)
    mirrored = (result == batch[:, :, ::-1]).all(axis=(1, 2, 3))
    same = (result == batch).all(axis=(1, 2, 3))
    assert (mirrored ^ same).all()
    assert 170 < mirrored.sum() < 230


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_contrast_changes_by_up_to_40_percent_and_fills_nothing_with_black(strength):
    batch = np.full((64, 33, 33, 1), 100, np.uint8)
    batch[:, :, 16:] = 140
    spread = np.ptp(varied(batch, strength), axis=(1, 2, 3))
    assert spread.min() >= 40 * (1 - 0.4 * strength) - 2
    assert spread.max() <= 40 * (1 + 0.4 * strength) + 2
    assert spread.max() - spread.min() > 40 * 0.4 * strength


@pytest.mark.parametrize(("factor", "expected"), [(-1, "blurred"), (0, "same"), (1, "sharpened")])
def test_sharpness_goes_from_a_blur_to_an_unsharp_mask(factor, expected):
    size, deviation = 100, 1.0
    batch = np.zeros((1, size, size, 1), np.uint8)
    batch[:, :, size // 2 :] = 100
    batch += 50
    chance = np.zeros((1, N_FACTORS), np.float32)
    chance[:, -1] = factor
    found = augment(batch, AugmentationConfig(0, 0, False, 1), chance)
    found, before = found[0, ..., 0].astype(float), batch[0, ..., 0].astype(float)
    blurred = gaussian_filter(before, deviation, truncate=3)
    wanted = {
        "blurred": blurred,
        "same": before,
        "sharpened": np.clip(before + 1.5 * (before - blurred), 0, 255),
    }[expected]
    assert np.abs(found - wanted).max() <= 1


def test_the_other_factors_do_not_depend_on_that_of_sharpness():
    """Published results keep their random numbers."""
    rng = np.random.default_rng((7,))
    first, second = (rng.uniform(-1, 1, (5, count)).astype(np.float32) for count in (3, 5))
    assert np.array_equal(sample_factors(5, 7)[:, :8], np.hstack([first, second]))
