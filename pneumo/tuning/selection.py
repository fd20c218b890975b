"""Improvement of a study's best trial over its baseline, and the trials to choose from.

Nothing in this module needs TensorFlow.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import mlflow
import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from pneumo.evaluation import bootstrap
from pneumo.evaluation.bootstrap import Improvement
from pneumo.runtime import signals
from pneumo.runtime.console import echo
from pneumo.runtime.errors import format_error
from pneumo.tracking import results
from pneumo.tuning import attributes
from pneumo.tuning.spec import StudySpec


def complete_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that can be the best; a pruned trial has no predictions and cannot."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def find_baseline(complete: Sequence[FrozenTrial], spec: StudySpec) -> FrozenTrial | None:
    """Return the first complete trial with the baseline's values.

    Args:
        complete: Complete trials by number.
        spec: Search of the study.

    Returns:
        The trial, or None if there is none.
    """
    baseline_params = spec.baseline()
    return next((trial for trial in complete if trial.params == baseline_params), None)


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
    baseline, best = find_baseline(complete, spec), study.best_trial
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
