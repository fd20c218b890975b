"""The workers of a study as tasks of a Ray cluster, where Ray is installed.

Placement, retries and autoscaling are Ray's. What a task finds is as on any other machine: the
study in PostgreSQL, the runs on MLflow's server, the data under their path, a cache of the node.
"""

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import optuna

from pneumo import interrupt
from pneumo.console import StudyDisplay, say
from pneumo.data.dataset import open_dataset
from pneumo.errors import Mistake
from pneumo.launch import PATIENCE, Telling, hear, threads, work
from pneumo.study import (
    FAILURES_IN_A_ROW,
    Goal,
    Plan,
    StudyStopped,
    display_of,
    end_dead,
    find,
    settle,
)

PROJECT = Path(__file__).parent.parent

# The variables that say where the stores are, and what opens them, or how their names begin: of
# Optuna, of MLflow's client, and of the artifact stores that it reaches without its server
STORES = (
    *("PNEUMO_STORAGE", "REQUESTS_CA_BUNDLE"),
    *("MLFLOW_TRACKING_", "MLFLOW_HTTP_", "MLFLOW_REGISTRY_URI", "MLFLOW_WORKSPACE"),
    *("MLFLOW_S3_", "MLFLOW_BOTO_", "AWS_", "AZURE_", "MLFLOW_GCS_", "GOOGLE_"),
    *("MLFLOW_KERBEROS_", "MLFLOW_PYARROW_", "MLFLOW_ARTIFACT_"),
    *("MLFLOW_MULTIPART_", "MLFLOW_ENABLE_MULTIPART_", "MLFLOW_ENABLE_PROXY_MULTIPART_"),
)


def require() -> None:
    """Raises `Mistake` where a study cannot be given to a cluster."""
    try:
        import ray  # noqa: F401
    except ImportError:
        raise Mistake(
            "launcher=ray needs Ray, which is an extra: free its line in conda.yaml of the #, here "
            "and on the cluster, or leave launcher as it is"
        ) from None
    for name, uri, wanted in (
        ("PNEUMO_STORAGE", os.environ.get("PNEUMO_STORAGE", ""), "postgresql"),
        ("MLFLOW_TRACKING_URI", mlflow.get_tracking_uri(), "http"),
    ):
        if not uri.startswith(wanted):
            raise Mistake(
                f"launcher=ray needs {name} at a server that the whole cluster can reach, "
                f"{wanted}://…: got {uri.rpartition('@')[2] or 'none'}"
            )


def launch(
    study: optuna.Study, plan: Plan, workers: int, then: Callable[[], None] = lambda: None
) -> None:
    """Searches a study in so many tasks of the cluster until its goal is reached.

    Each has the resources that the experiment asks for. A task that dies loses the trial that it
    was at, and Ray starts it again, a few times. `then` is called after each trial. Raises what
    `launch.launch` raises, and `Mistake` where there is no cluster.
    """
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    with _connected():
        # On this node: what the tasks say must not go down with another one
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        news = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        # Its process, with what TensorFlow holds of a GPU, ends after one call
        task = ray.remote(max_calls=1)(_work).options(
            name=f"pneumo {study.study_name}",
            max_retries=FAILURES_IN_A_ROW,
            **plan.experiment.resources,
        )
        weights = plan.base.weights if ":" in plan.base.as_text()["weights"] else ""
        cores = max(1, int(plan.experiment.resources.get("num_cpus", 1)))
        stores = store_variables()
        what = study.study_name, plan.dataset.source, weights, cores, stores, news
        crew = {task.remote(number, *what): number for number in range(workers)}
        try:
            with display_of(study, workers, then) as display:
                _follow(crew, news, display)
        finally:
            _dismiss(list(crew))
            news.shutdown()
    if not Goal.of(study).reached(study):
        raise StudyStopped(
            "all workers have died, whenever Ray started them again: look at what they said"
        )


def store_variables() -> dict[str, str]:
    """The variables of this process's environment by which tasks reach the same stores."""
    found = {name: value for name, value in os.environ.items() if name.startswith(STORES)}
    return {**found, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}


@contextmanager
def _connected() -> Iterator[None]:
    """The cluster, whose nodes get this project's code and nothing else that lies beside it."""
    import ray

    with tempfile.TemporaryDirectory() as folder:
        for name in ("pneumo", "experiments"):
            without = shutil.ignore_patterns("__pycache__")
            shutil.copytree(PROJECT / name, Path(folder) / name, ignore=without)
        address = os.environ.get("RAY_ADDRESS") or "auto"
        try:
            _reach(address)
            ray.init(address, runtime_env={"working_dir": folder}, logging_level="ERROR")
        except (OSError, ValueError):
            raise Mistake(
                f"launcher=ray needs a cluster that runs, and there is none at '{address}': start "
                "one (ray start --head), or set RAY_ADDRESS"
            ) from None
        interrupt.install()  # Ray has taken SIGTERM for itself
        try:
            yield
        finally:
            ray.shutdown()


def _reach(address: str) -> None:
    """Raises `OSError` or `ValueError` where nothing answers: Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host:
        socket.create_connection((host, int(port)), timeout=10).close()


def _follow(crew: dict[Any, int], news: Any, display: StudyDisplay) -> None:
    """Passes on what the tasks say until all of them have ended, which leave `crew`."""
    import ray

    while crew:
        ended, _ = ray.wait(list(crew), timeout=interrupt.WAKE)
        interrupt.check()
        for number, said in news.get_nowait_batch(news.qsize()):
            hear(said, display, number)
        for task in ended:
            number = crew.pop(task)
            display.leave(number)
            try:
                ray.get(task)
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[-1]
                say(f"worker {number} has died ({type(error).__name__}: {reason})")


def _dismiss(crew: list[Any]) -> None:
    """Ends tasks that are still at work, each after it has ended its trial."""
    import ray

    for task in crew:
        ray.cancel(task)
    if crew:
        say(f"waiting for {len(crew)} workers to end their trials, {PATIENCE} s at most")
    _, slow = ray.wait(crew, num_returns=len(crew), timeout=PATIENCE) if crew else ([], [])
    for task in slow:
        ray.cancel(task, force=True)


def _work(
    number: int,
    name: str,
    data: str,
    weights: str,
    cores: int,
    stores: Mapping[str, str],
    news: Any,
) -> None:
    """What a task does, on a node of the cluster."""
    os.environ.update({**threads(cores), **stores})
    mlflow.set_tracking_uri(stores["MLFLOW_TRACKING_URI"])
    interrupt.install()

    def open_study() -> tuple[optuna.Study, Plan]:
        study, plan = find(name, open_dataset(data, needs=("train", "test")), weights)
        end_dead(study)  # of an earlier try on this node
        settle(study)
        return study, plan

    # What hangs is told to Ray's log, which the driver shows
    work(open_study, Telling(lambda said: news.put((number, said))), sys.stderr)
