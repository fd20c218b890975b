"""What the report on a study shows, as plain values."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import optuna

from pneumo.data.dataset import Dataset
from pneumo.evaluation.bootstrap import Improvement
from pneumo.training.config import RunConfig

# State of a study
RUNNING, STOPPED, DONE = "running", "stopped", "done"


@dataclass(frozen=True)
class TrialSummary:
    """A trial's part of the report.

    Attributes:
        number: Optuna's number of the trial.
        state: Optuna's name of its state, as `COMPLETE`.
        run_id: Id of its run, or '' if it has not stored one.
        name: Name of its run, or '' if it has none yet.
        score: Objective, of a pruned or running trial the last one; None if it has none.
        config: Fields of `RunConfig` as text.
        epochs: Number of the last epoch with a score, or 0.
        is_cut: Whether it had no time for its other epochs.
        seconds: Duration, 0 while it runs.
        error: Why it failed, or ''.
    """

    number: int
    state: str
    run_id: str
    name: str
    score: float | None
    config: dict[str, str]
    epochs: int
    is_cut: bool
    seconds: float
    error: str


@dataclass(frozen=True)
class EnsembleSummary:
    """An ensemble of a study's trials.

    Attributes:
        members: Numbers of its trials. A trial that counts several times is listed several times.
        size: Maximum number of members.
        candidates: Number of trials from which they were selected.
        score: Objective of the ensemble.
        best_score: Objective of the best trial, from the same logits.
        gain: Expected gain in the objective over the best trial: see `ensemble.estimate_gain`. None
            if it is not known.
        gain_low: Lower bound of its 95 % interval, or None.
        gain_high: Upper bound, or None.
        run_id: Id of its run.
        model_uri: URI of its model.
    """

    members: list[int]
    size: int
    candidates: int
    score: float
    best_score: float
    gain: float | None
    gain_low: float | None
    gain_high: float | None
    run_id: str
    model_uri: str

    @property
    def weights(self) -> dict[int, int]:
        """Return how often each trial counts, by its number."""
        return dict(Counter(self.members))

    @property
    def title(self) -> str:
        """Return the name of the ensemble for people."""
        trials = [
            f"{number} ({weight} times)" if weight > 1 else f"{number}"
            for number, weight in self.weights.items()
        ]
        return f"the ensemble of trials {', '.join(trials)}"


@dataclass(frozen=True)
class PlanSummary:
    """A plan as the report shows it.

    Attributes:
        budget: The whole time in words.
        rows: Properties of the time, the images and the search, with their values in words.
        choices: Topic, choice, condition, reason and source of each choice.
        omitted: What the budget did not allow, in words.
        weights_error: Why ImageNet's weights cannot be loaded, or ''.
    """

    budget: str
    rows: list[tuple[str, str]]
    choices: list[tuple[str, str, str, str, str]]
    omitted: list[str]
    weights_error: str


@dataclass(frozen=True)
class StudySummary:
    """The content of the report on a study at one moment.

    Attributes:
        study: The study, for its plots.
        run_id: Id of its run.
        state: `RUNNING`, `STOPPED` or `DONE`.
        experiment: Name of its experiment.
        question: Question of the experiment, or ''.
        dataset: Its images.
        base: Config of the baseline.
        experiment_base: Fields of the experiment's base config as text.
        fixed: Values of the fields that are not searched, as text.
        searched_fields: Names of the fields that are searched.
        warm_start: Trials of an earlier study that it tries first, in words, or ''.
        n_trials: Number of trials at which the study ends, or None.
        n_done: Number of complete and pruned trials.
        trials: All of its trials, by number.
        best: The best of the complete trials, or None if there is none.
        baseline: The first complete trial with the baseline's values, or None if there is none.
        improvement: Improvement of the best over the baseline, or None if it is not known.
        ensemble: The ensemble that is registered in place of the best trial, or None.
        winner: The registered model with its metrics on test, or None before its evaluation.
        seconds: Activity → seconds that the study's processes spent on it.
        changed_ranges: Hyperparameter, first trial, and range before and from then on.
        at_edge: Hyperparameters whose best value is near an end of its range.
        how_to_continue: How to resume the study, in words.
        plan: Its plan, or None if it has no budget.
    """

    study: optuna.Study
    run_id: str
    state: str
    experiment: str
    question: str
    dataset: Dataset
    base: RunConfig
    experiment_base: dict[str, str]
    fixed: dict[str, str]
    searched_fields: list[str]
    warm_start: str
    n_trials: int | None
    n_done: int
    trials: list[TrialSummary]
    best: TrialSummary | None
    baseline: TrialSummary | None
    improvement: Improvement | None
    ensemble: EnsembleSummary | None
    winner: dict[str, Any] | None
    seconds: dict[str, float]
    changed_ranges: list[tuple[str, int, str, str]]
    at_edge: list[str]
    how_to_continue: str
    plan: PlanSummary | None

    @property
    def size(self) -> str:
        """Return the study's limits in words, as `20 trials of at most 8 epochs within 1 h`."""
        count = f"{self.n_trials} trials" if self.n_trials else "trials"
        time = f" within {self.plan.budget}" if self.plan else ""
        return f"{count} of at most {self.base.epochs} epochs{time}"

    @property
    def progress(self) -> str:
        """Return how many trials are done, and of how many if that is limited."""
        return f"{self.n_done} of {self.n_trials}" if self.n_trials else f"{self.n_done}"
