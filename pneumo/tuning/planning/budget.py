"""Time that a user gives to a study. The module imports nothing slow."""

import re
from typing import NamedTuple

MIN_SECONDS = 60
UNITS = {"": 1, "s": 1, "m": 60, "h": 3_600}
RULE = "at least a minute, as 600 (seconds), 10m or 1h; +1h extends an existing study"


class Budget(NamedTuple):
    """Time for a study, from the start of the command to its end.

    Attributes:
        seconds: The time in seconds, at least `MIN_SECONDS`.
        is_extension: Whether an existing study gets this time anew. Otherwise it gets what it has
            not used of it.
    """

    seconds: int
    is_extension: bool

    def __str__(self) -> str:
        """Return the budget as `parse_budget` reads it."""
        return f"{'+' if self.is_extension else ''}{self.seconds}"


def parse_budget(text: str) -> Budget:
    """Parse a budget.

    Args:
        text: As `600`, `10m`, `1h` or `+1h`, in any case.

    Raises:
        ValueError: The text is no budget.
    """
    found = re.fullmatch(r"(\+?)([0-9]{1,9})([smh]?)", text.strip().lower())
    seconds = int(found[2]) * UNITS[found[3]] if found else 0
    if seconds < MIN_SECONDS:
        raise ValueError(f"must be {RULE}")
    return Budget(seconds, bool(found[1]))


def format_seconds(seconds: float) -> str:
    """Return a duration in the unit that people would use, as `45 s`, `10 min` or `1.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.3g} h"
