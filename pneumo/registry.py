"""Models in MLflow's registry: registered, found, crowned, rolled back."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.model import ModelInfo

from pneumo import tracking
from pneumo.data import cache
from pneumo.data.sample import example_file
from pneumo.errors import Mistake

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"

# Tags of a version
TEST_EVALUATIONS = "pneumo.test_evaluations"  # how often it has been held against test
MODEL_DIGEST = "pneumo.model_digest"  # of its files, as they were registered
EVALUATION_RUN = "pneumo.evaluation_run"  # that held it against test the last time
PROMOTION, PROMOTION_RUN = "pneumo.promotion", "pneumo.promotion_run"  # the last decision about it
VERSIONS = "mlflow.modelVersions"  # of a logged model, for MLflow's page on it
TOLD_BY_THE_TRIAL = (
    *("pneumo.experiment", "pneumo.data", "pneumo.data_digest", "pneumo.synthetic"),
    *("pneumo.patients", "pneumo.study", "optuna.trial_number"),
)

ABOUT = (
    "Pneumonia or not, on chest X-rays of children. For research; not a medical device.\n\n"
    # As code: MLflow makes links to people on GitHub of names that begin with an @
    f"`@{CHALLENGER}` is the newest version; `@{CHAMPION}` the one to use, which `promote` chooses "
    f"on evidence; `@{PREVIOUS}` the champion before it."
)

# The metrics that a version's description tells, and what it calls them
TOLD = {"auc": "AUC", **{it: it for it in ("sensitivity", "specificity", "accuracy")}}

VERSION = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<number>\d+))")


@dataclass(frozen=True)
class Stored:
    """A model in MLflow, loaded.

    `trial`: the Keras run that made it; `model_id`: MLflow's own; `name` and `version`: in the
    registry, '' and 0 where it is not registered; `model`: a `serve.PneumoniaModel` with its
    `keras_model` and `settings`.
    """

    trial: Run
    model_id: str
    name: str
    version: int
    model: mlflow.pyfunc.PythonModel

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"{self.name} version {self.version}" if self.version else f"model {self.model_id}"

    @property
    def synthetic(self) -> bool:
        """Whether it was trained on synthetic images."""
        return self.trial.data.tags["pneumo.synthetic"] == "true"


class Tampered(Mistake):
    """The files of a version are not those that were registered."""


def load(model_uri: str) -> mlflow.pyfunc.PythonModel:
    """The stored model as a `serve.PneumoniaModel`, with its `keras_model` and `settings`."""
    return mlflow.pyfunc.load_model(model_uri).unwrap_python_model()


def find(model_uri: str) -> Stored:
    """The model at `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `models:/m-…`.

    Raises `Mistake` where there is none, or another's; `Tampered`, before anything of it is
    loaded, where the files of a version have changed since it was registered.
    """
    try:
        version = _version(model_uri)
        # An alias may move meanwhile
        exact = f"models:/{version.name}/{version.version}" if version else model_uri
        folder = mlflow.artifacts.download_artifacts(exact)
        info = Model.load(folder)
        trial = mlflow.get_run(info.run_id)
        if version:
            _require_unchanged(version, Path(folder))
        model = load(folder)
    except (MlflowException, OSError) as error:
        raise Mistake(
            f"model must be models:/NAME@ALIAS, models:/NAME/VERSION or models:/m-… in "
            f"{tracking.store()}: got '{model_uri}' ({error})".replace("\n", " ")
        ) from None
    if not hasattr(model, "settings"):
        raise _anothers(model_uri)
    name, number = (version.name, int(version.version)) if version else ("", 0)
    return Stored(trial, info.model_id, name, number, model)


def _version(model_uri: str) -> ModelVersion | None:
    match, client = VERSION.fullmatch(model_uri), mlflow.MlflowClient()
    if not match:
        return None
    if match["number"]:
        return client.get_model_version(match["name"], match["number"])
    return client.get_model_version_by_alias(match["name"], match["alias"])


def require_as_registered(model_name: str, version: int) -> None:
    """Raises `Tampered` where the files of a version have changed since it was registered."""
    folder = mlflow.artifacts.download_artifacts(f"models:/{model_name}/{version}")
    _require_unchanged(mlflow.MlflowClient().get_model_version(model_name, version), Path(folder))


def _anothers(model_uri: str) -> Mistake:
    return Mistake(f"model must be one that pneumo made: '{model_uri}' is another's")


def _require_unchanged(version: ModelVersion, folder: Path) -> None:
    if MODEL_DIGEST not in version.tags:
        raise _anothers(f"models:/{version.name}/{version.version}")
    found, registered = digest(folder), version.tags[MODEL_DIGEST]
    if found != registered:
        raise Tampered(
            f"the files of {version.name} version {version.version} must be those that were "
            f"registered, digest {registered}: they are {found} now; do not use this version"
        )


def digest(folder: Path) -> str:
    """16 hex digits that name the files of a stored model: weights, settings and code."""
    found = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        # MLflow adds its own note of the version to what it downloads, and Python its bytecode
        if file.is_file() and file.name != "registered_model_meta" and file.suffix != ".pyc":
            found.update(file.relative_to(folder).as_posix().encode() + b"\0")
            found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()[:16]


def test_evaluations(stored: Stored) -> int:
    """How often a model has been held against test."""
    client = mlflow.MlflowClient()
    if stored.version:
        tags = client.get_model_version(stored.name, str(stored.version)).tags
    else:
        tags = client.get_logged_model(stored.model_id).tags
    return int(tags.get(TEST_EVALUATIONS, 0))


def count_test_evaluation(stored: Stored) -> int:
    """Counts that a model is held against test once more; returns how often it now has been."""
    count = test_evaluations(stored) + 1
    if stored.version:
        tag(stored.name, stored.version, {TEST_EVALUATIONS: str(count)})
    else:
        client = mlflow.MlflowClient()
        client.set_logged_model_tags(stored.model_id, {TEST_EVALUATIONS: str(count)})
    return count


def tell_of_test(stored: Stored, run_id: str, metrics: dict[str, float]) -> None:
    """Notes on a version what a run has found on test of the data that the version is made of."""
    tags = {f"test_{name}": str(metrics[name]) for name in TOLD}
    tag(stored.name, stored.version, {EVALUATION_RUN: run_id, **tags})
    describe(stored.name, stored.version)


def tag(model_name: str, version: int, tags: dict[str, str]) -> None:
    """Sets tags of a version."""
    client = mlflow.MlflowClient()
    for key, value in tags.items():
        client.set_model_version_tag(model_name, str(version), key, value)


def register(run_id: str, model: mlflow.pyfunc.PythonModel, model_name: str) -> Stored:
    """Makes `model` the newest version of `model_name` and its `challenger`.

    It is logged once more on `run_id`, its own trial, now with an input example, which costs
    seconds and so is not spent on models that are never registered.
    """
    info = tracking.log_model(run_id, model.keras_model, model.settings, example_file())
    trial, folder = mlflow.get_run(run_id), mlflow.artifacts.download_artifacts(info.model_uri)
    tags = {key: trial.data.tags[key] for key in TOLD_BY_THE_TRIAL if key in trial.data.tags}
    tags |= {f"val_{name}": str(trial.data.metrics[f"val_{name}"]) for name in TOLD}
    tags |= {MODEL_DIGEST: digest(Path(folder)), **tracking.commit(trial)}
    version = _new_version(model_name, info, tags)
    describe(model_name, version)
    client = mlflow.MlflowClient()
    client.update_registered_model(model_name, ABOUT)
    client.set_registered_model_alias(model_name, CHALLENGER, str(version))
    return Stored(trial, info.model_id, model_name, version, model)


def _new_version(model_name: str, info: ModelInfo, tags: dict[str, str]) -> int:
    """As `mlflow.register_model`, which also talks about it on standard error."""
    client = mlflow.MlflowClient()
    try:
        client.create_registered_model(model_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = client.create_model_version(
        model_name, info.model_uri, tags=tags, model_id=info.model_id
    )
    listed = json.dumps([{"name": made.name, "version": made.version}])
    client.set_logged_model_tags(info.model_id, {VERSIONS: listed})
    return int(made.version)


def describe(model_name: str, version: int) -> None:
    """Writes what a person wants to know of a version, with links, from what is stored of it."""
    client = mlflow.MlflowClient()
    it = client.get_model_version(model_name, str(version))
    lines = [
        ABOUT.partition("\n")[0],
        _origin(it.tags),
        _figures("On validation", it.tags, "val_"),
        _figures("On test", it.tags, "test_") if EVALUATION_RUN in it.tags else "",
        f"Last decision: {it.tags[PROMOTION]}." if PROMOTION in it.tags else "",
        " · ".join(f"[{text}]({address})" for text, address in _links(it)),
    ]
    client.update_model_version(model_name, it.version, "\n\n".join(filter(None, lines)))


def _origin(tags: dict[str, str]) -> str:
    made = "A single run"
    if "pneumo.study" in tags:
        made = f"Trial {tags['optuna.trial_number']} of study {tags['pneumo.study']}"
    data = f"{tags['pneumo.data']} (digest {tags['pneumo.data_digest']})"
    synthetic = "**The images are synthetic: it knows nothing about patients.**"
    warning = synthetic if tags["pneumo.synthetic"] == "true" else ""
    return f"{made}, experiment {tags['pneumo.experiment']}, on {data}. {warning}".strip()


def _figures(where: str, tags: dict[str, str], prefix: str) -> str:
    figures = [f"{TOLD[name]} {float(tags[prefix + name]):.3f}" for name in TOLD]
    return f"{where}: {', '.join(figures)}."


def _links(version: ModelVersion) -> Iterator[tuple[str, str]]:
    """What there is to open, and its address in MLflow's UI."""
    client, tags = mlflow.MlflowClient(), version.tags
    trial = client.get_run(version.run_id)
    yield "the run that trained it", tracking.page(trial)
    if "pneumo.study" in tags:
        study = client.get_run(trial.data.tags["mlflow.parentRunId"])
        yield "its study", tracking.page(study)
        yield "the page of that", tracking.page(study, "study/study.html")
    if EVALUATION_RUN in tags:
        run = client.get_run(tags[EVALUATION_RUN])
        if version.source == f"models:/{tracking.evaluated_model(run)}":  # else of a later winner
            yield "evidence", tracking.page(run, "test/evidence.html")
    if PROMOTION_RUN in tags:
        yield "the last decision", tracking.page(client.get_run(tags[PROMOTION_RUN]))


def holder(model_name: str, alias: str) -> int:
    """The version that has an alias; 0 where none has. Raises `Mistake` where there is no model."""
    try:
        aliases = mlflow.MlflowClient().get_registered_model(model_name).aliases
    except MlflowException as error:
        raise Mistake(
            f"model_name must be a registered model in {tracking.store()}: got '{model_name}' "
            f"({error})".replace("\n", " ")
        ) from None
    return int(aliases.get(alias, 0))


def require_version(model_name: str, version: int) -> int:
    """`version`, if there is one. Raises `Mistake` where there is none."""
    found = mlflow.MlflowClient().search_model_versions(f"name = '{model_name}'")
    numbers = sorted(int(it.version) for it in found)
    if version not in numbers:
        raise Mistake(
            f"{model_name} has the versions {', '.join(map(str, numbers)) or 'none'}: got {version}"
        )
    return version


def crown(model_name: str, version: int, champion: int) -> int:
    """Makes `version` the champion, and the present one `previous`, if that is still `champion`.

    `champion`: the version that `version` was found to be good enough to follow; 0 is none.
    Returns the champion that it found: another one means that nothing was changed. MLflow cannot
    compare and set an alias; between processes of one machine a lock makes up for it.
    """
    client = mlflow.MlflowClient()
    with cache.lock(f"promote {model_name}"):
        found = holder(model_name, CHAMPION)
        if found == champion:
            if champion:
                client.set_registered_model_alias(model_name, PREVIOUS, str(champion))
            client.set_registered_model_alias(model_name, CHAMPION, str(version))
    return found
