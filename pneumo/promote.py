"""Which model is the champion: the gate, what passes it, and the way back."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from pneumo import bootstrap, evaluate, evidence, registry, tracking
from pneumo.console import say, table
from pneumo.data.dataset import Dataset
from pneumo.errors import Mistake
from pneumo.registry import CHALLENGER, CHAMPION, PREVIOUS, Stored

# What a champion must reach on the images of the decision, whoever it follows
FLOORS = {"sensitivity": 0.90, "specificity": 0.60}
CEILINGS = {"ece": 0.15}  # expected calibration error

SHOWN = ("auc", "sensitivity", "specificity", "accuracy", "ece", "threshold")


@dataclass(frozen=True)
class Held:
    """A model as a stored evaluation shows it.

    `synthetic`: whether it was trained on synthetic images; `threshold`: its own; `predictions`:
    columns as in `evaluate.Evaluation`.
    """

    title: str
    synthetic: bool
    threshold: float
    predictions: pd.DataFrame

    def metrics(self) -> dict[str, float]:
        """As `evaluate.score`, at the model's own threshold."""
        labels, probabilities = (self.predictions[it] for it in ("label", "probability"))
        return evaluate.score(labels.to_numpy(), probabilities.to_numpy(), self.threshold)


@dataclass(frozen=True)
class Decision:
    """Whether a candidate becomes champion: it does where there are no `reasons` against it.

    `figures`: `candidate_…` and `champion_…` as `Held.metrics`, and, where there is a champion,
    how the two compare.
    """

    reasons: list[str]
    figures: dict[str, float]

    @property
    def promoted(self) -> bool:
        """Whether the gate is passed."""
        return not self.reasons


def gate(candidate: Held, champion: Held | None, synthetic_images: bool, margin: float) -> Decision:
    """Weighs a candidate against the champion, both held against the same images.

    `margin`: how much smaller the candidate's AUC may be, 0 to 1: the lower bound of the 95 %
    interval of candidate − champion, by patient, must lie above −`margin`. Without a champion the
    floors alone decide. Raises `ValueError` where the images are not the same.
    """
    metrics = candidate.metrics()
    figures = {f"candidate_{name}": value for name, value in metrics.items()}
    reasons = list(_below_the_floors(metrics))
    if synthetic_images and not (candidate.synthetic and (champion is None or champion.synthetic)):
        reasons.append("the images are synthetic and say nothing of a model of real ones")
    if champion is None:
        return Decision(reasons, figures)
    if candidate.synthetic and not champion.synthetic:
        reasons.append(
            f"{candidate.title} was trained on synthetic images, {champion.title} on real ones"
        )
    figures |= {f"champion_{name}": value for name, value in champion.metrics().items()}
    figures |= _compared(candidate, champion)
    if not figures["auc_difference_low"] > -margin:
        reasons.append(
            f"its AUC may be {-figures['auc_difference_low']:.4f} smaller than that of "
            f"{champion.title}, and less than {margin} is allowed ({_difference(figures)})"
        )
    return Decision(reasons, figures)


def _compared(candidate: Held, champion: Held) -> dict[str, float]:
    """`bootstrap.compare`, as candidate − champion."""
    found = bootstrap.compare(
        champion.predictions, candidate.predictions, (champion.threshold, candidate.threshold)
    )
    return {
        "auc_difference": found.auc_difference,
        "auc_difference_low": found.low,
        "auc_difference_high": found.high,
        "champion_alone_right": found.first_only,
        "candidate_alone_right": found.second_only,
        "mcnemar_p": found.p,
    }


def _difference(figures: Mapping[str, float]) -> str:
    value, low, high = (figures[f"auc_difference{end}"] for end in evaluate.ENDS)
    return f"difference {value:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}"


def _below_the_floors(metrics: Mapping[str, float]) -> Iterator[str]:
    for name, floor in FLOORS.items():
        if not metrics[name] >= floor:  # NaN is below as well
            yield f"{name} is {metrics[name]:.3f}, and {floor:.2f} is the least"
    for name, ceiling in CEILINGS.items():
        if not metrics[name] <= ceiling:
            yield f"{name} is {metrics[name]:.3f}, and {ceiling:.2f} is the most"


def promote(
    model_name: str, candidate: str, dataset: Dataset, split: str, margin: float
) -> Decision:
    """Makes a version the champion if it passes the gate; the decision is a run of kind `promote`.

    `candidate`: an alias or a version's number. Evaluations of the same models on the same split
    are taken from earlier runs, and made where there are none. Raises `Mistake` where there is no
    such version, or where the champion's own files have changed.
    """
    version = _version_of(model_name, candidate)
    champion = registry.holder(model_name, CHAMPION)
    tags = {**tracking.data_tags(dataset), **_tags(model_name, version, champion)}
    tags["pneumo.split"] = split
    with tracking.command_run("promote", f"{model_name} version {version}", tags) as run_id:
        decision = _decide(model_name, version, champion, dataset, split, margin)
        if decision.promoted:
            found = registry.crown(model_name, version, champion)
            if found != champion:
                decision.reasons.append(
                    f"version {found} has become champion meanwhile; hold it against that one"
                )
                champion = found
        tracking.log_decision(decision.reasons, decision.figures)
        _show(decision.figures)
        _tell(model_name, run_id, _news(version, champion, decision))
    say(tracking.how_to_look(run_id))
    return decision


def _show(figures: Mapping[str, float]) -> None:
    whose = [who for who in ("champion", "candidate") if f"{who}_auc" in figures]
    if whose:
        rows = [[name, *(f"{figures[f'{who}_{name}']:.3f}" for who in whose)] for name in SHOWN]
        table("What is weighed", ("", *whose), rows)
    if "auc_difference" in figures:
        say(f"AUC: {_difference(figures)}; McNemar's p {figures['mcnemar_p']:.3f}")


def roll_back(model_name: str) -> None:
    """Makes `@previous` the champion again, and the present champion `@previous`.

    Raises `Mistake` where there is no previous champion, or where its files have changed.
    """
    version = registry.holder(model_name, PREVIOUS)
    champion = registry.holder(model_name, CHAMPION)
    if not version:
        raise Mistake(
            f"rollback needs a version that has been champion of {model_name} before, @{PREVIOUS}, "
            "and there is none; promote another version instead"
        )
    registry.require_as_registered(model_name, version)
    tags = {**_tags(model_name, version, champion), "pneumo.rollback": "true"}
    about = f"{model_name} version {version} again"
    with tracking.command_run("promote", about, tags) as run_id:
        found = registry.crown(model_name, version, champion)
        if found != champion:
            raise Mistake(
                f"version {found} of {model_name} has become champion meanwhile; look at it, and "
                "start again if it is to be rolled back"
            )
        tracking.log_decision([], {})
        news = {version: "brought back"}
        if champion:
            news = {
                version: f"brought back in place of version {champion}",
                champion: f"rolled back to version {version}",
            }
        _tell(model_name, run_id, news)
    say(tracking.how_to_look(run_id))


def _version_of(model_name: str, candidate: str) -> int:
    if candidate.isdecimal():
        return registry.require_version(model_name, candidate)
    if version := registry.holder(model_name, candidate):
        return version
    raise Mistake(
        f"candidate must be an alias or a version of {model_name}: got '{candidate}', which no "
        f"version has; the model of a study or of train has @{CHALLENGER}"
    )


def _tags(model_name: str, version: int, champion: int) -> dict[str, str]:
    return {
        "pneumo.model": model_name,
        "pneumo.candidate": str(version),
        "pneumo.champion": str(champion or "none"),
    }


def _decide(
    model_name: str, version: int, champion: int, dataset: Dataset, split: str, margin: float
) -> Decision:
    if version == champion:
        return Decision([f"version {version} is the champion already"], {})
    try:
        candidate = registry.find(f"models:/{model_name}/{version}")
    except registry.Tampered as reason:
        return Decision([str(reason)], {})
    follows = registry.find(f"models:/{model_name}/{champion}") if champion else None
    held = [_held(it, dataset, split) if it else None for it in (candidate, follows)]
    decision = gate(*held, dataset.synthetic, margin)
    if split in evidence.SEEN and not evidence.external(dataset, candidate.trial):
        decision.reasons.append(f"it was made with the images of {split}: they prove nothing")
    return decision


def _held(stored: Stored, dataset: Dataset, split: str) -> Held:
    run_id = tracking.find_evaluation(stored.model_id, dataset.digest, split)
    if run_id is None:
        with evidence.evaluation_run(stored, dataset) as (run_id, images):
            evidence.examine(stored, images, split)
    predictions = tracking.read_predictions(run_id, split)
    return Held(stored.title, stored.synthetic, stored.model.settings["threshold"], predictions)


def _news(version: int, champion: int, decision: Decision) -> dict[int, str]:
    """What a decision means for each of the versions."""
    if version == champion:
        return {version: "stays champion; the candidate was the champion itself"}
    if not decision.promoted:
        refused = f"refused: {'; '.join(decision.reasons)}"
        kept = f"stays champion, version {version} was refused"
        return {champion: kept, version: refused} if champion else {version: refused}
    if not champion:
        return {version: "promoted, as the first champion"}
    return {version: f"promoted over version {champion}", champion: f"followed by {version}"}


def _tell(model_name: str, run_id: str, news: Mapping[int, str]) -> None:
    """Notes on versions what was decided about them, and where."""
    for version, text in news.items():
        say(f"{model_name} version {version}: {text}")
        tags = {registry.PROMOTION: text, registry.PROMOTION_RUN: run_id}
        registry.tag(model_name, version, tags)
        registry.describe(model_name, version)
