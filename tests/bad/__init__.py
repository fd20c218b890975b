"""Inputs that nobody has checked: how each is made, and what is to become of it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One input.

    `make(folder)` makes it in an empty working directory, whose stores are the current ones, and
    gives the arguments of a command. A refused one ends with exit code 2 and one line that `says`
    (a pattern) why; a handled one with exit code 0, and the output says so.
    """

    name: str
    make: Callable[[Path], list[str]]
    says: str
    refused: bool = True

    def verdict(self, code: int, output: str, errors: str) -> str:
        """What the command has done wrong; '' where it did as it should."""
        if code != (2 if self.refused else 0):
            return f"exit code {code}: {errors[-500:]}"
        if not re.search(self.says, errors if self.refused else output):
            return f"says something else: {errors if self.refused else output[-500:]}"
        if self.refused and not re.fullmatch(r"pneumo: [^\n]+\n", errors):
            return f"more than one line: {errors[-500:]}"
        return "" if self.refused or not errors else f"complains: {errors[-500:]}"
