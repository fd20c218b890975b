"""The folds of cross-validation."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pneumo.data.dataset import Subset
from pneumo.data.schema import COLUMNS
from pneumo.data.split import assign_folds, assign_site_folds, split_validation
from pneumo.runtime.errors import UserError
from tests.support.features import few_images


def indexed(healthy: int, sick: int) -> pd.DataFrame:
    """Make an index with two images of each patient, and two test images."""
    rows = [
        (f"train/{label}/{label}p{number}-{image}", label, "", f"{label}p{number}", "train")
        for label, count in enumerate((healthy, sick))
        for number in range(count)
        for image in range(2)
    ]
    rows += [(f"test/{label}/t", label, "", f"t{label}", "test") for label in (0, 1)]
    table = pd.DataFrame(rows, columns=COLUMNS[:5])
    return split_validation(table.assign(**{COLUMNS[5]: table["path"]}))


@pytest.mark.parametrize("n_folds", [2, 3, 5, 10])
def test_each_patient_is_in_one_fold_and_classes_are_spread_evenly(n_folds):
    rows = indexed(healthy=13, sick=31)
    folds = pd.Series(assign_folds(rows, n_folds), index=rows.index)
    assert set(folds) == {-1, *range(n_folds)}
    assert rows["split"][folds == -1].unique().tolist() == ["test"]
    assert folds.groupby(rows["patient"]).nunique().max() == 1
    patients = rows["patient"].groupby([rows["label"], folds]).nunique()[lambda table: table > 0]
    for _, counts in patients.drop(-1, level=1).groupby("label"):
        assert len(counts) == n_folds
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(("healthy", "sick"), [(5, 6), (13, 31), (97, 100)])
def test_the_first_of_five_folds_is_the_validation_split(healthy, sick):
    rows = indexed(healthy, sick)
    assert np.array_equal(assign_folds(rows, 5) == 0, rows["split"] == "val")


def test_the_folds_follow_from_the_patients_alone():
    rows = indexed(13, 31)
    folds = pd.Series(assign_folds(rows, 3), index=rows.index)
    mixed = rows.sample(frac=1, random_state=1)
    assert pd.Series(assign_folds(mixed, 3), index=mixed.index).sort_index().equals(folds)


def test_patients_who_share_a_file_are_in_one_fold():
    rows = indexed(13, 31)
    folds = pd.Series(assign_folds(rows, 5), index=rows.index)
    one, other = folds.index[folds == 1][0], folds.index[folds == 4][0]
    assert rows.loc[one, "label"] == rows.loc[other, "label"]
    rows.loc[one, "sha256"] = rows.loc[other, "sha256"]
    folds = pd.Series(assign_folds(rows, 5), index=rows.index)
    of_both = rows["patient"].isin(rows.loc[[one, other], "patient"])
    assert of_both.sum() == 4
    assert folds[of_both].nunique() == 1


def test_more_folds_than_patients_are_refused():
    message = (
        "folds must be at most the number of patients of each class: got 4, but train/NORMAL "
        "contains 3 patients. Use fewer folds."
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        assign_folds(indexed(healthy=3, sick=9), 4)


def test_one_fold_is_the_validation_split(sample):
    images = few_images(sample)
    [fold] = images.folds(1)
    for part, name in ((fold.train, "train"), (fold.val, "val")):
        assert part.split.digest == images.split(name).digest
        assert part.indices.tolist() == list(range(len(images.split(name).rows)))
    assert images.validation(1).digest == images.split("val").digest


def test_each_image_validates_once_and_trains_all_other_folds(sample):
    images = few_images(sample)
    pool, folds = images.validation(3), images.folds(3)
    assert pool.rows["path"].tolist() == [
        path
        for path, split in images.dataset.rows[["path", "split"]].itertuples(index=False)
        if split != "test"
    ]
    everywhere = np.concatenate([fold.val.indices for fold in folds])
    assert sorted(everywhere) == list(range(len(pool.rows)))
    for fold in folds:
        assert fold.train.split.digest == fold.val.split.digest == pool.digest
        assert sorted([*fold.train.indices, *fold.val.indices]) == list(range(len(pool.rows)))
        patients = [set(pool.rows["patient"][part.indices]) for part in (fold.train, fold.val)]
        assert patients[0].isdisjoint(patients[1])
        assert set(fold.val.labels) == set(fold.train.labels) == {0, 1}


def test_a_subset_has_its_rows_of_the_split(sample):
    split = few_images(sample).split("train")
    subset = Subset(split, np.array([1, 4, 30]))
    assert subset.labels.tolist() == split.labels[[1, 4, 30]].tolist()
    assert np.array_equal(subset.images, split.images[[1, 4, 30]])
    values = np.arange(len(split.rows))
    assert subset.select(values).tolist() == [1, 4, 30]
    assert replace(subset, indices=values).select(values) is values


def test_a_fold_without_readable_images_of_a_class_is_refused(sample):
    images = few_images(sample)
    rows = images.dataset.rows
    lost = rows["path"][(assign_folds(rows, 3) == 2) & (rows["label"] == 0)]
    assert len(lost)
    damaged = replace(images, unreadable=dict.fromkeys(lost, "damaged"))
    message = rf"fold 2 must contain readable images of NORMAL: it has none \({len(lost)} images"
    with pytest.raises(UserError, match=f"^{message}"):
        damaged.folds(3)


def with_sites(names: str, healthy: int = 12, sick: int = 12) -> pd.DataFrame:
    """Make an index whose patients are at the sites in turn."""
    rows = indexed(healthy, sick)
    number = pd.factorize(rows["patient"])[0]
    return rows.assign(site=[names[count % len(names)] for count in number])


def test_each_fold_is_a_site():
    rows = with_sites("CAB")
    folds = assign_site_folds(rows, 3)
    is_test = (rows["split"] == "test").to_numpy()
    assert set(folds[is_test]) == {-1}
    expected = rows["site"].map({"A": 0, "B": 1, "C": 2}).to_numpy()
    assert np.array_equal(folds[~is_test], expected[~is_test])


@pytest.mark.parametrize(
    ("rows", "n_folds", "message"),
    [
        (with_sites("AB"), 3, "got 3, but the training images come from 2 (A, B). Change folds"),
        (with_sites("AB"), 1, "got 1, but the training images come from 2 (A, B)"),
        (with_sites("A"), 1, "at least 2: got 1, but the training images come from 1 (A)"),
        (indexed(9, 9).assign(site=""), 2, "36 of 36 have none. Add the column site"),
    ],
)
def test_sites_that_make_no_folds_are_refused(rows, n_folds, message):
    with pytest.raises(UserError, match=re.escape(message)):
        assign_site_folds(rows, n_folds)


def test_a_patient_at_two_sites_is_refused():
    rows = with_sites("AB")
    rows.loc[0, "site"] = "B"
    with pytest.raises(UserError, match="requires each patient to be at one site, .*: 1 were at"):
        assign_site_folds(rows, 2)
