"""Everything said to Optuna: a study, its search, its trials and its end."""

import gc
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlflow
import optuna
from optuna.pruners import MedianPruner
from optuna.trial import FrozenTrial, TrialState

from pneumo import evidence, registry, tracking
from pneumo.config import RunConfig
from pneumo.console import StudyDisplay, say, table
from pneumo.data.dataset import Dataset
from pneumo.errors import Mistake
from pneumo.experiment import Experiment
from pneumo.search import SAMPLER, ReseededTPE, Search, trial_seed
from pneumo.train import EpochCallback
from pneumo.trial import run_name, run_trial

# Set here though some are Optuna's defaults, which have changed between its versions
PRUNER = {"n_startup_trials": 4, "n_warmup_steps": 2, "interval_steps": 1}

# The columns of the table at a study's end
SHOWN = ("dense_widths", "dropout", "augment_strength", "unfreeze_depth", "learning_rate")

COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)
FAILURES_IN_A_ROW = 3
INTERRUPTED = "interrupted"  # the error of a trial that a person ended


class StudyStopped(RuntimeError):
    """A study without a result, for a reason that the message gives in one line."""


@dataclass(frozen=True)
class Plan:
    """What a study searches: an experiment, on which data, with which fields fixed by hand.

    `fixed` maps fields of `RunConfig` to their values as text; they leave the search.
    """

    experiment: Experiment
    dataset: Dataset
    fixed: Mapping[str, str]

    @property
    def base(self) -> RunConfig:
        """The baseline; its `seed` is the study's. Raises `Mistake` for a wrong fixed value."""
        return self.experiment.base.override(self.fixed)

    def facts(self) -> dict[str, Any]:
        """What makes a study this one and no other."""
        base = self.base
        own = {"epochs": base.epochs, "seed": base.seed}
        text = base.as_text()  # names a file of weights by its content, wherever it lies
        return {
            "experiment": self.experiment.name,
            "fixed": {field: text[field] for field in self.fixed if field not in own},
            **own,
            "data_digest": self.dataset.digest,
        }

    def sampler(self) -> ReseededTPE:
        """What suggests a trial's values."""
        return ReseededTPE(self.base.seed)

    def suggest(self, trial: optuna.Trial) -> RunConfig:
        """The config of a trial, with a seed of its own and the fixed fields as they are."""
        config = self.experiment.suggest(Search(self.base, self.fixed, trial), self.base)
        kept = {field: getattr(self.base, field) for field in self.fixed}
        kept["seed"] = trial_seed(self.base.seed, trial.number)
        return config.model_copy(update=kept)

    def baseline(self) -> dict[str, Any]:
        """The suggestions that give the base. Raises `Mistake` where none do."""
        search = Search(self.base, self.fixed)
        config = self.experiment.suggest(search, self.base)
        different = [
            field
            for field in RunConfig.model_fields
            if field not in self.fixed and getattr(config, field) != getattr(self.base, field)
        ]
        if different:
            raise Mistake(
                f"suggest in experiments/{self.experiment.name}.py must be able to give BASE, "
                f"and cannot in {', '.join(different)}; change one of the two"
            )
        return search.baseline


@dataclass(frozen=True)
class Outcome:
    """A finished study: its trials, the version its winner became, how that does on test.

    `findings`: see `evidence.examine`.
    """

    study: optuna.Study
    model_name: str
    version: int
    test_metrics: dict[str, float]
    findings: list[str]


def open_storage() -> optuna.storages.RDBStorage:
    """Optuna's database: `PNEUMO_STORAGE`, by default `sqlite:///optuna.db`."""
    url = os.environ.get("PNEUMO_STORAGE") or "sqlite:///optuna.db"
    connect = {"timeout": 60} if url.startswith("sqlite") else {}  # seconds to wait for a lock
    return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": connect})


def tune(
    plan: Plan,
    *,
    trials: int,
    model_name: str,
    name: str = "",
    timeout: float | None = None,
    keep_models: int | None = None,
) -> Outcome:
    """A whole study: searches, scores the winner on test once, registers it as `@challenger`.

    A study that is there already under `name` is continued up to `trials` in total, under its
    own run. `trials` counts complete and pruned ones; after `timeout` seconds no new one starts.
    `keep_models`: of how many of the best trials the models are kept, of all of them by default.
    Without a `name` the study is called after the experiment and its run. Raises `Mistake`
    where a study of that name asks something else, and `StudyStopped` where there is no winner.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # failed trials are told by `_line`
    storage = open_storage()
    tags = tracking.subject_tags(plan.experiment.name, plan.dataset)
    if name in optuna.get_all_study_names(storage):
        study = _load(storage, name, plan)
        run_id = study.user_attrs["run_id"]
        tags |= {"pneumo.study": name, "mlflow.parentRunId": run_id}
        with tracking.command_run("resume", tags), tracking.reopened(run_id):
            _take_over(study, plan)
            return _search_and_crown(study, plan, trials, timeout, model_name, keep_models)
    with tracking.command_run("study", tags) as run_id:
        study = _begin(storage, name or f"{plan.experiment.name}-{run_id[:8]}", plan, run_id)
        return _search_and_crown(study, plan, trials, timeout, model_name, keep_models)


def _load(storage: optuna.storages.RDBStorage, name: str, plan: Plan) -> optuna.Study:
    """The study of that name, if it asks what `plan` asks and its run is in this store."""
    study = optuna.load_study(
        storage=storage, study_name=name, sampler=plan.sampler(), pruner=MedianPruner(**PRUNER)
    )
    for fact, value in plan.facts().items():
        begun_with = study.user_attrs.get(fact)
        if begun_with != value:
            raise Mistake(
                f"study '{name}' was begun with {fact} {begun_with}: got {value}; "
                "give what it was begun with, or another name"
            )
    if not tracking.exists(study.user_attrs["run_id"]):
        raise Mistake(
            f"study '{name}' has its runs in another MLflow store than this one; "
            "set MLFLOW_TRACKING_URI to where it was begun"
        )
    return study


def _begin(storage: optuna.storages.RDBStorage, name: str, plan: Plan, run_id: str) -> optuna.Study:
    """A new study, described in Optuna and in MLflow, with the baseline as its first trial."""
    say(f"study {name}")  # at once: a process that dies cannot say later what to continue
    images = plan.dataset.decode(plan.base.image_size, plan.base.max_unreadable, plan.base.resize)
    say(images.summary())
    tracking.log_data(images)
    baseline = plan.baseline()
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        direction="maximize",
        sampler=plan.sampler(),
        pruner=MedianPruner(**PRUNER),
    )
    for fact, value in {**plan.facts(), "run_id": run_id}.items():
        study.set_user_attr(fact, value)
    study.enqueue_trial(baseline)
    mlflow.set_tag("pneumo.study", name)
    settings = {
        "sampler": {"name": "TPESampler", **SAMPLER},
        "pruner": {"name": "MedianPruner", **PRUNER},
        "base": plan.base.as_text(),
        "baseline": baseline,
    }
    mlflow.log_dict(plan.facts() | settings, "study.json")
    return study


def _take_over(study: optuna.Study, plan: Plan) -> None:
    """Ends what a dead process left running, and asks again for a baseline that was lost."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if tracking.process_is_gone(*trial.user_attrs.get("process", ("", 0))):
            study.tell(trial.number, state=TrialState.FAIL)
    tracking.end_abandoned_trials(study.user_attrs["run_id"])
    baseline = plan.baseline()
    trials = study.get_trials(deepcopy=False, states=(*COUNTED, TrialState.WAITING))
    if not any(it.state == TrialState.WAITING or it.params == baseline for it in trials):
        study.enqueue_trial(baseline)
    say(f"continuing study {study.study_name}: {_counted(study)} trials are done")


def _counted(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=COUNTED))


def _search_and_crown(
    study: optuna.Study,
    plan: Plan,
    trials: int,
    timeout: float | None,
    model_name: str,
    keep_models: int | None,
) -> Outcome:
    try:
        search_trials(study, plan, trials, timeout, keep_models)
        if keep_models:
            _evict(study, keep_models)
        return _crown(study, plan, model_name)
    except KeyboardInterrupt:
        say(f"to continue, give the same command with -P study={study.study_name}")
        raise


def search_trials(
    study: optuna.Study,
    plan: Plan,
    trials: int,
    timeout: float | None = None,
    keep_models: int | None = None,
) -> None:
    """Runs trials until `trials` are complete or pruned; a failed one is replaced.

    `timeout`, `keep_models`: see `tune`. Raises `StudyStopped` after three failures of the same
    kind in a row.
    """
    if _counted(study) >= trials:
        return
    gc.freeze()  # modules stay: the collection before each trial need not go through them
    with StudyDisplay(trials) as display:

        def ended(study: optuna.Study, trial: FrozenTrial) -> None:
            display.trial(_line(trial), _counted(study))
            if keep_models:
                _evict(study, keep_models, at_most=1)  # those beyond have gone before
            if _counted(study) >= trials or _repeated_failure(study):
                study.stop()

        study.optimize(
            lambda trial: _objective(trial, plan, display),
            timeout=timeout,
            callbacks=[ended],
            catch=(Exception,),  # a failure gets no score, and the search goes on without it
        )
    if error := _repeated_failure(study):
        raise StudyStopped(
            f"{FAILURES_IN_A_ROW} trials in a row failed alike ({error}); "
            "the traceback is with their runs in MLflow: mend the cause and start again"
        )


def _evict(study: optuna.Study, keep: int, at_most: int | None = None) -> None:
    """Deletes the models of the complete trials that are not among the `keep` best."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best_first = sorted(complete, key=lambda trial: -trial.value)  # of equals the first
    for trial in best_first[keep:][:at_most]:
        tracking.delete_model(trial.user_attrs["model_uri"])


def _objective(trial: optuna.Trial, plan: Plan, display: StudyDisplay) -> float:
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


def _repeated_failure(study: optuna.Study) -> str | None:
    """The last error, if the last three trials that ended failed with errors of its type."""
    ended = [it for it in study.get_trials(deepcopy=False) if it.state.is_finished()]
    errors = [
        it.user_attrs.get("error", INTERRUPTED) if it.state == TrialState.FAIL else ""
        for it in ended[-FAILURES_IN_A_ROW:]
    ]
    kinds = {error.partition(":")[0] for error in errors}
    alike = len(errors) == FAILURES_IN_A_ROW and len(kinds) == 1
    return errors[-1] if alike and not kinds & {"", INTERRUPTED} else None


def _crown(study: optuna.Study, plan: Plan, model_name: str) -> Outcome:
    """Registers the best trial's model and touches test, once and for it alone.

    A continued study whose best trial is still the same keeps what was found for it.
    """
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        raise StudyStopped("no trial came to its end, so there is no winner; allow more time")
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
    return Outcome(study, *found)


def _line(trial: FrozenTrial) -> str:
    """What a log says of a trial that has ended."""
    if trial.state == TrialState.FAIL:
        return f"trial {trial.number:3d}  failed: {trial.user_attrs['error']}"
    state = "pruned" if trial.state == TrialState.PRUNED else ""
    score = f"val AUC {_last_value(trial):.4f} {state:6}"
    took = f"{trial.duration.seconds:4d} s"
    return f"trial {trial.number:3d}  {score}  {took}  {trial.user_attrs['name']}"


def _last_value(trial: FrozenTrial) -> float:
    """A trial's score; of a pruned one, the last that it reported."""
    if trial.state == TrialState.COMPLETE:
        return trial.value
    return trial.intermediate_values[trial.last_step]


def _short(value: str) -> str:
    return f"{float(value):.3g}" if "." in value else value


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
                "" if failed else f"{_last_value(trial):.4f}",
                *(_short(config.get(name, "")) for name in SHOWN),
            )
        )
    table(f"Study {outcome.study.study_name}", ("trial", "state", "val AUC", *SHOWN), rows)
    test = outcome.test_metrics
    say(
        f"best: trial {best}, val AUC {outcome.study.best_value:.4f}; "
        f"test AUC {test['auc']:.4f} ({test['auc_low']:.4f} to {test['auc_high']:.4f}), "
        f"accuracy {test['accuracy']:.1%} at threshold {test['threshold']:.3f}"
    )
    for finding in outcome.findings:
        say(f"note: {finding}")
    say(f"registered: {outcome.model_name} version {outcome.version} as @{registry.CHALLENGER}")
    say(tracking.how_to_look(outcome.study.user_attrs["run_id"]))
