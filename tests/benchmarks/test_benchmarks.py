"""Each benchmark in its smallest form must run."""

import ast
import importlib
import os
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from unittest.mock import create_autospec, patch

import pytest

from tests.benchmarks import mutations
from tests.benchmarks.mutation_faults import FAULTS, INTERVAL_FAULTS, SPLIT_FAULTS, Fault
from tests.support.in_process import exit_code, model_server_here, python_in_this_process
from tests.support.paths import ROOT
from tests.support.stores import closed_connections, copy_stores
from tests.support.studies import without_pictures

FOLDER = ROOT / "tests" / "benchmarks"


def has_main(file: Path) -> bool:
    body = ast.parse(file.read_text()).body
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in body)


# The others are parts of these
COMMANDS = sorted(file.stem for file in FOLDER.glob("*.py") if has_main(file))
ON_SERVERS = ["faults", "thousand"]
# They start Python by `subprocess.run`, and nothing that they print here depends on a process
IN_PROCESS = ["ingest", "memory", "predict", "study", "workers"]


def smallest_form(name: str) -> str:
    """Return the arguments in a module's `SMOKE`, which every benchmark must have."""
    for node in ast.parse((FOLDER / f"{name}.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SMOKE":
            return ast.literal_eval(node.value)
    raise AssertionError(f'tests/benchmarks/{name}.py must say how it is tried: SMOKE = "--…"')


def once_for_each_module(process: Callable[..., dict]) -> Callable[..., dict]:
    """Return `study.process` with one run for each module; its other runs are copies of it."""
    results: dict[str, dict] = {}

    def run(module: str, options: object) -> dict:
        if module not in results:
            results[module] = process(module, options)
        return results[module]

    return run


def copy_of_finished(request: pytest.FixtureRequest) -> Callable[..., object]:
    """Return a function in place of `run_study`, which copies a study to the current folder."""
    outcome, original = request.getfixturevalue("finished")

    def copy(_: object) -> object:
        shutil.copy(original / "optuna.db", Path.cwd())
        copy_stores(original, Path.cwd())
        return outcome

    return copy


def make_cheaper(
    name: str,
    benchmark: ModuleType,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Replace slow parts of a benchmark that its smallest form need not run."""
    match name:
        case "overhead":
            small = {"image_size": 32, "epochs": 1}
            monkeypatch.setattr(benchmark, "CONFIG", benchmark.CONFIG.override(small))
            # In a process of its own, MLflow finds out what the peer's model imports
            monkeypatch.setattr("mlflow.keras.save.infer_pip_requirements", lambda *_, **__: [])
        case "page":
            monkeypatch.setattr(benchmark, "run_study", copy_of_finished(request))
        case "predict":
            monkeypatch.setattr(benchmark, "model_server", model_server_here)
        case "study":
            monkeypatch.setattr(benchmark, "process", once_for_each_module(benchmark.process))


def run_benchmark(name: str, words: str, capsys: pytest.CaptureFixture) -> None:
    """Run a benchmark with these arguments; it must end well, and print something."""
    benchmark = importlib.import_module(f"tests.benchmarks.{name}")
    # It may change its environment, too
    with (
        patch.dict(os.environ, PYTHONPATH=str(ROOT)),
        patch.object(sys, "argv", [name, *words.split()]),
        closed_connections(),
    ):
        code = code_of(benchmark.main)
    output = capsys.readouterr().out
    assert not code, output
    assert output


def code_of(main: Callable[[], None]) -> object:
    try:
        main()
    except SystemExit as ended:
        return ended.code
    return 0


def allowed_warnings(test: Callable) -> Callable:
    """Allow what programs may do: leave closing their connections to their end, and others."""
    for warning in (
        "ignore::RuntimeWarning",  # of statistics of only two trials, and of modules run again
        "ignore::ResourceWarning",
        "ignore::pytest.PytestUnraisableExceptionWarning",
    ):
        test = pytest.mark.filterwarnings(warning)(test)
    return test


@pytest.mark.slow
@allowed_warnings
@pytest.mark.parametrize("name", sorted({*COMMANDS} - {*ON_SERVERS, "mutations"}))
def test_the_smallest_form_of_a_benchmark_runs(name, request, store, monkeypatch, capsys):
    words = smallest_form(name)
    if "{" in words:  # it needs a finished study
        study = request.getfixturevalue("study")
        words = words.format(study=study.study.study_name, model=study.model_name)
    make_cheaper(name, importlib.import_module(f"tests.benchmarks.{name}"), request, monkeypatch)
    # From here on, because a study that other tests read needs its figures
    with without_pictures(), python_in_this_process() if name in IN_PROCESS else nullcontext():
        run_benchmark(name, words, capsys)


@pytest.mark.slow
@allowed_warnings
@pytest.mark.parametrize("name", ON_SERVERS)
def test_the_smallest_form_of_a_benchmark_runs_on_servers(
    name, servers, store, monkeypatch, capsys
):
    """Both benchmarks use the same servers. Otherwise each would start three of its own."""
    if name == "thousand" and not shutil.which("chromium"):
        pytest.skip("needs Chromium: apt install chromium")
    benchmark = importlib.import_module(f"tests.benchmarks.{name}")
    for starts, server in zip(("postgresql", "mlflow_server"), servers, strict=True):
        start = create_autospec(getattr(benchmark, starts), return_value=nullcontext(server))
        monkeypatch.setattr(benchmark, starts, start)
    run_benchmark(name, smallest_form(name), capsys)


@pytest.mark.slow
@allowed_warnings
def test_each_benchmark_is_a_program(capsys):
    for name in COMMANDS:
        assert exit_code("-m", f"tests.benchmarks.{name}", "--help") == 0
        assert "show this help message and exit" in capsys.readouterr().out


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
@allowed_warnings
def test_a_fault_that_no_test_notices_survives(monkeypatch, capsys):
    """The smallest form, whose fault is caught, uses the same copy of the project."""
    with mutations.copied_project() as project:
        monkeypatch.setattr(mutations, "copied_project", lambda: nullcontext(project))
        run_benchmark("mutations", smallest_form("mutations"), capsys)
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
