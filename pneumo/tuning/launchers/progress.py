"""Progress of a study, read from Optuna's storage: trials of all processes and machines."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Self

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TimeRemainingColumn
from rich.table import Column, Table

from pneumo.runtime.console import console, echo, supports_live_display
from pneumo.runtime.process import ProcessId
from pneumo.training.config import OBJECTIVE_LABELS
from pneumo.tuning import attributes
from pneumo.tuning.limits import FINISHED_STATES, StudyLimits
from pneumo.tuning.selection import best_trial_of, final_score
from pneumo.tuning.storage import STORE_ERRORS

NO_BEST = ("best", "none yet", "")
ENDED = "its process has ended"  # error of a trial that could not store one


class StudyProgress:
    """A live display of a study on a terminal; elsewhere, a line for each trial that ends.

    On a terminal only failed trials get a line of their own. Trials of workers on other machines
    appear, too.
    """

    def __init__(
        self,
        study: optuna.Study,
        after_trials: Callable[[], None] = lambda: None,
    ) -> None:
        """Start with the present state of the study.

        Args:
            study: A study whose `StudyLimits` are set.
            after_trials: Called by `update` if trials have ended since its previous call.
        """
        self._study, self._after_trials = study, after_trials
        self._objective = attributes.OBJECTIVE.read(study)
        self._trials = study.get_trials(deepcopy=False)
        self._reported = {trial.number for trial in self._trials if trial.state.is_finished()}
        self._limits, self._begin = StudyLimits.from_study(study), time.time()
        self._bar = Progress(
            BarColumn(30),
            "{task.fields[trials]} trials",
            TimeRemainingColumn(),
            "left",
            speed_estimate_period=math.inf,  # a trial may take an hour
        )
        self._task = self._bar.add_task("", **self._bar_fields())
        self._live = Live(
            get_renderable=self._render,
            console=console,
            refresh_per_second=2,
            redirect_stderr=sys.stderr.isatty(),
        )

    def __enter__(self) -> Self:
        if supports_live_display():
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.update()
        self._trials = [trial for trial in self._trials if trial.state != TrialState.RUNNING]
        self._bar.columns = self._bar.columns[:2]  # without the time left
        self._live.stop()

    def update(self) -> None:
        """Read the study's trials, and report those that have ended.

        If the storage does not answer, the next call reads them.
        """
        with suppress(*STORE_ERRORS):
            self._trials = self._study.get_trials(deepcopy=False)
            self._bar.update(self._task, **self._bar_fields())
            ended = [trial for trial in self._trials if trial.state.is_finished()]
            if new := [trial for trial in ended if trial.number not in self._reported]:
                for trial in new:
                    self._report(trial)
                self._after_trials()

    def _bar_fields(self) -> dict[str, Any]:
        """Return the trials that are done, or the time that has passed if only that is limited."""
        done = sum(trial.state in FINISHED_STATES for trial in self._trials)
        if (total := self._limits.trials) is not None:
            count = f"{done:{len(str(total))}} of {total}"
            return {"completed": done, "total": total, "trials": count}
        end = self._limits.end or self._limits.deadline
        total = end and end - self._begin
        return {"completed": time.time() - self._begin, "total": total, "trials": f"{done}"}

    def _report(self, trial: FrozenTrial) -> None:
        self._reported.add(trial.number)
        if trial.state == TrialState.FAIL or not supports_live_display():
            echo(describe(trial))

    def _render(self) -> Group:
        columns = (
            Column(min_width=width, no_wrap=True) for width in (0, len(self._format_score(0)), 0)
        )
        table = Table.grid(*columns, padding=(0, 2))
        for row in (self._best_row(), *self._running_rows()):
            table.add_row(*row)
        return Group(self._bar, table)

    def _best_row(self) -> tuple[str, str, str]:
        best = best_trial_of(self._trials)
        return ("best", self._format_score(best.value), f"trial {best.number}") if best else NO_BEST

    def _running_rows(self) -> Iterator[tuple[str, str, str]]:
        for trial in self._trials:
            if trial.state == TrialState.RUNNING:
                score = final_score(trial)
                epoch = f"epoch {trial.last_step}" if trial.last_step else "starting"
                score_text = "" if score is None else self._format_score(score)
                yield f"trial {trial.number}", score_text, f"{epoch}{_process_of(trial)}"

    def _format_score(self, value: float) -> str:
        return f"{OBJECTIVE_LABELS[self._objective]} {value:.4f}"


def _process_of(trial: FrozenTrial) -> str:
    """Describe the process that runs a trial, or return '' if it is this one."""
    process = ProcessId.from_values(attributes.PROCESS.get(trial, ()))
    own_process = ProcessId.current()
    if not process.pid or process == own_process:
        return ""
    host = "" if process.machine == own_process.machine else f" on {process.host}"
    return f", process {process.pid}{host}"


def describe(trial: FrozenTrial) -> str:
    """Return the line of the log about a trial that has ended."""
    if trial.state == TrialState.FAIL:
        return f"trial {trial.number:3d}  failed: {attributes.ERROR.get(trial, ENDED)}"
    state = "pruned" if trial.state == TrialState.PRUNED else ""
    objective = attributes.CONFIG.read(trial)["objective"]
    score = f"{OBJECTIVE_LABELS[objective]} {final_score(trial):.4f} {state:6}"
    duration = f"{trial.duration.seconds:4d} s"
    return f"trial {trial.number:3d}  {score}  {duration}  {attributes.NAME.read(trial)}"
