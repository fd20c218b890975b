"""The page of a study: what was asked, what was found, and what to do next."""

import math
import shlex
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from typing import Any

import mlflow
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from pneumo import attributes, bootstrap, evaluate, graphs, pages, selection, tracking
from pneumo.comparison import ScoredPredictions
from pneumo.config import spelled_out
from pneumo.console import say
from pneumo.data.dataset import SAMPLE
from pneumo.errors import in_words
from pneumo.pages import with_interval
from pneumo.study import Goal, Plan, counted, how_to_continue, last_value

INTERVAL = 60  # seconds, at least, between two pages of a study that runs
SHARE = 0.05  # of the time, at most, that goes into them
NEAR = 0.05  # of a parameter's range: what is so near to its end may do better beyond

PAGE = "study/study.html"  # among the artifacts of the study's run

# How a study stands
RUNNING, STOPPED, DONE = "running", "stopped", "done"


class StudyPage:
    """Writes the page of a study below `study/` of its run in MLflow.

    With each the run's description says in few words what the page says.
    """

    def __init__(self, study: optuna.Study, plan: Plan) -> None:
        self._study, self._plan = study, plan
        self._due = 0.0

    def refresh(self) -> None:
        """Writes it, if the last one is a minute old, and old enough for what it cost."""
        if time.monotonic() >= self._due:
            self.write(RUNNING)

    def write(self, state: str) -> None:
        """Writes it for a study that is in `state`."""
        began = time.monotonic()
        try:
            self._write(state)
        except Exception as error:  # whatever it is, trials are worth more than their page
            reason = in_words(error).partition("\n")[0]
            say(f"the study's page could not be written ({reason})")
        ended = time.monotonic()
        self._due = ended + max(INTERVAL, (ended - began) / SHARE)

    def _write(self, state: str) -> None:
        report = Report(self._study, self._plan, state)
        files = {"study.html": report.page().encode()}
        tracking.log_study(attributes.RUN_ID.of(self._study), files, report.description())


@dataclass(frozen=True)
class Duel:
    """The best trial beside the baseline on validation, each at its own threshold.

    `rows`: name, of the baseline and of the best, each value with its 95 % interval by patient;
    `auc`: of the best, likewise; `gain`: difference of AUC, best minus baseline. It has no
    interval here: one of this comparison alone would not account for the choice of the best.
    """

    rows: list[tuple[str, str, str]]
    auc: str
    gain: str


@lru_cache(maxsize=1)
def _duel(baseline: str, best: str) -> Duel:
    """Of two runs, by their ids."""
    values = [
        ScoredPredictions(
            tracking.read_predictions(run_id, "val"), tracking.threshold(run_id)
        ).metrics_with_intervals()
        for run_id in (baseline, best)
    ]
    rows = [
        (evaluate.metric_title(name), *(with_interval(it, name) for it in values))
        for name in evaluate.HEADLINE
    ]
    gain = f"{values[1]['auc'] - values[0]['auc']:+.4f}"
    return Duel(rows, with_interval(values[1], "auc"), gain)


class Report:
    """What is known of a study at one moment, in words, figures and graphs."""

    def __init__(self, study: optuna.Study, plan: Plan, state: str) -> None:
        self._study, self._plan, self._state = study, plan, state
        self._trials = study.get_trials(deepcopy=False)
        complete = [it for it in self._trials if it.state == TrialState.COMPLETE]
        self._best = study.best_trial if complete else None
        self._baseline = selection.find_baseline(complete, plan)
        self._improvement = selection.read_improvement(study, complete)
        self._alternatives = len(complete) - 1  # complete trials besides the baseline
        self._duel = None
        if self._best and self._baseline:
            self._duel = _duel(*(attributes.RUN_ID.of(it) for it in (self._baseline, self._best)))
        winner = attributes.WINNER.get(study, {})
        self._winner = winner if "test_metrics" in winner else None  # else it is not evaluated yet

    def page(self) -> str:
        """The HTML page."""
        base = self._plan.base
        images = self._plan.dataset.decode(base.image_size, base.max_unreadable, base.resize)
        return pages.render(
            "study.html",
            images,
            {},
            name=self._study.study_name,
            day=date.today().isoformat(),
            state=self._state,
            headline=self._headline(),
            findings=self._winner["findings"] if self._winner else [],
            words=self._words(),
            duel=self._duel,
            bound=self._bound(),
            level=bootstrap.LEVELS[1],
            best=self._best,
            baseline=self._baseline,
            repeat=self._repeat(),
            graphs=graphs.GRAPHS,
            drawn=graphs.interactive(self._study),
            script=graphs.script(),
            times=list(_shares(self._trials)),
            changed_ranges=list(_changed_ranges(self._trials)),
            fields=self._plan.searched(),
            score=self._score,
            trials=list(self._rows()),
        )

    def description(self) -> str:
        """Its words in Markdown, and the way to it."""
        run = mlflow.get_run(attributes.RUN_ID.of(self._study))
        link = f"[The page of this study]({tracking.page(run, PAGE)})"
        words = [f"**{name}** {text}" for name, text in self._words().items()]
        return "\n\n".join([*words, link])

    def _words(self) -> dict[str, str]:
        return {
            "Asked": self._asked(),
            "Found": " ".join(self._found()),
            "Next": " ".join(self._next()),
        }

    def _asked(self) -> str:
        experiment, fixed = self._plan.experiment, attributes.FIXED.of(self._study)
        kept = f" ({', '.join(f'{name} {value}' for name, value in fixed.items())} fixed)"
        return (
            f"{experiment.question or 'Which values are the best?'} Experiment {experiment.name} "
            f"on {self._plan.dataset.name}: {self._goal.trials} trials of at most "
            f"{self._plan.base.epochs} epochs over {', '.join(self._plan.searched())}"
            f"{kept if fixed else ''}."
        )

    @property
    def _goal(self) -> Goal:
        return Goal.of(self._study)

    def _found(self) -> Iterator[str]:
        yield f"{self._done()} trials are done."
        if not self._best:
            yield "None has come to its end yet."
            return
        yield (
            f"The best is trial {self._best.number} ({attributes.NAME.of(self._best)}), "
            f"{', '.join(self._reached())}."
        )
        if not self._duel:
            yield "The baseline has no result to hold it against."
        elif self._best_is_baseline:
            yield "It is the baseline: nothing that was tried is better."
        else:
            yield f"Its AUC {self._difference()}."
        if self._winner:
            yield (
                f"On test, asked for trial {self._winner['trial']} alone: AUC "
                f"{with_interval(self._winner['test_metrics'], 'auc')}."
            )

    @property
    def _best_is_baseline(self) -> bool:
        return bool(self._duel) and self._best.number == self._baseline.number

    def _difference(self) -> str:
        """Say how the best compares with the baseline: better only if the bound is above 0."""
        gain = self._duel.gain
        if self._improvement and self._improvement.low > 0:
            return f"is {gain} above the baseline's: {self._bound()}"
        differs = f"differs from the baseline's by {gain}"
        if self._improvement:
            return f"{differs}, which may be chance: {self._bound()}"
        if self._state == DONE:
            return f"{differs}, which may be chance: no confidence bound could be computed"
        return f"{differs}; whether that may be chance is computed at the study's end"

    def _bound(self) -> str:
        """Return the confidence bound of the difference in words, or "" if there is none."""
        it = self._improvement
        if not it or self._best_is_baseline:
            return ""
        bound = f"at least {it.low:+.4f} at {bootstrap.LEVELS[1]} % confidence"
        if self._alternatives == 1:
            return bound
        readable = f"{it.trials} of " if it.trials < self._alternatives else ""
        return f"{bound}, accounting for the choice among {readable}{self._alternatives} trials"

    def _reached(self) -> Iterator[str]:
        if self._score != "validation AUC" or not self._duel:
            yield f"{self._score} {self._best.value:.3f}"
        if self._duel:
            yield f"validation AUC {self._duel.auc}"

    @property
    def _score(self) -> str:
        return spelled_out(self._plan.base.objective)

    def _done(self) -> str:
        return f"{counted(self._study)} of {self._goal.trials}"

    def _next(self) -> Iterator[str]:
        if self._state == RUNNING:
            yield "It runs; this is written anew about once a minute."
            return
        if self._state == STOPPED:
            yield (
                "It was stopped before its end: to continue, "
                f"{how_to_continue(self._study.study_name)}."
            )
            return
        for name in self._wanting_room():
            yield (
                f"The best {name} lies at the edge of what was searched: widen its range in "
                f"experiments/{self._plan.experiment.name}.py."
            )
        if self._plan.dataset.source == SAMPLE:
            yield "Give it real X-rays (-P data=PATH): these are synthetic."
        else:
            yield "Read test/evidence.html among the artifacts; if it convinces you, " + _command(
                "promote", model_name=self._winner["model_name"], data=self._plan.dataset.source
            )

    def _wanting_room(self) -> Iterator[str]:
        """The parameters whose best value has no room on one side, where there could be some."""
        for name, space in self._best.distributions.items():
            steady = isinstance(space, FloatDistribution) and not space.step
            if steady and _at_an_edge(self._best.params[name], space):
                yield name

    def _headline(self) -> dict[str, str]:
        test = self._winner and with_interval(self._winner["test_metrics"], "auc")
        return {
            "trials done": self._done(),
            "best validation AUC": self._duel.auc if self._duel else "–",
            "above the baseline": self._above(),
            "test AUC, asked once": test or "not asked yet",
        }

    def _above(self) -> str:
        if not self._duel:
            return "–"
        if self._best_is_baseline:
            return "the baseline is the best"
        low = f" (≥ {self._improvement.low:+.4f})" if self._improvement else ""
        return f"{self._duel.gain}{low}"

    def _repeat(self) -> str:
        """The command that trains the best trial again."""
        if not self._best:
            return ""
        base, text = self._plan.experiment.base.as_text(), attributes.CONFIG.of(self._best)
        changed = {name: value for name, value in text.items() if base[name] != value}
        if "weights" in changed:  # which the text names by their content
            changed["weights"] = self._plan.base.weights
        return _command(
            "train",
            experiment=self._plan.experiment.name,
            data=self._plan.dataset.source,
            **changed,
        )

    def _rows(self) -> Iterator[dict[str, Any]]:
        runs = tracking.trial_runs(attributes.RUN_ID.of(self._study))
        for trial in self._trials:
            config = attributes.CONFIG.get(trial, {})
            scored = trial.state == TrialState.COMPLETE or trial.intermediate_values
            yield {
                "number": trial.number,
                "address": tracking.address(runs[trial.number]) if trial.number in runs else "",
                "state": trial.state.name.lower(),
                "best": trial == self._best,
                "value": f"{last_value(trial):.4f}" if scored else "",
                "fields": [pages.short(config.get(name, "")) for name in self._plan.searched()],
                "epochs": trial.last_step or "",
                "took": timedelta(seconds=round(_seconds(trial))) if _seconds(trial) else "",
                "error": attributes.ERROR.get(trial, ""),
            }


def _changed_ranges(trials: list[FrozenTrial]) -> Iterator[tuple[str, int, str, str]]:
    """Yield each change of a range: hyperparameter, first trial, range before and from then on."""
    ranges: dict[str, str] = {}
    for trial in trials:
        for name, space in trial.distributions.items():
            now = _range(space)
            if ranges.setdefault(name, now) != now:
                yield name, trial.number, ranges[name], now
            ranges[name] = now


def _range(space: BaseDistribution) -> str:
    if isinstance(space, CategoricalDistribution):
        return ", ".join(map(str, space.choices))
    step = f" in steps of {space.step}" if space.step else ""
    return f"{space.low} to {space.high}{step}"


def _at_an_edge(value: float, space: FloatDistribution) -> bool:
    """Whether there may be better values beyond; below 0 there are none."""
    scale = math.log if space.log else float
    near = NEAR * (scale(space.high) - scale(space.low))
    below, above = scale(value) - scale(space.low), scale(space.high) - scale(value)
    return above < near or (space.low > 0 and below < near)


def _seconds(trial: FrozenTrial) -> float:
    return trial.duration.total_seconds() if trial.duration else 0.0


def _shares(trials: list[FrozenTrial]) -> Iterator[tuple[str, str, str]]:
    """What the processes were at: what, how long, and which share of their time."""
    spent = _spent(trials)
    whole = sum(spent.values()) or 1  # no trial has ended yet
    for what, seconds in spent.items():
        yield what, str(timedelta(seconds=round(seconds))), f"{seconds / whole:.0%}"


def _spent(trials: list[FrozenTrial]) -> dict[str, float]:
    spent: dict[str, float] = defaultdict(float)
    processes = defaultdict(list)
    for trial in trials:
        if not trial.state.is_finished():
            continue
        processes[tuple(attributes.PROCESS.get(trial, ()))].append(trial)
        parts = attributes.SECONDS.get(trial, {})
        for part, seconds in parts.items():
            spent[f"{part} of complete trials"] += seconds
        rest = f"{trial.state.name.lower()} trials"
        spent[rest if not parts else "bookkeeping"] += _seconds(trial) - sum(parts.values())
    for own in processes.values():
        began = min(it.datetime_start for it in own)
        ended = max(it.datetime_complete for it in own)
        between = (ended - began).total_seconds() - sum(map(_seconds, own))
        spent["between trials"] += between
    return spent


def _command(entry: str, **parameters: str) -> str:
    given = " ".join(f"-P {name}={shlex.quote(value)}" for name, value in parameters.items())
    return f"mlflow run . -e {entry} --env-manager uv {given}"
