"""Planner: measures data and machine, and applies the rules."""

import time
from dataclasses import replace

import optuna

from pneumo.runtime.console import echo
from pneumo.runtime.errors import UserError
from pneumo.training.pretrained import load_pretrained_weights
from pneumo.tuning import selection
from pneumo.tuning.planning.budget import Budget, format_seconds
from pneumo.tuning.planning.facts import WORKERS_GAIN, Facts, describe_data
from pneumo.tuning.planning.plan import StudyPlan, continue_plan
from pneumo.tuning.planning.rules import AUTO, apply_rules, complete
from pneumo.tuning.planning.speed import measure_training
from pneumo.tuning.spec import StudySpec
from pneumo.tuning.storage import open_storage

# Seconds from the last trial to the end: ensemble, registration, evaluation on test, page. Measured
# where `TrainingSpeed.start` has these values
END_SECONDS = 25.0
END_SECONDS_PER_TEST_IMAGE = 0.02
REFERENCE_START = {"mobilenet": 6.3, "cnn": 1.4}
MAX_END_FRACTION = 0.5  # of a budget, because a search needs some of it, too
ENSEMBLE_SIZE = 5  # at most, of the registered model


def plan_study(spec: StudySpec, budget: Budget, name: str, workers: int, begin: float) -> StudyPlan:
    """Plan a study, or read the plan of an existing one.

    TensorFlow must have been imported.

    Args:
        spec: Search that the user has asked for.
        budget: Its budget.
        name: Name of the study, or ''.
        workers: Number of processes that search.
        begin: When the command began, in seconds since 1970.

    Raises:
        UserError: An existing study has no plan, a study that does not exist is extended, no image
            is readable, or weights that the user has named cannot be loaded.
    """
    storage = open_storage()
    if name in optuna.get_all_study_names(storage):
        existing = optuna.load_study(storage=storage, study_name=name)
        return continue_plan(existing, budget, begin)
    if budget.is_extension:
        raise UserError(
            f"--budget +… requires the name of an existing study: got --study '{name}'. Pass its "
            "name, or a budget without +."
        )
    end = begin + budget.seconds
    if spec.experiment.name == AUTO:
        return _plan_auto(spec, budget.seconds, end, workers)
    reserve = _reserve((spec.dataset.rows["split"] == "test").sum(), budget.seconds)
    return StudyPlan(budget.seconds, end, reserve)


def _plan_auto(spec: StudySpec, budget: float, end: float, workers: int) -> StudyPlan:
    base, given = spec.experiment.base, spec.fixed
    data = describe_data(spec.dataset)
    config, weights_error = base.override(complete(given)), ""
    try:
        load_pretrained_weights(config)
    except UserError as error:
        if {"backbone", "weights"} & set(given):
            raise
        weights_error = str(error)
        config = base.override(complete({"backbone": "cnn", **given}))
    speed = measure_training(config)
    slowness = speed.start / REFERENCE_START.get(config.backbone, speed.start)
    reserve = _reserve(data.images["test"], budget, slowness)
    facts = Facts(data, speed, end - reserve - time.time(), workers, weights_error)
    fields, choices = apply_rules(facts, given, config.to_params())
    chosen = base.override(fields)
    trial_seconds = facts.trial_seconds(
        chosen.image_size, chosen.epochs, chosen.folds, chosen.unfreeze_depth
    )
    trial_seconds *= workers / WORKERS_GAIN if workers > 1 else 1
    plan = StudyPlan(
        budget,
        end,
        reserve,
        trial_seconds / (chosen.epochs * chosen.folds),
        trial_seconds,
        {name: value for name, value in fields.items() if name not in given},
        data,
        choices,
        ENSEMBLE_SIZE,
        find_earlier_study(replace(spec, fixed=fields)),
    )
    _print(plan, weights_error)
    return plan


def _reserve(n_test: int, budget: float, slowness: float = 1.0) -> float:
    """Return the seconds that are kept for the end of a study.

    Args:
        n_test: Number of test images.
        budget: Seconds of the whole study.
        slowness: How many times as long this machine takes as the one of the measurements.
    """
    seconds = END_SECONDS + END_SECONDS_PER_TEST_IMAGE * n_test
    return min(max(1.0, slowness) * seconds, MAX_END_FRACTION * budget)


def find_earlier_study(spec: StudySpec) -> str:
    """Return the study on the same images with the best trial that fits a search, or ''.

    Args:
        spec: Search of a new study.
    """
    storage = open_storage()
    found: dict[str, float] = {}
    for summary in optuna.get_all_study_summaries(storage):
        is_alike = all(
            summary.user_attrs.get(key) == value
            for key, value in (
                ("data_digest", spec.dataset.digest),
                ("experiment", spec.experiment.name),
                ("objective", spec.base.objective),
            )
        )
        if not is_alike or not summary.best_trial:
            continue
        try:
            selection.find_warm_start(storage, summary.study_name, spec)
        except UserError:  # none of its trials fits
            continue
        found[summary.study_name] = summary.best_trial.value
    return max(found, key=found.get, default="")


def _print(plan: StudyPlan, weights_error: str) -> None:
    if weights_error:
        echo(f"note: {weights_error}")
    for choice in plan.choices:
        echo(f"plan: {choice.topic}: {choice.choice} ({choice.condition})")
    echo(
        f"plan: {format_seconds(plan.budget)} in all, {format_seconds(plan.reserve)} of it for the "
        f"end; a trial takes about {format_seconds(plan.trial_seconds)}"
    )
