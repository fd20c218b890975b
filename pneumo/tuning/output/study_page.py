"""The page of a study: when it is written, and its content."""

import math
import time
from collections import defaultdict
from collections.abc import Iterator

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from pneumo.reporting.study_report import StudyReport
from pneumo.reporting.study_summary import (
    RUNNING,
    EnsembleSummary,
    StudySummary,
    TrialSummary,
)
from pneumo.runtime.console import echo
from pneumo.runtime.errors import format_error
from pneumo.tracking import study_runs
from pneumo.training.config import rename_fields
from pneumo.tuning import attributes, selection
from pneumo.tuning.limits import StudyLimits, count_finished_trials
from pneumo.tuning.planning.plan import how_to_resume, summarize_plan
from pneumo.tuning.spec import StudySpec

MIN_REFRESH_SECONDS = 60  # minimum time between two pages of a running study
MAX_OVERHEAD_FRACTION = 0.05  # maximum fraction of the time that pages take
EDGE_FRACTION = 0.05  # of a hyperparameter's range; closer to an end, better values may lie beyond


class StudyPage:
    """Writer of a study's page, below `study/` of its run in MLflow.

    It also stores the page's text, in short, as the description of the run.
    """

    def __init__(self, study: optuna.Study, spec: StudySpec) -> None:
        self._study, self._spec = study, spec
        self._due = 0.0

    def refresh(self) -> None:
        """Write the page, if the last one is at least a minute old and its cost stays low."""
        if time.monotonic() >= self._due:
            self.write(RUNNING)

    def write(self, state: str) -> None:
        """Write the page of a study in `state`; print a line if that fails."""
        start = time.monotonic()
        try:
            self._write(state)
        except Exception as error:  # the trials go on without a page
            reason = format_error(error).partition("\n")[0]
            echo(f"the study report could not be written ({reason})")
        end = time.monotonic()
        self._due = end + max(MIN_REFRESH_SECONDS, (end - start) / MAX_OVERHEAD_FRACTION)

    def _write(self, state: str) -> None:
        report = StudyReport(summarize(self._study, self._spec, state))
        files = {"study.html": report.page().encode()}
        study_runs.log_study(attributes.RUN_ID.read(self._study), files, report.description())


def summarize(study: optuna.Study, spec: StudySpec, state: str) -> StudySummary:
    """Summarize a study from the present content of its storage.

    Args:
        study: The study.
        spec: Search of the study.
        state: `RUNNING`, `STOPPED` or `DONE`.
    """
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    best = selection.best_trial_of(complete)
    baseline = selection.find_baseline(complete, spec)
    winner = attributes.WINNER.get(study, {})
    ensemble = attributes.ENSEMBLE.get(study, {}) if "members" in winner else {}
    return StudySummary(
        study=study,
        run_id=attributes.RUN_ID.read(study),
        state=state,
        experiment=spec.experiment.name,
        question=spec.experiment.question,
        dataset=spec.dataset,
        base=spec.base,
        experiment_base=spec.experiment.base.to_params(),
        fixed=rename_fields(attributes.FIXED.read(study)),
        searched_fields=spec.searched_fields(),
        warm_start=_describe_warm_start(study),
        n_trials=StudyLimits.from_study(study).trials,
        n_done=count_finished_trials(study),
        trials=[_summarize_trial(trial) for trial in trials],
        best=_summarize_trial(best) if best else None,
        baseline=_summarize_trial(baseline) if baseline else None,
        improvement=selection.read_improvement(study, complete),
        ensemble=EnsembleSummary(**ensemble) if ensemble else None,
        winner=winner if "test_metrics" in winner else None,  # otherwise it is not evaluated yet
        seconds=_time_by_activity(trials),
        changed_ranges=list(_changed_ranges(trials)),
        at_edge=list(_params_at_range_edge(best)) if best else [],
        how_to_continue=how_to_resume(study),
        plan=summarize_plan(study),
    )


def _describe_warm_start(study: optuna.Study) -> str:
    warm_start = attributes.WARM_START.get(study, {})
    if not warm_start:
        return ""
    numbers = ", ".join(map(str, warm_start["trials"]))
    return f"the best trials of study {warm_start['study']} that fit the search space ({numbers})"


def _summarize_trial(trial: FrozenTrial) -> TrialSummary:
    has_score = trial.state == TrialState.COMPLETE or trial.intermediate_values
    return TrialSummary(
        number=trial.number,
        state=trial.state.name,
        run_id=attributes.RUN_ID.get(trial, ""),
        name=attributes.NAME.get(trial, ""),
        score=selection.final_score(trial) if has_score else None,
        config=rename_fields(attributes.CONFIG.get(trial, {})),
        epochs=trial.last_step or 0,
        is_cut=attributes.IS_CUT.get(trial, False),
        seconds=_seconds(trial),
        error=attributes.ERROR.get(trial, ""),
    )


def _params_at_range_edge(best: FrozenTrial) -> Iterator[str]:
    """Yield the hyperparameters whose best value is near an end with possible values beyond."""
    for name, space in best.distributions.items():
        is_continuous = isinstance(space, FloatDistribution) and not space.step
        if is_continuous and _is_near_edge(best.params[name], space):
            yield name


def _changed_ranges(trials: list[FrozenTrial]) -> Iterator[tuple[str, int, str, str]]:
    """Yield each change of a range: hyperparameter, first trial, range before and from then on."""
    ranges: dict[str, str] = {}
    for trial in trials:
        for name, space in trial.distributions.items():
            current_range = _range(space)
            if ranges.setdefault(name, current_range) != current_range:
                yield name, trial.number, ranges[name], current_range
            ranges[name] = current_range


def _range(space: BaseDistribution) -> str:
    if isinstance(space, CategoricalDistribution):
        return ", ".join(map(str, space.choices))
    step = f" in steps of {space.step}" if space.step else ""
    return f"{space.low} to {space.high}{step}"


def _is_near_edge(value: float, space: FloatDistribution) -> bool:
    """Return whether better values may lie beyond an end; below 0 there are none."""
    scale = math.log if space.log else float
    distance = EDGE_FRACTION * (scale(space.high) - scale(space.low))
    distance_to_low, distance_to_high = (
        scale(value) - scale(space.low),
        scale(space.high) - scale(value),
    )
    return distance_to_high < distance or (space.low > 0 and distance_to_low < distance)


def _seconds(trial: FrozenTrial) -> float:
    return trial.duration.total_seconds() if trial.duration else 0.0


def _time_by_activity(trials: list[FrozenTrial]) -> dict[str, float]:
    durations: dict[str, float] = defaultdict(float)
    processes = defaultdict(list)
    for trial in trials:
        if not trial.state.is_finished():
            continue
        processes[tuple(attributes.PROCESS.get(trial, ()))].append(trial)
        stages = attributes.SECONDS.get(trial, {})
        for stage, seconds in stages.items():
            durations[f"{stage} of complete trials"] += seconds
        activity = f"{trial.state.name.lower()} trials"
        durations[activity if not stages else "bookkeeping"] += _seconds(trial) - sum(
            stages.values()
        )
    for process_trials in processes.values():
        start = min(trial.datetime_start for trial in process_trials)
        end = max(trial.datetime_complete for trial in process_trials)
        idle = (end - start).total_seconds() - sum(map(_seconds, process_trials))
        durations["between trials"] += idle
    return durations
