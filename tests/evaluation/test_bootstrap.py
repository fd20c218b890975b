"""Samples of patients, and comparisons on them."""

import tracemalloc
import weakref

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn import metrics

from pneumo.evaluation import bootstrap
from pneumo.evaluation.intervals import auc_interval, paired_difference_interval
from tests.benchmarks.selection import simulate


def frame(patients, labels, probabilities) -> pd.DataFrame:
    paths = [f"test/{number}.png" for number in range(len(labels))]
    return pd.DataFrame(
        {"path": paths, "patient": patients, "label": labels, "probability": probabilities}
    )


def some(images_per_patient: int = 1, patients: int = 60) -> pd.DataFrame:
    """Make predictions with identical images for each patient and many equal probabilities."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, patients)
    scores = np.round(np.clip(labels * 0.3 + rng.uniform(0, 0.7, patients), 0, 1), 1)
    return frame(
        [f"p{number}" for number in range(patients)] * images_per_patient,
        np.tile(labels, images_per_patient),
        np.tile(scores, images_per_patient),
    )


def test_each_sample_is_scored_as_scikit_learn_does():
    predictions = some(2)
    drawn = bootstrap.resample_patients(predictions, draws=2 * bootstrap.BLOCK_SIZE + 1)
    labels, values = predictions["label"], predictions["probability"]
    expected = [metrics.roc_auc_score(labels, values, sample_weight=weights) for weights in drawn]
    assert bootstrap.bootstrap_auc(predictions, drawn) == pytest.approx(expected, abs=1e-12)


def test_patients_come_with_all_their_images_or_not_at_all():
    predictions = some(3)
    drawn = pd.DataFrame(bootstrap.resample_patients(predictions, draws=30).T)
    by_patient = drawn.groupby(predictions["patient"])
    assert (by_patient.nunique() == 1).all(axis=None)
    assert (by_patient.first().sum() == 60).all()  # as many as there are
    assert by_patient.first().max(axis=None) > 2


def test_samples_that_lack_a_class_are_left_out():
    predictions = frame(["a", "b", "c"], [0, 1, 1], [0.1, 0.8, 0.9])
    drawn = bootstrap.resample_patients(predictions, draws=200)
    assert 0 < len(drawn) < 200
    assert (drawn[:, 0] > 0).all()
    assert (drawn[:, 1:].sum(axis=1) > 0).all()


def test_samples_of_several_folds_have_the_mean_of_their_areas():
    predictions = some(2).assign(fold=lambda table: (table["patient"] > "p3").astype(str))
    drawn = bootstrap.resample_patients(predictions, draws=30)
    folds = [predictions["fold"] == fold for fold in ("False", "True")]
    expected = [
        np.mean(
            [
                metrics.roc_auc_score(
                    predictions["label"][fold],
                    predictions["probability"][fold],
                    sample_weight=weights[fold],
                )
                for fold in folds
            ]
        )
        for weights in drawn
    ]
    assert bootstrap.bootstrap_auc(predictions, drawn) == pytest.approx(expected, abs=1e-12)


def test_samples_that_lack_a_class_in_a_fold_are_left_out():
    predictions = frame([*"abcdef"], [0, 1, 1, 0, 0, 1], [0.1] * 6).assign(fold=[*"112212"])
    drawn = bootstrap.resample_patients(predictions, draws=500)
    assert 0 < len(drawn) < 500
    assert (drawn[:, 1] > 0).all()  # the only positive one of its fold
    assert (drawn[:, 3] > 0).all()
    assert (drawn[:, [0, 4]].sum(axis=1) > 0).all()


def test_blocks_of_samples_give_the_bands_of_all(monkeypatch):
    predictions = some(2)
    drawn = bootstrap.resample_patients(predictions, draws=100)
    found = {}
    for block in (7, 100):
        monkeypatch.setattr(bootstrap, "BLOCK_SIZE", block)
        bands = bootstrap.roc_band(predictions, drawn), bootstrap.precision_band(predictions, drawn)
        found[block] = np.stack(bands)
    assert np.array_equal(found[7], found[100])


def test_bands_of_a_single_sample_are_its_curves():
    predictions = some()
    labels, values = predictions["label"], predictions["probability"]
    once = np.ones((1, len(predictions)), int)
    false_positives, found, _ = metrics.roc_curve(labels, values, drop_intermediate=False)
    low, high = bootstrap.roc_band(predictions, once)
    assert low == pytest.approx(np.interp(bootstrap.CURVE_GRID, false_positives, found))
    assert np.array_equal(low, high)
    low, high = bootstrap.precision_band(predictions, once)
    for place in (10, 35, 100):  # at the highest threshold that finds that share
        cut = max(value for value in values if (values[labels == 1] >= value).mean() >= place / 100)
        assert low[place] == high[place] == labels[values >= cut].mean()


def test_the_same_model_twice_does_not_differ():
    same = bootstrap.compare_models(some(2), some(2).sample(frac=1, random_state=0), (0.5, 0.5))
    assert (same.auc_difference, same.low, same.high, same.sensitivity_difference) == (0, 0, 0, 0)
    assert (same.only_first_correct, same.only_second_correct) == (0, 0)
    assert -0.1 < same.sensitivity_low <= 0 <= same.sensitivity_high < 0.1


def test_what_all_samples_agree_on_shows_little_about_other_images():
    labels, within = [0] * 4 + [1] * 40, np.linspace(0, 0.3, 44)
    patients = [f"p{number}" for number in range(44)]
    first, second = (
        frame(patients, labels, np.where(labels, 0.9 - scores, 0.1 + scores / 2))
        for scores in (within, within[::-1])
    )
    found = bootstrap.compare_models(first, second, (0.5, 0.5))
    low, high = auc_interval(np.array(labels), np.array(labels), np.arange(44))
    assert found.auc_difference == 0
    assert (found.low, found.high) == pytest.approx((low - high, high - low))
    assert found.low < -0.2
    of_one_patient = [table.assign(patient=["n"] * 4 + patients[4:]) for table in (first, second)]
    found = bootstrap.compare_models(*of_one_patient, (0.5, 0.5))
    assert (found.low, found.high) == (-1, 1)
    found = bootstrap.compare_models(of_one_patient[0], of_one_patient[0], (0.5, 0.5))
    assert (found.low, found.high) == (0, 0)


def test_two_models_on_the_same_images():
    worse = some(2)
    better = worse.assign(probability=worse["probability"] * 0.6 + worse["label"] * 0.4)
    found = bootstrap.compare_models(worse, better, (0.5, 0.5))
    labels = worse["label"]
    aucs = [
        metrics.roc_auc_score(labels, predictions["probability"]) for predictions in (worse, better)
    ]
    assert found.auc_difference == pytest.approx(aucs[1] - aucs[0], abs=1e-12)
    assert 0 < found.low < found.auc_difference < found.high
    right = [(predictions["probability"] >= 0.5) == labels for predictions in (worse, better)]
    assert found.only_first_correct == (right[0] & ~right[1]).sum() == 0
    assert found.only_second_correct == (~right[0] & right[1]).sum() > 0
    mirrored = bootstrap.compare_models(better, worse, (0.5, 0.5))
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_the_difference_in_sensitivity_is_paired_and_by_patient():
    first = some(2)
    second = first.assign(probability=np.roll(first["probability"], 1))
    found = bootstrap.compare_models(
        first, second.sample(frac=1, random_state=0), (0.4, 0.6), draws=300
    )
    counts = []
    for patient in first["patient"].unique():
        own = first[(first["patient"] == patient) & (first["label"] == 1)].index
        at = (first["probability"][own] >= 0.4).sum(), (second["probability"][own] >= 0.6).sum()
        counts.append((*at, len(own)))
    bounds = paired_difference_interval(*np.array(counts).T)
    assert (found.sensitivity_low, found.sensitivity_high) == pytest.approx(bounds, abs=1e-12)
    sick = first["label"] == 1
    values = [
        (predictions["probability"][sick] >= at).mean()
        for predictions, at in ((first, 0.4), (second, 0.6))
    ]
    assert found.sensitivity_difference == pytest.approx(values[1] - values[0], abs=1e-12)
    assert found.sensitivity_low < found.sensitivity_difference < found.sensitivity_high


def test_models_are_only_compared_on_the_same_images():
    with pytest.raises(ValueError, match="the same images"):
        bootstrap.compare_models(some(2), some(1), (0.5, 0.5))
    with pytest.raises(ValueError, match="the same images"):
        bootstrap.compare_models(some(), some().assign(label=0), (0.5, 0.5))


def test_predictions_are_a_pair_if_paths_patients_and_labels_agree():
    table = some()
    assert bootstrap.is_paired(table, table[::-1].assign(probability=0.5))
    for column in ("path", "patient", "label"):
        other = table.assign(**{column: table[column].to_numpy()[::-1]})
        assert not bootstrap.is_paired(table, other)


def varied(count: int) -> list[pd.DataFrame]:
    """Make predictions of several models for the same images, which share most noise."""
    rng, like = np.random.default_rng(0), some(2)
    noise = rng.normal(0, 0.1, (count, len(like)))
    return [like.assign(probability=like["probability"] + row) for row in noise]


def test_the_bound_of_the_best_of_many():
    baseline, *trials = varied(5)
    others = [trials[0], *trials[2:]]
    found = bootstrap.bound_improvement(baseline, trials[1], others, draws=50)
    labels = baseline["label"]

    def differences(weights):
        first, *others = (
            metrics.roc_auc_score(labels, trial["probability"], sample_weight=weights)
            for trial in (baseline, *trials)
        )
        return np.subtract(others, first)

    # sorted by path, as all predictions are before patients are drawn
    order = np.argsort(baseline["path"].to_numpy(str), kind="stable")
    drawn = bootstrap.resample_patients(baseline.iloc[order], draws=50)[:, np.argsort(order)]
    whole = differences(None)
    excess = [(differences(weights) - whole).max() for weights in drawn]
    assert found.difference == pytest.approx(whole[1], abs=1e-12)
    assert found.low == pytest.approx(whole[1] - np.percentile(excess, 97.5), abs=1e-12)
    assert found.trials == 4


def test_the_bound_reads_one_trial_at_a_time():
    baseline, best, *others = varied(6)
    left_alive = []

    def read():
        for predictions in others:
            table = predictions.copy()
            handed = weakref.ref(table)
            yield table
            del table
            left_alive.append(handed() is not None)

    assert bootstrap.bound_improvement(baseline, best, read()).trials == 5
    assert left_alive == [False] * 4


def test_more_trials_lower_the_bound():
    baseline, best, *others = varied(12)
    lows = [
        bootstrap.bound_improvement(baseline, best, others[:count]).low
        for count in (0, 3, len(others))
    ]
    assert lows[0] > lows[1] > lows[2]
    shuffled = [
        predictions.sample(frac=1, random_state=1) for predictions in (baseline, best, *others)
    ]
    assert bootstrap.bound_improvement(*shuffled[:2], shuffled[2:]).low == lows[2]


def test_a_bound_needs_the_same_images():
    baseline, best, other = varied(3)
    with pytest.raises(ValueError, match="the same images"):
        bootstrap.bound_improvement(baseline, best, [other.iloc[1:]])


@pytest.mark.slow
def test_claims_of_simulated_studies():
    """The short form of `tests.benchmarks.selection`."""
    equal = {trials: simulate(trials, 0.0, studies=50, draws=100) for trials in (1, 20)}
    assert equal[20].interval > 0.1  # what the bound is for
    assert all(claims.bound <= 0.04 for claims in equal.values())
    better = simulate(20, 0.02, studies=10, draws=100)
    assert better.bound >= 0.2


def test_samples_need_little_memory():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 4000)
    table = frame(np.arange(4000) // 2, labels, labels + rng.normal(size=4000))
    tracemalloc.start()
    inverse = table.assign(probability=1 - table["probability"])
    bootstrap.compare_models(table, inverse, (0.5, 0.5))
    drawn = bootstrap.resample_patients(table)
    bootstrap.roc_band(table, drawn)
    bootstrap.precision_band(table, drawn)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * drawn.nbytes  # the samples, and some blocks of them


def of_model(seed: int, separation: float = 2.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    labels = np.repeat([1, 1, 1, 0], 60)
    logits = rng.normal(separation * (labels - 0.5), 1) * separation + np.log(3)
    patients = np.arange(len(labels)) // 2
    return pd.DataFrame({"patient": patients, "label": labels, "probability": expit(logits)})


def test_net_benefit_by_its_definition():
    predictions = of_model(0)
    curve = bootstrap.decision_curve(predictions, bootstrap.resample_patients(predictions))
    assert curve["threshold"].tolist() == pytest.approx([n / 100 for n in range(1, 100)])
    labels = predictions["label"]
    for row in curve.itertuples():
        odds = row.threshold / (1 - row.threshold)
        called = predictions["probability"] >= row.threshold
        found, false = (called & (labels == 1)).sum(), (called & (labels == 0)).sum()
        assert row.model == pytest.approx((found - odds * false) / len(labels))
        assert row.all == pytest.approx((180 - odds * 60) / 240)
        assert row.low <= row.model <= row.high
        assert row.gain_low < row.model - max(row.all, 0)


def test_net_benefit_at_another_prevalence_is_that_of_such_images():
    predictions = of_model(1)
    once = np.ones((2, len(predictions)), int)
    weighted = bootstrap.decision_curve(predictions, once, prevalence=0.25)
    is_negative = predictions["label"] == 0
    rare = pd.concat([predictions, *[predictions[is_negative]] * 8])  # 180 of 720
    expected = bootstrap.decision_curve(rare, np.ones((2, len(rare)), int))
    pd.testing.assert_frame_equal(weighted, expected)


def test_where_a_model_helps():
    predictions = of_model(2)
    curve = bootstrap.decision_curve(predictions, bootstrap.resample_patients(predictions))
    useful = [f"{at:.0%}" for at in curve.loc[curve["gain_low"] > 0, "threshold"]]
    assert 10 < len(useful) < 99
    sentence = bootstrap.describe_benefit(curve)
    assert sentence.startswith(f"At thresholds of {useful[0]} to ")
    assert f" to {useful[-1]} the model has a greater net benefit" in sentence
    chance = predictions.assign(probability=0.75)
    curve = bootstrap.decision_curve(chance, bootstrap.resample_patients(chance))
    assert bootstrap.describe_benefit(curve).startswith("At no threshold has the model ")
    gaps = pd.DataFrame({"threshold": [0.1, 0.11, 0.12, 0.5, 0.51], "gain_low": [1, 1, -1, 1, 1]})
    assert "At thresholds of 10% to 11% and 50% to 51% the" in bootstrap.describe_benefit(gaps)
