"""Launcher of `worker` processes that search one study on this machine."""

from functools import partial
from queue import SimpleQueue

import mlflow
import optuna
from joblib import cpu_count
from optuna.trial import FrozenTrial, TrialState

from pneumo.runtime import signals
from pneumo.runtime.console import echo
from pneumo.runtime.errors import EXIT_USER_ERROR, StudyFailedError, UserError
from pneumo.runtime.machine import visible_gpus
from pneumo.tracking import study_runs
from pneumo.tuning import attributes
from pneumo.tuning.launchers.progress import StudyProgress
from pneumo.tuning.launchers.worker_process import TERMINATE_TIMEOUT, Worker, next_ended
from pneumo.tuning.limits import (
    MAX_CONSECUTIVE_FAILURES,
    FailureCounter,
    StudyLimits,
    count_finished_trials,
    require_no_repeated_failure,
)
from pneumo.tuning.spec import StudySpec
from pneumo.tuning.study import prepare_resume


def worker_arguments(study: optuna.Study, spec: StudySpec) -> list[str]:
    """Return the arguments of the command `worker` for a worker that another process starts.

    Args:
        study: The study.
        spec: Search of the study.
    """
    arguments = ["--driven", "true", "--study", study.study_name]
    for name, value in spec.dataset.arguments.items():
        arguments += [f"--{name}", value]
    if ":" in spec.base.to_params()["weights"]:
        arguments += ["--weights", spec.base.weights]
    return arguments


def worker_environment(number: int, workers: int) -> dict[str, str]:
    """Return the environment variables that assign a worker its part of the machine.

    A worker gets an equal part of the cores, at least one. If there are GPUs, it gets one of them,
    in turn.

    Args:
        number: Number of the worker, from 0.
        workers: Number of workers.
    """
    environment = thread_limit_environment(max(1, cpu_count() // workers))
    if gpus := visible_gpus():
        environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    return environment


def thread_limit_environment(count: int) -> dict[str, str]:
    """Return the environment variables that limit a process to `count` threads."""
    # joblib counts cores by the first variable, and so do this package's batch functions
    names = "LOKY_MAX_CPU_COUNT", "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"
    return {name: str(count) for name in (*names, "TF_NUM_INTEROP_THREADS")}


def launch(study: optuna.Study, spec: StudySpec, workers: int, progress: StudyProgress) -> None:
    """Search a study in several processes until its limits are reached, and wait for them.

    A worker may die, or end itself because its trial exceeds the limits' `trial_timeout`. Its trial
    is then lost and the worker is replaced.

    Args:
        study: A study whose `StudyLimits` are set.
        spec: Search of the study.
        workers: Number of processes.
        progress: Display of the study, updated while it runs.

    Raises:
        UserError: A worker found a user error.
        StudyFailedError: Three trials in a row failed with the same type of error, or three workers
            died without a finished trial in between.
    """
    deaths, ended = FailureCounter(lambda: count_finished_trials(study)), SimpleQueue()
    start = partial(_start, study, spec, workers, ended)
    running = [start(number) for number in range(workers)]
    try:
        while running:
            progress.update()
            worker = next_ended(ended)
            # A worker that received the same signal must not be replaced
            signals.raise_if_interrupted()
            if worker is None:
                continue
            running.remove(worker)
            if worker.wait() == 0:
                continue
            _report_death(worker, study)
            prepare_resume(study, spec)
            if worker.trace:
                _log_hang(worker, study)
            require_no_repeated_failure(study)
            if deaths.add():
                raise StudyFailedError(
                    f"{MAX_CONSECUTIVE_FAILURES} workers died without finishing a trial. See their "
                    "output above. If the memory is too small, use fewer workers."
                )
            if not StudyLimits.from_study(study).is_reached(study):
                running.append(start(worker.number))
    finally:
        _end(running)


def _start(
    study: optuna.Study, spec: StudySpec, workers: int, ended: SimpleQueue[Worker], number: int
) -> Worker:
    environment = worker_environment(number, workers)
    environment["MLFLOW_TRACKING_URI"] = mlflow.get_tracking_uri()
    return Worker(number, worker_arguments(study, spec), environment, ended)


def _report_death(worker: Worker, study: optuna.Study) -> None:
    """Print how a worker has died; raise `UserError` if it found a user error."""
    code = worker.wait()
    if code == EXIT_USER_ERROR:
        raise UserError(worker.reason)
    reason = _timeout(study) if worker.trace else worker.reason or f"exit code {code}"
    echo(f"worker {worker.number} died ({reason})")


def _timeout(study: optuna.Study) -> str:
    return f"trial not finished after {StudyLimits.from_study(study).trial_timeout} s, the limit"


def _log_hang(worker: Worker, study: optuna.Study) -> None:
    """Log where a worker's trial hung, to the run of the trial."""
    for trial in study.get_trials(deepcopy=False):
        if _was_lost_by(worker, trial):
            report = f"{_timeout(study)}. The stack of each thread:\n\n{worker.trace}"
            study_runs.log_hang_traceback(attributes.RUN_ID.read(study), trial.number, report)


def _was_lost_by(worker: Worker, trial: FrozenTrial) -> bool:
    """Return whether a trial failed because this worker, which ran it, has ended."""
    ran_here = tuple(attributes.PROCESS.get(trial, ())) == worker.id
    return ran_here and trial.state == TrialState.FAIL and not attributes.ERROR.get(trial, "")


def _end(workers: list[Worker]) -> None:
    """Terminate workers that still run, and wait until each has ended its trial."""
    for worker in workers:
        worker.terminate()
    if workers:
        echo(
            f"waiting at most {TERMINATE_TIMEOUT} s for {len(workers)} workers to end their trials"
        )
    for worker in workers:
        worker.wait(TERMINATE_TIMEOUT)
