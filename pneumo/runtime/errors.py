"""Exceptions that end in one line instead of a traceback, and what that line may quote."""

import re
import unicodedata

EXIT_USER_ERROR = 2  # exit code
ERROR_PREFIX = "pneumo: "  # starts the line on standard error that explains a failure

MAX_MESSAGE_LENGTH = 1_500  # characters of a message
MAX_QUOTE_LENGTH = 120  # characters of a quoted value

# Unicode's categories of control characters, surrogates and line ends
UNPRINTABLE_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")

URL_PASSWORD = re.compile(r"(?<=://)([^\s:@/\"'<>]*):[^\s@\"'<>]*@")
QUERY_PASSWORD = re.compile(r"(?i)((?:password|passwd|pwd)=)[^&\s\"'<>]+")


class UserError(Exception):
    """An error that only the user can fix; the command ends with exit code 2.

    The message is one line: the rule, what was received, what to do next. It is printable, of
    bounded length and without passwords, whatever untrusted names and values it quotes.
    """

    def __str__(self) -> str:
        line = re.sub(r"[^\S ]+", " ", redact_passwords(super().__str__())).strip()
        return quoted(line, MAX_MESSAGE_LENGTH)


class StudyFailedError(RuntimeError):
    """An error that leaves a study without a result; the message is one line."""


def redact_passwords(text: str) -> str:
    """Return `text` with the passwords in addresses hidden.

    Both forms count: `postgresql://USER:PASSWORD@HOST` and
    `postgresql://HOST/DATABASE?password=PASSWORD`.
    """
    return QUERY_PASSWORD.sub(r"\1***", URL_PASSWORD.sub(r"\1:***@", text))


def format_error(error: Exception) -> str:
    """Return an exception's type and message, without passwords."""
    return redact_passwords(f"{type(error).__name__}: {error}")


def describe_failure(error: Exception) -> str:
    """Return one line that explains why a command failed, to be stored with its run."""
    return (
        str(error)
        if isinstance(error, UserError)
        else quoted(format_error(error), MAX_MESSAGE_LENGTH)
    )


def quoted(value: object, max_length: int = MAX_QUOTE_LENGTH) -> str:
    """Return `value` as text that a message can quote.

    Unprintable characters are escaped, and an ellipsis replaces the middle of a long text.

    Args:
        value: Any value.
        max_length: Maximum length of the text in characters.
    """
    text = "".join(map(_printable, str(value)))
    return text if len(text) <= max_length else f"{text[: max_length - 41]}…{text[-40:]}"


def is_printable_text(value: str) -> bool:
    """Return whether `value` can be printed in one line and stored as UTF-8."""
    return not any(unicodedata.category(character) in UNPRINTABLE_CATEGORIES for character in value)


def _printable(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode()
