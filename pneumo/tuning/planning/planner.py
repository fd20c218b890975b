"""Planner: measures images and machine, and applies the rules."""

import time
from dataclasses import replace

import optuna

from pneumo.runtime.console import echo
from pneumo.runtime.errors import UserError
from pneumo.runtime.machine import visible_gpus
from pneumo.training.pretrained import load_pretrained_weights
from pneumo.tuning import selection
from pneumo.tuning.planning.budget import Budget, format_seconds
from pneumo.tuning.planning.dataset_fingerprint import describe_dataset
from pneumo.tuning.planning.fingerprint import Fingerprint, count_networks
from pneumo.tuning.planning.plan import StudyPlan, continue_plan
from pneumo.tuning.planning.rules import AUTO, add_backbone_fields, apply_rules
from pneumo.tuning.planning.speed import measure_training
from pneumo.tuning.spec import StudySpec
from pneumo.tuning.storage import open_storage

# Seconds from the last trial to the end: ensemble, registration, evaluation on test, page. Measured
# where `TrainingSpeed.start` has these values
END_SECONDS = 25.0
END_SECONDS_PER_TEST_IMAGE = 0.02
REFERENCE_START = {"mobilenet": 6.3, "cnn": 1.4}
# Two workers on the same cores finish so many times the trials of one (tests.benchmarks.workers)
SHARED_THROUGHPUT = 1.2
ENSEMBLE_SIZE = 5  # at most, of the registered model


def plan_study(
    spec: StudySpec, budget: Budget, name: str, begin: float, workers: int, launcher: str
) -> StudyPlan:
    """Plan a study, or read the plan of an existing one.

    TensorFlow must have been imported.

    Args:
        spec: Search that the user has asked for.
        budget: Its budget.
        name: Name of the study, or ''.
        begin: When the command began, in seconds since 1970.
        workers: Number of workers.
        launcher: `local` or `ray`.

    Raises:
        UserError: An existing study has no plan, a study that does not exist is extended, no image
            is readable, or weights that the user has named cannot be loaded.
    """
    storage = open_storage()
    has_own_devices = launcher == "ray" or bool(visible_gpus())
    throughput = workers if has_own_devices else min(workers, SHARED_THROUGHPUT)
    if name in optuna.get_all_study_names(storage):
        existing = optuna.load_study(storage=storage, study_name=name)
        return continue_plan(existing, budget, begin, workers, throughput)
    if budget.is_extension:
        raise UserError(
            f"--budget +… requires the name of an existing study: got --study '{name}'. Pass its "
            "name, or a budget without +."
        )
    n_test = int((spec.dataset.rows["split"] == "test").sum())
    plan = StudyPlan(
        budget=budget.seconds,
        begin=begin,
        end=begin + budget.seconds,
        reserve=estimate_end_seconds(n_test),
        throughput=throughput,
        workers=workers,
    )
    return _plan_auto(plan, spec) if spec.experiment.name == AUTO else plan


def _plan_auto(plan: StudyPlan, spec: StudySpec) -> StudyPlan:
    base, fixed = spec.experiment.base, spec.fixed
    dataset = describe_dataset(spec.dataset)
    config, weights_error = base.override(add_backbone_fields(fixed)), ""
    try:
        load_pretrained_weights(config)
    except UserError as error:
        if {"backbone", "weights"} & set(fixed):
            raise
        weights_error = str(error)
        try:
            config = base.override(add_backbone_fields({"backbone": "cnn", **fixed}))
        except UserError:  # what the user has fixed is only for a pretrained network
            raise error from None
    speed = measure_training(config)
    reference = REFERENCE_START.get(config.backbone, speed.start)
    plan = replace(
        plan, reserve=estimate_end_seconds(dataset.images["test"], speed.start / reference)
    )
    fingerprint = Fingerprint(
        dataset=dataset,
        speed=speed,
        search_seconds=plan.end - plan.limits["reserve"] - time.time(),
        end_seconds=time.time() - plan.begin + plan.reserve,
        throughput=plan.throughput,
        weights_error=weights_error,
    )
    fields, choices = apply_rules(fingerprint, fixed, config.to_params())
    planned_spec = replace(spec, fixed=fields)
    params = planned_spec.base.to_params()
    plan = replace(
        plan,
        trial_seconds=fingerprint.trial_seconds(params),
        trial_epochs=planned_spec.base.epochs * count_networks(params),
        fields={name: value for name, value in fields.items() if name not in fixed},
        dataset=dataset,
        speed=speed,
        weights_error=weights_error,
        choices=choices,
        ensemble=ENSEMBLE_SIZE,
        like=find_earlier_study(planned_spec),
    )
    _print(plan)
    return plan


def estimate_end_seconds(n_test: int, slowness: float = 1.0) -> float:
    """Return the expected seconds between the last trial and the end of a study.

    Args:
        n_test: Number of test images.
        slowness: How many times as long this machine takes as the one of the measurements.
    """
    return max(1.0, slowness) * (END_SECONDS + END_SECONDS_PER_TEST_IMAGE * n_test)


def find_earlier_study(spec: StudySpec) -> str:
    """Return the study on the same images with the best trial that fits a search, or ''.

    Args:
        spec: Search of a new study.
    """
    storage = open_storage()
    identity = spec.identity()
    best: dict[str, float] = {}
    for summary in optuna.get_all_study_summaries(storage):
        is_alike = all(
            summary.user_attrs.get(key) == identity[key]
            for key in ("data_digest", "experiment", "objective")
        )
        if not is_alike or not summary.best_trial:
            continue
        try:
            selection.find_warm_start(storage, summary.study_name, spec)
        except UserError:  # none of its trials fits
            continue
        best[summary.study_name] = summary.best_trial.value
    return max(best, key=best.get, default="")


def _print(plan: StudyPlan) -> None:
    if plan.weights_error:
        echo(f"note: {plan.weights_error}")
    for choice in plan.choices:
        echo(f"plan: {choice.topic}: {choice.choice}. {choice.reason}".rstrip())
    if plan.like:
        echo(f"plan: the best trials of study {plan.like}, on the same images, are tried first")
    echo(
        f"plan: {format_seconds(plan.budget)}, of which {format_seconds(plan.limits['reserve'])} "
        f"are kept for the end; a trial takes about {format_seconds(plan.trial_seconds)}"
    )
