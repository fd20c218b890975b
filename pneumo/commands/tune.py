"""The command `tune`: a study, its table of trials, its winner and its page."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import mlflow
import optuna

from pneumo.commands.evaluation import evaluate_model, images_for, read_evaluation
from pneumo.commands.options.arguments import TuneOptions
from pneumo.commands.options.inputs import Inputs
from pneumo.reporting.study_summary import DONE, STOPPED, EnsembleSummary
from pneumo.runtime.console import echo
from pneumo.runtime.errors import StudyFailedError, UserError, redact_passwords
from pneumo.runtime.tensorflow_import import import_tensorflow
from pneumo.tracking import evaluations, models, registry, runs, session, study_runs
from pneumo.tracking.tags import PARENT, STUDY
from pneumo.training.pretrained import prepare_to_fit
from pneumo.tuning import attributes, selection
from pneumo.tuning.launchers import local, ray
from pneumo.tuning.launchers.progress import StudyProgress
from pneumo.tuning.limits import StudyLimits
from pneumo.tuning.output.study_page import StudyPage
from pneumo.tuning.output.study_table import StudyResult, print_study
from pneumo.tuning.planning.plan import StudyPlan, how_to_resume, refuse_without_budget
from pneumo.tuning.spec import StudySpec, validate_search_space
from pneumo.tuning.storage import STORE_ERRORS, open_storage
from pneumo.tuning.study import (
    check_name_is_new,
    create_study,
    delete_models_beyond_best,
    fail_dead_trials,
    load_study,
    prepare_resume,
    reconcile_runs,
    wait_for_running_trials,
    warn_of_other_commit,
)

DEFAULT_TRIALS = 20  # without a budget


def tune(options: TuneOptions, inputs: Inputs) -> int:
    """Search with Optuna, register the best model, and return the exit code."""
    if options.launcher == "ray":
        ray.check_prerequisites()
    spec = StudySpec(inputs.experiment, inputs.dataset, options.overrides)
    plan, name = None, options.study or ""
    if options.budget:
        import_tensorflow()
        from pneumo.tuning.planning.planner import plan_study

        plan = plan_study(
            spec, options.budget, name, inputs.begin, options.workers, options.launcher
        )
        plan = replace(plan, like=options.like or plan.like)
        spec = replace(spec, fixed={**plan.fields, **options.overrides})
        validate_search_space(spec.experiment, spec.base, spec.fixed)
    if options.workers == 1 and options.launcher == "local":
        prepare_to_fit(spec.base)  # worker processes do that themselves
    session.connect()
    result = tune_and_register(
        spec,
        trials=options.trials or (None if plan else DEFAULT_TRIALS),
        model_name=options.model_name or "",
        name=name,
        timeout=options.timeout,
        keep_models=None if options.keep_models == "all" else options.keep_models,
        workers=options.workers,
        launcher=options.launcher,
        trial_timeout=options.trial_timeout,
        like=plan.like if plan else options.like or "",
        ensemble=options.ensemble or (plan.ensemble if plan else 1),
        plan=plan,
    )
    print_study(result)
    return 0


def tune_and_register(
    spec: StudySpec,
    *,
    trials: int | None,
    model_name: str = "",
    name: str = "",
    timeout: float | None = None,
    keep_models: int | None = None,
    workers: int = 1,
    trial_timeout: int | None = None,
    launcher: str = "local",
    like: str = "",
    ensemble: int = 1,
    plan: StudyPlan | None = None,
) -> StudyResult:
    """Run a whole study: search, evaluate the winner on test once, register it as `@challenger`.

    An existing study of that name is resumed up to `trials` in total, under its own run.

    Args:
        spec: Search of the study.
        trials: Number of complete and pruned trials at which the study ends, or None.
        model_name: Name of the registered model. By default it is that of the resumed study, or
            else pneumonia (pneumonia-sample for synthetic images).
        name: Name of the study. By default it consists of the experiment's name and the run's id.
        timeout: Seconds after which no new trial starts.
        keep_models: Number of the best trials whose models are kept, by default all.
        workers: Number of processes that search. One worker is this process, unless there is a
            `trial_timeout`.
        trial_timeout: Seconds after which a trial fails and its process is ended.
        launcher: `local`, or `ray` for `workers` tasks of a Ray cluster.
        like: Name of an earlier study in this store, whose best trials a new study tries first.
        ensemble: Maximum number of trials whose ensemble is registered in place of the best trial.
        plan: Plan of a study with a budget.

    Returns:
        The study and its winner.

    Raises:
        UserError: A study of that name has another search, or exists in only one of the stores; or
            no trial of `like` fits the search space.
        StudyFailedError: There is no winner, or a store failed.
    """
    deadline = time.time() + timeout if timeout else None
    of_plan = plan.limits if plan else {}
    limits = StudyLimits(trials, deadline, keep_models, trial_timeout, **of_plan)
    search = partial(run_search, workers=workers, launcher=launcher)
    storage = open_storage()
    tags = runs.provenance_tags(spec.experiment.name, spec.dataset)
    if name in optuna.get_all_study_names(storage):
        if not plan:
            refuse_without_budget(optuna.load_study(storage=storage, study_name=name))
        study = load_study(storage, name, spec, like)
        run_id = attributes.RUN_ID.read(study)
        tags |= {STUDY: name, PARENT: run_id, **runs.process_tags()}
        resume = runs.command_run("resume", name, tags)
        with resume as own_run_id, study_runs.resume_run(run_id):
            warn_of_other_commit(study, own_run_id)
            prepare_resume(study, spec)
            return _search_and_register(study, spec, limits, search, model_name, ensemble, plan)
    if name:
        check_name_is_new(name)
    warm_start = selection.find_warm_start(storage, like, spec) if like else None
    with runs.command_run("study", name, tags, system_metrics=True) as run_id:
        name = name or f"{spec.experiment.name}-{run_id[:8]}"
        study = create_study(storage, name, spec, run_id, warm_start, plan)
        return _search_and_register(study, spec, limits, search, model_name, ensemble, plan)


def _search_and_register(
    study: optuna.Study,
    spec: StudySpec,
    limits: StudyLimits,
    search: Callable[..., None],
    model_name: str,
    ensemble: int,
    plan: StudyPlan | None,
) -> StudyResult:
    limits.save(study)
    if plan:
        attributes.PLAN.set(study, plan.to_dict())
    default = "pneumonia-sample" if spec.dataset.is_synthetic else "pneumonia"
    model_name = model_name or attributes.MODEL_NAME.get(study, default)
    attributes.MODEL_NAME.set(study, model_name)
    page, spent = StudyPage(study, spec), attributes.SPENT_SECONDS.get(study, 0.0)
    resume = how_to_resume(study)  # while the stores are there

    def save_time() -> None:
        if plan:
            attributes.SPENT_SECONDS.set(study, spent + time.time() - plan.begin)

    def after_trials() -> None:
        save_time()
        page.refresh()

    try:
        search(study, spec, after_trials=after_trials)
        wait_for_running_trials(study)
        reconcile_runs(study)
        if limits.keep_models:
            delete_models_beyond_best(study, limits.keep_models)
        result = _register_winner(study, spec, model_name, ensemble)
        selection.store_improvement(study, spec)
        page.write(DONE)
        save_time()
        return result
    except (KeyboardInterrupt, StudyFailedError, UserError) as stop:
        if not stop.__cause__:  # a store that has failed is not used again
            with suppress(*STORE_ERRORS, OSError):  # OSError: a full disk of the cache
                save_time()
                fail_dead_trials(study)  # trials of killed workers
                reconcile_runs(study)
                page.write(STOPPED)
        echo(f"to resume the study, {resume}")
        raise
    except STORE_ERRORS as error:
        reason = redact_passwords(str(error)).partition("\n")[0]
        raise StudyFailedError(
            f"MLflow or Optuna's database failed ({reason}). Finished trials are kept. Check that "
            f"both are available. To resume the study, {resume}."
        ) from error


def run_search(
    study: optuna.Study,
    spec: StudySpec,
    workers: int = 1,
    launcher: str = "local",
    after_trials: Callable[[], None] = lambda: None,
) -> None:
    """Run trials until the study's limits are reached, and show the progress.

    Args:
        study: A study whose `StudyLimits` are set.
        spec: Search of the study.
        workers: See `tune_and_register`.
        launcher: See `tune_and_register`.
        after_trials: See `StudyProgress`.
    """
    with StudyProgress(study, after_trials) as progress:
        if launcher == "ray":
            ray.launch(study, spec, workers, progress)
        elif workers > 1 or StudyLimits.from_study(study).trial_timeout:
            local.launch(study, spec, workers, progress)
        else:
            import_tensorflow()
            from pneumo.tuning.worker import run_trials

            run_trials(study, spec, progress.update)


def _register_winner(
    study: optuna.Study, spec: StudySpec, model_name: str, ensemble: int
) -> StudyResult:
    """Register the best trial's model or an ensemble, and evaluate that alone on test, once.

    The winner is stored in the study before its evaluation. If something fails in between, the same
    command registers no second version, and makes only the missing evaluation. A resumed study
    whose best trial is the same keeps its version and its evaluation.
    """
    best = selection.best_trial_of(selection.complete_trials(study))
    if not best:
        raise StudyFailedError(
            "no trial is complete, so the study has no best model. Allow more time."
        )
    previous = attributes.WINNER.get(study, {})
    found = _find_ensemble(study, spec, ensemble)
    winner = {"trial": best.number, "model_name": model_name}
    winner |= {"members": found.members} if found else {}
    keys = "trial", "model_name", "members"
    is_unchanged = all(previous.get(key) == winner.get(key) for key in keys)
    if is_unchanged and "test_metrics" in previous:
        winner = previous
    else:
        import_tensorflow()  # a launcher of workers did not need it before
        from pneumo.tuning.trial import load_with_gate

        run_id, model_uri = attributes.RUN_ID.read(best), attributes.MODEL_URI.read(best)
        if found:
            run_id, model_uri = found.run_id, found.model_uri
        model = load_with_gate(model_uri, spec.dataset, spec.base.max_unreadable)
        loaded_model = registry.register_once(run_id, model, model_name)
        winner["version"] = loaded_model.version
        attributes.WINNER.set(study, winner)
        metrics, findings = _evaluate_once(study, spec, loaded_model)
        winner |= {"test_metrics": metrics, "findings": findings}
        attributes.WINNER.set(study, winner)
        # The evidence page of the previous version is replaced
        if previous and previous["version"] != loaded_model.version:
            registry.update_description(previous["model_name"], previous["version"])
    summary = (winner[name] for name in ("model_name", "version", "test_metrics", "findings"))
    return StudyResult(study, spec.searched_fields(), found, *summary)


def _find_ensemble(study: optuna.Study, spec: StudySpec, size: int) -> EnsembleSummary | None:
    if size == 1:
        return None
    import_tensorflow()
    from pneumo.tuning.ensemble import log_ensemble

    return log_ensemble(study, spec, size, StudyLimits.from_study(study))


def _evaluate_once(
    study: optuna.Study, spec: StudySpec, loaded_model: models.LoadedModel
) -> tuple[dict[str, float], list[str]]:
    """Return the winner's metrics on test and its findings.

    They are read from the study's run if that run has evaluated this model before.
    """
    run = mlflow.get_run(attributes.RUN_ID.read(study))
    if evaluations.evaluated_model(run) != loaded_model.model_id:
        result = evaluate_model(loaded_model, images_for(loaded_model, spec.dataset), "test")
        return result.evaluation.metrics, result.findings
    metrics, findings = read_evaluation(run, "test")
    registry.record_test_metrics(loaded_model, run.info.run_id, metrics)
    looks = evaluations.count_looks(spec.dataset.images_digest("test"))
    registry.log_test_evaluations(loaded_model, looks[loaded_model.model_id])
    return metrics, findings
