"""The synthetic data set."""

import shutil

import pytest

from pneumo.data.index import build_index, digest
from pneumo.data.sources import sample


@pytest.mark.slow
def test_the_same_bytes_every_time(own_cache):
    first = digest(build_index(sample.make_sample()))
    shutil.rmtree(own_cache)
    assert digest(build_index(sample.make_sample())) == first == "f0aab909c9061c2d"


def test_counts(sample):
    rows = sample.rows
    assert sample.is_synthetic
    assert sample.unknown_patients == 0
    assert len(rows) == 546
    assert rows.groupby("subtype")["patient"].nunique().to_dict() == {
        "IM": 80,
        "NORMAL2-IM": 60,
        "bacteria": 120,
        "virus": 80,
    }
    assert rows["sha256"].is_unique


def test_brightness_alone_does_not_separate_the_classes(sample):
    from sklearn.metrics import roc_auc_score

    train = sample.decode(32, 0).split("train")
    assert roc_auc_score(train.labels, train.images.mean(axis=(1, 2, 3))) < 0.75
