"""Launcher of a study's workers as tasks of a Ray cluster, if Ray is installed.

Ray does placement, retries and autoscaling. A task uses the same stores as on any other machine:
the study in PostgreSQL, the runs on MLflow's server, the data under their path, and a cache of its
node.
"""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import optuna

from pneumo.runtime import signals
from pneumo.runtime.console import echo
from pneumo.runtime.errors import StudyFailedError, UserError
from pneumo.tuning.launchers.local import thread_limit_environment, worker_arguments
from pneumo.tuning.launchers.progress import StudyProgress
from pneumo.tuning.launchers.worker_process import (
    PROJECT_ROOT,
    TERMINATE_TIMEOUT,
    WorkerDiedError,
    run_worker,
)
from pneumo.tuning.limits import MAX_CONSECUTIVE_FAILURES, StudyLimits, require_no_repeated_failure
from pneumo.tuning.spec import StudySpec

# Names or prefixes of the variables with addresses and credentials of the stores: of Optuna, of
# MLflow's client, and of the artifact stores that the client reaches without its server
STORE_VARIABLES = (
    *("PNEUMO_STORAGE", "REQUESTS_CA_BUNDLE"),
    *("MLFLOW_TRACKING_", "MLFLOW_HTTP_", "MLFLOW_REGISTRY_URI", "MLFLOW_WORKSPACE"),
    *("MLFLOW_S3_", "MLFLOW_BOTO_", "AWS_", "AZURE_", "MLFLOW_GCS_", "GOOGLE_"),
    *("MLFLOW_KERBEROS_", "MLFLOW_PYARROW_", "MLFLOW_ARTIFACT_"),
    *("MLFLOW_MULTIPART_", "MLFLOW_ENABLE_MULTIPART_", "MLFLOW_ENABLE_PROXY_MULTIPART_"),
)


def check_prerequisites() -> None:
    """Require all that a study needs to run on a cluster.

    Raises:
        UserError: Ray is not installed, or a store is not a server.
    """
    try:
        import ray  # noqa: F401
    except ImportError:
        raise UserError(
            "launcher=ray requires Ray, which is not installed. Uncomment its line in conda.yaml, "
            "here and on every node of the cluster, or use launcher=local."
        ) from None
    for name, uri, scheme in (
        ("PNEUMO_STORAGE", os.environ.get("PNEUMO_STORAGE", ""), "postgresql"),
        ("MLFLOW_TRACKING_URI", mlflow.get_tracking_uri(), "http"),
    ):
        if not uri.startswith(scheme):
            raise UserError(
                f"launcher=ray requires {name} to be a server that all nodes can reach, "
                f"{scheme}://…: got {uri.rpartition('@')[2] or 'none'}"
            )


def launch(study: optuna.Study, spec: StudySpec, workers: int, progress: StudyProgress) -> None:
    """Search a study in several tasks of the cluster until its limits are reached.

    Each task has the resources that the experiment requests, and starts the command `worker` on its
    node. If a worker dies, its trial is lost. Ray then starts the task again, at most
    `MAX_CONSECUTIVE_FAILURES` times.

    Args:
        study: A study whose `StudyLimits` are set.
        spec: Search of the study.
        workers: Number of tasks.
        progress: Display of the study, updated while it runs.

    Raises:
        UserError: There is no cluster, or a worker found a user error.
        StudyFailedError: Three trials in a row failed with the same type of error, or all workers
            died.
    """
    import ray

    resources = spec.experiment.resources
    cores = max(1, int(resources.get("num_cpus", 1)))
    environment = {**thread_limit_environment(cores), **store_variables()}
    with _ray_session():
        task = ray.remote(run_worker).options(
            name=f"pneumo {study.study_name}",
            max_retries=MAX_CONSECUTIVE_FAILURES,
            retry_exceptions=[WorkerDiedError],
            **resources,
        )
        arguments = worker_arguments(study, spec)
        running = {task.remote(number, arguments, environment): number for number in range(workers)}
        each = ", ".join(f"{name}={amount}" for name, amount in resources.items())
        echo(f"waiting for the cluster to start {workers} workers with {each} each")
        try:
            while running:
                progress.update()
                _forget_ended(running, study)
        finally:
            _end(list(running))
    if not StudyLimits.from_study(study).is_reached(study):
        raise StudyFailedError(
            "all workers died, even after Ray restarted them. See their output above."
        )


def store_variables() -> dict[str, str]:
    """Return this process's environment variables by which tasks reach the same stores."""
    variables = {
        name: value for name, value in os.environ.items() if name.startswith(STORE_VARIABLES)
    }
    return {**variables, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}


@contextmanager
def _ray_session() -> Iterator[None]:
    """Connect to the cluster, and send its nodes this project's code and no other files."""
    import ray

    with tempfile.TemporaryDirectory() as folder:
        for name in ("pneumo", "experiments"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(PROJECT_ROOT / name, Path(folder) / name, ignore=ignore)
        address = os.environ.get("RAY_ADDRESS") or "auto"
        try:
            _probe(address)
            ray.init(address, runtime_env={"working_dir": folder}, logging_level="ERROR")
        except (OSError, ValueError):
            raise UserError(
                f"launcher=ray requires a running cluster: there is none at '{address}'. Start "
                "one (ray start --head), or set RAY_ADDRESS."
            ) from None
        signals.install_handlers()  # Ray has replaced the handler of SIGTERM
        try:
            yield
        finally:
            ray.shutdown()


def _probe(address: str) -> None:
    """Raise `OSError` or `ValueError` if nothing answers, because Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host:
        socket.create_connection((host, int(port)), timeout=10).close()


def _forget_ended(running: dict[Any, int], study: optuna.Study) -> None:
    """Remove ended tasks from `running`, and print which of their workers died.

    Raises:
        UserError: A worker found a user error.
        StudyFailedError: Three trials in a row failed with the same type of error.
    """
    import ray

    ended, _ = ray.wait(list(running), timeout=signals.POLL_SECONDS)
    signals.raise_if_interrupted()
    for task in ended:
        number = running.pop(task)
        try:
            ray.get(task)
        except ray.exceptions.RayError as error:
            if isinstance(cause := getattr(error, "cause", None), UserError):
                raise cause from None
            require_no_repeated_failure(study)
            reason = str(error).strip().splitlines()[-1]
            echo(f"worker {number} died ({type(error).__name__}: {reason})")


def _end(tasks: list[Any]) -> None:
    """Cancel tasks that still run, and wait until each has ended its trial."""
    import ray

    if not tasks:
        return
    for task in tasks:
        ray.cancel(task)
    echo(f"waiting at most {TERMINATE_TIMEOUT} s for {len(tasks)} workers to end their trials")
    _, slow = ray.wait(tasks, num_returns=len(tasks), timeout=TERMINATE_TIMEOUT)
    for task in slow:
        ray.cancel(task, force=True)
