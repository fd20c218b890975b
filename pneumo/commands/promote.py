"""The command `promote`: the decision about `@champion`, or its rollback."""

from collections.abc import Mapping
from dataclasses import replace

from mlflow.entities.model_registry import ModelVersion

from pneumo.commands.evaluation import evaluate_model, evaluation_run
from pneumo.commands.options.arguments import PromoteOptions
from pneumo.commands.options.inputs import Inputs
from pneumo.data.dataset import Dataset
from pneumo.evaluation import bootstrap
from pneumo.evaluation.comparison import (
    REFERENCES,
    Decision,
    EvaluatedModel,
    Margins,
    choose_references,
    demo_after_real,
    describe_difference,
    gate,
)
from pneumo.evaluation.dataset.overlap import find_overlap
from pneumo.evaluation.metrics import metric_title
from pneumo.reporting.evaluation.findings import explain_overlap
from pneumo.runtime.console import echo, print_table
from pneumo.runtime.errors import UserError
from pneumo.runtime.tensorflow_import import import_tensorflow
from pneumo.tracking import evaluations, models, registry, results, runs, session, tags
from pneumo.tracking.models import LoadedModel
from pneumo.tracking.registry import CHALLENGER, CHAMPION, PREVIOUS
from pneumo.tracking.tags import PROMOTION, PROMOTION_RUN, ROLLBACK, SPLIT, THRESHOLD

EXIT_REJECTED = 3  # exit code of a rejection, which is a result and no failure

SHOWN = ("auc", "sensitivity", "specificity", "accuracy", "ece", "threshold")


def promote(options: PromoteOptions, inputs: Inputs) -> int:
    """Make a version the champion if it passes the gate, or roll back to the previous one.

    Returns:
        Exit code: 0, or `EXIT_REJECTED` if the candidate is rejected.

    Raises:
        UserError: See `promote_version` and `roll_back`.
    """
    import_tensorflow()
    session.connect()
    if options.rollback:
        roll_back(options.model_name)
        return 0
    decision = promote_version(
        options.model_name,
        options.candidate,
        inputs.dataset,
        options.split,
        options.margin,
        options.sensitivity_margin,
    )
    return 0 if decision.is_promoted else EXIT_REJECTED


def promote_version(
    model_name: str,
    candidate: str,
    dataset: Dataset,
    split: str,
    margin: float,
    sensitivity_margin: float = 0.05,
) -> Decision:
    """Make a version the champion if it passes the gate, and log the decision as a run.

    Evaluations of the same models on the same images are read from earlier runs. If there is none,
    the candidate and the champion are evaluated now. A champion that has no evaluation and cannot
    be loaded counts as vacant.

    Args:
        model_name: Name of the registered model.
        candidate: Alias or number of a version.
        dataset: Images to decide on.
        split: `test`, `val` or `train`.
        margin: Non-inferiority margin for the AUC, 0 to 1.
        sensitivity_margin: Non-inferiority margin for the sensitivity, 0 to 1.

    Returns:
        The decision.

    Raises:
        UserError: There is no such version, or the run that trained it has been removed.
    """
    version = _version_of(model_name, candidate)
    champion = registry.version_by_alias(model_name, CHAMPION)
    tags = {**runs.data_tags(dataset), **_decision_tags(model_name, version, champion)}
    tags[SPLIT] = split
    margins = Margins(margin, sensitivity_margin)
    with runs.command_run("promote", f"{model_name} version {version}", tags) as run_id:
        runs.log_model_inputs(*registry.model_ids(model_name, version, champion))
        decision = _decide(model_name, version, champion, dataset, split, margins)
        if decision.is_promoted:
            threshold = decision.metrics["candidate_threshold"]
            registry.set_version_tags(model_name, version, {THRESHOLD: str(threshold)})
            current = registry.set_champion(model_name, version, champion)
            if current != champion:
                decision.reasons.append(
                    f"version {current} became champion in the meantime; promote again to compare "
                    "with it"
                )
                champion = current
        results.log_decision(decision.reasons, decision.metrics, decision.champion_vacant)
        _print_decision(decision)
        _annotate_versions(model_name, run_id, _version_notes(version, champion, decision))
    echo(session.view_hint(run_id))
    return decision


def _print_decision(decision: Decision) -> None:
    metrics = decision.metrics
    titles = {
        prefix: title
        for prefix, title in REFERENCES.items()
        if f"{prefix}auc_difference" in metrics
    }
    columns = {f"{prefix}champion": title for prefix, title in titles.items()}
    columns["candidate"] = "candidate"
    if metrics:
        rows = [
            [name, *(f"{metrics[f'{model}_{name}']:.3f}" for model in columns)] for name in SHOWN
        ]
        print_table("Compared metrics", ("", *columns.values()), rows)
    for prefix, title in titles.items():
        for name in ("auc", "sensitivity"):
            difference = describe_difference(name, metrics, prefix)
            echo(f"{metric_title(name)} compared with the {title}: {difference}")
    if decision.champion_vacant:
        echo(f"note: no comparison with @{CHAMPION}: {decision.champion_vacant}")


def roll_back(model_name: str) -> None:
    """Make `@previous` the champion again, and the present champion `@previous`.

    Raises:
        UserError: There is no previous champion, its files have changed or are missing, or another
            version has become champion in the meantime.
    """
    version = registry.version_by_alias(model_name, PREVIOUS)
    champion = registry.version_by_alias(model_name, CHAMPION)
    if not version:
        raise UserError(
            f"--rollback requires a previous champion: no version of {model_name} has the alias "
            f"@{PREVIOUS}. Promote another version instead."
        )
    models.verify_registered_files(model_name, version)
    tags = {**_decision_tags(model_name, version, champion), ROLLBACK: "true"}
    about = f"{model_name} version {version}, rollback"
    with runs.command_run("promote", about, tags) as run_id:
        current = registry.set_champion(model_name, version, champion)
        if current != champion:
            raise UserError(
                f"version {current} of {model_name} became champion in the meantime, so nothing "
                "was rolled back. Check that version, and run the command again to roll it back."
            )
        results.log_decision([], {})
        notes = {version: "restored as champion"}
        if champion:
            notes = {
                version: f"restored as champion in place of version {champion}",
                champion: f"replaced by version {version} in a rollback",
            }
        _annotate_versions(model_name, run_id, notes)
    echo(session.view_hint(run_id))


def _version_of(model_name: str, candidate: str) -> int:
    if candidate.isdecimal():
        return registry.require_version(model_name, candidate)
    if version := registry.version_by_alias(model_name, candidate):
        return version
    raise UserError(
        f"--candidate must be an alias or the number of a version of {model_name}: got "
        f"'{candidate}'. The latest model of tune or train has the alias @{CHALLENGER}."
    )


def _decision_tags(model_name: str, version: int, champion: int) -> dict[str, str]:
    return {
        tags.MODEL: model_name,
        tags.CANDIDATE: str(version),
        tags.COMPARED_WITH: str(champion or "none"),
    }


def _decide(
    model_name: str, version: int, champion: int, dataset: Dataset, split: str, margins: Margins
) -> Decision:
    if version == champion:
        return Decision([f"version {version} is already the champion"], {})
    try:
        candidate = models.find_model(f"models:/{model_name}/{version}")
    except models.ModelTamperedError as reason:
        return Decision([str(reason)], {})
    evaluated_candidate = _read_or_evaluate(candidate, dataset, split)
    versions = registry.champions(model_name)
    champions, vacancy = _comparable_champions(
        versions, champion, evaluated_candidate, dataset, split
    )
    references = choose_references(champions, version, champion)
    decision = replace(
        gate(evaluated_candidate, references, dataset.is_synthetic, margins),
        champion_vacant=vacancy,
    )
    if vacancy and evaluated_candidate.is_synthetic and not _is_synthetic(versions[champion]):
        decision.reasons.append(
            demo_after_real(evaluated_candidate.title, _version_title(versions[champion]))
        )
    files = results.known_files(candidate.trial, dataset)
    if overlap_reason := explain_overlap(find_overlap(files, dataset, split)):
        decision.reasons.append(overlap_reason)
    return decision


def _read_or_evaluate(loaded_model: LoadedModel, dataset: Dataset, split: str) -> EvaluatedModel:
    """Return a loaded model with its stored evaluation; evaluate it if there is none."""
    run_id = evaluations.find_predictions(loaded_model.model_id, dataset.digest, split)
    if run_id is None:
        with evaluation_run(loaded_model, dataset, split) as (run_id, images):
            evaluate_model(loaded_model, images, split)
    predictions = results.read_predictions(run_id, split)
    return EvaluatedModel(
        predictions,
        loaded_model.model.settings["threshold"],
        loaded_model.title,
        loaded_model.is_synthetic,
        loaded_model.model.settings["prevalence"],
    )


def _comparable_champions(
    versions: Mapping[int, ModelVersion],
    champion: int,
    candidate: EvaluatedModel,
    dataset: Dataset,
    split: str,
) -> tuple[dict[int, EvaluatedModel], str]:
    """Return all champions so far that can be compared with a candidate, from stored evaluations.

    The current champion is loaded and evaluated only if it has no stored evaluation.

    Args:
        versions: All versions that have been champion, by number.
        champion: Number of the current champion, or 0.
        candidate: The candidate with its predictions.
        dataset: Images to decide on.
        split: `test`, `val` or `train`.

    Returns:
        The champions by number, and why the current one is not among them, or ''.
    """
    known = {
        number: _read_evaluated(version, dataset, split) for number, version in versions.items()
    }
    vacancy = ""
    if champion and not known[champion]:
        try:
            model = models.find_model(f"models:/{versions[champion].name}/{champion}")
            known[champion] = _read_or_evaluate(model, dataset, split)
        except (models.ModelTamperedError, models.TrialRemovedError) as reason:
            vacancy = str(reason)
    paired = {
        number: evaluated
        for number, evaluated in known.items()
        if evaluated and bootstrap.is_paired(evaluated.predictions, candidate.predictions)
    }
    if champion and champion not in paired and not vacancy:
        vacancy = (
            f"the evaluations of {known[champion].title} and {candidate.title} differ in their "
            "images, patients or labels"
        )
    return paired, vacancy


def _read_evaluated(version: ModelVersion, dataset: Dataset, split: str) -> EvaluatedModel | None:
    """Return a version with its stored evaluation, without its files; None if it has none."""
    run_id = evaluations.find_predictions(models.logged_model_id(version), dataset.digest, split)
    if run_id is None:
        return None
    threshold = registry.stored_threshold(version)
    if threshold is None:
        threshold = evaluations.evaluated_threshold(run_id, split)
    predictions = results.read_predictions(run_id, split)
    return EvaluatedModel(predictions, threshold, _version_title(version), _is_synthetic(version))


def _version_title(version: ModelVersion) -> str:
    return f"{version.name} version {version.version}"


def _is_synthetic(version: ModelVersion) -> bool:
    return version.tags.get(tags.SYNTHETIC) == "true"


def _version_notes(version: int, champion: int, decision: Decision) -> dict[int, str]:
    """Return what a decision means for each of the versions, in words."""
    if version == champion:
        return {version: "stays champion; it was also the candidate"}
    if not decision.is_promoted:
        rejection = f"rejected: {'; '.join(decision.reasons)}"
        confirmation = f"stays champion; version {version} was rejected"
        return {champion: confirmation, version: rejection} if champion else {version: rejection}
    if not champion:
        return {version: "promoted as the first champion"}
    vacant = ", which could not be compared" if decision.champion_vacant else ""
    return {
        version: f"promoted in place of version {champion}{vacant}",
        champion: f"replaced by version {version}",
    }


def _annotate_versions(model_name: str, run_id: str, notes: Mapping[int, str]) -> None:
    """Store on versions the decision about them and its run."""
    for version, text in notes.items():
        echo(f"{model_name} version {version}: {text}")
        tags = {PROMOTION: text, PROMOTION_RUN: run_id}
        registry.set_version_tags(model_name, version, tags)
        registry.update_description(model_name, version)
