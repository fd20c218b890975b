"""The exceptions that end in a single line instead of a traceback, and what it may quote."""

import re
import unicodedata

EXIT_USER_ERROR = 2  # exit code
ERROR_PREFIX = "pneumo: "  # of the line on standard error that says why a command failed

MAX_MESSAGE_LENGTH = 1_500  # characters of a message
MAX_QUOTE_LENGTH = 120  # characters of what a message quotes

UNPRINTABLE_CATEGORIES = (
    "Cc",
    "Cs",
    "Zl",
    "Zp",
)  # Unicode's names for control characters, surrogates, line ends

URL_PASSWORD = re.compile(r"(?<=://)([^\s:@/\"'<>]*):[^\s@\"'<>]*@")
QUERY_PASSWORD = re.compile(r"(?i)((?:password|passwd|pwd)=)[^&\s\"'<>]+")


class UserError(Exception):
    """Something only the user can put right; the command ends with exit code 2.

    The message is one line: the rule, what was received, what to do next. Whatever a stranger's
    name or value in it holds, it is printable, of bounded length and without passwords.
    """

    def __str__(self) -> str:
        line = re.sub(r"[^\S ]+", " ", redact_passwords(super().__str__())).strip()
        return quoted(line, MAX_MESSAGE_LENGTH)


class StudyFailedError(RuntimeError):
    """A study without a result, for a reason that the message gives in one line."""


def redact_passwords(text: str) -> str:
    """`text` with those hidden that stand in addresses.

    As `postgresql://USER:PASSWORD@HOST`, and as `postgresql://HOST/DATABASE?password=PASSWORD`.
    """
    return QUERY_PASSWORD.sub(r"\1***", URL_PASSWORD.sub(r"\1:***@", text))


def format_error(error: Exception) -> str:
    """What an exception says, to be kept or shown."""
    return redact_passwords(f"{type(error).__name__}: {error}")


def describe_failure(error: Exception) -> str:
    """Return one line that says why a command failed, to be stored with its run."""
    return (
        str(error)
        if isinstance(error, UserError)
        else quoted(format_error(error), MAX_MESSAGE_LENGTH)
    )


def quoted(value: object, most: int = MAX_QUOTE_LENGTH) -> str:
    """`value` as a message can quote it: what is not printable escaped, the middle cut out."""
    text = "".join(map(_printable, str(value)))
    return text if len(text) <= most else f"{text[: most - 41]}…{text[-40:]}"


def is_printable_text(value: str) -> bool:
    """Whether `value` is text that can be printed in one line and stored anywhere as UTF-8."""
    return not any(unicodedata.category(it) in UNPRINTABLE_CATEGORIES for it in value)


def _printable(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode()
