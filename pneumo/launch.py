"""Several processes that search one study on this machine."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import mlflow
import optuna
from joblib import cpu_count

from pneumo import interrupt, tracking
from pneumo.console import StudyDisplay, import_tensorflow, say
from pneumo.errors import Mistake
from pneumo.study import Goal, Plan, StudyStopped, counted, join, take_over

DEATHS = 3  # of workers without a trial done in between, after which something else is wrong
PATIENCE = 30  # seconds that an interrupted worker has to end its trial


class Worker:
    """A process that works on a study, as its driver sees it.

    Spawned: a process that is forked after TensorFlow has been imported hangs.
    """

    def __init__(self, number: int, study: optuna.Study, plan: Plan, workers: int) -> None:
        self.number = number
        self.pipe, theirs = multiprocessing.Pipe(duplex=False)
        environment = share_of(number, workers)
        self.process: SpawnProcess = multiprocessing.get_context("spawn").Process(
            target=_work,
            args=(study.study_name, plan, mlflow.get_tracking_uri(), environment, theirs),
            name=f"worker {number}",
        )
        self.process.start()
        theirs.close()  # so that its death is the end of the pipe

    def has_died(self) -> bool:
        """Whether it has ended, which its pipe has said, in another way than it should; says so."""
        self.process.join()
        if code := self.process.exitcode:
            say(f"worker {self.number} has died (exit code {code})")
        return bool(code)


def share_of(number: int, workers: int) -> dict[str, str]:
    """The variables of the environment that give a worker its part of the machine.

    Its share of the cores, one at least; where there are GPUs, one of them.
    """
    threads = str(max(1, cpu_count() // workers))
    # The first is what joblib counts, and all that works in batches here
    names = "LOKY_MAX_CPU_COUNT", "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"
    share = {name: threads for name in (*names, "TF_NUM_INTEROP_THREADS")}
    if found := gpus():
        share["CUDA_VISIBLE_DEVICES"] = found[number % len(found)]
    return share


def gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [it.strip() for it in allowed.split(",") if it.strip()]
    # Asking TensorFlow would take memory of each of them
    return [str(place) for place, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def launch(study: optuna.Study, plan: Plan, workers: int) -> None:
    """Searches a study in that many processes until its goal is reached, and waits for them.

    A worker that dies loses the trial that it was at, and is replaced. Raises `StudyStopped`
    where one stops the study, or three die without a trial done, `Mistake` where one finds one.
    """
    # A stored model that was loaded here has put its own copy of the package before this one
    sys.path.insert(0, str(Path(__file__).parent.parent))
    crew = {number: Worker(number, study, plan, workers) for number in range(workers)}
    deaths = _Deaths(study)
    try:
        with StudyDisplay(Goal.of(study).trials, workers) as display:
            while crew:
                speaking = wait([worker.pipe for worker in crew.values()])
                for number in [it for it, worker in crew.items() if worker.pipe in speaking]:
                    if _heard(crew[number], display) or not crew.pop(number).has_died():
                        continue
                    take_over(study, plan)
                    deaths.count()
                    if not Goal.of(study).reached(study):
                        crew[number] = Worker(number, study, plan, workers)
    finally:
        _dismiss(list(crew.values()))


class _Deaths:
    """Counts workers that die while no trial is done."""

    def __init__(self, study: optuna.Study) -> None:
        self._study, self._done, self._deaths = study, counted(study), 0

    def count(self) -> None:
        """One more; raises `StudyStopped` when there is no hope in replacing it."""
        done = counted(self._study)
        self._deaths = self._deaths + 1 if done == self._done else 1
        self._done = done
        if self._deaths == DEATHS:
            raise StudyStopped(
                f"{DEATHS} workers have died without a trial done: look at what they said, or "
                "give fewer workers if the memory is too small"
            )


def _heard(worker: Worker, display: StudyDisplay) -> bool:
    """Passes on what a worker says; False where it says nothing more."""
    try:
        what, *news = worker.pipe.recv()
    except (EOFError, OSError):
        return False
    if what == "epoch":
        display.epoch(*news, worker=worker.number)
    elif what == "trial":
        display.trial(*news)
    elif what == "stopped":
        raise StudyStopped(*news)
    elif what == "mistake":
        raise Mistake(*news)
    return True


def _dismiss(crew: list[Worker]) -> None:
    """Ends workers that are still at work, each after it has ended its trial."""
    for worker in crew:
        worker.process.terminate()
    for worker in crew:
        worker.process.join(PATIENCE)
        worker.process.kill()
        worker.process.join()


class _Telling:
    """The display of a worker: what it hears goes to the driver."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def epoch(self, trial: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """As `work.Display.epoch`."""
        self._pipe.send(("epoch", trial, epoch, dict(metrics)))

    def trial(self, line: str, done: int) -> None:
        """As `work.Display.trial`."""
        self._pipe.send(("trial", line, done))


def _work(
    name: str, plan: Plan, tracking_uri: str, environment: Mapping[str, str], pipe: Connection
) -> None:
    """What a worker's process does, from its start to its end."""
    os.environ.update(environment)
    os.environ.pop("MLFLOW_RUN_ID", None)  # else its first trial would be the driver's own run
    mlflow.set_tracking_uri(tracking_uri)
    interrupt.install()
    threading.Thread(target=_leave_with_the_driver, daemon=True).start()
    code = 1
    with suppress(KeyboardInterrupt, BrokenPipeError):  # the driver knows, or is no more
        code = _search(name, plan, pipe)
    for number in (signal.SIGINT, signal.SIGTERM):  # it is leaving already
        signal.signal(number, signal.SIG_IGN)
    interrupt.leave(code)


def _search(name: str, plan: Plan, pipe: Connection) -> int:
    """Works on a study to its goal; returns the exit code, 1 where the driver is told why not."""
    tracking.quiet()
    import_tensorflow()
    from pneumo.features import budget
    from pneumo.pretrained import pretrained
    from pneumo.work import search_trials

    try:
        pretrained(plan.base)  # else every trial would fail of the same mistake
        budget()
        search_trials(join(name, plan), plan, _Telling(pipe))
    except StudyStopped as reason:
        pipe.send(("stopped", str(reason)))
        return 1
    except Mistake as mistake:
        pipe.send(("mistake", str(mistake)))
        return 1
    return 0


def _leave_with_the_driver() -> None:
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)
