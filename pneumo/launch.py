"""Several processes that search one study on this machine."""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import IO, Any

import mlflow
import optuna
from joblib import cpu_count
from optuna.trial import FrozenTrial, TrialState

from pneumo import interrupt, tracking
from pneumo.console import StudyDisplay, import_tensorflow, say, say_to
from pneumo.errors import Mistake
from pneumo.parallel import gpus
from pneumo.process import ProcessId
from pneumo.study import (
    FAILURES_IN_A_ROW,
    Goal,
    Losses,
    Plan,
    StudyStopped,
    display_of,
    end_dead,
    join,
    settle,
    take_over,
)

PATIENCE = 30  # seconds that an interrupted worker has to end its trial


class Worker:
    """A process that works on a study, as its driver sees it.

    Spawned: a process that is forked after TensorFlow has been imported hangs.
    """

    def __init__(
        self, number: int, study: optuna.Study, plan: Plan, workers: int, folder: Path
    ) -> None:
        self.number, self._study = number, study
        self.pipe, theirs = multiprocessing.Pipe(duplex=False)
        self._hung = folder / f"worker-{number}.txt"
        self._hung.touch()
        environment = share_of(number, workers)
        where = mlflow.get_tracking_uri(), environment, self._hung
        self.process: SpawnProcess = multiprocessing.get_context("spawn").Process(
            target=_work, args=(study.study_name, plan, *where, theirs), name=f"worker {number}"
        )
        self.process.start()
        self._id = ProcessId.from_pid(self.process.pid)  # while there is such a process
        theirs.close()  # so that its death is the end of the pipe

    def has_died(self) -> bool:
        """Whether it has ended, which its pipe has said, in another way than it should; says so."""
        self.process.join()
        if trace := self._hung.read_text():
            self._tell_of(trace)
        elif code := self.process.exitcode:
            say(f"worker {self.number} has died (exit code {code})")
        return bool(self.process.exitcode)

    def _tell_of(self, trace: str) -> None:
        """Say that its trial was beyond the limit, and log where it hung."""
        said = f"not done after {Goal.of(self._study).trial_timeout} s, the limit"
        end_dead(self._study)
        settle(self._study)  # the trial has a run now, if it had none
        for trial in filter(self._has_lost, self._study.get_trials(deepcopy=False)):
            say(f"trial {trial.number:3d}  failed: {said}")
            where = f"{said}; where each thread was:\n\n{trace}"
            tracking.log_hang(self._study.user_attrs["run_id"], trial.number, where)

    def _has_lost(self, trial: FrozenTrial) -> bool:
        """Return whether a trial failed because this process, which ran it, has ended."""
        own = tuple(trial.user_attrs.get("process", ())) == self._id
        return own and trial.state == TrialState.FAIL and "error" not in trial.user_attrs


def share_of(number: int, workers: int) -> dict[str, str]:
    """The variables of the environment that give a worker its part of the machine.

    Its share of the cores, one at least; where there are GPUs, one of them, in turn.
    """
    share = threads(max(1, cpu_count() // workers))
    if found := gpus():
        share["CUDA_VISIBLE_DEVICES"] = found[number % len(found)]
    return share


def threads(count: int) -> dict[str, str]:
    """The variables of the environment that let a process compute with so many threads."""
    # The first is what joblib counts, and all that works in batches here
    names = "LOKY_MAX_CPU_COUNT", "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"
    return {name: str(count) for name in (*names, "TF_NUM_INTEROP_THREADS")}


def launch(
    study: optuna.Study, plan: Plan, workers: int, then: Callable[[], None] = lambda: None
) -> None:
    """Searches a study in that many processes until its goal is reached, and waits for them.

    `then` is called after each trial. A worker that dies, or is ended because its trial takes
    longer than the goal's `trial_timeout`, loses that trial and is replaced. Raises `StudyStopped`
    where one stops the study, or three die without a trial done, `Mistake` where one finds one.
    """
    losses = Losses(study)
    # A stored model that was loaded here has put its own copy of the package before this one
    sys.path.insert(0, str(Path(__file__).parent.parent))
    with tempfile.TemporaryDirectory() as folder:
        hire = partial(Worker, study=study, plan=plan, workers=workers, folder=Path(folder))
        crew = {number: hire(number) for number in range(workers)}
        try:
            with display_of(study, workers, then) as display:
                for number in _deaths(crew, display):
                    take_over(study, plan)
                    _require_hope(losses)
                    if not Goal.of(study).reached(study):
                        crew[number] = hire(number)
        finally:
            _dismiss(list(crew.values()))


def _deaths(crew: dict[int, Worker], display: StudyDisplay) -> Iterator[int]:
    """Passes on what workers say until all of them have ended; yields the number of each dead."""
    while crew:
        speaking = wait([worker.pipe for worker in crew.values()], timeout=interrupt.WAKE)
        interrupt.check()  # a worker that has heard the same signal is not to be replaced
        for number in [it for it, worker in crew.items() if worker.pipe in speaking]:
            if not _heard(crew[number], display):
                display.leave(number)
                if crew.pop(number).has_died():
                    yield number


def _require_hope(losses: Losses) -> None:
    if losses.too_many():
        raise StudyStopped(
            f"{FAILURES_IN_A_ROW} workers have died without a trial done: look at what they said, "
            "or give fewer workers if the memory is too small"
        )


def _heard(worker: Worker, display: StudyDisplay) -> bool:
    """Passes on what a worker says; False where it says nothing more."""
    try:
        hear(worker.pipe.recv(), display, worker.number)
    except (EOFError, OSError):
        return False
    return True


def hear(said: Sequence[Any], display: StudyDisplay, worker: int) -> None:
    """Passes on what a worker has told by `Telling`; raises what has stopped it."""
    what, *news = said
    if what == "epoch":
        display.epoch(*news, worker=worker)
    elif what == "trial":
        display.trial(*news, worker=worker)
    elif what == "note":
        display.note(*news)
    elif what == "stopped":
        raise StudyStopped(*news)
    elif what == "mistake":
        raise Mistake(*news)


def _dismiss(crew: list[Worker]) -> None:
    """Ends workers that are still at work, each after it has ended its trial."""
    for worker in crew:
        worker.process.terminate()
    if any(worker.process.is_alive() for worker in crew):
        say(f"waiting for {len(crew)} workers to end their trials, {PATIENCE} s at most")
    for worker in crew:
        worker.process.join(PATIENCE)
        worker.process.kill()
        worker.process.join()


class Telling:
    """The display of a worker: what it hears goes to its driver, by `tell`."""

    def __init__(self, tell: Callable[[Sequence[Any]], None]) -> None:
        self.tell = tell

    def epoch(self, trial: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """As `work.Display.epoch`."""
        self.tell(("epoch", trial, epoch, dict(metrics)))

    def trial(
        self, line: str, done: int, best: tuple[int, float] | None, took: float | None
    ) -> None:
        """As `work.Display.trial`."""
        self.tell(("trial", line, done, best, took))

    def note(self, line: str) -> None:
        """As `work.Display.note`."""
        self.tell(("note", line))


def _work(
    name: str,
    plan: Plan,
    tracking_uri: str,
    environment: Mapping[str, str],
    hung: Path,
    pipe: Connection,
) -> None:
    """What a worker's process does, from its start to its end."""
    os.environ.update(environment)
    os.environ.pop("MLFLOW_RUN_ID", None)  # else its first trial would be the driver's own run
    mlflow.set_tracking_uri(tracking_uri)
    interrupt.install()
    threading.Thread(target=_leave_with_the_driver, daemon=True).start()
    code = 1
    try:  # no `suppress`, in whose own code a signal would be lost to it
        with hung.open("w") as file:
            code = work(lambda: (join(name, plan), plan), Telling(partial(_tell, pipe)), file)
        interrupt.ignore()  # it is leaving already
    except KeyboardInterrupt:
        pass
    interrupt.leave(code)


def _tell(pipe: Connection, said: Sequence[Any]) -> None:
    with suppress(BrokenPipeError):  # where the driver is no more, a signal is on its way
        pipe.send(said)


def work(
    open_study: Callable[[], tuple[optuna.Study, Plan]], telling: Telling, hung: IO[str]
) -> int:
    """Searches a study to its goal; returns the exit code, 1 where the driver is told why not.

    `hung`: see `work.search_trials`.
    """
    say_to(telling.note)
    tracking.set_up()
    import_tensorflow()
    from pneumo.data.cache_entries import limit
    from pneumo.pretrained import pretrained
    from pneumo.work import search_trials

    try:
        study, plan = open_study()
        pretrained(plan.base)  # else every trial would fail of the same mistake
        limit()
        search_trials(study, plan, telling, hung)
    except StudyStopped as reason:
        telling.tell(("stopped", str(reason)))
        return 1
    except Mistake as mistake:
        telling.tell(("mistake", str(mistake)))
        return 1
    return 0


def _leave_with_the_driver() -> None:
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)
