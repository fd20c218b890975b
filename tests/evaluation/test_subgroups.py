"""Metrics of kinds of images, and of groups of patients."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn import metrics

from pneumo.data.schema import ATTRIBUTES
from pneumo.evaluation.intervals import metric_intervals
from pneumo.evaluation.subgroups import (
    age_band,
    describe_groups,
    group_metrics,
    subtype_metrics,
)


def predictions() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    kinds = np.array(["IM", "NORMAL2-IM", "bacteria", "virus", ""])[rng.integers(0, 5, 300)]
    labels = np.where(kinds == "", rng.integers(0, 2, 300), np.isin(kinds, ["bacteria", "virus"]))
    return pd.DataFrame(
        {
            "path": [f"{number}.png" for number in range(300)],
            "patient": [f"p{number // 2}" for number in range(300)],
            "subtype": kinds,
            "label": labels.astype(int),
            "probability": np.clip(labels * 0.3 + rng.uniform(0, 0.7, 300), 0, 1),
        }
    )


def test_subtypes():
    table = predictions()
    found = subtype_metrics(table, 0.5)
    assert set(found) == {
        "NORMAL/IM",
        "NORMAL/NORMAL2-IM",
        "PNEUMONIA/bacteria",
        "PNEUMONIA/virus",
    }
    viral = table[table["subtype"] == "virus"]
    against = pd.concat([viral, table[table["label"] == 0]])
    bounds = metric_intervals(against, 0.5)
    assert found["PNEUMONIA/virus"] == pytest.approx(
        {
            "images": len(viral),
            "patients": viral["patient"].nunique(),
            "sensitivity": (viral["probability"] >= 0.5).mean(),
            "auc": metrics.roc_auc_score(against["label"], against["probability"]),
            **{name: bounds[name] for name in bounds if name.startswith(("sens", "auc"))},
        },
        abs=1e-12,
    )
    series = table[table["subtype"] == "NORMAL2-IM"]
    assert found["NORMAL/NORMAL2-IM"]["specificity"] == (series["probability"] < 0.5).mean()
    assert "sensitivity" not in found["NORMAL/NORMAL2-IM"]


def attributes(count: int, **columns) -> pd.DataFrame:
    """Return an index's attributes; a column is a function of the row's number."""
    return pd.DataFrame(
        {
            name: [columns[name](number) if name in columns else "" for number in range(count)]
            for name in ATTRIBUTES
        }
    )


def scores(count: int, seed: int = 0, gap: float = 1.5) -> pd.DataFrame:
    """Return predictions for one image of each patient."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    logits = rng.normal(gap * labels, 1)
    return pd.DataFrame(
        {
            "patient": [f"p{number}" for number in range(count)],
            "label": labels,
            "probability": 1 / (1 + np.exp(-logits)),
        }
    )


def test_groups():
    table = scores(200)
    is_old = np.arange(200) // 10 % 2 == 1
    rows = attributes(
        200,
        age=lambda number: "7" if is_old[number] else "0.5",
        sex=lambda _: "M",
        site=lambda number: "" if number < 100 else "AB"[number // 2 % 2],
    )
    found = group_metrics(rows, table, 0.5)
    assert {name: list(groups) for name, groups in found.items()} == {
        "age": ["under 1", "6 to 12"],
        "site": ["A", "B"],
    }
    old, others = table[is_old], table[~is_old]
    values, bounds = found["age"]["6 to 12"], metric_intervals(old, 0.5)
    of_others = metric_intervals(others, 0.5)
    areas = [metrics.roc_auc_score(part["label"], part["probability"]) for part in (old, others)]
    positive = old[old["label"] == 1]["probability"]
    low = math.hypot(areas[0] - bounds["auc_low"], of_others["auc_high"] - areas[1])
    high = math.hypot(bounds["auc_high"] - areas[0], areas[1] - of_others["auc_low"])
    difference = areas[0] - areas[1]
    assert values == pytest.approx(
        {
            **{"images": 100, "patients": 100, "positive": 50, "auc": areas[0]},
            "sensitivity": (positive >= 0.5).mean(),
            "specificity": (old[old["label"] == 0]["probability"] < 0.5).mean(),
            **{name: bounds[name] for name in bounds if not name.startswith("acc")},
            "difference": difference,
            "difference_low": difference - low,
            "difference_high": difference + high,
            "detectable": 2.8015 * (low + high) / (2 * 1.95996),
        },
        abs=1e-4,
    )
    in_a = table[100:][np.arange(100, 200) // 2 % 2 == 0]
    assert found["site"]["A"]["images"] == len(in_a) == 50
    # An image without a site is in no group, and in none to compare with
    of_b = found["site"]["B"]
    assert found["site"]["A"]["difference"] == pytest.approx(-of_b["difference"])


def test_groups_too_small_for_an_interval_are_counted():
    table = scores(40)
    rows = attributes(40, sex=lambda number: "F" if number < 3 else "M")
    found = group_metrics(rows, table, 0.5)["sex"]
    assert found["F"] == {"images": 3, "patients": 3, "positive": 1}
    assert "auc" in found["M"]
    assert "difference" not in found["M"]


def test_the_largest_groups_alone_are_shown():
    rows = attributes(400, site=lambda number: f"{min(number // 20, 14):02}")
    found = group_metrics(rows, scores(400), 0.5)["site"]
    assert len(found) == 10
    assert found["14"]["images"] == 120
    assert list(found) == sorted(found)


@pytest.mark.parametrize(
    ("age", "band"),
    [
        *[("", ""), ("0", "under 1"), ("0.99", "under 1"), ("1", "1 to 5")],
        *[("5.9", "1 to 5"), ("6", "6 to 12"), ("17.5", "13 to 17")],
        *[("18", "18 to 64"), ("90", "65 and above")],
    ],
)
def test_bands_of_age(age, band):
    assert age_band(age) == band


def test_a_worse_group_is_found_and_equal_ones_are_not():
    table = pd.concat([scores(300, 1, gap=2.5), scores(300, 2, gap=0.5)], ignore_index=True)
    table["patient"] = [f"p{number}" for number in range(600)]
    rows = attributes(600, site=lambda number: "A" if number < 300 else "B")
    [finding] = describe_groups(group_metrics(rows, table, 0.5))
    assert finding.startswith("AUC is lower in the group site = B: 0.6")
    assert finding.endswith("Of the 2 groups that were compared, one in 40 looks lower by chance.")
    mixed = attributes(600, site=lambda number: "AB"[number // 2 % 2])
    assert list(describe_groups(group_metrics(mixed, table, 0.5))) == []


def test_a_detectable_difference_is_detected_as_often_as_it_says():
    rows = attributes(400, site=lambda number: "AB"[number // 2 % 2])
    typical = np.mean(
        [
            group_metrics(rows, scores(400, seed, gap=1.2), 0.5)["site"]["A"]["detectable"]
            for seed in range(20)
        ]
    )
    # AUC of normal scores with a gap: the gap of group A that makes the typical difference
    base = norm.cdf(1.2 / math.sqrt(2))
    gap = math.sqrt(2) * norm.ppf(base - typical)
    in_a = np.arange(400) // 2 % 2 == 0
    found = 0
    for seed in range(100):
        table = scores(400, 1_000 + seed, gap=1.2)
        table.loc[in_a, "probability"] = scores(400, 5_000 + seed, gap=gap)["probability"][in_a]
        values = group_metrics(rows, table, 0.5)["site"]["A"]
        found += values["difference_high"] < 0
    # Somewhat less than 80, because an interval becomes wider as its AUC becomes smaller
    assert 60 < found < 85
