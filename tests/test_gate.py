"""Who may become champion, by the predictions alone."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from pneumo import evaluate
from pneumo.promote import Held, gate

PATIENTS = 400


def held(separation: float, title: str = "m version 1", seed: int = 0, **changes) -> Held:
    """Predictions of a calibrated model whose classes are that many standard deviations apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(PATIENTS) % 2
    scores = separation * (rng.normal(size=PATIENTS) + separation * (labels - 0.5))
    predictions = pd.DataFrame(
        {
            "path": [f"{number}.png" for number in range(PATIENTS)],
            "patient": [f"person{number}" for number in range(PATIENTS)],
            "label": labels,
            "probability": expit(scores),
        }
    )
    facts = {"synthetic": False, "threshold": 0.4, "predictions": predictions}
    return Held(title, **{**facts, **changes})


GOOD, BETTER, POOR = (
    held(3.0),
    held(4.5, "m version 2", seed=1),
    held(2.6, "m version 3", threshold=0.3, seed=2),
)


def test_the_first_champion_needs_the_floors_alone():
    decision = gate(GOOD, None, synthetic_images=False, margin=0.02)
    assert decision.promoted
    assert set(decision.figures) == {f"candidate_{name}" for name in GOOD.metrics()}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"threshold": 0.9}, "sensitivity is 0.{3}, and 0.90 is the least"),
        ({"threshold": 0.001}, "specificity is 0.{3}, and 0.60 is the least"),
    ],
)
def test_each_floor(changes, reason):
    decision = gate(held(3.0, **changes), None, synthetic_images=False, margin=0.02)
    [only] = decision.reasons
    name = reason.partition(" ")[0]
    value = decision.figures[f"candidate_{name}"]
    assert only == reason.replace("0.{3}", f"{value:.3f}")
    assert value == held(3.0, **changes).metrics()[name]


def test_probabilities_that_are_not_true():
    shrunk = GOOD.predictions.assign(probability=GOOD.predictions["probability"] / 4)
    untrue = held(3.0, predictions=shrunk, threshold=GOOD.threshold / 4)
    [reason] = gate(untrue, None, synthetic_images=False, margin=0.02).reasons
    assert reason == f"ece is {untrue.metrics()['ece']:.3f}, and 0.15 is the most"


def test_a_better_one_and_an_equal_one_pass():
    for candidate in (BETTER, held(3.0, "m version 4")):
        decision = gate(candidate, GOOD, synthetic_images=False, margin=0.02)
        assert decision.promoted
        difference = candidate.metrics()["auc"] - GOOD.metrics()["auc"]
        assert decision.figures["auc_difference"] == pytest.approx(difference, abs=1e-12)


def test_a_worse_one_is_refused_for_its_area_alone():
    decision = gate(POOR, BETTER, synthetic_images=False, margin=0.02)
    low = decision.figures["auc_difference_low"]
    assert low < -0.02
    [reason] = decision.reasons
    assert reason.startswith(
        f"its AUC may be {-low:.4f} smaller than that of m version 2, and less than 0.02 is allowed"
    )


def test_the_margin_is_the_bound_itself():
    low = gate(POOR, BETTER, synthetic_images=False, margin=1.0).figures["auc_difference_low"]
    assert not gate(POOR, BETTER, synthetic_images=False, margin=-low).promoted
    assert gate(POOR, BETTER, synthetic_images=False, margin=np.nextafter(-low, 1)).promoted


def test_each_is_judged_at_its_own_threshold():
    other = held(3.0, threshold=0.5)
    figures = gate(GOOD, other, synthetic_images=False, margin=0.02).figures
    values, labels = GOOD.predictions["probability"], GOOD.predictions["label"]
    right = [(values >= it.threshold) == labels for it in (other, GOOD)]
    assert figures["champion_alone_right"] == (right[0] & ~right[1]).sum()
    assert figures["candidate_alone_right"] == (right[1] & ~right[0]).sum()
    for who, threshold in (("candidate", 0.4), ("champion", 0.5)):
        found = {key.removeprefix(f"{who}_"): it for key, it in figures.items() if who in key}
        found.pop("alone_right")
        assert found == evaluate.score(labels.to_numpy(), values.to_numpy(), threshold)


@pytest.mark.parametrize(
    ("candidate", "champion", "images", "refused"),
    [
        # each: trained on synthetic images, or None for no champion
        (True, False, False, "was trained on synthetic images, m version 1 on real ones"),
        (False, False, True, "the images are synthetic and say nothing"),
        (False, None, True, "the images are synthetic and say nothing"),
        (False, True, True, "the images are synthetic and say nothing"),
        (True, True, True, None),
        (True, None, True, None),
        (False, True, False, None),
    ],
)
def test_synthetic_images_move_no_real_champion(candidate, champion, images, refused):
    follows = None if champion is None else held(3.0, synthetic=champion)
    decision = gate(held(3.0, "m version 2", synthetic=candidate), follows, images, 0.02)
    if refused:
        [reason] = decision.reasons
        assert refused in reason
    else:
        assert decision.promoted


def test_a_demo_cannot_follow_a_real_one_even_where_it_does_better():
    decision = gate(held(4.5, synthetic=True, seed=1), GOOD, synthetic_images=True, margin=0.02)
    assert len(decision.reasons) == 2


def test_other_images_are_no_comparison():
    fewer = held(3.0, predictions=GOOD.predictions[:-1])
    with pytest.raises(ValueError, match="for the same images"):
        gate(GOOD, fewer, synthetic_images=False, margin=0.02)
