"""Rules of a plan: which fields they fix, for which data, machines and budgets."""

from dataclasses import replace

import pytest

from pneumo.experiment import load_experiment
from pneumo.tuning.planning.facts import DataFacts, Facts, TrainingSpeed
from pneumo.tuning.planning.rules import BACKBONE_FIELDS, RULES, apply_rules, complete

BASE = load_experiment("auto").base
DATA = DataFacts(
    images={"train": 943, "val": 229, "test": 312},
    patients=800,
    prevalence=0.74,
    duplicates=0,
    side=900.0,
    aspect_ratio=1.4,
    metadata_auc=0.9,
    seconds_per_image=0.001,
    can_fold=True,
)
# About two cores: an epoch of 943 images takes 5.7 s at 96 px, 8.8 s at 128 px and 13 s at 160 px
SPEED = TrainingSpeed(start=10.0, per_image=0.002, per_pixel=4.5e-7)
MINUTE, HOUR = 60.0, 3_600.0
FACTS = Facts(DATA, SPEED, 9 * MINUTE, 1, "")


def choose(facts=FACTS, given=None):
    given = given or {}
    fields, choices = apply_rules(facts, given, BASE.override(complete(given)).to_params())
    BASE.override(fields)  # they are valid together
    return fields, {choice.topic: choice for choice in choices}


def schedule(facts):
    fields, _ = choose(facts)
    names = "image_size", "epochs", "folds"
    return tuple(int(fields[name]) for name in names)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (2 * MINUTE, (96, 4, 1)),
        (5 * MINUTE, (96, 8, 1)),
        (9 * MINUTE, (128, 8, 1)),
        (1 * HOUR, (128, 8, 1)),
        (8 * HOUR, (160, 16, 1)),
        (24 * HOUR, (160, 16, 5)),
    ],
)
def test_more_time_means_larger_images_then_longer_fits_then_folds(seconds, expected):
    assert schedule(replace(FACTS, search_seconds=seconds)) == expected


def test_a_slow_machine_gets_a_smaller_plan():
    slow = TrainingSpeed(*(4 * value for value in (10.0, 0.002, 4.5e-7)))
    assert schedule(replace(FACTS, speed=slow)) == (96, 4, 1)


def test_many_images_train_only_the_head():
    many = replace(DATA, images={"train": 40_000, "val": 10_000, "test": 5_000})
    fields, choices = choose(replace(FACTS, data=many))
    assert (fields["unfreeze_depth"], fields["feature_cache"]) == ("0", "on")
    assert fields["augment_strength"] == fields["max_crop_fraction"] == "0.0"
    omitted = choices["size and schedule"].omitted
    assert [line.partition(":")[0] for line in omitted] == [
        *("160 px, 16 epochs", "128 px, 8 epochs", "96 px, 8 epochs", "96 px, 4 epochs"),
        *(),
    ]
    assert omitted[1].endswith("h for 4 trials")


def test_many_images_without_weights():
    many = replace(DATA, images={"train": 40_000, "val": 10_000, "test": 5_000})
    fields, _ = choose(replace(FACTS, data=many, weights_error="no network"))
    assert {name: fields[name] for name in ("backbone", "weights", "image_size", "epochs")} == {
        "backbone": "cnn",
        "weights": "none",
        "image_size": "64",
        "epochs": "2",
    }


def test_few_validation_images_mean_folds():
    few = replace(DATA, images={"train": 80, "val": 20, "test": 20})
    assert schedule(replace(FACTS, data=few)) == (128, 8, 5)
    too_few_patients = replace(few, can_fold=False)
    assert schedule(replace(FACTS, data=too_few_patients)) == (128, 8, 1)


def test_images_are_not_enlarged():
    small = replace(DATA, side=100.0)
    facts = replace(FACTS, data=small, search_seconds=8 * HOUR)
    assert schedule(facts) == (96, 8, 5)
    _, choices = choose(facts)
    assert choices["size and schedule"].omitted[0] == (
        "160 px, 16 epochs: images with 160 pixels per side"
    )


def test_without_weights_a_cnn_is_trained():
    fields, choices = choose(replace(FACTS, weights_error="no network"))
    assert {name: fields[name] for name in ("backbone", *BACKBONE_FIELDS["cnn"])} == {
        "backbone": "cnn",
        **BACKBONE_FIELDS["cnn"],
    }
    assert choices["backbone"].condition == "otherwise"


@pytest.mark.parametrize("backbone", BACKBONE_FIELDS)
def test_a_given_backbone_gets_the_fields_that_it_needs(backbone):
    fields, choices = choose(given={"backbone": backbone})
    assert fields["alpha"] == BACKBONE_FIELDS[backbone]["alpha"]
    assert choices["backbone"].condition == "given"


def test_what_is_given_stays():
    given = {"image_size": "64", "augment_strength": "0.5", "folds": "2"}
    fields, choices = choose(given=given)
    assert {name: fields[name] for name in given} == given
    assert "epochs" not in fields  # those of the experiment
    assert choices["size and schedule"].choice == "image_size 64"
    # Also if the chosen rule would fix it
    many = replace(DATA, images={"train": 40_000, "val": 10_000, "test": 5_000})
    fields, _ = choose(replace(FACTS, data=many), given={"augment_strength": "0.5"})
    assert (fields["augment_strength"], fields["unfreeze_depth"]) == ("0.5", "0")


def test_the_last_rule_of_each_topic_applies_always():
    last = {rule.topic: rule for rule in RULES}
    assert {rule.condition.text for rule in last.values()} == {"otherwise", "always"}


def test_two_workers_finish_more_trials():
    assert replace(FACTS, workers=2).count_trials(128, 8) == 1.2 * FACTS.count_trials(128, 8)
