"""Each benchmark in its smallest form must run."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.benchmarks import mutations
from tests.benchmarks.mutation_faults import FAULTS, INTERVAL_FAULTS, SPLIT_FAULTS, Fault
from tests.support.paths import ROOT
from tests.support.services import programs_of_postgresql
from tests.support.stores import closed_connections

FOLDER = ROOT / "tests" / "benchmarks"


def has_main(file: Path) -> bool:
    body = ast.parse(file.read_text()).body
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in body)


# The others are parts of these
COMMANDS = sorted(file.stem for file in FOLDER.glob("*.py") if has_main(file))


def smallest_form(name: str) -> str:
    """Return the arguments in a module's `SMOKE`, which every benchmark must have."""
    for node in ast.parse((FOLDER / f"{name}.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SMOKE":
            return ast.literal_eval(node.value)
    raise AssertionError(f'tests/benchmarks/{name}.py must say how it is tried: SMOKE = "--…"')


def require_what_it_starts(name: str) -> None:
    """Skip the test if a server or browser of the benchmark is not installed."""
    if name in ("faults", "thousand"):
        programs_of_postgresql()
    if name == "thousand" and not shutil.which("chromium"):
        pytest.skip("needs Chromium: apt install chromium")


def once_for_each_module(process: Callable[..., dict]) -> Callable[..., dict]:
    """Return `study.process` with one run for each module; its other runs are copies of it."""
    results: dict[str, dict] = {}

    def run(module: str, options: object, pruning: bool = False) -> dict:
        if module not in results:
            results[module] = process(module, options, pruning=True)
        return results[module]

    return run


def exit_code(main: Callable[[], None]) -> object:
    try:
        main()
    except SystemExit as ended:
        return ended.code
    return 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of statistics of only two trials
# A program may leave closing its connections to its end
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", COMMANDS)
def test_the_smallest_form_of_a_benchmark_runs(name, request, store, monkeypatch, capsys):
    require_what_it_starts(name)
    words = smallest_form(name)
    if "{" in words:  # it needs a finished study
        study = request.getfixturevalue("study")
        words = words.format(study=study.study.study_name, model=study.model_name)
    monkeypatch.setattr(sys, "argv", [name, *words.split()])
    benchmark = importlib.import_module(f"tests.benchmarks.{name}")
    if name == "study":
        monkeypatch.setattr(benchmark, "process", once_for_each_module(benchmark.process))
    # It may change its environment, too
    with patch.dict(os.environ, PYTHONPATH=str(ROOT)), closed_connections():
        code = exit_code(benchmark.main)
    output = capsys.readouterr().out
    assert not code, output
    assert output


@pytest.mark.slow
def test_each_benchmark_is_a_program():
    code = """
import runpy, sys
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    try:
        runpy.run_module(f"tests.benchmarks.{name}", run_name="__main__")
    except SystemExit as ended:
        print("ended:", name, ended.code)
"""
    command = [sys.executable, "-c", code, *COMMANDS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert [line for line in done.stdout.splitlines() if line.startswith("ended: ")] == [
        f"ended: {name} 0" for name in COMMANDS
    ], done.stderr
    assert done.stdout.count("show this help message and exit") == len(COMMANDS)


def is_up_to_date(fault: Fault) -> bool:
    """Whether what a fault edits is there once, is code afterwards, and its tests are there."""
    text, tests = ((ROOT / it).read_text() for it in (fault.file, fault.tests))
    ast.parse(text.replace(fault.old, fault.new))
    name = fault.expression.partition(" ")[0]
    named = re.search(rf"^def \w*{name}", tests, re.MULTILINE)
    return text.count(fault.old) == 1 and fault.old != fault.new and bool(named)


def test_the_faults_of_mutations_are_up_to_date():
    faults = [fault for group in FAULTS.values() for fault in group]
    assert set(FAULTS) == {
        *("split", "intervals", "gate", "feature cache", "study recovery"),
        *("selection among trials", "hospital data", "budget"),
    }
    assert len({(it.file, it.old, it.new) for it in faults}) == len(faults) >= 40
    assert [fault.what for fault in faults if not is_up_to_date(fault)] == []


@pytest.mark.slow
def test_a_fault_that_no_test_notices_survives(monkeypatch, capsys):
    # Tests of another module, which cannot notice it
    others = INTERVAL_FAULTS[0]
    unnoticed = replace(SPLIT_FAULTS[0], tests=others.tests, expression=others.expression)
    monkeypatch.setattr(mutations, "FAULTS", {"split": [unnoticed]})
    monkeypatch.setattr(sys, "argv", ["mutations"])
    with pytest.raises(SystemExit) as ended:
        mutations.main()
    assert ended.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(f"split: {unnoticed.what}: SURVIVED" in line for line in lines)
    assert lines[-1].startswith("1 tried, 0 caught, 1 survived, ")
