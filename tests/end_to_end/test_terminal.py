"""Output of a study for a person, on real terminals and in a log."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.paths import ROOT
from tests.support.terminal import Seen, watch

pytestmark = pytest.mark.slow

STUDY = """
import time
from datetime import timedelta
import optuna
from pneumo.runtime.console import echo
from pneumo.runtime.console import track
from pneumo.runtime.process import ProcessId
from pneumo.tuning.launchers.progress import StudyProgress

optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.create_study(direction="maximize")
study.set_user_attr("objective", "val_auc")
study.set_user_attr("goal", dict(trials=20))
known = dict(name="as in a log", config=dict(objective="val_auc"))

def pause():
    progress.update()
    time.sleep({pause})

def begin(*process, **attributes):
    trial = study.ask()
    trial.set_user_attr("process", process or ProcessId.current())
    for name, value in attributes.items():
        trial.set_user_attr(name, value)
    return trial

def add(score, seconds):
    trial = optuna.trial.create_trial(value=score, user_attrs=known)
    trial.datetime_complete = trial.datetime_start + timedelta(seconds=seconds)
    study.add_trial(trial)

for score in 0.5, 0.6, 0.7, 0.91234, 0.8:
    add(score, 1)
echo("study night")
with StudyProgress(study) as progress:
    pause()
    trial = begin(error="for a reason")
    if {workers} > 1:
        begin("elsewhere", "boot", "namespace", 4711, "1").report(0.5, 1)
    pause()
    trial.report(0.87654, 2)
    pause()
    add(0.98765, 190)
    progress.update()
    echo("a note")
    pause()
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    progress.update()
    for _ in track([1, 2], 2, "Decoding"):
        pause()
echo("the end")
"""
UNKNOWN = "trials -:--:-- left"  # until two trials have ended
COLOURS = re.compile("[349][0-79]|10[0-7]")


def study(workers: int = 1, pause: float = 0.8, **other) -> Seen:
    """Resume a study on a terminal that is refreshed twice a second."""
    code = STUDY.format(workers=workers, pause=pause)
    seen = watch("-c", code, **other)
    assert (seen.code, seen.errors) == (0, "")
    return seen


WATCHED = {
    "one": {},
    "two": {"workers": 2},
    "narrow": {"workers": 2, "columns": 40, "NO_COLOR": "1"},
}


@pytest.fixture(scope="module")
def watched() -> dict[str, Seen]:
    """Watch studies on several terminals at the same time, because they mostly pause."""
    with ThreadPoolExecutor(len(WATCHED)) as together:
        found = together.map(lambda options: study(**options), WATCHED.values())
        return dict(zip(WATCHED, found, strict=True))


def moments(seen: Seen) -> list[list[str]]:
    """Return the screens below and above the note, without bars, in order."""
    found = []
    for screen in seen.screens:
        lines = [line.strip("━╸╺ ") for line in screen.splitlines()]
        if not found or found[-1] != lines:
            found.append(lines)
    return found


def test_a_study_on_a_terminal(watched):
    seen = watched["one"]
    shown = moments(seen)
    begun = ["study night", f"5 of 20 {UNKNOWN}", "best     val AUC 0.9123  trial 3"]
    assert [*begun[:2], "best  val AUC 0.9123  trial 3"] in shown
    assert [*begun, "trial 5                  starting"] in shown
    assert [*begun, "trial 5  val AUC 0.8765  epoch 2"] in shown
    left = f"6 of 20 {UNKNOWN}"
    at_work = [left, "best     val AUC 0.9877  trial 6", "trial 5  val AUC 0.8765  epoch 2"]
    assert ["study night", "a note", *at_work] in shown
    above = ["study night", "a note", "trial   5  failed: for a reason"]
    best = "best  val AUC 0.9877  trial 6"
    decoding = [
        screen for screen in shown if screen[: len(above)] == above and "Decoding" in screen[-1]
    ]
    assert decoding
    assert {tuple(lines[3:5]) for lines in decoding} == {(left, best)}
    # what has been reached stays, and nothing of what was at work
    assert shown[-1] == [*above, "6 of 20 trials", best, "the end"]
    assert seen.written.count("\x1b[?25l") == seen.written.count("\x1b[?25h")  # the cursor is back


def test_each_trial_has_a_line(watched):
    shown = moments(watched["two"])
    states = [lines[-4:] for lines in shown]
    begun = [f"5 of 20 {UNKNOWN}", "best     val AUC 0.9123  trial 3"]
    other = "trial 6  val AUC 0.5000  epoch 1, process 4711 on elsewhere"
    assert [*begun, "trial 5                  starting", other] in states
    assert [*begun, "trial 5  val AUC 0.8765  epoch 2", other] in states
    best = "best     val AUC 0.9877  trial 7"
    left = f"6 of 20 {UNKNOWN}"
    assert [left, best, "trial 5  val AUC 0.8765  epoch 2", other] in states
    assert shown[-1][-3:] == ["6 of 20 trials", "best  val AUC 0.9877  trial 7", "the end"]


def longest(seen: Seen) -> int:
    return max(len(line) for screen in seen.screens for line in screen.splitlines())


def test_no_line_is_too_long_and_the_bar_keeps_its_place(watched):
    for name in ("one", "two"):
        seen = watched[name]
        assert longest(seen) <= 80
        lines = [line for screen in seen.screens for line in screen.splitlines()]
        beside = {re.search(r"\d+ of 20", line).start() for line in lines if " of 20" in line}
        assert beside == {32}
    assert longest(watched["narrow"]) <= 40


def test_it_is_drawn_seldom_and_at_once(watched):
    seen = watched["one"]
    assert len(seen.screens) < 25  # in four seconds
    for screen in seen.screens[1:]:  # never half of it
        assert " trials" in screen
        assert "best " in screen


def test_no_color_is_printed_if_it_is_disabled(watched):
    assert any(map(COLOURS.fullmatch, watched["one"].styles))
    seen = watched["narrow"]
    assert not list(filter(COLOURS.fullmatch, seen.styles))
    assert "best  val AUC 0.9877  trial 7" in seen.screens[-1]


PLAIN = (
    "study night\ntrial   {}  val AUC 0.9877          190 s  as in a log\na note\n"
    "trial   5  failed: for a reason\nDecoding: 2 images\nthe end\n"
)


def test_a_dumb_terminal_gets_the_lines_of_a_log():
    written = study(pause=0, TERM="dumb").written
    assert written.replace("\r\n", "\n") == PLAIN.format(6)


def test_a_log():
    code = STUDY.format(workers=2, pause=0)
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (process.stdout, process.stderr) == (PLAIN.format(7), "")
