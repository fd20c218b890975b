"""Everything said to MLflow about runs."""

import importlib.metadata
import json
import logging
import os
import re
import shlex
import shutil
import ssl
import tempfile
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import mlflow
import pandas as pd
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Run, RunStatus, ViewType
from mlflow.environment_variables import MLFLOW_RUN_ID
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking.context.registry import resolve_tags
from mlflow.types import ColSpec, Schema
from mlflow.utils import name_utils
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy import make_url

from pneumo import tag_names
from pneumo.data.dataset import Dataset, Images
from pneumo.data.index import read_table
from pneumo.evaluation.metrics import Evaluation
from pneumo.runtime.console import say
from pneumo.runtime.errors import Mistake, reason_for, without_passwords
from pneumo.runtime.process import ProcessId
from pneumo.training.config import RunConfig

if TYPE_CHECKING:
    import keras


# The only part of the package that a stored model carries, and what that needs where it is served,
# at the versions it was made with
INFERENCE = Path(__file__).parent / "inference"
SERVED_WITH = "mlflow", "tensorflow", "keras", "numpy", "scipy", "pandas", "pillow", "joblib"

# The `__init__.py` of the copy. MLflow puts the copy first on the path: who loads a model before
# importing pneumo where that is installed would else find nothing but the copy
COPY_INIT = '__path__ = __import__("pkgutil").extend_path(__path__, __name__)\n'

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("binary", "image")]),
    outputs=Schema(
        [
            ColSpec("double", "probability", required=False),
            ColSpec("long", "label", required=False),
            ColSpec("double", "threshold", required=False),
            ColSpec("string", "error", required=False),
        ]
    ),
)

# What is stored of a model, below `artifacts/`
FILES = {"keras": "model.keras", "settings": "settings.json"}


# Artifacts of a Keras run: its training and validation files, and the test files of its data set
TRAINING_FILES, TEST_FILES = "data/files.csv", "data/test_files.csv"

# The columns of predictions that are numbers; all others of the tables are text
NUMBERS = {"label": "int64", "probability": "float64"}

# Optuna's states of trials that have ended, and how their runs end
STATUSES = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}

# Variables of MLflow's client: files of whom it trusts, and of what it shows a server that asks
SERVER_CERTIFICATE = "MLFLOW_TRACKING_SERVER_CERT_PATH"
CLIENT_CERTIFICATE = "MLFLOW_TRACKING_CLIENT_CERT_PATH"

FIRST_TIMEOUT = 30  # seconds that a server may take to answer the first request

MOST = 50_000  # runs that MLflow gives at once

MISSING = "RESOURCE_DOES_NOT_EXIST"  # MLflow's error code for what its store does not have

TAKEN = "/gkpj)"  # how SQLAlchemy's errors end where something is there that may be there once

# Whether `mlflow run` has started this process, and made the run that MLFLOW_RUN_ID then names
IS_PROJECT_RUN = MLFLOW_RUN_ID.name in os.environ

# The input contexts that MLflow's UI knows
CONTEXTS = {"train": "training", "val": "validation", "test": "testing"}


def set_up() -> None:
    """MLflow as all commands need it: patient, and silent of what a user can do nothing about."""
    # A server may be away for two minutes: 4 + 8 + 16 + 32 + 64 seconds between as many tries
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "6")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # we say it at the end
    # Without git no commit is noted: MLflow says that at length, for each fact and each process
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").addFilter(_announce_wait)
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*input example was not provided")
    # It comes with each request once MLFLOW_TRACKING_INSECURE_TLS says that nothing is verified
    warnings.filterwarnings("ignore", message="Unverified HTTPS request")
    _take_password()


def _announce_wait(record: logging.LogRecord) -> bool:
    """Print one line when MLflow's client begins to wait for its server, as a filter for logs.

    urllib3 warns of each try. Its warnings name neither the server nor how long it is waited for.
    """
    retries = record.args[0] if record.msg.startswith("Retrying ") else None
    if retries and len(retries.history) == 1:
        say(f"waiting for MLflow's server at {store()}, which does not answer")
    return record.levelno >= logging.ERROR


def _take_password() -> None:
    """Moves it from the address of MLflow's server to where MLflow looks for one, too.

    The address is in MLflow's messages, in ours, and in links.
    """
    found = urlsplit(mlflow.get_tracking_uri())
    who, _, host = found.netloc.rpartition("@")
    if not who or found.scheme not in ("http", "https"):
        return
    if found.password is not None:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(found.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(found.password)
    mlflow.set_tracking_uri(found._replace(netloc=host).geturl())


def connect() -> None:
    """Set MLflow up and send its server, if there is one, a first request.

    MLflow's client makes it, with the password, the token and the certificates of all others, but
    once: a wrong address is not worth the two minutes for which they are tried again.

    Raises:
        Mistake: The server does not answer, or does not know the user, or a certificate is not
            trusted.
    """
    set_up()
    uri = mlflow.get_tracking_uri()
    if not uri.startswith("http"):
        return
    for name in (SERVER_CERTIFICATE, CLIENT_CERTIFICATE):
        if (file := os.environ.get(name)) and not os.path.exists(file):
            raise Mistake(f"{name} must be the path of a certificate: there is no '{file}' here")
    once = {"max_retries": 0, "timeout": FIRST_TIMEOUT, "raise_on_status": False}
    try:
        answer = http_request(get_default_host_creds(uri), "/version", "GET", **once)
    except MlflowException as error:
        raise _unanswered(error) from None
    if answer.status_code == HTTPStatus.UNAUTHORIZED:
        raise Mistake(
            f"MLflow's server at {store()} must be given a user and a password that it knows: "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )


def _unanswered(error: MlflowException) -> Mistake:
    """Say why a request got no answer, from what MLflow's client has made of it."""
    reason = error.__context__
    if reason is None:  # no request was made: two variables contradict each other
        return Mistake(str(error))
    inner: BaseException | None = reason
    while inner and not isinstance(inner, ssl.SSLError):
        inner = inner.__context__
    if inner:
        return Mistake(
            f"MLflow's server at {store()} must have a certificate that is trusted here, and know "
            f"yours if it asks for one ({inner.args[-1]}): set {SERVER_CERTIFICATE} to the file of "
            f"its authority, {CLIENT_CERTIFICATE} to yours, or MLFLOW_TRACKING_INSECURE_TLS=true "
            "to check nothing"
        )
    # Under TLS 1.3 a server may hang up on a client without a certificate, and not say why
    advice = f", or set {CLIENT_CERTIFICATE} if it asks for one" if "https:" in store() else ""
    return Mistake(
        f"MLFLOW_TRACKING_URI must name a server that answers: {store()} does not "
        f"({type(reason).__name__}); start it, or correct the address{advice}"
    )


def subject_tags(experiment: str, dataset: Dataset) -> dict[str, str]:
    """The tags that say which experiment a run belongs to, and which data it saw."""
    return {tag_names.EXPERIMENT: experiment, **data_tags(dataset)}


def data_tags(dataset: Dataset) -> dict[str, str]:
    """The tags that say which data a run saw."""
    tags = {
        tag_names.DATA: dataset.name,
        tag_names.DATA_DIGEST: dataset.digest,
        tag_names.SYNTHETIC: str(dataset.synthetic).lower(),
    }
    return tags | ({tag_names.PATIENTS: "unknown"} if dataset.unknown_patients else {})


@contextmanager
def command_run(
    kind: str, about: str, tags: Mapping[str, str], system_metrics: bool = False
) -> Iterator[str]:
    """The command's own run, which `mlflow run` has made or else is made here; yields its id.

    Within another one it is that one's child. FINISHED at its end, KILLED if a person interrupted
    it, FAILED for any other exception, which leaves `traceback.txt` and goes on to the caller.
    It is called by its kind and what it is `about`, where that is known yet. `system_metrics`:
    MLflow also logs how busy the machine is.
    """
    tags = {tag_names.KIND: kind, **tags}
    run = mlflow.start_run(nested=True, tags=tags, log_system_metrics=system_metrics)
    _hide_token(run)
    if about:
        name_run(run, f"{kind} {about}")
    with _ending_by_exception(run) as run_id:
        try:
            yield run_id
        except Exception as error:
            with suppress(MlflowException):
                mlflow.set_tag(tag_names.REASON, reason_for(error))
            raise


def end_unused_run(kind: str, reason: str) -> None:
    """End the run that `mlflow run` has made for a command that failed before it used that run.

    A server that does not answer is not waited for.
    """
    os.environ |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    set_up()
    with suppress(MlflowException):
        run = mlflow.start_run(tags={tag_names.KIND: kind, tag_names.REASON: reason})
        _hide_token(run)
        name_run(run, f"{kind}, failed")
        mlflow.end_run("FAILED")


def _hide_token(run: Run) -> None:
    """Takes from a run what lets somebody in where `mlflow run https://TOKEN@HOST/…` made it.

    MLflow keeps that address as it was given; from that of a clone's remote it takes the token.
    """
    source = run.data.tags.get(tag_names.SOURCE, "")
    public = re.sub(r"(https?://)[^/@]*@", r"\1", source)
    if public != source:
        mlflow.set_tag(tag_names.SOURCE, public)


def name_run(run: Run, name: str) -> None:
    """Names a run, unless a person has done so: MLflow's own names are as `upset-wolf-12`."""
    predicate, noun, *_ = [*run.info.run_name.split("-"), "", ""]
    made_up = name_utils._GENERATOR_PREDICATES, name_utils._GENERATOR_NOUNS
    if predicate in made_up[0] and noun in made_up[1]:
        mlflow.MlflowClient().update_run(run.info.run_id, name=name)


@contextmanager
def reopened(run_id: str) -> Iterator[None]:
    """A study's run of an earlier process as the active one; ends anew, as `command_run` does."""
    run = mlflow.start_run(run_id=run_id, nested=True, log_system_metrics=True)
    with _ending_by_exception(run):
        yield


def find_study(name: str) -> str:
    """Return the id of the run of a study, or '' if this store has none of that name."""
    found = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.`{tag_names.KIND}` = 'study' and tags.`{tag_names.STUDY}` = '{name}'",
        max_results=1,
        output_format="list",
    )
    return found[0].info.run_id if found else ""


def find_run(run_id: str) -> Run | None:
    """Return a run, or None if it has been deleted, or removed by `mlflow gc`."""
    try:
        run = mlflow.get_run(run_id)
    except MlflowException as error:
        if error.error_code != MISSING:
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def exists(run_id: str) -> bool:
    """Return whether a run is in this store, deleted or not."""
    try:
        mlflow.get_run(run_id)
    except MlflowException as error:
        if error.error_code != MISSING:
            raise
        return False
    return True


def process_tags() -> dict[str, str]:
    """Return the tags by which a later process finds out whether this one still runs."""
    process = ProcessId.current()
    return {
        tag_names.HOST: process.host,
        tag_names.PID: str(process.pid),
        tag_names.PROCESS: process.to_json(),
    }


def _process_of(run: Run) -> ProcessId:
    return ProcessId.from_values(json.loads(run.data.tags.get(tag_names.PROCESS, "[]")))


def settle(
    study_run_id: str, ended: Mapping[int, str], is_dead: Callable[[ProcessId], bool]
) -> None:
    """Bring the runs below a study's run in line with Optuna.

    Of two runs of one trial, as a lost answer of the server makes them, the one with fewer params
    is deleted. A failed trial without a run gets one. Runs of workers and of resumed studies whose
    process is dead end as FAILED.

    Args:
        study_run_id: Id of the study's run.
        ended: Number of each finished trial, and its Optuna state.
        is_dead: Called with the process of each worker's run that has not ended.
    """
    client, runs = mlflow.MlflowClient(), defaultdict(list)
    study = client.get_run(study_run_id)
    for run in _below(study, ViewType.ALL):
        tags = run.data.tags
        if number := tags.get(tag_names.TRIAL_NUMBER):
            runs[int(number)].append(run)
        elif not _ended(run) and is_dead(_process_of(run)):
            client.set_terminated(run.info.run_id, "FAILED")
    for number, state in ended.items():
        found = [run for run in runs[number] if run.info.lifecycle_stage == "active"]
        if not runs[number] and state == "FAIL":
            found = [_late_run(study, number)]
        *spare, own = sorted(found, key=lambda run: len(run.data.params)) or [None]
        for run in spare:
            client.delete_run(run.info.run_id)
        if own and (own.data.tags.get(tag_names.STATE), _ended(own)) != (state, True):
            _end_trial(own, state)


def _ended(run: Run) -> bool:
    return RunStatus.is_terminated(RunStatus.from_string(run.info.status))


def _late_run(study: Run, number: int) -> Run:
    """The run of a trial that ended before it had one."""
    tags = {name: it for name, it in study.data.tags.items() if name in tag_names.OF_SUBJECT}
    tags |= {tag_names.KIND: "trial", tag_names.TRIAL_NUMBER: str(number)}
    tags |= {tag_names.PARENT: study.info.run_id}
    return mlflow.MlflowClient().create_run(
        study.info.experiment_id, tags=tags, run_name=f"trial {number} · lost"
    )


def _end_trial(run: Run, state: str) -> None:
    client = mlflow.MlflowClient()
    client.set_tag(run.info.run_id, tag_names.STATE, state)
    client.set_terminated(run.info.run_id, STATUSES[state])


def end_silent(study_run_id: str, number: int) -> None:
    """Ends a trial that is RUNNING for MLflow, and its machine's workers if it has no other one."""
    client = mlflow.MlflowClient()
    running = [run for run in _below(client.get_run(study_run_id)) if not _ended(run)]
    for trial in running:
        if trial.data.tags.get(tag_names.TRIAL_NUMBER) == str(number):
            _end_trial(trial, "FAIL")
            running.remove(trial)
            machine = _process_of(trial).machine
            others = [run for run in running if _process_of(run).machine == machine]
            if all(run.data.tags[tag_names.KIND] == "worker" for run in others):
                for run in others:
                    client.set_terminated(run.info.run_id, "FAILED")
            return


def log_hang(study_run_id: str, number: int, trace: str) -> None:
    """Where a trial hung, as `traceback.txt` of its run."""
    client = mlflow.MlflowClient()
    for run in _below(client.get_run(study_run_id)):
        if run.data.tags.get(tag_names.TRIAL_NUMBER) == str(number):
            client.log_text(run.info.run_id, trace, "traceback.txt")


def _below(study: Run, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    """Return the runs of a study's trials, workers and resumes.

    A worker's run may lie in another MLflow experiment than the study's, as the command that
    starts the worker chooses.
    """
    return mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.`{tag_names.PARENT}` = '{study.info.run_id}'",
        run_view_type=view,
        max_results=MOST,
        output_format="list",
    )


@contextmanager
def keras_run(
    parent_id: str,
    name: str,
    config: RunConfig,
    tags: Mapping[str, str],
    trial_number: int | None = None,
    pruned: type[Exception] | tuple[()] = (),
) -> Iterator[str]:
    """A run of kind `trial`, child of `parent_id`, with the params of `config`; yields its id.

    Ends as `command_run` does, but KILLED too by an exception of type `pruned`. With a
    `trial_number` it is tagged as a study's trial, with its `optuna.state`.
    """
    tags = {**tags, tag_names.KIND: "trial", **process_tags()}
    if trial_number is not None:
        tags[tag_names.TRIAL_NUMBER] = str(trial_number)
    # `start_run` would make a child of the active run alone, and in its experiment: a worker's own
    # run is neither the study's nor need it be where that is
    run = mlflow.MlflowClient().create_run(
        mlflow.get_run(parent_id).info.experiment_id,
        tags=resolve_tags({**tags, tag_names.PARENT: parent_id}),
        run_name=name,
    )
    run = mlflow.start_run(run_id=run.info.run_id, nested=True)
    with _ending_by_exception(run, pruned, states=trial_number is not None) as run_id:
        mlflow.log_params(config.as_text())
        yield run_id


@contextmanager
def _ending_by_exception(
    run: mlflow.ActiveRun, pruned: type[Exception] | tuple[()] = (), states: bool = False
) -> Iterator[str]:
    try:
        yield run.info.run_id
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            ended = "KILLED", "FAIL"
        else:
            ended = ("KILLED", "PRUNED") if isinstance(error, pruned) else ("FAILED", "FAIL")
        try:
            _end_active_run(*ended, states, trace="FAILED" in ended)
        except MlflowException as unanswered:  # not what ended the run; `settle` ends it later
            say(f"the end of run {run.info.run_name} is not stored ({reason_for(unanswered)})")
        raise
    else:
        _end_active_run("FINISHED", "COMPLETE", states)


def _end_active_run(status: str, state: str, states: bool, trace: bool = False) -> None:
    try:
        if trace:
            mlflow.log_text(without_passwords(traceback.format_exc()), "traceback.txt")
        if states:
            mlflow.set_tag(tag_names.STATE, state)
    finally:
        mlflow.end_run(status)  # the run is no longer the active one, whatever the store says


def trial_runs(study_run_id: str) -> dict[int, Run]:
    """The runs of a study's trials by their numbers."""
    below = _below(mlflow.get_run(study_run_id))
    numbers = ((run.data.tags.get(tag_names.TRIAL_NUMBER), run) for run in below)
    return {int(number): run for number, run in numbers if number}


def log_study(study_run_id: str, files: Mapping[str, bytes], description: str) -> None:
    """What is known of a study: `files` below `study/` of its run, whose description it gets.

    `description`: Markdown.
    """
    _log_files("study", files, study_run_id)
    mlflow.MlflowClient().set_tag(study_run_id, tag_names.NOTE, description)


def log_data(images: Images) -> None:
    """The data as inputs of the active run, one per split, with its counts per class as tags.

    Files that could not be read are listed with their reasons in `data/unreadable.csv`.
    """
    dataset = images.dataset
    for split, counts in images.counts().groupby("split"):
        tags = {
            f"{row['class'].lower()}_{what}": str(row[what])
            for row in counts.to_dict("records")
            for what in ("images", "patients")
        }
        source = CodeDatasetSource({tag_names.DATA: dataset.name})
        described = MetaDataset(source, name=f"{dataset.name}/{split}", digest=dataset.digest)
        _log_input(described, context=CONTEXTS[split], tags=tags)
    if images.unreadable:
        table = pd.DataFrame(images.unreadable.items(), columns=["path", "reason"])
        mlflow.log_text(table.to_csv(index=False), "data/unreadable.csv")


def log_files(images: Images) -> None:
    """Log which image files the active Keras run uses, so that they are known elsewhere.

    `data/files.csv` lists the training and validation images, `data/test_files.csv` all test
    images of the data set, if it has any.
    """
    rows = images.dataset.rows
    tables = {TRAINING_FILES: images.used_files()}
    if (is_test := rows["split"] == "test").any():
        tables[TEST_FILES] = rows.loc[is_test, ["sha256"]]
    files = {Path(name).name: table.to_csv(index=False) for name, table in tables.items()}
    _log_files("data", {name: text.encode() for name, text in files.items()})


def read_files(run_id: str) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Read the image files that a Keras run has used, every value as text.

    Returns:
        Its training and validation files (columns split, patient, sha256) and the test files of
        its data set (column sha256, no rows if it has none), or None if the run does not have its
        list of files.
    """
    there = {file.path for file in mlflow.MlflowClient().list_artifacts(run_id, "data")}
    if TRAINING_FILES not in there:
        return None
    no_files = pd.DataFrame({"sha256": []}, dtype=str)
    tested = _read_table(run_id, TEST_FILES) if TEST_FILES in there else no_files
    return _read_table(run_id, TRAINING_FILES), tested


def known_files(trial: Run, dataset: Dataset) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Return what `read_files` does; for a run without its list, what the same data set tells."""
    found = read_files(trial.info.run_id)
    if found is None and trial.data.tags[tag_names.DATA_DIGEST] == dataset.digest:
        # The run is older than such lists or has lost its own
        is_test = dataset.rows["split"] == "test"
        return dataset.rows[~is_test], dataset.rows[is_test]
    return found


def _read_table(run_id: str, path: str) -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        file = mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path=path, dst_path=folder
        )
        return read_table(Path(file))


def _log_input(described: MetaDataset, **how: Any) -> None:
    try:
        mlflow.log_input(described, **how)
    except MlflowException as error:
        if TAKEN not in str(error):
            raise
        # Another process has described the same data at that moment: now it is found
        mlflow.log_input(described, **how)


def log_epoch(run_id: str, epoch: int, metrics: Mapping[str, float]) -> None:
    """Log an epoch's metrics under `epoch/`, in one call; `epoch` counts from 1.

    The metric that is logged first is what MLflow's plots of several runs begin with.
    """
    metrics = {"val_auc": metrics["val_auc"], **metrics}
    named = {f"epoch/{name}": value for name, value in metrics.items()}
    mlflow.log_metrics(named, step=epoch, run_id=run_id)


def log_evaluation(
    split: str, evaluation: Evaluation, files: Mapping[str, bytes] = MappingProxyType({})
) -> None:
    """Metrics as `val_…` or `test_…`; predictions, counts and `files` below `val/` or `test/`."""
    mlflow.log_metrics({f"{split}_{name}": value for name, value in evaluation.metrics.items()})
    files = {
        "predictions.csv": evaluation.predictions.to_csv(index=False).encode(),
        "confusion_matrix.json": json.dumps(evaluation.confusion).encode(),
        **files,
    }
    _log_files(split, files)


def log_exploration(metrics: Mapping[str, float], files: Mapping[str, bytes]) -> None:
    """What was found in a data set: metrics of the active run, and `files` below `explore/`."""
    mlflow.log_metrics(dict(metrics))
    _log_files("explore", files)


def _log_files(folder: str, files: Mapping[str, bytes], run_id: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as draft:
        for name, content in files.items():
            (Path(draft) / name).write_bytes(content)
        mlflow.log_artifacts(draft, folder, run_id)


@contextmanager
def evaluating(model: str, model_id: str, split: str, external: bool) -> Iterator[str]:
    """The active run says which model it holds against which split; yields its id.

    It names MLflow's id of the model only from the end on, when all is logged: a study's run that
    shows its former winner's evaluation until then is never taken for one of the next.
    """
    tags = {
        tag_names.MODEL: model,
        tag_names.SPLIT: split,
        tag_names.EXTERNAL: str(external).lower(),
    }
    mlflow.set_tags({**tags, tag_names.MODEL_ID: ""})
    yield mlflow.active_run().info.run_id
    mlflow.set_tag(tag_names.MODEL_ID, model_id)


def record_look(model_id: str, images_digest: str) -> None:
    """Record on the active run that a model is about to be evaluated on test images.

    A study's run may evaluate a second winner, which replaces the tags and artifacts of the first:
    both looks stay counted.

    Args:
        model_id: MLflow's id of the model.
        images_digest: See `Dataset.images_digest`.
    """
    looks = _looks_of(mlflow.get_run(mlflow.active_run().info.run_id))
    looks[model_id] += 1
    mlflow.set_tags({tag_names.IMAGES_DIGEST: images_digest, tag_names.LOOKS: json.dumps(looks)})


def count_looks(images_digest: str) -> Counter[str]:
    """Count the evaluations on test images by MLflow's id of the model.

    All experiments count, and deleted runs too: deleting a run does not undo a look at its results.
    """
    client = mlflow.MlflowClient()
    experiments = client.search_experiments(ViewType.ALL, max_results=MOST)
    runs = client.search_runs(
        [experiment.experiment_id for experiment in experiments],
        f"tags.`{tag_names.IMAGES_DIGEST}` = '{images_digest}'",
        ViewType.ALL,
        max_results=MOST,
    )
    return sum(map(_looks_of, runs), Counter())


def _looks_of(run: Run) -> Counter[str]:
    return Counter(json.loads(run.data.tags.get(tag_names.LOOKS, "{}")))


def evaluated_model(run: Run) -> str:
    """MLflow's id of the model that a run has held against a split; '' where it has none."""
    return run.data.tags.get(tag_names.MODEL_ID, "")


def find_evaluation(model_id: str, data_digest: str, split: str) -> str | None:
    """The latest run that has held a model against a split of some data, if there is one."""
    wanted = {
        tag_names.MODEL_ID: model_id,
        tag_names.DATA_DIGEST: data_digest,
        tag_names.SPLIT: split,
    }
    found = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=" and ".join(f"tags.`{key}` = '{it}'" for key, it in wanted.items()),
        max_results=1,
        order_by=["attributes.start_time DESC"],
        output_format="list",
    )
    return found[0].info.run_id if found else None


def read_predictions(run_id: str, split: str) -> pd.DataFrame:
    """The predictions of a run, names and numbers as they were: columns as in `Evaluation`."""
    return _read_table(run_id, f"{split}/predictions.csv").astype(NUMBERS)


def read_metrics(run_id: str, split: str) -> dict[str, Any]:
    """Return all that an evaluation has stored in `metrics.json` of a run."""
    return mlflow.artifacts.load_dict(f"runs:/{run_id}/{split}/metrics.json")


def has_predictions(run_id: str, split: str) -> bool:
    """Return whether the predictions of a run are still among its artifacts."""
    files = mlflow.MlflowClient().list_artifacts(run_id, split)
    return f"{split}/predictions.csv" in {file.path for file in files}


def evaluated_threshold(run_id: str, split: str) -> float:
    """Return the threshold that an evaluation has used."""
    return mlflow.get_run(run_id).data.metrics[f"{split}_threshold"]


def threshold(run_id: str) -> float:
    """The threshold that a Keras run has chosen on validation."""
    return mlflow.get_run(run_id).data.metrics["val_threshold"]


def read_epochs(run_id: str) -> pd.DataFrame:
    """The metrics of a Keras run after each epoch: columns as in `log_epoch`, index from 1."""
    client = mlflow.MlflowClient()
    names = [name for name in client.get_run(run_id).data.metrics if name.startswith("epoch/")]
    columns = {
        name.removeprefix("epoch/"): {
            point.step: point.value for point in client.get_metric_history(run_id, name)
        }
        for name in names
    }
    return pd.DataFrame(columns).sort_index()


def count_states(trial: Run) -> dict[str, int]:
    """Of the study that a trial belongs to: how many trials ended in each `optuna.state`."""
    parent = trial.data.tags[tag_names.PARENT]
    runs = mlflow.MlflowClient().search_runs(
        [trial.info.experiment_id],
        f"tags.`{tag_names.PARENT}` = '{parent}' and tags.`{tag_names.KIND}` = 'trial'",
        max_results=MOST,
    )
    return dict(
        Counter(run.data.tags[tag_names.STATE] for run in runs if tag_names.STATE in run.data.tags)
    )


def log_model(
    run_id: str, model: "keras.Model", settings: Mapping[str, Any], example: bytes | None = None
) -> ModelInfo:
    """Stores a model as `model` of a run, ended or not; says where.

    `settings`: see `pyfunc.PneumoniaModel.load_from`. With an `example`, an image
    file's bytes, MLflow loads the model again and runs it.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / file for name, file in FILES.items()}
        model.save(files["keras"])
        files["settings"].write_text(json.dumps(settings))
        # The flavour's own log_model knows no run but the active one
        return Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            name="model",
            run_id=run_id,
            python_model=str(INFERENCE / "pyfunc.py"),
            artifacts={name: str(file) for name, file in files.items()},
            code_paths=[str(_copy_inference(Path(folder)))],
            signature=SIGNATURE,
            input_example=None if example is None else pd.DataFrame({"image": [example]}),
            pip_requirements=[f"{it}=={importlib.metadata.version(it)}" for it in SERVED_WITH],
        )


def _copy_inference(folder: Path) -> Path:
    """Make a package `pneumo` that has `inference` alone, in a folder, and return its path."""
    package = folder / "pneumo"
    shutil.copytree(
        INFERENCE, package / INFERENCE.name, ignore=shutil.ignore_patterns("__pycache__")
    )
    (package / "__init__.py").write_text(COPY_INIT)
    return package


def log_decision(
    reasons: list[str], figures: Mapping[str, float], champion_vacant: str = ""
) -> None:
    """Log a promotion to the active run.

    Args:
        reasons: Reasons for a refusal; without any the candidate was promoted.
        figures: Metrics of the decision.
        champion_vacant: Why the decision was made without the champion, or ''.
    """
    outcome = f"not promoted: {'; '.join(reasons)}" if reasons else "promoted"
    tags = {tag_names.PROMOTED: str(not reasons).lower(), tag_names.NOTE: outcome}
    tags |= {tag_names.REASON: "; ".join(reasons)} if reasons else {}
    vacant = {"champion_vacant": champion_vacant} if champion_vacant else {}
    mlflow.set_tags(tags | {f"pneumo.{name}": why for name, why in vacant.items()})
    mlflow.log_metrics(dict(figures))
    decision = {"promoted": not reasons, "reasons": reasons, **vacant, **figures}
    mlflow.log_dict(decision, "promotion.json")


def log_counts(counts: Mapping[str, int]) -> None:
    """How many images there were, by what became of them, as metrics of the active run."""
    mlflow.log_metrics(dict(counts))


def delete_model(model_uri: str) -> None:
    """Deletes a model at `models:/m-…` with its files; nothing where it is deleted already."""
    client, model_id = mlflow.MlflowClient(), model_uri.removeprefix("models:/")
    try:
        model = client.get_logged_model(model_id)
    except MlflowException:
        return
    get_artifact_repository(model.artifact_location).delete_artifacts()
    client.delete_logged_model(model_id)


def commit_of(run: Run) -> str:
    """Return the Git commit that a run's code came from, '' if it is not known."""
    return run.data.tags.get(tag_names.SOURCE_COMMIT, "")


def commit(run: Run) -> dict[str, str]:
    """The commit that a run's code came from, as a tag; nothing where that is not known."""
    found = commit_of(run)
    return {tag_names.GIT_COMMIT: found} if found else {}


def as_option(name: str, value: str) -> str:
    """Return a parameter as the command that started this process takes it."""
    value = shlex.quote(value)
    return f"-P {name}={value}" if IS_PROJECT_RUN else f"--{name} {value}"


def store() -> str:
    """Where runs are kept, without its password."""
    address = make_url(mlflow.get_tracking_uri()).render_as_string(hide_password=True)
    return without_passwords(address)


def page(run: Run, file: str = "") -> str:
    """The address within MLflow's UI of a run's page, or of a file among its artifacts."""
    place = f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    shown = f"/artifacts/{file}" if file else ""
    # Without this MLflow shows what it has for language models
    return f"#/{place}{shown}?workflowType=machine_learning"


def address(run: Run, file: str = "") -> str:
    """The whole address, on MLflow's server or on the one that `mlflow ui` starts."""
    where = store()
    return f"{where if where.startswith('http') else 'http://127.0.0.1:5000'}/{page(run, file)}"


def where_to_open(run_id: str, file: str) -> str:
    """Where a file of a run is: on this machine, or else in MLflow's UI."""
    run = mlflow.get_run(run_id)
    place = urlsplit(run.info.artifact_uri)
    if place.scheme in ("", "file"):
        return f"{unquote(place.path)}/{file}"
    return address(run, file)


def how_to_look(run_id: str) -> str:
    """The address of a run in MLflow's UI, after the command that opens it on this store."""
    where = store()
    server = "" if where.startswith("http") else f"mlflow ui --backend-store-uri {where}, then "
    return f"look at it: {server}{address(mlflow.get_run(run_id))}"
