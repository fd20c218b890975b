"""AUC of a model without the center, or without the border, of the images."""

from functools import partial

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers
from sklearn.metrics import roc_auc_score

from pneumo.evaluation import shortcuts
from pneumo.inference.logits import predict_proba

SIDE, EDGE, PATIENTS = 32, 4, 200  # an eighth of the side


def looking(where: np.ndarray) -> keras.Model:
    """Build a model of the mean pixel in some places."""
    pixels = keras.Input((SIDE, SIDE, 1), dtype="uint8")
    logit = layers.Dense(1)
    model = keras.Model(pixels, logit(layers.Flatten()(layers.Rescaling(1.0)(pixels))))
    logit.set_weights([(0.1 * where / where.sum()).reshape(-1, 1), np.array([-12.0])])
    return model


CENTRE = np.zeros((SIDE, SIDE))
CENTRE[EDGE:-EDGE, EDGE:-EDGE] = 1


@pytest.fixture(scope="module")
def cohort():
    """Make images that are brighter, at random strength in each place, for pneumonia."""
    rng = np.random.default_rng(0)
    labels = np.arange(PATIENTS) % 2
    parts = [120 + 20 * (labels + rng.normal(0, 0.5, PATIENTS)) for _ in range(2)]
    centre, border = (part[:, None, None] for part in parts)
    images = np.where(CENTRE, centre, border).astype(np.uint8)[..., np.newaxis]
    table = pd.DataFrame(
        {
            "path": [f"{number}.png" for number in range(PATIENTS)],
            "patient": [f"person{number}" for number in range(PATIENTS)],
            "label": labels,
        }
    )
    return images, table


def test_the_occluded_regions():
    images = np.full((2, SIDE, SIDE, 1), 7, np.uint8)
    found = dict(shortcuts.occlude_regions(images))
    assert list(found) == ["centre", "border"]
    assert (found["centre"][0, ..., 0] == 7 * (1 - CENTRE)).all()
    assert (found["border"][1, ..., 0] == 7 * CENTRE).all()
    assert found["centre"].dtype == np.uint8
    assert (images == 7).all()


def checked(cohort, where: np.ndarray):
    images, table = cohort
    model = looking(where)
    whole = table.assign(probability=predict_proba(model, images))
    return shortcuts.occlusion_auc(partial(predict_proba, model), images, whole), whole


def test_a_model_of_the_centre_needs_it(cohort):
    found, whole = checked(cohort, CENTRE)
    # without the centre all images are the same to it
    assert found["centre"] | {"difference": 0} == {
        **{"auc": 0.5, "auc_low": 0.5, "auc_high": 0.5},
        **{"difference": 0, "difference_low": pytest.approx(-0.42, abs=0.1)},
        "difference_high": pytest.approx(-0.42, abs=0.1),
    }
    auc = roc_auc_score(whole["label"], whole["probability"])
    assert found["centre"]["difference"] == pytest.approx(0.5 - auc)
    assert found["border"]["auc"] == pytest.approx(auc)
    assert found["border"]["difference"] == found["border"]["difference_low"] == 0
    assert not shortcuts.differs_from_chance(found["centre"])
    words = shortcuts.describe_occlusion(found)
    assert words["centre"] == (
        "With the centre black the AUC is 0.500 (0.500–0.500). Without the centre it cannot "
        "separate the classes, as it should be."
    )
    assert "whole image is +0.000 (+0.000 to +0.000). It hardly needs the border" in words["border"]


def test_a_model_that_uses_the_border_is_detected(cohort):
    found, whole = checked(cohort, 1 - CENTRE)
    auc = roc_auc_score(whole["label"], whole["probability"])
    assert found["centre"]["auc"] == pytest.approx(auc)
    assert found["border"]["auc"] == 0.5
    assert shortcuts.differs_from_chance(found["centre"])
    words = shortcuts.describe_occlusion(found)
    assert "The border alone separates the classes." in words["centre"]
    assert words["border"].endswith("It leans on the border.")


@pytest.mark.parametrize(
    ("low", "high", "leans"), [(-0.05, 0.01, False), (-0.05, -0.01, True), (0.01, 0.02, False)]
)
def test_use_of_the_border_is_claimed_only_if_the_interval_excludes_0(low, high, leans):
    values = {"auc": 0.7, "auc_low": 0.4, "auc_high": 0.8, "difference": (low + high) / 2}
    found = values | {"difference_low": low, "difference_high": high}
    words = shortcuts.describe_occlusion({"centre": found, "border": found})
    assert words["border"].endswith("It leans on the border.") == leans
    assert "cannot separate the classes" in words["centre"]


def test_a_model_of_the_whole_image_needs_both_regions(cohort):
    images, table = cohort
    found, _ = checked(cohort, np.ones((SIDE, SIDE)))
    black = images.copy()
    black[:, EDGE:-EDGE, EDGE:-EDGE] = 0
    left = predict_proba(looking(np.ones((SIDE, SIDE))), black)
    assert found["centre"]["auc"] == pytest.approx(roc_auc_score(table["label"], left))
    assert found["centre"]["difference_high"] < 0
    assert found["border"]["difference_high"] < 0
