"""Workers of a study as tasks of a Ray cluster: two nodes, on this machine."""

import os
import re
import signal

import mlflow
import optuna
import pytest

from tests.support.commands import lives, run, run_here, start
from tests.support.studies import (
    LIMIT,
    SMALL,
    at_work,
    children,
    counted,
    lay_out_project,
    require_whole,
    run_of,
    until,
)

cluster_utils = pytest.importorskip(
    "ray.cluster_utils", reason="needs Ray, an extra: .ci/run adds it and runs these tests"
)

pytestmark = [
    pytest.mark.slow,
    # Ray does not close all that it opens
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

RAY = ["--launcher", "ray", "--workers", "2"]

# A trial ends after a few epochs. As long as a file exists, the first one alone does, and the
# others last until they are interrupted: none can end by itself before the interrupt reaches it
EXPERIMENT = """
import os
import optuna
from experiments.tune import suggest as usual
from pneumo.training.config import RunConfig

BASE = RunConfig(image_size=32, epochs=1000, patience=1, folds=2, dense_widths=(32,))

def suggest(trial, base):
    config = usual(trial, base)
    number = trial._trial.number if isinstance(trial._trial, optuna.Trial) else 0
    if number and os.path.exists({file!r}):
        return config.model_copy(update={{"patience": 1000}})
    return config
"""


@pytest.fixture(scope="module")
def address():
    """Start a cluster whose two nodes have resources for one trial each; return its address.

    Its processes ignore SIGINT, as those that a script starts in the background.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    nodes = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    signal.signal(signal.SIGINT, before)
    yield nodes.address
    nodes.shutdown()


@pytest.fixture
def cluster(shared, address, monkeypatch):
    """Set the stores and the cluster for commands; return MLflow's client."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    return shared


def pids(runs) -> set[int]:
    """Return the process ids in runs; 0 for a trial that ended before it had a run."""
    return {int(run.data.tags.get("pneumo.pid", 0)) for run in runs}


def test_a_study_outlives_a_killed_task_and_an_interrupt(cluster, tmp_path, monkeypatch):
    endless, project = tmp_path / "endless", tmp_path / "project"
    endless.touch()
    lay_out_project(project, "patient", EXPERIMENT.format(file=str(endless)))
    monkeypatch.chdir(project)
    command = ["tune", "--experiment", "patient", "--trials", "3", "--study", "ray", *RAY]
    driver = start(*command)
    until(lambda: at_work(cluster))  # so that the study exists
    study = optuna.load_study(study_name="ray", storage=os.environ["PNEUMO_STORAGE"])
    until(lambda: counted(study.trials) == 1 and at_work(cluster, 2))
    victim, other = pids(at_work(cluster))
    os.kill(victim, signal.SIGKILL)
    until(lambda: pids(at_work(cluster)) - {victim, other})
    crew = pids(at_work(cluster)) | {other}
    driver.terminate()
    output, errors = driver.communicate(timeout=LIMIT)
    assert driver.returncode == 1, errors
    assert "waiting for the cluster to start 2 workers with num_cpus=1 each" in output
    assert "to resume the study, run the same command with --study ray" in output
    assert errors.endswith("pneumo: interrupted; finished work is kept\n")
    until(lambda: not any(map(lives, crew)))
    interrupted = require_whole(cluster, "ray")
    failed = [trial for trial in interrupted if trial.state.name == "FAIL"]
    dead = [run for run in children(cluster, run_of("ray")) if pids([run]) == {victim}][-1]
    assert dead.data.tags["optuna.state"] == "FAIL"
    others = [run for run in failed if run.number != int(dead.data.tags["optuna.trial_number"])]
    reasons = {trial.number: trial.user_attrs.get("error") for trial in others}
    assert set(reasons.values()) == {"interrupted"}, reasons

    endless.unlink()
    code, output, errors = run(*command)
    assert code == 0, errors
    trials = require_whole(cluster, "ray")
    assert counted(trials) in (3, 4)
    assert {trial.number for trial in trials if trial.state.name == "FAIL"} == {
        trial.number for trial in failed
    }
    lines = [line for line in output.splitlines() if re.match(r"trial +\d", line)]
    assert len(lines) == len(trials) - len(interrupted)
    assert "registered: pneumonia-sample version 1 as @challenger" in output


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("RAY_ADDRESS", "127.0.0.1:1", "launcher=ray requires a running cluster: there is none"),
        ("PNEUMO_STORAGE", "", "requires PNEUMO_STORAGE to be a server that all nodes can reach"),
        ("MLFLOW_TRACKING_URI", "", "launcher=ray requires MLFLOW_TRACKING_URI to be a server"),
    ],
)
def test_what_a_cluster_needs(cluster, monkeypatch, variable, value, message):
    monkeypatch.setenv(variable, value)
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    code, _, errors = run_here("tune", "--study", "none", *RAY, *SMALL)
    assert code == 2
    assert message in errors
    assert "Traceback" not in errors
