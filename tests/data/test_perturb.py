"""Perturbations, on images with known results."""

import numpy as np
import pytest
from scipy.ndimage import laplace

from pneumo.data.perturb import ALL_PERTURBATIONS, OPERATIONS, PERTURBATIONS, perturb, perturb_split

SIDE = 64
RAMP = np.tile(np.linspace(0, 255, SIDE), (SIDE, 1)).astype(np.uint8)
DISC = np.hypot(*np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]) < 0.5
DISC = np.where(DISC, 200, 50).astype(np.uint8)
NOTHING = {"blur": 0, "sharpen": 0, "gamma": 1, "contrast": 1, "noise": 0, "resample": 1, "crop": 0}
NOTHING |= {"trim_width": 0, "trim_height": 0, "black_border": 0}


def sharpness(image: np.ndarray) -> float:
    return laplace(image.astype(float)).var()


TRIMS = [("trim_width", 0.15), ("trim_height", 0.15), ("black_border", 0.125)]


@pytest.mark.parametrize(("name", "amount"), [*ALL_PERTURBATIONS, *TRIMS])
def test_a_perturbation_changes_an_image_always_in_the_same_way(name, amount):
    before = DISC.copy()
    changed = perturb(DISC, name, amount)
    assert (changed.dtype, changed.shape) == (np.uint8, DISC.shape)
    assert (before == DISC).all()
    assert (changed != DISC).any()
    assert (perturb(DISC, name, amount) == changed).all()


@pytest.mark.parametrize("name", NOTHING)
def test_what_changes_nothing(name):
    for image in (RAMP, DISC):
        assert (perturb(image, name, NOTHING[name]) == image).all()


@pytest.mark.parametrize("name", ["blur", "sharpen", "noise", "resample", "jpeg", "crop"])
def test_a_greater_amount_changes_more(name):
    slight, strong = PERTURBATIONS[name]
    less, more = (
        np.abs(perturb(DISC, name, amount).astype(int) - DISC).mean() for amount in (slight, strong)
    )
    assert 0 < less < more


def test_sharpness_changes_in_the_right_direction():
    for name in ("blur", "resample"):
        assert sharpness(perturb(DISC, name, PERTURBATIONS[name][0])) < sharpness(DISC)
    assert sharpness(perturb(DISC, "sharpen", 1.5)) > sharpness(DISC)


def test_gamma_and_contrast_follow_their_formulas():
    assert (perturb(RAMP, "gamma", 1.5) == np.round(255 * (RAMP / 255) ** 1.5)).all()
    mean = RAMP.mean()
    assert (perturb(RAMP, "contrast", 0.7) == np.round(mean + (RAMP - mean) * 0.7)).all()
    stronger = perturb(RAMP, "contrast", 1.3)
    assert (stronger.min(), stronger.max()) == (0, 255)  # what goes beyond black is black


def test_noise_has_its_size_and_is_each_images_own():
    noise = [
        perturb(np.full_like(RAMP, level), "noise", 8).astype(float) - level for level in (120, 128)
    ]
    assert [values.std() for values in noise] == pytest.approx([8, 8], rel=0.05)
    assert (noise[0] != noise[1]).any()


def test_a_crop_is_the_middle():
    middle = np.zeros((100, 100), np.uint8)
    middle[8:92, 8:92] = 255
    assert (perturb(middle, "crop", 0.08) > 200).all()
    assert (perturb(middle, "crop", 0.03)[:2] == 0).all()


def test_trimming_stretches_one_direction():
    """Four bars: without an eighth on each side the outer ones have half of their width."""
    bars = np.repeat([0, 80, 160, 240], 16)
    upright = np.tile(bars, (SIDE, 1)).astype(np.uint8)
    trimmed = perturb(upright, "trim_width", 0.125)
    assert trimmed[0, [2, 20, 43, 61]].tolist() == [0, 80, 160, 240]
    assert (trimmed == trimmed[0]).all()
    assert np.flatnonzero(trimmed[0] > 40)[0] == pytest.approx(SIDE / 6, abs=1)
    assert (perturb(upright, "trim_height", 0.125) == upright).all()
    assert (perturb(upright.T.copy(), "trim_height", 0.125) == trimmed.T).all()


def test_a_black_border_has_its_width():
    white = np.full((SIDE, SIDE), 255, np.uint8)
    inside = perturb(white, "black_border", 0.125)
    assert (inside[8:-8, 8:-8] == 255).all()
    assert inside.sum() == 255 * 48**2


def test_each_operation_has_a_test_of_what_changes_nothing():
    assert set(OPERATIONS) == {*NOTHING, "jpeg"}  # JPEG loses something at any quality


def test_the_images_of_a_split_are_changed_in_turn_and_kept(sample, own_cache):
    val = sample.decode(32, 0).split("val")
    changed = perturb_split(val, ALL_PERTURBATIONS)
    assert changed.rows is val.rows
    for place, image in enumerate(val.images):
        expected = perturb(image[..., 0], *ALL_PERTURBATIONS[place % len(ALL_PERTURBATIONS)])
        assert (changed.images[place, ..., 0] == expected).all()
    assert len({changed.digest, val.digest}) == 2
    [kept] = own_cache.glob("perturbed/*/pixels.npy")
    state = kept.stat()
    assert perturb_split(val, ALL_PERTURBATIONS).digest == changed.digest
    assert [path.stat() for path in own_cache.glob("perturbed/*/pixels.npy")] == [state]
    blur = (("blur", 0.01),)
    assert perturb_split(val, blur).digest != changed.digest
    assert (
        perturb_split(val, blur).images[1, ..., 0] == perturb(val.images[1, ..., 0], "blur", 0.01)
    ).all()
    assert (
        perturb_split(sample.decode(48, 0).split("val"), ALL_PERTURBATIONS).digest != changed.digest
    )
    assert len(list(own_cache.glob("perturbed/*"))) == 3
