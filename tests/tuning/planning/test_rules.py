"""Rules of a plan: which fields they fix, for which data, machines and budgets."""

from dataclasses import replace

import pytest

from pneumo.experiment import load_experiment
from pneumo.tuning.planning.fingerprint import DatasetFingerprint, Fingerprint, TrainingSpeed
from pneumo.tuning.planning.rules import (
    BACKBONE_FIELDS,
    RULES,
    add_backbone_fields,
    apply_rules,
)

BASE = load_experiment("auto").base
DATASET = DatasetFingerprint(
    images={"train": 943, "val": 229, "test": 312},
    patients=800,
    prevalence=0.74,
    duplicates=0,
    side=900.0,
    aspect_ratio=1.4,
    metadata_auc=0.9,
    decoding_seconds=0.001,
    can_fold=True,
)
# About two cores: an epoch of 943 images takes 5.8 s at 96 px, 8.8 s at 128 px and 13 s at 160 px
SPEED = TrainingSpeed(start=10.0, per_image=0.002, per_pixel=4.5e-7)
MINUTE, HOUR = 60.0, 3_600.0
FINGERPRINT = Fingerprint(DATASET, SPEED, 9 * MINUTE, 1 * MINUTE, 1.0, "")
MANY = replace(DATASET, images={"train": 40_000, "val": 10_000, "test": 5_000})
HEAD_ONLY = {
    **{"unfreeze_depth": "0", "feature_cache": "on", "augment_strength": "0.0"},
    **{"max_crop_fraction": "0.0", "sharpness_jitter": "0.0"},
    **{"horizontal_flip": "off", "flip_tta": "off"},
}


def choose(fingerprint=FINGERPRINT, fixed=None):
    fixed = fixed or {}
    base = BASE.override(add_backbone_fields(fixed)).to_params()
    fields, choices = apply_rules(fingerprint, fixed, base)
    BASE.override(fields)  # they are valid together
    return fields, {choice.topic: choice for choice in choices}


def schedule(fingerprint, fixed=None):
    fields, _ = choose(fingerprint, fixed)
    return tuple(int(fields[name]) for name in ("image_size", "epochs", "folds"))


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (2 * MINUTE, (96, 4, 1)),
        (5 * MINUTE, (96, 8, 1)),
        (9 * MINUTE, (128, 8, 1)),
        (1 * HOUR, (128, 8, 1)),
        (8 * HOUR, (160, 16, 1)),
        (48 * HOUR, (160, 16, 5)),
    ],
)
def test_more_time_means_larger_images_then_longer_fits_then_folds(seconds, expected):
    assert schedule(replace(FINGERPRINT, search_seconds=seconds)) == expected


def test_a_slow_machine_gets_a_smaller_plan():
    slow = TrainingSpeed(*(4 * value for value in (10.0, 0.002, 4.5e-7)))
    assert schedule(replace(FINGERPRINT, speed=slow)) == (96, 4, 1)


def test_many_images_train_only_the_head():
    fields, choices = choose(replace(FINGERPRINT, dataset=MANY))
    assert fields.items() >= HEAD_ONLY.items()
    assert choices["augmentation"].choice == "none"
    assert choices["size and epochs"].omitted == [
        "160 px, 16 epochs: a budget of about 144 h",
        "128 px, 8 epochs: a budget of about 3.38 h",
        "96 px, 8 epochs: a budget of about 2.23 h",
        "96 px, 4 epochs: a budget of about 35 min",
    ]


def test_many_images_without_weights():
    fields, _ = choose(replace(FINGERPRINT, dataset=MANY, weights_error="no network"))
    names = "backbone", "weights", "image_size", "epochs"
    assert [fields[name] for name in names] == ["cnn", "none", "64", "2"]
    assert "augment_strength" not in fields


def test_few_validation_images_mean_folds():
    few = replace(DATASET, images={"train": 80, "val": 20, "test": 20})
    assert schedule(replace(FINGERPRINT, dataset=few)) == (128, 8, 5)
    too_few_patients = replace(few, can_fold=False)
    fingerprint = replace(FINGERPRINT, dataset=too_few_patients)
    assert schedule(fingerprint) == (128, 8, 1)
    assert choose(fingerprint)[1]["folds"].omitted == []  # more time would not help


def test_images_are_not_enlarged():
    small = replace(DATASET, side=100.0)
    fingerprint = replace(FINGERPRINT, dataset=small, search_seconds=8 * HOUR)
    assert schedule(fingerprint) == (96, 8, 5)
    assert choose(fingerprint)[1]["size and epochs"].omitted == []
    assert schedule(fingerprint, {"image_size": "128"})[0] == 128  # unless a user wants it


def test_without_weights_a_cnn_is_trained():
    fields, choices = choose(replace(FINGERPRINT, weights_error="no network"))
    names = "backbone", *BACKBONE_FIELDS["cnn"]
    expected = {"backbone": "cnn", **BACKBONE_FIELDS["cnn"]}
    assert {name: fields[name] for name in names} == expected
    assert choices["backbone"].condition == "otherwise"


@pytest.mark.parametrize("backbone", BACKBONE_FIELDS)
def test_a_backbone_of_the_user_gets_the_fields_that_it_needs(backbone):
    fields, choices = choose(fixed={"backbone": backbone})
    assert fields["alpha"] == BACKBONE_FIELDS[backbone]["alpha"]
    assert choices["backbone"].choice.startswith(f"backbone {backbone}, alpha ")
    assert choices["backbone"].condition == "given"


def test_what_is_given_stays():
    fixed = {"image_size": "64", "augment_strength": "0.5", "folds": "2"}
    fields, choices = choose(fixed=fixed)
    assert {name: fields[name] for name in fixed} == fixed
    assert fields["epochs"] == "8"
    text = "image_size 64, epochs 8, patience 8 (given: image_size)"
    assert choices["size and epochs"].choice == text
    assert (choices["folds"].choice, choices["folds"].condition) == ("folds 2", "given")
    # Also if the chosen rule would fix it
    fields, _ = choose(replace(FINGERPRINT, dataset=MANY), {"augment_strength": "0.5"})
    assert fields.items() >= (HEAD_ONLY | {"augment_strength": "0.5"}).items()


def test_what_a_user_fixes_counts_in_the_time():
    assert schedule(FINGERPRINT, {"folds": "5"}) == (96, 4, 5)
    assert schedule(FINGERPRINT, {"ensemble_size": "3"}) == (96, 4, 1)
    assert schedule(FINGERPRINT, {"epochs": "30"}) == (96, 30, 1)
    fields, choices = choose(fixed={"unfreeze_depth": "0"})
    assert choices["augmentation"].choice.startswith("searched")  # features are not cached
    assert "augment_strength" not in fields


def test_the_last_rule_of_each_topic_applies_always():
    last = {rule.topic: rule for rule in RULES}
    assert {rule.condition.text for rule in last.values()} == {"otherwise", "always"}


def test_what_counts_in_the_duration_of_a_trial():
    params = BASE.to_params()
    seconds = FINGERPRINT.trial_seconds(params)
    epoch = 943 * (0.002 + 4.5e-7 * 128**2)
    assert seconds == pytest.approx(1 + 10 + 8 * epoch)
    repeats = FINGERPRINT.trial_seconds(params | {"repeats": "2", "ensemble_size": "3"})
    assert repeats == pytest.approx(1 + 6 * (10 + 8 * epoch))
    folds = FINGERPRINT.trial_seconds(params | {"folds": "5"})
    of_fold = 8 * epoch * (943 + 229) * 0.8 / 943
    assert folds == pytest.approx(1 + 5 * (10 + of_fold))
    head_only = {"unfreeze_depth": "0", "feature_cache": "on"}
    assert FINGERPRINT.trial_seconds(params | head_only) == pytest.approx(1 + 10 + 0.5 * epoch)
    # Images are decoded once
    search = 9 * 60 - 0.001 * (943 + 229 + 312)
    assert FINGERPRINT.count_trials(params) == pytest.approx(search / seconds)
    two = replace(FINGERPRINT, throughput=2.0)
    assert two.count_trials(params) == pytest.approx(2 * search / seconds)
    budget = FINGERPRINT.budget_for(4, params)
    assert budget == pytest.approx(60 + 0.001 * (943 + 229 + 312) + 4 * seconds)
