"""Choices among trials: a study's best, its improvement over the baseline, and a warm start.

Nothing in this module needs TensorFlow.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlflow
import optuna
import pandas as pd
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from pneumo.evaluation import bootstrap
from pneumo.evaluation.bootstrap import Improvement
from pneumo.runtime import signals
from pneumo.runtime.console import echo
from pneumo.runtime.errors import UserError, format_error
from pneumo.tracking import results
from pneumo.tuning import attributes
from pneumo.tuning.spec import StudySpec
from pneumo.tuning.storage import storage_address

MAX_WARM_START_TRIALS = 5  # so that most of a study of 20 trials is a search


@dataclass(frozen=True)
class WarmStart:
    """Trials of an earlier study that a study tries again, after its initial trials.

    Attributes:
        study: Name of the earlier study.
        trials: Their numbers, best first.
        params: Their suggestions, in the same order.
    """

    study: str
    trials: list[int]
    params: list[dict[str, Any]]


def find_warm_start(storage: optuna.storages.RDBStorage, name: str, spec: StudySpec) -> WarmStart:
    """Find the best trials of an earlier study that fit a search space.

    A complete trial fits if it shares a suggestion with the space, and if the space contains the
    values of all that it shares. Other suggestions get the baseline's values. Trials that are then
    equal to the baseline or to a better one are left out.

    Args:
        storage: Optuna's database, which must contain the earlier study.
        name: Name of the earlier study.
        spec: Search of the new study.

    Returns:
        The best `MAX_WARM_START_TRIALS` of them, or fewer.

    Raises:
        UserError: There is no such study, or none of its trials fits.
    """
    if name not in (names := optuna.get_all_study_names(storage)):
        raise UserError(
            f"--like must be a study in Optuna's database at {storage_address()}, which has "
            f"{', '.join(sorted(names)) or 'none'}: got '{name}'. Set PNEUMO_STORAGE to its "
            "database, or omit --like."
        )
    earlier = optuna.load_study(storage=storage, study_name=name)
    space, baseline = spec.search_space(), spec.baseline()
    found = WarmStart(name, [], [])
    for trial in rank_trials(complete_trials(earlier)):
        shared = {key: value for key, value in trial.params.items() if key in space}
        params = baseline | shared
        if shared and params not in [baseline, *found.params] and _contains(space, params):
            found.trials.append(trial.number)
            found.params.append(params)
    if not found.trials:
        raise UserError(
            f"--like must be a study with a trial that fits the search space of "
            f"experiments/{spec.experiment.name}.py and differs from its baseline: '{name}' has "
            "none. Omit --like, or name another study."
        )
    best = slice(MAX_WARM_START_TRIALS)
    return WarmStart(name, found.trials[best], found.params[best])


def _contains(space: Mapping[str, BaseDistribution], params: Mapping[str, Any]) -> bool:
    try:
        optuna.create_trial(value=0.0, params=dict(params), distributions=dict(space))
    except ValueError:
        return False
    return True


def complete_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that can be the best; a pruned trial has no predictions and cannot."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def rank_trials(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the complete trials among some, the best first, and of equals the first.

    Of equals, `optuna.Study.best_trial` may return another one, depending on the database.
    """
    complete = (trial for trial in trials if trial.state == TrialState.COMPLETE)
    return sorted(complete, key=lambda trial: -trial.value)


def best_trial_of(trials: Iterable[FrozenTrial]) -> FrozenTrial | None:
    """Return the first of `rank_trials`, or None."""
    return next(iter(rank_trials(trials)), None)


def final_score(trial: FrozenTrial) -> float | None:
    """Return a trial's score, or the last that it reported if it is not complete, or None."""
    if trial.state == TrialState.COMPLETE:
        return trial.value
    return trial.intermediate_values.get(trial.last_step)


def find_baseline(complete: Sequence[FrozenTrial], spec: StudySpec) -> FrozenTrial | None:
    """Return the first complete trial with the baseline's values, if possible one with all epochs.

    Args:
        complete: Complete trials by number.
        spec: Search of the study.

    Returns:
        The trial, or None if there is none.
    """
    baseline_params = spec.baseline()
    trials = [trial for trial in complete if trial.params == baseline_params]
    return min(trials, key=lambda trial: attributes.IS_CUT.get(trial, False), default=None)


def store_improvement(study: optuna.Study, spec: StudySpec) -> None:
    """Compute and store a bound of the best trial's improvement over the baseline.

    See `bootstrap.bound_improvement`. Nothing is computed if the stored bound is for the same
    trials, if the baseline has no result, or if the baseline is the best. A trial without readable
    predictions is left out and not counted in `trials`. If those of the best or of the baseline
    are not readable, a line says why there is no bound.

    Args:
        study: A study with at least one complete trial.
        spec: Search of the study.
    """
    complete = complete_trials(study)
    stored = read_improvement(study, complete)
    baseline, best = find_baseline(complete, spec), best_trial_of(complete)
    if not baseline or baseline.number == best.number:
        return
    if stored and stored.trials == len(complete) - 1:  # no trial was left out
        return
    others = [trial for trial in complete if trial.number not in (baseline.number, best.number)]
    try:
        improvement = bootstrap.bound_improvement(
            _predictions(baseline), _predictions(best), _readable(study, others)
        )
    except Exception as error:  # the study has its winner in any case
        echo(f"no confidence bound for the gain over the baseline ({_reason(error)})")
        return
    attributes.IMPROVEMENT.set(study, asdict(improvement) | {"complete": len(complete)})


def read_improvement(study: optuna.Study, complete: Sequence[FrozenTrial]) -> Improvement | None:
    """Return the stored improvement.

    A study never loses a complete trial, so their number shows whether there are new ones.

    Args:
        study: The study.
        complete: Its complete trials.

    Returns:
        The improvement, or None if it is not for all of the complete trials.
    """
    stored = dict(attributes.IMPROVEMENT.get(study, {}))
    return Improvement(**stored) if stored.pop("complete", None) == len(complete) else None


def _predictions(trial: FrozenTrial) -> pd.DataFrame:
    return results.read_predictions(attributes.RUN_ID.read(trial), "val")


def _readable(study: optuna.Study, trials: Sequence[FrozenTrial]) -> Iterator[pd.DataFrame]:
    """Yield the predictions of each trial that still has some; raise if MLflow does not answer."""
    for trial in trials:
        signals.raise_if_interrupted()
        try:
            predictions = _predictions(trial)
        except Exception as error:
            mlflow.get_run(attributes.RUN_ID.read(study))  # raises if no run can be read
            echo(f"the predictions of trial {trial.number} cannot be read ({_reason(error)})")
        else:
            yield predictions


def _reason(error: Exception) -> str:
    return format_error(error).partition("\n")[0]
