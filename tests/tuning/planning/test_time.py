"""Time of a study with a budget, by a simulated clock: the deadline holds."""

from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from pneumo.data.dataset import Dataset
from pneumo.experiment import load_experiment
from pneumo.runtime.errors import UserError
from pneumo.tuning import attributes, limits, worker
from pneumo.tuning.launchers import progress
from pneumo.tuning.limits import StudyLimits
from pneumo.tuning.planning import planner
from pneumo.tuning.planning.budget import Budget, format_seconds, parse_budget
from pneumo.tuning.planning.plan import StudyPlan, continue_plan, refuse_without_budget
from pneumo.tuning.selection import find_baseline
from pneumo.tuning.spec import StudySpec
from tests.tuning.planning.test_rules import BASE, DATASET, SPEED

MINUTE, HOUR = 60, 3_600


class Clock:
    """A clock that only `sleep` advances."""

    def __init__(self):
        self.now = 1_700_000_000.0

    def time(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    simulated = Clock()
    for module in (limits, planner, worker):
        monkeypatch.setattr(module, "time", simulated)
    return simulated


@pytest.fixture
def study():
    return optuna.create_study(direction="maximize")


def add_trial(study, start, end, state=TrialState.COMPLETE, epochs=1, config=BASE, **user_attrs):
    dates = (datetime.fromtimestamp(seconds) for seconds in (start, end))
    number, user_attrs = len(study.trials), {**user_attrs, "config": config.to_params()}
    study.add_trial(
        FrozenTrial(number, state, 0.9, *dates, {}, {}, user_attrs, {}, {epochs: 0.9}, number)
    )


class RunningTrial(SimpleNamespace):
    """A trial as `worker` sees it."""

    def set_user_attr(self, key, value):
        self.user_attrs[key] = value


def run_trial(study, clock, epochs, epoch_seconds, rest, config=BASE):
    """Simulate a trial as `worker` runs it, with the limit on its time."""
    start, trial = clock.now, RunningTrial(study=study, user_attrs={})
    stop = worker._time_limit(trial, config)
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
    add_trial(study, start, clock.now, state, epoch, config, **trial.user_attrs)


@pytest.fixture
def plan_for(clock, monkeypatch, sample):
    """Return a function that plans a study from now on, for so many times the usual images."""

    def plan_for(budget, n_times=1, **fixed):
        images = {split: round(count * n_times) for split, count in DATASET.images.items()}
        dataset = replace(DATASET, images=images)
        monkeypatch.setattr(Dataset, "count_images", lambda _: images)
        monkeypatch.setattr(planner, "describe_dataset", lambda _: dataset)
        monkeypatch.setattr(planner, "measure_training", lambda _: SPEED)
        monkeypatch.setattr(planner, "load_pretrained_weights", lambda _: None)
        monkeypatch.setattr(planner, "find_earlier_study", lambda *_: "")
        plan = StudyPlan(budget, clock.now, clock.now + budget, 0.0)
        return planner._plan_auto(plan, StudySpec(load_experiment("auto"), sample, fixed), None)

    return plan_for


@pytest.mark.parametrize("slowdown", [1.0, 2.0])
@pytest.mark.parametrize(
    ("budget", "n_times"),
    [
        *((budget, n_times) for budget in (10 * MINUTE, 30 * MINUTE) for n_times in (0.1, 1, 10)),
        *((budget, n_times) for budget in (HOUR, 8 * HOUR) for n_times in (1, 10, 40)),
    ],
)
def test_a_study_ends_within_a_tenth_of_its_budget(
    clock, study, plan_for, budget, n_times, slowdown
):
    begin = clock.now
    plan = plan_for(budget, n_times)
    clock.sleep(20 * slowdown)  # to import libraries and to measure
    of_study = StudyLimits(None, **plan.limits)
    of_study.save(study)
    images = plan.dataset.images
    clock.sleep(DATASET.decoding_seconds * sum(images.values()) * slowdown)
    config = BASE.override(plan.fields)
    epoch = SPEED.epoch_seconds(config.image_size, images["train"]) * slowdown
    # The trials of a search last from half to twice as long as the baseline
    lengths = [1.0, 0.5, 2.0, 0.7, 1.5, 1.0]
    while not of_study.is_reached(study):
        assert len(study.trials) < 3_000  # the clock goes on
        length = lengths[len(study.trials) % len(lengths)]
        if config.unfreeze_depth > 0:
            of_fold = 0.8 * (1 + images["val"] / images["train"]) if config.folds > 1 else 1.0
            seconds = epoch * of_fold + slowdown * SPEED.start / config.epochs
            run_trial(study, clock, config.epochs * config.folds, length * seconds, 2, config)
        else:  # the first trial computes the features of all
            first = 0.5 * epoch if not study.trials else 0.0
            run_trial(study, clock, config.epochs, (first + 5 * slowdown) / 4, 5 * slowdown, config)
    clock.sleep(0.8 * plan.reserve * slowdown)
    assert study.best_trial
    assert clock.now - begin <= 1.1 * budget
    assert clock.now - begin >= 0.75 * budget


def test_a_trial_without_time_for_the_next_epoch_is_complete(clock, study):
    StudyLimits(None, end=clock.now + 100).save(study)
    add_trial(study, clock.now - 10, clock.now)
    run_trial(study, clock, epochs=8, epoch_seconds=30, rest=0)
    assert study.trials[-1].state == TrialState.COMPLETE
    assert study.trials[-1].duration == timedelta(seconds=60)  # 45 s more would be too much
    assert study.trials[-1].user_attrs.get("is_cut")


def test_a_trial_in_its_last_epoch_is_not_cut(clock, study):
    StudyLimits(None, end=clock.now + 255).save(study)
    run_trial(study, clock, epochs=8, epoch_seconds=30, rest=0)
    assert study.trials[-1].duration == timedelta(seconds=240)
    assert "is_cut" not in study.trials[-1].user_attrs


def test_the_first_epoch_counts_as_expected(clock, study):
    StudyLimits(None, end=clock.now + 150, epoch_seconds=10.0).save(study)
    trial = RunningTrial(study=study, user_attrs={})
    stop = worker._time_limit(trial, BASE)
    clock.sleep(100)  # with tracing
    assert not stop(1, {})
    clock.sleep(30)
    assert stop(2, {})


def test_a_trial_of_folds_without_time_is_pruned_if_there_is_another(clock, study):
    folds = BASE.override({"folds": 5})
    of_study = StudyLimits(None, end=clock.now + 100)
    of_study.save(study)
    run_trial(study, clock, 40, 30, 0, folds)
    assert study.trials[-1].state == TrialState.COMPLETE  # the only one
    replace(of_study, end=clock.now + 100).save(study)
    run_trial(study, clock, 40, 30, 0, folds)
    assert study.trials[-1].state == TrialState.PRUNED


def test_a_first_trial_starts_even_without_time(clock, study):
    of_study = StudyLimits(None, end=clock.now - 1)
    of_study.save(study)
    assert not of_study.is_reached(study)
    run_trial(study, clock, 8, 1, 0)
    assert of_study.is_reached(study)
    assert study.trials[0].duration == timedelta(seconds=1)


@pytest.mark.parametrize(("folds", "needed"), [(1, 120), (5, 240)])
def test_a_trial_starts_if_half_of_the_usual_time_is_left_and_with_folds_all(
    clock, study, folds, needed
):
    add_trial(study, clock.now - 240, clock.now, config=BASE.override({"folds": folds}))
    for seconds, is_reached in ((needed + 1, False), (needed - 1, True)):
        assert StudyLimits(None, end=clock.now + seconds).is_reached(study) == is_reached


def test_without_a_budget_nothing_ends_early(clock, study):
    StudyLimits(3).save(study)
    run_trial(study, clock, 8, 1_000, 0)
    assert study.trials[0].duration == timedelta(seconds=8_000)


def test_a_baseline_with_all_its_epochs_comes_before_one_that_was_cut(study, sample):
    spec = StudySpec(load_experiment("auto"), sample, {})
    params, space = spec.baseline(), spec.search_space()
    for is_cut in (True, False, False):
        trial = optuna.create_trial(
            value=0.9, params=params, distributions=space, user_attrs={"is_cut": is_cut}
        )
        study.add_trial(trial)
    assert find_baseline(study.trials, spec).number == 1
    assert find_baseline(study.trials[:1], spec).number == 0
    assert find_baseline([], spec) is None


def test_the_reserve_grows_if_the_machine_is_slower_than_measured(clock, study):
    of_study = StudyLimits(None, end=clock.now + 1_000, reserve=100.0, epoch_seconds=10.0)
    assert of_study.trials_end(study) == of_study.end - 200  # not known yet
    add_trial(study, clock.now, clock.now + 240, epochs=8, is_cut=True)
    assert of_study.trials_end(study) == of_study.end - 200  # a trial that was cut does not count
    add_trial(study, clock.now, clock.now + 240, epochs=8)
    assert of_study.trials_end(study) == of_study.end - 300
    faster = replace(of_study, epoch_seconds=100.0)
    assert faster.trials_end(study) == of_study.end - 100
    slower = replace(of_study, epoch_seconds=1.0)
    assert slower.trials_end(study) == of_study.end - 400


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
    assert parse_budget(str(parse_budget(text))) == expected


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


def test_a_plan_is_continued(study, clock, plan_for):
    plan = replace(plan_for(3_600), like="earlier")
    attributes.PLAN.set(study, plan.to_dict())
    assert StudyPlan.from_study(study) == plan
    attributes.SPENT_SECONDS.set(study, 600.0)
    later = clock.now + 90_000
    rest = continue_plan(study, Budget(3_600, False), later, 1, 1.0)
    assert rest == replace(plan, begin=later, end=later + 3_000)
    more = continue_plan(study, Budget(600, True), later, 2, 1.2)
    assert more == replace(
        plan, budget=4_200, begin=later, end=later + 600, workers=2, throughput=1.2
    )
    assert more.limits["epoch_seconds"] == pytest.approx(plan.limits["epoch_seconds"] * 2 / 1.2)
    less = continue_plan(study, Budget(300, False), later, 1, 1.0)
    assert (less.budget, less.end) == (3_600, later + 3_000)
    attributes.SPENT_SECONDS.set(study, 4_000.0)
    over = continue_plan(study, Budget(3_600, False), later, 1, 1.0)
    assert over.end == later


def test_the_display_shows_the_time_if_trials_have_no_limit(clock, study, monkeypatch):
    monkeypatch.setattr(progress, "time", clock)
    attributes.OBJECTIVE.set(study, "val_robust_auc")
    StudyLimits(None, end=clock.now + 600).save(study)
    display = progress.StudyProgress(study)
    add_trial(study, clock.now, clock.now + 60, name="a")
    clock.sleep(150)
    display.update()
    [task] = display._bar.tasks
    assert (task.completed, task.total, task.fields["trials"]) == (150, 600, "1")


def test_the_reserve_is_at_most_half_of_a_command(study):
    long, short = (StudyPlan(3_660, 0, seconds, 100.0) for seconds in (3_600, 60))
    assert StudyLimits(None, **long.limits).trials_end(study) == 3_500
    assert StudyLimits(None, **short.limits).trials_end(study) == 30


def test_a_study_without_a_plan_cannot_be_continued_by_a_budget(study):
    with pytest.raises(UserError, match="was created without --budget"):
        continue_plan(study, Budget(600, True), 0.0, 1, 1.0)


def test_a_study_with_a_plan_is_continued_by_a_budget_alone(study):
    refuse_without_budget(study)
    attributes.PLAN.set(study, StudyPlan(60, 0, 60, 1).to_dict())
    with pytest.raises(UserError, match=r"has a budget: got none\. Continue it with"):
        refuse_without_budget(study)
