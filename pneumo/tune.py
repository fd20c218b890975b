"""A whole study: its search, its winner and its end."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import optuna
from optuna.trial import TrialState

from pneumo import cluster, launch, registry, tracking
from pneumo.config import SCORES
from pneumo.console import import_tensorflow, say, table
from pneumo.errors import without_passwords
from pneumo.pages import short
from pneumo.study import (
    STORE_ERRORS,
    Goal,
    Plan,
    StudyStopped,
    await_others,
    begin,
    display_of,
    end_dead,
    evict,
    last_value,
    load,
    open_storage,
    settle,
    take_over,
)
from pneumo.study_page import DONE, PAGE, STOPPED, StudyPage


@dataclass(frozen=True)
class Outcome:
    """A finished study: its trials, the version its winner became, how that does on test.

    `searched`: see `Plan.searched`; `findings`: see `evidence.examine`.
    """

    study: optuna.Study
    searched: list[str]
    model_name: str
    version: int
    test_metrics: dict[str, float]
    findings: list[str]


def tune(
    plan: Plan,
    *,
    trials: int,
    model_name: str,
    name: str = "",
    timeout: float | None = None,
    keep_models: int | None = None,
    workers: int = 1,
    trial_timeout: int | None = None,
    launcher: str = "local",
) -> Outcome:
    """A whole study: searches, scores the winner on test once, registers it as `@challenger`.

    A study that is there already under `name` is continued up to `trials` in total, under its
    own run. `trials` counts complete and pruned ones; after `timeout` seconds no new one starts.
    `keep_models`: of how many of the best trials the models are kept, of all of them by default.
    `workers`: processes that search; 1 is this one, unless there is a `trial_timeout`, seconds
    after which a trial is ended with its process. `launcher`: `ray` for `workers` tasks of a Ray
    cluster instead.
    Without a `name` the study is called after the experiment and its run. Raises `Mistake`
    where a study of that name asks something else, and `StudyStopped` where there is no winner.
    """
    goal = Goal(trials, time.time() + timeout if timeout else None, keep_models, trial_timeout)
    searching = partial(search, workers=workers, launcher=launcher)
    storage = open_storage()
    tags = tracking.subject_tags(plan.experiment.name, plan.dataset)
    if name in optuna.get_all_study_names(storage):
        study = load(storage, name, plan)
        run_id = study.user_attrs["run_id"]
        tags |= {"pneumo.study": name, "mlflow.parentRunId": run_id, **tracking.process_tags()}
        with tracking.command_run("resume", name, tags), tracking.reopened(run_id):
            take_over(study, plan)
            return _search_and_crown(study, plan, goal, searching, model_name)
    with tracking.command_run("study", "", tags, system_metrics=True) as run_id:
        study = begin(storage, name or f"{plan.experiment.name}-{run_id[:8]}", plan, run_id)
        return _search_and_crown(study, plan, goal, searching, model_name)


def _search_and_crown(
    study: optuna.Study,
    plan: Plan,
    goal: Goal,
    searching: Callable[..., None],
    model_name: str,
) -> Outcome:
    goal.set(study)
    page = StudyPage(study, plan)
    try:
        searching(study, plan, then=page.refresh)
        await_others(study)
        settle(study)
        if goal.keep_models:
            evict(study, goal.keep_models)
        outcome = _crown(study, plan, model_name)
        page.write(DONE)
        return outcome
    except (KeyboardInterrupt, StudyStopped) as end:
        if not end.__cause__:  # else it is a store that failed, and need not be asked again
            end_dead(study)  # a worker that has had to be killed
            settle(study)
            page.write(STOPPED)
        if isinstance(end, KeyboardInterrupt):
            say(f"to continue, give the same command with -P study={study.study_name}")
        raise
    except STORE_ERRORS as error:
        reason = without_passwords(str(error)).partition("\n")[0]
        raise StudyStopped(
            f"a store of the study has failed ({reason}); what was finished is kept: see that it "
            f"answers, and give the same command with -P study={study.study_name}"
        ) from error


def search(
    study: optuna.Study,
    plan: Plan,
    workers: int = 1,
    launcher: str = "local",
    then: Callable[[], None] = lambda: None,
) -> None:
    """Runs trials until the study's goal is reached, and calls `then` after each of them.

    `workers`, `launcher`: see `tune`.
    """
    goal = Goal.of(study)
    if launcher == "ray":
        cluster.launch(study, plan, workers, then)
        return
    if workers > 1 or goal.trial_timeout:
        launch.launch(study, plan, workers, then)
        return
    import_tensorflow()
    from pneumo.work import search_trials

    with display_of(study, then=then) as display:
        search_trials(study, plan, display)


def _crown(study: optuna.Study, plan: Plan, model_name: str) -> Outcome:
    """Registers the best trial's model and touches test, once and for it alone.

    A continued study whose best trial is still the same keeps what was found for it.
    """
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        raise StudyStopped("no trial came to its end, so there is no winner; allow more time")
    import_tensorflow()  # several workers have got on without it here until now
    from pneumo import evidence

    best = study.best_trial
    winner = study.user_attrs.get("winner", {})
    if winner.get("trial") != best.number:
        model = registry.load(best.user_attrs["model_uri"])
        stored = registry.register(best.user_attrs["run_id"], model, model_name)
        found = evidence.examine(stored, evidence.images_for(stored, plan.dataset), "test")
        winner = {
            "trial": best.number,
            "model_name": model_name,
            "version": stored.version,
            "test_metrics": found.evaluation.metrics,
            "findings": found.findings,
        }
        if followed := study.user_attrs.get("winner"):  # its evidence page has been replaced
            registry.describe(followed["model_name"], followed["version"])
        study.set_user_attr("winner", winner)
    found = (winner[name] for name in ("model_name", "version", "test_metrics", "findings"))
    return Outcome(study, plan.searched(), *found)


def show(outcome: Outcome) -> None:
    """The table of a study's trials, the best of them marked, and what became of it."""
    best = outcome.study.best_trial.number
    rows = []
    for trial in outcome.study.get_trials(deepcopy=False):
        failed = trial.state == TrialState.FAIL
        config = trial.user_attrs.get("config", {})
        rows.append(
            (
                f"{trial.number}{' best' if trial.number == best else ''}",
                trial.state.name,
                "" if failed else f"{last_value(trial):.4f}",
                *(short(config.get(name, "")) for name in outcome.searched),
            )
        )
    score = SCORES[outcome.study.user_attrs["objective"]]
    columns = "trial", "state", score, *outcome.searched
    table(f"Study {outcome.study.study_name}", columns, rows)
    test = outcome.test_metrics
    say(
        f"best: trial {best}, {score} {outcome.study.best_value:.4f}; "
        f"test AUC {test['auc']:.4f} ({test['auc_low']:.4f} to {test['auc_high']:.4f}), "
        f"accuracy {test['accuracy']:.1%} at threshold {test['threshold']:.3f}"
    )
    for finding in outcome.findings:
        say(f"note: {finding}")
    say(f"registered: {outcome.model_name} version {outcome.version} as @{registry.CHALLENGER}")
    run_id = outcome.study.user_attrs["run_id"]
    say(f"the study's page: {tracking.where_to_open(run_id, PAGE)}")
    say(tracking.how_to_look(run_id))
