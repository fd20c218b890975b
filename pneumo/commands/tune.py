"""The command `tune`: a study, its table, its winner and how to look at it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import mlflow
import optuna
from optuna.trial import TrialState

from pneumo.commands.arguments import TuneOptions
from pneumo.commands.evaluate import evaluate_model, images_for, read
from pneumo.data.dataset import open_dataset
from pneumo.experiment import load_experiment
from pneumo.reporting.html_report import short
from pneumo.reporting.study_report import DONE, PAGE, STOPPED
from pneumo.runtime.console import say, table
from pneumo.runtime.errors import StudyStopped, without_passwords
from pneumo.runtime.machine import require_gpus
from pneumo.runtime.tensorflow_import import import_tensorflow
from pneumo.tracking import evaluations, model_files, models, registry, runs, session, study_runs
from pneumo.tracking.tags import PARENT, STUDY
from pneumo.training.config import SCORES
from pneumo.training.pretrained import prepare_to_fit
from pneumo.tuning import attributes, selection
from pneumo.tuning.launchers import local, ray
from pneumo.tuning.progress import StudyProgress
from pneumo.tuning.spec import Plan, require_fits
from pneumo.tuning.storage import STORE_ERRORS, open_storage
from pneumo.tuning.study import (
    Goal,
    await_others,
    begin,
    end_dead,
    evict,
    how_to_continue,
    last_value,
    load,
    require_new,
    settle,
    take_over,
    warn_of_other_commit,
)
from pneumo.tuning.study_page import StudyPage


def tune(options: TuneOptions) -> int:
    """Search with Optuna and register the best model."""
    if options.launcher == "local":  # a cluster gives out its GPUs itself
        require_gpus(options.workers, options.workers_per_gpu)
    experiment = load_experiment(options.experiment, searched=True)
    base = experiment.base.override(options.overrides)
    require_fits(experiment, base, options.overrides)
    dataset = open_dataset(options.data, needs=("train", "test"))
    if options.workers == 1 and options.launcher == "local":
        prepare_to_fit(base)  # workers in other processes do that themselves
    if options.launcher == "ray":
        ray.require()
    session.connect()
    outcome = tune_and_register(
        Plan(experiment, dataset, options.overrides),
        trials=options.trials,
        model_name=options.model_name or "",
        name=options.study or "",
        timeout=options.timeout,
        keep_models=None if options.keep_models == "all" else options.keep_models,
        workers=options.workers,
        launcher=options.launcher,
        trial_timeout=options.trial_timeout,
    )
    print_study(outcome)
    return 0


@dataclass(frozen=True)
class Outcome:
    """A finished study: its trials, the version its winner became, how that does on test.

    `searched`: see `Plan.searched`; `findings`: see `evaluate.evaluate_model`.
    """

    study: optuna.Study
    searched: list[str]
    model_name: str
    version: int
    test_metrics: dict[str, float]
    findings: list[str]


def tune_and_register(
    plan: Plan,
    *,
    trials: int,
    model_name: str = "",
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
    `model_name`: registered model, by default the one of the study so far, or else pneumonia
    (pneumonia-sample for synthetic images).
    `keep_models`: of how many of the best trials the models are kept, of all of them by default.
    `workers`: processes that search; 1 is this one, unless there is a `trial_timeout`, seconds
    after which a trial is ended with its process. `launcher`: `ray` for `workers` tasks of a Ray
    cluster instead.
    Without a `name` the study is called after the experiment and its run. Raises `Mistake`
    where a study of that name asks something else, and `StudyStopped` where there is no winner.
    """
    goal = Goal(trials, time.time() + timeout if timeout else None, keep_models, trial_timeout)
    searching = partial(run_search, workers=workers, launcher=launcher)
    storage = open_storage()
    tags = runs.subject_tags(plan.experiment.name, plan.dataset)
    if name in optuna.get_all_study_names(storage):
        study = load(storage, name, plan)
        run_id = attributes.RUN_ID.of(study)
        tags |= {STUDY: name, PARENT: run_id, **runs.process_tags()}
        resume = runs.command_run("resume", name, tags)
        with resume as own_run_id, study_runs.reopened(run_id):
            warn_of_other_commit(study, own_run_id)
            take_over(study, plan)
            return _search_and_register(study, plan, goal, searching, model_name)
    if name:
        require_new(name)
    with runs.command_run("study", name, tags, system_metrics=True) as run_id:
        study = begin(storage, name or f"{plan.experiment.name}-{run_id[:8]}", plan, run_id)
        return _search_and_register(study, plan, goal, searching, model_name)


def _search_and_register(
    study: optuna.Study,
    plan: Plan,
    goal: Goal,
    searching: Callable[..., None],
    model_name: str,
) -> Outcome:
    goal.set(study)
    default = "pneumonia-sample" if plan.dataset.synthetic else "pneumonia"
    model_name = model_name or attributes.MODEL_NAME.get(study, default)
    attributes.MODEL_NAME.set(study, model_name)
    page = StudyPage(study, plan)
    try:
        searching(study, plan, after_trials=page.refresh)
        await_others(study)
        settle(study)
        if goal.keep_models:
            evict(study, goal.keep_models)
        outcome = _register_winner(study, plan, model_name)
        selection.store_improvement(study, plan)
        page.write(DONE)
        return outcome
    except (KeyboardInterrupt, StudyStopped) as end:
        if not end.__cause__:  # else it is a store that failed, and need not be asked again
            end_dead(study)  # a worker that has had to be killed
            settle(study)
            page.write(STOPPED)
        if isinstance(end, KeyboardInterrupt):
            say(f"to continue, {how_to_continue(study.study_name)}")
        raise
    except STORE_ERRORS as error:
        reason = without_passwords(str(error)).partition("\n")[0]
        raise StudyStopped(
            f"a store of the study has failed ({reason}); what was finished is kept: see that it "
            f"answers, and {how_to_continue(study.study_name)}"
        ) from error


def run_search(
    study: optuna.Study,
    plan: Plan,
    workers: int = 1,
    launcher: str = "local",
    after_trials: Callable[[], None] = lambda: None,
) -> None:
    """Run trials until the study's goal is reached, and show how far it has come.

    `workers`, `launcher`: see `tune`; `after_trials`: see `StudyProgress`.
    """
    with StudyProgress(study, after_trials) as progress:
        if launcher == "ray":
            ray.launch(study, plan, workers, progress)
        elif workers > 1 or Goal.of(study).trial_timeout:
            local.launch(study, plan, workers, progress)
        else:
            import_tensorflow()
            from pneumo.tuning.worker import search_trials

            search_trials(study, plan, progress.update)


def _register_winner(study: optuna.Study, plan: Plan, model_name: str) -> Outcome:
    """Register the best trial's model and evaluate it on test, once and it alone.

    The winner is stored in the study before its evaluation. Whatever fails in between, the same
    command again registers no second version, and evaluates only what has not been evaluated. A
    continued study whose best trial is the same keeps its version and its evaluation.
    """
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        raise StudyStopped("no trial came to its end, so there is no winner; allow more time")
    best, before = study.best_trial, attributes.WINNER.get(study, {})
    winner = {"trial": best.number, "model_name": model_name}
    unchanged = all(before.get(key) == value for key, value in winner.items())
    if unchanged and "test_metrics" in before:
        winner = before
    else:
        import_tensorflow()  # a driver of several workers has not needed it until now
        model = model_files.load(attributes.MODEL_URI.of(best))
        stored = registry.register_once(attributes.RUN_ID.of(best), model, model_name)
        winner["version"] = stored.version
        attributes.WINNER.set(study, winner)
        metrics, findings = _evaluate_once(study, plan, stored)
        winner |= {"test_metrics": metrics, "findings": findings}
        attributes.WINNER.set(study, winner)
        if before and before["version"] != stored.version:  # its evidence page has been replaced
            registry.describe(before["model_name"], before["version"])
    found = (winner[name] for name in ("model_name", "version", "test_metrics", "findings"))
    return Outcome(study, plan.searched(), *found)


def _evaluate_once(
    study: optuna.Study, plan: Plan, stored: models.Stored
) -> tuple[dict[str, float], list[str]]:
    """Return the winner's metrics on test and their findings.

    They are read from the study's run if that has evaluated this model before.
    """
    run = mlflow.get_run(attributes.RUN_ID.of(study))
    if evaluations.evaluated_model(run) != stored.model_id:
        found = evaluate_model(stored, images_for(stored, plan.dataset), "test")
        return found.evaluation.metrics, found.findings
    metrics, findings = read(run, "test")
    registry.tell_of_test(stored, run.info.run_id, metrics)
    looks = evaluations.count_looks(plan.dataset.images_digest("test"))
    registry.log_test_evaluations(stored, looks[stored.model_id])
    return metrics, findings


def print_study(outcome: Outcome) -> None:
    """The table of a study's trials, the best of them marked, and what became of it."""
    best = outcome.study.best_trial.number
    rows = []
    trials = outcome.study.get_trials(deepcopy=False)
    waiting = sum(trial.state == TrialState.WAITING for trial in trials)
    for trial in trials:
        if trial.state == TrialState.WAITING:  # it has neither values nor a score
            continue
        score = None if trial.state == TrialState.FAIL else last_value(trial)
        config = attributes.CONFIG.get(trial, {})
        rows.append(
            (
                f"{trial.number}{' best' if trial.number == best else ''}",
                trial.state.name,
                "" if score is None else f"{score:.4f}",
                *(short(config.get(name, "")) for name in outcome.searched),
            )
        )
    score = SCORES[attributes.OBJECTIVE.of(outcome.study)]
    columns = "trial", "state", score, *outcome.searched
    table(f"Study {outcome.study.study_name}", columns, rows)
    if waiting:
        say(f"{waiting} queued trials have not started: continue the study with more trials")
    test = outcome.test_metrics
    say(
        f"best: trial {best}, {score} {outcome.study.best_value:.4f}; "
        f"test AUC {test['auc']:.4f} ({test['auc_low']:.4f} to {test['auc_high']:.4f}), "
        f"accuracy {test['accuracy']:.1%} at threshold {test['threshold']:.3f}"
    )
    for finding in outcome.findings:
        say(f"note: {finding}")
    say(f"registered: {outcome.model_name} version {outcome.version} as @{registry.CHALLENGER}")
    run_id = attributes.RUN_ID.of(outcome.study)
    say(f"the study's page: {session.where_to_open(run_id, PAGE)}")
    say(session.how_to_look(run_id))
