"""Versions of registered models: creation, descriptions, tags and aliases."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import mlflow
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from pneumo.data.sources.sample import example_file
from pneumo.evaluation.metrics import HEADLINE_METRICS, metric_title
from pneumo.runtime import cache
from pneumo.runtime.errors import UserError
from pneumo.tracking import evaluations, model_files, runs, session, study_runs
from pneumo.tracking.model_files import download_model, model_digest
from pneumo.tracking.models import LoadedModel, logged_model_id
from pneumo.tracking.tags import (
    DATA,
    DATA_DIGEST,
    EVALUATION_RUN,
    EXPERIMENT,
    MEMBERS,
    MODEL_DIGEST,
    PARENT,
    PROMOTION,
    PROMOTION_RUN,
    PROVENANCE,
    STUDY,
    SYNTHETIC,
    TEST_EVALUATIONS,
    THRESHOLD,
    TRIAL_NUMBER,
    VERSIONS,
    WAS_CHAMPION,
)

if TYPE_CHECKING:
    from pneumo.inference.pyfunc import PneumoniaModel


CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"

TAGS_FROM_TRIAL = (*PROVENANCE, TRIAL_NUMBER, MEMBERS)

MODEL_DESCRIPTION = (
    "Classifies chest X-rays of children as pneumonia or normal. For research only; not a medical "
    "device.\n\n"
    # As code, because MLflow turns names with an @ into links to people on GitHub
    f"`@{CHALLENGER}` is the newest version. `@{CHAMPION}` is the version to use: `promote` moves "
    f"this alias to a version that passes its gate. `@{PREVIOUS}` is the previous champion."
)

# Metrics in a version's description, and their titles
DESCRIBED_METRICS = {name: metric_title(name) for name in HEADLINE_METRICS}


def log_test_evaluations(loaded_model: LoadedModel, count: int) -> None:
    """Tag a model with the number of its evaluations on the test images of its own data.

    Args:
        loaded_model: The model. Its version gets the tag, or MLflow's model if it is not
            registered.
        count: Number of evaluations.
    """
    tags = {TEST_EVALUATIONS: str(count)}
    if loaded_model.version:
        set_version_tags(loaded_model.name, loaded_model.version, tags)
    else:
        mlflow.MlflowClient().set_logged_model_tags(loaded_model.model_id, tags)


def record_test_metrics(loaded_model: LoadedModel, run_id: str, metrics: dict[str, float]) -> None:
    """Store the test metrics of an evaluation run as tags of the model's version.

    Args:
        loaded_model: The model, which must be registered.
        run_id: Id of a run that has evaluated it on the test images of its own data.
        metrics: Metrics of that evaluation: name → value.
    """
    tags = {f"test_{name}": str(metrics[name]) for name in DESCRIBED_METRICS}
    # The run comes last, because a version with it is expected to have all metrics
    set_version_tags(loaded_model.name, loaded_model.version, {**tags, EVALUATION_RUN: run_id})
    update_description(loaded_model.name, loaded_model.version)


def set_version_tags(model_name: str, version: int, tags: dict[str, str]) -> None:
    """Set tags of a version.

    Args:
        model_name: Name of the registered model.
        version: Number of the version.
        tags: Name → value.
    """
    client = mlflow.MlflowClient()
    for key, value in tags.items():
        client.set_model_version_tag(model_name, str(version), key, value)


def register(run_id: str, model: "PneumoniaModel", model_name: str) -> LoadedModel:
    """Make a trial's model the newest version of a registered model, and its `challenger`.

    The model is logged again on its trial's run, now with an input example. That takes seconds, so
    it is done only for models that are registered.

    Args:
        run_id: Id of the trial's run.
        model: The trial's model.
        model_name: Name of the registered model, which is created if it does not exist.
    """
    info = model_files.log_model(
        run_id, model.keras_model, model.settings, model.input_gate, example_file()
    )
    with download_model(info.model_uri) as folder:
        files_digest = model_digest(folder)
    version = _add_version(model_name, mlflow.get_run(run_id), info.model_id, files_digest)
    return _challenger(version, model)


def register_once(run_id: str, model: "PneumoniaModel", model_name: str) -> LoadedModel:
    """Make a trial's model the `challenger`, in a new version only if it has none yet.

    A model that has a version under another name is not logged again. Both versions then share its
    files and its evaluations. See `register` for the arguments.
    """
    versions = mlflow.MlflowClient().search_model_versions(f"run_id = '{run_id}'")
    if named := [version for version in versions if version.name == model_name]:
        return _challenger(named[0], model)
    if not versions:
        return register(run_id, model, model_name)
    model_id, files_digest = logged_model_id(versions[0]), versions[0].tags[MODEL_DIGEST]
    version = _add_version(model_name, mlflow.get_run(run_id), model_id, files_digest)
    return _challenger(version, model)


def _challenger(version: ModelVersion, model: "PneumoniaModel") -> LoadedModel:
    client = mlflow.MlflowClient()
    client.update_registered_model(version.name, MODEL_DESCRIPTION)
    client.set_registered_model_alias(version.name, CHALLENGER, version.version)
    trial = client.get_run(version.run_id)
    return LoadedModel(trial, logged_model_id(version), version.name, int(version.version), model)


def _add_version(model_name: str, trial: Run, model_id: str, files_digest: str) -> ModelVersion:
    """Do what `mlflow.register_model` does, without its messages on standard error."""
    client = mlflow.MlflowClient()
    try:
        client.create_registered_model(model_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {key: trial.data.tags[key] for key in TAGS_FROM_TRIAL if key in trial.data.tags}
    tags |= {f"val_{name}": str(trial.data.metrics[f"val_{name}"]) for name in DESCRIBED_METRICS}
    tags |= {MODEL_DIGEST: files_digest, **runs.commit_tag(trial)}
    source = f"models:/{model_id}"
    version = client.create_model_version(model_name, source, tags=tags, model_id=model_id)
    listed = json.loads(client.get_logged_model(model_id).tags.get(VERSIONS, "[]"))
    listed.append({"name": version.name, "version": version.version})
    client.set_logged_model_tags(model_id, {VERSIONS: json.dumps(listed)})
    update_description(model_name, int(version.version))
    return version


def update_description(model_name: str, version: int) -> None:
    """Write a version's description for people, with links, from what is stored about the version.

    Args:
        model_name: Name of the registered model.
        version: Number of the version.
    """
    client = mlflow.MlflowClient()
    model_version = client.get_model_version(model_name, str(version))
    lines = [
        MODEL_DESCRIPTION.partition("\n")[0],
        _describe_origin(model_version.tags),
        _format_metrics("On validation", model_version.tags, "val_"),
        _format_metrics("On test", model_version.tags, "test_")
        if EVALUATION_RUN in model_version.tags
        else "",
        f"Last decision: {model_version.tags[PROMOTION]}."
        if PROMOTION in model_version.tags
        else "",
        " · ".join(f"[{text}]({address})" for text, address in _links(model_version)),
    ]
    client.update_model_version(model_name, model_version.version, "\n\n".join(filter(None, lines)))


def _describe_origin(tags: dict[str, str]) -> str:
    origin = study_runs.describe_source(tags) if STUDY in tags else "A single training run"
    data = f"{tags[DATA]} (digest {tags[DATA_DIGEST]})"
    synthetic = "**The images are synthetic: this model has learned nothing about patients.**"
    warning = synthetic if tags[SYNTHETIC] == "true" else ""
    return f"{origin}, experiment {tags[EXPERIMENT]}, on {data}. {warning}".strip()


def _format_metrics(title: str, tags: dict[str, str], prefix: str) -> str:
    texts = [
        f"{DESCRIBED_METRICS[name]} {float(tags[prefix + name]):.3f}" for name in DESCRIBED_METRICS
    ]
    return f"{title}: {', '.join(texts)}."


def _links(version: ModelVersion) -> Iterator[tuple[str, str]]:
    """Yield a title and an address in MLflow's UI for each run that is still in the store."""
    tags, trial = version.tags, runs.find_run(version.run_id)
    if trial:
        yield "training run", session.ui_path(trial)
        study = STUDY in tags and runs.find_run(trial.data.tags[PARENT])
        if study:
            yield "study run", session.ui_path(study)
            yield "study report", session.ui_path(study, "study/study.html")
    run, decision = (
        runs.find_run(tags[name]) if name in tags else None
        for name in (EVALUATION_RUN, PROMOTION_RUN)
    )
    # In the meantime the study's run may have become the evaluation of a later winner
    if run and version.source == f"models:/{evaluations.evaluated_model(run)}":
        yield "evaluation report", session.ui_path(run, "test/evidence.html")
    if decision:
        yield "last decision", session.ui_path(decision)


def version_by_alias(model_name: str, alias: str) -> int:
    """Return the version that has an alias, or 0 if none has it.

    Args:
        model_name: Name of the registered model.
        alias: The alias, without an @.

    Raises:
        UserError: There is no registered model of that name.
    """
    return int(_registered(model_name).aliases.get(alias, 0))


def _registered(model_name: str) -> RegisteredModel:
    try:
        return mlflow.MlflowClient().get_registered_model(model_name)
    except MlflowException as error:
        raise UserError(
            f"model_name must be a registered model in {session.tracking_address()}: got "
            f"'{model_name}' ({error})"
        ) from None


def require_version(model_name: str, version: str) -> int:
    """Return the number of a version that must exist.

    Args:
        model_name: Name of the registered model.
        version: Number of the version, as text.

    Raises:
        UserError: There is no such registered model, or no such version of it.
    """
    numbers = sorted(
        int(model_version.version) for model_version in _versions(_registered(model_name))
    )
    if version not in map(str, numbers):
        raise UserError(
            f"the version of {model_name} must be one of {', '.join(map(str, numbers)) or 'none'}: "
            f"got {version}"
        )
    return int(version)


def _versions(model: RegisteredModel) -> list[ModelVersion]:
    quote = '"' if "'" in model.name else "'"
    return mlflow.MlflowClient().search_model_versions(f"name = {quote}{model.name}{quote}")


def model_ids(model_name: str, *versions: int) -> list[str]:
    """Return MLflow's ids of the models of versions, each once; version 0 is no version."""
    client = mlflow.MlflowClient()
    found = (client.get_model_version(model_name, str(number)) for number in versions if number)
    return list(dict.fromkeys(map(logged_model_id, found)))


def champions(model_name: str) -> dict[int, ModelVersion]:
    """Return all versions that are or have been champion, by number.

    A version that became champion before `set_champion` tagged champions is known only while it has
    an alias.
    """
    model = _registered(model_name)
    holders = {
        int(model.aliases[alias]) for alias in (CHAMPION, PREVIOUS) if alias in model.aliases
    }
    versions = {int(version.version): version for version in _versions(model)}
    return {
        number: version
        for number, version in sorted(versions.items())
        if number in holders or WAS_CHAMPION in version.tags
    }


def stored_threshold(version: ModelVersion) -> float | None:
    """Return a version's threshold without reading its files.

    Returns:
        The threshold, or None if it is not in the store.
    """
    if THRESHOLD in version.tags:
        return float(version.tags[THRESHOLD])
    trial = runs.find_run(version.run_id)
    return trial.data.metrics["val_threshold"] if trial else None


def set_champion(model_name: str, version: int, champion: int) -> int:
    """Make a version the champion and the present one `previous`, if the champion has not changed.

    MLflow cannot compare and set an alias in one step. A lock makes up for that between processes
    of one machine. All versions that gain or lose an alias are tagged as champions for `champions`.

    Args:
        model_name: Name of the registered model.
        version: The new champion.
        champion: The champion that `version` was compared with, or 0 for none.

    Returns:
        The champion that this function found. If it is not `champion`, nothing was changed.
    """
    client = mlflow.MlflowClient()
    with cache.lock(f"promote {model_name}"):
        current = version_by_alias(model_name, CHAMPION)
        if current == champion:
            for number in {version, champion, version_by_alias(model_name, PREVIOUS)} - {0}:
                set_version_tags(model_name, number, {WAS_CHAMPION: "true"})
            if champion:
                client.set_registered_model_alias(model_name, PREVIOUS, str(champion))
            client.set_registered_model_alias(model_name, CHAMPION, str(version))
    return current
