"""What works on a study: one trial after the other, until there are enough."""

import gc
from collections.abc import Mapping
from functools import partial
from typing import Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState

from pneumo import tracking
from pneumo.study import (
    FAILURES_IN_A_ROW,
    INTERRUPTED,
    Goal,
    Plan,
    StudyStopped,
    counted,
    evict,
    last_value,
    repeated_failure,
)
from pneumo.train import EpochCallback
from pneumo.trial import run_name, run_trial


class Display(Protocol):
    """What hears of the trials, as `console.StudyDisplay` does."""

    def epoch(self, trial: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """A trial has come so far."""

    def trial(self, line: str, done: int) -> None:
        """A trial has ended, of which `line` tells; `done` counts those that count."""


def search_trials(study: optuna.Study, plan: Plan, display: Display) -> None:
    """Runs trials until the study's goal is reached; a failed one is replaced.

    Raises `StudyStopped` after three failures of the same kind in a row.
    """
    goal = Goal.of(study)
    if goal.reached(study):
        return
    gc.freeze()  # modules stay: the collection before each trial need not go through them

    def ended(study: optuna.Study, trial: FrozenTrial) -> None:
        display.trial(_line(trial), counted(study))
        if goal.keep_models:
            evict(study, goal.keep_models, at_most=1)  # those beyond have gone before
        if goal.reached(study) or repeated_failure(study):
            study.stop()

    study.optimize(
        lambda trial: _objective(trial, plan, display),
        callbacks=[ended],
        catch=(Exception,),  # a failure gets no score, and the search goes on without it
    )
    if error := repeated_failure(study):
        raise StudyStopped(
            f"{FAILURES_IN_A_ROW} trials in a row failed alike ({error}); "
            "the traceback is with their runs in MLflow: mend the cause and start again"
        )


def _objective(trial: optuna.Trial, plan: Plan, display: Display) -> float:
    study = trial.study
    trial.set_user_attr("process", tracking.this_process())
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
        trial.set_user_attr("error", f"{type(error).__name__}: {error}")
        raise
    trial.set_user_attr("run_id", done.run_id)
    trial.set_user_attr("model_uri", done.model_uri)
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
        return f"trial {trial.number:3d}  failed: {trial.user_attrs['error']}"
    state = "pruned" if trial.state == TrialState.PRUNED else ""
    score = f"val AUC {last_value(trial):.4f} {state:6}"
    took = f"{trial.duration.seconds:4d} s"
    return f"trial {trial.number:3d}  {score}  {took}  {trial.user_attrs['name']}"
