"""Processes of the command `worker`, started and watched by another process.

The module imports little, because a task of a Ray cluster needs nothing else.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from pneumo.runtime.console import echo
from pneumo.runtime.errors import ERROR_PREFIX, EXIT_USER_ERROR, UserError
from pneumo.runtime.process import ProcessId

TERMINATE_TIMEOUT = 30  # seconds that an interrupted worker has to end its trial
PROJECT_ROOT = Path(__file__).parents[3]
TIMED_OUT = "Timeout ("  # first word of `faulthandler`'s output


class Worker:
    """A process of the command `worker`, seen from the process that started it.

    Its output is printed here. Its standard input is a pipe. When this process ends, the pipe
    closes and the worker ends, too.

    Attributes:
        number: Number among the workers of this process, from 0.
        id: Identity of the process.
        reason: Its error message, or '' while it runs or if it printed none.
        trace: Traceback of each of its threads if it exceeded the study's `trial_timeout`,
            otherwise ''.
    """

    def __init__(
        self,
        number: int,
        arguments: list[str],
        environment: Mapping[str, str],
        ended: SimpleQueue["Worker"],
    ) -> None:
        """Start the process.

        Args:
            number: See the attribute.
            arguments: Arguments that `worker_arguments` returns.
            environment: Variables that differ from those of this process.
            ended: Queue for the worker once its process has closed its output.
        """
        self.number, self.reason, self.trace = number, "", ""
        # -P: without the current folder, where a file may have the name of a module
        command = [sys.executable, "-P", "-m", "pneumo", "worker", *arguments]
        path = os.pathsep.join(filter(None, (str(PROJECT_ROOT), os.environ.get("PYTHONPATH"))))
        inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"}
        self._process = subprocess.Popen(
            command,
            env={**inherited, "PYTHONPATH": path, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self.id = ProcessId.from_pid(self._process.pid)
        self._reader = Thread(target=self._read, args=(ended,), daemon=True)
        self._reader.start()

    def _read(self, ended: SimpleQueue["Worker"]) -> None:
        with self._process.stdout as output:
            for line in output:
                if self.trace or line.startswith(TIMED_OUT):
                    self.trace += line
                elif line.startswith(ERROR_PREFIX):
                    self.reason = line.removeprefix(ERROR_PREFIX).rstrip("\n")
                else:
                    echo(line.rstrip("\n"))
        ended.put(self)

    def terminate(self) -> None:
        """Ask the process to end its trial and exit."""
        self._process.terminate()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process.

        Args:
            timeout: Seconds after which the process is killed, or None.

        Returns:
            Its exit code.
        """
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
        code = self._process.wait()
        self._process.stdin.close()
        self._reader.join(1)  # a process that inherited the output may keep it open
        return code


class WorkerDiedError(Exception):
    """The error for a worker that has ended with an unexpected exit code."""


def run_worker(number: int, arguments: list[str], environment: Mapping[str, str]) -> None:
    """Run a worker until it ends, and print its output.

    Args:
        number: See `Worker`.
        arguments: See `Worker`.
        environment: See `Worker`.

    Raises:
        UserError: The worker found a user error.
        WorkerDiedError: The worker ended with another exit code than 0.
    """
    # Ray cancels a task by this signal, which programs ignore if a shell started them in the
    # background. In such a cluster, Ray would kill the workers before they can end their trials
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ended: SimpleQueue[Worker] = SimpleQueue()
    worker = Worker(number, arguments, environment, ended)
    try:
        # Ray cancels a task by an interrupt, which does not end a wait without a timeout
        while next_ended(ended) is None:
            pass
        code = worker.wait()
    except KeyboardInterrupt:
        worker.terminate()
        worker.wait(TERMINATE_TIMEOUT)
        raise
    if code == EXIT_USER_ERROR:
        raise UserError(worker.reason)
    if code:
        raise WorkerDiedError(worker.trace or worker.reason or f"exit code {code}")


def next_ended(ended: SimpleQueue[Worker]) -> Worker | None:
    """Return the next worker that has ended, or None if none ends within half a second."""
    try:
        return ended.get(timeout=0.5)
    except Empty:
        return None
