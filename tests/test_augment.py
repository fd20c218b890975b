import numpy as np
import pytest
import tensorflow as tf

from pneumo.augment import CHANCES, Strengths, augment, chances


def images(count: int = 4) -> tf.Tensor:
    return tf.constant(np.random.default_rng(0).integers(0, 256, (count, 33, 33, 1), np.uint8))


def varied(batch, *strengths, seed=(1, 2)) -> np.ndarray:
    return augment(batch, Strengths(*strengths), tf.constant(chances(len(batch), *seed))).numpy()


def test_strength_0_is_exactly_the_identity():
    assert np.array_equal(varied(images(), 0, 0), images().numpy())


def test_uint8_in_and_out_each_image_its_own_way():
    batch = tf.repeat(images(1), 4, axis=0)
    result = varied(batch, 0.5)
    assert (result.dtype, result.shape) == (np.uint8, batch.shape)
    assert len({image.tobytes() for image in result}) == 4


def test_an_image_varies_as_its_own_chance_says_whatever_the_batch():
    whole = varied(images(), 1, 1)
    chance = tf.constant(chances(4, 1, 2))
    for at in ([2], [3, 0]):
        part = augment(tf.gather(images(), at), Strengths(1, 1), tf.gather(chance, at)).numpy()
        assert np.array_equal(part, whole[at])


def test_no_chance_changes_nothing():
    neutral = tf.zeros([4, CHANCES])
    assert np.array_equal(augment(images(), Strengths(1, 1), neutral).numpy(), images().numpy())


def test_the_seed_decides():
    assert np.array_equal(varied(images(), 1.0), varied(images(), 1.0))
    assert not np.array_equal(varied(images(), 1.0), varied(images(), 1.0, seed=(1, 3)))


def test_an_even_image_stays_as_it_is():
    even = tf.fill([8, 33, 33, 1], tf.constant(120, tf.uint8))
    assert np.array_equal(varied(even, 1.0), even.numpy())


def test_the_centre_stays_and_the_rest_turns_by_36_degrees_at_most():
    dots = np.zeros((64, 65, 65, 1), np.uint8)
    dots[:, 31:34, 31:34] = 255  # the centre
    dots[:, 31:34, 55:58] = 255  # 24 pixels to its right
    for image in varied(tf.constant(dots), 1.0)[..., 0]:
        rows, columns = np.nonzero(image > 100)
        x, y = columns - 32, rows - 32
        distance = np.hypot(x, y)
        assert distance.min() < 1.5
        outer = distance > 10
        # zoom 0.8 to 1.2 of what is seen; each dot is 3 pixels wide
        assert 24 / 1.2 - 2 <= np.mean(distance[outer]) <= 24 / 0.8 + 2
        assert abs(np.degrees(np.arctan2(y[outer].mean(), x[outer].mean()))) <= 36 + 2


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_detail_goes_or_doubles_and_the_rest_stays(strength):
    stripes = np.full((1, 128, 128, 1), 100, np.uint8)
    stripes[:, :, ::2] = 140
    smooth = np.full((1, 128, 128, 1), 120, np.uint8)
    detail, gamma = np.array([-1, 0, 1], np.float32), np.zeros(3, np.float32)
    chance = tf.constant(np.stack([gamma, gamma, gamma, detail, gamma], axis=1))
    batch = tf.constant(np.repeat(stripes, 3, axis=0))
    result = augment(batch, Strengths(0, strength), chance).numpy()
    inner = result[:, 8:-8, 8:-8]
    assert np.ptp(inner, axis=(1, 2, 3)) == pytest.approx(
        [40 * (1 - strength), 40, 40 * (1 + strength)], abs=2
    )
    assert inner.mean(axis=(1, 2, 3)) == pytest.approx([120] * 3, abs=0.5)
    batch = tf.constant(np.repeat(smooth, 3, axis=0))
    assert np.array_equal(augment(batch, Strengths(0, strength), chance), batch)


def test_gamma_bends_the_greys_between_black_and_white():
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, np.newaxis, np.newaxis], (256, 256, 1))
    batch = tf.constant(np.stack([ramp, ramp]))
    chance = np.zeros((2, CHANCES), np.float32)
    chance[:, 4] = -1, 1
    lighter, darker = augment(batch, Strengths(0, 1), tf.constant(chance)).numpy()[:, :, 0, 0]
    greys = np.arange(256) / 255
    assert lighter == pytest.approx(255 * greys ** (1 / 1.65), abs=0.51)
    assert darker == pytest.approx(255 * greys**1.65, abs=0.51)


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_contrast_changes_by_up_to_40_percent_and_fills_nothing_with_black(strength):
    batch = np.full((64, 33, 33, 1), 100, np.uint8)
    batch[:, :, 16:] = 140
    spread = np.ptp(varied(tf.constant(batch), strength), axis=(1, 2, 3))
    assert spread.min() >= 40 * (1 - 0.4 * strength) - 2
    assert spread.max() <= 40 * (1 + 0.4 * strength) + 2
    assert spread.max() - spread.min() > 40 * 0.4 * strength
