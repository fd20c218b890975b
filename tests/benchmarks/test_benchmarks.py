"""Each benchmark in its smallest form: it must run, whatever it measures."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.services import programs_of_postgresql

FOLDER = ROOT / "tests" / "benchmarks"


def has_main(file: Path) -> bool:
    body = ast.parse(file.read_text()).body
    return any(isinstance(it, ast.FunctionDef) and it.name == "main" for it in body)


# The others are parts of these
COMMANDS = sorted(file.stem for file in FOLDER.glob("*.py") if has_main(file))


def smallest_form(name: str) -> str:
    """The arguments in a module's `SMOKE`; its lack is an error, so that none is forgotten."""
    for it in ast.parse((FOLDER / f"{name}.py").read_text()).body:
        if isinstance(it, ast.Assign) and ast.unparse(it.targets[0]) == "SMOKE":
            return ast.literal_eval(it.value)
    raise AssertionError(f'tests/benchmarks/{name}.py must say how it is tried: SMOKE = "--…"')


def require_what_it_starts(name: str) -> None:
    """Skip the test where a server or a browser that the benchmark starts is not installed."""
    if name in ("faults", "thousand"):
        programs_of_postgresql()
    if name == "thousand" and not shutil.which("chromium"):
        pytest.skip("needs Chromium: apt install chromium")


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_the_smallest_form_of_a_benchmark_runs(name, request, store):
    require_what_it_starts(name)
    words = smallest_form(name)
    if "{study}" in words:  # of a finished study
        words = words.format(study=request.getfixturevalue("study").study.study_name)
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", *words.split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout
