"""Sites and devices that the label follows, and that images reveal."""

import numpy as np
import pandas as pd
import pytest

from pneumo.evaluation.dataset.shortcuts import (
    describe_attribute_leakage,
    has_enough_patients,
    measure_attribute_leakage,
)

N = 240
SIDE = 32
METADATA = ["bytes"]


def images_of(site, label, seed: int = 0) -> pd.DataFrame:
    """Return an index of one image per patient; site and label are functions of its number."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "patient": [f"p{number}" for number in range(N)],
            "site": [site(number) for number in range(N)],
            "device": "",
            "view": "PA",
            "label": [label(number) for number in range(N)],
            "bytes": rng.normal(size=N),
        }
    )


def noise(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, (N, SIDE, SIDE)).astype(np.uint8)


def marked(pixels: np.ndarray, is_marked: np.ndarray) -> np.ndarray:
    """Return images of which some have a bright corner, as from the letters of a hospital."""
    pixels = pixels.copy()
    pixels[is_marked, :8, :8] = 250
    return pixels


def test_a_site_that_the_label_follows_and_the_images_reveal():
    images = images_of(lambda number: "AB"[number % 2], lambda number: int(number % 10 < 5))
    images.loc[images["site"] == "A", "label"] = (np.arange(N // 2) % 10 < 8).astype(int)
    images.loc[images["site"] == "B", "label"] = (np.arange(N // 2) % 10 < 2).astype(int)
    pixels = marked(noise(), (images["site"] == "A").to_numpy())
    found = measure_attribute_leakage(images, pixels, METADATA)
    assert list(found) == ["site"]  # one view, and no known device
    assert found["site"]["groups"] == {
        "A": {"images": 120, "patients": 120, "prevalence": pytest.approx(0.8)},
        "B": {"images": 120, "patients": 120, "prevalence": pytest.approx(0.2)},
    }
    # In cross-validation somewhat less than 0.8, because scores of different folds are compared
    assert 0.7 < found["site"]["label"]["auc"] < 0.82
    assert found["site"]["pixels"]["auc"] > 0.99
    assert found["site"]["metadata"]["auc_low"] < 0.5
    [finding] = describe_attribute_leakage(found)
    assert finding.startswith(
        "The label follows the site: the prevalence of PNEUMONIA is 20% to 80%, and the site alone "
        "predicts it with an AUC of 0."
    )
    assert finding.endswith("so a model can use the site as a shortcut.")
    hidden = measure_attribute_leakage(images, noise(), METADATA)
    [finding] = describe_attribute_leakage(hidden)
    assert finding.endswith("The images do not clearly reveal the largest group, A.")


def test_a_site_that_the_label_does_not_follow():
    images = images_of(lambda number: "AB"[number % 2], lambda number: number // 2 % 2)
    pixels = marked(noise(), (images["site"] == "A").to_numpy())
    found = measure_attribute_leakage(images, pixels, METADATA)
    assert found["site"]["label"]["auc_low"] < 0.5
    assert list(describe_attribute_leakage(found)) == []


def test_the_file_size_may_reveal_the_site():
    images = images_of(lambda number: "AB"[number % 2], lambda number: number // 2 % 2)
    images["bytes"] += 10 * (images["site"] == "B")
    found = measure_attribute_leakage(images, noise(), METADATA)
    assert found["site"]["metadata"]["auc"] > 0.99
    assert found["site"]["pixels"]["auc_low"] < 0.5


def test_too_few_patients_give_no_result():
    images = images_of(lambda number: "B" if number < 4 else "A", lambda number: number // 2 % 2)
    found = measure_attribute_leakage(images, noise(), METADATA)["site"]
    assert found["metadata"] is None
    assert found["pixels"] is None
    assert found["label"] is not None
    assert found["groups"]["B"]["images"] == 4


def test_both_sides_of_a_target_need_five_patients():
    patients = pd.Series(["a", "b", "c", "d", "e"] * 4)
    target = np.repeat([0, 1], 10)
    assert has_enough_patients(target, patients)
    assert not has_enough_patients(target, patients.replace("e", "d"))
    assert not has_enough_patients(np.zeros(20, int), patients)


def test_prevalence_is_that_of_groups_of_enough_patients():
    images = images_of(lambda number: "AB"[number % 2], lambda number: int(number % 10 < 5))
    images.loc[images["site"] == "A", "label"] = (np.arange(N // 2) % 10 < 8).astype(int)
    images.loc[images["site"] == "B", "label"] = (np.arange(N // 2) % 10 < 2).astype(int)
    images.loc[0, "site"] = "C"
    found = measure_attribute_leakage(images, noise(), METADATA)
    assert set(found["site"]["groups"]) == {"A", "B", "C"}
    [finding] = describe_attribute_leakage(found)
    assert "the prevalence of PNEUMONIA is 20% to 80%" in finding.replace("79%", "80%")


def test_if_all_groups_are_small_their_prevalences_count():
    images = images_of(lambda number: "ABCD"[number % 4], lambda number: int(number % 4 < 2))
    images["patient"] = [f"p{number % 16}" for number in range(N)]  # four at each site
    found = measure_attribute_leakage(images, noise(), METADATA)
    assert [group["patients"] for group in found["site"]["groups"].values()] == [4] * 4
    [finding] = describe_attribute_leakage(found)
    assert "the prevalence of PNEUMONIA is 0% to 100%" in finding


def test_images_are_found_by_their_positions():
    images = images_of(lambda number: "AB"[number % 2], lambda number: number // 2 % 2)
    pixels = marked(noise(), (images["site"] == "A").to_numpy())
    part = images.iloc[20:200]
    assert measure_attribute_leakage(part, pixels, METADATA)["site"]["pixels"]["auc"] > 0.99
    elsewhere = np.concatenate([pixels[20:200], noise(2)[:60]])
    assert measure_attribute_leakage(part, elsewhere, METADATA)["site"]["pixels"]["auc"] < 0.99


def test_without_attributes_no_pixel_is_read():
    images = images_of(lambda _: "", lambda number: number % 2)
    assert measure_attribute_leakage(images, None, METADATA) == {}
