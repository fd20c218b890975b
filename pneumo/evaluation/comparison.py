"""Comparison of two models on the same images, and the gate for a candidate to become champion."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from pneumo.evaluation import bootstrap, metrics
from pneumo.evaluation.bootstrap import Comparison
from pneumo.evaluation.intervals import CI_SUFFIXES, mean_auc_of_folds, metric_intervals
from pneumo.evaluation.metrics import metric_title
from pneumo.inference.calibration import prevalence_shift, shift_probabilities

# Limits for every champion on the images of the decision, whichever model it replaces
MIN_METRICS = {"sensitivity": 0.90, "specificity": 0.60}
MAX_METRICS = {"adjusted_ece": 0.15}  # expected calibration error at the images' prevalence


# Models that a candidate is compared with, by the prefix of their metrics
MOST_SENSITIVE = "most_sensitive_"
REFERENCES = {
    "": "champion",
    "best_": "best champion so far",
    MOST_SENSITIVE: "most sensitive champion so far",
}


@dataclass(frozen=True)
class ScoredPredictions:
    """Predictions of a model, and the threshold at which they are scored.

    Attributes:
        predictions: Columns as in `metrics.Evaluation`.
        threshold: Probability ≥ threshold is positive.
    """

    predictions: pd.DataFrame
    threshold: float

    def metrics(self) -> dict[str, float]:
        """Return the metrics of `metrics.compute_metrics`, the AUC as its mean over folds."""
        labels, probabilities = (self.predictions[column] for column in ("label", "probability"))
        values = metrics.compute_metrics(
            labels.to_numpy(), probabilities.to_numpy(), self.threshold
        )
        if "fold" in self.predictions:
            values["auc"], *_ = mean_auc_of_folds(self.predictions)
        return values

    def metrics_with_intervals(self) -> dict[str, float]:
        """Return the metrics, and 95 % confidence intervals of the headline metrics."""
        return self.metrics() | metric_intervals(self.predictions, self.threshold)

    def compare_with(self, reference: "ScoredPredictions") -> Comparison:
        """Return the differences self − reference, as `bootstrap.compare_models` computes them.

        Raises:
            ValueError: The predictions are not for the same images.
        """
        thresholds = reference.threshold, self.threshold
        return bootstrap.compare_models(reference.predictions, self.predictions, thresholds)


@dataclass(frozen=True)
class EvaluatedModel(ScoredPredictions):
    """Model with the predictions of a stored evaluation, at its own threshold.

    Attributes:
        title: Name of the model for users.
        is_synthetic: Whether it was trained on synthetic images.
        prevalence: Prevalence for which its probabilities are calibrated, above 0 and below 1.
            Only that of a candidate is needed.
    """

    title: str
    is_synthetic: bool
    prevalence: float = 0.5

    def adjusted_error(self) -> float:
        """Return the expected calibration error at the prevalence of the images.

        Another prevalence is no fault of a model, since a user who knows it can adjust the
        probabilities to it.
        """
        labels = self.predictions["label"].to_numpy()
        shift = prevalence_shift(self.prevalence, labels.mean())
        adjusted = shift_probabilities(self.predictions["probability"].to_numpy(), shift)
        return metrics.expected_calibration_error(labels, adjusted)


@dataclass(frozen=True)
class Margins:
    """Non-inferiority margins, 0 to 1.

    A candidate's metric may be smaller than the reference's by less than the margin.

    Attributes:
        auc: Margin of AUC.
        sensitivity: Margin of sensitivity.
    """

    auc: float
    sensitivity: float


@dataclass(frozen=True)
class Decision:
    """Decision about a candidate, which becomes champion if there are no `reasons` against it.

    Attributes:
        reasons: Reasons for a rejection.
        metrics: `candidate_…` and `champion_…` as `EvaluatedModel.metrics`, and the differences
            between the two; the same with a prefix for each further reference of `REFERENCES`.
        champion_vacant: Reason why the decision was made without the champion, or ''.
    """

    reasons: list[str]
    metrics: dict[str, float]
    champion_vacant: str = ""

    @property
    def is_promoted(self) -> bool:
        """Whether the candidate passes the gate."""
        return not self.reasons


def gate(
    candidate: EvaluatedModel,
    references: Mapping[str, EvaluatedModel],
    synthetic_images: bool,
    margins: Margins,
) -> Decision:
    """Decide whether a candidate may become champion.

    The candidate must be within `MIN_METRICS` and `MAX_METRICS`, and non-inferior to the champion
    and to the best champion so far. For that, the lower bounds of the 95 % confidence intervals of
    the differences in AUC and in sensitivity must exceed the negative margins. The intervals are
    paired and by patient, as in `bootstrap.compare_models`. Without references only the limits
    apply.

    A rising threshold may cost a little sensitivity in each step, while the AUC grows and the last
    champion is always the best. So the sensitivity itself, too, must not be smaller by the margin
    than that of the most sensitive champion so far. This is no confidence bound: the greatest of
    many sensitivities is partly chance, and a bound would refuse half of the candidates that are as
    good as 14 champions before them.

    Args:
        candidate: The candidate with its predictions.
        references: The models of `choose_references`, with predictions for the same images.
        synthetic_images: Whether the images are synthetic; these cannot promote or replace a model
            of real images.
        margins: Non-inferiority margins.

    Returns:
        The decision, with its metrics and the reasons for a rejection.

    Raises:
        ValueError: The predictions are not for the same images.
    """
    metrics = candidate.metrics() | {"adjusted_ece": candidate.adjusted_error()}
    decision_metrics = {f"candidate_{name}": value for name, value in metrics.items()}
    reasons = list(_limit_reasons(metrics))
    if synthetic_images and not all(
        model.is_synthetic for model in (candidate, *references.values())
    ):
        reasons.append(
            "synthetic images cannot decide about a model that was trained on real images"
        )
    for prefix, reference in references.items():
        if candidate.is_synthetic and not reference.is_synthetic:
            reasons.append(demo_after_real(candidate.title, reference.title))
        compared = _compare_with_champion(candidate, reference)
        decision_metrics |= {f"{prefix}{name}": value for name, value in compared.items()}
        title = f"{reference.title}{f' (the {REFERENCES[prefix]})' if prefix else ''}"
        if prefix == MOST_SENSITIVE:
            reasons += _sensitivity_reasons(compared, title, margins.sensitivity)
        else:
            reasons += _inferiority_reasons(compared, title, margins)
    return Decision(reasons, decision_metrics)


def demo_after_real(candidate: str, champion: str) -> str:
    """Return the reason against a model of synthetic images that would follow one of real images.

    Args:
        candidate: Title of the model of synthetic images.
        champion: Title of the model of real images.
    """
    return f"{candidate} was trained on synthetic images, but {champion} on real images"


def _compare_with_champion(candidate: EvaluatedModel, champion: EvaluatedModel) -> dict[str, float]:
    """Return the champion's metrics, and the differences candidate − champion."""
    comparison = candidate.compare_with(champion)
    return {
        **{f"champion_{name}": value for name, value in champion.metrics().items()},
        "auc_difference": comparison.auc_difference,
        "auc_difference_low": comparison.low,
        "auc_difference_high": comparison.high,
        "sensitivity_difference": comparison.sensitivity_difference,
        "sensitivity_difference_low": comparison.sensitivity_low,
        "sensitivity_difference_high": comparison.sensitivity_high,
        "champion_only_correct": comparison.only_first_correct,
        "candidate_only_correct": comparison.only_second_correct,
    }


def _inferiority_reasons(
    compared: Mapping[str, float], champion: str, margins: Margins
) -> Iterator[str]:
    """Yield a reason for each metric whose non-inferiority to the champion is not shown."""
    for name, margin in (("auc", margins.auc), ("sensitivity", margins.sensitivity)):
        low = compared[f"{name}_difference_low"]
        if not low > -margin:
            yield (
                f"non-inferiority of its {metric_title(name)} to {champion} is not shown: it may "
                f"be {-low:.4f} lower, and the margin is {margin} "
                f"({describe_difference(name, compared)})"
            )


def _sensitivity_reasons(
    compared: Mapping[str, float], champion: str, margin: float
) -> Iterator[str]:
    """Yield a reason if the sensitivity itself is smaller by the margin or more."""
    difference = compared["sensitivity_difference"]
    if not difference > -margin:
        yield (
            f"its sensitivity is {-difference:.4f} smaller than that of {champion}, and the "
            f"margin is {margin}"
        )


def describe_difference(name: str, metrics: Mapping[str, float], prefix: str = "") -> str:
    """Return a difference from a reference and its 95 % confidence interval as text.

    Args:
        name: `auc` or `sensitivity`.
        metrics: See `Decision.metrics`.
        prefix: See `REFERENCES`.
    """
    value, low, high = (metrics[f"{prefix}{name}_difference{suffix}"] for suffix in CI_SUFFIXES)
    return f"difference {value:+.4f}, 95 % confidence interval {low:+.4f} to {high:+.4f}"


def _limit_reasons(metrics: Mapping[str, float]) -> Iterator[str]:
    for name, floor in MIN_METRICS.items():
        if not metrics[name] >= floor:  # NaN fails as well
            yield f"{name} is {metrics[name]:.3f}, but the minimum is {floor:.2f}"
    for name, ceiling in MAX_METRICS.items():
        if not metrics[name] <= ceiling:
            yield (
                f"the calibration error at the prevalence of the images ({name}) is "
                f"{metrics[name]:.3f}, but the maximum is {ceiling:.2f}"
            )


def choose_references(
    champions: Mapping[int, EvaluatedModel], candidate: int, champion: int
) -> dict[str, EvaluatedModel]:
    """Choose the champions that `gate` compares a candidate with.

    Args:
        champions: All champions so far that can be compared, by number.
        candidate: Number of the candidate, which may have been champion.
        champion: Number of the current champion, or 0.

    Returns:
        Up to three different models, by their keys in `REFERENCES`.
    """
    references = {"": champions[champion]} if champion in champions else {}
    chosen = [candidate, champion]
    for prefix, order in (
        ("best_", ("auc", "sensitivity")),
        (MOST_SENSITIVE, ("sensitivity",)),
    ):
        best = best_champion(champions, order, chosen)
        if best and best not in chosen:
            references[prefix] = champions[best]
            chosen.append(best)
    return references


def best_champion(
    champions: Mapping[int, EvaluatedModel], order: Sequence[str], preferred: Collection[int] = ()
) -> int:
    """Return the number of the champion with the greatest metric, 0 if there is none.

    Args:
        champions: Version number → model.
        order: Names of metrics; each breaks the ties of those before it.
        preferred: Version numbers that win the ties that are left.
    """

    def rank(number: int) -> tuple[float, ...]:
        metrics = champions[number].metrics()
        return *(metrics[name] for name in order), number in preferred

    return max(champions, key=rank, default=0)
