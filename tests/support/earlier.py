"""The package at an earlier commit, and its commands."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT

COMMANDS = """
import json, sys
from pneumo.__main__ import main
sys.exit(any(main(command) for command in json.load(sys.stdin)))
"""


def unpack(commit: str, folder: Path) -> None:
    """Extract package and experiments of a commit; skip the test if it is not available."""
    wanted = ["git", "archive", commit, "pneumo", "experiments"]
    try:
        archive = subprocess.run(wanted, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", b"").decode().strip() or error
        pytest.skip(
            f"needs git and commit {commit[:7]}: use a whole clone, or make this one whole with "
            f"git fetch --unshallow ({why})"
        )
    with tarfile.open(fileobj=io.BytesIO(archive)) as file:
        file.extractall(folder, filter="data")


def give(code: Path, *commands: list[str]) -> None:
    """Run commands of the package in a folder, one after the other in their own process."""
    process = subprocess.run(
        [sys.executable, "-P", "-c", COMMANDS],
        env=os.environ | {"PYTHONPATH": str(code)},
        input=json.dumps(commands),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
