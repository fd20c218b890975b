"""Planner: measures images and machine, and applies the rules."""

import time
from collections.abc import Mapping
from dataclasses import replace

import optuna

from pneumo.runtime.console import echo
from pneumo.runtime.errors import UserError
from pneumo.runtime.machine import visible_gpus
from pneumo.training.config import RunConfig
from pneumo.training.pretrained import load_pretrained_weights
from pneumo.training.train import MAX_GATE_IMAGES
from pneumo.tuning import selection
from pneumo.tuning.planning.budget import Budget, format_seconds
from pneumo.tuning.planning.dataset_fingerprint import describe_dataset
from pneumo.tuning.planning.fingerprint import (
    Fingerprint,
    TrainingSpeed,
    count_networks,
    estimate_trial,
)
from pneumo.tuning.planning.plan import StudyPlan, continue_plan
from pneumo.tuning.planning.rules import AUTO, add_backbone_fields, apply_rules
from pneumo.tuning.planning.speed import measure_training
from pneumo.tuning.spec import StudySpec
from pneumo.tuning.storage import open_storage

# The time from the last trial to the end (ensemble, registration, evaluation on test, page) besides
# predictions, in seconds, where `TrainingSpeed.start` has these values
END_SECONDS = 25.0
REFERENCE_START = {"mobilenet": 6.3, "cnn": 1.4}
N_TEST_PASSES = 11  # predictions of each test image, most of them for the reliance on shortcuts
N_MEMBERS = 3  # of an ensemble, of which `ENSEMBLE_SIZE` are rarely all different
PREDICTION_FRACTION = 1 / 3  # of the time to train on an image
# Two workers on the same device finish so many times the trials of one (tests.benchmarks.workers)
SHARED_THROUGHPUT = 1.2
ENSEMBLE_SIZE = 5  # at most, of the registered model
MAX_ENSEMBLE_FRACTION = 0.25  # of a budget, for the end with an ensemble


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
    devices = max(1, len(visible_gpus()))
    throughput = workers if launcher == "ray" else min(workers, devices * SHARED_THROUGHPUT)
    if name in optuna.get_all_study_names(storage):
        existing = optuna.load_study(storage=storage, study_name=name)
        return continue_plan(existing, budget, begin, workers, throughput)
    if budget.is_extension:
        raise UserError(
            f"--budget +… requires the name of an existing study: got --study '{name}'. Pass its "
            "name, or a budget without +."
        )
    plan = StudyPlan(
        budget=budget.seconds,
        begin=begin,
        end=begin + budget.seconds,
        reserve=0.0,
        throughput=throughput,
        workers=workers,
    )
    if spec.experiment.name == AUTO:
        return _plan_auto(plan, spec, storage)
    load_pretrained_weights(spec.base)
    return _add_durations(plan, spec, measure_training(spec.base), members=1)


def _add_durations(
    plan: StudyPlan, spec: StudySpec, speed: TrainingSpeed, members: int
) -> StudyPlan:
    """Return a plan with the expected durations of its first trial and of its end.

    Args:
        plan: The plan.
        spec: Search of the study.
        speed: Speed of the machine.
        members: Number of trials whose networks the registered model may have.
    """
    images, params = spec.dataset.count_images(), spec.base.to_params()
    return replace(
        plan,
        speed=speed,
        reserve=_estimate_end(speed, images, params, members),
        trial_seconds=estimate_trial(speed, images, params),
        trial_epochs=spec.base.epochs * count_networks(params),
    )


def _estimate_end(
    speed: TrainingSpeed, images: Mapping[str, int], params: Mapping[str, str], members: int
) -> float:
    """Return the expected seconds between the last trial and the end of a study."""
    n_predicted = N_TEST_PASSES * images["test"] * count_networks(params) * members
    n_predicted += sum(min(MAX_GATE_IMAGES, images[split]) for split in ("train", "val"))
    of_image = PREDICTION_FRACTION * speed.epoch_seconds(int(params["image_size"]), 1)
    slowness = speed.start / REFERENCE_START.get(params["backbone"], speed.start)
    return max(1.0, slowness) * END_SECONDS + n_predicted * of_image


def _plan_auto(plan: StudyPlan, spec: StudySpec, storage: optuna.storages.RDBStorage) -> StudyPlan:
    fixed, dataset = spec.fixed, describe_dataset(spec.dataset)
    config, weights_error = _choose_network(spec)
    speed = measure_training(config)
    network = replace(spec, fixed=add_backbone_fields({"backbone": config.backbone, **fixed}))
    plan = _add_durations(plan, network, speed, N_MEMBERS)
    fingerprint = Fingerprint(
        dataset=dataset,
        speed=speed,
        search_seconds=plan.end - plan.reserve - time.time(),
        end_seconds=time.time() - plan.begin + plan.reserve,
        throughput=plan.throughput,
        weights_error=weights_error,
    )
    fields, choices = apply_rules(fingerprint, fixed, config.to_params())
    planned_spec = replace(spec, fixed=fields)
    alone, together = (
        _add_durations(plan, planned_spec, speed, members) for members in (1, N_MEMBERS)
    )
    has_time_for_ensemble = together.reserve <= MAX_ENSEMBLE_FRACTION * plan.budget
    plan = replace(
        together if has_time_for_ensemble else alone,
        fields={name: value for name, value in fields.items() if name not in fixed},
        dataset=dataset,
        weights_error=weights_error,
        choices=choices,
        ensemble=ENSEMBLE_SIZE if has_time_for_ensemble else 1,
        like=find_earlier_study(storage, planned_spec),
    )
    _print(plan)
    return plan


def _choose_network(spec: StudySpec) -> tuple[RunConfig, str]:
    """Return a config with the backbone of a plan, and why ImageNet's weights cannot be loaded."""
    base, fixed = spec.experiment.base, spec.fixed
    config = base.override(add_backbone_fields(fixed))
    try:
        load_pretrained_weights(config)
    except UserError as error:
        if {"backbone", "weights"} & set(fixed):
            raise
        try:
            return base.override(add_backbone_fields({"backbone": "cnn", **fixed})), str(error)
        except UserError:  # what the user has fixed is only for a pretrained network
            raise error from None
    return config, ""


def find_earlier_study(storage: optuna.storages.RDBStorage, spec: StudySpec) -> str:
    """Return the study on the same images with the best trial that fits a search, or ''.

    Args:
        storage: Optuna's database.
        spec: Search of a new study.
    """
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
        f"plan: {format_seconds(plan.budget)}, of which {format_seconds(plan.reserve)} "
        f"are kept for the end; a trial takes about {format_seconds(plan.trial_seconds)}"
    )
