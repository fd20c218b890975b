"""The end of a study for the terminal: its trials, its winner, and where to see more."""

from dataclasses import dataclass

import optuna
from optuna.trial import TrialState

from pneumo.reporting.html_report import format_field
from pneumo.reporting.study_report import PAGE
from pneumo.reporting.study_summary import EnsembleSummary
from pneumo.runtime.console import echo, print_table
from pneumo.runtime.errors import UserError
from pneumo.tracking import registry, session
from pneumo.training.config import OBJECTIVE_LABELS, rename_fields
from pneumo.tuning import attributes, selection
from pneumo.tuning.storage import how_to_continue


@dataclass(frozen=True)
class StudyResult:
    """A finished study.

    Attributes:
        study: The study with its trials.
        searched_fields: See `StudySpec.searched_fields`.
        ensemble: The ensemble that is registered in place of the best trial, or None.
        model_name: Name of the registered model.
        version: Number of the version that its winner has become.
        test_metrics: Metrics of that version on test.
        findings: See `EvaluationResult.findings`.
    """

    study: optuna.Study
    searched_fields: list[str]
    ensemble: EnsembleSummary | None
    model_name: str
    version: int
    test_metrics: dict[str, float]
    findings: list[str]


def print_study(result: StudyResult) -> None:
    """Print the table of a study's trials with the best marked, and the registered winner."""
    rows, trials = [], result.study.get_trials(deepcopy=False)
    best = selection.best_trial_of(trials)
    waiting = sum(trial.state == TrialState.WAITING for trial in trials)
    for trial in trials:
        if trial.state == TrialState.WAITING:  # a waiting trial has no values and no score
            continue
        score = None if trial.state == TrialState.FAIL else selection.final_score(trial)
        config = rename_fields(attributes.CONFIG.get(trial, {}))
        rows.append(
            (
                f"{trial.number}{' best' if trial.number == best.number else ''}",
                trial.state.name,
                "" if score is None else f"{score:.4f}",
                *(format_field(config.get(name, "")) for name in result.searched_fields),
            )
        )
    score = OBJECTIVE_LABELS[attributes.OBJECTIVE.read(result.study)]
    columns = "trial", "state", score, *result.searched_fields
    print_table(f"Study {result.study.study_name}", columns, rows)
    if waiting:
        echo(
            f"{waiting} enqueued trials did not start. To run them, resume the study with more "
            f"{'time' if attributes.PLAN.get(result.study, {}) else '--trials'}."
        )
    subject, value = f"trial {best.number}", best.value
    if result.ensemble:
        subject, value = result.ensemble.title, result.ensemble.score
    test = result.test_metrics
    echo(
        f"best: {subject}, {score} {value:.4f}; "
        f"test AUC {test['auc']:.4f} ({test['auc_low']:.4f} to {test['auc_high']:.4f}), "
        f"accuracy {test['accuracy']:.1%} at threshold {test['threshold']:.3f}"
    )
    for finding in result.findings:
        echo(f"note: {finding}")
    echo(f"registered: {result.model_name} version {result.version}{_describe_alias(result)}")
    run_id = attributes.RUN_ID.read(result.study)
    echo(f"study report: {session.artifact_location(run_id, PAGE)}")
    echo(session.view_hint(run_id))
    if attributes.PLAN.get(result.study, {}):
        option = session.format_option("budget", "+1h")
        echo(f"for more time, {how_to_continue(result.study.study_name)} {option}")


def _describe_alias(result: StudyResult) -> str:
    """Describe which version is the newest one of the registered model, if that is known."""
    try:
        challenger = registry.version_by_alias(result.model_name, registry.CHALLENGER)
    except UserError:
        return ""
    if challenger == result.version:
        return f" as @{registry.CHALLENGER}"
    return f"; @{registry.CHALLENGER} is version {challenger}" if challenger else ""
