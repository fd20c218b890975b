"""Untrusted inputs, each in a command process of its own, and their results.

    python -m tests.benchmarks.bad_input

The cases are those of `tests/bad/`, here as processes, with their time and memory.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.bad import Case
from tests.bad.cases import CASES, MODELS
from tests.bad.images import CASES as IMAGES
from tests.support.paths import ROOT
from tests.support.stores import store_in

MOST_SECONDS, MOST_MEBIBYTES = 30, 2048
SMOKE = "--inputs 1"

# Starts a command from a small process: Linux counts what the one who starts it has, too
WEIGHED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
with open("kibibytes", "w") as file:
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=file)
sys.exit(code)
"""


def given(case: Case) -> tuple[str, float, float]:
    """Return a command's errors with an input, its seconds and its maximum MiB."""
    with tempfile.TemporaryDirectory() as name, store_in(Path(name)):
        arguments = case.make(Path(name))
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", WEIGHED, sys.executable, "-m", "pneumo", *arguments]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        took, mebibytes = time.monotonic() - began, int(Path("kibibytes").read_text()) / 1024
        said = done.stdout, done.stderr
        wrong = case.verdict(done.returncode, *said)
        if case.refused:
            print(f"  {said[1].strip()}")
    if not wrong and (took > MOST_SECONDS or mebibytes > MOST_MEBIBYTES):
        wrong = f"{took:.0f} s and {mebibytes:.0f} MiB"
    return wrong, took, mebibytes


def main() -> None:
    """Print a line for each input, and the number of correct results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, help="the first ones (default: all)")
    options = parser.parse_args()
    counts, seconds, memory = Counter(), [], []
    cases = [*CASES, *IMAGES, *MODELS][: options.inputs]
    for case in cases:
        wrong, took, mebibytes = given(case)
        seconds.append(took)
        memory.append(mebibytes)
        outcome = "misbehaved" if wrong else "refused" if case.refused else "handled"
        counts[outcome] += 1
        print(f"{outcome:10} {case.name}: {took:.1f} s, {mebibytes:.0f} MiB {wrong}", flush=True)
    print(
        f"inputs tried {len(cases)}, refused with a clear message {counts['refused']}, handled "
        f"{counts['handled']}, misbehaved {counts['misbehaved']}; at most {max(seconds):.0f} s and "
        f"{max(memory):.0f} MiB"
    )


if __name__ == "__main__":
    main()
