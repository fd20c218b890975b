"""Intervals of single metrics, computed by hand and in simulations."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import betaincinv, expit, logit
from scipy.stats import binomtest, t
from sklearn import metrics

from pneumo.evaluation.intervals import (
    auc_interval,
    mean_auc_of_folds,
    metric_intervals,
    paired_difference_interval,
    proportion_interval,
)
from pneumo.evaluation.metrics import HEADLINE_METRICS
from tests.benchmarks import coverage


def frame(patients, labels, probabilities) -> pd.DataFrame:
    return pd.DataFrame({"patient": patients, "label": labels, "probability": probabilities})


def made(images_per_patient: int = 1, patients: int = 60) -> pd.DataFrame:
    """Make predictions with identical images for each patient and many equal probabilities."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, patients)
    scores = np.round(np.clip(labels * 0.3 + rng.uniform(0, 0.7, patients), 0, 1), 1)
    columns = (np.arange(patients), labels, scores)
    return frame(*(np.tile(column, images_per_patient) for column in columns))


@pytest.mark.parametrize("hits", [0, 1, 50, 119, 120])
def test_a_proportion_of_one_image_for_each_patient_is_exact(hits):
    right = np.arange(120) < hits
    expected = binomtest(hits, 120).proportion_ci(method="exact")
    found = proportion_interval(right.astype(int), np.ones(120, int))
    assert found == pytest.approx(tuple(expected), abs=1e-9)


def test_a_proportion_by_hand():
    """40 patients have two images each, and 20 of them one image that is not a hit."""
    hits, images = np.repeat([1, 2], 20), np.full(40, 2)
    low, high = proportion_interval(hits, images)
    # The ratio estimator has variance 40/39 * 40 * 0.5² / 80², the binomial one 0.75 * 0.25 / 79:
    # their ratio is below the design effect at the least ICC, 1.05. Then t of 79 and of 39 degrees
    size = 80 / 1.05 * (1.9904502 / 2.0226909) ** 2
    assert (low, high) == pytest.approx(clopper_pearson(0.75, size), abs=1e-6)
    patients_all_or_none = np.repeat([0, 2], [10, 30])
    found = proportion_interval(patients_all_or_none, images)
    # 40/39 * (30 * 0.5² + 10 * 1.5²) / 80² divided by 0.75 * 0.25 / 79
    size = 80 / (2 * 40 / 39 * 79 / 80) * (1.9904502 / 2.0226909) ** 2
    assert found == pytest.approx(clopper_pearson(0.75, size), abs=1e-6)


def clopper_pearson(value: float, size: float) -> tuple[float, float]:
    """Invert the binomial tails, which are those of beta for sizes that are not integers."""
    return (
        betaincinv(value * size, (1 - value) * size + 1, 0.025),
        betaincinv(value * size + 1, (1 - value) * size, 0.975),
    )


def test_all_hits_by_hand():
    """Without a miss the variance is 0, and the usual ICC replaces it."""
    images = np.full(40, 2)
    low, high = proportion_interval(images, images)
    size = 80 / 1.2 * (1.9904502 / 2.0226909) ** 2
    assert (low, high) == pytest.approx((0.025 ** (1 / size), 1), abs=1e-6)


def test_an_interval_has_width_if_all_are_correct():
    patients = np.repeat(np.arange(98), np.arange(98) % 3 + 1)
    labels = np.r_[np.ones(len(patients), int), np.zeros(98, int)]
    found = metric_intervals(
        frame(np.r_[patients, patients.max() + 1 + np.arange(98)], labels, labels.astype(float)),
        0.5,
    )
    for name in HEADLINE_METRICS:
        assert 0.9 < found[f"{name}_low"] < 0.99
        assert found[f"{name}_high"] == 1
    wrong = metric_intervals(frame(np.arange(20), [0, 1] * 10, [1.0, 0.0] * 10), 0.5)
    for name in HEADLINE_METRICS:
        assert wrong[f"{name}_low"] == 0
        assert 0.05 < wrong[f"{name}_high"] < 0.4


def test_one_miss_more_lowers_both_bounds():
    images = coverage.image_counts(np.random.default_rng(0), 195, 1)[0]
    images = images[images > 0]
    bounds = []
    for misses in range(12):
        hits = images - (np.arange(len(images)) < misses)
        bounds.append(np.array(proportion_interval(hits, images)))
    assert (np.diff(bounds, axis=0) < 0)[:, 0].all()
    assert (np.diff(bounds, axis=0) <= 0)[:, 1].all()


def test_one_pair_out_of_order_is_no_better_than_none():
    labels, patients = np.repeat([0, 1], 40), np.arange(80)
    separated = auc_interval(labels, labels + np.linspace(0, 0.5, 80), patients)
    scores = np.linspace(0, 1, 80)
    scores[39:41] = scores[40:38:-1]
    low, high = auc_interval(labels, scores, patients)
    assert 0.9 < low <= separated[0] < separated[1] == 1
    assert low < metrics.roc_auc_score(labels, scores) < high <= 1


def test_more_images_of_the_same_patients_are_hardly_more_evidence():
    one, ten = (metric_intervals(made(count), 0.5) for count in (1, 10))
    assert set(one) == {f"{name}_{end}" for name in HEADLINE_METRICS for end in ("low", "high")}
    # t of 59 degrees, by the patients, is a little more than that of 599 images
    assert ten == pytest.approx(one, abs=0.015)
    apart = made(10).assign(patient=np.arange(600))
    for name in HEADLINE_METRICS:
        width, narrow = (
            intervals[f"{name}_high"] - intervals[f"{name}_low"]
            for intervals in (ten, metric_intervals(apart, 0.5))
        )
        assert narrow < 0.5 * width


def test_patients_with_images_of_both_classes_are_counted_once():
    """A patient's own level raises both scores, which reduces the variance of AUC."""
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1], 300)
    patients = np.repeat(np.arange(300), 2)
    scores = labels + np.repeat(rng.normal(0, 3, 300), 2) + rng.normal(0, 0.1, 600)
    flipped = scores.copy()
    flipped[labels == 0] *= -1  # now it raises one and lowers the other
    paired, opposed = (np.ptp(auc_interval(labels, value, patients)) for value in (scores, flipped))
    apart = np.ptp(auc_interval(labels, flipped, np.arange(600)))
    assert opposed > 1.2 * apart
    assert paired < opposed


SCORES_OF = (
    np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),  # normal
    np.array([0.3, 0.5, 0.5, 0.6, 0.7, 0.7, 0.8, 0.9, 0.9]),
)


def in_order() -> np.ndarray:
    """For each normal and sick image, whether the sick one scores higher; one half if equal."""
    normal, sick = SCORES_OF
    return (sick > normal[:, np.newaxis]) + (sick == normal[:, np.newaxis]) / 2


def around(area: float, variance: float, degrees: int) -> tuple[float, float]:
    """The interval that is symmetric for the logit of the area."""
    margin = t.ppf(0.975, degrees) * np.sqrt(variance) / (area * (1 - area))
    return expit(logit(area) - margin), expit(logit(area) + margin)


def interval_of(patients) -> tuple[float, float]:
    return auc_interval(np.repeat([0, 1], [6, 9]), np.concatenate(SCORES_OF), np.array(patients))


def test_an_area_of_one_image_for_each_patient_is_delongs():
    pairs = in_order()
    variance = pairs.mean(axis=1).var(ddof=1) / 6 + pairs.mean(axis=0).var(ddof=1) / 9
    expected = around(pairs.mean(), variance, 5)  # six normal patients
    assert interval_of(range(15)) == pytest.approx(expected, abs=1e-12)


def test_an_area_by_hand():
    """Patients 0 and 1 have images of both classes, which are on the wrong side in both."""
    pairs = in_order()
    normal, sick = (pairs.mean(axis=axis) - pairs.mean() for axis in (1, 0))
    patients = [2, 3, 4, 5, 0, 1, 0, 1, 1, 6, 7, 8, 9, 10, 10]
    of_normal = [normal[4], normal[5], *normal[:4], 0, 0, 0, 0, 0]
    of_sick = [sick[0], sick[1] + sick[2], 0, 0, 0, 0, *sick[3:7], sick[7] + sick[8]]
    # 6 of these patients have normal images and 7 have sick ones
    terms = np.sqrt(6 / 5) * np.array(of_normal) / 6 + np.sqrt(7 / 6) * np.array(of_sick) / 9
    expected = around(pairs.mean(), (terms**2).sum(), 5)
    assert interval_of(patients) == pytest.approx(expected, abs=1e-12)


def test_an_area_is_as_uncertain_as_the_usual_icc_says_at_least():
    """Each patient has one image that scores high and one that scores low."""
    pairs = in_order()
    patients = [0, 1, 2, 2, 1, 0, 3, 4, 5, 6, 7, 6, 5, 4, 3]
    effects = 1 + 0.2, 1 + ((4 * 2**2 + 1) / 9 - 1) * 0.2
    terms = pairs.mean(axis=1).var(ddof=1) / 6, pairs.mean(axis=0).var(ddof=1) / 9
    expected = around(pairs.mean(), np.dot(effects, terms), 2)
    assert interval_of(patients) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(60))
def test_bounds_are_ordered_around_the_value(seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(2, 30)
    labels = rng.permutation(np.r_[0, 1, rng.integers(0, 2, images - 2)])
    scores = np.round(rng.uniform(size=images), rng.integers(0, 3))
    if seed % 5 == 0:
        scores = np.clip(labels + rng.normal(0, 0.2, images), 0, 1)
    patients = rng.integers(0, rng.integers(1, images + 1), images).astype(str)
    found = metric_intervals(frame(patients, labels, scores), 0.5)
    right = (scores >= 0.5) == labels
    values = {
        "auc": metrics.roc_auc_score(labels, scores),
        "sensitivity": right[labels == 1].mean(),
        "specificity": right[labels == 0].mean(),
        "accuracy": right.mean(),
    }
    for name, value in values.items():
        low, high = found[f"{name}_low"], found[f"{name}_high"]
        assert 0 <= low <= value + 1e-12
        assert value - 1e-12 <= high <= 1


def test_the_interval_of_a_mean_over_folds_adds_independent_errors():
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 2
    probabilities = expit(labels + rng.normal(size=90))
    table = pd.DataFrame({"patient": np.arange(90) // 2 * 2 + labels, "label": labels})
    table = table.assign(probability=probabilities, fold=[*"abc"] * 30)
    aucs, bounds = [], []
    for fold in "abc":
        rows = table[table["fold"] == fold]
        own = rows["label"].to_numpy(), rows["probability"].to_numpy()
        aucs.append(metrics.roc_auc_score(*own))
        bounds.append(auc_interval(*own, pd.factorize(rows["patient"])[0]))
    errors = np.abs(np.array(bounds).T - aucs)
    mean, low, high = mean_auc_of_folds(table)
    assert mean == pytest.approx(np.mean(aucs))
    assert low == pytest.approx(mean - np.sqrt((errors[0] ** 2).sum()) / 3)
    assert high == pytest.approx(mean + np.sqrt((errors[1] ** 2).sum()) / 3)
    stored = metric_intervals(table, 0.5)
    assert (stored["auc_low"], stored["auc_high"]) == (low, high)
    whole = auc_interval(labels, probabilities, pd.factorize(table["patient"])[0])
    assert mean_auc_of_folds(table.assign(fold="all"))[1:] == pytest.approx(whole)


def test_a_single_patient_gives_an_uninformative_interval():
    assert proportion_interval(np.array([5]), np.array([5])) == (0, 1)
    assert auc_interval(np.array([0, 0, 1]), np.array([0.1, 0.2, 0.9]), np.arange(3)) == (
        0,
        1,
    )


def test_a_paired_difference_by_hand():
    first, second = np.repeat([1, 1, 0, 0], [80, 6, 2, 12]), np.repeat([1, 0, 1, 0], [80, 6, 2, 12])
    low, high = paired_difference_interval(first, second, np.ones(100, int))
    ends = [np.array(binomtest(hits, 100).proportion_ci(method="exact")) for hits in (86, 82)]
    below, above = (ends[0] - 0.86, ends[1] - 0.82)
    correlation = np.corrcoef(first, second)[0, 1]
    expected = [
        np.sqrt(one**2 - 2 * correlation * abs(one * two) + two**2)
        for one, two in ((below[1], above[0]), (below[0], above[1]))
    ]
    assert (low, high) == pytest.approx((-0.04 - expected[0], -0.04 + expected[1]), abs=1e-9)
    mirrored = paired_difference_interval(second, first, np.ones(100, int))
    assert mirrored == pytest.approx((-high, -low), abs=1e-12)


def test_a_paired_difference_of_patients_with_several_images_by_hand():
    images = np.repeat([1, 2, 5], 20)
    first = images - (np.arange(60) % 7 == 0)
    second = images - (np.arange(60) % 5 == 0)
    found = [hits.sum() / images.sum() for hits in (first, second)]
    low, high = (np.array(proportion_interval(it, images)) for it in (first, second))
    one, two = (hits - value * images for hits, value in zip((first, second), found, strict=True))
    correlation = one @ two / np.sqrt((one @ one) * (two @ two))
    below, above = np.abs(low - found[0]), np.abs(high - found[1])
    expected = [
        np.sqrt(a**2 - 2 * correlation * a * b + b**2)
        for a, b in ((below[1], above[0]), (below[0], above[1]))
    ]
    difference = found[1] - found[0]
    bounds = (difference - expected[0], difference + expected[1])
    assert paired_difference_interval(first, second, images) == pytest.approx(bounds, abs=1e-12)


@pytest.mark.parametrize(("patients", "least"), [(20, -0.25), (195, -0.03)])
def test_two_models_that_find_all_may_differ(patients, least):
    every = np.ones(patients, int)
    low, high = paired_difference_interval(every, every, every)
    assert least < low < least / 2
    assert high == pytest.approx(-low)


def test_intervals_cover_the_true_proportion(monkeypatch):
    """The short form of `tests.benchmarks.coverage`."""
    monkeypatch.setattr(coverage, "SENSITIVITIES", np.array([0.9, 0.96, 0.99, 0.995, 0.999]))
    found = coverage.of_proportions(0.2, 195, sets=2000, old_sets=100)
    assert found["new"].min() >= 0.93
    assert 0.94 <= found["new"].mean() <= 0.985
    assert found["old"].mean() < 0.85


@pytest.mark.slow
def test_intervals_cover_the_true_auc(monkeypatch):
    """The short form of `tests.benchmarks.coverage`."""
    monkeypatch.setattr(coverage, "AUCS", np.array([0.95, 0.995]))
    found = coverage.of_auc(0.3, (60, 60), sets=400, old_sets=150)
    assert found["new"].min() >= 0.93
    assert found["old"].min() < 0.92
