"""What fails around a study, and what is left of it: stores, disks, processes."""

import subprocess
from pathlib import Path

import mlflow
import optuna
import pytest
from optuna.trial import TrialState

from pneumo import tracking
from pneumo.data import pixels
from pneumo.errors import Mistake
from pneumo.study import end_dead, open_storage
from tests.services import free_port
from tests.studies import tags

PASSWORD = "open-sesame"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            f"postgresql://me:{PASSWORD}@127.0.0.1:1/x",
            "PNEUMO_STORAGE must name a database that can be opened: "
            "got postgresql://me:***@127.0.0.1:1/x (connection failed: ",
        ),
        ("sqlite:////nowhere/optuna.db", "got sqlite:////nowhere/optuna.db (unable to open"),
        *(
            (
                url,
                "PNEUMO_STORAGE must be the URL of a database, as postgresql://USER@HOST/DATABASE",
            )
            for url in (f"me:{PASSWORD}@here", f"nosuch://me:{PASSWORD}@here/x")
        ),
    ],
)
def test_a_database_that_does_not_open(monkeypatch, url, message):
    monkeypatch.setenv("PNEUMO_STORAGE", url)
    with pytest.raises(Mistake) as raised:
        open_storage()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert PASSWORD not in str(raised.value)


def test_a_server_of_mlflow_that_is_not_there(monkeypatch):
    for name in ("USERNAME", "PASSWORD"):  # which are set on the way
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
    mlflow.set_tracking_uri(f"http://me:{PASSWORD}@127.0.0.1:{free_port()}")
    with pytest.raises(Mistake) as raised:
        tracking.connect()
    assert str(raised.value).startswith(
        "MLFLOW_TRACKING_URI must name a server that answers: http://127.0.0.1:"
    )
    mlflow.set_tracking_uri(None)


@pytest.fixture
def parent(store) -> str:
    """The run of a study."""
    return store.create_run("0", tags={"pneumo.kind": "study", "pneumo.data": "xrays"}).info.run_id


def run_below(parent: str, number: int, state: str = "", status: str = "RUNNING", **own) -> str:
    """A trial's run, with a param."""
    client = mlflow.MlflowClient()
    ours = {"pneumo.kind": "trial", "optuna.trial_number": str(number), **own}
    ours |= {"mlflow.parentRunId": parent} | ({"optuna.state": state} if state else {})
    run_id = client.create_run("0", tags=ours).info.run_id
    client.log_param(run_id, "dropout", 0.5)
    if status != "RUNNING":
        client.set_terminated(run_id, status)
    return run_id


def worker_below(parent: str, host: str) -> str:
    ours = {"mlflow.parentRunId": parent, "pneumo.kind": "worker", "pneumo.host": host}
    return mlflow.MlflowClient().create_run("0", tags=ours).info.run_id


def said(run_id: str) -> tuple[str | None, str]:
    run = mlflow.get_run(run_id)
    return run.data.tags.get("optuna.state"), run.info.status


def test_runs_say_what_optuna_says(parent):
    runs = [
        run_below(parent, 0, "COMPLETE", "FINISHED"),
        run_below(parent, 1),  # its process has died
        run_below(parent, 2),  # pruned while the server was away
        run_below(parent, 3, "COMPLETE", "FINISHED"),  # its score never came to Optuna
        run_below(parent, 4, "FAIL", "KILLED"),  # by a person
        run_below(parent, 5),  # at work
    ]
    tracking.settle(parent, {0: "COMPLETE", 1: "FAIL", 2: "PRUNED", 3: "FAIL", 4: "FAIL"})
    assert [said(run) for run in runs] == [
        ("COMPLETE", "FINISHED"),
        ("FAIL", "FAILED"),
        ("PRUNED", "KILLED"),
        ("FAIL", "FAILED"),
        ("FAIL", "KILLED"),
        (None, "RUNNING"),
    ]


def test_a_trial_has_one_run(store, parent):
    spare = {"mlflow.parentRunId": parent, "optuna.trial_number": "0"}
    spare = store.create_run("0", tags=spare).info.run_id  # whose creation was not heard of
    own = run_below(parent, 0, "COMPLETE", "FINISHED")
    removed = run_below(parent, 2, "FAIL", "FAILED")
    store.delete_run(removed)  # by a person, who does not want to see it again
    for _ in range(2):
        tracking.settle(parent, {0: "COMPLETE", 1: "FAIL", 2: "FAIL"})
        below = store.search_runs(["0"], f"tags.`mlflow.parentRunId` = '{parent}'")
        [lost] = [run for run in below if run.info.run_id != own]
        assert len(below) == 2
    assert store.get_run(spare).info.lifecycle_stage == "deleted"
    assert said(lost.info.run_id) == ("FAIL", "FAILED")
    wanted = {"pneumo.kind", "pneumo.data", "optuna.trial_number", "optuna.state"}
    assert set(tags(lost)) == wanted
    assert tags(lost)["optuna.trial_number"] == "1"


def test_dead_workers_are_ended_and_living_ones_are_not(store, parent):
    host, pid = tracking.this_process()
    process = subprocess.Popen(["true"])
    process.wait()
    runs = [worker_below(parent, host), worker_below(parent, host), worker_below(parent, "far")]
    for run, number in zip(runs, (pid, process.pid, process.pid), strict=True):
        store.set_tag(run, "pneumo.pid", str(number))
    tracking.settle(parent, {})
    assert [said(run)[1] for run in runs] == ["RUNNING", "FAILED", "RUNNING"]


@pytest.mark.parametrize(("others", "left"), [(0, "FAILED"), (1, "RUNNING")])
def test_a_machine_without_a_trial_has_no_worker(parent, others, left):
    silent = run_below(parent, 0, **{"pneumo.host": "far"})
    near = run_below(parent, 9, **{"pneumo.host": "near"})
    for number in range(others):
        run_below(parent, 1 + number, **{"pneumo.host": "far"})
    workers = [worker_below(parent, "far"), worker_below(parent, "near")]
    tracking.end_silent(parent, 0)
    assert said(silent) == ("FAIL", "FAILED")
    assert [said(run)[1] for run in (near, *workers)] == ["RUNNING", left, "RUNNING"]


def test_a_trial_that_nobody_has_is_dead_after_a_while(store, monkeypatch):
    study = optuna.create_study(storage=open_storage())
    study.ask()
    end_dead(study)
    assert study.trials[0].state == TrialState.RUNNING
    monkeypatch.setattr("pneumo.study.UNCLAIMED", -1)
    study.ask().set_user_attr("process", tracking.this_process())
    end_dead(study)
    assert [it.state for it in study.trials] == [TrialState.FAIL, TrialState.RUNNING]


@pytest.fixture
def small_disk(tmp_path, monkeypatch) -> Path:
    """A disk of 1 MiB, with the cache on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.call(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]):
        pytest.skip("needs to be root, to make a small disk")
    monkeypatch.setenv("PNEUMO_CACHE", str(disk))
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)  # a map of pixels may be open


def test_a_full_disk_is_said_in_a_line(small_disk, tmp_path, sample):
    files = [sample.base / path for path in sample.rows["path"]]
    with pytest.raises(Mistake) as raised:
        pixels.load(sample.base, sample.rows, 64, "squash")
    assert str(raised.value) == (
        f"the cache needs more disk than is free at {small_disk} (No space left on device for "
        "pixels): free some, or set PNEUMO_CACHE to a larger disk"
    )
    assert len(files) * 64 * 64 > 1 << 20
    assert [it for it in small_disk.rglob("*") if it.is_file()] == [
        small_disk / "locks" / next((small_disk / "locks").iterdir()).name
    ]
    read, _ = pixels.load(sample.base, sample.rows, 16, "squash")  # what fits does
    assert read.shape == (len(files), 16, 16)
