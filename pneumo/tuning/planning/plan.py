"""Plan of a study with a budget: its time, and what it does not search."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Self

import optuna

from pneumo.reporting.study_summary import PlanSummary
from pneumo.runtime.errors import UserError
from pneumo.tuning import attributes
from pneumo.tuning.planning.budget import Budget, format_seconds
from pneumo.tuning.planning.facts import DataFacts
from pneumo.tuning.planning.rules import Choice


@dataclass(frozen=True)
class StudyPlan:
    """What a budget allows.

    Attributes:
        budget: Seconds from the start of the command to its end, of all commands together if the
            study has been extended.
        end: When this command must end, in seconds since 1970.
        reserve: Seconds of the budget that are kept for the end of the study.
        epoch_seconds: See `StudyLimits`.
        trial_seconds: Expected duration of the first trial, 0 if it is not known.
        fields: Fields of `RunConfig` that are not searched, as text, without those that the user
            has fixed.
        data: Properties of the data; None if the experiment is not `auto`.
        choices: Choices of the rules; none if the experiment is not `auto`.
        ensemble: Maximum number of trials whose ensemble is registered.
        like: Name of the earlier study whose best trials are tried first, or ''.
    """

    budget: float
    end: float
    reserve: float
    epoch_seconds: float = 0.0
    trial_seconds: float = 0.0
    fields: dict[str, str] = field(default_factory=dict)
    data: DataFacts | None = None
    choices: list[Choice] = field(default_factory=list)
    ensemble: int = 1
    like: str = ""

    @property
    def limits(self) -> dict[str, float]:
        """Return the fields of `StudyLimits` that follow from the plan."""
        names = "end", "reserve", "epoch_seconds"
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_study(cls, study: optuna.Study) -> Self | None:
        """Read the plan of a study, or return None if it has none."""
        values = attributes.PLAN.get(study, {})
        if not values:
            return None
        data = values["data"] and DataFacts(**values["data"])
        choices = [Choice(**choice) for choice in values["choices"]]
        return cls(**{**values, "data": data, "choices": choices})

    def save(self, study: optuna.Study) -> None:
        """Store the plan in a study, and that a command begins."""
        attributes.PLAN.set(study, asdict(self))
        attributes.STARTS.set(study, [*attributes.STARTS.get(study, []), time.time()])


def summarize_plan(study: optuna.Study) -> PlanSummary | None:
    """Describe the plan of a study for its report, or return None if it has none."""
    plan = StudyPlan.from_study(study)
    if plan is None:
        return None
    durations = {
        "budget": plan.budget,
        "of it kept for the end": plan.reserve,
        "a trial, as expected": plan.trial_seconds,
    }
    names = "topic", "choice", "condition", "reason", "source"
    return PlanSummary(
        time=[(name, format_seconds(value)) for name, value in durations.items() if value],
        data=list(_describe(plan.data)) if plan.data else [],
        choices=[tuple(getattr(choice, name) for name in names) for choice in plan.choices],
        omitted=[text for choice in plan.choices for text in choice.omitted],
        budget=format_seconds(plan.budget),
    )


def _describe(data: DataFacts) -> Iterator[tuple[str, str]]:
    counts = ", ".join(f"{split} {count:,}" for split, count in data.images.items())
    yield "images", counts
    yield "patients outside test", f"{data.patients:,}"
    yield "pneumonia outside test", f"{data.prevalence:.1%}"
    yield "images outside test with an identical file", f"{data.duplicates:,}"
    yield "shorter side, median", f"{data.side:.0f} pixels"
    yield "width / height, median", f"{data.aspect_ratio:.2f}"
    if data.metadata_auc is not None:
        title = "AUC of size, aspect ratio and bytes of the files for the label"
        yield title, f"{data.metadata_auc:.2f}"
    yield "decoding", f"{1 / data.seconds_per_image:,.0f} images/s"


def continue_plan(study: optuna.Study, budget: Budget, begin: float) -> StudyPlan:
    """Return the plan of an existing study with the time of a new command.

    Args:
        study: The study.
        budget: Budget of the new command.
        begin: When it began, in seconds since 1970.

    Raises:
        UserError: The study has no plan.
    """
    plan = StudyPlan.from_study(study)
    if plan is None:
        raise UserError(
            f"study '{study.study_name}' was created without --budget, and cannot have one. Use "
            "--trials or --timeout, or another study name."
        )
    if budget.is_extension:
        return replace(plan, budget=plan.budget + budget.seconds, end=begin + budget.seconds)
    remaining = max(0.0, budget.seconds - spent_seconds(study))
    return replace(plan, budget=budget.seconds, end=begin + remaining)


def spent_seconds(study: optuna.Study) -> float:
    """Return how long the commands of a study have searched so far."""
    starts = attributes.STARTS.get(study, [])
    ends = [
        trial.datetime_complete.timestamp()
        for trial in study.get_trials(deepcopy=False)
        if trial.datetime_complete
    ]
    total = 0.0
    for start, following in zip(starts, [*starts[1:], math.inf], strict=True):
        own_ends = [end for end in ends if start <= end < following]
        total += max(own_ends, default=start) - start
    return total
