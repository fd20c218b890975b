"""Report on a study: its question, its results, and the next step."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from typing import Any

import mlflow
from mlflow.entities import Run

from pneumo.data.sources.resolve import SAMPLE
from pneumo.evaluation import bootstrap, metrics
from pneumo.evaluation.comparison import ScoredPredictions
from pneumo.evaluation.intervals import format_with_interval
from pneumo.reporting import study_plots
from pneumo.reporting.html_report import format_field, render_template
from pneumo.reporting.study_summary import DONE, RUNNING, STOPPED, EnsembleSummary, StudySummary
from pneumo.tracking import results, session, study_runs
from pneumo.training.config import objective_title

PAGE = "study/study.html"  # among the artifacts of the study's run


@dataclass(frozen=True)
class BaselineComparison:
    """A comparison of the best trial with the baseline on validation, each at its own threshold.

    The gain has no interval here. An interval of this comparison alone would not account for the
    choice of the best.

    Attributes:
        rows: Name of a metric, and its values of the baseline and of the best, each with its 95 %
            interval by patient.
        auc: AUC of the best, with its interval.
        gain: Difference of AUC, best minus baseline.
    """

    rows: list[tuple[str, str, str]]
    auc: str
    gain: str


@lru_cache(maxsize=1)
def _compare(baseline: str, best: str) -> BaselineComparison:
    """Compare two runs by their ids."""
    values = [
        ScoredPredictions(
            results.read_predictions(run_id, "val"), results.read_val_threshold(run_id)
        ).metrics_with_intervals()
        for run_id in (baseline, best)
    ]
    rows = [
        (metrics.metric_title(name), *(format_with_interval(column, name) for column in values))
        for name in metrics.HEADLINE_METRICS
    ]
    gain = f"{values[1]['auc'] - values[0]['auc']:+.4f}"
    return BaselineComparison(rows, format_with_interval(values[1], "auc"), gain)


class StudyReport:
    """The report on a study, as a page or as its text alone."""

    def __init__(self, summary: StudySummary) -> None:
        self._summary = summary
        self._comparison = None
        if summary.best and summary.baseline:
            self._comparison = _compare(summary.baseline.run_id, summary.best.run_id)

    def page(self) -> str:
        """Render the HTML page."""
        summary, base = self._summary, self._summary.base
        runs = study_runs.trial_runs(summary.run_id)
        images = summary.dataset.decode(base.image_size, base.max_unreadable, base.resize)
        return render_template(
            "study.html",
            images,
            {},
            name=summary.study.study_name,
            day=date.today().isoformat(),
            state=summary.state,
            headline=self._headline_numbers(),
            findings=summary.winner["findings"] if summary.winner else [],
            words=self._sections(),
            comparison=self._comparison,
            bound=self._describe_bound(),
            ensemble=summary.ensemble,
            plan=summary.plan,
            level=bootstrap.CI_PERCENTILES[1],
            best=summary.best,
            baseline=summary.baseline,
            repeat=self._reproduce_command(),
            graphs=study_plots.STUDY_PLOTS,
            drawn=study_plots.render_plots(summary.study, self._objective_title, _scores(runs))
            if summary.best
            else {},
            script=study_plots.plotly_script(),
            times=list(_time_fractions(summary.seconds)),
            changed_ranges=summary.changed_ranges,
            fields=summary.searched_fields,
            score=self._objective_title,
            trials=list(self._rows(runs)),
        )

    def description(self) -> str:
        """Return the report's text in Markdown, with a link to the page."""
        run = mlflow.get_run(self._summary.run_id)
        link = f"[Report on this study]({session.ui_path(run, PAGE)})"
        words = [f"**{name}** {text}" for name, text in self._sections().items()]
        return "\n\n".join([*words, link])

    def _sections(self) -> dict[str, str]:
        return {
            "Question": self._describe_question(),
            "Result": " ".join(self._describe_findings()),
            "Next step": " ".join(self._next_steps()),
        }

    def _describe_question(self) -> str:
        summary = self._summary
        fixed = f" Fixed: {', '.join(f'{name} {value}' for name, value in summary.fixed.items())}."
        warm_start = f" After the baseline, it first tries {summary.warm_start}."
        return (
            f"{summary.question or 'Which values are the best?'} Experiment {summary.experiment} "
            f"on {summary.dataset.name}, {summary.size}. "
            f"Searched: {', '.join(summary.searched_fields)}.{fixed if summary.fixed else ''}"
            f"{warm_start if summary.warm_start else ''}"
        )

    def _describe_findings(self) -> Iterator[str]:
        best, winner = self._summary.best, self._summary.winner
        yield f"{self._summary.progress} trials are finished."
        if not best:
            yield "No trial is complete yet."
            return
        scores = ", ".join(self._best_scores())
        yield f"The best is trial {best.number} ({best.name}) with {scores}."
        if self._summary.base.folds * self._summary.base.repeats > 1:
            yield (
                "The score of a trial is the mean over its folds and repeats. An AUC with an "
                "interval is the mean over folds, in each of which repeats are averaged. All other "
                "metrics are those of the predictions of all folds together."
            )
        if not self._comparison:
            yield "There is no result of the baseline for a comparison."
        elif self._best_is_baseline:
            yield "It is the baseline: no other trial is better."
        else:
            yield f"Its AUC {self._describe_difference()}."
        if ensemble := self._summary.ensemble:
            yield f"The registered model is {ensemble.title}. {self._describe_gain(ensemble)}"
        if winner:
            test_auc = format_with_interval(winner["test_metrics"], "auc")
            subject = "the ensemble" if ensemble else f"trial {winner['trial']}"
            yield f"On test, {subject} has an AUC of {test_auc}."

    def _describe_gain(self, ensemble: EnsembleSummary) -> str:
        text = (
            f"Its {self._objective_title} is {ensemble.score:.4f}, that of the best trial "
            f"{ensemble.best_score:.4f} on the same images, on which both were selected."
        )
        if ensemble.gain is None:
            reason = "There are too few patients, or there was too little time"
            return f"{text} {reason}, to correct the gain for the selection."
        interval = f"{ensemble.gain_low:+.4f} to {ensemble.gain_high:+.4f}"
        return f"{text} Corrected for the selection, the gain is {ensemble.gain:+.4f} ({interval})."

    @property
    def _best_is_baseline(self) -> bool:
        return bool(self._comparison) and self._summary.best.number == self._summary.baseline.number

    def _describe_difference(self) -> str:
        """Describe the best compared with the baseline: better only if the bound is above 0."""
        gain, improvement = self._comparison.gain, self._summary.improvement
        if improvement and improvement.low > 0:
            return f"is higher than the baseline's by {gain}: {self._describe_bound()}"
        difference = f"differs from the baseline's by {gain}"
        if improvement:
            return f"{difference}, which may be chance: {self._describe_bound()}"
        if self._summary.state == DONE:
            return f"{difference}, which may be chance: no confidence bound could be computed"
        return f"{difference}; its confidence bound is computed when the study ends"

    def _describe_bound(self) -> str:
        """Return the confidence bound of the difference in words, or "" if there is none."""
        improvement = self._summary.improvement
        if not improvement or self._best_is_baseline:
            return ""
        bound = f"at least {improvement.low:+.4f} at {bootstrap.CI_PERCENTILES[1]} % confidence"
        # Complete trials besides the baseline
        alternatives = sum(trial.state == "COMPLETE" for trial in self._summary.trials) - 1
        if alternatives == 1:
            return bound
        readable = f"{improvement.trials} of " if improvement.trials < alternatives else ""
        return f"{bound}, corrected for the selection among {readable}{alternatives} trials"

    def _best_scores(self) -> Iterator[str]:
        if self._objective_title != "validation AUC" or not self._comparison:
            yield f"{self._objective_title} {self._summary.best.score:.3f}"
        if self._comparison:
            yield f"validation AUC {self._comparison.auc}"

    @property
    def _objective_title(self) -> str:
        return objective_title(self._summary.base.objective)

    def _next_steps(self) -> Iterator[str]:
        summary = self._summary
        if summary.state == RUNNING:
            yield "The study is running. This report is updated about once a minute."
            return
        if summary.state == STOPPED:
            yield f"The study was stopped before its end. To resume it, {summary.how_to_continue}."
            return
        for name in summary.at_edge:
            yield (
                f"The best {name} is at the edge of its range. Widen that range in "
                f"experiments/{summary.experiment}.py."
            )
        if summary.dataset.source == SAMPLE:
            yield "These images are synthetic. Use real X-rays (-P data=PATH)."
        else:
            yield (
                "Read test/evidence.html in the artifacts. If the results convince you, run "
                + _command(
                    "promote",
                    model_name=summary.winner["model_name"],
                    candidate=str(summary.winner["version"]),
                    **summary.dataset.arguments,
                )
            )

    def _headline_numbers(self) -> dict[str, str]:
        winner = self._summary.winner
        test = winner and format_with_interval(winner["test_metrics"], "auc")
        return {
            "finished trials": self._summary.progress,
            "best validation AUC": self._comparison.auc if self._comparison else "–",
            "gain over the baseline": self._describe_improvement(),
            "test AUC": test or "not evaluated yet",
        }

    def _describe_improvement(self) -> str:
        if not self._comparison:
            return "–"
        if self._best_is_baseline:
            return "the baseline is best"
        improvement = self._summary.improvement
        low = f" (≥ {improvement.low:+.4f})" if improvement else ""
        return f"{self._comparison.gain}{low}"

    def _reproduce_command(self) -> str:
        """Return the command that trains the best trial again, or '' if there is none."""
        summary = self._summary
        if not summary.best:
            return ""
        base, config = summary.experiment_base, summary.best.config
        changed = {name: value for name, value in config.items() if base[name] != value}
        if "weights" in changed:  # their text has a file name and a digest, no path
            trial = summary.study.get_trials(deepcopy=False)[summary.best.number]
            changed["weights"] = trial.params.get("weights", summary.base.weights)
        return _command(
            "train", experiment=summary.experiment, **summary.dataset.arguments, **changed
        )

    def _rows(self, runs: Mapping[int, Run]) -> Iterator[dict[str, Any]]:
        for trial in self._summary.trials:
            run = runs.get(trial.number)
            yield {
                "number": trial.number,
                "address": session.ui_url(run) if run else "",
                "state": trial.state.lower(),
                "best": trial == self._summary.best,
                "value": "" if trial.score is None else f"{trial.score:.4f}",
                "fields": [
                    format_field(trial.config.get(name, ""))
                    for name in self._summary.searched_fields
                ],
                "epochs": trial.epochs or "",
                "is_cut": trial.is_cut,
                "took": timedelta(seconds=round(trial.seconds)) if trial.seconds else "",
                "error": trial.error,
            }


def _scores(runs: Mapping[int, Run]) -> dict[int, tuple[float, float]]:
    """Return validation AUC and robust AUC of each trial that has both, by its number."""
    metrics = {number: run.data.metrics for number, run in runs.items()}
    return {
        number: (values["val_auc"], values["val_robust_auc"])
        for number, values in metrics.items()
        if "val_robust_auc" in values
    }


def _time_fractions(seconds: dict[str, float]) -> Iterator[tuple[str, str, str]]:
    """Yield each activity of the processes, its duration, and its fraction of their time."""
    total = sum(seconds.values()) or 1  # 0 before the first trial has ended
    for activity, duration in seconds.items():
        yield activity, str(timedelta(seconds=round(duration))), f"{duration / total:.0%}"


def _command(entry: str, **parameters: str) -> str:
    flags = " ".join(f"-P {name}={shlex.quote(value)}" for name, value in parameters.items())
    return f"mlflow run . -e {entry} --env-manager uv {flags}"
