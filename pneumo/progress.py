"""How far a study has come, as Optuna's storage has it, whoever runs the trials."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Self

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table

from pneumo import console
from pneumo.config import SCORES
from pneumo.process import ProcessId
from pneumo.study import COUNTED, STORE_ERRORS, Goal, best_of, last_value

ENDED = "its process has ended"  # the error of a trial that could not store one


class StudyProgress:
    """Display of a study on a terminal, in one place; elsewhere a line for each trial that ends.

    On a terminal only trials that fail get a line of their own. Trials of workers on other
    machines appear, too.
    """

    def __init__(
        self,
        study: optuna.Study,
        workers: int = 1,
        after_trials: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin with the study as it is.

        Args:
            study: A study that has its goal.
            workers: Number of trials that run at the same time, by which the time left is
                estimated.
            after_trials: Called by `update` if trials have ended since it was called before.
        """
        self._study, self._workers, self._after_trials = study, workers, after_trials
        self._goal, self._objective = Goal.of(study), study.user_attrs["objective"]
        self._trials = study.get_trials(deepcopy=False)
        self._told = {trial.number for trial in self._trials if trial.state.is_finished()}
        self._seconds: list[float] = []  # of each trial that has ended since
        self._last_end = 0.0  # on the monotonic clock
        self._live = Live(
            get_renderable=self._drawing,
            console=console.console,
            refresh_per_second=2,
            redirect_stderr=sys.stderr.isatty(),
        )

    def __enter__(self) -> Self:
        if console.draws():
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.update()
        self._workers = 0  # what stays on the terminal is what has been reached
        self._live.stop()

    def update(self) -> None:
        """Read the study's trials, and tell of those that have ended.

        A storage that does not answer is asked again the next time.
        """
        with suppress(*STORE_ERRORS):
            self._trials = self._study.get_trials(deepcopy=False)
            ended = [it for it in self._trials if it.state.is_finished()]
            if new := [it for it in ended if it.number not in self._told]:
                for trial in new:
                    self._tell(trial)
                self._after_trials()

    def _tell(self, trial: FrozenTrial) -> None:
        self._told.add(trial.number)
        failed = trial.state == TrialState.FAIL
        if failed or not console.draws():
            console.say(describe(trial))
        if not failed:
            self._seconds.append(trial.duration.total_seconds())
            self._last_end = time.monotonic()

    def _drawing(self) -> Group:
        above = Table.grid(Column(), Column(no_wrap=True), padding=(0, 2))
        total, done = self._goal.trials, sum(it.state in COUNTED for it in self._trials)
        # As wide whatever is said beside it, for which there is room in 80 columns
        width = min(30, max(4, console.console.width - 48))
        bar = ProgressBar(total, done, width=width)
        above.add_row(bar, f"{done} of {total} trials{self._time_left(total - done)}")
        columns = (Column(min_width=width, no_wrap=True) for width in (0, len(self._score(0)), 0))
        below = Table.grid(*columns, padding=(0, 2))
        for row in self._rows():
            below.add_row(*row)
        return Group(above, below)

    def _rows(self) -> Iterator[tuple[str, str, str]]:
        best = best_of(self._trials)
        if best:
            yield "best", self._score(best.value), f"trial {best.number}"
        else:
            yield "best", "none yet", ""
        running = [it for it in self._trials if it.state == TrialState.RUNNING]
        for trial in running if self._workers else []:
            score = last_value(trial)
            epoch = f"epoch {trial.last_step}" if trial.last_step else "starting"
            shown = "" if score is None else self._score(score)
            yield f"trial {trial.number}", shown, f"{epoch}{_process_of(trial)}"

    def _score(self, value: float) -> str:
        return f"{SCORES[self._objective]} {value:.4f}"

    def _time_left(self, trials: int) -> str:
        """Return how long the rest takes at the speed so far; '' where that is not known."""
        if not self._seconds or trials <= 0 or not self._workers:
            return ""
        each = sum(self._seconds) / len(self._seconds) / self._workers
        seconds = each * trials - (time.monotonic() - self._last_end)
        if self._goal.deadline:
            seconds = min(seconds, self._goal.deadline - time.time())
        return f", {_about(seconds)} left"


def _process_of(trial: FrozenTrial) -> str:
    """Return which process runs a trial, if it is not this one."""
    process = ProcessId.from_values(trial.user_attrs.get("process", ()))
    here = ProcessId.current()
    if not process.pid or process == here:
        return ""
    host = "" if process.machine == here.machine else f" on {process.host}"
    return f", process {process.pid}{host}"


def describe(trial: FrozenTrial) -> str:
    """Return what a log says of a trial that has ended."""
    if trial.state == TrialState.FAIL:
        return f"trial {trial.number:3d}  failed: {trial.user_attrs.get('error', ENDED)}"
    state = "pruned" if trial.state == TrialState.PRUNED else ""
    objective = trial.user_attrs["config"]["objective"]
    score = f"{SCORES[objective]} {last_value(trial):.4f} {state:6}"
    took = f"{trial.duration.seconds:4d} s"
    return f"trial {trial.number:3d}  {score}  {took}  {trial.user_attrs['name']}"


def _about(seconds: float) -> str:
    """Return a time in so few words that it does not change all the time."""
    hours, minutes = divmod(round(max(0, seconds) / 60), 60)
    if hours:
        return f"about {hours} h {minutes} min"
    return f"about {minutes} min" if minutes else "less than a minute"
