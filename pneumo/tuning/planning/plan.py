"""Plan of a study with a budget: its time, and what it does not search."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import optuna

from pneumo.reporting.study_summary import PlanSummary
from pneumo.runtime.console import echo
from pneumo.runtime.errors import UserError
from pneumo.tracking import session
from pneumo.tuning import attributes
from pneumo.tuning.planning.budget import Budget, format_seconds
from pneumo.tuning.planning.fingerprint import DatasetFingerprint, TrainingSpeed
from pneumo.tuning.planning.rules import Choice
from pneumo.tuning.storage import how_to_continue


@dataclass(frozen=True)
class StudyPlan:
    """What a budget allows.

    Attributes:
        budget: Seconds from the start of the command to its end, of all commands together if the
            study has been extended.
        begin: When this command began, in seconds since 1970.
        end: When it must end.
        reserve: Seconds that are expected between the last trial and the end.
        throughput: Number of trials that run at once, as fast as a single one.
        workers: Number of workers.
        trial_seconds: Expected duration of the first trial alone.
        trial_epochs: Number of epochs that all its networks train together.
        fields: Fields of `RunConfig` that are not searched, as text, without those that the user
            has fixed.
        dataset: Properties of the images; None if the experiment is not `auto`.
        speed: Speed of the machine; None until it is measured.
        weights_error: Why ImageNet's weights cannot be loaded, or ''.
        choices: Choices of the rules; none if the experiment is not `auto`.
        ensemble: Maximum number of trials whose ensemble is registered.
        like: Name of the earlier study whose best trials are tried first, or ''.
    """

    budget: float
    begin: float
    end: float
    reserve: float
    throughput: float = 1.0
    workers: int = 1
    trial_seconds: float = 0.0
    trial_epochs: int = 1
    fields: dict[str, str] = field(default_factory=dict)
    dataset: DatasetFingerprint | None = None
    speed: TrainingSpeed | None = None
    weights_error: str = ""
    choices: list[Choice] = field(default_factory=list)
    ensemble: int = 1
    like: str = ""

    @property
    def limits(self) -> dict[str, float]:
        """Return the fields of `StudyLimits` that follow from the plan."""
        trial_seconds = self.trial_seconds * self.workers / self.throughput
        return {
            "begin": self.begin,
            "end": self.end,
            "reserve": self.reserve,
            "epoch_seconds": trial_seconds / self.trial_epochs,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        return asdict(self)

    @classmethod
    def from_study(cls, study: optuna.Study) -> Self | None:
        """Read the plan of a study, or return None if it has none."""
        values = attributes.PLAN.get(study, {})
        if not values:
            return None
        dataset = values["dataset"] and DatasetFingerprint(**values["dataset"])
        speed = values["speed"] and TrainingSpeed(**values["speed"])
        choices = [Choice(**choice) for choice in values["choices"]]
        return cls(**{**values, "dataset": dataset, "speed": speed, "choices": choices})


def continue_plan(
    study: optuna.Study, budget: Budget, begin: float, workers: int, throughput: float
) -> StudyPlan:
    """Return the plan of an existing study with the time of a new command.

    Args:
        study: The study.
        budget: Budget of the new command.
        begin: When it began, in seconds since 1970.
        workers: See `StudyPlan`.
        throughput: See `StudyPlan`.

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
        total, seconds = plan.budget + budget.seconds, float(budget.seconds)
    else:
        total = max(plan.budget, budget.seconds)
        seconds = max(0.0, total - attributes.SPENT_SECONDS.get(study, 0.0))
    echo(f"plan: {format_seconds(seconds)} of {format_seconds(total)} are left")
    return replace(
        plan,
        budget=total,
        begin=begin,
        end=begin + seconds,
        workers=workers,
        throughput=throughput,
    )


def how_to_resume(study: optuna.Study) -> str:
    """Return in words how to resume a study, for the rest of its budget if it has one."""
    text, plan = how_to_continue(study.study_name), StudyPlan.from_study(study)
    return f"{text} {session.format_option('budget', f'{plan.budget:.0f}')}" if plan else text


def refuse_without_budget(study: optuna.Study) -> None:
    """Raise `UserError` if a study that has a budget is continued without one."""
    if attributes.PLAN.get(study, {}):
        raise UserError(
            f"study '{study.study_name}' has a budget: got none. Continue it with its own budget, "
            "or with more time (--budget +1h)."
        )


def summarize_plan(study: optuna.Study) -> PlanSummary | None:
    """Describe the plan of a study for its report, or return None if it has none."""
    plan = StudyPlan.from_study(study)
    if plan is None:
        return None
    names = "topic", "choice", "condition", "reason", "source"
    return PlanSummary(
        budget=format_seconds(plan.budget),
        rows=[*_describe_time(plan), *_describe_dataset(plan), *_describe_search(plan)],
        choices=[tuple(getattr(choice, name) for name in names) for choice in plan.choices],
        omitted=[text for choice in plan.choices for text in choice.omitted],
        weights_error=plan.weights_error,
    )


def _describe_time(plan: StudyPlan) -> Iterator[tuple[str, str]]:
    yield "budget", format_seconds(plan.budget)
    yield "of it for the end, as expected", format_seconds(plan.reserve)
    yield "a trial, as expected", format_seconds(plan.trial_seconds)
    images = 1 / plan.speed.epoch_seconds(128, 1)
    yield "training at 128 px, as measured", f"{images:,.0f} images/s"


def _describe_dataset(plan: StudyPlan) -> Iterator[tuple[str, str]]:
    if not (dataset := plan.dataset):
        return
    yield "decoding, as measured", f"{1 / dataset.decoding_seconds:,.0f} images/s"
    yield "images", ", ".join(f"{split} {count:,}" for split, count in dataset.images.items())
    yield "patients outside test", f"{dataset.patients:,}"
    yield "pneumonia outside test", f"{dataset.prevalence:.1%}"
    yield "images outside test with an identical file", f"{dataset.duplicates:,}"
    yield "shorter side, median", f"{dataset.side:.0f} pixels"
    yield "width / height, median", f"{dataset.aspect_ratio:.2f}"
    if dataset.metadata_auc is not None:
        title = "AUC of size, aspect ratio and bytes of the files for the label"
        yield title, f"{dataset.metadata_auc:.2f}"


def _describe_search(plan: StudyPlan) -> Iterator[tuple[str, str]]:
    trials = f", then the best trials of {plan.like}" if plan.like else ""
    yield "trials", f"the baseline{trials}, then TPE"
    if plan.ensemble > 1:
        yield "end", f"an ensemble of up to {plan.ensemble} trials, if it is better on validation"
    elif plan.choices:
        yield "end", "the best trial alone, because there is no time to evaluate an ensemble"
