"""Limits of a study: when no more trials start, when they must end, and how often they may fail."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median

import optuna
from optuna.trial import FrozenTrial, TrialState

from pneumo.runtime.errors import StudyFailedError
from pneumo.tuning import attributes
from pneumo.tuning.planning.fingerprint import count_networks
from pneumo.tuning.selection import complete_trials

MAX_CONSECUTIVE_FAILURES = 3
INTERRUPTED = "interrupted"  # error of a trial that a person interrupted

FINISHED_STATES = (TrialState.COMPLETE, TrialState.PRUNED)
# Part of the median duration of a trial that must be left when a trial of one network starts, which
# may end with fewer epochs. One of several networks needs the whole duration
MIN_DURATION_FRACTION = 0.5
MAX_SLOWDOWN = 4.0  # of a machine, compared with its measured speed
MAX_END_FRACTION = 0.5  # of the time of a command
UNKNOWN_SLOWDOWN = 2.0  # as long as no trial with all of its epochs is complete


def count_finished_trials(study: optuna.Study) -> int:
    """Return the number of complete and pruned trials."""
    return len(study.get_trials(deepcopy=False, states=FINISHED_STATES))


@dataclass(frozen=True)
class StudyLimits:
    """Limits of a study, which may change each time it is resumed.

    Attributes:
        trials: Number of complete and pruned trials at which the study ends, or None.
        deadline: Seconds since 1970 after which no new trial starts, or None.
        keep_models: Number of the best trials whose models are kept, or None for all.
        trial_timeout: Seconds after which a trial fails and its process is ended, or None.
        begin: When the command began, in seconds since 1970, or 0 if it has no `end`.
        end: When the whole study must have ended, in seconds since 1970, or None.
        reserve: Seconds that are expected between the last trial and the end of the study.
        epoch_seconds: Expected duration of an epoch of the first trial, with its share of all else;
            0 if it is not known.
    """

    trials: int | None
    deadline: float | None = None
    keep_models: int | None = None
    trial_timeout: int | None = None
    begin: float = 0.0
    end: float | None = None
    reserve: float = 0.0
    epoch_seconds: float = 0.0

    @classmethod
    def from_study(cls, study: optuna.Study) -> "StudyLimits":
        """Read the limits that a study has for all processes."""
        return cls(**attributes.LIMITS.read(study))

    def save(self, study: optuna.Study) -> None:
        """Store the limits in a study."""
        attributes.LIMITS.set(study, asdict(self))

    def is_reached(self, study: optuna.Study) -> bool:
        """Return whether no new trial may start."""
        now = time.time()
        if self.trials is not None and count_finished_trials(study) >= self.trials:
            return True
        if self.deadline is not None and now >= self.deadline:
            return True
        end = self.trials_end(study)
        if end is None:
            return False
        # Without a complete trial there would be no model
        trials = complete_trials(study)
        return bool(trials) and now + _min_duration(trials) > end

    def trials_end(self, study: optuna.Study) -> float | None:
        """Return when the last trial must end, in seconds since 1970, or None.

        If the first complete trial took longer than expected, the end of the study will take longer
        in the same ratio. Before that trial the ratio is `UNKNOWN_SLOWDOWN`, so that a first trial
        that is too long for the machine leaves time for the rest. A part of the time is always left
        for trials.
        """
        if self.end is None:
            return None
        reserve = self._slowdown(study) * self.reserve
        return self.end - min(reserve, MAX_END_FRACTION * (self.end - self.begin))

    def _slowdown(self, study: optuna.Study) -> float:
        if not self.epoch_seconds:
            return 1.0
        trials = complete_trials(study)
        first = next((it for it in trials if not attributes.IS_CUT.get(it, False)), None)
        if first is None or not first.last_step:
            return UNKNOWN_SLOWDOWN
        ratio = first.duration.total_seconds() / (first.last_step * self.epoch_seconds)
        return min(max(1.0, ratio), MAX_SLOWDOWN)


def _min_duration(trials: list[FrozenTrial]) -> float:
    """Return the seconds that must be left when a trial starts.

    Args:
        trials: At least one complete trial of the study.
    """
    duration = median(trial.duration.total_seconds() for trial in trials)
    n_networks = count_networks(attributes.CONFIG.read(trials[0]))
    return duration if n_networks > 1 else MIN_DURATION_FRACTION * duration


class FailureCounter:
    """A counter of consecutive failures, between which nothing was done.

    Args:
        count_done: Returns how much has been done so far.
    """

    def __init__(self, count_done: Callable[[], int]) -> None:
        self._done, self._before, self._failures = count_done, count_done(), 0

    def add(self) -> bool:
        """Count one failure; return whether there are now `MAX_CONSECUTIVE_FAILURES`."""
        n_done = self._done()
        self._failures = self._failures + 1 if n_done == self._before else 1
        self._before = n_done
        return self._failures >= MAX_CONSECUTIVE_FAILURES


def repeated_failure(study: optuna.Study) -> str | None:
    """Return the last error if the last three ended trials failed with its type, or None."""
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    errors = [
        attributes.ERROR.get(trial, INTERRUPTED) if trial.state == TrialState.FAIL else ""
        for trial in ended[-MAX_CONSECUTIVE_FAILURES:]
    ]
    types = {error.partition(":")[0] for error in errors}
    have_one_type = len(errors) == MAX_CONSECUTIVE_FAILURES and len(types) == 1
    return errors[-1] if have_one_type and not types & {"", INTERRUPTED} else None


def require_no_repeated_failure(study: optuna.Study) -> None:
    """Raise `StudyFailedError` if the last three trials that ended have the same error."""
    if error := repeated_failure(study):
        raise StudyFailedError(
            f"{MAX_CONSECUTIVE_FAILURES} consecutive trials failed with the same type of error "
            f"({error}). Their runs in MLflow contain the tracebacks. Fix the cause, and continue "
            "the study."
        )
