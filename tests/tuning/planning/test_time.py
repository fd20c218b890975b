"""Time of a study with a budget, by a simulated clock: the deadline holds."""

import time
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from pneumo.runtime.errors import UserError
from pneumo.tuning import attributes, limits, worker
from pneumo.tuning.limits import StudyLimits
from pneumo.tuning.planning.budget import Budget, format_seconds, parse_budget
from pneumo.tuning.planning.plan import StudyPlan, continue_plan, spent_seconds
from pneumo.tuning.planning.planner import _reserve
from pneumo.tuning.planning.rules import apply_rules
from tests.tuning.planning.test_rules import BASE, DATA, FACTS

MINUTE, HOUR = 60, 3_600


class Clock:
    """A clock that only `sleep` advances."""

    def __init__(self):
        self.now = 1_800_000_000.0

    def time(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    simulated = Clock()
    monkeypatch.setattr(limits, "time", simulated)
    monkeypatch.setattr(worker, "time", simulated)
    return simulated


@pytest.fixture
def study():
    return optuna.create_study(direction="maximize")


def add_trial(study, start, end, state=TrialState.COMPLETE, epochs=1):
    dates = (datetime.fromtimestamp(seconds) for seconds in (start, end))
    number = len(study.trials)
    study.add_trial(FrozenTrial(number, state, 0.9, *dates, {}, {}, {}, {}, {epochs: 0.9}, number))


def run_trial(study, clock, epochs, epoch_seconds, rest, config=BASE):
    """Simulate a trial as `worker` runs it, with the limit on its time."""
    start = clock.now
    stop = worker._time_limit(SimpleNamespace(study=study), config)
    state = TrialState.COMPLETE
    for epoch in range(1, epochs + 1):
        clock.sleep(epoch_seconds)
        try:
            if stop(epoch, {}):
                break
        except optuna.TrialPruned:
            state = TrialState.PRUNED
            break
    clock.sleep(rest)
    add_trial(study, start, clock.now, state, epoch)


@pytest.mark.parametrize("slowdown", [1.0, 2.0])
@pytest.mark.parametrize("n_images", [1, 10])
@pytest.mark.parametrize("budget", [10 * MINUTE, 30 * MINUTE, HOUR, 8 * HOUR])
def test_a_study_ends_within_a_tenth_of_its_budget(clock, study, budget, n_images, slowdown):
    images = {split: count * n_images for split, count in DATA.images.items()}
    reserve = _reserve(images["test"], budget)
    facts = replace(FACTS, data=replace(DATA, images=images), search_seconds=budget - 20 - reserve)
    fields, _ = apply_rules(facts, {}, BASE.to_params())
    config = BASE.override(fields)
    expected = facts.trial_seconds(config.image_size, config.epochs, config.folds)
    expected /= config.epochs * config.folds
    of_study = StudyLimits(None, None, None, None, clock.now + budget, reserve, expected)
    of_study.save(study)
    begin = clock.now
    clock.sleep(20 * slowdown)  # to import libraries and to measure
    clock.sleep(DATA.seconds_per_image * sum(images.values()) * slowdown)
    # The trials of a search last from half to twice as long as the baseline
    lengths = [1.0, 0.5, 2.0, 0.7, 1.5, 1.0]
    while not of_study.is_reached(study):
        assert len(study.trials) < 2_000  # the clock goes on
        length = lengths[len(study.trials) % len(lengths)] * slowdown
        epoch = facts.speed.epoch_seconds(config.image_size, images["train"]) * length
        if config.unfreeze_depth == 0:  # the features are computed once
            epoch /= 1 + 9 * bool(study.trials)
        run_trial(study, clock, config.epochs, epoch, length * facts.speed.start, config)
    assert study.trials
    clock.sleep(reserve * slowdown)
    used = clock.now - begin
    assert used <= 1.1 * budget
    assert used >= 0.8 * budget


def test_a_trial_without_time_for_the_next_epoch_is_complete(clock, study):
    StudyLimits(None, end=clock.now + 100).save(study)
    add_trial(study, clock.now - 10, clock.now)
    run_trial(study, clock, epochs=8, epoch_seconds=30, rest=0)
    assert study.trials[-1].state == TrialState.COMPLETE
    assert study.trials[-1].duration == timedelta(seconds=90)


def test_a_trial_of_folds_without_time_is_pruned_if_there_is_another(clock, study):
    folds = BASE.override({"folds": 5})
    of_study = StudyLimits(None, end=clock.now + 100)
    of_study.save(study)
    run_trial(study, clock, 8, 30, 0, folds)
    assert study.trials[-1].state == TrialState.COMPLETE  # the only one
    replace(of_study, end=clock.now + 100).save(study)
    run_trial(study, clock, 8, 30, 0, folds)
    assert study.trials[-1].state == TrialState.PRUNED


def test_a_first_trial_starts_even_without_time(clock, study):
    of_study = StudyLimits(None, end=clock.now - 1)
    of_study.save(study)
    assert not of_study.is_reached(study)
    run_trial(study, clock, 8, 1, 0)
    assert of_study.is_reached(study)
    assert study.trials[0].duration == timedelta(seconds=1)


def test_without_a_budget_nothing_ends_early(clock, study):
    StudyLimits(3).save(study)
    run_trial(study, clock, 8, 1_000, 0)
    assert study.trials[0].duration == timedelta(seconds=8_000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("600", (600, False)),
        ("60s", (60, False)),
        ("10m", (600, False)),
        (" 1H ", (3_600, False)),
        ("+8h", (28_800, True)),
    ],
)
def test_budgets(text, expected):
    assert parse_budget(text) == expected


@pytest.mark.parametrize(
    "text", ["59", "0m", "1.5h", "1 h", "-1h", "h", "1d", "++1h", "²h", "9" * 10]
)
def test_what_is_no_budget(text):
    with pytest.raises(ValueError, match="must be at least a minute"):
        parse_budget(text)


def test_durations_in_words():
    values = (45, 89.6, 600, 5_000, 5_400, 28_800, 400_000)
    assert [format_seconds(value) for value in values] == [
        *("45 s", "90 s", "10 min", "83 min", "1.5 h", "8 h", "111 h"),
    ]


def test_a_plan_is_continued(study):
    begin = time.time()
    plan = StudyPlan(3_600, begin + 3_600, 50.0, 3.0, 30.0, {"folds": "5"}, DATA, [], 5, "earlier")
    plan.save(study)
    assert StudyPlan.from_study(study) == plan
    started = attributes.STARTS.read(study)[0]
    add_trial(study, started + 10, started + 600)
    assert spent_seconds(study) == pytest.approx(600, abs=1e-3)
    later = begin + 90_000
    rest = continue_plan(study, Budget(3_600, False), later)
    assert (rest.budget, rest.end) == (3_600, pytest.approx(later + 3_000, abs=1e-3))
    more = continue_plan(study, Budget(600, True), later)
    assert more == replace(plan, budget=4_200, end=later + 600)
    over = continue_plan(study, Budget(300, False), later)
    assert over.end == later


def test_the_time_between_commands_does_not_count(study):
    attributes.STARTS.set(study, [1_000.0, 9_000.0])
    add_trial(study, 1_010, 1_500)
    add_trial(study, 9_005, 9_100)
    assert spent_seconds(study) == 600


def test_a_study_without_a_plan_cannot_be_continued_by_a_budget(study):
    with pytest.raises(UserError, match="was created without --budget"):
        continue_plan(study, Budget(600, True), 0.0)
