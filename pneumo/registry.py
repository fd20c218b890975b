"""Models in MLflow's registry: registered, found, crowned, rolled back."""

import hashlib
import importlib.util
import json
import re
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from pneumo import tag_names, tracking
from pneumo.data.sample import example_file
from pneumo.inference.decode import DECODER
from pneumo.runtime import cache
from pneumo.runtime.errors import Mistake

if TYPE_CHECKING:
    from pneumo.inference.pyfunc import PneumoniaModel


CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"

TOLD_BY_THE_TRIAL = (*tag_names.OF_SUBJECT, tag_names.TRIAL_NUMBER)

ABOUT = (
    "Pneumonia or not, on chest X-rays of children. For research; not a medical device.\n\n"
    # As code: MLflow makes links to people on GitHub of names that begin with an @
    f"`@{CHALLENGER}` is the newest version; `@{CHAMPION}` the one to use, which `promote` chooses "
    f"on evidence; `@{PREVIOUS}` the champion before it."
)

# The metrics that a version's description tells, and what it calls them
TOLD = {"auc": "AUC", **{it: it for it in ("sensitivity", "specificity", "accuracy")}}

ADDRESS = re.compile(
    r"models:/((?P<id>m-[0-9a-f]+)|(?P<name>[^/@:]+)(@(?P<alias>[\w.-]+)|/(?P<number>[0-9]{1,9})))"
)


# The decoder's version when the settings of a model did not note it yet
UNNOTED_DECODER = 3


@dataclass(frozen=True)
class Stored:
    """A model in MLflow, loaded.

    `trial`: the Keras run that made it; `model_id`: MLflow's own; `name` and `version`: in the
    registry, '' and 0 where it is not registered; `model`: with its `keras_model` and `settings`.
    """

    trial: Run
    model_id: str
    name: str
    version: int
    model: "PneumoniaModel"

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"{self.name} version {self.version}" if self.version else f"model {self.model_id}"

    @property
    def synthetic(self) -> bool:
        """Whether it was trained on synthetic images."""
        return self.trial.data.tags[tag_names.SYNTHETIC] == "true"


class Tampered(Mistake):
    """The files of a version are not those that were registered, or are missing."""


class TrialRemoved(Mistake):
    """The run that trained a model is no longer in the store."""


def load(model_uri: str) -> "PneumoniaModel":
    """The stored model, with its `keras_model` and `settings`. Raises `Mistake` as `find`."""
    with _files(model_uri) as folder:
        return _opened(folder, model_uri)


@contextmanager
def _files(model_uri: str) -> Iterator[Path]:
    """The files of a stored model, as a copy that nobody changes after it has been looked at."""
    with tempfile.TemporaryDirectory(prefix="pneumo-") as folder:
        mlflow.artifacts.download_artifacts(model_uri, dst_path=folder)
        yield Path(folder)


def _opened(folder: Path, model_uri: str) -> "PneumoniaModel":
    """The model that lies in a folder, as this package runs it.

    MLflow would run what code and unpickle what pickles it finds there, and Python what bytecode:
    here none of them is so much as read.
    """
    from pneumo.inference.pyfunc import PneumoniaModel

    files = {name: folder / "artifacts" / file for name, file in tracking.FILES.items()}
    if missing := [file.name for file in files.values() if not file.is_file()]:
        raise _unusable(model_uri, f"it has no {missing[0]}")
    if not zipfile.is_zipfile(files["keras"]):  # else Keras would say that there is no such file
        raise _unusable(model_uri, f"{files['keras'].name} is no file of Keras 3")
    model = PneumoniaModel()
    try:
        model.load_from(files["keras"], files["settings"])
        wrong = next(_wrong(model), None)
    except Exception as error:  # a parser fed with strangers' files raises nearly anything
        reason = str(error).strip().partition(". ")[0] or type(error).__name__
        raise _unusable(model_uri, f"its files cannot be loaded safely ({reason[:300]})") from None
    if wrong:
        raise _unusable(model_uri, wrong)
    return model


def _wrong(model: "PneumoniaModel") -> Iterator[str]:
    """What of a model is not as pneumo makes it, in words."""
    from pneumo.inference.logits import members_of  # TensorFlow, which takes long, only now

    network, size = model.keras_model, model.image_size
    shapes = *network.input_shape, *network.output_shape
    if type(size) is not int or shapes != (None, size, size, 1, None, 1):
        yield f"it takes {network.input_shape} and gives {network.output_shape}"
    parts = [{layer.name for layer in member.layers} for member in members_of(network)]
    if not all({"backbone", "head"} <= names for names in parts):
        yield "it has no backbone and head"
    if not _are_settings(model.settings):
        yield f"its {tracking.FILES['settings']} holds other than its settings"
    if (decoder := model.settings.get("decoder", UNNOTED_DECODER)) != DECODER:
        yield f"its training images were decoded by version {decoder} of the decoder, not {DECODER}"


def _are_settings(found: Any) -> bool:
    numbers = [found[name] for name in ("threshold", "temperature")]
    return (
        all(type(it) in (int, float) and 0 <= it < float("inf") for it in numbers)
        and found["temperature"] > 0
        and found["resize"] in ("squash", "pad")
        and isinstance(found["val_uncalibrated"], dict)
    )


def _unusable(model_uri: str, why: str) -> Mistake:
    return Mistake(
        f"model must be one as pneumo makes them: of '{model_uri}' {why}; "
        "do not use it, and get or train another"
    )


def find(model_uri: str) -> Stored:
    """The model at `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `models:/m-…`.

    Raises:
        Tampered: The files of a version have changed since it was registered, or are missing;
            nothing of them is loaded.
        TrialRemoved: The run that trained it has been removed by `mlflow gc`.
        Mistake: There is no such model, or it is another's, or it is broken.
    """
    try:
        exact, version, model_id, run_id = _located(model_uri)
        trial = _trial(run_id, model_uri)
        with _files(exact) as folder:
            if version:
                _require_unchanged(version, folder)
            model = _opened(folder, model_uri)
    except (MlflowException, OSError) as error:
        raise Mistake(f"{_rule(model_uri)} ({error})") from None
    name, number = (version.name, int(version.version)) if version else ("", 0)
    return Stored(trial, model_id, name, number, model)


def _rule(model_uri: str) -> str:
    return (
        "model must be models:/NAME@ALIAS, models:/NAME/VERSION or models:/m-… in "
        f"{tracking.store()}: got '{model_uri}'"
    )


def _located(model_uri: str) -> tuple[str, ModelVersion | None, str, str]:
    """What an address names: by an exact one, its version if it has one, its id, its run's id."""
    match, client = ADDRESS.fullmatch(model_uri), mlflow.MlflowClient()
    if not match:
        raise Mistake(f"{_rule(model_uri)}; MLflow's page of a model shows its address")
    if match["id"]:
        found = client.get_logged_model(match["id"])
        return model_uri, None, found.model_id, found.source_run_id
    if match["number"]:
        version = client.get_model_version(match["name"], match["number"])
    else:  # which may move meanwhile
        version = client.get_model_version_by_alias(match["name"], match["alias"])
    if tag_names.MODEL_DIGEST not in version.tags:
        raise _anothers(model_uri)
    exact = f"models:/{version.name}/{version.version}"
    return exact, version, logged_model_id(version), version.run_id


def _trial(run_id: str | None, model_uri: str) -> Run:
    """The run that made a model, if it is one of pneumo's."""
    try:
        run = mlflow.get_run(run_id) if run_id else None
    except MlflowException as error:
        if error.error_code != tracking.MISSING:
            raise
        raise TrialRemoved(
            f"the run that trained a model must be in {tracking.store()}: run {run_id}, of "
            f"'{model_uri}', has been removed; train or tune again, or give another model"
        ) from None
    if run is None or run.data.tags.get(tag_names.KIND) != "trial":
        raise _anothers(model_uri)
    return run


def require_as_registered(model_name: str, version: int) -> None:
    """Require that a version's files are those that were registered.

    Raises:
        Tampered: They have changed, or are missing.
        Mistake: They cannot be read.
    """
    model_uri = f"models:/{model_name}/{version}"
    try:
        with _files(model_uri) as folder:
            _require_unchanged(mlflow.MlflowClient().get_model_version(model_name, version), folder)
    except (MlflowException, OSError) as error:
        raise Mistake(
            f"the files of a version must be in {tracking.store()}: those of '{model_uri}' cannot "
            f"be read ({error}); promote another version instead"
        ) from None


def _anothers(model_uri: str) -> Mistake:
    return Mistake(
        f"model must be one that pneumo made: '{model_uri}' is another's; give the address of one "
        "that train or tune has left, as MLflow's page of it shows it"
    )


def _require_unchanged(version: ModelVersion, folder: Path) -> None:
    if tag_names.MODEL_DIGEST not in version.tags:
        raise _anothers(f"models:/{version.name}/{version.version}")
    found, registered = digest(folder), version.tags[tag_names.MODEL_DIGEST]
    if found != registered:
        now = f"are {found} now" if any(folder.iterdir()) else "are missing"
        raise Tampered(
            f"the files of {version.name} version {version.version} must be those that were "
            f"registered, digest {registered}: they {now}; do not use this version"
        )


def digest(folder: Path) -> str:
    """16 hex digits that name the files of a stored model: weights, settings and code."""
    found = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        # MLflow adds its own note of the version to what it downloads
        if file.is_file() and file.name != "registered_model_meta" and not _is_pythons_own(file):
            found.update(file.relative_to(folder).as_posix().encode() + b"\0")
            found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()[:16]


def _is_pythons_own(file: Path) -> bool:
    """Whether it is bytecode as Python leaves it where a model has been served.

    That lies in `__pycache__`, its source beside that, whose age it names. Python would run any
    other without a look at a source.
    """
    if file.suffix != ".pyc" or file.parent.name != "__pycache__":
        return False
    try:
        source = Path(importlib.util.source_from_cache(str(file)))
    except ValueError:  # it is not named as Python names them
        return False
    with file.open("rb") as bytecode:
        kind = bytecode.read(8)[4:]
    return source.is_file() and kind == bytes(4)


def log_test_evaluations(stored: Stored, count: int) -> None:
    """Tag a model with the number of its evaluations on the test images of its own data.

    Args:
        stored: The model; its version has the tag, or MLflow's model if it is not registered.
        count: The number of evaluations.
    """
    tags = {tag_names.TEST_EVALUATIONS: str(count)}
    if stored.version:
        tag(stored.name, stored.version, tags)
    else:
        mlflow.MlflowClient().set_logged_model_tags(stored.model_id, tags)


def tell_of_test(stored: Stored, run_id: str, metrics: dict[str, float]) -> None:
    """Notes on a version what a run has found on test of the data that the version is made of."""
    tags = {f"test_{name}": str(metrics[name]) for name in TOLD}
    tag(stored.name, stored.version, {tag_names.EVALUATION_RUN: run_id, **tags})
    describe(stored.name, stored.version)


def tag(model_name: str, version: int, tags: dict[str, str]) -> None:
    """Sets tags of a version."""
    client = mlflow.MlflowClient()
    for key, value in tags.items():
        client.set_model_version_tag(model_name, str(version), key, value)


def register(run_id: str, model: "PneumoniaModel", model_name: str) -> Stored:
    """Make a trial's model the newest version of a registered model, and its `challenger`.

    The model is logged once more on its trial's run, now with an input example. That takes
    seconds, so models that are never registered are spared it.

    Args:
        run_id: Id of the trial's run.
        model: The trial's model.
        model_name: Name of the registered model, which is created if there is none.
    """
    info = tracking.log_model(run_id, model.keras_model, model.settings, example_file())
    with _files(info.model_uri) as folder:
        files_digest = digest(folder)
    version = _add_version(model_name, mlflow.get_run(run_id), info.model_id, files_digest)
    return _challenger(version, model)


def register_once(run_id: str, model: "PneumoniaModel", model_name: str) -> Stored:
    """Make a trial's model the `challenger`, in a new version only if it has none yet.

    A model that has a version under another name is not logged again: both versions then share
    its files, and its evaluations. See `register` for the arguments.
    """
    versions = mlflow.MlflowClient().search_model_versions(f"run_id = '{run_id}'")
    if named := [version for version in versions if version.name == model_name]:
        return _challenger(named[0], model)
    if not versions:
        return register(run_id, model, model_name)
    model_id, files_digest = logged_model_id(versions[0]), versions[0].tags[tag_names.MODEL_DIGEST]
    version = _add_version(model_name, mlflow.get_run(run_id), model_id, files_digest)
    return _challenger(version, model)


def _challenger(version: ModelVersion, model: "PneumoniaModel") -> Stored:
    client = mlflow.MlflowClient()
    client.update_registered_model(version.name, ABOUT)
    client.set_registered_model_alias(version.name, CHALLENGER, version.version)
    trial = client.get_run(version.run_id)
    return Stored(trial, logged_model_id(version), version.name, int(version.version), model)


def logged_model_id(version: ModelVersion) -> str:
    """Return MLflow's id of the logged model that a version is made of."""
    return version.source.removeprefix("models:/")


def _add_version(model_name: str, trial: Run, model_id: str, files_digest: str) -> ModelVersion:
    """Do what `mlflow.register_model` does, without its messages on standard error."""
    client = mlflow.MlflowClient()
    try:
        client.create_registered_model(model_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {key: trial.data.tags[key] for key in TOLD_BY_THE_TRIAL if key in trial.data.tags}
    tags |= {f"val_{name}": str(trial.data.metrics[f"val_{name}"]) for name in TOLD}
    tags |= {tag_names.MODEL_DIGEST: files_digest, **tracking.commit(trial)}
    source = f"models:/{model_id}"
    version = client.create_model_version(model_name, source, tags=tags, model_id=model_id)
    listed = json.loads(client.get_logged_model(model_id).tags.get(tag_names.VERSIONS, "[]"))
    listed.append({"name": version.name, "version": version.version})
    client.set_logged_model_tags(model_id, {tag_names.VERSIONS: json.dumps(listed)})
    describe(model_name, int(version.version))
    return version


def describe(model_name: str, version: int) -> None:
    """Writes what a person wants to know of a version, with links, from what is stored of it."""
    client = mlflow.MlflowClient()
    it = client.get_model_version(model_name, str(version))
    lines = [
        ABOUT.partition("\n")[0],
        _origin(it.tags),
        _figures("On validation", it.tags, "val_"),
        _figures("On test", it.tags, "test_") if tag_names.EVALUATION_RUN in it.tags else "",
        f"Last decision: {it.tags[tag_names.PROMOTION]}." if tag_names.PROMOTION in it.tags else "",
        " · ".join(f"[{text}]({address})" for text, address in _links(it)),
    ]
    client.update_model_version(model_name, it.version, "\n\n".join(filter(None, lines)))


def _origin(tags: dict[str, str]) -> str:
    made = "A single run"
    if tag_names.STUDY in tags:
        made = f"Trial {tags[tag_names.TRIAL_NUMBER]} of study {tags[tag_names.STUDY]}"
    data = f"{tags[tag_names.DATA]} (digest {tags['pneumo.data_digest']})"
    synthetic = "**The images are synthetic: it knows nothing about patients.**"
    warning = synthetic if tags[tag_names.SYNTHETIC] == "true" else ""
    return f"{made}, experiment {tags[tag_names.EXPERIMENT]}, on {data}. {warning}".strip()


def _figures(where: str, tags: dict[str, str], prefix: str) -> str:
    figures = [f"{TOLD[name]} {float(tags[prefix + name]):.3f}" for name in TOLD]
    return f"{where}: {', '.join(figures)}."


def _links(version: ModelVersion) -> Iterator[tuple[str, str]]:
    """Yield a title and an address in MLflow's UI for each run that is still in the store."""
    tags, trial = version.tags, tracking.find_run(version.run_id)
    if trial:
        yield "the run that trained it", tracking.page(trial)
        study = tag_names.STUDY in tags and tracking.find_run(trial.data.tags[tag_names.PARENT])
        if study:
            yield "its study", tracking.page(study)
            yield "the page of that", tracking.page(study, "study/study.html")
    run, decision = (
        tracking.find_run(tags[name]) if name in tags else None
        for name in (tag_names.EVALUATION_RUN, tag_names.PROMOTION_RUN)
    )
    # The run of a study may by now be the evaluation of a later winner
    if run and version.source == f"models:/{tracking.evaluated_model(run)}":
        yield "evidence", tracking.page(run, "test/evidence.html")
    if decision:
        yield "the last decision", tracking.page(decision)


def holder(model_name: str, alias: str) -> int:
    """The version that has an alias; 0 where none has. Raises `Mistake` where there is no model."""
    return int(_registered(model_name).aliases.get(alias, 0))


def _registered(model_name: str) -> RegisteredModel:
    try:
        return mlflow.MlflowClient().get_registered_model(model_name)
    except MlflowException as error:
        raise Mistake(
            f"model_name must be a registered model in {tracking.store()}: got '{model_name}' "
            f"({error})"
        ) from None


def require_version(model_name: str, version: str) -> int:
    """`version`, if there is one. Raises `Mistake` where there is none."""
    numbers = sorted(int(it.version) for it in _versions(_registered(model_name)))
    if version not in map(str, numbers):
        raise Mistake(
            f"{model_name} has the versions {', '.join(map(str, numbers)) or 'none'}: got {version}"
        )
    return int(version)


def _versions(model: RegisteredModel) -> list[ModelVersion]:
    quote = '"' if "'" in model.name else "'"
    return mlflow.MlflowClient().search_model_versions(f"name = {quote}{model.name}{quote}")


def champions(model_name: str) -> dict[int, ModelVersion]:
    """Return all versions that are or have been champion, by number.

    Versions that became champion before `crown` began to tag them are known only while they have
    an alias.
    """
    model = _registered(model_name)
    holders = {int(model.aliases[it]) for it in (CHAMPION, PREVIOUS) if it in model.aliases}
    found = {int(version.version): version for version in _versions(model)}
    return {
        number: version
        for number, version in sorted(found.items())
        if number in holders or tag_names.WAS_CHAMPION in version.tags
    }


def own_threshold(version: ModelVersion) -> float | None:
    """Return the threshold of a version without its files, None if nothing in the store has it."""
    if tag_names.THRESHOLD in version.tags:
        return float(version.tags[tag_names.THRESHOLD])
    trial = tracking.find_run(version.run_id)
    return trial.data.metrics["val_threshold"] if trial else None


def crown(model_name: str, version: int, champion: int) -> int:
    """Makes `version` the champion, and the present one `previous`, if that is still `champion`.

    `champion`: the version that `version` was found to be good enough to follow; 0 is none.
    Returns the champion that it found: another one means that nothing was changed. MLflow cannot
    compare and set an alias; between processes of one machine a lock makes up for it. All versions
    that have or lose an alias by it are tagged as champions for `champions`.
    """
    client = mlflow.MlflowClient()
    with cache.lock(f"promote {model_name}"):
        found = holder(model_name, CHAMPION)
        if found == champion:
            for number in {version, champion, holder(model_name, PREVIOUS)} - {0}:
                tag(model_name, number, {tag_names.WAS_CHAMPION: "true"})
            if champion:
                client.set_registered_model_alias(model_name, PREVIOUS, str(champion))
            client.set_registered_model_alias(model_name, CHAMPION, str(version))
    return found
