"""Whether the suite notices what a programmer may get wrong: one deliberate fault at a time.

    python -m tests.benchmarks.mutations [--only PATTERN]

The faults of `mutation_faults` are made in a copy of the files that git tracks, as they are now.
Each is tried with its own tests alone, which first have to pass without any fault.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.mutation_faults import FAULTS, Fault
from tests.support.paths import ROOT

SMOKE = "--only too.few"


@dataclass(frozen=True)
class Outcome:
    """What tests have said.

    Attributes:
        code: Exit code of pytest, or None if it did not end in time.
        failed: The first test that failed, or ''.
        output: What was printed.
        seconds: How long it took.
    """

    code: int | None
    failed: str
    output: str
    seconds: float

    @property
    def caught(self) -> bool:
        """Whether a test failed; no test, or one that cannot be imported, catches nothing."""
        return self.code == 1 and bool(self.failed)


@dataclass(frozen=True)
class Project:
    """A copy of the project, and the process that runs its tests: see `forked_tests`."""

    folder: Path
    runner: subprocess.Popen

    def run(self, files: Sequence[str], expression: str) -> Outcome:
        """Run tests until one fails.

        Args:
            files: Files of tests.
            expression: Which tests of these: see pytest's option `-k`.
        """
        output, temporary = (self.folder.parent / name for name in ("output", "temporary"))
        output.unlink(missing_ok=True)
        options = ["-n", "0", "-q", "-x", "--tb=short", "-rfE", "-p", "no:cacheprovider"]
        # Of a plugin that a library has imported before pytest could
        options += ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]
        options += [f"--basetemp={temporary}", "-k", expression]
        began = time.monotonic()
        print(json.dumps([[*options, *files], str(output)]), file=self.runner.stdin, flush=True)
        code = json.loads(self.runner.stdout.readline())
        seconds = time.monotonic() - began
        text = output.read_text(errors="replace")
        failed = re.search(r"^(?:FAILED|ERROR) \S+?::(\S+)", text, re.MULTILINE)
        return Outcome(code, failed[1] if failed else "", text, seconds)

    def run_with(self, fault: Fault) -> Outcome:
        """Make a fault, run its tests, and undo it."""
        file = self.folder / fault.file
        original, times = file.read_text(), file.stat()
        assert original.count(fault.old) == 1, f"{fault.what}: '{fault.old}' is not there once"
        file.write_text(original.replace(fault.old, fault.new))
        try:
            return self.run([fault.tests], fault.expression)
        finally:
            file.write_text(original)
            # By this Python knows that what it has compiled is of another text
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@contextmanager
def copied_project() -> Iterator[Project]:
    """Yield a copy of all files that git tracks, ready to run its tests."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    names = [name for name in os.fsdecode(listed.stdout).split("\0") if name]
    environment = {name: it for name, it in os.environ.items() if not name.startswith("PYTEST_")}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "project"
        for name in names:
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        with subprocess.Popen(
            [sys.executable, "-P", "tests/benchmarks/forked_tests.py"],
            cwd=folder,
            env=environment | {"PYTHONPATH": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as runner:
            yield Project(folder, runner)


def chosen(pattern: str) -> list[tuple[str, Fault]]:
    """Return the faults whose line matches a regular expression, each with its group."""
    every = [(group, fault) for group, faults in FAULTS.items() for fault in faults]
    return [it for it in every if re.search(pattern, f"{it[0]}: {it[1].what}")]


def main() -> None:
    """Print a line for each fault, and the sum."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="PATTERN", help="as 'gate' or 'split: a'")
    options = parser.parse_args()
    faults = chosen(options.only)
    if not faults:
        parser.error(f"--only must match a fault: got '{options.only}'")
    survivors, began = 0, time.monotonic()
    with copied_project() as project:
        files = dict.fromkeys(fault.tests for _, fault in faults)
        expressions = dict.fromkeys(f"({fault.expression})" for _, fault in faults)
        sound = project.run(list(files), " or ".join(expressions))
        if sound.code:
            sys.exit(f"without a fault the tests do not pass either\n{sound.output}")
        print(f"without a fault the tests pass: {sound.seconds:.1f} s", flush=True)
        for group, fault in faults:
            found = project.run_with(fault)
            verdict = f"caught by {found.failed}" if found.caught else "SURVIVED"
            print(f"{group}: {fault.what}: {verdict}, {found.seconds:.1f} s", flush=True)
            if not found.caught:
                survivors += 1
                print(f"pytest ended with {found.code}\n{found.output}", flush=True)
    caught, seconds = len(faults) - survivors, time.monotonic() - began
    print(f"{len(faults)} tried, {caught} caught, {survivors} survived, {seconds:.0f} s in all")
    sys.exit(survivors > 0)


if __name__ == "__main__":
    main()
