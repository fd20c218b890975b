"""What remains of a study after a failure: one real fault at a time.

    python -m tests.benchmarks.faults [FAULT …]

Each fault occurs in a study of 12 short trials with two workers. Its stores are a PostgreSQL and an
MLflow server on another one. Optuna's store is SQLite for the faults of `ON_SQLITE`. The same
command is then repeated, and the whole study is read back. The full disk, the new host name and the
new container need root.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import mlflow
import optuna
import pytest
from mlflow import MlflowClient
from optuna.trial import FrozenTrial

from pneumo.tracking import session
from tests.support.commands import processes
from tests.support.services import Server, mlflow_server, postgresql
from tests.support.studies import at_work, counted, lay_out_project, require_whole, until

SMOKE = "nan --trials 2 --workers 1 --trial_timeout 0"
MARK = "PNEUMO_FAULTS"  # a variable that all processes of a study inherit

# An experiment one of whose trials goes wrong once, in the way that a variable names
TROUBLED = """
import ctypes, os
from experiments.tune import BASE as SLOW, suggest as usual

BASE = SLOW.model_copy(update={"image_size": 32, "dense_widths": (32,), "epochs": 8})

def suggest(trial, base):
    config = usual(trial, base)
    if trial._trial and trial._trial.number == 1:
        if os.environ["FAULT"] == "nan":
            return config.model_copy(update={"learning_rate": float("nan")})
        if os.environ["FAULT"] == "hung":
            ctypes.PyDLL(None).sleep(100_000)  # with Python's lock held
    return config

if os.environ["FAULT"] == "winner":
    from pneumo.tracking import registry

    register = registry.register_once

    def register_and_die(*arguments):
        stored = register(*arguments)
        if not os.path.exists("dead"):
            open("dead", "x").close()
            os.kill(os.getpid(), 9)
        return stored

    registry.register_once = register_and_die
"""

ON_SQLITE = {"host", "container", "store"}

# What starts the command, the first time and again
UNSHARE = "unshare", "--uts"
NAMED = "sh", "-c", 'hostname "$0" && exec "$@"'
CONTAINER = *UNSHARE, "--pid", "--fork", "--mount-proc", *NAMED, "container"
STARTED_BY = {
    "host": [(*UNSHARE, *NAMED, "monday"), (*UNSHARE, *NAMED, "tuesday")],
    "container": [CONTAINER, CONTAINER],  # the same name, and process ids that count from 1 again
}


@dataclass(frozen=True)
class Night:
    """A study in which a fault occurs."""

    name: str
    folder: Path
    databases: list[Server]
    server: Server
    fault: str
    enough: int
    folds: int
    workers: int
    trial_timeout: int

    def start(self, attempt: int = 0) -> subprocess.Popen:
        """Start the command; `attempt` is the number of earlier starts."""
        flags = {"experiment": "troubled", "trials": self.enough}
        flags |= {"workers": self.workers, "folds": self.folds}
        if self.trial_timeout:
            flags["trial_timeout"] = self.trial_timeout
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "pneumo", "tune", "--study", self.name, *words]
        command = [*STARTED_BY.get(self.fault, [(), ()])[attempt], *command]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        environment = os.environ | {MARK: self.name}
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, start_new_session=True, **pipes
        )

    def end(self, command: subprocess.Popen) -> str:
        """Return the output after the command and its processes have ended."""
        output, _ = command.communicate(timeout=600)
        with suppress(AssertionError):
            until(lambda: not self.processes())
        return output

    def at_work(self) -> None:
        """Wait until each worker is halfway through a trial, and some trials are done."""
        count = self.workers
        until(lambda: len(at_work(MlflowClient(), count)) == count and counted(self.trials()) > 1)

    def trials(self) -> list[FrozenTrial]:
        """Return the trials in Optuna's store; the study may not exist yet."""
        with suppress(KeyError):
            storage = os.environ["PNEUMO_STORAGE"]
            return optuna.load_study(study_name=self.name, storage=storage).trials
        return []

    def complete(self) -> set[int]:
        """Return the numbers of the complete trials."""
        return {trial.number for trial in self.trials() if trial.state.name == "COMPLETE"}

    def processes(self) -> list[int]:
        """Return the living processes that the command has started."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                mine = f"{MARK}={self.name}".encode() in (folder / "environ").read_bytes()
                if mine and "\nState:\tZ" not in (folder / "status").read_text():
                    found.append(int(folder.name))
        return found


def kill_worker(night: Night, driver: subprocess.Popen) -> None:
    """Kill a worker with `kill -9` in the middle of a trial."""
    night.at_work()
    os.kill(processes(driver.pid)[0], signal.SIGKILL)


def kill_driver(night: Night, driver: subprocess.Popen) -> None:
    """Kill the driver with `kill -9`."""
    night.at_work()
    driver.kill()


def kill_all(night: Night, driver: subprocess.Popen) -> None:
    """Kill the driver and its workers at once with `kill -9`, as a power failure does."""
    night.at_work()
    os.killpg(driver.pid, signal.SIGKILL)


def lose_store(night: Night, driver: subprocess.Popen) -> None:
    """Remove Optuna's store, and restore it after the command has refused to continue."""
    night.at_work()
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    store, backup = night.folder / "optuna.db", night.folder / "backup.db"
    store.rename(backup)
    output = night.end(night.start())
    assert "Optuna's database at" in output, output
    backup.rename(store)


def kill_mlflow(night: Night, driver: subprocess.Popen) -> None:
    """Kill MLflow's server with `kill -9`, and restart it after 20 s."""
    night.at_work()
    night.server.kill()
    time.sleep(20)
    night.server.start()


def kill_postgresql(night: Night, driver: subprocess.Popen) -> None:
    """Kill both PostgreSQL servers with `kill -9`, and restart them after 10 s."""
    night.at_work()
    for database in night.databases:
        database.kill()
    time.sleep(10)
    for database in night.databases:
        database.start()


def terminate(night: Night, driver: subprocess.Popen) -> None:
    """Send SIGTERM to the driver."""
    night.at_work()
    driver.terminate()


def nothing(night: Night, driver: subprocess.Popen) -> None:
    """Do nothing: the fault occurs by itself."""


FAULTS: dict[str, Callable[[Night, subprocess.Popen], None]] = {
    "worker": kill_worker,
    "driver": kill_driver,
    "power": kill_all,
    "host": kill_all,
    "container": kill_all,
    "store": lose_store,
    "winner": nothing,
    "mlflow": kill_mlflow,
    "postgresql": kill_postgresql,
    "sigterm": terminate,
    "disk": nothing,
    "nan": nothing,
    "hung": nothing,
}


@contextmanager
def place(fault: str) -> Iterator[Path]:
    """Make a project with the faulty experiment, where the cache's disk may be full."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as after:
        folder, disk = Path(name), Path(name) / "disk"
        lay_out_project(folder, "troubled", TROUBLED)
        disk.mkdir()
        if fault == "disk":
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)
            after.callback(subprocess.run, ["umount", disk], check=True)
            (disk / "ballast").write_bytes(bytes(7 << 20))
        os.environ.update({"PNEUMO_CACHE": str(disk), "FAULT": fault})
        yield folder


def lost(night: Night, complete: set[int]) -> list[str]:
    """Return what is incorrect; `complete`: the complete trials before the same command."""
    problems = []
    try:
        require_whole(MlflowClient(), night.name)
    except AssertionError as error:
        problems.append(f"stores disagree: {error}")
    if counted(night.trials()) not in (night.enough, night.enough + 1):
        problems.append(f"{counted(night.trials())} trials are finished")
    if (found := ends(night)) != (1, 1):
        problems.append("{} versions of the winner, {} evaluations on test".format(*found))
    gone = complete - night.complete()
    problems += [f"trial {number} is complete no more" for number in gone]
    return problems + [f"process {pid} lives" for pid in night.processes()]


def ends(night: Night) -> tuple[int, int]:
    """Return how many versions a study has registered, and how often it evaluated one on test."""
    client, [study] = MlflowClient(), studies(night)
    versions = client.search_model_versions(f"tags.`pneumo.study` = '{night.name}'")
    return len(versions), len(client.get_metric_history(study, "test_auc"))


def studies(night: Night) -> list[str]:
    """Return the runs of the studies of that name, of which exactly one must exist."""
    filters = f"tags.`pneumo.kind` = 'study' and tags.`pneumo.study` = '{night.name}'"
    return [run.info.run_id for run in MlflowClient().search_runs(["0"], filters)]


def strike(
    fault: str, options: argparse.Namespace, databases: list[Server], server: Server
) -> list[str]:
    """Apply one fault, repeat the command, print a line, and return what is lost."""
    with pytest.MonkeyPatch.context() as patch, place(fault) as folder:
        if fault in ON_SQLITE:
            patch.setenv("PNEUMO_STORAGE", f"sqlite:///{folder}/optuna.db")
        name = f"{fault}-{uuid.uuid4().hex[:6]}"
        sizes = options.trials, options.folds, options.workers, options.trial_timeout
        night = Night(name, folder, databases, server, fault, *sizes)
        began = time.monotonic()
        driver = night.start()
        FAULTS[fault](night, driver)
        said = night.end(driver)
        complete = night.complete()
        (folder / "disk" / "ballast").unlink(missing_ok=True)
        again = night.start(attempt=1)
        said += "--- the same command again\n" + night.end(again)
        problems = lost(night, complete)
        if again.returncode:
            problems.append(f"the same command again ends with {again.returncode}")
        trials = night.trials()
    failed = sum(trial.state.name == "FAIL" for trial in trials)
    print(
        f"{fault:12} exit code {driver.returncode:3}, then {again.returncode}; "
        f"{counted(trials)} trials done, {failed} failed, {len(problems)} items lost, "
        f"{time.monotonic() - began:.0f} s",
        flush=True,
    )
    if problems:
        print("    ", "\n    ".join(problems), f"\n{said}", flush=True)
    return problems


def main() -> None:
    """Print a line for each fault, and the sum."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faults", nargs="*", choices=[[], *FAULTS], help="all by default")
    parser.add_argument("--trials", type=int, default=12, help="of each study, 2 at least")
    parser.add_argument("--folds", type=int, default=1, help="of each trial")
    parser.add_argument("--workers", type=int, default=2, help="of each study")
    parser.add_argument("--trial_timeout", type=int, default=100, help="in seconds; 0: none")
    options = parser.parse_args()
    faults = options.faults or list(FAULTS)
    session.configure_mlflow()
    with ExitStack() as servers:
        databases = [servers.enter_context(postgresql()) for _ in range(2)]
        artifacts = Path(servers.enter_context(tempfile.TemporaryDirectory()))
        server = servers.enter_context(mlflow_server(databases[1].address, artifacts))
        os.environ["PNEUMO_STORAGE"] = databases[0].address
        os.environ["MLFLOW_TRACKING_URI"] = server.address
        mlflow.set_tracking_uri(server.address)
        losses = [strike(fault, options, databases, server) for fault in faults]
    survived = sum(not lost for lost in losses)
    items = sum(map(len, losses))
    print(f"{len(losses)} faults tried, {survived} survived, {items} items lost")
    sys.exit(survived < len(losses))


if __name__ == "__main__":
    main()
