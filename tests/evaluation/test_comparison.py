"""Who may become champion, by the predictions alone."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from pneumo.evaluation import metrics
from pneumo.evaluation.comparison import (
    MAX_METRICS,
    MIN_METRICS,
    EvaluatedModel,
    Margins,
    _below_the_floors,
    best_champion,
    gate,
)
from tests.benchmarks.gate import DRIFT, decide, drifting, shares_of_equals
from tests.support.decisions import COMPARED

PATIENTS = 400
MARGINS = Margins(0.02, 0.05)


def held(separation: float, title: str = "m version 1", seed: int = 0, **changes) -> EvaluatedModel:
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
    return EvaluatedModel(title=title, **{**facts, **changes})


GOOD, BETTER, POOR = (
    held(3.0),
    held(4.5, "m version 2", seed=1),
    held(2.6, "m version 3", threshold=0.3, seed=2),
)


def test_the_first_champion_needs_the_floors_alone():
    decision = gate(GOOD, {}, synthetic_images=False, margins=MARGINS)
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
    decision = gate(held(3.0, **changes), {}, synthetic_images=False, margins=MARGINS)
    [only] = decision.reasons
    name = reason.partition(" ")[0]
    value = decision.figures[f"candidate_{name}"]
    assert only == reason.replace("0.{3}", f"{value:.3f}")
    assert value == held(3.0, **changes).metrics()[name]


def test_a_limit_itself_is_within_it_and_what_is_not_a_number_is_not():
    limits = MIN_METRICS | MAX_METRICS
    assert list(_below_the_floors(limits)) == []
    for name in limits:
        [reason] = _below_the_floors(limits | {name: np.nan})
        assert reason.startswith(f"{name} is nan, and ")


def test_probabilities_that_are_not_true():
    shrunk = GOOD.predictions.assign(probability=GOOD.predictions["probability"] / 4)
    untrue = held(3.0, predictions=shrunk, threshold=GOOD.threshold / 4)
    [reason] = gate(untrue, {}, synthetic_images=False, margins=MARGINS).reasons
    assert reason == f"ece is {untrue.metrics()['ece']:.3f}, and 0.15 is the most"


def test_a_better_one_and_an_equal_one_pass():
    for candidate in (BETTER, held(3.0, "m version 4")):
        decision = gate(candidate, {"": GOOD}, synthetic_images=False, margins=MARGINS)
        assert decision.promoted
        for name in ("auc", "sensitivity"):
            difference = candidate.metrics()[name] - GOOD.metrics()[name]
            assert decision.figures[f"{name}_difference"] == pytest.approx(difference, abs=1e-12)


def test_a_worse_one_is_refused_for_its_area_alone():
    decision = gate(POOR, {"": BETTER}, synthetic_images=False, margins=Margins(0.02, 1))
    low = decision.figures["auc_difference_low"]
    assert low < -0.02
    [reason] = decision.reasons
    assert reason.startswith(
        f"its AUC may be {-low:.4f} smaller than that of m version 2, and less than 0.02 is allowed"
    )


def test_the_margin_is_the_bound_itself():
    figures = gate(POOR, {"": BETTER}, synthetic_images=False, margins=Margins(1, 1)).figures
    bounds = [-figures[f"{name}_difference_low"] for name in ("auc", "sensitivity")]
    assert min(bounds) > 0
    above = [np.nextafter(bound, 1) for bound in bounds]
    for margins, promoted in (
        (above, True),
        ([bounds[0], above[1]], False),
        ([above[0], bounds[1]], False),
    ):
        decision = gate(POOR, {"": BETTER}, synthetic_images=False, margins=Margins(*margins))
        assert decision.promoted == promoted


def test_each_is_judged_at_its_own_threshold():
    other = held(3.0, threshold=0.5)
    figures = gate(GOOD, {"": other}, synthetic_images=False, margins=MARGINS).figures
    values, labels = GOOD.predictions["probability"], GOOD.predictions["label"]
    right = [(values >= it.threshold) == labels for it in (other, GOOD)]
    assert figures["champion_alone_right"] == (right[0] & ~right[1]).sum()
    assert figures["candidate_alone_right"] == (right[1] & ~right[0]).sum()
    for who, threshold in (("candidate", 0.4), ("champion", 0.5)):
        found = {key.removeprefix(f"{who}_"): it for key, it in figures.items() if who in key}
        found.pop("alone_right")
        assert found == metrics.compute_metrics(labels.to_numpy(), values.to_numpy(), threshold)


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
    follows = {} if champion is None else {"": held(3.0, synthetic=champion)}
    decision = gate(held(3.0, "m version 2", synthetic=candidate), follows, images, MARGINS)
    if refused:
        [reason] = decision.reasons
        assert refused in reason
    else:
        assert decision.promoted


def test_a_demo_cannot_follow_a_real_one_even_where_it_does_better():
    demo = held(4.5, synthetic=True, seed=1)
    decision = gate(demo, {"": GOOD}, synthetic_images=True, margins=MARGINS)
    assert len(decision.reasons) == 2


def test_other_images_are_no_comparison():
    fewer = held(3.0, predictions=GOOD.predictions[:-1])
    with pytest.raises(ValueError, match="for the same images"):
        gate(GOOD, {"": fewer}, synthetic_images=False, margins=MARGINS)


def with_sensitivity(found: int, title: str = "m version 1", of: int = 390) -> EvaluatedModel:
    """A model that finds that many of the sick images; all such models have the same area."""
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(2.2, 1.4, of), rng.normal(-2.2, 1.4, 234)])
    predictions = pd.DataFrame(
        {
            "path": [f"{number}.png" for number in range(of + 234)],
            "patient": [f"person{number}" for number in range(of + 234)],
            "label": [1] * of + [0] * 234,
            "probability": expit(scores),
        }
    )
    threshold = np.sort(predictions["probability"][:of])[of - found]
    return EvaluatedModel(predictions, threshold, title, synthetic=False)


def test_sensitivity_that_is_lost_at_the_threshold_is_noticed():
    champion, candidate = with_sensitivity(389), with_sensitivity(352, "m version 2")
    decision = gate(candidate, {"": champion}, synthetic_images=False, margins=MARGINS)
    figures = decision.figures
    assert figures["auc_difference_low"] == 0
    assert figures["sensitivity_difference"] == pytest.approx((352 - 389) / 390, abs=1e-12)
    low = figures["sensitivity_difference_low"]
    [reason] = decision.reasons
    assert reason.startswith(
        f"its sensitivity may be {-low:.4f} smaller than that of m version 1, and less than 0.05 is"
    )
    assert gate(candidate, {"": champion}, False, Margins(0.02, 0.15)).promoted


def test_patients_are_drawn_with_all_images_for_sensitivity_too():
    champion, candidate = with_sensitivity(385), with_sensitivity(370)
    of_three = [f"person{number // 3}" for number in range(624)]
    low = []
    for patients in (champion.predictions["patient"], of_three):
        pair = [replace_patients(it, patients) for it in (candidate, champion)]
        figures = gate(pair[0], {"": pair[1]}, False, MARGINS).figures
        low.append(figures["sensitivity_difference_low"])
    assert low[1] != low[0]


def replace_patients(it: EvaluatedModel, patients) -> EvaluatedModel:
    predictions = it.predictions.assign(patient=patients)
    return EvaluatedModel(predictions, it.threshold, it.title, it.synthetic)


def test_the_best_champion_so_far_is_a_reference_of_its_own():
    references = {"": POOR, "best_": BETTER}
    decision = gate(held(2.6, "m version 4", threshold=0.3, seed=3), references, False, MARGINS)
    champion = {f"champion_{name}" for name in GOOD.metrics()}
    candidate = {f"candidate_{name}" for name in GOOD.metrics()}
    best = {f"best_{name}" for name in champion | COMPARED}
    assert set(decision.figures) == candidate | champion | COMPARED | best
    for reason in decision.reasons:
        assert "m version 2, the best champion so far, " in reason
    alone = gate(held(2.6, "m version 4", threshold=0.3, seed=3), {"": BETTER}, False, MARGINS)
    for name in champion | COMPARED:
        assert decision.figures[f"best_{name}"] == alone.figures[name]


def test_the_best_so_far_has_the_greatest_area_then_the_greatest_sensitivity():
    assert best_champion({}, ()) == 0
    assert best_champion({3: POOR, 5: BETTER, 7: GOOD}, (3,)) == 5
    found = {number: with_sensitivity(number) for number in (370, 389, 380)}
    assert best_champion(found, (370,)) == 389
    twice = {1: GOOD, 2: BETTER, 3: BETTER}
    assert [best_champion(twice, preferred) for preferred in ((), (2,), (3,))] == [2, 2, 3]


@pytest.mark.slow
def test_fourteen_small_steps_down_are_not_all_promoted():
    first, *others = drifting()
    assert DRIFT[0] - DRIFT[-1] > 0.02
    for before, candidate in pairwise([first, *others]):
        assert decide([before], candidate, MARGINS).promoted  # each is good enough for the last
    champions = [first]
    for candidate in others:
        decision = decide(champions, candidate, MARGINS)
        if decision.promoted:
            champions.append(candidate)
        else:
            assert any("m version 1, the best champion so far" in it for it in decision.reasons)
    stopped = len(champions)
    assert champions == [first, *others][:stopped]
    assert 2 < stopped < 15
    areas = [it.metrics()["auc"] for it in (first, champions[-1])]
    assert areas[0] - areas[1] < 0.02


@pytest.mark.slow
def test_equally_good_models_pass_in_most_decisions():
    shares = shares_of_equals(champions=1, decisions=40)
    assert set(shares) == {0.02, 0.05}
    assert shares[0.02] < 0.5 < 0.75 < shares[0.05]
