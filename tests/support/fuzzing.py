"""Helpers of the tests of arbitrary values.

PNEUMO_FUZZ multiplies the number of examples.
"""

import os
from collections.abc import Callable

from hypothesis import HealthCheck, settings

from pneumo.inference.untrusted import UnreadableImageError
from pneumo.runtime.errors import MAX_MESSAGE_LENGTH, UserError, is_printable_text, quoted

TIMES = int(os.environ.get("PNEUMO_FUZZ", "1"))


def examples(count: int):
    """Return the settings: the same examples each time, unless many more are requested."""
    return settings(
        max_examples=count * TIMES,
        derandomize=TIMES == 1,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


NASTY = [
    *("nan", "-inf", "1e400", "1e-400", "-0", "0x10", "1_000", "+1", " 1 ", "1.0", "9" * 5_000),
    *("²", "٣", "１２８", "\0", "a\0b", "a\nb", "\r\n", "\u2028", "\x1b[2J", "\udcff", "\ud800"),
    *("~", "~nobody-here", "-", "--", "-h", "--help", "%s", "%(prog)s", "{}", "@file", "'", '"'),
    *("none", "0-0", "1-2-3-4-5", "-".join("9" * 2_000), "..", "a/b", "models:/", "x" * 5_000),
    *("\N{RIGHT-TO-LEFT OVERRIDE}", "\N{NO-BREAK SPACE}", "é", "e\u0301", "🫁", "None", "True"),
]


def result(call: Callable, *arguments) -> object:
    """Return the result of a call, or the `UserError` that it raises."""
    try:
        return call(*arguments)
    except (UserError, UnreadableImageError) as refusal:
        return refusal


def is_one_line(message: str) -> bool:
    return (
        is_printable_text(message)
        and len(message) <= MAX_MESSAGE_LENGTH
        and message == quoted(message, MAX_MESSAGE_LENGTH)
    )
