"""Consistency of MLproject, conda.yaml and README.md."""

import importlib.metadata
import os
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from pneumo.commands.options.parser import parse
from tests.support.paths import ROOT

PROJECT = yaml.safe_load((ROOT / "MLproject").read_text())
CONDA = yaml.safe_load((ROOT / "conda.yaml").read_text())
OTHERS = {
    "budget": "600",
    "trials": "7",
    "workers": "7",
    "timeout": "7",
    "split": "val",
    "sensitivity": "0.9",
}
OTHERS |= {"prevalence": "0.1", "net_benefit_at": "0.2", "recalibrate": "0.3"}
OTHERS |= {
    "keep_models": "7",
    "margin": "0.5",
    "sensitivity_margin": "0.5",
    "rollback": "True",
    "explain": "True",
    "out_of_range": "refuse",
    "preprocessing_skew": "True",
    "launcher": "ray",
}
REQUIRED = "given"  # stands for a parameter without a default
README = (ROOT / "README.md").read_text()


def defaults(entry: dict) -> dict[str, str]:
    parameters = entry.get("parameters", {}).items()
    return {name: spec.get("default", REQUIRED) for name, spec in parameters}


def parsed(entry: dict, values: dict[str, str]) -> dict[str, str]:
    """What the entry point's command, filled in as MLflow does it, means to the parser.

    '' stands for what is not given.
    """
    command = entry["command"].format(**{k: shlex.quote(v) for k, v in values.items()})
    program, *arguments = shlex.split(command)[1:]
    assert (program, arguments[:2]) == ("python", ["-m", "pneumo"])
    command, options = parse(arguments[2:])
    given = options.model_dump()
    fields = dict.fromkeys(options.run_fields, "") | given.pop("overrides", {})
    texts = {name: "" if value is None else str(value) for name, value in given.items()}
    return {"command": command, **fields, **texts}


def test_the_entry_points():
    assert set(PROJECT["entry_points"]) == {
        *(
            "main",
            "tune",
            "worker",
            "train",
            "evaluate",
            "promote",
            "predict",
            "explore",
            "prepare",
            "test",
        ),
    }
    assert PROJECT["entry_points"]["main"] == PROJECT["entry_points"]["tune"]


@pytest.mark.parametrize("name", PROJECT["entry_points"])
def test_every_parameter_reaches_a_flag(name):
    entry = PROJECT["entry_points"][name]
    as_given = parsed(entry, defaults(entry))
    assert as_given["command"] == ("tune" if name == "main" else name)
    for parameter, default in defaults(entry).items():
        assert as_given[parameter].lower() == default.lower()
        other = OTHERS.get(parameter, "other value")
        changed = parsed(entry, defaults(entry) | {parameter: other})
        assert {k for k in changed if changed[k] != as_given[k]} == {parameter}
        assert changed[parameter] == other


def test_the_environment_is_pinned():
    *conda, pip = CONDA["dependencies"]
    assert conda == ["python=3.11", "pip"]
    assert all(re.fullmatch(r"[\w-]+(\[[\w-]+\])?==[\d.]+", line) for line in pip["pip"])


def test_each_package_has_its_reason():
    lines = [line for line in (ROOT / "conda.yaml").read_text().splitlines() if "==" in line]
    assert lines
    assert all(re.search(r"  # \w", line) for line in lines)


def test_the_readme_names_the_same_mlflow():
    [pin] = [line for line in CONDA["dependencies"][-1]["pip"] if line.startswith("mlflow==")]
    named = re.findall(r"mlflow==[\d.]+", README)
    assert named
    assert set(named) == {pin}


def test_the_readme_names_the_line_that_installs_cuda():
    [pin] = [
        package for package in CONDA["dependencies"][-1]["pip"] if package.startswith("tensorflow")
    ]
    version = pin.partition("==")[2]
    assert f"`tensorflow[and-cuda]=={version}` in place of `tensorflow=={version}`" in README
    needed = importlib.metadata.requires("tensorflow")
    assert any("cudnn" in package and 'extra == "and-cuda"' in package for package in needed)


def test_style():
    for check in (["check"], ["format", "--check"]):
        process = subprocess.run(
            [sys.executable, "-m", "ruff", *check, str(ROOT)], capture_output=True, text=True
        )
        assert process.returncode == 0, process.stdout


def test_the_tests_of_a_group_run_in_one_process(request):
    """xdist reads the group from the end of a test's name, where it has put it itself."""
    grouped = [it for it in request.session.items if it.get_closest_marker("xdist_group")]
    if "PYTEST_XDIST_WORKER" not in os.environ or not grouped:
        pytest.skip("needs two processes and slow tests")
    for item in grouped:
        assert item.nodeid.endswith(f"@{item.get_closest_marker('xdist_group').args[0]}")
