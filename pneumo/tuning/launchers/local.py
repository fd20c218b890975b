"""Processes of the command `worker` that search one study on this machine."""

from functools import partial
from queue import SimpleQueue

import mlflow
import optuna
from joblib import cpu_count
from optuna.trial import FrozenTrial, TrialState

from pneumo.runtime import signals
from pneumo.runtime.console import say
from pneumo.runtime.errors import USER_ERROR, Mistake, StudyStopped
from pneumo.runtime.machine import gpus
from pneumo.tracking import study_runs
from pneumo.tuning import attributes
from pneumo.tuning.launchers.worker_process import PATIENCE, Worker, next_ended
from pneumo.tuning.progress import StudyProgress
from pneumo.tuning.spec import Plan
from pneumo.tuning.study import (
    FAILURES_IN_A_ROW,
    FailureCount,
    Goal,
    counted,
    require_no_repeated_failure,
    take_over,
)


def worker_arguments(study: optuna.Study, plan: Plan) -> list[str]:
    """Return the arguments of the command `worker` for a worker that another process starts."""
    arguments = ["--driven", "true", "--study", study.study_name, "--data", plan.dataset.source]
    if ":" in plan.base.as_text()["weights"]:
        arguments += ["--weights", plan.base.weights]
    return arguments


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


def launch(study: optuna.Study, plan: Plan, workers: int, progress: StudyProgress) -> None:
    """Search a study in several processes until its goal is reached, and wait for them.

    A worker that dies, or ends itself because its trial takes longer than the goal's
    `trial_timeout`, loses that trial and is replaced.

    Raises:
        Mistake: A worker found a user error.
        StudyStopped: Three trials in a row failed of the same cause, or three workers died
            without a trial done.
    """
    deaths, ended = FailureCount(lambda: counted(study)), SimpleQueue()
    start = partial(_start, study, plan, workers, ended)
    running = [start(number) for number in range(workers)]
    try:
        while running:
            progress.update()
            worker = next_ended(ended)
            signals.check()  # a worker that got the same signal is not to be replaced
            if worker is None:
                continue
            running.remove(worker)
            if worker.wait() == 0:
                continue
            _report_death(worker, study)
            take_over(study, plan)
            if worker.trace:
                _log_hang(worker, study)
            require_no_repeated_failure(study)
            if deaths.add():
                raise StudyStopped(
                    f"{FAILURES_IN_A_ROW} workers have died without a trial done: look at what "
                    "they said, or give fewer workers if the memory is too small"
                )
            if not Goal.of(study).reached(study):
                running.append(start(worker.number))
    finally:
        _end(running)


def _start(
    study: optuna.Study, plan: Plan, workers: int, ended: SimpleQueue[Worker], number: int
) -> Worker:
    environment = share_of(number, workers)
    environment["MLFLOW_TRACKING_URI"] = mlflow.get_tracking_uri()
    return Worker(number, worker_arguments(study, plan), environment, ended)


def _report_death(worker: Worker, study: optuna.Study) -> None:
    """Print how a worker has died. Raise `Mistake` if it found a user error."""
    code = worker.wait()
    if code == USER_ERROR:
        raise Mistake(worker.reason)
    reason = _timeout(study) if worker.trace else worker.reason or f"exit code {code}"
    say(f"worker {worker.number} has died ({reason})")


def _timeout(study: optuna.Study) -> str:
    return f"trial not done after {Goal.of(study).trial_timeout} s, the limit"


def _log_hang(worker: Worker, study: optuna.Study) -> None:
    """Log with the run of a worker's trial where that hung."""
    for trial in study.get_trials(deepcopy=False):
        if _was_lost_by(worker, trial):
            where = f"{_timeout(study)}; where each thread was:\n\n{worker.trace}"
            study_runs.log_hang(attributes.RUN_ID.of(study), trial.number, where)


def _was_lost_by(worker: Worker, trial: FrozenTrial) -> bool:
    """Return whether a trial failed because this worker, which ran it, has ended."""
    own = tuple(attributes.PROCESS.get(trial, ())) == worker.id
    return own and trial.state == TrialState.FAIL and not attributes.ERROR.get(trial, "")


def _end(workers: list[Worker]) -> None:
    """End workers that still run, each after it has ended its trial."""
    for worker in workers:
        worker.terminate()
    if workers:
        say(f"waiting for {len(workers)} workers to end their trials, {PATIENCE} s at most")
    for worker in workers:
        worker.wait(PATIENCE)
