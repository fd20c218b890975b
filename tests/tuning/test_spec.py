"""Suggestions and search spaces, and how Optuna searches them."""

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FixedTrial

from pneumo.experiment import Experiment, list_experiments, load_experiment
from pneumo.runtime.errors import UserError
from pneumo.training.config import RunConfig, derive_seed
from pneumo.tuning.spec import (
    PartiallyFixedTrial,
    PerTrialSeededTPESampler,
    StudySpec,
    field_and_base_value,
    validate_search_space,
)

TUNE = load_experiment("tune")
VALUES = {
    "dropout": 0.25,
    "dense_widths_1": 96,
    "dense_widths_2": 0,
    "augment_strength": 0.75,
    "unfreeze_depth": 1,
    "learning_rate": 0.002,
}


def study(seed: int = 0) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(sampler=PerTrialSeededTPESampler(seed), direction="maximize")


def score(trial) -> float:
    config = TUNE.suggest(trial, TUNE.base)
    return -abs(config.dropout - 0.3) - config.unfreeze_depth / 10 + sum(config.dense_widths) / 500


def params(study: optuna.Study) -> list[dict]:
    return [trial.params for trial in study.trials]


def test_suggest_gives_a_config():
    trial = FixedTrial(VALUES)
    config = TUNE.suggest(trial, TUNE.base)
    assert config == TUNE.base.override(
        {
            "dropout": 0.25,
            "dense_widths": (96,),
            "augment_strength": 0.75,
            "unfreeze_depth": 1,
            "learning_rate": 0.002,
        }
    )
    assert trial.params == VALUES


def test_fixed_fields_keep_the_bases_value_and_leave_the_search():
    base = TUNE.base.override({"dense_widths": "48", "dropout": "0.4"})
    trial = FixedTrial(VALUES)
    config = TUNE.suggest(PartiallyFixedTrial(base, {"dense_widths", "dropout"}, trial), base)
    assert config.dense_widths == (48,)
    assert config.dropout == 0.4
    assert set(trial.params) == {"augment_strength", "unfreeze_depth", "learning_rate"}


def test_the_baseline_gives_the_base():
    search = PartiallyFixedTrial(TUNE.base, {})
    assert TUNE.suggest(search, TUNE.base) == TUNE.base
    assert set(search.baseline) == set(VALUES)
    assert TUNE.suggest(FixedTrial(search.baseline), TUNE.base) == TUNE.base


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dropout", ("dropout", 0.5)),
        ("dense_widths_1", ("dense_widths", 32)),
        ("dense_widths_3", ("dense_widths", 0)),
    ],
)
def test_the_field_behind_a_suggestion(name, expected):
    assert field_and_base_value(RunConfig(dropout=0.5, dense_widths=(32, 16)), name) == expected


def test_a_suggestion_without_a_field_is_refused():
    with pytest.raises(KeyError, match="must be named after a field of RunConfig: got 'width'"):
        field_and_base_value(RunConfig(), "width")


def test_three_and_three_trials_equal_six_in_one_go():
    whole, parted = study(), study()
    whole.optimize(score, n_trials=20)
    parted.optimize(score, n_trials=11)
    parted.sampler = PerTrialSeededTPESampler(0)  # as in a second process
    parted.optimize(score, n_trials=9)
    assert params(parted) == params(whole)
    assert len({str(values) for values in params(whole)}) == 20


def test_another_seed_searches_elsewhere():
    first, other = study(0), study(1)
    for one in (first, other):
        one.optimize(score, n_trials=3)
    assert all(a != b for a, b in zip(params(first), params(other), strict=True))


def test_the_search_learns():
    searched = study()
    searched.optimize(lambda trial: -abs(trial.suggest_float("dropout", 0, 1) - 0.3), n_trials=30)
    late = [abs(trial.params["dropout"] - 0.3) for trial in searched.trials[-10:]]
    assert sum(late) / 10 < 0.2  # at random it would be 0.29
    assert searched.trials[-1].distributions["dropout"] == FloatDistribution(0, 1)


def test_seeds_of_trials_are_their_own_and_lasting():
    seeds = {derive_seed(study, number) for study in range(10) for number in range(100)}
    assert len(seeds) == 1000
    assert derive_seed(0, 0) == 2968811710


def test_each_trial_trains_from_a_seed_of_its_own():
    spec, searched = StudySpec(TUNE, None, {"seed": "7"}), study()
    seeds = [spec.suggest(searched.ask()).seed for _ in range(3)]
    assert seeds == [derive_seed(7, number) for number in range(3)]


@pytest.mark.parametrize("name", list_experiments())
def test_the_spaces_of_our_own_experiments_fit(name):
    experiment = load_experiment(name)
    if experiment.suggest:
        validate_search_space(experiment, experiment.base, {})


def searching(**space) -> Experiment:
    """Make an experiment that searches one field, as `field=(method, *arguments, options)`."""
    [(name, (method, *given, options))] = space.items()

    def suggest(trial, base):
        return base.override({name: getattr(trial, method)(name, *given, **options)})

    return Experiment("mine", RunConfig(), suggest)


@pytest.mark.parametrize(
    "space",
    [
        {"unfreeze_depth": ("suggest_int", 0, 3, {"step": 2})},  # which ends at 2
        {"dropout": ("suggest_float", {"low": 0.0, "high": 0.9})},
        {"batch_size": ("suggest_categorical", {"choices": [16, 32]})},
    ],
)
def test_a_valid_search_space_is_accepted(space):
    validate_search_space(searching(**space), RunConfig(), {})


@pytest.mark.parametrize(
    ("space", "value"),
    [
        ({"unfreeze_depth": ("suggest_int", 0, 3, {})}, "3"),
        ({"dropout": ("suggest_float", -0.1, 0.5, {})}, "-0.1"),
        ({"dropout": ("suggest_float", {"low": 0.0, "high": 0.95})}, "0.95"),
        ({"batch_size": ("suggest_categorical", [16, 0, 32], {})}, "0"),
        ({"backbone": ("suggest_categorical", ["cnn", "vgg"], {})}, "vgg"),
    ],
)
def test_a_space_with_a_value_that_no_run_can_have_is_refused(space, value):
    [name] = space
    with pytest.raises(UserError, match=f"mine.py contains {name} {value}, which is invalid"):
        validate_search_space(searching(**space), RunConfig(), {})
    validate_search_space(searching(**space), RunConfig(), {name: "what is fixed is not searched"})
