"""A process's work on a study: one trial after the other, until its limits are reached."""

import faulthandler
import gc
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import fmean

import optuna
from optuna.trial import FrozenTrial, TrialState

from pneumo.runtime import signals
from pneumo.runtime.console import echo
from pneumo.runtime.errors import StudyFailedError, format_error
from pneumo.runtime.process import ProcessId
from pneumo.tracking import runs
from pneumo.tracking.tags import STUDY
from pneumo.training.config import RunConfig
from pneumo.training.fit import EpochCallback
from pneumo.tuning import attributes
from pneumo.tuning.limits import (
    INTERRUPTED,
    MAX_CONSECUTIVE_FAILURES,
    FailureCounter,
    StudyLimits,
    repeated_failure,
    require_no_repeated_failure,
)
from pneumo.tuning.planning.fingerprint import count_networks
from pneumo.tuning.selection import complete_trials
from pneumo.tuning.spec import StudySpec
from pneumo.tuning.study import delete_models_beyond_best, replace_lost_trials, running_trials
from pneumo.tuning.trial import run_name, run_trial

# Another epoch, and the predictions and the evaluation after it, which take less than an epoch
REMAINING_EPOCHS = 1.5


def run_trials(
    study: optuna.Study,
    spec: StudySpec,
    update: Callable[[], None] = lambda: None,
    enforce_timeout: bool = False,
) -> None:
    """Run trials until the study's limits are reached, and replace failed trials.

    If a store fails between two trials, the search continues.

    Args:
        study: A study whose `StudyLimits` are set.
        spec: Search of the study.
        update: Called twice a second while a trial trains, and when a trial has ended.
        enforce_timeout: Whether a trial that exceeds the limits' `trial_timeout` is ended together
            with this process. A traceback of each thread is then printed on standard error.

    Raises:
        StudyFailedError: Three trials in a row failed with the same type of error, or a store
            failed three times without a trial in between.
    """
    gc.freeze()  # modules stay, so later collections can skip them
    loop = _TrialLoop(study, spec, update, enforce_timeout)
    failures = FailureCounter(lambda: loop.ended)
    while True:
        try:
            loop.finish_own_trials()
            return loop.run()
        except StudyFailedError:
            raise
        except Exception as error:  # from a store: Optuna catches errors of trials
            reason = format_error(error).partition("\n")[0]
            if failures.add():
                raise StudyFailedError(
                    f"MLflow or Optuna's database failed {MAX_CONSECUTIVE_FAILURES} times without "
                    f"a finished trial in between ({reason}). Check that both are available, and "
                    "continue the study."
                ) from error
            echo(f"MLflow or Optuna's database failed, and the search continues ({reason})")


class _TrialLoop:
    """A process's work on a study."""

    def __init__(
        self,
        study: optuna.Study,
        spec: StudySpec,
        update: Callable[[], None],
        enforce_timeout: bool,
    ) -> None:
        self._study, self._spec, self._update = study, spec, update
        self._enforce_timeout = enforce_timeout
        self._scores: dict[int, float] = {}
        self._deleted_models: set[int] = set()  # by the numbers of their trials
        self._has_lost_trials = False
        self.ended = 0  # trials

    def run(self) -> None:
        """Run trials until the limits are reached, or three in a row have failed."""
        self._limits = StudyLimits.from_study(self._study)
        if self._limits.is_reached(self._study):
            return
        signals.raise_if_interrupted()  # before a trial starts that would be lost
        self._study.optimize(
            self._objective,
            callbacks=[self._trial_ended],
            catch=(Exception,),  # a failed trial does not end the search
        )
        require_no_repeated_failure(self._study)

    def finish_own_trials(self) -> None:
        """End this process's running trials: a trial with a score is complete, others are lost."""
        process = ProcessId.current()
        own_trials = [
            trial
            for trial in running_trials(self._study)
            if tuple(attributes.PROCESS.get(trial, ())) == process
        ]
        self._has_lost_trials |= bool(own_trials)  # also if the store fails again below
        for trial in own_trials:
            score = self._scores.get(trial.number)
            state = TrialState.FAIL if score is None else TrialState.COMPLETE
            self._study.tell(trial.number, score, state, skip_if_finished=True)
        if self._has_lost_trials:
            replace_lost_trials(self._study, self._spec)
        self._has_lost_trials = False

    def _trial_ended(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.ended += 1
        self._update()
        if n_kept := self._limits.keep_models:
            self._deleted_models = delete_models_beyond_best(study, n_kept, self._deleted_models)
        if self._limits.is_reached(study) or repeated_failure(study):
            study.stop()
        signals.raise_if_interrupted()  # before the next trial starts

    def _objective(self, trial: optuna.Trial) -> float:
        limit = self._limits.trial_timeout if self._enforce_timeout else None
        with _hard_timeout(limit):
            score = _objective(trial, self._spec, self._update)
        self._scores = {trial.number: score}
        return score


@contextmanager
def _hard_timeout(seconds: int | None) -> Iterator[None]:
    """End the process after so many seconds, and print each thread's traceback on standard error.

    `faulthandler` does this from a C thread. So it works even if a fit holds the GIL or blocks
    signals.
    """
    if not seconds:
        yield
        return
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _objective(trial: optuna.Trial, spec: StudySpec, update: Callable[[], None]) -> float:
    study = trial.study
    attributes.PROCESS.set(trial, ProcessId.current())
    tags = runs.provenance_tags(spec.experiment.name, spec.dataset)
    try:
        config = spec.suggest(trial)
        attributes.CONFIG.set(trial, config.to_params())
        name = run_name(config)
        attributes.NAME.set(trial, name)
        depth_range = trial.distributions.get("unfreeze_depth")
        result = run_trial(
            config,
            spec.dataset,
            [_pruning_callback(trial, config), _time_limit(trial, config)],
            max_unfreeze_depth=depth_range.high if depth_range else config.unfreeze_depth,
            meanwhile=update,
            parent_id=attributes.RUN_ID.read(study),
            name=f"trial {trial.number} · {name}",
            tags={**tags, STUDY: study.study_name},
            trial_number=trial.number,
            pruned=optuna.TrialPruned,
        )
    except optuna.TrialPruned:
        raise
    except KeyboardInterrupt:
        attributes.ERROR.set(trial, INTERRUPTED)
        raise
    except Exception as error:
        attributes.ERROR.set(trial, format_error(error))
        raise
    attributes.RUN_ID.set(trial, result.run_id)
    attributes.MODEL_URI.set(trial, result.model_uri)
    attributes.SECONDS.set(trial, result.seconds)
    return result.metrics[config.objective.removeprefix("val_")]


def _time_limit(trial: optuna.Trial, config: RunConfig) -> EpochCallback:
    """Return a callback that ends training if the next epoch would take the study too long.

    A trial of a single network is then complete, with fewer epochs. One of several networks is
    pruned, because the networks that are missing cannot be left out; but not before another trial
    is complete, without which the study would have no model.
    """
    study = trial.study
    limits = StudyLimits.from_study(study)
    end = limits.trials_end(study)
    n_networks = count_networks(config.to_params())
    previous_end = time.time()

    def stop(epoch: int, _: Mapping[str, float]) -> bool:
        nonlocal previous_end
        now = time.time()
        seconds, previous_end = now - previous_end, now
        if epoch % config.epochs == 1 and limits.epoch_seconds:  # it includes tracing
            seconds = min(seconds, limits.epoch_seconds)
        is_last = epoch == n_networks * config.epochs
        if end is None or is_last or now + REMAINING_EPOCHS * seconds <= end:
            return False
        if n_networks == 1 or not complete_trials(study):
            attributes.IS_CUT.set(trial, True)
            return True
        raise optuna.TrialPruned("no time for the next epoch")

    return stop


def _pruning_callback(trial: optuna.Trial, config: RunConfig) -> EpochCallback:
    """Return a callback that reports the mean of the networks so far, and may end the trial.

    Each finished network counts with its best epoch, and the present one with this epoch.
    """
    best: dict[int, float] = {}  # network, from 0 → best score

    def report(epoch: int, metrics: Mapping[str, float]) -> None:
        network, score = (epoch - 1) // config.epochs, metrics[config.objective]
        finished = [value for number, value in best.items() if number < network]
        best[network] = max(score, best.get(network, score))
        trial.report(fmean([*finished, score]), epoch)
        if trial.should_prune():
            raise optuna.TrialPruned(f"below the median after epoch {epoch}")

    return report
