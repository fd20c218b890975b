"""Untrusted inputs: how each one is made, and what must happen with it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One input.

    `make(folder)` makes the input in an empty working directory, with the stores there as the
    current ones, and returns the arguments of a command. For a rejected input the command ends with
    exit code 2 and one line that matches the pattern `says`. For a handled input it ends with exit
    code 0, and its output matches `says`.
    """

    name: str
    make: Callable[[Path], list[str]]
    says: str
    refused: bool = True

    def verdict(self, code: int, output: str, errors: str) -> str:
        """Describe what the command did wrong, or return '' if it did nothing wrong."""
        if code != (2 if self.refused else 0):
            return f"exit code {code}: {errors[-500:]}"
        if not re.search(self.says, errors if self.refused else output):
            return f"says something else: {errors if self.refused else output[-500:]}"
        if self.refused and not re.fullmatch(r"pneumo: [^\n]+\n", errors):
            return f"more than one line: {errors[-500:]}"
        return "" if self.refused or not errors else f"complains: {errors[-500:]}"
