"""The gate for champions, by the predictions alone."""

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
    _limit_reasons,
    best_champion,
    choose_references,
    gate,
)
from pneumo.inference.calibration import prevalence_shift, shift_probabilities
from tests.benchmarks.gate import DRIFT, decide, drifting, shares_of_equals
from tests.support.decisions import COMPARED

PATIENTS = 400
MARGINS = Margins(0.02, 0.05)


def held(separation: float, title: str = "m version 1", seed: int = 0, **changes) -> EvaluatedModel:
    """Make calibrated predictions of classes so many standard deviations apart."""
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
    facts = {"is_synthetic": False, "threshold": 0.4, "predictions": predictions}
    return EvaluatedModel(title=title, **{**facts, **changes})


GOOD, BETTER, POOR = (
    held(3.0),
    held(4.5, "m version 2", seed=1),
    held(2.6, "m version 3", threshold=0.3, seed=2),
)


def test_the_first_champion_needs_only_the_minimum_metrics():
    decision = gate(GOOD, {}, synthetic_images=False, margins=MARGINS)
    assert decision.is_promoted
    names = {*GOOD.metrics(), "adjusted_ece"}
    assert set(decision.metrics) == {f"candidate_{name}" for name in names}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"threshold": 0.9}, "sensitivity is 0.{3}, but the minimum is 0.90"),
        ({"threshold": 0.001}, "specificity is 0.{3}, but the minimum is 0.60"),
    ],
)
def test_each_minimum_metric(changes, reason):
    decision = gate(held(3.0, **changes), {}, synthetic_images=False, margins=MARGINS)
    [only] = decision.reasons
    name = reason.partition(" ")[0]
    value = decision.metrics[f"candidate_{name}"]
    assert only == reason.replace("0.{3}", f"{value:.3f}")
    assert value == held(3.0, **changes).metrics()[name]


def test_a_limit_itself_is_within_it_and_what_is_not_a_number_is_not():
    limits = MIN_METRICS | MAX_METRICS
    assert list(_limit_reasons(limits)) == []
    for name in limits:
        [reason] = _limit_reasons(limits | {name: np.nan})
        assert f"{name}) is nan, but " in reason or reason.startswith(f"{name} is nan, but ")


def test_miscalibrated_probabilities():
    shrunk = GOOD.predictions.assign(probability=GOOD.predictions["probability"] / 4)
    untrue = held(3.0, predictions=shrunk, threshold=GOOD.threshold / 4)
    [reason] = gate(untrue, {}, synthetic_images=False, margins=MARGINS).reasons
    assert reason == (
        "the calibration error at the prevalence of the images (adjusted_ece) is "
        f"{untrue.metrics()['ece']:.3f}, but the maximum is 0.15"
    )


def test_another_prevalence_is_no_miscalibration():
    shift = prevalence_shift(0.5, 0.05)
    probabilities = shift_probabilities(GOOD.predictions["probability"].to_numpy(), shift)
    rare = {
        "predictions": GOOD.predictions.assign(probability=probabilities),
        "threshold": float(shift_probabilities(GOOD.threshold, shift)),
    }
    decision = gate(held(3.0, prevalence=0.05, **rare), {}, False, MARGINS)
    assert decision.is_promoted
    assert decision.metrics["candidate_ece"] > 0.15
    assert decision.metrics["candidate_adjusted_ece"] == pytest.approx(GOOD.metrics()["ece"])
    assert not gate(held(3.0, **rare), {}, False, MARGINS).is_promoted  # for 50 % it is untrue


def test_a_better_one_and_an_equal_one_pass():
    for candidate in (BETTER, held(3.0, "m version 4")):
        decision = gate(candidate, {"": GOOD}, synthetic_images=False, margins=MARGINS)
        assert decision.is_promoted
        for name in ("auc", "sensitivity"):
            difference = candidate.metrics()[name] - GOOD.metrics()[name]
            assert decision.metrics[f"{name}_difference"] == pytest.approx(difference, abs=1e-12)


def test_a_worse_model_is_rejected_for_its_auc_alone():
    decision = gate(POOR, {"": BETTER}, synthetic_images=False, margins=Margins(0.02, 1))
    low = decision.metrics["auc_difference_low"]
    assert low < -0.02
    [reason] = decision.reasons
    assert reason.startswith(
        f"non-inferiority of its AUC to m version 2 is not shown: it may be {-low:.4f} lower, and "
        "the margin is 0.02 ("
    )


def test_the_margin_is_the_bound_itself():
    figures = gate(POOR, {"": BETTER}, synthetic_images=False, margins=Margins(1, 1)).metrics
    bounds = [-figures[f"{name}_difference_low"] for name in ("auc", "sensitivity")]
    assert min(bounds) > 0
    above = [np.nextafter(bound, 1) for bound in bounds]
    for margins, promoted in (
        (above, True),
        ([bounds[0], above[1]], False),
        ([above[0], bounds[1]], False),
    ):
        decision = gate(POOR, {"": BETTER}, synthetic_images=False, margins=Margins(*margins))
        assert decision.is_promoted == promoted


def test_each_model_is_evaluated_at_its_own_threshold():
    other = held(3.0, threshold=0.5)
    figures = gate(GOOD, {"": other}, synthetic_images=False, margins=MARGINS).metrics
    values, labels = GOOD.predictions["probability"], GOOD.predictions["label"]
    right = [(values >= model.threshold) == labels for model in (other, GOOD)]
    assert figures["champion_only_correct"] == (right[0] & ~right[1]).sum()
    assert figures["candidate_only_correct"] == (right[1] & ~right[0]).sum()
    for who, threshold in (("candidate", 0.4), ("champion", 0.5)):
        found = {key.removeprefix(f"{who}_"): value for key, value in figures.items() if who in key}
        found.pop("only_correct")
        found.pop("adjusted_ece", None)  # of the candidate alone
        assert found == metrics.compute_metrics(labels.to_numpy(), values.to_numpy(), threshold)


@pytest.mark.parametrize(
    ("candidate", "champion", "images", "refused"),
    [
        # each: trained on synthetic images, or None for no champion
        (True, False, False, "was trained on synthetic images, but m version 1 on real images"),
        (False, False, True, "synthetic images cannot decide"),
        (False, None, True, "synthetic images cannot decide"),
        (False, True, True, "synthetic images cannot decide"),
        (True, True, True, None),
        (True, None, True, None),
        (False, True, False, None),
    ],
)
def test_synthetic_images_replace_no_real_champion(candidate, champion, images, refused):
    follows = {} if champion is None else {"": held(3.0, is_synthetic=champion)}
    decision = gate(held(3.0, "m version 2", is_synthetic=candidate), follows, images, MARGINS)
    if refused:
        [reason] = decision.reasons
        assert refused in reason
    else:
        assert decision.is_promoted


def test_a_synthetic_model_cannot_replace_a_real_one_even_if_it_is_better():
    demo = held(4.5, is_synthetic=True, seed=1)
    decision = gate(demo, {"": GOOD}, synthetic_images=True, margins=MARGINS)
    assert len(decision.reasons) == 2


def test_other_images_are_no_comparison():
    fewer = held(3.0, predictions=GOOD.predictions[:-1])
    with pytest.raises(ValueError, match="for the same images"):
        gate(GOOD, {"": fewer}, synthetic_images=False, margins=MARGINS)


def with_sensitivity(found: int, title: str = "m version 1", of: int = 390) -> EvaluatedModel:
    """Make a model with that many true positives; all such models have the same AUC."""
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
    return EvaluatedModel(predictions, threshold, title, is_synthetic=False)


def test_sensitivity_that_is_lost_at_the_threshold_is_noticed():
    champion, candidate = with_sensitivity(389), with_sensitivity(352, "m version 2")
    decision = gate(candidate, {"": champion}, synthetic_images=False, margins=MARGINS)
    figures = decision.metrics
    assert figures["auc_difference_low"] == 0
    assert figures["sensitivity_difference"] == pytest.approx((352 - 389) / 390, abs=1e-12)
    low = figures["sensitivity_difference_low"]
    [reason] = decision.reasons
    assert reason.startswith(
        f"non-inferiority of its sensitivity to m version 1 is not shown: it may be {-low:.4f} "
        "lower, and the margin is 0.05 ("
    )
    assert gate(candidate, {"": champion}, False, Margins(0.02, 0.15)).is_promoted


def test_patients_are_drawn_with_all_images_for_sensitivity_too():
    champion, candidate = with_sensitivity(385), with_sensitivity(370)
    of_three = [f"person{number // 3}" for number in range(624)]
    low = []
    for patients in (champion.predictions["patient"], of_three):
        pair = [replace_patients(model, patients) for model in (candidate, champion)]
        figures = gate(pair[0], {"": pair[1]}, False, MARGINS).metrics
        low.append(figures["sensitivity_difference_low"])
    assert low[1] != low[0]


def replace_patients(it: EvaluatedModel, patients) -> EvaluatedModel:
    predictions = it.predictions.assign(patient=patients)
    return EvaluatedModel(predictions, it.threshold, it.title, it.is_synthetic)


def test_the_best_champion_so_far_is_a_reference_of_its_own():
    references = {"": POOR, "best_": BETTER}
    decision = gate(held(2.6, "m version 4", threshold=0.3, seed=3), references, False, MARGINS)
    champion = {f"champion_{name}" for name in GOOD.metrics()}
    candidate = {f"candidate_{name}" for name in {*GOOD.metrics(), "adjusted_ece"}}
    best = {f"best_{name}" for name in champion | COMPARED}
    assert set(decision.metrics) == candidate | champion | COMPARED | best
    for reason in decision.reasons:
        assert "m version 2 (the best champion so far) " in reason
    alone = gate(held(2.6, "m version 4", threshold=0.3, seed=3), {"": BETTER}, False, MARGINS)
    for name in champion | COMPARED:
        assert decision.metrics[f"best_{name}"] == alone.metrics[name]


def test_the_best_so_far_has_the_greatest_area_then_the_greatest_sensitivity():
    order = "auc", "sensitivity"
    assert best_champion({}, order) == 0
    assert best_champion({3: POOR, 5: BETTER, 7: GOOD}, order, [3]) == 5
    found = {number: with_sensitivity(number) for number in (370, 389, 380)}
    assert best_champion(found, order, [370]) == 389
    twice = {1: GOOD, 2: BETTER, 3: BETTER}
    assert [best_champion(twice, order, preferred) for preferred in ([], [2], [3])] == [2, 2, 3]


def more_specific(found: int, number: int) -> EvaluatedModel:
    """A model as `with_sensitivity` with fewer false alarms: its area grows with its number."""
    model = with_sensitivity(found, f"m version {number}")
    values = model.predictions["probability"].copy()
    normal = values[model.predictions["label"] == 0]
    values[normal.nlargest(number).index] *= 0.5
    predictions = model.predictions.assign(probability=values)
    return EvaluatedModel(predictions, model.threshold, model.title, is_synthetic=False)


def test_a_candidate_is_compared_with_up_to_three_champions():
    champions = {number: more_specific(389 - 4 * number, number) for number in (1, 2, 3, 4)}
    assert choose_references({}, 1, 0) == {}
    assert choose_references(champions, 5, 4) == {"": champions[4], "most_sensitive_": champions[1]}
    best = {"best_": champions[4], "most_sensitive_": champions[1]}
    assert choose_references(champions, 5, 2) == {"": champions[2], **best}
    assert choose_references(champions, 5, 0) == best
    assert choose_references(champions, 1, 2) == {"": champions[2], "best_": champions[4]}
    assert choose_references({1: champions[1]}, 5, 1) == {"": champions[1]}


@pytest.mark.slow
def test_sensitivity_that_is_lost_in_small_steps_is_noticed_while_the_area_grows():
    first, *others = (more_specific(393 - 4 * number, number) for number in range(1, 9))
    for before, candidate in pairwise([first, *others]):
        assert decide([before], candidate, MARGINS).is_promoted  # each is good enough for the last
        assert candidate.metrics()["auc"] > before.metrics()["auc"]
    champions = [first]
    for candidate in others:
        decision = decide(champions, candidate, MARGINS)
        if not decision.is_promoted:
            break
        champions.append(candidate)
    assert decision.reasons == [
        "its sensitivity is 0.0513 smaller than that of m version 1 (the most sensitive "
        "champion so far), and the margin is 0.05"
    ]
    lost = first.metrics()["sensitivity"] - champions[-1].metrics()["sensitivity"]
    assert 0.03 < lost < 0.05


@pytest.mark.slow
def test_fourteen_small_steps_down_are_not_all_promoted():
    first, *others = drifting()
    assert DRIFT[0] - DRIFT[-1] > 0.02
    for before, candidate in pairwise([first, *others]):
        assert decide([before], candidate, MARGINS).is_promoted  # each is good enough for the last
    champions = [first]
    for candidate in others:
        decision = decide(champions, candidate, MARGINS)
        if decision.is_promoted:
            champions.append(candidate)
        else:
            assert any(
                "m version 1 (the best champion so far)" in text for text in decision.reasons
            )
    stopped = len(champions)
    assert champions == [first, *others][:stopped]
    assert 2 < stopped < 15
    areas = [model.metrics()["auc"] for model in (first, champions[-1])]
    assert areas[0] - areas[1] < 0.02


@pytest.mark.slow
def test_equally_good_models_pass_in_most_decisions():
    shares = shares_of_equals(champions=1, decisions=40)
    assert set(shares) == {0.02, 0.05}
    assert shares[0.02] < 0.5 < 0.75 < shares[0.05]
