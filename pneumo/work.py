"""What works on a study: one trial after the other, until there are enough."""

import faulthandler
import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import IO, Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState

from pneumo import interrupt, tracking
from pneumo.config import SCORES
from pneumo.errors import in_words
from pneumo.process import ProcessId
from pneumo.study import (
    FAILURES_IN_A_ROW,
    INTERRUPTED,
    Goal,
    Plan,
    StudyStopped,
    best_so_far,
    counted,
    evict,
    last_value,
    repeated_failure,
    running,
)
from pneumo.train import EpochCallback
from pneumo.trial import run_name, run_trial


class Display(Protocol):
    """What hears of the trials, as `console.StudyDisplay` does."""

    def epoch(self, trial: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """A trial has come so far."""

    def trial(
        self, line: str, done: int, best: tuple[int, float] | None, took: float | None
    ) -> None:
        """A trial has ended, of which `line` tells.

        `done` counts those of the study that count; `best`: number and score of the best of them;
        `took`: seconds, None where it has failed.
        """

    def note(self, line: str) -> None:
        """Something else to tell."""


def search_trials(
    study: optuna.Study, plan: Plan, display: Display, hung: IO[str] | None = None
) -> None:
    """Runs trials until the study's goal is reached; a failed one is replaced.

    When a store fails between two trials, the search goes on. With `hung`, an open file, the
    goal's `trial_timeout` holds: beyond it a trial is ended, with this process, and the file tells
    where it was. Raises `StudyStopped` after three failures of the same kind in a row.
    """
    gc.freeze()  # modules stay: the collection before each trial need not go through them
    work = _Work(study, plan, display, hung)
    failures = 0
    while True:
        try:
            if failures:
                work.settle()
            return work.search()
        except StudyStopped:
            raise
        except Exception as error:  # of a store: those of a trial stay with it
            failures = failures + 1 if not work.ended else 1
            reason = in_words(error).partition("\n")[0]
            if failures == FAILURES_IN_A_ROW:
                raise StudyStopped(
                    f"a store of the study has failed {failures} times without a trial between "
                    f"({reason}); see that it answers, and give the same command again"
                ) from error
            display.note(f"a store of the study has failed, and the search goes on ({reason})")


class _Work:
    """A process's work on a study."""

    def __init__(
        self, study: optuna.Study, plan: Plan, display: Display, hung: IO[str] | None
    ) -> None:
        self._study, self._plan, self._display, self._hung = study, plan, display, hung
        self._scores: dict[int, float] = {}
        self.ended = 0  # trials since the search was begun or taken up

    def search(self) -> None:
        """Trials, until there are enough or there is no hope."""
        self.ended = 0
        self._goal = Goal.of(self._study)
        if self._goal.reached(self._study):
            return
        interrupt.check()  # a trial would begin and be lost
        self._study.optimize(
            self._objective,
            callbacks=[self._trial_ended],
            catch=(Exception,),  # a failure gets no score, and the search goes on without it
        )
        if error := repeated_failure(self._study):
            raise StudyStopped(
                f"{FAILURES_IN_A_ROW} trials in a row failed alike ({error}); "
                "the traceback is with their runs in MLflow: mend the cause and start again"
            )

    def settle(self) -> None:
        """Ends what this process left running; what has its score already is complete."""
        for trial in running(self._study):
            if tuple(trial.user_attrs.get("process", ())) == ProcessId.current():
                score = self._scores.get(trial.number)
                state = TrialState.FAIL if score is None else TrialState.COMPLETE
                self._study.tell(trial.number, score, state, skip_if_finished=True)

    def _trial_ended(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.ended += 1
        took = None if trial.state == TrialState.FAIL else trial.duration.total_seconds()
        self._display.trial(_line(trial), counted(study), best_so_far(study), took)
        if keep := self._goal.keep_models:
            evict(study, keep, at_most=1)  # those beyond have gone before
        if self._goal.reached(study) or repeated_failure(study):
            study.stop()
        interrupt.check()  # so would the next one

    def _objective(self, trial: optuna.Trial) -> float:
        limit = self._goal.trial_timeout if self._hung else None
        with _at_most(limit, self._hung):
            score = _objective(trial, self._plan, self._display)
        self._scores = {trial.number: score}
        return score


@contextmanager
def _at_most(seconds: int | None, file: IO[str] | None) -> Iterator[None]:
    """Ends the process after so many seconds; the file then tells where each thread was.

    The one who does it is a thread that Python does not run: a fit that holds Python's lock, or
    hears no signal, cannot keep it from that.
    """
    if not seconds:
        yield
        return
    faulthandler.dump_traceback_later(seconds, exit=True, file=file)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _objective(trial: optuna.Trial, plan: Plan, display: Display) -> float:
    study = trial.study
    trial.set_user_attr("process", ProcessId.current())
    tags = tracking.subject_tags(plan.experiment.name, plan.dataset)
    try:
        config = plan.suggest(trial)
        trial.set_user_attr("config", config.as_text())
        name = run_name(config)
        trial.set_user_attr("name", name)
        depths = trial.distributions.get("unfreeze_depth")
        done = run_trial(
            config,
            plan.dataset,
            [_pruning(trial, config.objective), partial(display.epoch, trial.number)],
            deepest=depths.high if depths else config.unfreeze_depth,
            parent_id=study.user_attrs["run_id"],
            name=f"trial {trial.number} · {name}",
            tags={**tags, "pneumo.study": study.study_name},
            trial_number=trial.number,
            pruned=optuna.TrialPruned,
        )
    except optuna.TrialPruned:
        raise
    except KeyboardInterrupt:
        trial.set_user_attr("error", INTERRUPTED)
        raise
    except Exception as error:
        trial.set_user_attr("error", in_words(error))
        raise
    trial.set_user_attr("run_id", done.run_id)
    trial.set_user_attr("model_uri", done.model_uri)
    trial.set_user_attr("seconds", done.seconds)
    return done.metrics[config.objective.removeprefix("val_")]


def _pruning(trial: optuna.Trial, objective: str) -> EpochCallback:
    def report(epoch: int, metrics: Mapping[str, float]) -> None:
        trial.report(metrics[objective], epoch)
        if trial.should_prune():
            raise optuna.TrialPruned(f"below the median after epoch {epoch}")

    return report


def _line(trial: FrozenTrial) -> str:
    """What a log says of a trial that has ended."""
    if trial.state == TrialState.FAIL:
        return f"trial {trial.number:3d}  failed: {trial.user_attrs.get('error', 'see its run')}"
    state = "pruned" if trial.state == TrialState.PRUNED else ""
    objective = trial.user_attrs["config"]["objective"]
    score = f"{SCORES[objective]} {last_value(trial):.4f} {state:6}"
    took = f"{trial.duration.seconds:4d} s"
    return f"trial {trial.number:3d}  {score}  {took}  {trial.user_attrs['name']}"
