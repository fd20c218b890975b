"""Trials and runs of processes of a study that have died."""

import subprocess

import mlflow
import optuna
import pytest
from optuna.trial import TrialState

from pneumo.runtime.process import ProcessId
from pneumo.tracking import study_runs
from pneumo.tuning.storage import open_storage
from pneumo.tuning.study import fail_dead_trials, is_dead, wait_for_running_trials
from tests.support.commands import ended_process
from tests.support.studies import tags


@pytest.fixture
def parent(store) -> str:
    """Make the run of a study."""
    return store.create_run("0", tags={"pneumo.kind": "study", "pneumo.data": "xrays"}).info.run_id


def run_below(parent: str, number: int, state: str = "", status: str = "RUNNING", **own) -> str:
    """Make a trial's run, with a param."""
    client = mlflow.MlflowClient()
    ours = {"pneumo.kind": "trial", "optuna.trial_number": str(number), **own}
    ours |= {"mlflow.parentRunId": parent} | ({"optuna.state": state} if state else {})
    run_id = client.create_run("0", tags=ours).info.run_id
    client.log_param(run_id, "dropout", 0.5)
    if status != "RUNNING":
        client.set_terminated(run_id, status)
    return run_id


def worker_below(parent: str, process: ProcessId, experiment_id: str = "0") -> str:
    ours = {"mlflow.parentRunId": parent, "pneumo.kind": "worker"}
    ours |= {"pneumo.process": process.to_json()}
    return mlflow.MlflowClient().create_run(experiment_id, tags=ours).info.run_id


def said(run_id: str) -> tuple[str | None, str]:
    run = mlflow.get_run(run_id)
    return run.data.tags.get("optuna.state"), run.info.status


def test_runs_agree_with_optuna(parent):
    runs = [
        run_below(parent, 0, "COMPLETE", "FINISHED"),
        run_below(parent, 1),  # its process has died
        run_below(parent, 2),  # pruned while the server was away
        run_below(parent, 3, "COMPLETE", "FINISHED"),  # its score never came to Optuna
        run_below(parent, 4, "FAIL", "KILLED"),  # by a person
        run_below(parent, 5),  # at work
    ]
    states = {0: "COMPLETE", 1: "FAIL", 2: "PRUNED", 3: "FAIL", 4: "FAIL"}
    study_runs.reconcile_trial_runs(parent, states, is_dead)
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
        study_runs.reconcile_trial_runs(parent, {0: "COMPLETE", 1: "FAIL", 2: "FAIL"}, is_dead)
        below = store.search_runs(["0"], f"tags.`mlflow.parentRunId` = '{parent}'")
        [lost] = [run for run in below if run.info.run_id != own]
        assert len(below) == 2
    assert store.get_run(spare).info.lifecycle_stage == "deleted"
    assert said(lost.info.run_id) == ("FAIL", "FAILED")
    wanted = {"pneumo.kind", "pneumo.data", "optuna.trial_number", "optuna.state"}
    assert set(tags(lost)) == wanted
    assert tags(lost)["optuna.trial_number"] == "1"


POSTGRESQL = "postgresql://me@127.0.0.1:1/x"  # which nothing here opens


def other_processes() -> dict[str, ProcessId]:
    """Return ids of dead processes, each with one part of a living one's id changed."""
    here = ProcessId.current()
    return {
        "an earlier boot": here._replace(boot_id="another"),
        "another container": here._replace(pid_namespace="pid:[1]"),
        "a reused process id": here._replace(start_hash="1"),
        "a new host name, an earlier boot": here._replace(host="before", boot_id="another"),
    }


def test_workers_of_any_experiment_are_ended_if_they_are_dead(store, parent):
    here = ProcessId.current()
    elsewhere = store.create_experiment("elsewhere")
    runs = [
        worker_below(parent, here),
        worker_below(parent, here._replace(host="renamed")),
        worker_below(parent, ended_process()),
        worker_below(parent, ended_process(), elsewhere),
    ]
    study_runs.reconcile_trial_runs(parent, {}, is_dead)
    assert [said(run)[1] for run in runs] == ["RUNNING", "RUNNING", "FAILED", "FAILED"]


@pytest.mark.parametrize(("others", "left"), [(0, "FAILED"), (1, "RUNNING")])
def test_a_machine_without_a_trial_has_no_worker(parent, others, left):
    near = ProcessId.current()
    far = near._replace(pid_namespace="pid:[1]")  # a container of the same name
    tag = {"pneumo.process": far.to_json()}
    silent = run_below(parent, 0, **tag)
    trial = run_below(parent, 9, **{"pneumo.process": near.to_json()})
    for number in range(others):
        run_below(parent, 1 + number, **tag)
    workers = [worker_below(parent, far), worker_below(parent, near)]
    study_runs.fail_stale_trial(parent, 0)
    assert said(silent) == ("FAIL", "FAILED")
    assert [said(run)[1] for run in (trial, *workers)] == ["RUNNING", left, "RUNNING"]


def test_on_sqlite_a_trial_without_a_living_process_is_dead_at_once(store):
    dead = {"an ended process": ended_process(), **other_processes()}
    here = ProcessId.current()
    alive = {"this process": here, "a new host name": here._replace(host="renamed")}
    study = optuna.create_study(storage=open_storage())
    for process in (dead | alive).values():
        study.ask().set_user_attr("process", process)
    study.ask().set_user_attr("process", ["vm", here.pid])  # as an earlier version stored it
    fail_dead_trials(study)
    ended = [trial.state == TrialState.FAIL for trial in study.trials]
    assert ended == [True] * len(dead) + [False] * len(alive) + [True]


def test_on_other_databases_only_processes_of_this_container_count_as_dead(monkeypatch):
    monkeypatch.setenv("PNEUMO_STORAGE", POSTGRESQL)
    here = ProcessId.current()
    others = other_processes()
    reused = others.pop("a reused process id")
    assert is_dead(ended_process())
    assert is_dead(reused)
    assert not is_dead(here)
    assert not any(map(is_dead, others.values()))
    # a machine without a boot id declares no process dead
    monkeypatch.setattr("pneumo.runtime.process._boot_id", lambda: "")
    assert not is_dead(ended_process())


def test_an_unclaimed_trial_is_dead_after_a_while(store, monkeypatch):
    study = optuna.create_study(storage=open_storage())
    study.ask()
    fail_dead_trials(study)
    assert study.trials[0].state == TrialState.RUNNING
    monkeypatch.setattr("pneumo.tuning.study.MAX_UNCLAIMED_SECONDS", -1)
    study.ask().set_user_attr("process", ProcessId.current())
    fail_dead_trials(study)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.RUNNING]


def test_a_wait_says_what_it_waits_for(store, monkeypatch, capsys):
    study = optuna.create_study(storage=open_storage())
    process = subprocess.Popen(["sleep", "60"])
    identity = ProcessId.from_pid(process.pid)
    study.ask().set_user_attr("process", identity)
    monkeypatch.setattr(
        "pneumo.tuning.study.time.sleep", lambda _: (process.kill(), process.wait())
    )
    wait_for_running_trials(study)
    line = f"waiting for trial 0, which runs in process {process.pid} on {identity.host}\n"
    assert capsys.readouterr().out == line
    assert study.trials[0].state == TrialState.FAIL


def test_a_wait_says_when_a_trial_fails_that_nobody_here_can_judge(store, monkeypatch, capsys):
    study = optuna.create_study(storage=open_storage())
    study.ask()
    far = ProcessId("far", "boot", "namespace", 4711, "1")
    study.ask().set_user_attr("process", far)

    def become_one_machine(_) -> None:  # on which both trials are dead
        monkeypatch.setenv("PNEUMO_STORAGE", "")
        monkeypatch.setattr("pneumo.tuning.study.MAX_UNCLAIMED_SECONDS", -1)

    monkeypatch.setenv("PNEUMO_STORAGE", POSTGRESQL)
    monkeypatch.setattr("pneumo.tuning.study.time.sleep", become_one_machine)
    wait_for_running_trials(study)
    assert capsys.readouterr().out.splitlines() == [
        "waiting for trial 0, which no process has claimed; it fails 60 s after its start",
        "waiting for trial 1, which runs in process 4711 on far; it fails after 120 s without a "
        "heartbeat",
    ]
    assert {trial.state for trial in study.trials} == {TrialState.FAIL}
